//! Rows that are read again and again, whole and found by their key's hash alone.
//!
//! A read of a cached block follows one pointer after another: segment, index, slot, directory, record. A hot row lies
//! where its hash says, so that everything a reader wants of it is fetched at once.
//!
//! - `INV-ROW`: a row is what a reader of now finds: the newest version of its key, live, without a deadline, when no
//!   memtable held the key. Each write of the key drops it, and whatever else changes what readers find (a range
//!   deletion, a segment from another host, a partition that comes or goes) drops all of them. Flush and compaction
//!   change where a version lies, and no row.
//!
//! A place belongs to the keys of one hash. A row comes in when its key was the last but one to be missed there, and
//! leaves when its uses have been outweighed by those of others.

use std::cell::{Cell, OnceCell, Ref, RefCell};
use std::rc::Rc;

use crate::memory::prefetch;
use crate::table::{Charge, HashedKey, ShardBlockCache};
use crate::types::PartitionId;

/// Bytes of key and value of a row at most.
const ROW_BYTES_MAX: usize = 344;
/// Uses that a row is credited with at most.
const USES_MAX: u8 = 15;
/// Reads that look for a row before it is decided whether the next ones do too.
const LOOKS: u32 = 4096;
/// As many of them have to find one: a look in vain costs a ninth of a read from a cached block, and a row saves half of it.
const FOUND_MIN: u32 = LOOKS / 8;
/// Reads that do without a look where fewer did.
const PAUSE: u32 = 15 * LOOKS;

#[repr(align(64))]
#[derive(Debug)]
struct Row {
    /// The key's hash, its lowest bit set; 0 if there is no row.
    tag: Cell<u64>,
    partition: Cell<PartitionId>,
    /// Part of the hash of the last key that was missed here.
    candidate: Cell<u32>,
    /// Index of the segment that it was found in; the layout may have changed since.
    segment: Cell<u32>,
    key_len: Cell<u16>,
    value_len: Cell<u16>,
    uses: Cell<u8>,
    /// Key and value.
    bytes: RefCell<[u8; ROW_BYTES_MAX]>,
}

impl Default for Row {
    fn default() -> Row {
        Row {
            tag: Cell::new(0),
            partition: Cell::new(PartitionId(0)),
            candidate: Cell::new(0),
            segment: Cell::new(0),
            key_len: Cell::new(0),
            value_len: Cell::new(0),
            uses: Cell::new(0),
            bytes: RefCell::new([0; ROW_BYTES_MAX]),
        }
    }
}

/// A row while it is read.
pub(crate) struct HotRow<'a> {
    bytes: Ref<'a, [u8; ROW_BYTES_MAX]>,
    key_len: usize,
    value_len: usize,
    segment: usize,
}

impl HotRow<'_> {
    pub fn value(&self) -> &[u8] {
        &self.bytes[self.key_len..self.key_len + self.value_len]
    }

    /// Index of the segment that the row was in.
    pub fn segment(&self) -> usize {
        self.segment
    }
}

/// The hot rows of one shard.
#[derive(Debug)]
pub(crate) struct HotRows {
    /// Rows there may be; a power of two.
    count: usize,
    /// Made with the first row, and charged to the cache.
    rows: OnceCell<(Box<[Row]>, Charge)>,
    cache: Rc<ShardBlockCache>,
    attention: Attention,
}

/// Whether reads look for rows: where keys are alike they find none, and only some try.
#[derive(Debug)]
struct Attention {
    looks: Cell<bool>,
    /// Reads until that is decided anew.
    left: Cell<u32>,
    /// Rows found since it was.
    found: Cell<u32>,
}

impl Attention {
    /// Counts a read; whether it is to look.
    fn is_due(&self) -> bool {
        if self.left.get() == 0 {
            self.decide();
        }
        self.left.set(self.left.get() - 1);
        self.looks.get()
    }

    #[cold]
    fn decide(&self) {
        let looks = !self.looks.get() || self.found.take() >= FOUND_MIN;
        self.looks.set(looks);
        self.left.set(if looks { LOOKS } else { PAUSE });
    }
}

impl HotRows {
    /// Up to `bytes` of rows.
    pub fn new(bytes: usize, cache: Rc<ShardBlockCache>) -> HotRows {
        let count = (bytes / size_of::<Row>()).max(2);
        let attention = Attention { looks: Cell::new(true), left: Cell::new(LOOKS), found: Cell::new(0) };
        HotRows { count: 1 << count.ilog2(), rows: OnceCell::new(), cache, attention }
    }

    fn row(&self, partition: PartitionId, hash: u64) -> Option<&Row> {
        let (rows, _) = self.rows.get()?;
        Some(&rows[self.place(partition, hash)])
    }

    fn place(&self, partition: PartitionId, hash: u64) -> usize {
        // Partitions of one shard may hold equal keys.
        let mixed = (hash ^ partition.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 20;
        mixed as usize & (self.count - 1)
    }

    /// The row of a key; `None` also while rows are found too rarely to look for them.
    pub fn find(&self, partition: PartitionId, key: HashedKey<'_>) -> Option<HotRow<'_>> {
        if !self.attention.is_due() {
            return None;
        }
        let row = self.row(partition, key.hash)?;
        if row.tag.get() != tag_of(key.hash) || row.partition.get() != partition {
            return None;
        }
        let (key_len, value_len) = (usize::from(row.key_len.get()), usize::from(row.value_len.get()));
        let bytes = row.bytes.try_borrow().ok()?;
        prefetch::<5>(&bytes[key_len..key_len + value_len]);
        if bytes[..key_len] != *key.bytes {
            return None;
        }
        row.uses.set((row.uses.get() + 1).min(USES_MAX));
        self.attention.found.update(|found| found + 1);
        Some(HotRow { bytes, key_len, value_len, segment: row.segment.get() as usize })
    }

    /// Notes that a key was read from a table; whether its row is to come in.
    pub fn wants(&self, partition: PartitionId, key: HashedKey<'_>, value_len: usize) -> bool {
        if key.bytes.len() + value_len > ROW_BYTES_MAX || !self.attention.looks.get() {
            return false;
        }
        let (rows, _) = self.rows.get_or_init(|| {
            let rows: Box<[Row]> = std::iter::repeat_with(Row::default).take(self.count).collect();
            let charge = self.cache.charge(size_of_val(&*rows));
            (rows, charge)
        });
        let row = &rows[self.place(partition, key.hash)];
        let candidate = key.hash as u32;
        if row.candidate.replace(candidate) != candidate {
            return false;
        }
        let uses = row.uses.get();
        row.uses.set(uses.saturating_sub(1));
        row.tag.get() == 0 || uses == 0
    }

    /// Takes a row in (`INV-ROW` is the caller's to see to).
    pub fn fill(&self, partition: PartitionId, key: HashedKey<'_>, value: &[u8], segment: usize) {
        let (key_len, value_len) = (key.bytes.len(), value.len());
        let Some(row) = self.row(partition, key.hash).filter(|_| key_len + value_len <= ROW_BYTES_MAX) else {
            return;
        };
        // While somebody reads the row that is to go, it stays.
        let Ok(mut bytes) = row.bytes.try_borrow_mut() else {
            return;
        };
        bytes[..key_len].copy_from_slice(key.bytes);
        bytes[key_len..key_len + value_len].copy_from_slice(value);
        row.key_len.set(key_len as u16);
        row.value_len.set(value_len as u16);
        row.segment.set(segment as u32);
        row.partition.set(partition);
        row.uses.set(1);
        row.tag.set(tag_of(key.hash));
    }

    /// Drops the row of a key that is written.
    pub fn forget(&self, partition: PartitionId, hash: u64) {
        if let Some(row) = self.row(partition, hash).filter(|row| row.tag.get() == tag_of(hash)) {
            row.tag.set(0);
        }
    }

    /// Whether there may be a row.
    #[cfg(test)]
    fn any(&self) -> bool {
        self.rows.get().is_some()
    }

    /// Drops all rows.
    pub fn forget_all(&self) {
        if let Some((rows, _)) = self.rows.get() {
            rows.iter().for_each(|row| row.tag.set(0));
        }
    }
}

fn tag_of(hash: u64) -> u64 {
    hash | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION: PartitionId = PartitionId(1);

    fn rows() -> HotRows {
        HotRows::new(64 << 10, Rc::new(ShardBlockCache::new(1 << 20)))
    }

    fn value_of(rows: &HotRows, partition: PartitionId, key: &[u8]) -> Option<Vec<u8>> {
        rows.find(partition, key.into()).map(|row| row.value().to_vec())
    }

    /// Reads a key from a table so often that its row comes in.
    fn take_in(rows: &HotRows, key: &[u8], value: &[u8]) {
        for _ in 0..4 {
            if rows.wants(PARTITION, key.into(), value.len()) {
                rows.fill(PARTITION, key.into(), value, 7);
            }
        }
    }

    #[test]
    fn row_comes_in_at_the_second_read_and_goes_with_a_write() {
        let rows = rows();
        assert!(!rows.any() && !rows.wants(PARTITION, b"k"[..].into(), 1));
        assert!(rows.wants(PARTITION, b"k"[..].into(), 1));
        rows.fill(PARTITION, b"k"[..].into(), b"v", 7);
        assert_eq!(value_of(&rows, PARTITION, b"k"), Some(b"v".to_vec()));
        assert_eq!(rows.find(PARTITION, b"k"[..].into()).map(|row| row.segment()), Some(7));
        assert_eq!(value_of(&rows, PartitionId(2), b"k"), None, "another partition's key");
        assert_eq!(value_of(&rows, PARTITION, b"l"), None);
        rows.forget(PARTITION, HashedKey::from(&b"k"[..]).hash);
        assert_eq!(value_of(&rows, PARTITION, b"k"), None);
        take_in(&rows, b"k", b"w");
        rows.forget_all();
        assert_eq!(value_of(&rows, PARTITION, b"k"), None);
    }

    #[test]
    fn only_some_reads_look_while_they_find_nothing() {
        let rows = rows();
        take_in(&rows, b"hot", b"v");
        let finds = |key: &[u8], reads: u32| (0..reads).filter(|_| value_of(&rows, PARTITION, key).is_some()).count();
        assert_eq!(finds(b"hot", FOUND_MIN) + finds(b"cold", LOOKS - FOUND_MIN), FOUND_MIN as usize);
        assert_eq!(finds(b"cold", LOOKS), 0, "enough were found before");
        assert_eq!(finds(b"hot", PAUSE), 0);
        assert!((0..2).all(|_| !rows.wants(PARTITION, b"new"[..].into(), 1)), "nor does one come in");
        assert_eq!(finds(b"hot", 3 * LOOKS), 3 * LOOKS as usize, "found again");
    }

    #[test]
    fn row_being_read_is_not_written_over() {
        let rows = rows();
        take_in(&rows, b"k", b"old");
        let Some(held) = rows.find(PARTITION, b"k"[..].into()) else {
            panic!("the row is there");
        };
        rows.forget(PARTITION, HashedKey::from(&b"k"[..]).hash);
        take_in(&rows, b"k", b"new");
        assert_eq!(held.value(), b"old");
        drop(held);
        assert_eq!(value_of(&rows, PARTITION, b"k"), None);
        take_in(&rows, b"k", b"new");
        assert_eq!(value_of(&rows, PARTITION, b"k"), Some(b"new".to_vec()));
    }

    #[test]
    fn large_rows_stay_out_and_hot_ones_outlive_what_passes() {
        let rows = rows();
        assert!(!rows.wants(PARTITION, b"k"[..].into(), ROW_BYTES_MAX));
        take_in(&rows, b"hot", b"v");
        for number in 0..20_000_u32 {
            let key = number.to_le_bytes();
            for _ in 0..2 {
                if rows.wants(PARTITION, key[..].into(), 1) {
                    rows.fill(PARTITION, key[..].into(), b"x", 0);
                }
            }
            if number.is_multiple_of(20) {
                assert!(value_of(&rows, PARTITION, b"hot").is_some());
            }
        }
    }
}
