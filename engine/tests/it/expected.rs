//! Reads bring more at a time where the predictor expects a segment to be accessed most, and nowhere else.

use std::path::Path;
use std::time::{Duration, Instant};

use antumbra_engine::{Durability, Engine, PartitionHandle, ReadAhead, Write};
use bytes::Bytes;

use crate::common::{PARTITION, block_on, config, create, open};

/// Some 60 to 120 keys lie in a segment, 4 in a block.
const KEYS: u64 = 20_000;
const HOT: u64 = 5_000;
const FAR: u64 = 15_000;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:06}"))
}

fn load(dir: &Path) {
    let engine = open(dir);
    let handle = create(&engine);
    for number in 0..KEYS {
        block_on(handle.write(Write::put(key(number), vec![b'v'; 1_000]), Durability::Buffered)).unwrap();
    }
    block_on(handle.compact()).unwrap();
    block_on(engine.close()).unwrap();
}

/// Blocks that a get of this key brings from the device.
fn brought(engine: &Engine, handle: &PartitionHandle, number: u64) -> u64 {
    let read = || block_on(engine.stats()).unwrap().cache.blocks_read;
    let before = read();
    assert!(block_on(handle.get(key(number))).unwrap().is_some());
    read() - before
}

/// Gets every key from `HOT` on, so many a window, until scorers have seen enough of it; returns how far that came.
fn front(handle: &PartitionHandle) -> u64 {
    const KEYS_A_WINDOW: u64 = 60;
    let windows = || block_on(handle.stats()).unwrap().windows_closed;
    let (mut at, mut last, deadline) = (HOT, windows(), Instant::now() + Duration::from_secs(40));
    while at < HOT + 60 * KEYS_A_WINDOW {
        assert!(Instant::now() < deadline, "windows are not closed");
        if windows() > last {
            last = windows();
            (at..at + KEYS_A_WINDOW).for_each(|number| drop(block_on(handle.get(key(number)))));
            at += KEYS_A_WINDOW;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    while windows() == last {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(5));
    at
}

#[test]
fn reads_are_wide_where_accesses_come_or_everywhere_or_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    load(dir.path());
    for read_ahead in [ReadAhead::Growing, ReadAhead::Expected, ReadAhead::Wide] {
        let mut config = config(dir.path());
        (config.read_ahead, config.residency) = (read_ahead, false);
        let engine = Engine::open(config).unwrap();
        let handle = engine.partition(PARTITION).unwrap();
        let cold = brought(&engine, &handle, HOT);
        let at = front(&handle);
        // In the next segments, each key a few blocks behind the one before; the bounds are not this test's.
        let ahead = [50, 90, 130, 170, 210].map(|behind| brought(&engine, &handle, at + behind));
        let most = ahead.into_iter().max().unwrap();
        let far = brought(&engine, &handle, FAR);
        match read_ahead {
            ReadAhead::Growing => assert_eq!((cold, most, far), (1, 1, 1)),
            ReadAhead::Expected => {
                assert_eq!((cold, far), (1, 1), "nothing, or nothing much, is expected there");
                assert!(most > 3, "{ahead:?} blocks before a front");
            }
            ReadAhead::Wide => assert!(cold > 3 && far > 3, "{cold} and {far} blocks"),
        }
        block_on(engine.close()).unwrap();
    }
}

#[test]
fn scan_of_a_wide_segment_reads_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    load(dir.path());
    for read_ahead in [ReadAhead::Growing, ReadAhead::Wide] {
        let mut config = config(dir.path());
        (config.read_ahead, config.residency) = (read_ahead, false);
        let engine = Engine::open(config).unwrap();
        let handle = engine.partition(PARTITION).unwrap();
        for first in (0..KEYS).step_by(997) {
            let range = antumbra_engine::types::KeyRange { start: key(first).to_vec(), end: None };
            let page = block_on(handle.scan(range, 300)).unwrap();
            let keys: Vec<Bytes> = page.items.into_iter().map(|item| item.key).collect();
            assert_eq!(keys, (first..KEYS.min(first + 300)).map(key).collect::<Vec<_>>());
        }
        block_on(engine.close()).unwrap();
    }
}
