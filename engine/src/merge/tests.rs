#![allow(clippy::unwrap_used)]

use futures_lite::future::block_on;
use proptest::prelude::*;

use super::*;
use crate::erasure;
use crate::record::Record;
use crate::table::tests_support::arbitrary_records;

fn merged_under(parts: Vec<Vec<Record>>, erasures: &[Erasure], retain: Retain) -> Vec<Record> {
    let sources = parts.into_iter().map(|part| Source::Records(part.into_iter(), None)).collect();
    let mut iter = MergeIter::new(sources, retain).erased_by(erasures.to_vec());
    let mut out = Vec::new();
    while block_on(iter.advance()).unwrap() {
        out.push(iter.current().to_record());
    }
    out
}

fn merged(parts: Vec<Vec<Record>>, retain: Retain) -> Vec<Record> {
    merged_under(parts, &[], retain)
}

/// What a reader at `lsn` sees under erasures, by brute force.
fn visible_under(records: &[Record], erasures: &[Erasure], lsn: Lsn, now_ms: u64) -> Vec<Record> {
    let erased = |record: &Record| erasure::newest_covering(erasures, &record.key, lsn) > record.lsn;
    visible(records, lsn, now_ms).into_iter().filter(|record| !erased(record)).collect()
}

fn arbitrary_erasures() -> impl Strategy<Value = Vec<Erasure>> {
    let one = (prop::collection::vec(0..4u8, 0..3), prop::option::of(prop::collection::vec(0..4u8, 1..3)), 50..90u64);
    prop::collection::vec(one, 0..6).prop_map(|parts| {
        let erasure = |(start, end, lsn): (Vec<u8>, Option<Vec<u8>>, u64)| Erasure {
            start: start.into(),
            end: end.map(Bytes::from),
            // Even numbers, between those that `interleaved` leaves to the records.
            lsn: Lsn((lsn - 50) * 2),
            hlc: crate::types::Hlc(lsn),
        };
        parts.into_iter().map(erasure).collect()
    })
}

/// Records at odd LSNs, so that none is an erasure's.
fn interleaved(mut records: Vec<Record>) -> Vec<Record> {
    records.iter_mut().for_each(|record| record.lsn = Lsn(record.lsn.0 * 2 + 1));
    records
}

/// What a reader at `lsn` sees, by brute force.
fn visible(records: &[Record], lsn: Lsn, now_ms: u64) -> Vec<Record> {
    let mut keys: Vec<_> = records.iter().map(|record| record.key.clone()).collect();
    keys.sort();
    keys.dedup();
    keys.iter()
        .filter_map(|key| records.iter().filter(|r| r.key == key && r.lsn <= lsn).max_by_key(|r| r.lsn))
        .filter(|record| record.is_live(now_ms))
        .cloned()
        .collect()
}

fn dealt(records: &[Record], parts: usize) -> Vec<Vec<Record>> {
    // A record may lie in two sources (replay after a flush): deal each to one part, every third to the next as well.
    let mut dealt = vec![Vec::new(); parts];
    for (index, record) in records.iter().enumerate() {
        dealt[index % parts].push(record.clone());
        if index % 3 == 0 && parts > 1 {
            dealt[(index + 1) % parts].push(record.clone());
        }
    }
    dealt
}

proptest! {
    #[test]
    fn merge_for_a_reader_equals_model(records in arbitrary_records(120), parts in 1..5usize, lsn in 0..60u64, now in 0..3u64) {
        let found = merged(dealt(&records, parts), Retain::visible_at(Lsn(lsn), now));
        prop_assert_eq!(found, visible(&records, Lsn(lsn), now));
    }

    #[test]
    fn compaction_keeps_what_every_snapshot_sees(
        records in arbitrary_records(120), parts in 1..5usize, mut snapshots in prop::collection::vec(0..60u64, 0..4), bottom: bool,
        visible_now in 0..70u64
    ) {
        snapshots.sort_unstable();
        snapshots.dedup();
        let snapshots: Vec<Lsn> = snapshots.into_iter().map(Lsn).collect();
        let visible_now = Lsn(visible_now);
        let snapshots: Vec<Lsn> = snapshots.into_iter().filter(|snapshot| *snapshot <= visible_now).collect();
        let retain = if bottom { Retain::needed_at_bottom(&snapshots, visible_now, 0) } else { Retain::needed(&snapshots, visible_now) };
        let kept = merged(dealt(&records, parts), retain);
        // Readers to come begin anywhere from the visible LSN on.
        for lsn in snapshots.iter().copied().chain((visible_now.0..72).map(Lsn)) {
            prop_assert_eq!(visible(&kept, lsn, 0), visible(&records, lsn, 0));
        }
    }

    #[test]
    fn compaction_under_erasures_keeps_what_every_snapshot_sees(
        records in arbitrary_records(120), erasures in arbitrary_erasures(), parts in 1..5usize,
        mut snapshots in prop::collection::vec(0..110u64, 0..4), bottom: bool, visible_now in 0..110u64
    ) {
        let records = interleaved(records);
        snapshots.retain(|snapshot| *snapshot <= visible_now);
        snapshots.sort_unstable();
        snapshots.dedup();
        let snapshots: Vec<Lsn> = snapshots.into_iter().map(Lsn).collect();
        let retain = match bottom {
            true => Retain::needed_at_bottom(&snapshots, Lsn(visible_now), 0),
            false => Retain::needed(&snapshots, Lsn(visible_now)),
        };
        let mut left = erasures.clone();
        retain.keep_erasures(&mut left);
        let kept = merged_under(dealt(&records, parts), &erasures, retain);
        for lsn in snapshots.iter().copied().chain((visible_now..112).map(Lsn)) {
            prop_assert_eq!(visible_under(&kept, &left, lsn, 0), visible_under(&records, &erasures, lsn, 0));
        }
    }

    #[test]
    fn merge_for_a_reader_under_erasures_equals_model(
        records in arbitrary_records(120), erasures in arbitrary_erasures(), parts in 1..5usize, lsn in 0..110u64
    ) {
        let records = interleaved(records);
        let found = merged_under(dealt(&records, parts), &erasures, Retain::visible_at(Lsn(lsn), 0));
        prop_assert_eq!(found, visible_under(&records, &erasures, Lsn(lsn), 0));
    }

    #[test]
    fn changes_applied_to_old_state_give_new_state(records in arbitrary_records(120), from in 0..60u64, to in 0..60u64) {
        let (from, to) = (Lsn(from.min(to)), Lsn(from.max(to)));
        let mut changed = merged(vec![records.clone()], Retain::changed_between(from, to));
        changed.extend(visible(&records, from, 0));
        changed.sort_by(|a, b| (&a.key, b.lsn).cmp(&(&b.key, a.lsn)));
        prop_assert_eq!(visible(&changed, to, 0), visible(&records, to, 0));
    }
}
