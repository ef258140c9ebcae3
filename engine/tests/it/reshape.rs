//! A partition that becomes two, and two that become one, while they are written and read.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{Batch, Durability, Engine, Error, PartitionHandle, PartitionSpec, Shard, Write};
use bytes::Bytes;

use crate::common::{Model, PARTITION, block_on, config, contents, create, open, spec};

const CHILD: PartitionId = PartitionId(77);
const KEYS: u64 = 3_000;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:05}"))
}

fn split(engine: &Engine, at: Bytes, child: PartitionId, epoch: u64) -> antumbra_engine::Result<()> {
    split_any(engine, PARTITION, at, child, epoch)
}

fn split_any(
    engine: &Engine,
    id: PartitionId,
    at: Bytes,
    child: PartitionId,
    epoch: u64,
) -> antumbra_engine::Result<()> {
    let split = move |shard: Rc<Shard>| async move { shard.split_partition(id, &at, child, Epoch(epoch)).await };
    block_on(engine.on_shard(ShardId(0), split)).unwrap()
}

fn merge(engine: &Engine, id: PartitionId, other: PartitionId, epoch: u64) -> antumbra_engine::Result<()> {
    block_on(engine.merge_partitions(id, other, Epoch(epoch)))
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::UnknownPartition { .. } | Error::WrongPartition { .. })
}

/// The merged partition after a restart: its keys, compaction, and what `verify` says of its files.
fn last_check(engine: Engine, dir: &Path, model: &Model) {
    let handle = engine.partition(PARTITION).unwrap();
    assert!(contents(&handle) == *model, "after a restart");
    block_on(handle.compact()).unwrap();
    assert!(contents(&handle) == *model, "compacted");
    block_on(engine.close()).unwrap();
    antumbra_engine::offline::verify(dir, |_| {}).unwrap();
}

fn both(engine: &Engine) -> (Model, Model) {
    (contents(&engine.partition(PARTITION).unwrap()), contents(&engine.partition(CHILD).unwrap()))
}

/// Writes to a key's partition, wherever that is by now, and reads it back; returns what was acknowledged.
fn writer(engine: Engine, stop: Arc<AtomicBool>, at: Bytes, seed: u64) -> std::thread::JoinHandle<Model> {
    std::thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut acked = Model::new();
        let mut round = 0_u64;
        // The child's keys lie in it as soon as it is there, and as long.
        let place = |key: &Bytes| {
            let child = engine.partition(CHILD).ok().filter(|_| *key >= at);
            child.map_or_else(|| engine.partition(PARTITION), Ok).unwrap()
        };
        while !stop.load(Ordering::Relaxed) {
            // Each writer has keys of its own.
            let key = key(random.u64(0..KEYS / 2) * 2 + seed % 2);
            let value = Bytes::from(format!("{seed}:{round}"));
            round += 1;
            loop {
                match block_on(place(&key).put(key.clone(), value.clone())) {
                    Ok(_) => break,
                    Err(cause) => assert!(is_gone(&cause), "{cause}"),
                }
            }
            loop {
                match block_on(place(&key).get(key.clone())) {
                    Ok(found) => break assert_eq!(found, Some(value.clone()), "its own write"),
                    Err(cause) => assert!(is_gone(&cause), "{cause}"),
                }
            }
            acked.insert(key, value);
        }
        assert!(round > 10, "the load was real: {round}");
        acked
    })
}

#[test]
fn split_under_load_leaves_each_half_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    for number in 0..KEYS {
        block_on(handle.write(Write::put(key(number), vec![b'x'; 200]), Durability::Buffered)).unwrap();
    }
    block_on(handle.compact()).unwrap();
    let mut batch = Batch::new();
    // Across the bound.
    batch.delete_range(KeyRange { start: key(1_480).to_vec(), end: Some(key(1_520).to_vec()) });
    block_on(handle.commit(batch, Durability::Durable)).unwrap();
    let before = block_on(handle.stats()).unwrap();
    assert!(before.segments > 3, "several segments");
    let at = key(1_500);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2).map(|seed| writer(engine.clone(), Arc::clone(&stop), at.clone(), seed)).collect();
    std::thread::sleep(std::time::Duration::from_millis(200));
    split(&engine, at.clone(), CHILD, 2).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    let mut model: Model = (0..KEYS).map(|number| (key(number), Bytes::from(vec![b'x'; 200]))).collect();
    model.retain(|held, _| *held < key(1_480) || *held >= key(1_520));
    writers.into_iter().for_each(|writer| model.extend(writer.join().unwrap()));
    let upper = model.split_off(&at);
    let wanted = (model, upper);
    assert!(both(&engine) == wanted, "each half has its own");
    let outside = block_on(engine.partition(PARTITION).unwrap().get(key(2_000)));
    assert!(matches!(outside, Err(Error::WrongPartition { .. })));
    assert!(matches!(block_on(handle.get(key(1))), Ok(Some(_))), "a handle finds what has taken its place");
    let stats = |engine: &Engine, id| block_on(engine.partition(id).unwrap().stats()).unwrap();
    assert_eq!((stats(&engine, PARTITION).epoch, stats(&engine, CHILD).epoch), (Epoch(2), Epoch(2)));

    // Also after a restart, when tables are shared still or not any more, and when one half is gone.
    block_on(engine.close()).unwrap();
    let engine = open(dir.path());
    assert!(both(&engine) == wanted, "after a restart");
    block_on(engine.partition(PARTITION).unwrap().compact()).unwrap();
    assert!(both(&engine) == wanted, "one half compacted");
    block_on(engine.close()).unwrap();
    let engine = open(dir.path());
    assert!(both(&engine) == wanted, "its files are there still");
    let drop_it = |shard: Rc<Shard>| async move { shard.drop_partition(PARTITION).await };
    block_on(engine.on_shard(ShardId(0), drop_it)).unwrap().unwrap();
    block_on(engine.close()).unwrap();
    let engine = open(dir.path());
    let child = engine.partition(CHILD).unwrap();
    assert!(contents(&child) == wanted.1, "the other half is whole");
    block_on(child.compact()).unwrap();
    assert!(contents(&child) == wanted.1);
    block_on(engine.close()).unwrap();
    assert!(contents(&open(dir.path()).partition(CHILD).unwrap()) == wanted.1);
}

#[test]
fn split_that_cannot_be_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    block_on(handle.put("key-1", "value")).unwrap();
    let taken = split(&engine, key(1), PARTITION, 2);
    assert!(matches!(taken, Err(Error::Invalid { .. })));
    let empty = split(&engine, Bytes::new(), CHILD, 2);
    assert!(matches!(empty, Err(Error::Invalid { .. })));
    let attach = |partition: Rc<antumbra_engine::Partition>| async move {
        partition.attach_mirror(antumbra_engine::types::AttemptId(1), 1 << 20).await.map(drop)
    };
    block_on(handle.with(attach)).unwrap();
    assert!(matches!(split(&engine, key(1), CHILD, 2), Err(Error::Invalid { .. })));
    assert!(engine.partition(CHILD).is_err());
    assert_eq!(block_on(handle.get("key-1")).unwrap(), Some(Bytes::from_static(b"value")));
}

#[test]
fn merge_under_load_has_the_keys_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let at = key(1_500);
    split(&engine, at.clone(), CHILD, 2).unwrap();
    let upper = engine.partition(CHILD).unwrap();
    let mut model = Model::new();
    for number in 0..KEYS {
        let (handle, value) = (if key(number) < at { &handle } else { &upper }, Bytes::from(vec![b'x'; 200]));
        // The histories are of different lengths.
        for _ in 0..1 + usize::from(number > 2_500) {
            block_on(handle.write(Write::put(key(number), value.clone()), Durability::Buffered)).unwrap();
        }
        model.insert(key(number), value);
    }
    block_on(upper.compact()).unwrap();
    let mut batch = Batch::new();
    batch.delete_range(KeyRange { start: key(2_000).to_vec(), end: Some(key(2_100).to_vec()) });
    block_on(upper.commit(batch, Durability::Durable)).unwrap();
    model.retain(|held, _| *held < key(2_000) || *held >= key(2_100));
    let lsns = [&handle, &upper].map(|handle| block_on(handle.stats()).unwrap().visible);
    assert!(lsns[0] < lsns[1]);

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2).map(|seed| writer(engine.clone(), Arc::clone(&stop), at.clone(), seed)).collect();
    std::thread::sleep(std::time::Duration::from_millis(200));
    merge(&engine, PARTITION, CHILD, 3).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| model.extend(writer.join().unwrap()));
    assert!(engine.partition(CHILD).is_err());
    assert!(contents(&handle) == model, "the keys of both");
    let stats = block_on(handle.stats()).unwrap();
    assert!(stats.epoch == Epoch(3) && stats.visible > lsns[1], "the history goes on behind the longer one");
    block_on(engine.close()).unwrap();
    let engine = open(dir.path());
    last_check(engine, dir.path(), &model);
}

#[test]
fn merge_of_partitions_on_two_shards_copies_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let mut config = config(dir.path());
        config.shards = 2;
        Engine::open(config).unwrap()
    };
    let engine = open();
    let at = key(1_500);
    let part = |id, start: &[u8], end: Option<&[u8]>| {
        let range = KeyRange { start: start.to_vec(), end: end.map(<[u8]>::to_vec) };
        PartitionSpec { id, range, ..spec() }
    };
    let handle = block_on(engine.create_partition(ShardId(1), part(PARTITION, b"", Some(&at)))).unwrap();
    let upper = block_on(engine.create_partition(ShardId(0), part(CHILD, &at, None))).unwrap();
    let mut model = Model::new();
    for number in 0..KEYS {
        let handle = if key(number) < at { &handle } else { &upper };
        let value = Bytes::from(vec![b'x'; 200]);
        block_on(handle.write(Write::put(key(number), value.clone()), Durability::Buffered)).unwrap();
        model.insert(key(number), value);
    }
    block_on(upper.compact()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2).map(|seed| writer(engine.clone(), Arc::clone(&stop), at.clone(), seed)).collect();
    std::thread::sleep(std::time::Duration::from_millis(200));
    merge(&engine, PARTITION, CHILD, 3).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| model.extend(writer.join().unwrap()));
    assert_eq!(engine.partitions(), [(PARTITION, ShardId(1))]);
    assert!(contents(&handle) == model, "the keys of both");
    block_on(engine.close()).unwrap();
    let left = std::fs::read_dir(dir.path().join("shard-000")).unwrap().map(|entry| entry.unwrap().path());
    let left: Vec<_> = left.filter(|path| path.extension().is_some_and(|extension| extension == "tab")).collect();
    assert!(left.is_empty(), "the tables have one name each: {left:?}");
    let engine = open();
    last_check(engine, dir.path(), &model);
}

/// Behind a split and a merge two neighbours read one table, each its own part, also when they are small and become one.
#[test]
fn small_neighbours_with_a_table_in_common_become_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = open(dir.path());
    create(&engine);
    let (mut model, mut shared) = (Model::new(), 0);
    for round in 0..6_u64 {
        let handle = engine.partition(PARTITION).unwrap();
        for number in 0..10 {
            let value = Bytes::from(format!("{round}:{number}"));
            block_on(handle.put(key(number), value.clone())).unwrap();
            model.insert(key(number), value);
        }
        block_on(handle.delete(key(round))).unwrap();
        model.remove(&key(round));
        let child = PartitionId(100 + round);
        split_any(&engine, PARTITION, key(5), child, 2 * round + 2).unwrap();
        merge(&engine, PARTITION, child, 2 * round + 3).unwrap();
        // A restart forgets that both were to be compacted at once.
        block_on(engine.close()).unwrap();
        engine = open(dir.path());
        let handle = engine.partition(PARTITION).unwrap();
        let stats = block_on(handle.stats()).unwrap();
        shared += u32::from(stats.segments == 2 && stats.slices >= 2);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while block_on(handle.stats()).unwrap().segments > 1 {
            assert!(std::time::Instant::now() < deadline, "they stay two: {:?}", block_on(handle.stats()).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(contents(&handle) == model);
    }
    assert!(shared > 0, "no round had a table in common");
}

#[test]
fn merge_that_cannot_be_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    let (at, third) = (key(1), PartitionId(78));
    block_on(handle.put("key-0", "value")).unwrap();
    split(&engine, at, CHILD, 2).unwrap();
    split_any(&engine, CHILD, key(2), third, 3).unwrap();
    for (one, two) in [(CHILD, PARTITION), (PARTITION, third), (PARTITION, PARTITION)] {
        assert!(matches!(merge(&engine, one, two, 4), Err(Error::Invalid { .. })), "{one} and {two}");
    }
    assert!(matches!(merge(&engine, PARTITION, PartitionId(9), 4), Err(Error::UnknownPartition { .. })));
    let attach = |partition: Rc<antumbra_engine::Partition>| async move {
        partition.attach_mirror(antumbra_engine::types::AttemptId(1), 1 << 20).await.map(drop)
    };
    block_on(engine.partition(CHILD).unwrap().with(attach)).unwrap();
    assert!(matches!(merge(&engine, PARTITION, CHILD, 4), Err(Error::Invalid { .. })));
    assert_eq!(block_on(handle.get("key-0")).unwrap(), Some(Bytes::from_static(b"value")), "both serve still");
    block_on(engine.partition(CHILD).unwrap().put(key(1), "value")).unwrap();
}

/// Partitions by their first keys, and what all of them together hold.
struct World {
    dir: tempfile::TempDir,
    engine: Engine,
    starts: BTreeMap<Bytes, PartitionId>,
    model: Model,
    random: fastrand::Rng,
    next_id: u64,
    epoch: u64,
}

impl World {
    fn place(&self, key: &Bytes) -> PartitionHandle {
        self.engine.partition(*self.starts.range(..=key.clone()).next_back().unwrap().1).unwrap()
    }

    fn write_some(&mut self) {
        for _ in 0..self.random.usize(20..200) {
            let key = key(self.random.u64(0..KEYS));
            let durability = [Durability::Durable, Durability::Buffered][self.random.usize(0..2)];
            let value =
                (self.random.u8(..) > 40).then(|| Bytes::from(vec![self.random.u8(..); self.random.usize(1..900)]));
            let write = match &value {
                Some(value) => Write::put(key.clone(), value.clone()),
                None => Write::delete(key.clone()),
            };
            block_on(self.place(&key).write(write, durability)).unwrap();
            match value {
                Some(value) => drop(self.model.insert(key, value)),
                None => drop(self.model.remove(&key)),
            }
        }
        // A range reaches as far as its partition.
        let (from, to) = (key(self.random.u64(0..KEYS)), key(self.random.u64(0..KEYS)));
        let handle = self.place(&from);
        let next = self.starts.range(from.clone()..).find(|(start, _)| **start > from).map(|(start, _)| start.clone());
        let to = next.map_or(to.clone(), |next| next.min(to));
        if from < to && self.random.u8(..) < 60 {
            block_on(
                handle.delete_range(KeyRange { start: from.to_vec(), end: Some(to.to_vec()) }, Durability::Durable),
            )
            .unwrap();
            self.model.retain(|held, _| *held < from || *held >= to);
        }
    }

    /// A write that is in no log: a restart behind a split or a merge has it all the same.
    fn write_unlogged(&mut self, key: Bytes) {
        let write = Write::put(key.clone(), "in no log");
        block_on(self.place(&key).write(write, Durability::Memory)).unwrap();
        self.model.insert(key, Bytes::from_static(b"in no log"));
    }

    fn split(&mut self) -> bool {
        let at = key(self.random.u64(1..KEYS));
        if self.starts.contains_key(&at) {
            return false;
        }
        self.write_unlogged(at.clone());
        let id = *self.starts.range(..=at.clone()).next_back().unwrap().1;
        (self.next_id, self.epoch) = (self.next_id + 1, self.epoch + 1);
        let child = PartitionId(self.next_id);
        split_any(&self.engine, id, at.clone(), child, self.epoch).unwrap();
        self.starts.insert(at, child);
        true
    }

    fn merge(&mut self) -> bool {
        let pairs: Vec<(PartitionId, Bytes, PartitionId)> = self
            .starts
            .iter()
            .zip(self.starts.iter().skip(1))
            .map(|((_, low), (at, high))| (*low, at.clone(), *high))
            .collect();
        if pairs.is_empty() {
            return false;
        }
        let (low, at, high) = pairs[self.random.usize(0..pairs.len())].clone();
        self.write_unlogged(at.clone());
        self.epoch += 1;
        merge(&self.engine, low, high, self.epoch).unwrap();
        self.starts.remove(&at);
        true
    }

    fn reopen(&mut self) {
        block_on(self.engine.clone().close()).unwrap();
        self.engine = open(self.dir.path());
    }

    fn check(&self) {
        let mut found = Model::new();
        for (start, id) in &self.starts {
            let own = contents(&self.engine.partition(*id).unwrap());
            assert!(own.keys().next().is_none_or(|first| first >= start));
            found.extend(own);
        }
        assert_eq!(found.len(), self.model.len());
        assert!(found == self.model, "all partitions together hold what the model does");
    }
}

#[test]
fn random_splits_and_merges_equal_model() {
    for seed in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        create(&engine);
        let mut world = World {
            engine,
            dir,
            starts: BTreeMap::from([(Bytes::new(), PARTITION)]),
            model: Model::new(),
            random: fastrand::Rng::with_seed(seed),
            next_id: 100,
            epoch: 1,
        };
        let (mut splits, mut merges) = (0_u32, 0_u32);
        for _ in 0..40 {
            match world.random.u8(0..10) {
                0 | 1 => splits += u32::from(world.split()),
                2 | 3 => merges += u32::from(world.merge()),
                4 => world.reopen(),
                5 => {
                    let ids: Vec<PartitionId> = world.starts.values().copied().collect();
                    let id = ids[world.random.usize(0..ids.len())];
                    block_on(world.engine.partition(id).unwrap().compact()).unwrap();
                }
                _ => world.write_some(),
            }
            world.check();
        }
        assert!(splits > 2 && merges > 2, "{splits} splits, {merges} merges");
        block_on(world.engine.close()).unwrap();
        antumbra_engine::offline::verify(world.dir.path(), |_| {}).unwrap();
    }
}
