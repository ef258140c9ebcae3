//! A move, and a roll-back on the copy that it has left behind, without a network.

use std::path::Path;
use std::rc::Rc;

use antumbra_engine::partition::{Base, CheckedImage, Frozen, MirrorReceiver, SegmentSummary};
use antumbra_engine::types::{AttemptId, Epoch, HostId, KeyRange, Lsn, ShardId};
use antumbra_engine::{Batch, Durability, Engine, Error, Partition, PartitionHandle, Serving, Write};
use bytes::Bytes;

use crate::common::{Model, PARTITION, block_on, contents, create, open, spec};

const THERE: AttemptId = AttemptId(7);
const BACK: AttemptId = AttemptId(8);
const NEW_OWNER: HostId = HostId(2);
const KEYS: u64 = 3_000;
const WALL_MS: u64 = 1_700_000_000_000;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:05}"))
}

fn attach(source: &PartitionHandle, attempt: AttemptId) -> (MirrorReceiver, Vec<SegmentSummary>) {
    let attach = move |partition: Rc<Partition>| async move {
        let receiver = partition.attach_mirror(attempt, 64 << 20).await?;
        Ok((receiver, partition.segment_summaries()))
    };
    block_on(source.with(attach)).unwrap()
}

fn starts(summaries: &[SegmentSummary]) -> Vec<(antumbra_engine::types::SegmentId, Vec<u8>)> {
    summaries.iter().map(|summary| (summary.id, summary.start.to_vec())).collect()
}

/// Copies a segment in full; returns the bytes of its image.
fn copy(from: &PartitionHandle, to: &PartitionHandle, attempt: AttemptId, summary: &SegmentSummary) -> usize {
    let id = summary.id;
    let image = block_on(from.with(move |source| async move { source.capture_image(attempt, id).await })).unwrap();
    let delta = block_on(from.with(move |source| async move { source.cover_segment(attempt, id).await })).unwrap();
    let bytes = image.table.len();
    let image = CheckedImage::check(image.table).unwrap();
    let install = move |target: Rc<Partition>| async move {
        target.install_image(attempt, id, Some(delta.covered), image, delta.records).await
    };
    block_on(to.with(install)).unwrap();
    bytes
}

/// Completes a segment on its base; `None` if there is none that both sides have. Returns the records of the delta.
fn complete(from: &PartitionHandle, to: &PartitionHandle, base: Base, summary: &SegmentSummary) -> Option<usize> {
    let id = summary.id;
    let digest = block_on(to.with(move |target| async move { target.digest_base(BACK, id, base).await })).unwrap()?;
    let capture = move |source: Rc<Partition>| async move { source.capture_on_base(BACK, id, base, digest).await };
    if !block_on(from.with(capture)).unwrap() {
        return None;
    }
    let delta = block_on(from.with(move |source| async move { source.cover_segment(BACK, id).await })).unwrap();
    let records = delta.records.len();
    let install = move |target: Rc<Partition>| async move {
        target.install_on_base(BACK, id, delta.covered, digest, delta.records).await
    };
    block_on(to.with(install)).unwrap();
    Some(records)
}

/// What is in the mirror, the freeze, what came until then, seal, hand-over, promotion.
fn switch(
    from: &PartitionHandle,
    to: &PartitionHandle,
    receiver: &MirrorReceiver,
    attempt: AttemptId,
    (owner, epoch): (HostId, Epoch),
) -> Lsn {
    let frozen: Frozen =
        block_on(from.with(move |source| async move { source.freeze(attempt, std::time::Duration::MAX / 4).await }))
            .unwrap();
    let items = std::iter::from_fn(|| receiver.try_recv()).collect();
    let last = frozen.seal.final_lsn;
    let ready = move |target: Rc<Partition>| async move {
        let applied = target.apply_mirror(attempt, items).await?;
        target.mirror_durable(applied).await?;
        target.make_ready(attempt, &frozen.seal, false).await?;
        target.keep_base(Some(last));
        target.promote(attempt, epoch, last, frozen.clock, frozen.wall_ms).await
    };
    let release = move |source: Rc<Partition>| async move { source.hand_over(owner, epoch).await };
    block_on(from.with(release)).unwrap();
    block_on(to.with(ready)).unwrap();
    last
}

/// Two hosts behind a move; what the new owner has written since; the base.
struct Moved {
    old_dir: tempfile::TempDir,
    _new_dir: tempfile::TempDir,
    old: Engine,
    _new: Engine,
    owner: PartitionHandle,
    model: Model,
    base: Base,
}

fn move_there() -> Moved {
    let (old_dir, new_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (open(old_dir.path()), open(new_dir.path()));
    let from = create(&old);
    for number in 0..KEYS {
        let write = Write::put(key(number), vec![b'x'; 200]);
        block_on(from.write(write, Durability::Buffered)).unwrap();
    }
    block_on(from.compact()).unwrap();
    // Not all of it is in tables, nor in the log, when it is handed over.
    for number in 0..50 {
        let write = Write::put(key(number * 31), "in a memtable");
        block_on(from.write(write, Durability::Memory)).unwrap();
    }
    block_on(from.delete(key(77))).unwrap();
    let (receiver, summaries) = attach(&from, THERE);
    assert!(summaries.len() > 3, "several segments: {}", summaries.len());
    let (segments, lsn) = (starts(&summaries), receiver.from);
    let create = move |shard: Rc<antumbra_engine::Shard>| async move {
        shard.create_shadow(spec(), THERE, segments, lsn).await.map(drop)
    };
    block_on(new.on_shard(ShardId(0), create)).unwrap().unwrap();
    let owner = new.partition(PARTITION).unwrap();
    for summary in &summaries {
        copy(&from, &owner, THERE, summary);
    }
    let lsn = switch(&from, &owner, &receiver, THERE, (NEW_OWNER, Epoch(2)));
    let model = contents(&owner);
    Moved { old_dir, _new_dir: new_dir, old, _new: new, owner, model, base: Base { lsn, wall_ms: WALL_MS } }
}

impl Moved {
    /// Changes of every kind in some segments; compaction may forget nothing of them.
    fn write(&mut self) {
        for number in 100..160 {
            block_on(self.owner.put(key(number), "later")).unwrap();
            self.model.insert(key(number), Bytes::from_static(b"later"));
        }
        for number in 160..170 {
            block_on(self.owner.delete(key(number))).unwrap();
            self.model.remove(&key(number));
        }
        let mut batch = Batch::new();
        batch.delete_range(KeyRange { start: key(200).to_vec(), end: Some(key(300).to_vec()) });
        block_on(self.owner.commit(batch, Durability::Durable)).unwrap();
        self.model.retain(|held, _| *held < key(200) || *held >= key(300));
        block_on(self.owner.compact()).unwrap();
        block_on(self.owner.put(key(101), "last")).unwrap();
        self.model.insert(key(101), Bytes::from_static(b"last"));
    }

    fn begin_back(&self) -> (MirrorReceiver, Vec<SegmentSummary>, antumbra_engine::Result<usize>) {
        let (receiver, summaries) = attach(&self.owner, BACK);
        let (segments, from, base) = (starts(&summaries), receiver.from, self.base.lsn);
        let create = move |shard: Rc<antumbra_engine::Shard>| async move {
            shard.create_shadow_on_base(spec(), BACK, segments, from, (NEW_OWNER, base)).await
        };
        let taken = block_on(self.old.on_shard(ShardId(0), create)).unwrap();
        (receiver, summaries, taken)
    }

    /// The end of a roll-back: both sides agree, also after a restart.
    fn end_back(self, back: &PartitionHandle, receiver: &MirrorReceiver, summaries: &[SegmentSummary]) {
        switch(&self.owner, back, receiver, BACK, (HostId(1), Epoch(3)));
        assert!(contents(back) == self.model, "what was acknowledged is there, and nothing else");
        let starts: Vec<Vec<u8>> = summaries.iter().map(|summary| summary.start.to_vec()).collect();
        let digests = |handle: &PartitionHandle| {
            let starts = starts.clone();
            block_on(handle.with(move |partition| async move { partition.digest_final(BACK, starts).await })).unwrap()
        };
        assert_eq!(digests(&self.owner), digests(back));
        block_on(back.compact()).unwrap();
        assert!(contents(back) == self.model, "also compacted");
        block_on(self.old.close()).unwrap();
        let old = open(self.old_dir.path());
        let back = old.partition(PARTITION).unwrap();
        assert_eq!(block_on(back.stats()).unwrap().serving, Serving::Owner);
        assert!(contents(&back) == self.model, "also after a restart");
    }
}

#[test]
fn roll_back_carries_what_changed_and_nothing_else() {
    let mut moved = move_there();
    moved.write();
    let (receiver, summaries, taken) = moved.begin_back();
    assert_eq!(taken.unwrap(), summaries.len(), "every segment has its base");
    let back = moved.old.partition(PARTITION).unwrap();
    assert!(matches!(block_on(back.get(key(1))), Err(Error::NotOwner { .. })), "a base serves nobody");
    let mut deltas = Vec::new();
    for (index, summary) in summaries.iter().enumerate() {
        // Before and after its segment is covered.
        let number = 400 + index as u64;
        block_on(moved.owner.put(key(number), "meanwhile")).unwrap();
        moved.model.insert(key(number), Bytes::from_static(b"meanwhile"));
        deltas.push(complete(&moved.owner, &back, moved.base, summary).expect("both have the base"));
    }
    // 60 puts, 10 deletions, one range, and what was written meanwhile: not 3,000.
    let sent: usize = deltas.iter().sum();
    assert!((71..=71 + summaries.len()).contains(&sent), "{deltas:?}");
    moved.end_back(&back, &receiver, &summaries);
}

/// Flips one byte in the middle of each table file.
fn damage(dir: &Path) -> usize {
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            damaged += damage(&entry);
        } else if entry.extension().is_some_and(|extension| extension == "tab") {
            let mut bytes = std::fs::read(&entry).unwrap();
            bytes[2_000] ^= 1;
            std::fs::write(&entry, bytes).unwrap();
            damaged += 1;
        }
    }
    damaged
}

#[test]
fn roll_back_on_a_damaged_copy_travels_in_full() {
    let mut moved = move_there();
    moved.write();
    let released = moved.old.partition(PARTITION).unwrap();
    block_on(released.compact()).unwrap();
    drop(released);
    block_on(moved.old.close()).unwrap();
    assert!(damage(moved.old_dir.path()) > 0);
    moved.old = open(moved.old_dir.path());
    let (receiver, summaries, taken) = moved.begin_back();
    assert!(taken.unwrap() > 0, "what is damaged is not known yet");
    let back = moved.old.partition(PARTITION).unwrap();
    let (mut based, mut full) = (0, 0);
    for summary in &summaries {
        match complete(&moved.owner, &back, moved.base, summary) {
            Some(_) => based += 1,
            None => full += usize::from(copy(&moved.owner, &back, BACK, summary) > 0),
        }
    }
    assert!(full > 0, "{based} segments on a base, {full} in full");
    moved.end_back(&back, &receiver, &summaries);
}

/// As behind a crash that took records which were in no log: the copy has the right LSN and other contents.
#[test]
fn segment_whose_digest_differs_or_whose_base_is_not_kept_travels_in_full() {
    let mut moved = move_there();
    moved.write();
    let (receiver, summaries, taken) = moved.begin_back();
    assert_eq!(taken.unwrap(), summaries.len());
    let back = moved.old.partition(PARTITION).unwrap();
    let (id, base) = (summaries[0].id, moved.base);
    let digest = block_on(back.with(move |target| async move { target.digest_base(BACK, id, base).await }));
    let wrong = digest.unwrap().unwrap() ^ 1;
    let capture = move |source: Rc<Partition>| async move { source.capture_on_base(BACK, id, base, wrong).await };
    assert!(!block_on(moved.owner.with(capture)).unwrap(), "another digest is no base");
    let install =
        move |target: Rc<Partition>| async move { target.install_on_base(BACK, id, base.lsn, wrong, Vec::new()).await };
    assert!(matches!(block_on(back.with(install)), Err(Error::Stale { .. })));
    let forget = |source: Rc<Partition>| async move {
        source.keep_base(None);
        Ok(())
    };
    copy(&moved.owner, &back, BACK, &summaries[0]);
    block_on(moved.owner.with(forget)).unwrap();
    for summary in &summaries[1..] {
        assert_eq!(complete(&moved.owner, &back, moved.base, summary), None, "nothing is kept any more");
        copy(&moved.owner, &back, BACK, summary);
    }
    moved.end_back(&back, &receiver, &summaries);
}

#[test]
fn copy_of_another_moment_is_no_base_and_left_alone() {
    let moved = move_there();
    let (_, summaries) = attach(&moved.owner, BACK);
    let segments = starts(&summaries);
    let ask = |owner, lsn: u64| {
        let segments = segments.clone();
        let create = move |shard: Rc<antumbra_engine::Shard>| async move {
            shard.create_shadow_on_base(spec(), BACK, segments, Lsn(lsn), (owner, Lsn(lsn))).await
        };
        block_on(moved.old.on_shard(ShardId(0), create)).unwrap()
    };
    assert!(matches!(ask(NEW_OWNER, moved.base.lsn.0 + 1), Err(Error::Invalid { .. })));
    assert!(matches!(ask(HostId(9), moved.base.lsn.0), Err(Error::Invalid { .. })));
    let old = moved.old.partition(PARTITION).unwrap();
    assert_eq!(block_on(old.stats()).unwrap().serving, Serving::Released { owner: NEW_OWNER });
    assert_eq!(ask(NEW_OWNER, moved.base.lsn.0).unwrap(), summaries.len());
}
