//! Power cuts on a real file system: everything that an engine's writes made reach the device is recorded, flushes among it.
//! Afterwards the device is put together as each of the flushes left it, and once more with some of the later writes, in any
//! order, as a volatile cache may have let them through. On each the file system is mounted and the engine opened: whatever had
//! been acknowledged by then is there.

use antumbra_hw_tests::here;

use super::mount::{Mounted, run};
use super::recorder::{Content, Entry, Recorder};
use super::{alone, key, missing, open, value};

const DEVICE_MIB: u64 = 160;
const ROWS: usize = 260;
const VALUE_BYTES: usize = 8_000;
/// Power cuts that are tried, evenly over the run.
const CUTS: usize = 16;
/// Part of the writes behind a flush that reached the device.
const REACHED_PERCENT: u8 = 50;

/// A run: what was on the device before, what reached it, and how much had when each row was acknowledged.
struct Run {
    before: Content,
    log: Vec<Entry>,
    acknowledged: Vec<usize>,
}

fn record() -> Run {
    let recorder = Recorder::new(DEVICE_MIB, Content::default());
    run("mkfs.ext4", &["-q", recorder.device()]).unwrap();
    let mounted = Mounted::new("ext4", recorder.device(), "rw");
    let dir = mounted.path.join("data");
    let (engine, rows) = open(&dir).unwrap();
    run("sync", &["--file-system", &mounted.path.display().to_string()]).unwrap();
    let before = recorder.content();
    recorder.begin();
    let mut acknowledged = Vec::new();
    for number in 0..ROWS {
        rows.put(key(number), value(number, VALUE_BYTES)).unwrap();
        acknowledged.push(recorder.reached());
        if number % 80 == 79 {
            // Tables, a new manifest and the removal of old files are cut too.
            rows.compact_range::<&str>(..).unwrap();
        }
    }
    engine.close().unwrap();
    let log = recorder.log();
    mounted.unmount();
    Run { before, log, acknowledged }
}

impl Run {
    /// The device after so many entries, and some of those up to the next flush.
    fn cut_at(&self, entries: usize, mut keep: impl FnMut() -> bool) -> Content {
        let mut content = self.before.clone();
        let behind = self.log[entries..].iter().take_while(|entry| !matches!(entry, Entry::Flush));
        let behind = behind.filter(|_| keep());
        for entry in self.log[..entries].iter().chain(behind) {
            if let Entry::Write { offset, bytes } = entry {
                content.write(*offset, bytes);
            }
        }
        content
    }

    /// Rows that had been acknowledged by then.
    fn acknowledged_at(&self, entries: usize) -> usize {
        self.acknowledged.iter().filter(|at| **at <= entries).count()
    }
}

/// Mounts what is left and opens the engine: what is wrong, if anything is.
fn recovered(content: Content, rows_expected: usize) -> Option<String> {
    let recorder = Recorder::new(DEVICE_MIB, content);
    let mounted = Mounted::new("ext4", recorder.device(), "rw");
    let wrong = match open(&mounted.path.join("data")) {
        Err(cause) => Some(format!("the engine did not open: {cause}")),
        Ok((engine, rows)) => {
            let wrong = missing(&rows, rows_expected, VALUE_BYTES);
            // It goes on from there.
            let written = rows.put("after", "the cut").err().map(|cause| format!("a put after the cut: {cause}"));
            engine.close().unwrap();
            wrong.or(written)
        }
    };
    mounted.unmount();
    wrong
}

#[test]
fn engine_recovers_from_a_power_cut_at_any_flush() {
    if !here(&["FUSE", "ext4"]) {
        return;
    }
    let _alone = alone();
    let run = record();
    let flushes: Vec<usize> =
        (0..run.log.len()).filter(|at| matches!(run.log[*at], Entry::Flush)).map(|at| at + 1).collect();
    assert!(flushes.len() >= ROWS, "a flush for each row: {} of {} entries", flushes.len(), run.log.len());
    let mut random = fastrand::Rng::with_seed(7);
    let (mut cuts, mut partial) = (0, 0);
    for at in flushes.iter().copied().step_by(flushes.len().div_ceil(CUTS)) {
        // Half of the cuts lie exactly behind a flush, half between two.
        let between = cuts % 2 == 1;
        let content = run.cut_at(at, || between && random.u8(0..100) < REACHED_PERCENT);
        let expected = run.acknowledged_at(at);
        let wrong = recovered(content, expected);
        assert_eq!(wrong, None, "cut behind entry {at} of {}, {expected} rows acknowledged", run.log.len());
        cuts += 1;
        partial += usize::from(between);
    }
    println!(
        "{cuts} power cuts, {partial} of them between flushes; {} flushes, {} writes recorded",
        flushes.len(),
        run.log.len() - flushes.len()
    );

    // A device that forgets what it had flushed is noticed: the check can fail.
    let (middle, end) = (flushes[flushes.len() / 3], flushes[2 * flushes.len() / 3]);
    let lost = run.acknowledged_at(end);
    assert!(lost > run.acknowledged_at(middle));
    assert!(recovered(run.cut_at(middle, || false), lost).is_some(), "rows of the future are not there");
}
