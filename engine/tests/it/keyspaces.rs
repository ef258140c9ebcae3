//! Keyspaces of every partitioning against a `BTreeMap`: point operations, streams both ways, snapshots, restarts.

use std::collections::BTreeMap;
use std::ops::Bound;

use antumbra_engine::{
    Commit, Compression, Condition, Durability, Engine, Entries, Error, Keyspace, KeyspaceOptions, PartitionOptions,
    Snapshot,
};
use bytes::Bytes;
use futures_lite::StreamExt as _;

use crate::common::block_on;

type Model = BTreeMap<Bytes, Bytes>;
const KEYS: u64 = 600;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:05}"))
}

fn open(dir: &std::path::Path, threads: usize) -> Engine {
    let mut builder = Engine::builder(dir).threads(threads).memory_budget(32 << 20).wal_file(32 << 20);
    builder.config().window = std::time::Duration::from_millis(50);
    builder.open().unwrap()
}

fn options(kind: u64) -> KeyspaceOptions {
    let options = KeyspaceOptions::new().merge_operator("append").partition(PartitionOptions {
        segment_target_bytes: 64 << 10,
        block_bytes: 4 << 10,
        ..PartitionOptions::default()
    });
    match kind {
        0 => options,
        1 => options.hash(5).compression(Compression::Zstd),
        _ => options.split_at([key(100), key(300), key(301), key(550)]),
    }
}

/// Reads a stream to its end.
fn all(entries: Entries) -> Vec<(Bytes, Bytes)> {
    block_on(entries.collect()).unwrap().into_iter().map(|entry| (entry.key, entry.value)).collect()
}

fn expected(model: &Model, range: (Bound<Bytes>, Bound<Bytes>), reversed: bool) -> Vec<(Bytes, Bytes)> {
    let mut entries: Vec<_> = model.range(range).map(|(key, value)| (key.clone(), value.clone())).collect();
    if reversed {
        entries.reverse();
    }
    entries
}

struct Run {
    random: fastrand::Rng,
    keyspace: Keyspace,
    model: Model,
    snapshots: Vec<(Snapshot, Model)>,
}

impl Run {
    fn write(&mut self) {
        let number = self.random.u64(0..KEYS);
        let key = key(number);
        match self.random.u8(0..20) {
            0..=11 => {
                let value = Bytes::from(vec![self.random.u8(..); self.random.usize(0..1_500)]);
                block_on(self.keyspace.put(key.clone(), value.clone())).unwrap();
                self.model.insert(key, value);
            }
            12..=14 => {
                block_on(self.keyspace.delete(key.clone())).unwrap();
                self.model.remove(&key);
            }
            15 => {
                let end = self::key(number + self.random.u64(0..60));
                block_on(self.keyspace.delete_range(key.clone()..end.clone())).unwrap();
                self.model.retain(|held, _| *held < key || *held >= end);
            }
            16 => {
                let condition = if self.random.bool() { Condition::Absent } else { Condition::Present };
                let holds = self.model.contains_key(&key) == (condition == Condition::Present);
                let commit = block_on(self.keyspace.put_if(key.clone(), "conditional", condition)).unwrap();
                assert_eq!(commit.is_written(), holds);
                if holds {
                    self.model.insert(key, Bytes::from_static(b"conditional"));
                }
            }
            _ => {
                block_on(self.keyspace.merge(key.clone(), "+")).unwrap();
                let mut value = self.model.get(&key).map_or(Vec::new(), |value| value.to_vec());
                value.push(b'+');
                self.model.insert(key, value.into());
            }
        }
    }

    fn bound(&mut self) -> Bound<Bytes> {
        let key = key(self.random.u64(0..KEYS));
        match self.random.u8(0..4) {
            0 => Bound::Unbounded,
            1 => Bound::Excluded(key),
            _ => Bound::Included(key),
        }
    }

    fn check(&mut self) {
        let keys: Vec<Bytes> = (0..80).map(|_| key(self.random.u64(0..KEYS))).collect();
        let found = block_on(self.keyspace.multi_get(keys.clone())).unwrap();
        for (key, found) in keys.iter().zip(found) {
            assert_eq!(found.as_ref(), self.model.get(key), "{key:?}");
        }
        for _ in 0..4 {
            let (mut from, mut to) = (self.bound(), self.bound());
            let of = |bound: &Bound<Bytes>| match bound {
                Bound::Included(key) | Bound::Excluded(key) => Some(key.clone()),
                Bound::Unbounded => None,
            };
            // BTreeMap panics on what no key can satisfy; the engine returns nothing.
            if let (Some(a), Some(b)) = (of(&from), of(&to))
                && a >= b
            {
                (from, to) = (Bound::Included(b), Bound::Included(a));
            }
            let range = (from, to);
            let reversed = self.random.bool();
            let mut sources = vec![(self.keyspace.range(range.clone()), &self.model)];
            if let Some((snapshot, model)) = self.snapshots.first() {
                sources.push((snapshot.range(range.clone()), model));
            }
            for (entries, model) in sources {
                let entries = if reversed { entries.rev() } else { entries };
                assert!(all(entries) == expected(model, range.clone(), reversed), "{range:?} reversed: {reversed}");
            }
        }
        for (snapshot, model) in &self.snapshots {
            assert_eq!(block_on(snapshot.get(keys[0].clone())).unwrap().as_ref(), model.get(&keys[0]));
        }
    }
}

#[test]
fn random_operations_on_every_partitioning_equal_model() {
    for kind in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = open(dir.path(), 2);
        let keyspace = block_on(engine.create_keyspace("ks", options(kind))).unwrap();
        let keyspace = keyspace.with_durability(Durability::Buffered);
        let random = fastrand::Rng::with_seed(kind);
        let mut run = Run { random, keyspace, model: Model::new(), snapshots: Vec::new() };
        for _ in 0..25 {
            match run.random.u8(0..10) {
                0 => block_on(run.keyspace.compact_range::<Bytes>(..)).unwrap(),
                1 => {
                    run.snapshots.clear();
                    let threads = run.random.usize(1..4);
                    block_on(engine.close()).unwrap();
                    engine = open(dir.path(), threads);
                    run.keyspace = engine.keyspace("ks").unwrap().with_durability(Durability::Buffered);
                }
                2 | 3 => {
                    let snapshot = block_on(run.keyspace.snapshot()).unwrap();
                    run.snapshots.insert(0, (snapshot, run.model.clone()));
                    run.snapshots.truncate(3);
                }
                _ => (0..run.random.usize(50..400)).for_each(|_| run.write()),
            }
            run.check();
        }
        let stats = block_on(run.keyspace.stats()).unwrap();
        assert_eq!(stats.partitions.len(), run.keyspace.partitioning().partitions());
    }
}

#[test]
fn streams_are_of_one_moment_and_outlive_their_keyspace_handle() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let keyspace = block_on(engine.create_keyspace("ks", KeyspaceOptions::new())).unwrap();
    let keyspace = keyspace.with_durability(Durability::Buffered);
    for number in 0..20_000 {
        block_on(keyspace.put(key(number), "before")).unwrap();
    }
    for reversed in [false, true] {
        let mut entries = if reversed { keyspace.iter().rev() } else { keyspace.iter() };
        let first = block_on(entries.next()).unwrap().unwrap();
        assert_eq!(first.key, key(if reversed { 19_999 } else { 0 }));
        for number in (0..20_000).step_by(7) {
            block_on(keyspace.put(key(number), "after")).unwrap();
        }
        block_on(keyspace.compact_range::<Bytes>(..)).unwrap();
        // A `Stream` that may go to another thread.
        let rest = std::thread::spawn(move || block_on(entries.try_collect::<_, _, Vec<_>>()).unwrap()).join().unwrap();
        assert_eq!(rest.len(), 19_999);
        assert!(rest.iter().all(|entry| entry.value == "before"), "reversed: {reversed}");
        for number in (0..20_000).step_by(7) {
            block_on(keyspace.put(key(number), "before")).unwrap();
        }
    }
}

#[test]
fn backward_stream_crosses_long_stretches_of_deleted_keys() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let options = options(0);
    let keyspace = block_on(engine.create_keyspace("ks", options)).unwrap().with_durability(Durability::Buffered);
    for number in 0..30_000 {
        block_on(keyspace.put(key(number), "v")).unwrap();
        if number == 15_000 {
            block_on(keyspace.compact_range::<Bytes>(..)).unwrap();
        }
    }
    for number in 10..29_990 {
        block_on(keyspace.delete(key(number))).unwrap();
    }
    let expected: Vec<Bytes> = (29_990..30_000).chain(0..10).map(key).collect();
    let mut found: Vec<Bytes> = all(keyspace.iter().rev()).into_iter().map(|(key, _)| key).collect();
    found.sort_by_key(|key| (*key < self::key(15_000), key.clone()));
    assert_eq!(found, expected);
    assert_eq!(all(keyspace.prefix("key-0000")).len(), 10);
    assert_eq!(all(keyspace.prefix("none")).len(), 0);
}

#[test]
fn keyspaces_are_created_listed_dropped_and_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 2);
    let users = block_on(engine.create_keyspace("users", KeyspaceOptions::new())).unwrap();
    let orders = block_on(engine.open_keyspace("orders", KeyspaceOptions::new().hash(4))).unwrap();
    let shards: std::collections::BTreeSet<_> = orders.partitions().iter().map(|handle| handle.shard()).collect();
    assert_eq!(shards.len(), 2, "partitions are spread");
    block_on(users.put("k", "of users")).unwrap();
    block_on(orders.put("k", "of orders")).unwrap();
    assert!(matches!(block_on(engine.create_keyspace("users", KeyspaceOptions::new())), Err(Error::Invalid { .. })));
    assert!(matches!(engine.keyspace("none"), Err(Error::UnknownKeyspace { .. })));
    let again = block_on(engine.open_keyspace("orders", KeyspaceOptions::new())).unwrap();
    assert_eq!(again.partitioning().partitions(), 4, "what exists keeps its options");
    block_on(engine.drop_keyspace("users")).unwrap();
    assert!(matches!(block_on(users.get("k")), Err(Error::UnknownPartition { .. })));
    let users = block_on(engine.create_keyspace("users", KeyspaceOptions::new())).unwrap();
    assert_eq!(block_on(users.get("k")).unwrap(), None, "a new keyspace of the same name is empty");
    block_on(engine.close()).unwrap();
    let engine = open(dir.path(), 1);
    assert_eq!(engine.list_keyspaces(), ["orders", "users"]);
    assert_eq!(block_on(engine.keyspace("orders").unwrap().get("k")).unwrap().unwrap(), "of orders");
}

#[test]
fn open_after_a_crash_between_partitions_and_catalogue_drops_what_no_keyspace_has() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 2);
    block_on(engine.create_keyspace("kept", KeyspaceOptions::new())).unwrap();
    let before = std::fs::read(dir.path().join("KEYSPACES")).unwrap();
    block_on(engine.create_keyspace("lost", KeyspaceOptions::new().hash(4))).unwrap();
    block_on(engine.close()).unwrap();
    // As if the power had gone before the second catalogue was installed.
    std::fs::write(dir.path().join("KEYSPACES"), before).unwrap();
    let engine = open(dir.path(), 2);
    assert_eq!(engine.list_keyspaces(), ["kept"]);
    assert_eq!(engine.partitions().len(), 1);
    let again = block_on(engine.create_keyspace("lost", KeyspaceOptions::new().hash(4))).unwrap();
    block_on(again.put("k", "v")).unwrap();
    block_on(engine.close()).unwrap();
    std::fs::write(dir.path().join("KEYSPACES"), b"ANTBKEYS\x02").unwrap();
    match Engine::builder(dir.path()).memory_budget(32 << 20).open() {
        Err(Error::Corruption { path, .. }) => assert!(path.ends_with("KEYSPACES")),
        other => panic!("expected corruption, got {other:?}"),
    }
}

#[test]
fn batches_stay_within_one_partition() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let ranged = block_on(engine.create_keyspace("ranged", KeyspaceOptions::new().split_at(["m"]))).unwrap();
    let mut batch = ranged.batch();
    batch.put("a", "1").put("b", "2");
    assert!(matches!(block_on(ranged.commit(batch)), Ok(Commit::Written(_))));
    let mut batch = ranged.batch();
    batch.put("a", "1").put("z", "2");
    assert!(matches!(block_on(ranged.commit(batch)), Err(Error::SpansPartitions { .. })));
    let mut batch = ranged.batch();
    batch.put("a", "1").delete_range(antumbra_engine::types::KeyRange::from_bounds("b".."n"));
    assert!(matches!(block_on(ranged.commit(batch)), Err(Error::SpansPartitions { .. })));
    let mut batch = ranged.batch();
    batch.delete_range(antumbra_engine::types::KeyRange::from_bounds("n".."q"));
    assert!(block_on(ranged.commit(batch)).unwrap().is_written(), "nothing but a range of the second partition");
    assert_eq!(all(ranged.iter()).len(), 2);
}

#[test]
fn merge_operator_unknown_at_reopening_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let longest = |_: &[u8], existing: Option<&[u8]>, operand: &[u8]| {
        let existing = existing.unwrap_or_default();
        Ok(if operand.len() > existing.len() { operand } else { existing }.to_vec())
    };
    let engine = Engine::builder(dir.path()).memory_budget(32 << 20).merge_operator("longest", longest).open().unwrap();
    let keyspace = block_on(engine.create_keyspace("ks", KeyspaceOptions::new().merge_operator("longest"))).unwrap();
    for operand in ["aa", "a", "aaaa", "aaa"] {
        block_on(keyspace.merge("k", operand)).unwrap();
    }
    assert_eq!(block_on(keyspace.get("k")).unwrap().unwrap(), "aaaa");
    let plain = block_on(engine.create_keyspace("plain", KeyspaceOptions::new())).unwrap();
    assert!(matches!(block_on(plain.merge("k", "v")), Err(Error::Invalid { .. })));
    drop((keyspace, plain));
    block_on(engine.close()).unwrap();
    let engine = open(dir.path(), 1);
    assert!(matches!(engine.keyspace("ks"), Err(Error::UnknownMergeOperator { name }) if name == "longest"));
    engine.keyspace("plain").unwrap();
}

#[test]
fn compressed_keyspace_takes_less_space_and_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let plain = block_on(engine.create_keyspace("plain", KeyspaceOptions::new())).unwrap();
    let small =
        block_on(engine.create_keyspace("small", KeyspaceOptions::new().compression(Compression::Zstd))).unwrap();
    let value =
        |number: u64| format!("{{\"id\":{number},\"name\":\"user {}\",\"role\":\"reader\"}}", number * 7919 % 1_000);
    for keyspace in [&plain, &small] {
        let keyspace = keyspace.with_durability(Durability::Buffered);
        for number in 0..20_000 {
            block_on(keyspace.put(key(number), value(number))).unwrap();
        }
        block_on(keyspace.compact_range::<Bytes>(..)).unwrap();
    }
    let bytes = |keyspace: &Keyspace| block_on(keyspace.stats()).unwrap().table_bytes;
    assert!(bytes(&small) * 2 < bytes(&plain), "{} against {}", bytes(&small), bytes(&plain));
    drop((plain, small));
    block_on(engine.close()).unwrap();
    let engine = open(dir.path(), 1);
    let small = engine.keyspace("small").unwrap();
    for number in (0..20_000).step_by(371) {
        assert_eq!(block_on(small.get(key(number))).unwrap().unwrap(), value(number));
    }
    assert_eq!(all(small.iter()).len(), 20_000);
    drop(small);
    block_on(engine.close()).unwrap();
    antumbra_engine::offline::verify(dir.path(), |_| {}).unwrap();
}

#[test]
fn expired_values_give_their_space_back_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), 1);
    let keyspace = block_on(engine.create_keyspace("ks", KeyspaceOptions::new())).unwrap();
    let keyspace = keyspace.with_durability(Durability::Buffered);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    for number in 0..2_000_u64 {
        let deadline = if number.is_multiple_of(10) { 0 } else { now + 3_000 };
        block_on(keyspace.put_until(key(number), vec![5; 500], deadline)).unwrap();
    }
    block_on(keyspace.compact_range::<Bytes>(..)).unwrap();
    let bytes = || block_on(keyspace.stats()).unwrap().table_bytes;
    assert!(bytes() > 900_000, "nothing has expired yet, or the machine is very slow: {}", bytes());
    let given_up = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while bytes() > 200_000 {
        assert!(std::time::Instant::now() < given_up, "{} bytes are left", bytes());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(all(keyspace.iter()).len(), 200);
}
