//! Data blocks: an rkyv archive of struct-of-arrays primitive vectors.
//!
//! [`VerifiedBlock::new`] is the only way to a readable block. It compares the crc32c with the parent's and validates
//! the archive and its meaning once; every access after that is unchecked.
//!
//! A point lookup finds its record by *tags*: one byte of each record's key hash, eight compared at a time. They are
//! made when the block is verified and not stored: nothing on disk can disagree with the keys, and the hashing costs
//! a few per cent of the verification.

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use crate::error::{Error, Result};
use crate::io::{Bug, planted};
use crate::record::{RecordKind, RecordView};
use crate::types::{Hlc, Lsn};

use super::filter::key_hash;

/// Columns of records; the archive's root. The field order is the format.
#[derive(Archive, Serialize, Debug, Default)]
pub(crate) struct Columns {
    /// Keys, one after another.
    pub key_bytes: Vec<u8>,
    /// End of each key in `key_bytes`.
    pub key_ends: Vec<u32>,
    /// Values, one after another.
    pub value_bytes: Vec<u8>,
    /// End of each value in `value_bytes`.
    pub value_ends: Vec<u32>,
    /// LSN of each record.
    pub lsns: Vec<u64>,
    /// Timestamp of each record.
    pub hlcs: Vec<u64>,
    /// Deadlines in milliseconds; empty when no record of the block has one.
    pub expiries: Vec<u64>,
    /// [`RecordKind`] of each record.
    pub kinds: Vec<u8>,
}

impl Columns {
    pub fn len(&self) -> usize {
        self.lsns.len()
    }

    pub fn push(&mut self, record: RecordView<'_>) {
        self.key_bytes.extend_from_slice(record.key);
        self.key_ends.push(self.key_bytes.len() as u32);
        self.value_bytes.extend_from_slice(record.value);
        self.value_ends.push(self.value_bytes.len() as u32);
        if record.expires_at_ms != 0 && self.expiries.is_empty() {
            self.expiries.resize(self.lsns.len(), 0);
        }
        if record.expires_at_ms != 0 || !self.expiries.is_empty() {
            self.expiries.push(record.expires_at_ms);
        }
        self.lsns.push(record.lsn.0);
        self.hlcs.push(record.hlc.0);
        self.kinds.push(record.kind as u8);
    }

    pub fn clear(&mut self) {
        self.key_bytes.clear();
        self.key_ends.clear();
        self.value_bytes.clear();
        self.value_ends.clear();
        self.lsns.clear();
        self.hlcs.clear();
        self.expiries.clear();
        self.kinds.clear();
    }

    /// Bytes the archive will have, but for its fixed part.
    pub fn estimated_len(&self) -> usize {
        self.key_bytes.len() + self.value_bytes.len() + self.len() * 25 + self.expiries.len() * 8 + 64
    }

    pub fn archive(&self) -> Result<AlignedVec> {
        rkyv::to_bytes::<rancor::Error>(self)
            .map_err(|cause| Error::Invalid { what: format!("records do not fit an archive: {cause}") })
    }
}

/// Checks an archive's structure and meaning: ends rise and end where the bytes do, columns are equally long, kinds
/// exist, no key is empty.
pub(crate) fn check_columns(bytes: &[u8]) -> std::result::Result<&ArchivedColumns, String> {
    let columns = rkyv::access::<ArchivedColumns, rancor::Error>(bytes).map_err(|cause| cause.to_string())?;
    let count = columns.lsns.len();
    let lengths = [columns.key_ends.len(), columns.value_ends.len(), columns.hlcs.len(), columns.kinds.len()];
    if lengths.iter().any(|len| *len != count) || !(columns.expiries.is_empty() || columns.expiries.len() == count) {
        return Err(format!("columns of unequal length: {count} LSNs against {lengths:?}"));
    }
    let rises = |ends: &[rkyv::rend::u32_le], total: usize, step_min: u32| {
        let mut previous = 0;
        ends.iter().all(|end| {
            let ok = end.to_native() >= previous + step_min;
            previous = end.to_native();
            ok
        }) && previous as usize == total
    };
    if !rises(&columns.key_ends, columns.key_bytes.len(), 1) {
        return Err("key ends do not rise to the length of the key bytes".into());
    }
    if !rises(&columns.value_ends, columns.value_bytes.len(), 0) {
        return Err("value ends do not rise to the length of the value bytes".into());
    }
    if let Some(kind) = columns.kinds.iter().find(|kind| RecordKind::try_from(**kind).is_err()) {
        return Err(format!("unknown record kind {kind}"));
    }
    Ok(columns)
}

impl ArchivedColumns {
    pub(crate) fn key(&self, index: usize) -> &[u8] {
        slice_of(&self.key_bytes, &self.key_ends, index)
    }

    pub(crate) fn record(&self, index: usize) -> RecordView<'_> {
        RecordView {
            key: self.key(index),
            lsn: Lsn(self.lsns[index].to_native()),
            hlc: Hlc(self.hlcs[index].to_native()),
            // Checked when the block was verified.
            kind: if self.kinds[index] == RecordKind::Put as u8 { RecordKind::Put } else { RecordKind::Delete },
            expires_at_ms: self.expiries.get(index).map_or(0, |expiry| expiry.to_native()),
            value: slice_of(&self.value_bytes, &self.value_ends, index),
        }
    }
}

fn slice_of<'a>(bytes: &'a [u8], ends: &[rkyv::rend::u32_le], index: usize) -> &'a [u8] {
    let start = if index == 0 { 0 } else { ends[index - 1].to_native() as usize };
    &bytes[start..ends[index].to_native() as usize]
}

/// A data block whose checksum, structure and meaning have been checked.
#[derive(Debug)]
pub struct VerifiedBlock {
    /// Never changed after verification.
    bytes: AlignedVec,
    /// Tag of each record, eight to a word, the first in the lowest byte.
    tags: Box<[u64]>,
}

/// The tag of a key with this hash.
fn tag_of(hash: u64) -> u8 {
    (hash >> 24) as u8
}

fn tags_of(columns: &ArchivedColumns) -> Box<[u64]> {
    let mut tags = vec![0; columns.lsns.len().div_ceil(8)].into_boxed_slice();
    for index in 0..columns.lsns.len() {
        tags[index / 8] |= u64::from(tag_of(key_hash(columns.key(index)))) << (index % 8 * 8);
    }
    tags
}

/// Marks (in its top bit) each byte of `word` that equals `tag`; a byte above a marked one may be marked in error.
fn matching_bytes(word: u64, tag: u8) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let difference = word ^ (ONES * u64::from(tag));
    difference.wrapping_sub(ONES) & !difference & (ONES << 7)
}

impl VerifiedBlock {
    /// Verifies `bytes` against the parent's checksum.
    ///
    /// # Errors
    /// What is wrong, without the place; the caller knows the file and the offset.
    pub fn new(bytes: AlignedVec, expected_crc: u32) -> std::result::Result<VerifiedBlock, String> {
        let crc = crc32c::crc32c(&bytes);
        if crc != expected_crc && !planted(Bug::SkipChecksum) {
            return Err(format!("block checksum {crc:08x}, its index says {expected_crc:08x}"));
        }
        let columns = check_columns(&bytes)?;
        let ordered = (1..columns.lsns.len()).all(|index| {
            let (previous, next) = (columns.record(index - 1), columns.record(index));
            (previous.key, std::cmp::Reverse(previous.lsn)) < (next.key, std::cmp::Reverse(next.lsn))
        });
        if !ordered {
            return Err("records out of order".into());
        }
        let tags = tags_of(columns);
        Ok(VerifiedBlock { bytes, tags })
    }

    fn columns(&self) -> &ArchivedColumns {
        // SAFETY: `new` is the only constructor; it validated exactly these bytes as this type, and nothing changes
        // them afterwards. `AlignedVec` keeps the alignment under which they were validated.
        unsafe { rkyv::access_unchecked::<ArchivedColumns>(&self.bytes) }
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns().lsns.len()
    }

    /// Whether the block holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the block takes, as counted by the cache.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.capacity() + self.tags.len() * 8 + size_of::<VerifiedBlock>()
    }

    /// The record at `index`.
    ///
    /// # Panics
    /// When `index >= len()`.
    #[must_use]
    pub fn record(&self, index: usize) -> RecordView<'_> {
        self.columns().record(index)
    }

    /// Index of the first record whose key is at or after `key`.
    #[must_use]
    pub fn seek(&self, key: &[u8]) -> usize {
        let columns = self.columns();
        let (mut low, mut high) = (0, columns.lsns.len());
        while low < high {
            let middle = low.midpoint(high);
            if columns.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Index of the newest version of `key` at or below `max_lsn`; `hash` is the key's.
    /// Cost: independent of the number of records but for one step per eight of them.
    pub(crate) fn find(&self, key: &[u8], hash: u64, max_lsn: Lsn) -> Option<usize> {
        let columns = self.columns();
        let count = columns.lsns.len();
        let first = self.first_version(columns, key, tag_of(hash))?;
        (first..count)
            .take_while(|index| *index == first || columns.key(*index) == key)
            .find(|index| columns.lsns[*index].to_native() <= max_lsn.0)
    }

    /// Index of the first record of `key`.
    fn first_version(&self, columns: &ArchivedColumns, key: &[u8], tag: u8) -> Option<usize> {
        for (position, word) in self.tags.iter().enumerate() {
            let mut marked = matching_bytes(*word, tag);
            while marked != 0 {
                let index = position * 8 + marked.trailing_zeros() as usize / 8;
                // Zeros behind the last record may match as well.
                if index < columns.lsns.len() && columns.key(index) == key {
                    return Some(index);
                }
                marked &= marked - 1;
            }
        }
        None
    }
}

/// A record of a block that is kept in memory as long as this lives.
#[derive(Clone, Debug)]
pub struct BlockRecord {
    block: std::rc::Rc<VerifiedBlock>,
    index: usize,
}

impl BlockRecord {
    pub(super) fn new(block: std::rc::Rc<VerifiedBlock>, index: usize) -> BlockRecord {
        BlockRecord { block, index }
    }

    /// The record; nothing is copied.
    #[must_use]
    pub fn view(&self) -> RecordView<'_> {
        self.block.record(self.index)
    }
}
