//! Hot segments stay in memory, give the same answers, and leave it when they cool down or are rewritten.

use std::time::{Duration, Instant};

use antumbra_engine::{Durability, PartitionHandle, Write};
use bytes::Bytes;

use crate::common::{block_on, create, open};

const KEYS: u64 = 24_000;
const HOT: u64 = 1_000;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:06}"))
}

fn value(number: u64, version: u64) -> Bytes {
    let mut value = format!("{number}:{version}:").into_bytes();
    value.resize(1_000, b'x');
    Bytes::from(value)
}

fn write_all(handle: &PartitionHandle, numbers: std::ops::Range<u64>, version: u64) {
    for number in numbers {
        let write = Write::put(key(number), value(number, version));
        block_on(handle.write(write, Durability::Buffered)).unwrap();
    }
    block_on(handle.compact()).unwrap();
}

/// Reads hot keys, and now and then others, until `done` or the time is over.
fn read_until(handle: &PartitionHandle, version: u64, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut random = fastrand::Rng::with_seed(version);
    while Instant::now() < deadline {
        for _ in 0..200 {
            let hot = random.u64(0..HOT);
            assert_eq!(block_on(handle.get(key(hot))).unwrap(), Some(value(hot, version)));
            let other = random.u64(HOT..KEYS);
            assert_eq!(block_on(handle.get(key(other))).unwrap(), Some(value(other, 1)));
        }
        for hot in 0..HOT {
            assert_eq!(block_on(handle.get(key(hot))).unwrap(), Some(value(hot, version)));
        }
        if done() {
            return true;
        }
    }
    false
}

#[test]
fn hot_segments_become_resident_and_follow_a_rewrite() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    write_all(&handle, 0..KEYS, 1);
    let resident = || block_on(handle.stats()).unwrap().resident_bytes;
    if !read_until(&handle, 1, || resident() > 0) {
        assert!(!may_lock(), "nothing became resident");
        println!("SKIPPED: this process may not lock memory");
        return;
    }
    write_all(&handle, 0..HOT, 2);
    assert!(read_until(&handle, 2, || resident() > 0), "the rewritten segments became resident");
    assert!(resident() <= 8 << 20, "{} bytes of a budget of 16 MiB for everything", resident());
    block_on(engine.close()).unwrap();
}

/// Whether a MiB can be locked, as the engine would.
fn may_lock() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    const CAP_IPC_LOCK: u32 = 14;
    u64::from_str_radix(effective, 16).unwrap() & 1 << CAP_IPC_LOCK != 0
}
