//! Batches, conditions, merges, range deletions and snapshots against a `BTreeMap`, with flushes, compactions and
//! restarts in between.

use std::collections::BTreeMap;

use antumbra_engine::types::KeyRange;
use antumbra_engine::{
    Batch, Commit, Condition, Durability, Error, MergeOperators, NamedOperator, PartitionHandle, PartitionSnapshot,
    Write,
};
use bytes::Bytes;

use crate::common::{PARTITION, block_on, create, open};

type Model = BTreeMap<Bytes, Bytes>;
const KEYS: u64 = 800;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:05}"))
}

fn operator(name: &str) -> NamedOperator {
    MergeOperators::default().find(name).unwrap()
}

struct Run {
    random: fastrand::Rng,
    handle: PartitionHandle,
    model: Model,
    snapshots: Vec<(PartitionSnapshot, Model)>,
}

impl Run {
    fn key(&mut self) -> Bytes {
        key(self.random.u64(0..KEYS))
    }

    fn value(&mut self) -> Bytes {
        let len = self.random.usize(0..900);
        Bytes::from((0..len).map(|_| self.random.u8(..)).collect::<Vec<u8>>())
    }

    fn durability(&mut self) -> Durability {
        match self.random.u8(0..20) {
            0 => Durability::Durable,
            1..=4 => Durability::Memory,
            _ => Durability::Buffered,
        }
    }

    /// A narrow range most of the time, now and then a wide or an open one.
    fn range(&mut self) -> KeyRange {
        let width = if self.random.u8(0..20) == 0 { KEYS / 2 } else { 20 };
        let start = self.random.u64(0..KEYS);
        let end = start + self.random.u64(0..width);
        match self.random.u8(0..60) {
            0 => KeyRange::all(),
            1 => KeyRange { start: key(start).to_vec(), end: None },
            _ => KeyRange { start: key(start).to_vec(), end: Some(key(end).to_vec()) },
        }
    }

    /// Adds a random change to a batch and to the model that it will leave.
    fn change(&mut self, batch: &mut Batch, model: &mut Model) {
        match self.random.u8(0..20) {
            0..=9 => {
                let (key, value) = (self.key(), self.value());
                batch.put(key.clone(), value.clone());
                model.insert(key, value);
            }
            10..=12 => {
                let key = self.key();
                batch.delete(key.clone());
                model.remove(&key);
            }
            13 => {
                let range = self.range();
                model.retain(|key, _| !range.contains(key));
                batch.delete_range(range);
            }
            _ => {
                let (key, operand) = (self.key(), Bytes::from_static(b"+"));
                batch.merge_with(operator("append"), key.clone(), operand);
                let mut value = model.get(&key).map_or(Vec::new(), |value| value.to_vec());
                value.push(b'+');
                model.insert(key, value.into());
            }
        }
    }

    /// A condition on a key of the present model, and whether it holds.
    fn condition(&mut self) -> (Bytes, Condition, bool) {
        let key = self.key();
        let found = block_on(self.handle.get_versioned(key.clone())).unwrap();
        assert_eq!(found.as_ref().map(|found| &found.value), self.model.get(&key));
        let condition = match self.random.u8(0..5) {
            0 => Condition::Absent,
            1 => Condition::Present,
            2 => Condition::Value(self.value()),
            3 => Condition::Value(found.as_ref().map_or_else(Bytes::new, |found| found.value.clone())),
            _ => match &found {
                Some(found) => {
                    let mut version = found.version;
                    if self.random.bool() {
                        version.lsn.0 -= 1;
                    }
                    Condition::Version(version)
                }
                None => Condition::Absent,
            },
        };
        let holds = match (&condition, &found) {
            (Condition::Absent, found) => found.is_none(),
            (Condition::Present, found) => found.is_some(),
            (Condition::Value(value), Some(found)) => found.value == *value,
            (Condition::Version(version), Some(found)) => found.version == *version,
            (Condition::Value(_) | Condition::Version(_), None) => false,
        };
        (key, condition, holds)
    }

    fn write_batch(&mut self) {
        let (mut batch, mut model) = (Batch::new(), self.model.clone());
        for _ in 0..self.random.usize(1..12) {
            self.change(&mut batch, &mut model);
        }
        let mut holds = true;
        if self.random.u8(0..3) == 0 {
            let (key, condition, expected) = self.condition();
            batch.require(key, condition);
            holds = expected;
        }
        let durability = self.durability();
        match block_on(self.handle.commit(batch, durability)).unwrap() {
            Commit::Written(_) => {
                assert!(holds, "written against its condition");
                self.model = model;
            }
            Commit::Conflict(conflict) => {
                assert!(!holds, "refused although its condition holds");
                assert_eq!(conflict.found.map(|found| found.value), self.model.get(&conflict.key).cloned());
            }
        }
    }

    fn check(&mut self) {
        let keys: Vec<Bytes> = (0..60).map(|_| self.key()).collect();
        let found = block_on(self.handle.multi_get(keys.clone())).unwrap();
        for (key, found) in keys.iter().zip(found) {
            assert_eq!(found.as_ref(), self.model.get(key), "{key:?}");
        }
        for (snapshot, model) in &self.snapshots {
            let found = block_on(snapshot.multi_get(keys.clone())).unwrap();
            for (key, found) in keys.iter().zip(found) {
                assert_eq!(found.as_ref(), model.get(key), "{key:?} in a snapshot");
            }
            assert_eq!(block_on(snapshot.get(keys[0].clone())).unwrap().as_ref(), model.get(&keys[0]));
        }
        let page = block_on(self.handle.scan(KeyRange::all(), usize::MAX)).unwrap();
        let found: Model = page.items.into_iter().map(|item| (item.key, item.value)).collect();
        let differs = |a: &Model, b: &Model| -> Vec<Bytes> {
            a.iter().filter(|(key, value)| b.get(*key) != Some(value)).map(|(key, _)| key.clone()).collect()
        };
        let (extra, missing) = (differs(&found, &self.model), differs(&self.model, &found));
        assert!(extra.is_empty() && missing.is_empty(), "found otherwise: {extra:?}, missing: {missing:?}");
    }
}

#[test]
fn random_batches_and_restarts_equal_model() {
    for seed in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = open(dir.path());
        let handle = create(&engine);
        let random = fastrand::Rng::with_seed(seed);
        let mut run = Run { random, handle, model: Model::new(), snapshots: Vec::new() };
        for step in 0..60 {
            println!("seed {seed}, step {step}");
            match run.random.u8(0..14) {
                0 => block_on(run.handle.compact()).unwrap(),
                1 => {
                    run.snapshots.clear();
                    block_on(engine.close()).unwrap();
                    engine = open(dir.path());
                    run.handle = engine.partition(PARTITION).unwrap();
                }
                2 | 3 => {
                    let snapshot = block_on(run.handle.snapshot()).unwrap();
                    run.snapshots.push((snapshot, run.model.clone()));
                    if run.snapshots.len() > 3 {
                        let gone = run.random.usize(0..3);
                        run.snapshots.remove(gone);
                    }
                }
                _ => {
                    for _ in 0..run.random.usize(1..60) {
                        run.write_batch();
                    }
                }
            }
            run.check();
        }
        let stats = block_on(run.handle.stats()).unwrap();
        assert!(stats.segments > 1, "the run is long enough to split segments");
    }
}

#[test]
fn concurrent_merges_of_one_key_lose_none() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let one = Bytes::copy_from_slice(&1_i64.to_le_bytes());
    // In a table and not in the memtable, so that the first merges of all threads read the device at once.
    block_on(handle.put("counter", one.clone())).unwrap();
    block_on(handle.compact()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut batch = Batch::new();
                    batch.merge_with(operator("add"), "counter", one.clone());
                    assert!(block_on(handle.commit(batch, Durability::Buffered)).unwrap().is_written());
                }
            });
        }
    });
    let found = block_on(handle.get("counter")).unwrap().unwrap();
    assert_eq!(i64::from_le_bytes(found.as_ref().try_into().unwrap()), 1_601);
}

#[test]
fn put_if_absent_raced_by_many_is_won_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    for round in 0..50 {
        let wins = std::thread::scope(|scope| {
            let contenders: Vec<_> = (0..4)
                .map(|contender: u64| {
                    let handle = &handle;
                    scope.spawn(move || {
                        let write = Write::put(key(round), contender.to_string());
                        let outcome = block_on(handle.write_if(Condition::Absent, write, Durability::Durable)).unwrap();
                        match outcome {
                            Commit::Written(_) => Some(contender),
                            Commit::Conflict(conflict) => {
                                assert!(conflict.found.is_some(), "somebody was there first");
                                None
                            }
                        }
                    })
                })
                .collect();
            contenders.into_iter().filter_map(|contender| contender.join().unwrap()).collect::<Vec<u64>>()
        });
        assert_eq!(wins.len(), 1);
        assert_eq!(block_on(handle.get(key(round))).unwrap().unwrap(), wins[0].to_string());
    }
}

#[test]
fn bad_batches_are_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    block_on(handle.put("text", "no number")).unwrap();
    let commit = |batch: Batch| block_on(handle.commit(batch, Durability::Durable));
    let mut batch = Batch::new();
    batch.put("fine", "v").merge_with(operator("add"), "text", vec![1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(commit(batch), Err(Error::Merge { .. })));
    let mut batch = Batch::new();
    batch.put("fine", "v").put("", "v");
    assert!(matches!(commit(batch), Err(Error::KeyLength { len: 0, .. })));
    let mut batch = Batch::new();
    assert!(matches!(batch.merge("fine", "1"), Err(Error::Invalid { .. })), "no operator is named");
    let value = Bytes::from(vec![7; 10 << 20]);
    for number in 0..4 {
        batch.put(key(number), value.clone());
    }
    match commit(batch) {
        Err(Error::BatchLength { max, .. }) => assert!(max < 32 << 20, "the limit is the log file's: {max}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert_eq!(block_on(handle.get("fine")).unwrap(), None);
    assert_eq!(block_on(handle.get(key(0))).unwrap(), None);
    let mut largest = Batch::new();
    largest.put(key(0), value.clone()).put(key(1), value.clone());
    assert!(commit(largest).unwrap().is_written());
    assert_eq!(block_on(handle.get(key(1))).unwrap(), Some(value));
}

#[test]
fn merge_keeps_the_deadline_and_expired_value_counts_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let mut batch = Batch::new();
    batch.put_until("past", "old", 1).put_until("future", "f", u64::MAX);
    block_on(handle.commit(batch, Durability::Durable)).unwrap();
    let mut batch = Batch::new();
    batch.merge_with(operator("append"), "past", "new").merge_with(operator("append"), "future", "g");
    block_on(handle.commit(batch, Durability::Durable)).unwrap();
    assert_eq!(block_on(handle.get("past")).unwrap().unwrap(), "new");
    let future = block_on(handle.get_versioned("future")).unwrap().unwrap();
    assert_eq!((future.value.as_ref(), future.expires_at_ms), (&b"fg"[..], u64::MAX));
    let absent = block_on(handle.write_if(Condition::Absent, Write::put("past", "x"), Durability::Durable)).unwrap();
    assert!(!absent.is_written());
}

#[test]
fn durable_answer_about_a_record_in_no_log_does_not_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    block_on(handle.write(Write::put("k", "v"), Durability::Memory)).unwrap();
    let refused = block_on(handle.write_if(Condition::Absent, Write::put("k", "w"), Durability::Durable)).unwrap();
    assert!(!refused.is_written());
    let empty = KeyRange { start: b"x".to_vec(), end: Some(b"x".to_vec()) };
    block_on(handle.delete_range(empty, Durability::Durable)).unwrap();
    block_on(handle.commit(Batch::new(), Durability::Durable)).unwrap();
}

#[test]
fn many_range_deletions_stay_cheap_and_space_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    // A queue: written at one end, cut at the other.
    for round in 0..1_000_u64 {
        let mut batch = Batch::new();
        for item in 0..20 {
            batch.put(key(round * 20 + item), vec![3; 200]);
        }
        if round >= 10 {
            batch.delete_range(KeyRange { start: Vec::new(), end: Some(key((round - 10) * 20).to_vec()) });
        }
        block_on(handle.commit(batch, Durability::Buffered)).unwrap();
    }
    let page = block_on(handle.scan(KeyRange::all(), usize::MAX)).unwrap();
    // The last cut was at round 989: rounds 989 to 999 are left.
    assert_eq!(page.items.len(), 11 * 20);
    block_on(handle.compact()).unwrap();
    let stats = block_on(handle.stats()).unwrap();
    assert!(stats.table_bytes < 300_000, "{} bytes are left of 4 MB", stats.table_bytes);
}

/// Counters that several tasks raise together, while memtables are flushed and segments compacted beneath them.
#[test]
fn read_modify_write_of_many_counts_each_once_and_moves_both_keys_together() {
    const TASKS: u64 = 6;
    const ROUNDS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let number = |value: &[u8]| value.try_into().map_or(0, u64::from_le_bytes);
    std::thread::scope(|scope| {
        for task in 0..TASKS {
            let handle = handle.clone();
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let keys = [key(task % 2), key(round % 5 + 10)];
                    let durability = if round % 7 == 0 { Durability::Durable } else { Durability::Buffered };
                    let raised = block_on(handle.with(move |partition| async move {
                        let look = |_, record: Option<antumbra_engine::record::RecordView<'_>>| {
                            record.map_or(0, |record| number(record.value))
                        };
                        let write = keys.clone();
                        let raise = |found: &[u64]| {
                            let writes = write.iter().zip(found);
                            let writes =
                                writes.map(|(key, found)| Write::put(key.clone(), (found + 1).to_le_bytes().to_vec()));
                            (writes.collect(), found[0] + 1)
                        };
                        partition.read_modify_write(&keys, durability, look, raise).await
                    }));
                    assert!(raised.unwrap() > round / TASKS);
                    if round % 20 == task {
                        block_on(handle.put(key(100 + round), vec![task as u8; 100_000])).unwrap();
                    }
                    if task == 0 && round % 100 == 50 {
                        block_on(handle.compact()).unwrap();
                    }
                }
            });
        }
    });
    block_on(engine.close()).unwrap();
    let engine = open(dir.path());
    let handle = engine.partition(PARTITION).unwrap();
    let read = |at: u64| block_on(handle.get(key(at))).unwrap().map_or(0, |value| number(&value));
    assert_eq!(read(0) + read(1), TASKS * ROUNDS);
    assert_eq!((10..15).map(read).sum::<u64>(), TASKS * ROUNDS);
    let refused = block_on(handle.with(|partition| async move {
        let long = Write::put(key(0), vec![0; 17 << 20]);
        let decide = |_: &[()]| (vec![Write::delete(key(1)), long.clone()], ());
        partition.read_modify_write(&[key(0)], Durability::Durable, |_, _| (), decide).await
    }));
    assert!(matches!(refused, Err(Error::ValueLength { .. })), "{refused:?}");
    assert!(read(1) > 0, "nothing of it was done");
    block_on(engine.close()).unwrap();
}
