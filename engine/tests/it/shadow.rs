//! A move between two engines in one process, without a network: what the protocol drives, under load.

mod refused;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use antumbra_engine::partition::{CheckedImage, Frozen, MirrorReceiver, SegmentSummary};
use antumbra_engine::types::{AttemptId, Epoch, HostId, KeyRange, Lsn, SegmentId};
use antumbra_engine::{Batch, Durability, Engine, Error, PartitionHandle, Serving};
use bytes::Bytes;

use crate::common::{Model, PARTITION, block_on, contents, create, open, spec};

const ATTEMPT: AttemptId = AttemptId(41);
const KEYS: u64 = 3_000;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:05}"))
}

/// Loads a source of several segments.
fn load(handle: &PartitionHandle) {
    for number in 0..KEYS {
        let write = antumbra_engine::Write::put(key(number), vec![b'x'; 200]);
        block_on(handle.write(write, Durability::Buffered)).unwrap();
    }
    block_on(handle.compact()).unwrap();
}

/// Writes versions to random keys until told to stop or moved; returns how many were acknowledged.
fn writer(
    handle: PartitionHandle,
    stop: Arc<AtomicBool>,
    seed: u64,
    versions: Arc<Vec<AtomicU64>>,
) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut acked = 0;
        while !stop.load(Ordering::Relaxed) {
            // Each writer has keys of its own, so a version only rises.
            let number = random.u64(0..KEYS / 2) * 2 + seed % 2;
            let version = acked + 1;
            match block_on(handle.put(key(number), format!("{seed}:{version}"))) {
                Ok(_) => {
                    versions[number as usize].store(version, Ordering::SeqCst);
                    acked += 1;
                }
                Err(Error::Moved { .. }) => break,
                Err(cause) => panic!("write failed: {cause}"),
            }
        }
        acked
    })
}

async fn attach(source: &PartitionHandle, target: &Engine) -> (MirrorReceiver, Vec<SegmentSummary>) {
    let (receiver, summaries) = source
        .with(|partition| async move {
            let receiver = partition.attach_mirror(ATTEMPT, 64 << 20).await?;
            Ok((receiver, partition.segment_summaries()))
        })
        .await
        .unwrap();
    let segments = summaries.iter().map(|summary| (summary.id, summary.start.to_vec())).collect();
    let from = receiver.from;
    target
        .on_shard(antumbra_engine::types::ShardId(0), move |shard| async move {
            shard.create_shadow(spec(), ATTEMPT, segments, from).await.map(drop)
        })
        .await
        .unwrap()
        .unwrap();
    (receiver, summaries)
}

/// Carries the mirror until it is closed.
async fn carry(receiver: MirrorReceiver, source: PartitionHandle, target: PartitionHandle) -> Lsn {
    let mut last = receiver.from;
    while let Some(item) = receiver.recv().await {
        let mut items = vec![item];
        while items.len() < 100
            && let Some(item) = receiver.try_recv()
        {
            items.push(item);
        }
        let applied = target
            .with(move |partition| async move {
                let applied = partition.apply_mirror(ATTEMPT, items).await?;
                partition.mirror_durable(applied).await?;
                Ok(applied)
            })
            .await
            .unwrap();
        last = applied.last;
        source
            .with(move |partition| async move {
                partition.handle_mirror_ack(ATTEMPT, last);
                Ok(())
            })
            .await
            .unwrap();
    }
    last
}

async fn copy(source: &PartitionHandle, target: &PartitionHandle, summaries: &[SegmentSummary]) {
    for summary in summaries {
        let id = summary.id;
        let image =
            source.with(move |partition| async move { partition.capture_image(ATTEMPT, id).await }).await.unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let delta =
            source.with(move |partition| async move { partition.cover_segment(ATTEMPT, id).await }).await.unwrap();
        let image = CheckedImage::check(image.table).unwrap();
        target
            .with(move |partition| async move {
                partition.install_image(ATTEMPT, id, Some(delta.covered), image, delta.records).await
            })
            .await
            .unwrap();
    }
}

async fn digests(handle: &PartitionHandle, starts: Vec<Vec<u8>>) -> Vec<antumbra_engine::partition::RangeDigest> {
    handle.with(move |partition| async move { partition.digest_final(ATTEMPT, starts).await }).await.unwrap()
}

/// Freeze, tail, verify, hand over, promote; `early` with segments missing.
fn hand_over(from: &PartitionHandle, to: &PartitionHandle, early: bool) {
    let frozen: Frozen =
        block_on(from.with(|partition| async move { partition.freeze(ATTEMPT, Duration::from_secs(60)).await }))
            .unwrap();
    let seal = frozen.seal.clone();
    // The tail: the target has everything once its chain is the source's.
    let ready = || {
        let seal = seal.clone();
        block_on(to.with(move |partition| async move { partition.make_ready(ATTEMPT, &seal, early).await }))
    };
    let mut result = ready();
    for _ in 0..200 {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
        result = ready();
    }
    result.unwrap();
    block_on(from.with(|partition| async move { partition.hand_over(HostId(2), Epoch(2)).await })).unwrap();
    let (last, clock, wall_ms) = (frozen.seal.final_lsn, frozen.clock, frozen.wall_ms);
    block_on(to.with(move |partition| async move { partition.promote(ATTEMPT, Epoch(2), last, clock, wall_ms).await }))
        .unwrap();
}

#[test]
fn move_under_load_loses_nothing_and_both_sides_agree() {
    let (source_dir, target_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (open(source_dir.path()), open(target_dir.path()));
    let from = create(&source);
    load(&from);
    let stop = Arc::new(AtomicBool::new(false));
    let versions: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let writers: Vec<_> =
        (0..2).map(|seed| writer(from.clone(), Arc::clone(&stop), seed, Arc::clone(&versions))).collect();

    let (receiver, summaries) = block_on(attach(&from, &target));
    assert!(summaries.len() > 3, "several segments: {}", summaries.len());
    let to = target.partition(PARTITION).unwrap();
    let carrier = {
        let (from, to) = (from.clone(), to.clone());
        std::thread::spawn(move || block_on(carry(receiver, from, to)))
    };
    block_on(copy(&from, &to, &summaries));
    block_on(from.with(|partition| async move { partition.set_synchronous(ATTEMPT, Lsn(0)) })).unwrap();
    std::thread::sleep(Duration::from_millis(100));

    hand_over(&from, &to, false);
    carrier.join().unwrap();

    // Parked writes were told where to go; the first writes at the new owner.
    let acked: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
    assert!(acked > 20, "the load was real: {acked}");
    block_on(to.put(key(0), "after")).unwrap();
    for number in 1..KEYS {
        let found = block_on(to.get(key(number))).unwrap().expect("every key is there");
        let acked = versions[number as usize].load(Ordering::SeqCst);
        let text = String::from_utf8_lossy(&found);
        let version = text.split_once(':').map_or(0, |(_, version)| version.parse().unwrap());
        assert!(version >= acked, "key {number}: version {version}, {acked} was acknowledged");
    }
    let starts: Vec<Vec<u8>> = summaries.iter().map(|summary| summary.start.to_vec()).collect();
    assert_eq!(block_on(digests(&from, starts.clone())), block_on(digests(&to, starts)));
    assert!(matches!(block_on(from.get(key(1))), Err(Error::Moved { owner: HostId(2), .. })));

    // Both sides know it after a restart.
    block_on(source.close()).unwrap();
    block_on(target.close()).unwrap();
    let (source, target) = (open(source_dir.path()), open(target_dir.path()));
    let serving = |engine: &Engine| block_on(engine.partition(PARTITION).unwrap().stats()).unwrap();
    assert_eq!(serving(&source).serving, Serving::Released { owner: HostId(2) });
    let stats = serving(&target);
    assert_eq!((stats.serving, stats.epoch), (Serving::Owner, Epoch(2)));
    let after = block_on(target.partition(PARTITION).unwrap().get(key(0))).unwrap();
    assert_eq!(after, Some(Bytes::from_static(b"after")));
}

/// Random batches with range deletions and merges until the partition has moved; returns what was acknowledged.
fn batch_writer(handle: PartitionHandle) -> std::thread::JoinHandle<Model> {
    std::thread::spawn(move || {
        let append = antumbra_engine::MergeOperators::default().find("append").unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        let mut model: Model = (0..KEYS).map(|number| (key(number), Bytes::from(vec![b'x'; 200]))).collect();
        let mut round = 0_u32;
        loop {
            let (mut batch, mut next) = (Batch::new(), model.clone());
            for _ in 0..random.usize(1..8) {
                let number = random.u64(0..KEYS);
                match random.u8(0..10) {
                    0 => {
                        let end = key(number + random.u64(0..KEYS / 4));
                        next.retain(|held, _| *held < key(number) || *held >= end);
                        batch.delete_range(KeyRange { start: key(number).to_vec(), end: Some(end.to_vec()) });
                    }
                    1 => {
                        batch.merge_with(append.clone(), key(number), "+");
                        let mut value = next.get(&key(number)).map_or(Vec::new(), |value| value.to_vec());
                        value.push(b'+');
                        next.insert(key(number), value.into());
                    }
                    _ => {
                        let value = Bytes::from(format!("round {round}"));
                        batch.put(key(number), value.clone());
                        next.insert(key(number), value);
                    }
                }
            }
            let durability = if round.is_multiple_of(3) { Durability::Memory } else { Durability::Durable };
            match block_on(handle.commit(batch, durability)) {
                Ok(_) => model = next,
                Err(Error::Moved { .. }) => break,
                Err(cause) => panic!("write failed: {cause}"),
            }
            round += 1;
        }
        assert!(round > 20, "the load was real: {round} batches");
        model
    })
}

/// A source under batches, and the shadow that is attached to it.
struct Batched {
    _source_dir: tempfile::TempDir,
    target_dir: tempfile::TempDir,
    _source: Engine,
    target: Engine,
    from: PartitionHandle,
    to: PartitionHandle,
    summaries: Vec<SegmentSummary>,
    writer: std::thread::JoinHandle<Model>,
    carrier: std::thread::JoinHandle<Lsn>,
}

fn begin_under_batches() -> Batched {
    let (source_dir, target_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (open(source_dir.path()), open(target_dir.path()));
    let from = create(&source);
    load(&from);
    let writer = batch_writer(from.clone());
    std::thread::sleep(Duration::from_millis(100));
    let (receiver, summaries) = block_on(attach(&from, &target));
    let to = target.partition(PARTITION).unwrap();
    let carrier = {
        let (from, to) = (from.clone(), to.clone());
        std::thread::spawn(move || block_on(carry(receiver, from, to)))
    };
    Batched { _source_dir: source_dir, target_dir, _source: source, target, from, to, summaries, writer, carrier }
}

#[test]
fn move_under_batches_and_range_deletions_both_sides_agree() {
    let Batched { target_dir, target, from, to, summaries, writer, carrier, .. } = begin_under_batches();
    // Slowly, so that ranges are deleted between an image and its cover.
    for summary in &summaries {
        block_on(copy(&from, &to, std::slice::from_ref(summary)));
        std::thread::sleep(Duration::from_millis(10));
    }
    // Erasures that the mirror brought reach the target's tables and its manifest.
    block_on(to.compact()).unwrap();
    block_on(from.with(|partition| async move { partition.set_synchronous(ATTEMPT, Lsn(0)) })).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    hand_over(&from, &to, false);
    carrier.join().unwrap();
    let model = writer.join().unwrap();
    assert!(contents(&to) == model, "the new owner has what was acknowledged");
    let starts: Vec<Vec<u8>> = summaries.iter().map(|summary| summary.start.to_vec()).collect();
    assert_eq!(block_on(digests(&from, starts.clone())), block_on(digests(&to, starts)));
    block_on(target.close()).unwrap();
    let target = open(target_dir.path());
    assert!(contents(&target.partition(PARTITION).unwrap()) == model, "also after a restart");
}

/// Fetches what is missing until nothing is, or `count` segments have come; returns their order.
fn fetch(from: &PartitionHandle, to: &PartitionHandle, count: usize) -> Vec<SegmentId> {
    let mut order = Vec::new();
    while order.len() < count {
        let next = block_on(to.with(|partition| async move {
            if partition.lacks_any() { partition.take_missing(ATTEMPT, &[]) } else { Ok(None) }
        }));
        let Some(id) = next.unwrap() else {
            break;
        };
        let image =
            block_on(from.with(move |partition| async move { partition.capture_released(HostId(2), id).await }))
                .unwrap();
        let image = CheckedImage::check(image.table).unwrap();
        let install = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            partition.install_image(ATTEMPT, id, None, image, Vec::new()).await
        };
        block_on(to.with(install)).unwrap();
        order.push(id);
    }
    order
}

#[test]
fn early_switchover_serves_what_is_held_and_fetches_the_rest() {
    let Batched { target_dir, target, from, to, summaries, writer, carrier, .. } = begin_under_batches();
    let held = summaries.len() / 2;
    block_on(copy(&from, &to, &summaries[..held]));
    std::thread::sleep(Duration::from_millis(50));
    hand_over(&from, &to, true);
    carrier.join().unwrap();
    let mut model = writer.join().unwrap();

    // Writes go on everywhere, conditions and merges where they need not wait.
    let (first, last) = (key(0), key(KEYS - 1));
    block_on(to.put(last.clone(), "written here")).unwrap();
    model.insert(last.clone(), Bytes::from_static(b"written here"));
    assert_eq!(block_on(to.get(last.clone())).unwrap(), model.get(&last).cloned(), "its newest version is here");
    assert_eq!(block_on(to.get(first.clone())).unwrap(), model.get(&first).cloned(), "held");

    // A reader waits for the segment that it needs, and that one comes first.
    let beyond = Bytes::copy_from_slice(&summaries[summaries.len() - 2].start);
    let reader = {
        let (to, beyond) = (to.clone(), beyond.clone());
        std::thread::spawn(move || block_on(to.get(beyond)))
    };
    std::thread::sleep(Duration::from_millis(50));
    assert!(!reader.is_finished(), "what is missing is not absent");
    let progress = block_on(to.with(|partition| async move { Ok(partition.fill_progress()) })).unwrap().unwrap();
    assert_eq!((progress.missing, progress.reads_waited), (summaries.len() - held, 1));
    assert!(matches!(block_on(target.checkpoint(target_dir.path().join("copy"))), Err(Error::Invalid { .. })));
    assert_eq!(fetch(&from, &to, 1), [summaries[summaries.len() - 2].id]);
    assert_eq!(reader.join().unwrap().unwrap(), model.get(&beyond).cloned());

    // A restart knows what is missing; nothing that was deleted comes back with what is fetched later.
    block_on(to.put("key-00000x", "new")).unwrap();
    block_on(to.delete(beyond.clone())).unwrap();
    model.insert(Bytes::from_static(b"key-00000x"), Bytes::from_static(b"new"));
    model.remove(&beyond);
    let deleted = key(KEYS - 2);
    block_on(to.delete(deleted.clone())).unwrap();
    model.remove(&deleted);
    block_on(to.compact()).unwrap();
    block_on(target.close()).unwrap();
    let target = open(target_dir.path());
    let to = target.partition(PARTITION).unwrap();
    let missing = block_on(to.with(|partition| async move { Ok(partition.missing_segments()) })).unwrap();
    assert_eq!(missing.len(), summaries.len() - held - 1);

    // The source cannot be reached: readers are told at once, others are served.
    let lost = missing[0];
    block_on(to.with(move |partition| async move {
        partition.give_back(ATTEMPT, lost, Some("host 1 is down".into()));
        Ok(())
    }))
    .unwrap();
    let start = summaries.iter().find(|summary| summary.id == lost).unwrap().start.clone();
    let absent = Bytes::from([&start[..], b"?"].concat());
    assert!(matches!(block_on(to.get(absent)), Err(Error::OutOfReach { segment, .. }) if segment == lost));
    assert_eq!(block_on(to.get(first.clone())).unwrap(), model.get(&first).cloned());
    block_on(to.with(|partition| async move {
        partition.note_reachable(ATTEMPT);
        Ok(())
    }))
    .unwrap();

    // It returns: a scan waits for segment after segment.
    let scan = {
        let to = to.clone();
        std::thread::spawn(move || contents(&to))
    };
    assert_eq!(fetch(&from, &to, usize::MAX).len(), missing.len());
    assert!(scan.join().unwrap() == model);
    let whole = block_on(to.with(|partition| async move { Ok(!partition.lacks_any()) })).unwrap();
    assert!(whole);
    block_on(to.compact()).unwrap();
    block_on(target.close()).unwrap();
    let target = open(target_dir.path());
    assert!(contents(&target.partition(PARTITION).unwrap()) == model, "also after a restart");
}
