//! A standby that is promoted by force, and the two histories made one again, without a network.

use std::rc::Rc;

use antumbra_engine::partition::{CheckedImage, ConflictPolicy, Decision, Divergence, MirrorReceiver};
use antumbra_engine::record::{Record, RecordKind};
use antumbra_engine::types::{AttemptId, Epoch, HostId, KeyRange, Lsn, ShardId};
use antumbra_engine::{Durability, Engine, Error, Partition, PartitionHandle, Serving, Write};
use bytes::Bytes;

use crate::common::{PARTITION, block_on, create, open, spec};

const ATTEMPT: AttemptId = AttemptId(41);
const NEW_OWNER: HostId = HostId(2);

fn put(handle: &PartitionHandle, key: &'static str, value: &'static str) {
    block_on(handle.put(key, value)).unwrap();
}

fn get(handle: &PartitionHandle, key: &'static str) -> Option<String> {
    block_on(handle.get(key)).unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// A source with some keys, and its whole standby.
fn stand_by(source: &PartitionHandle, target: &Engine) -> (MirrorReceiver, PartitionHandle) {
    let attach = |partition: Rc<Partition>| async move {
        let receiver = partition.attach_mirror(ATTEMPT, 1 << 20).await?;
        Ok((receiver, partition.segment_summaries()))
    };
    let (receiver, summaries) = block_on(source.with(attach)).unwrap();
    let segments = summaries.iter().map(|summary| (summary.id, summary.start.to_vec())).collect();
    let from = receiver.from;
    let create = move |shard: Rc<antumbra_engine::Shard>| async move {
        shard.create_shadow(spec(), ATTEMPT, segments, from).await.map(drop)
    };
    block_on(target.on_shard(ShardId(0), create)).unwrap().unwrap();
    let standby = target.partition(PARTITION).unwrap();
    for id in summaries.into_iter().map(|summary| summary.id) {
        let image =
            block_on(source.with(move |source| async move { source.capture_image(ATTEMPT, id).await })).unwrap();
        let delta =
            block_on(source.with(move |source| async move { source.cover_segment(ATTEMPT, id).await })).unwrap();
        let image = CheckedImage::check(image.table).unwrap();
        let install = move |target: Rc<Partition>| async move {
            target.install_image(ATTEMPT, id, Some(delta.covered), image, delta.records).await
        };
        block_on(standby.with(install)).unwrap();
    }
    (receiver, standby)
}

/// Carries what is in the mirror now.
fn carry(receiver: &MirrorReceiver, standby: &PartitionHandle) {
    let items = std::iter::from_fn(|| receiver.try_recv()).collect();
    let apply = move |target: Rc<Partition>| async move {
        let applied = target.apply_mirror(ATTEMPT, items).await?;
        target.mirror_durable(applied).await
    };
    block_on(standby.with(apply)).unwrap();
}

/// Promotes the standby; the source learns of it. Returns the last LSN that both have.
fn part(source: &PartitionHandle, standby: &PartitionHandle) -> Lsn {
    let lsn = block_on(standby.with(|target| async move { target.stop_mirror(ATTEMPT).await })).unwrap().last;
    let promote = move |target: Rc<Partition>| async move { target.promote_forced(ATTEMPT, Epoch(2), lsn).await };
    block_on(standby.with(promote)).unwrap();
    assert_eq!(block_on(standby.stats()).unwrap().serving, Serving::Owner);
    let release = move |source: Rc<Partition>| async move { source.hand_over_diverged(NEW_OWNER, Epoch(2), lsn).await };
    // What the source writes alone it has written before it learns.
    block_on(source.with(release)).unwrap();
    lsn
}

/// Hands out and settles everything; returns what was decided, by key.
fn reconcile(
    source: &PartitionHandle,
    target: &PartitionHandle,
    divergence: Divergence,
    policy: &ConflictPolicy,
) -> Vec<(Bytes, Decision)> {
    let mut decided = Vec::new();
    let mut start = Some(Bytes::new());
    while let Some(from) = start {
        let lsn = divergence.lsn;
        let read = move |source: Rc<Partition>| async move { source.changed_since(NEW_OWNER, lsn, from, 40).await };
        let page = block_on(source.with(read)).unwrap();
        start = page.next;
        for record in page.records {
            let policy = policy.clone();
            let settle = move |target: Rc<Partition>| async move {
                let mut records = vec![record.clone()];
                if record.kind == RecordKind::RangeDelete {
                    // Settled behind the keys: what was written behind a range deletion stands.
                    (records, _) = target.keys_erased(&record, &Bytes::new(), 100).await?;
                }
                let mut decided: Vec<(Bytes, Decision)> = Vec::new();
                for record in records {
                    let judged = target.judge(record, divergence, &policy).await?;
                    let beside = Bytes::from([&judged.record.key[..], b"!"].concat());
                    assert!(target.settle_judged(&judged, Some(&beside)).await?, "nobody writes meanwhile");
                    decided.push((judged.record.key.clone(), judged.decision));
                }
                Ok(decided)
            };
            decided.extend(block_on(target.with(settle)).unwrap());
        }
    }
    decided
}

fn assigned(handle: &PartitionHandle) -> Lsn {
    block_on(handle.with(|partition| async move { Ok(partition.assigned()) })).unwrap()
}

/// Two engines whose histories have parted in every way: keys that one side changed, that both changed, that were deleted.
fn parted(dir: &tempfile::TempDir) -> (Engine, Engine, PartitionHandle, PartitionHandle, Divergence) {
    let (old, new) = (open(&dir.path().join("old")), open(&dir.path().join("new")));
    let source = create(&old);
    for key in ["both", "deleted-here", "deleted-there", "erased-1", "erased-2", "gone", "here", "quiet", "there"] {
        put(&source, key, "base");
    }
    // The image is a base as it lies, and what hides a key of it comes with the delta.
    block_on(source.compact()).unwrap();
    block_on(source.delete("gone")).unwrap();
    let (receiver, standby) = stand_by(&source, &new);
    put(&source, "mirrored", "base");
    carry(&receiver, &standby);
    // The source goes on alone.
    put(&source, "there", "old");
    put(&source, "both", "old");
    put(&source, "deleted-here", "old");
    block_on(source.delete("deleted-there")).unwrap();
    block_on(source.delete_range(KeyRange::prefix(b"erased"), Durability::Durable)).unwrap();
    put(&source, "erased-2", "old");
    let lsn = part(&source, &standby);
    put(&standby, "here", "new");
    put(&standby, "both", "new");
    block_on(standby.delete("deleted-here")).unwrap();
    // What decides a conflict is not forgotten on either side.
    block_on(source.compact()).unwrap();
    block_on(standby.compact()).unwrap();
    let until = assigned(&standby);
    (old, new, source, standby, Divergence { lsn, until })
}

#[test]
fn histories_become_one_by_last_write_wins_and_twice_is_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_old, _new, source, target, divergence) = parted(&dir);
    let decided = reconcile(&source, &target, divergence, &ConflictPolicy::LastWriteWins);
    let of = |key: &str| {
        decided.iter().rev().find(|(found, _)| found == key.as_bytes()).map(|(_, decision)| decision.clone())
    };
    assert_eq!(of("both"), Some(Decision::Kept), "written later here");
    assert_eq!(of("deleted-here"), Some(Decision::Kept), "the tombstone has survived a compaction");
    assert_eq!(of("there"), Some(Decision::Taken));
    assert_eq!(of("deleted-there"), Some(Decision::Taken));
    assert_eq!([of("gone"), of("here"), of("quiet"), of("mirrored")], [const { None }; 4], "not changed there");
    let state = |target: &PartitionHandle| {
        let keys = [
            "both",
            "deleted-here",
            "deleted-there",
            "erased-1",
            "erased-2",
            "gone",
            "here",
            "mirrored",
            "quiet",
            "there",
        ];
        keys.map(|key| get(target, key).unwrap_or_else(|| "-".into()))
    };
    let merged = ["new", "-", "-", "-", "old", "-", "new", "base", "base", "old"].map(String::from);
    assert_eq!(state(&target), merged);
    put(&target, "there", "later");
    let again = reconcile(&source, &target, divergence, &ConflictPolicy::PreferSource);
    let changed = |decision: &Decision| matches!(decision, Decision::Taken | Decision::Merged(_));
    assert!(
        !again.iter().any(|(key, decision)| key != "deleted-here" && key != "both" && changed(decision)),
        "{again:?}"
    );
    assert_eq!(get(&target, "there").unwrap(), "later", "what was written since stands");
}

#[test]
fn both_versions_are_kept_with_their_own_timestamps() {
    let dir = tempfile::tempdir().unwrap();
    let (_old, _new, source, target, divergence) = parted(&dir);
    let lsn = divergence.lsn;
    let read =
        move |source: Rc<Partition>| async move { source.changed_since(NEW_OWNER, lsn, Bytes::new(), 1 << 20).await };
    let returned: Vec<Record> = block_on(source.with(read)).unwrap().records;
    reconcile(&source, &target, divergence, &ConflictPolicy::KeepBoth);
    assert_eq!((get(&target, "both").unwrap(), get(&target, "both!").unwrap()), ("new".into(), "old".into()));
    assert_eq!((get(&target, "deleted-here"), get(&target, "deleted-here!").unwrap()), (None, "old".into()));
    for (key, at) in [("both", "both!"), ("there", "there")] {
        let stamp = returned.iter().find(|record| record.key == key.as_bytes()).unwrap().hlc;
        assert_eq!(block_on(target.get_versioned(at)).unwrap().unwrap().version.hlc, stamp, "{key}");
    }
    let last = assigned(&target);
    reconcile(&source, &target, divergence, &ConflictPolicy::KeepBoth);
    assert_eq!(assigned(&target), last, "twice is once");
}

#[test]
fn standby_is_promoted_after_a_restart_and_not_while_it_lacks_something() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (open(&dir.path().join("old")), open(&dir.path().join("new")));
    let source = create(&old);
    for number in 0..1_500u32 {
        let write = Write::put(format!("key-{number:05}"), vec![b'x'; 200]);
        block_on(source.write(write, Durability::Buffered)).unwrap();
    }
    block_on(source.compact()).unwrap();
    let (receiver, standby) = stand_by(&source, &new);
    put(&source, "key-00001", "mirrored");
    let status = |standby: &PartitionHandle| block_on(standby.with(|target| async move { target.standby() })).unwrap();
    assert!(status(&standby).whole && status(&standby).missing == 0, "{:?}", status(&standby));
    carry(&receiver, &standby);
    let before = status(&standby);
    block_on(new.close()).unwrap();
    let new = open(&dir.path().join("new"));
    let standby = new.partition(PARTITION).unwrap();
    let after = status(&standby);
    assert_eq!((after.last, after.whole, after.missing), (before.last, true, 0));
    let wrong = Lsn(after.last.0 + 1);
    let promote = move |target: Rc<Partition>| async move { target.promote_forced(ATTEMPT, Epoch(2), wrong).await };
    assert!(matches!(block_on(standby.with(promote)), Err(Error::Stale { .. })), "another LSN than the record's");
    part(&source, &standby);
    assert_eq!(get(&standby, "key-00001").unwrap(), "mirrored");
    drop(old);
}

#[test]
fn standby_without_its_segments_and_a_clock_far_ahead_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (open(&dir.path().join("old")), open(&dir.path().join("new")));
    let source = create(&old);
    put(&source, "key", "base");
    let attach = |partition: Rc<Partition>| async move {
        partition.attach_mirror(ATTEMPT, 1 << 20).await?;
        Ok(partition.segment_summaries())
    };
    let summaries = block_on(source.with(attach)).unwrap();
    let segments = summaries.iter().map(|summary| (summary.id, summary.start.to_vec())).collect();
    let create_shadow = move |shard: Rc<antumbra_engine::Shard>| async move {
        shard.create_shadow(spec(), ATTEMPT, segments, Lsn(1)).await.map(drop)
    };
    block_on(new.on_shard(ShardId(0), create_shadow)).unwrap().unwrap();
    let standby = new.partition(PARTITION).unwrap();
    let refused = block_on(standby.with(|target| async move { target.stop_mirror(ATTEMPT).await }));
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let ahead = move |source: Rc<Partition>| async move {
        let hour = antumbra_engine::types::Hlc::from_wall_ms(source.latest_timestamp().wall_ms() + 3_600_000);
        let refused = source.observe_returned(hour);
        source.observe_returned(source.latest_timestamp())?;
        Ok(refused.map_err(|cause| cause.to_string()))
    };
    let refused = block_on(source.with(ahead)).unwrap();
    assert!(refused.unwrap_err().contains("set the clocks right"));
}
