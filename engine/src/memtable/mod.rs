//! Ordered, multi-version, single-threaded table of the newest records of a partition.
//!
//! Keys and versions lie in an arena, found by hash (points) and by order (ranges). A key's versions form a chain, newest
//! first. Writers insert at any LSN (a delta of a shadow may bring an older record after a newer one); readers name the
//! largest LSN that they may see. What was inserted never moves: records are lent, and cursors survive inserts.
//!
//! Two indexes, since a lookup that finds nothing, as in all memtables but one, then costs one cache miss, and an update of
//! a key that is there already no search in the order.

mod arena;
mod hash;
mod order;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;

use crate::erasure::{self, Erasure, Erasures};
use crate::record::{RecordKind, RecordView};
use crate::table::HashedKey;
use crate::types::{Hlc, Lsn, WalSeq};

pub(crate) use arena::ChunkStock;
use arena::{Arena, NodeRef};
use hash::HashIndex;
use order::{Order, Place};

/// Word of a key's node: its newest version.
const KEY_NEWEST: usize = 0;
/// Words of a version's node: the next older version (lower half) and the kind (upper half), then the numbers.
const VERSION_LINK: usize = 0;
const VERSION_LSN: usize = 1;
const VERSION_HLC: usize = 2;
const VERSION_EXPIRES: usize = 3;

/// The table. Interior mutability; what it lends stays valid while records are inserted.
#[derive(Debug)]
pub struct Memtable {
    arena: Arena,
    hash: RefCell<HashIndex>,
    order: RefCell<Order>,
    records: Cell<usize>,
    max_lsn: Cell<Lsn>,
    first_seq: WalSeq,
    erasures: Erasures,
    erasure_bytes: Cell<usize>,
}

/// A version in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRef {
    key: NodeRef,
    version: NodeRef,
}

impl Memtable {
    /// An empty table whose first record will lie in WAL batch `first_seq` or later.
    #[must_use]
    pub fn new(first_seq: WalSeq) -> Memtable {
        Memtable {
            arena: Arena::default(),
            hash: RefCell::default(),
            order: RefCell::default(),
            records: Cell::new(0),
            max_lsn: Cell::default(),
            first_seq,
            erasures: Erasures::default(),
            erasure_bytes: Cell::new(0),
        }
    }

    /// As [`Memtable::new`], in what earlier tables left in `stock`.
    pub(crate) fn with_stock(first_seq: WalSeq, stock: &Rc<ChunkStock>) -> Memtable {
        Memtable { arena: Arena::with_stock(Rc::clone(stock)), ..Memtable::new(first_seq) }
    }

    /// Inserts a copy of a record; one that is there already (same key and LSN) changes nothing.
    pub fn insert(&self, record: RecordView<'_>) {
        self.insert_above(record, Lsn(0));
    }

    /// As [`Memtable::insert`], when nobody reads below `horizon` any more: of the key's versions at or below it the
    /// newest stays and older ones are let go. Their memory stays taken, but a key that is written all the time would
    /// make everyone walk a long chain. Returns the key's hash; `None` for a range deletion, which is of many keys.
    pub fn insert_above(&self, record: RecordView<'_>, horizon: Lsn) -> Option<u64> {
        if record.kind == RecordKind::RangeDelete {
            self.insert_erasure(Erasure::of_record(record));
            return None;
        }
        let key = HashedKey::from(record.key);
        let node = match self.find_key(key) {
            Some(node) => node,
            None => self.add_key(key),
        };
        // The version before which the record belongs, and the one behind it.
        let (mut newer, mut older) = (None, self.newest(node));
        while let Some(version) = older
            && self.lsn(version) > record.lsn
        {
            (newer, older) = (Some(version), self.older(version));
        }
        if older.is_some_and(|version| self.lsn(version) == record.lsn) {
            return Some(key.hash);
        }
        let added = self.add_version(record, older);
        match newer {
            None => self.arena.set_word(node, KEY_NEWEST, u64::from(NodeRef::pack(Some(added)))),
            Some(newer) => self.arena.set_word(newer, VERSION_LINK, pack_link(Some(added), self.kind(newer))),
        }
        self.records.set(self.records.get() + 1);
        self.max_lsn.set(self.max_lsn.get().max(record.lsn));
        self.cut(node, horizon);
        Some(key.hash)
    }

    /// Lets go of the versions of a key behind the newest one at or below `horizon`.
    fn cut(&self, key: NodeRef, horizon: Lsn) {
        let mut next = self.newest(key);
        while let Some(version) = next {
            if self.lsn(version) <= horizon {
                self.arena.set_word(version, VERSION_LINK, pack_link(None, self.kind(version)));
                return;
            }
            next = self.older(version);
        }
    }

    fn insert_erasure(&self, erasure: Erasure) {
        let (bytes, lsn) = (erasure::memory_bytes(&erasure), erasure.lsn);
        if self.erasures.insert(erasure) {
            self.erasure_bytes.set(self.erasure_bytes.get() + bytes);
            self.records.set(self.records.get() + 1);
            self.max_lsn.set(self.max_lsn.get().max(lsn));
        }
    }

    /// The range deletions in the table.
    pub(crate) fn erasures(&self) -> &Erasures {
        &self.erasures
    }

    /// The newest version of `key` at or below `max_lsn`, tombstones included; range deletions are not looked at.
    #[must_use]
    pub fn get(&self, key: HashedKey<'_>, max_lsn: Lsn) -> Option<VersionRef> {
        let key = self.find_key(key)?;
        self.visible_at(key, max_lsn)
    }

    /// The record of a version of this table.
    #[must_use]
    pub fn record(&self, at: VersionRef) -> RecordView<'_> {
        RecordView {
            key: self.arena.payload(at.key),
            lsn: self.lsn(at.version),
            hlc: Hlc(self.arena.word(at.version, VERSION_HLC)),
            kind: self.kind(at.version),
            expires_at_ms: self.arena.word(at.version, VERSION_EXPIRES),
            value: self.arena.payload(at.version),
        }
    }

    /// Bytes of memory taken, counted against the memory budget.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.bytes() + self.hash.borrow().bytes() + self.order.borrow().bytes() + self.erasure_bytes.get()
    }

    /// Frees some of the memory, for a table that nobody reads any more; false once all of it is gone. To give 8 MiB back
    /// to the system takes half a millisecond: the caller lets others run in between.
    pub(crate) fn shed(&mut self) -> bool {
        *self.hash.get_mut() = HashIndex::default();
        self.order.get_mut().shed() || self.arena.shed()
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

    /// Number of records.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records.get()
    }

    /// The `count`-th key below `end`, counted back from it; `None` if there are fewer. Deleted keys count.
    pub(crate) fn key_before(&self, end: Option<&[u8]>, count: usize) -> Option<Bytes> {
        let node = self.order.borrow().back(end, count.max(1), &self.arena)?;
        Some(Bytes::copy_from_slice(self.arena.payload(node)))
    }

    /// Calls `visit` with each key and the LSN of its newest version.
    pub fn for_each_key(&self, mut visit: impl FnMut(&[u8], Lsn)) {
        for key in self.order.borrow().iter() {
            if let Some(newest) = self.newest(key) {
                visit(self.arena.payload(key), self.lsn(newest));
            }
        }
    }

    fn find_key(&self, key: HashedKey<'_>) -> Option<NodeRef> {
        self.hash.borrow().find(key.hash, |node| self.arena.payload(node) == key.bytes)
    }

    fn add_key(&self, key: HashedKey<'_>) -> NodeRef {
        let node = self.arena.add([0], key.bytes);
        self.hash.borrow_mut().insert(key.hash, node);
        self.order.borrow_mut().insert(node, &self.arena);
        node
    }

    fn add_version(&self, record: RecordView<'_>, older: Option<NodeRef>) -> NodeRef {
        let link = pack_link(older, record.kind);
        self.arena.add([link, record.lsn.0, record.hlc.0, record.expires_at_ms], record.value)
    }

    fn newest(&self, key: NodeRef) -> Option<NodeRef> {
        NodeRef::unpack(self.arena.word(key, KEY_NEWEST) as u32)
    }

    fn older(&self, version: NodeRef) -> Option<NodeRef> {
        NodeRef::unpack(self.arena.word(version, VERSION_LINK) as u32)
    }

    fn kind(&self, version: NodeRef) -> RecordKind {
        let kind = RecordKind::try_from((self.arena.word(version, VERSION_LINK) >> 32) as u8);
        kind.unwrap_or_else(|kind| unreachable!("INV-ARENA: a version of kind {kind}"))
    }

    fn lsn(&self, version: NodeRef) -> Lsn {
        Lsn(self.arena.word(version, VERSION_LSN))
    }

    fn visible_at(&self, key: NodeRef, max_lsn: Lsn) -> Option<VersionRef> {
        let mut next = self.newest(key);
        while let Some(version) = next {
            if self.lsn(version) <= max_lsn {
                return Some(VersionRef { key, version });
            }
            next = self.older(version);
        }
        None
    }
}

fn pack_link(older: Option<NodeRef>, kind: RecordKind) -> u64 {
    (kind as u64) << 32 | u64::from(NodeRef::pack(older))
}

/// Lines of a record that a cursor asks the processor for before it is read.
const RECORD_LINES: usize = 6;

/// Iterates a key range of a memtable in (key ascending, LSN descending) order.
pub struct MemtableCursor {
    table: Rc<Memtable>,
    start: Bytes,
    end: Option<Bytes>,
    max_lsn: Lsn,
    /// Only the newest version of a key is wanted.
    newest_only: bool,
    /// Behind the key it stands on; `None` before the first.
    place: Option<Place>,
    current: Option<VersionRef>,
}

impl MemtableCursor {
    /// A cursor over `[start, end)` that sees versions at or below `max_lsn`.
    #[must_use]
    pub fn new(table: Rc<Memtable>, start: Bytes, end: Option<Bytes>, max_lsn: Lsn) -> MemtableCursor {
        MemtableCursor { table, start, end, max_lsn, newest_only: false, place: None, current: None }
    }

    /// The same cursor, but of each key's versions only the newest that it sees.
    #[must_use]
    pub fn newest_only(self, newest_only: bool) -> MemtableCursor {
        MemtableCursor { newest_only, ..self }
    }

    /// Moves to the next record; false at the end, and from then on.
    pub fn advance(&mut self) -> bool {
        if !self.newest_only
            && let Some(VersionRef { key, version }) = self.current
            && let Some(version) = self.table.older(version)
        {
            self.current = Some(VersionRef { key, version });
            return true;
        }
        self.current = self.next_key();
        self.current.is_some()
    }

    /// The record it stands on.
    ///
    /// # Panics
    /// When the last [`MemtableCursor::advance`] did not return true.
    #[must_use]
    pub fn current(&self) -> RecordView<'_> {
        match self.current {
            Some(version) => self.table.record(version),
            None => unreachable!("INV-ITER: current follows a true advance"),
        }
    }

    /// The key of that record.
    ///
    /// # Panics
    /// As [`MemtableCursor::current`].
    #[must_use]
    pub fn current_key(&self) -> &[u8] {
        match self.current {
            Some(version) => self.table.arena.payload(version.key),
            None => unreachable!("INV-ITER: current follows a true advance"),
        }
    }

    /// The newest visible version of the next key that has one.
    fn next_key(&mut self) -> Option<VersionRef> {
        let arena = &self.table.arena;
        let order = self.table.order.borrow();
        let mut last = self.current.map(|version| version.key);
        loop {
            let place = match (self.place, last) {
                (Some(place), _) if !order.is_stale(place) => place,
                (Some(_), Some(key)) => order.seek(arena.payload(key), true, arena),
                // At the end already.
                (Some(_), None) => return None,
                (None, _) => order.seek(&self.start, false, arena),
            };
            let found = order.next(place);
            self.place = Some(found.map_or(place, |(_, behind)| behind));
            let key = found.map(|(key, _)| key)?;
            if self.end.as_ref().is_some_and(|end| arena.payload(key) >= end.as_ref()) {
                return None;
            }
            if let Some(found) = self.table.visible_at(key, self.max_lsn) {
                // Other sources' records mostly come between this one and the next.
                arena.prefetch(found.version, RECORD_LINES);
                if let Some((next, _)) = self.place.and_then(|place| order.next(place)) {
                    arena.prefetch(next, 1);
                }
                return Some(found);
            }
            last = Some(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::record::Record;
    use crate::table::tests_support::arbitrary_records;

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
    fn insert_above_a_horizon_keeps_what_readers_from_there_on_see() {
        let table = Rc::new(Memtable::new(WalSeq(1)));
        for (lsn, horizon) in [(2, 0), (4, 2), (6, 3), (8, 7)] {
            table.insert_above(record("k", lsn, &lsn.to_string()).view(), Lsn(horizon));
        }
        let at = |lsn| table.get(b"k"[..].into(), Lsn(lsn)).map(|found| table.record(found).lsn.0);
        assert_eq!([at(6), at(7), at(8), at(100)], [Some(6), Some(6), Some(8), Some(8)]);
        assert_eq!(at(5), None, "nobody reads there any more");
        let mut cursor = MemtableCursor::new(Rc::clone(&table), Bytes::new(), None, Lsn(100)).newest_only(true);
        assert!(cursor.advance() && cursor.current().lsn == Lsn(8) && !cursor.advance());
    }

    #[test]
    fn get_names_snapshot_sees_version_at_it() {
        let table = Memtable::new(WalSeq(1));
        for lsn in [5, 2, 9, 7] {
            table.insert(record("k", lsn, &lsn.to_string()).view());
        }
        let at = |lsn| table.get(b"k"[..].into(), Lsn(lsn)).map(|found| table.record(found).lsn.0);
        assert_eq!([at(1), at(2), at(6), at(8), at(100)], [None, Some(2), Some(5), Some(7), Some(9)]);
    }

    #[test]
    fn insert_same_record_twice_counts_once() {
        let table = Memtable::new(WalSeq(1));
        for lsn in [3, 3, 2, 2, 4] {
            table.insert(record("k", lsn, "v").view());
        }
        assert_eq!(table.records.get(), 3);
    }

    #[test]
    fn cursor_insert_while_iterating_returns_all_old_records_in_order() {
        let table = Rc::new(Memtable::new(WalSeq(1)));
        for index in (0..500).step_by(2) {
            table.insert(record(&format!("{index:04}"), index + 1, "v").view());
        }
        let mut cursor = MemtableCursor::new(table.clone(), Bytes::from_static(b"0100"), None, Lsn(1_000));
        let mut seen: Vec<Bytes> = Vec::new();
        while cursor.advance() {
            seen.push(cursor.current().to_record().key);
            let count = seen.len() as u64;
            table.insert(record(&format!("{:04}", count * 3 % 500), 2_000 + count, "new").view());
        }
        assert_eq!(seen.len(), 200);
        assert!(seen.is_sorted());
    }

    /// What a reader at `lsn` finds between two keys, by the model.
    fn expected(model: &BTreeMap<(Bytes, std::cmp::Reverse<u64>), Record>, lsn: u64) -> Vec<Record> {
        model.values().filter(|record| record.lsn.0 <= lsn).cloned().collect()
    }

    proptest! {
        #[test]
        fn table_equals_model_at_every_lsn(
            records in arbitrary_records(400), order in any::<u64>(), lsn in 0..60u64,
            start in prop::collection::vec(0..4u8, 0..5), end in prop::option::of(prop::collection::vec(0..4u8, 1..5)),
        ) {
            let mut shuffled = records.clone();
            fastrand::Rng::with_seed(order).shuffle(&mut shuffled);
            let table = Rc::new(Memtable::new(WalSeq(1)));
            let mut model = BTreeMap::new();
            for record in shuffled {
                table.insert(record.view());
                table.insert(record.view());
                model.insert((record.key.clone(), std::cmp::Reverse(record.lsn.0)), record);
            }
            prop_assert_eq!(table.records.get(), records.len());
            for record in &records {
                let newest = records.iter().find(|other| other.key == record.key && other.lsn.0 <= lsn);
                let found = table.get(record.key.as_ref().into(), Lsn(lsn)).map(|at| table.record(at));
                prop_assert_eq!(found, newest.map(Record::view));
            }
            let in_range = |record: &Record| record.key >= start && end.as_ref().is_none_or(|end| record.key < end);
            let expected: Vec<Record> = expected(&model, lsn).into_iter().filter(in_range).collect();
            let back = Rc::clone(&table);
            let mut cursor = MemtableCursor::new(table, start.clone().into(), end.clone().map(Bytes::from), Lsn(lsn));
            let mut found = Vec::new();
            while cursor.advance() {
                found.push(cursor.current().to_record());
            }
            prop_assert!(!cursor.advance(), "the end is the end");
            prop_assert_eq!(found, expected);
            let mut keys: Vec<Bytes> = records.iter().map(|record| record.key.clone()).collect();
            keys.dedup();
            keys.retain(|key| end.as_ref().is_none_or(|end| key < end));
            for count in [1, 2, 7, keys.len().max(1), keys.len() + 1] {
                let expected = keys.len().checked_sub(count).map(|index| keys[index].clone());
                prop_assert_eq!(back.key_before(end.as_deref(), count), expected);
            }
        }
    }

    #[test]
    fn many_keys_in_any_order_come_out_sorted() {
        for pattern in 0..3 {
            let table = Rc::new(Memtable::new(WalSeq(1)));
            let mut random = fastrand::Rng::with_seed(pattern);
            let mut model = BTreeMap::new();
            for index in 0..20_000_u64 {
                let number = [index, 1 << 40 | (30_000 - index), random.u64(..)][pattern as usize];
                let key = format!("{}-{number:020}", if number % 5 == 0 { "other" } else { "key" });
                table.insert(record(&key, index + 1, "v").view());
                model.insert(key, index + 1);
            }
            let mut cursor = MemtableCursor::new(table.clone(), Bytes::new(), None, Lsn(u64::MAX));
            for (key, lsn) in &model {
                assert!(cursor.advance());
                assert_eq!((cursor.current().key, cursor.current().lsn.0), (key.as_bytes(), *lsn));
            }
            assert!(!cursor.advance());
            let per_record = table.bytes() / model.len();
            assert!(per_record < 200, "{per_record} bytes a record of 30");
        }
    }
}
