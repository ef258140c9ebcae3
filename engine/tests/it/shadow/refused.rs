//! What does not fit is refused, passed over or forgotten, on either side.

use std::time::Duration;

use antumbra_engine::partition::{CheckedImage, MirrorReceiver, SegmentSummary};
use antumbra_engine::table::verify_image;
use antumbra_engine::types::{AttemptId, Epoch, Lsn};
use antumbra_engine::{Engine, Error, PartitionHandle};
use bytes::Bytes;

use super::{ATTEMPT, attach, copy, key, load};
use crate::common::{PARTITION, block_on, create, open};

/// An owner, and another host with a shadow of its partition that nothing has been copied to yet.
struct Attached {
    _dirs: [tempfile::TempDir; 2],
    source: Engine,
    target: Engine,
    from: PartitionHandle,
    to: PartitionHandle,
    receiver: MirrorReceiver,
    summaries: Vec<SegmentSummary>,
}

/// `load` fills the partition before the shadow is attached.
fn attached(load: impl FnOnce(&PartitionHandle)) -> Attached {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (source, target) = (open(dirs[0].path()), open(dirs[1].path()));
    let from = create(&source);
    load(&from);
    let (receiver, summaries) = block_on(attach(&from, &target));
    let to = target.partition(PARTITION).unwrap();
    Attached { _dirs: dirs, source, target, from, to, receiver, summaries }
}

#[test]
fn aborted_move_source_serves_on_and_target_forgets() {
    let Attached { _dirs, source, target, from, to, receiver, summaries } = attached(load);
    block_on(copy(&from, &to, &summaries[..2]));
    block_on(from.with(|partition| async move { partition.set_synchronous(ATTEMPT, Lsn(0)) })).unwrap();
    block_on(from.with(|partition| async move { partition.freeze(ATTEMPT, std::time::Duration::from_secs(60)).await }))
        .unwrap();
    let parked = {
        let from = from.clone();
        std::thread::spawn(move || block_on(from.put("parked", "v")))
    };
    std::thread::sleep(Duration::from_millis(30));
    assert!(!parked.is_finished(), "a frozen partition parks writes");
    block_on(from.with(|partition| async move { partition.thaw(ATTEMPT, Epoch(2)).await })).unwrap();
    parked.join().unwrap().unwrap();
    drop(receiver);
    let stale = block_on(
        from.with(|partition| async move { partition.freeze(ATTEMPT, std::time::Duration::from_secs(60)).await }),
    );
    assert!(matches!(stale, Err(Error::Stale { .. })), "a closed attempt changes nothing");

    let discard = |engine: &Engine| {
        block_on(engine.on_shard(antumbra_engine::types::ShardId(0), |shard| async move {
            shard.discard_shadow(PARTITION, ATTEMPT).await
        }))
    };
    assert!(matches!(block_on(to.get("parked")), Err(Error::NotOwner { .. })));
    discard(&target).unwrap().unwrap();
    assert!(target.partition(PARTITION).is_err());
    discard(&source).unwrap().unwrap();
    assert_eq!(block_on(from.get("parked")).unwrap(), Some(Bytes::from_static(b"v")), "the owner is left alone");
}

#[test]
fn base_of_an_older_state_under_the_newer_delta_is_found_by_the_seal() {
    let Attached { _dirs, source: _source, target: _target, from, to, receiver, summaries } = attached(load);
    let id = summaries[0].id;
    let capture = || {
        let image =
            block_on(from.with(move |partition| async move { partition.capture_image(ATTEMPT, id).await })).unwrap();
        let records = block_on(verify_image(&image.table)).unwrap().records;
        (CheckedImage::check(image.table).unwrap(), records)
    };
    let (older, older_records) = capture();
    block_on(from.put(key(0), "in between")).unwrap();
    block_on(from.compact()).unwrap();
    let (_, newer_records) = capture();
    assert_eq!(newer_records, older_records + 1, "a base as it lies: the version that the first image shows is in it");
    let delta =
        block_on(from.with(move |partition| async move { partition.cover_segment(ATTEMPT, id).await })).unwrap();
    assert!(delta.records.is_empty(), "{:?}", delta.records);

    let install = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
        partition.install_image(ATTEMPT, id, Some(delta.covered), older, delta.records).await
    };
    block_on(to.with(install)).unwrap();
    block_on(copy(&from, &to, &summaries[1..]));
    let items: Vec<_> = std::iter::from_fn(|| receiver.try_recv()).collect();
    block_on(to.with(move |partition| async move { partition.apply_mirror(ATTEMPT, items).await })).unwrap();
    let freeze = |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
        partition.freeze(ATTEMPT, Duration::from_secs(60)).await
    };
    let seal = block_on(from.with(freeze)).unwrap().seal;
    assert_eq!(seal.copies.len(), summaries.len());
    let refused = block_on(to.with(move |partition| async move { partition.make_ready(ATTEMPT, &seal, false).await }));
    let named = format!("copy of segment {id}");
    assert!(matches!(&refused, Err(Error::Invalid { what }) if what.contains(&named)), "{refused:?}");
}

#[test]
fn mirror_with_a_gap_is_refused() {
    let Attached { _dirs, source: _source, target: _target, from, to, receiver, .. } = attached(|_| ());
    for number in 0..3 {
        block_on(from.put(key(number), "v")).unwrap();
    }
    let mut items = Vec::new();
    while let Some(item) = receiver.try_recv() {
        items.push(item);
    }
    assert_eq!(items.len(), 3);
    items.remove(1);
    let result = block_on(to.with(move |partition| async move { partition.apply_mirror(ATTEMPT, items).await }));
    assert!(matches!(result, Err(Error::Stale { .. })));
}

#[test]
fn mirror_that_is_sent_again_is_passed_over() {
    let Attached { _dirs, source: _source, target: _target, from, to, receiver, .. } = attached(|_| ());
    for number in 0..5 {
        block_on(from.put(key(number), "v")).unwrap();
    }
    let items: Vec<_> = std::iter::from_fn(|| receiver.try_recv()).collect();
    let apply = |items: Vec<_>| {
        block_on(to.with(move |partition| async move {
            let applied = partition.apply_mirror(ATTEMPT, items).await?;
            Ok((applied.last, partition.shadow_position(ATTEMPT)?.0))
        }))
        .unwrap()
    };
    let last = items[4].lsn();
    assert_eq!(apply(items[..3].to_vec()), (items[2].lsn(), items[2].lsn()));
    assert_eq!(apply(items[1..].to_vec()), (last, last), "two of them again, two more");
    assert_eq!(apply(items.clone()), (last, last));
    let of_another = block_on(to.with(|partition| async move { partition.shadow_position(AttemptId(99)) }));
    assert!(matches!(of_another, Err(Error::Stale { .. })));
}
