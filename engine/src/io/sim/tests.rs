//! The machine itself: what survives what, and that a seed decides everything.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::Error;
use crate::io::direct::{AlignedBuf, BLOCK_BYTES, DirectFile};
use crate::io::fs::{self, File};
use crate::io::runtime;

const PATIENCE: Duration = Duration::from_secs(60);

fn block(byte: u8) -> AlignedBuf {
    let mut buffer = AlignedBuf::with_capacity(BLOCK_BYTES);
    buffer.extend_from_slice(&[byte; BLOCK_BYTES]);
    buffer
}

fn dir() -> &'static Path {
    Path::new("/data")
}

/// Runs to the end on a fresh machine.
fn done<T: 'static>(machine: &Rc<Machine>, main: impl Future<Output = T> + 'static) -> T {
    match machine.run(PATIENCE, main) {
        Ended::Done(result) => result,
        other => panic!("the run ended early: {}", if matches!(other, Ended::Stuck) { "stuck" } else { "power cut" }),
    }
}

#[test]
fn direct_durable_write_survives_power_cut_and_cached_write_may_not() {
    let mut lost = 0;
    for seed in 0..40 {
        let machine = Machine::new(seed, None);
        let _entered = machine.enter();
        done(&machine, async {
            fs::create_dir(dir()).unwrap();
            let file = DirectFile::create_durable(&dir().join("direct")).await.unwrap();
            file.write_all(0, block(7)).await.unwrap();
            File::create(&dir().join("cached")).unwrap();
            fs::sync_dir(dir()).unwrap();
            let mut cached = File::open_write(&dir().join("cached")).unwrap();
            cached.write_all(&[9; 5_000]).unwrap();
        });
        machine.power_up();
        done(&machine, async {
            let file = DirectFile::open_read(&dir().join("direct")).await.unwrap();
            assert_eq!(file.read(0, BLOCK_BYTES).await.unwrap()[..], [7; BLOCK_BYTES]);
        });
        lost += u32::from(fs::read_if_present(&dir().join("cached")).unwrap().unwrap() != [9; 5_000]);
    }
    assert!((1..40).contains(&lost), "an unsynced write is lost in some runs and not in others: {lost} of 40");
}

#[test]
fn name_without_folder_sync_may_be_lost_and_with_it_never_is() {
    let mut lost = 0;
    for seed in 0..40 {
        let machine = Machine::new(seed, None);
        let _entered = machine.enter();
        fs::create_dir(dir()).unwrap();
        fs::write_file_atomic(&dir().join("CURRENT"), b"one").unwrap();
        File::create(&dir().join("loose")).unwrap().sync().unwrap();
        machine.power_up();
        assert_eq!(fs::read_if_present(&dir().join("CURRENT")).unwrap().unwrap(), b"one");
        lost += u32::from(fs::read_if_present(&dir().join("loose")).unwrap().is_none());
    }
    assert!((1..40).contains(&lost), "{lost} of 40");
}

#[test]
fn power_cut_in_a_direct_write_tears_it() {
    let mut torn = 0;
    for seed in 0..60 {
        let machine = Machine::new(seed, None);
        let _entered = machine.enter();
        fs::create_dir(dir()).unwrap();
        let path = dir().join("f");
        done(&machine, async move {
            let file = DirectFile::create_durable(&path).await.unwrap();
            file.write_all(0, block(1)).await.unwrap();
            fs::sync_dir(dir()).unwrap();
        });
        // Open, read, open, lock, write, and then the write lands.
        machine.interrupt_after(6);
        let ended = machine.run(PATIENCE, async {
            let mut file = File::open_write(&dir().join("f")).unwrap();
            assert_eq!(file.read_to_end().unwrap(), [1; BLOCK_BYTES]);
            let file = DirectFile::open_write_locked(&dir().join("f")).await.unwrap();
            file.write_all(0, block(2)).await.unwrap();
        });
        assert!(matches!(ended, Ended::Interrupted));
        machine.power_up();
        let bytes = fs::read_if_present(&dir().join("f")).unwrap().unwrap();
        assert!(bytes.iter().all(|byte| [1, 2].contains(byte)), "nothing but old and new sectors");
        torn += u32::from(bytes.contains(&1) && bytes.contains(&2));
    }
    assert!((1..60).contains(&torn), "{torn} of 60");
}

#[test]
fn write_of_a_killed_process_lands_later_and_holds_the_lock_until_then() {
    let machine = Machine::new(3, None);
    let _entered = machine.enter();
    fs::create_dir(dir()).unwrap();
    let path = dir().join("f");
    done(&machine, async move {
        let mut file = File::create(&path).unwrap();
        file.write_all(&[0; BLOCK_BYTES]).unwrap();
        file.sync().unwrap();
        let file = DirectFile::open_write_locked(&path).await.unwrap();
        let write = machine_spawn(async move { file.write_all(0, block(5)).await });
        write.detach();
        runtime::sleep(Duration::from_micros(5)).await;
    });
    machine.kill();
    let before = fs::read_if_present(&dir().join("f")).unwrap().unwrap();
    assert_eq!(before, [0; BLOCK_BYTES], "still on its way");
    let file = crate::io::lock::open_when_quiet(&dir().join("f"), machine.now() + PATIENCE);
    let after = file.unwrap().read_to_end().unwrap();
    assert_eq!(after, [5; BLOCK_BYTES], "the lock was free only after it");
}

fn machine_spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    current().unwrap().spawn(task)
}

#[test]
fn injected_faults_are_answered_and_counted() {
    let machine = Machine::new(1, None);
    let _entered = machine.enter();
    fs::create_dir(dir()).unwrap();
    *machine.faults.borrow_mut() = Faults { write_error: Faults::WHOLE, ..Faults::default() };
    let path = dir().join("1.tab");
    let failed = done(&machine, async move {
        let file = DirectFile::create_durable(&path).await.unwrap();
        file.write_all(0, block(1)).await
    });
    assert!(matches!(failed, Err(Error::Io { op: "write", .. })));
    *machine.faults.borrow_mut() = Faults { full: true, ..Faults::default() };
    assert!(File::create(&dir().join("new")).is_err());
    *machine.faults.borrow_mut() = Faults { short_read: Faults::WHOLE, ..Faults::default() };
    done(&machine, async {
        let file = DirectFile::create_durable(&dir().join("2.tab")).await.unwrap();
        file.write_all(0, block(4)).await.unwrap();
        assert_eq!(file.read(10, 3_000).await.unwrap()[..], [4; 3_000], "short reads are continued");
    });
    *machine.faults.borrow_mut() = Faults { lost_write: Faults::WHOLE, ..Faults::default() };
    done(&machine, async {
        let file = DirectFile::create_durable(&dir().join("3.tab")).await.unwrap();
        file.write_all(0, block(4)).await.unwrap();
        assert!(matches!(file.read(0, 10).await, Err(Error::Corruption { .. })), "nothing was written");
        current().unwrap().heal();
        assert_eq!(file.read(0, 10).await.unwrap()[..], [4; 10]);
    });
    assert_eq!(machine.injected.errors.get(), 2);
}

#[test]
fn same_seed_gives_the_same_trace_and_another_seed_another() {
    let trace = |seed| {
        let machine = Machine::new(seed, None);
        let _entered = machine.enter();
        fs::create_dir(dir()).unwrap();
        for name in 0..8 {
            let task = async move {
                let file = DirectFile::create_durable(&dir().join(name.to_string())).await.unwrap();
                for offset in 0..20 {
                    file.write_all(offset * BLOCK_BYTES as u64, block(name)).await.unwrap();
                    runtime::yield_now().await;
                }
            };
            machine.spawn(task).detach();
        }
        done(&machine, runtime::sleep(Duration::from_secs(1)));
        (machine.trace(), machine.operations())
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1).0, trace(2).0);
    assert_eq!(trace(1).1, 1 + 8 * (1 + 2 * 20), "every task ran to its end");
}

#[test]
fn flipped_bit_is_read_until_it_is_healed() {
    let machine = Machine::new(5, None);
    let _entered = machine.enter();
    fs::create_dir(dir()).unwrap();
    fs::write_file_atomic(&dir().join("1.tab"), &[0; 10_000]).unwrap();
    fs::write_file_atomic(&dir().join("CURRENT"), &[0; 10_000]).unwrap();
    let ones = |name: &str| -> u32 {
        fs::read_if_present(&dir().join(name)).unwrap().unwrap().iter().map(|byte| byte.count_ones()).sum()
    };
    assert_eq!(machine.flip_bit(is_table).unwrap(), "1.tab");
    assert_eq!((ones("1.tab"), ones("CURRENT")), (1, 0));
    machine.power_up();
    assert_eq!(ones("1.tab"), 1, "damage at rest outlasts a power cut");
    machine.heal();
    assert_eq!(ones("1.tab"), 0);
}

#[test]
fn nothing_works_in_the_dark_and_a_kept_power_is_not_cut() {
    let machine = Machine::new(5, None);
    let _entered = machine.enter();
    fs::create_dir(dir()).unwrap();
    machine.interrupt_after(1);
    machine.cancel_interruption();
    fs::write_file_atomic(&dir().join("a"), b"a").unwrap();
    machine.interrupt_after(1);
    assert!(fs::write_file_atomic(&dir().join("b"), b"b").is_err());
    assert!(machine.is_dark() && fs::read_if_present(&dir().join("a")).is_err());
    machine.power_up();
    assert_eq!(fs::read_if_present(&dir().join("a")).unwrap().unwrap(), b"a");
    assert_eq!(fs::read_if_present(&dir().join("b")).unwrap(), None);
}
