//! The engine against a `BTreeMap`: random operations, flushes, compactions and restarts.

use std::collections::BTreeMap;

use antumbra_engine::types::KeyRange;
use antumbra_engine::{Durability, Error, PartitionHandle, Write};
use bytes::Bytes;

use crate::common::{PARTITION, block_on, create, open};

type Model = BTreeMap<Bytes, Bytes>;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:05}"))
}

fn value(random: &mut fastrand::Rng) -> Bytes {
    let len = random.usize(0..6_000);
    Bytes::from((0..len).map(|_| random.u8(..)).collect::<Vec<u8>>())
}

/// Some hundred writes, most of them not waited for one by one.
fn write_some(handle: &PartitionHandle, model: &mut Model, random: &mut fastrand::Rng) {
    for _ in 0..random.usize(50..400) {
        let key = key(random.u64(0..2_000));
        let durability = if random.u8(..) < 8 { Durability::Durable } else { Durability::Buffered };
        if random.u8(..) < 40 {
            block_on(handle.write(Write::delete(key.clone()), durability)).unwrap();
            model.remove(&key);
        } else {
            let value = value(random);
            block_on(handle.write(Write::put(key.clone(), value.clone()), durability)).unwrap();
            model.insert(key, value);
        }
    }
}

fn check(handle: &PartitionHandle, model: &Model, random: &mut fastrand::Rng) {
    for _ in 0..100 {
        let key = key(random.u64(0..2_100));
        assert_eq!(block_on(handle.get(key.clone())).unwrap(), model.get(&key).cloned(), "{key:?}");
    }
    let (from, to) = (random.u64(0..2_000), random.u64(0..2_000));
    let (from, to) = (key(from.min(to)), key(from.max(to)));
    let mut found = Vec::new();
    let mut start = from.clone();
    loop {
        let range = KeyRange { start: start.to_vec(), end: Some(to.to_vec()) };
        let page = block_on(handle.scan(range, 97)).unwrap();
        found.extend(page.items.into_iter().map(|item| (item.key, item.value)));
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    let expected: Vec<(Bytes, Bytes)> =
        model.range(from..to).map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(found.len(), expected.len());
    assert!(found == expected, "a scan returns what the model holds");
}

#[test]
fn random_operations_and_restarts_equal_model() {
    for seed in 0..3 {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut engine = open(dir.path());
        let mut handle = create(&engine);
        let mut model = Model::new();
        for _ in 0..25 {
            match random.u8(0..10) {
                0 => block_on(handle.compact()).unwrap(),
                1 | 2 => {
                    block_on(engine.close()).unwrap();
                    engine = open(dir.path());
                    handle = engine.partition(PARTITION).unwrap();
                }
                _ => write_some(&handle, &mut model, &mut random),
            }
            check(&handle, &model, &mut random);
        }
        let stats = block_on(handle.stats()).unwrap();
        assert!(stats.segments > 1, "the run is long enough to split segments");
    }
}

#[test]
fn expired_key_is_gone_from_get_and_scan() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let write = |key: &'static str, expires_at_ms| Write {
        expires_at_ms,
        ..Write::put(Bytes::from_static(key.as_bytes()), Bytes::from_static(b"v"))
    };
    block_on(handle.write(write("past", 1), Durability::Durable)).unwrap();
    block_on(handle.write(write("future", u64::MAX), Durability::Durable)).unwrap();
    for compacted in [false, true] {
        assert_eq!(block_on(handle.get("past")).unwrap(), None);
        assert!(block_on(handle.get("future")).unwrap().is_some());
        let page = block_on(handle.scan(KeyRange::all(), 10)).unwrap();
        assert_eq!(page.items.len(), 1, "compacted: {compacted}");
        block_on(handle.compact()).unwrap();
    }
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let refused = |key: Bytes, value: Bytes| block_on(handle.write(Write::put(key, value), Durability::Durable));
    assert!(matches!(refused(Bytes::new(), Bytes::new()), Err(Error::KeyLength { len: 0, .. })));
    assert!(matches!(refused(vec![1; 40_000].into(), Bytes::new()), Err(Error::KeyLength { .. })));
    assert!(matches!(refused("k".into(), vec![0; (16 << 20) + 1].into()), Err(Error::ValueLength { .. })));
    let largest = Bytes::from(vec![7; 16 << 20]);
    refused("largest".into(), largest.clone()).unwrap();
    assert_eq!(block_on(handle.get("largest")).unwrap(), Some(largest));
    assert_eq!(block_on(handle.scan(KeyRange::all(), 10)).unwrap().items.len(), 1);
}

#[test]
fn open_folder_in_use_is_refused_and_free_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut config = crate::common::config(dir.path());
    config.lock_timeout = std::time::Duration::from_millis(50);
    assert!(matches!(antumbra_engine::Engine::open(config.clone()), Err(Error::Locked { .. })));
    block_on(engine.close()).unwrap();
    antumbra_engine::Engine::open(config).unwrap();
}

#[test]
fn log_is_recycled_under_sustained_writes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let value = Bytes::from(vec![9; 64 << 10]);
    for round in 0..4_000_u64 {
        let durability = if round.is_multiple_of(100) { Durability::Durable } else { Durability::Buffered };
        block_on(handle.write(Write::put(key(round % 50), value.clone()), durability)).unwrap();
    }
    let files = std::fs::read_dir(dir.path().join("shard-000/wal")).unwrap().count();
    assert!(files <= 8, "{files} log files for 250 MB of writes to 3 MB of data");
}

#[test]
fn offline_verify_finds_a_flipped_bit() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    for number in 0..500 {
        block_on(handle.write(Write::put(key(number), vec![7; 500]), Durability::Buffered)).unwrap();
    }
    block_on(handle.compact()).unwrap();
    assert!(matches!(antumbra_engine::offline::verify(dir.path(), |_| {}), Err(Error::Locked { .. })));
    block_on(engine.close()).unwrap();
    let found = antumbra_engine::offline::verify(dir.path(), |_| {}).unwrap();
    assert_eq!(found.records, 500);
    let table = std::fs::read_dir(dir.path().join("shard-000")).unwrap().map(|entry| entry.unwrap().path());
    let table = table.filter(|path| path.extension().is_some_and(|extension| extension == "tab")).min().unwrap();
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    match antumbra_engine::offline::verify(dir.path(), |_| {}) {
        Err(Error::Corruption { path, .. }) => assert_eq!(path, table),
        other => panic!("expected corruption, got {other:?}"),
    }
}
