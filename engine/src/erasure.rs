//! Range deletions: one record that hides every older version of the keys of a range.
//!
//! An erasure never crosses a segment: a write cuts its range at the segments' bounds and logs one record for each piece,
//! all in one batch, so that mirrors, deltas and flushes treat a piece like any other record of its segment. Erasures do
//! not lie in tables. They live in the memtable until it is flushed, then in the manifest beside their segment (where a
//! read finds them without I/O), and they end when the segment is compacted and no snapshot is older.
//!
//! - `INV-ERASE`: whoever reads tables and memtables also asks the erasures of the same moment; the newest erasure of a
//!   key at or below the reader's LSN hides every version below it.
//!
//! As a record (log, mirror, delta): kind 3, key = first key of the range (`00` stands for the beginning of the
//! keyspace, since no key is empty), value = first key behind the range, empty for none.

use std::cell::{Cell, RefCell};

use bytes::Bytes;

use crate::record::{Record, RecordKind, RecordView};
use crate::types::{Hlc, Lsn};

/// The smallest key.
const FIRST_KEY: &[u8] = &[0];
/// Bookkeeping bytes of one erasure, counted against the memory budget.
const OVERHEAD_BYTES: usize = 128;

/// Every version of the keys of `[start, end)` below `lsn` is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// First key.
    pub start: Bytes,
    /// First key behind; `None` at the end of the keyspace.
    pub end: Option<Bytes>,
    /// Position in the partition's history.
    pub lsn: Lsn,
    /// When it was written.
    pub hlc: Hlc,
}

impl Erasure {
    /// The erasure that a record of kind [`RecordKind::RangeDelete`] means.
    #[must_use]
    pub fn of_record(record: RecordView<'_>) -> Erasure {
        let end = (!record.value.is_empty()).then(|| Bytes::copy_from_slice(record.value));
        Erasure { start: Bytes::copy_from_slice(record.key), end, lsn: record.lsn, hlc: record.hlc }
    }

    /// The record that logs, mirrors and deltas carry.
    #[must_use]
    pub fn to_record(&self) -> Record {
        Record {
            key: if self.start.is_empty() { Bytes::from_static(FIRST_KEY) } else { self.start.clone() },
            lsn: self.lsn,
            hlc: self.hlc,
            kind: RecordKind::RangeDelete,
            expires_at_ms: 0,
            value: self.end.clone().unwrap_or_default(),
        }
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn covers(&self, key: &[u8]) -> bool {
        self.start.as_ref() <= key && self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    /// The part within `[start, end)`; `None` if there is none.
    #[must_use]
    pub fn clipped(&self, start: &Bytes, end: Option<&Bytes>) -> Option<Erasure> {
        let from = (&self.start).max(start);
        let to = match (self.end.as_ref(), end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let any = to.is_none_or(|to| from < to);
        any.then(|| Erasure { start: from.clone(), end: to.cloned(), lsn: self.lsn, hlc: self.hlc })
    }

    fn contains(&self, other: &Erasure) -> bool {
        let end_behind = match (&self.end, &other.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(a), Some(b)) => a >= b,
        };
        self.start <= other.start && end_behind
    }
}

/// LSN of the newest erasure at or below `max_lsn` that covers `key`; `Lsn(0)` if there is none.
pub(crate) fn newest_covering(erasures: &[Erasure], key: &[u8], max_lsn: Lsn) -> Lsn {
    let covering = erasures.iter().filter(|erasure| erasure.lsn <= max_lsn && erasure.covers(key));
    covering.map(|erasure| erasure.lsn).max().unwrap_or_default()
}

/// Drops erasures that a newer one contains, unless a reader stands between the two: one at an LSN of `bounds`, or any
/// above `above`.
pub(crate) fn drop_contained(erasures: &mut Vec<Erasure>, bounds: &[Lsn], above: Lsn) {
    erasures.sort_by_key(|erasure| std::cmp::Reverse(erasure.lsn));
    let mut kept: Vec<Erasure> = Vec::with_capacity(erasures.len());
    for erasure in erasures.drain(..) {
        let replaced = kept.iter().any(|newer| {
            let stands_between = |bound: &Lsn| erasure.lsn <= *bound && *bound < newer.lsn;
            newer.contains(&erasure) && newer.lsn <= above && !bounds.iter().any(stands_between)
        });
        if !replaced {
            kept.push(erasure);
        }
    }
    *erasures = kept;
}

/// The erasures of one memtable.
#[derive(Debug, Default)]
pub(crate) struct Erasures {
    list: RefCell<Vec<Erasure>>,
    /// Tells the read path without a borrow that there is nothing to look at.
    any: Cell<bool>,
}

impl Erasures {
    /// Takes an erasure in; false if it is there already.
    pub fn insert(&self, erasure: Erasure) -> bool {
        let mut list = self.list.borrow_mut();
        if list.contains(&erasure) {
            return false;
        }
        list.push(erasure);
        self.any.set(true);
        true
    }

    /// See [`newest_covering`].
    pub fn newest_covering(&self, key: &[u8], max_lsn: Lsn) -> Lsn {
        if !self.any.get() {
            return Lsn(0);
        }
        newest_covering(&self.list.borrow(), key, max_lsn)
    }

    /// The parts within `[start, end)` of those above `after` and at or below `up_to`.
    pub fn within(&self, start: &Bytes, end: Option<&Bytes>, after: Lsn, up_to: Lsn) -> Vec<Erasure> {
        if !self.any.get() {
            return Vec::new();
        }
        clip_all(&self.list.borrow(), start, end, after, up_to)
    }

    /// Number of erasures.
    pub fn len(&self) -> usize {
        self.list.borrow().len()
    }
}

/// The parts within `[start, end)` of those above `after` and at or below `up_to`.
pub(crate) fn clip_all(
    erasures: &[Erasure],
    start: &Bytes,
    end: Option<&Bytes>,
    after: Lsn,
    up_to: Lsn,
) -> Vec<Erasure> {
    let wanted = erasures.iter().filter(|erasure| erasure.lsn > after && erasure.lsn <= up_to);
    wanted.filter_map(|erasure| erasure.clipped(start, end)).collect()
}

/// Bytes that an erasure takes in memory.
pub(crate) fn memory_bytes(erasure: &Erasure) -> usize {
    OVERHEAD_BYTES + erasure.start.len() + erasure.end.as_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn erasure(start: &[u8], end: Option<&[u8]>, lsn: u64) -> Erasure {
        Erasure {
            start: Bytes::copy_from_slice(start),
            end: end.map(Bytes::copy_from_slice),
            lsn: Lsn(lsn),
            hlc: Hlc(lsn),
        }
    }

    fn arbitrary() -> impl Strategy<Value = Vec<Erasure>> {
        let one = (0..6u8, prop::option::of(0..7u8), 1..30u64);
        prop::collection::vec(one, 0..12).prop_map(|parts| {
            parts
                .into_iter()
                .map(|(start, end, lsn)| erasure(&[start], end.map(|end| vec![end]).as_deref(), lsn))
                .collect()
        })
    }

    #[test]
    fn to_record_beginning_of_keyspace_has_a_key_and_covers_the_same() {
        let whole = erasure(b"", None, 4);
        let back = Erasure::of_record(whole.to_record().view());
        assert_eq!((back.start.as_ref(), back.end.clone(), back.lsn), (&[0][..], None, Lsn(4)));
        assert!(back.covers(&[0]) && back.covers(&[255; 9]));
        let part = erasure(b"b", Some(b"d"), 5);
        assert_eq!(Erasure::of_record(part.to_record().view()), part);
    }

    proptest! {
        #[test]
        fn drop_contained_no_reader_sees_a_difference(
            list in arbitrary(), bounds in prop::collection::vec(0..30u64, 0..4), above in 0..31u64
        ) {
            let bounds: Vec<Lsn> = bounds.into_iter().map(Lsn).filter(|bound| bound.0 <= above).collect();
            let mut kept = list.clone();
            drop_contained(&mut kept, &bounds, Lsn(above));
            // A reader at or above `above`, or at one of the bounds, hides the same versions as before.
            for reader in bounds.iter().copied().chain((above..32).map(Lsn)) {
                for key in 0..7u8 {
                    prop_assert_eq!(newest_covering(&kept, &[key], reader), newest_covering(&list, &[key], reader));
                }
            }
        }

        #[test]
        fn clip_all_pieces_cover_what_the_whole_does(list in arbitrary(), cut in 1..6u8) {
            let cut = Bytes::copy_from_slice(&[cut]);
            let mut pieces = clip_all(&list, &Bytes::new(), Some(&cut), Lsn(0), Lsn(99));
            pieces.extend(clip_all(&list, &cut, None, Lsn(0), Lsn(99)));
            for key in 0..7u8 {
                prop_assert_eq!(newest_covering(&pieces, &[key], Lsn(99)), newest_covering(&list, &[key], Lsn(99)));
            }
        }
    }
}
