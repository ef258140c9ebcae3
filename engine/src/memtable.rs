//! Ordered, multi-version, single-threaded table of the newest records of a partition.
//!
//! A key's versions are kept newest first. Writers insert at any LSN (a delta of a shadow may bring an older record
//! after a newer one); readers name the largest LSN that they may see.
//! Iteration survives concurrent inserts: a [`MemtableCursor`] remembers the key it stands on and copies out a few
//! records at a time, so no borrow is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;

use crate::record::{Record, RecordKind, RecordView};
use crate::types::{Hlc, Lsn, WalSeq};

/// Bookkeeping bytes of one version (map node share, two reference-counted handles), counted against the budget.
const VERSION_OVERHEAD_BYTES: usize = 144;

#[derive(Clone, Debug)]
struct Version {
    lsn: Lsn,
    hlc: Hlc,
    kind: RecordKind,
    expires_at_ms: u64,
    value: Bytes,
}

impl Version {
    fn to_record(&self, key: &Bytes) -> Record {
        Record {
            key: key.clone(),
            lsn: self.lsn,
            hlc: self.hlc,
            kind: self.kind,
            expires_at_ms: self.expires_at_ms,
            value: self.value.clone(),
        }
    }
}

/// All versions of one key, newest first. The common case of one version needs no second allocation.
#[derive(Debug)]
struct Versions {
    newest: Version,
    older: Vec<Version>,
}

impl Versions {
    fn insert(&mut self, version: Version) -> bool {
        if version.lsn > self.newest.lsn {
            let previous = std::mem::replace(&mut self.newest, version);
            self.older.insert(0, previous);
            return true;
        }
        if version.lsn == self.newest.lsn {
            return false;
        }
        match self.older.binary_search_by(|held| version.lsn.cmp(&held.lsn)) {
            Ok(_) => false,
            Err(position) => {
                self.older.insert(position, version);
                true
            }
        }
    }

    fn visible_at(&self, max_lsn: Lsn) -> Option<&Version> {
        if self.newest.lsn <= max_lsn {
            return Some(&self.newest);
        }
        self.older.iter().find(|version| version.lsn <= max_lsn)
    }

    fn iter(&self) -> impl Iterator<Item = &Version> {
        std::iter::once(&self.newest).chain(self.older.iter())
    }
}

/// The table. Interior mutability; never lends a reference across an await.
#[derive(Debug)]
pub struct Memtable {
    map: RefCell<BTreeMap<Bytes, Versions>>,
    bytes: Cell<usize>,
    records: Cell<usize>,
    max_lsn: Cell<Lsn>,
    first_seq: WalSeq,
}

impl Memtable {
    /// An empty table whose first record will lie in WAL batch `first_seq` or later.
    #[must_use]
    pub fn new(first_seq: WalSeq) -> Memtable {
        Memtable {
            map: RefCell::default(),
            bytes: Cell::new(0),
            records: Cell::new(0),
            max_lsn: Cell::default(),
            first_seq,
        }
    }

    /// Inserts a record; one that is there already (same key and LSN) changes nothing.
    pub fn insert(&self, record: Record) {
        let Record { key, lsn, hlc, kind, expires_at_ms, value } = record;
        let bytes = key.len() + value.len() + VERSION_OVERHEAD_BYTES;
        let version = Version { lsn, hlc, kind, expires_at_ms, value };
        let mut map = self.map.borrow_mut();
        let inserted = match map.get_mut(&key) {
            Some(versions) => versions.insert(version),
            None => {
                map.insert(key, Versions { newest: version, older: Vec::new() });
                true
            }
        };
        if inserted {
            self.bytes.set(self.bytes.get() + bytes);
            self.records.set(self.records.get() + 1);
            self.max_lsn.set(self.max_lsn.get().max(lsn));
        }
    }

    /// The newest version of `key` at or below `max_lsn`, tombstones included.
    #[must_use]
    pub fn get(&self, key: &[u8], max_lsn: Lsn) -> Option<Record> {
        let map = self.map.borrow();
        let (key, versions) = map.get_key_value(key)?;
        versions.visible_at(max_lsn).map(|version| version.to_record(key))
    }

    /// Bytes counted against the memory budget.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Whether no record has been inserted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.get() == 0
    }

    /// Largest LSN inserted.
    #[must_use]
    pub fn max_lsn(&self) -> Lsn {
        self.max_lsn.get()
    }

    /// The WAL batch from which on recovery finds this table's records.
    #[must_use]
    pub fn first_seq(&self) -> WalSeq {
        self.first_seq
    }

    /// Calls `visit` with each key and the LSN of its newest version.
    pub fn for_each_key(&self, mut visit: impl FnMut(&[u8], Lsn)) {
        for (key, versions) in self.map.borrow().iter() {
            visit(key, versions.newest.lsn);
        }
    }

    /// Copies up to `count` records behind `after` (whole keys, all versions at or below `max_lsn`) into `out`.
    /// Returns the last key taken, or `None` at the end.
    fn copy_after(
        &self,
        after: Bound<&[u8]>,
        end: Option<&[u8]>,
        max_lsn: Lsn,
        count: usize,
        out: &mut VecDeque<Record>,
    ) -> Option<Bytes> {
        let empty = match (after, end) {
            (Bound::Included(start) | Bound::Excluded(start), Some(end)) => start >= end,
            _ => false,
        };
        if empty {
            return None;
        }
        let map = self.map.borrow();
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (key, versions) in map.range::<[u8], _>((after, upper)) {
            out.extend(versions.iter().filter(|version| version.lsn <= max_lsn).map(|version| version.to_record(key)));
            last = Some(key.clone());
            if out.len() >= count {
                break;
            }
        }
        last
    }
}

/// Records copied out of the table at a time; bounds the time that one step holds the core.
const CURSOR_CHUNK_RECORDS: usize = 64;

/// Iterates a key range of a memtable in (key ascending, LSN descending) order.
pub struct MemtableCursor {
    table: Rc<Memtable>,
    position: Position,
    end: Option<Bytes>,
    max_lsn: Lsn,
    buffer: VecDeque<Record>,
}

enum Position {
    Start(Bytes),
    After(Bytes),
    End,
}

impl MemtableCursor {
    /// A cursor over `[start, end)` that sees versions at or below `max_lsn`.
    #[must_use]
    pub fn new(table: Rc<Memtable>, start: Bytes, end: Option<Bytes>, max_lsn: Lsn) -> MemtableCursor {
        MemtableCursor { table, position: Position::Start(start), end, max_lsn, buffer: VecDeque::new() }
    }

    /// Moves to the next record; false at the end.
    pub fn advance(&mut self) -> bool {
        self.buffer.pop_front();
        self.refill();
        !self.buffer.is_empty()
    }

    /// The record it stands on.
    ///
    /// # Panics
    /// When the last [`MemtableCursor::advance`] did not return true.
    #[must_use]
    pub fn current(&self) -> RecordView<'_> {
        self.buffer[0].view()
    }

    fn refill(&mut self) {
        while self.buffer.is_empty() {
            let after = match &self.position {
                Position::Start(key) => Bound::Included(key.as_ref()),
                Position::After(key) => Bound::Excluded(key.as_ref()),
                Position::End => return,
            };
            let last =
                self.table.copy_after(after, self.end.as_deref(), self.max_lsn, CURSOR_CHUNK_RECORDS, &mut self.buffer);
            self.position = last.map_or(Position::End, Position::After);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, lsn: u64, value: &str) -> Record {
        Record {
            key: Bytes::copy_from_slice(key.as_bytes()),
            lsn: Lsn(lsn),
            hlc: Hlc(lsn),
            kind: RecordKind::Put,
            expires_at_ms: 0,
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    #[test]
    fn get_names_snapshot_sees_version_at_it() {
        let table = Memtable::new(WalSeq(1));
        for lsn in [5, 2, 9, 7] {
            table.insert(record("k", lsn, &lsn.to_string()));
        }
        let at = |lsn| table.get(b"k", Lsn(lsn)).map(|found| found.lsn.0);
        assert_eq!([at(1), at(2), at(6), at(8), at(100)], [None, Some(2), Some(5), Some(7), Some(9)]);
    }

    #[test]
    fn insert_same_record_twice_counts_once() {
        let table = Memtable::new(WalSeq(1));
        for lsn in [3, 3, 2, 2, 4] {
            table.insert(record("k", lsn, "v"));
        }
        assert_eq!(table.records.get(), 3);
    }

    #[test]
    fn cursor_insert_while_iterating_returns_all_old_records_in_order() {
        let table = Rc::new(Memtable::new(WalSeq(1)));
        for index in (0..500).step_by(2) {
            table.insert(record(&format!("{index:04}"), index + 1, "v"));
        }
        let mut cursor = MemtableCursor::new(table.clone(), Bytes::from_static(b"0100"), None, Lsn(1_000));
        let mut seen: Vec<Bytes> = Vec::new();
        while cursor.advance() {
            seen.push(cursor.buffer[0].key.clone());
            let count = seen.len() as u64;
            table.insert(record(&format!("{:04}", count * 3 % 500), 2_000 + count, "new"));
        }
        assert_eq!(seen.len(), 200);
        assert!(seen.is_sorted());
    }
}
