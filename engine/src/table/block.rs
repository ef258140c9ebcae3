//! Data blocks: an rkyv archive of struct-of-arrays primitive vectors.
//!
//! [`CheckedBlock`] is the only way to a readable block. It compares the crc32c of the stored bytes with the parent's
//! and validates
//! the archive and its meaning once; every access after that is unchecked.
//!
//! A point lookup goes by a *directory* that is made when the block is verified and kept beside it: one byte of each
//! record's key hash (eight are compared at a time), then where each record's key and value lie. With it the lookup
//! touches one line of tags, one of positions, the key and the value; through the columns alone it would follow ten
//! loads each of which waits for the one before. It takes nine bytes a record. The directory is not stored: nothing on disk can disagree with the
//! keys, and making it costs a few per cent of the verification.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use crate::error::{Error, Result};
use crate::heads::Bound;
use crate::io::{Bug, planted};
use crate::limits::KEY_LEN_MAX;
use crate::memory::{AlignedBytes, LockedMap, prefetch};
use crate::record::{RecordKind, RecordView};
use crate::types::{Hlc, Lsn};

use super::compress::Unpacker;
use super::filter::key_hash;
use super::frames::{Frame, FramePool};

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
            let step = end.to_native().checked_sub(previous);
            previous = end.to_native();
            step.is_some_and(|step| step >= step_min)
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
            kind: kind_of(self.kinds[index]),
            expires_at_ms: self.expiries.get(index).map_or(0, |expiry| expiry.to_native()),
            value: slice_of(&self.value_bytes, &self.value_ends, index),
        }
    }
}

/// The kind of a record of columns that were checked.
fn kind_of(byte: u8) -> RecordKind {
    RecordKind::try_from(byte).unwrap_or_else(|byte| unreachable!("INV-BLOCK: kind {byte} in a checked block"))
}

fn slice_of<'a>(bytes: &'a [u8], ends: &[rkyv::rend::u32_le], index: usize) -> &'a [u8] {
    let start = if index == 0 { 0 } else { ends[index - 1].to_native() as usize };
    &bytes[start..ends[index].to_native() as usize]
}

/// A data block whose checksum, structure and meaning have been checked.
#[derive(Debug)]
pub struct VerifiedBlock {
    /// Never changed after verification.
    memory: Memory,
    count: u32,
    /// No key has two versions in it.
    is_distinct: bool,
}

/// Where a block lies: its archive and its directory.
#[derive(Debug)]
enum Memory {
    /// The archive where it was read, perhaps with others beside it.
    Read { bytes: Rc<AlignedBytes>, start: u32, archive_len: u32, directory: Box<[u64]> },
    /// The directory at the start of the frame, the archive behind it.
    Cached { frame: Frame, directory_words: u32, archive_len: u32 },
    /// The archive where it lies in a table that is kept in memory.
    Resident { map: Arc<LockedMap>, start: usize, archive_len: u32, directory: Box<[u64]> },
}

impl Memory {
    fn archive(&self) -> &[u8] {
        match self {
            Memory::Read { bytes, start, archive_len, .. } => {
                let start = *start as usize;
                &bytes[start..start + *archive_len as usize]
            }
            Memory::Cached { frame, directory_words, archive_len } => {
                let start = archive_start(*directory_words as usize);
                &frame.bytes()[start..start + *archive_len as usize]
            }
            Memory::Resident { map, start, archive_len, .. } => &map.bytes()[*start..*start + *archive_len as usize],
        }
    }

    fn directory(&self) -> &[u64] {
        match self {
            Memory::Read { directory, .. } | Memory::Resident { directory, .. } => directory,
            Memory::Cached { frame, directory_words, .. } => &frame.words()[..*directory_words as usize],
        }
    }
}

/// Where the archive begins in a frame; aligned for it.
fn archive_start(directory_words: usize) -> usize {
    (directory_words * size_of::<u64>()).next_multiple_of(16)
}

/// Where a record's key and value lie, from the archive's start, and what kind of record it is.
///
/// Keys lie one after another, and so do values: a word of the directory says where a record's key and value begin, the
/// next one where they end.
#[derive(Clone, Copy, Debug)]
struct Position {
    key_start: u32,
    key_end: u32,
    value_start: u32,
    value_end: u32,
    is_put: bool,
    has_deadline: bool,
}

/// Marks of a word of the directory, above the start of the key.
const IS_PUT: u64 = 1 << 63;
const HAS_DEADLINE: u64 = 1 << 62;
/// Keys lie below this in an archive.
const KEY_START_MAX: usize = (1 << 30) - 1;

impl Position {
    /// Of the record whose word is the first.
    fn between(word: u64, next: u64) -> Position {
        let key_start = |word: u64| (word >> 32) as u32 & KEY_START_MAX as u32;
        Position {
            key_start: key_start(word),
            key_end: key_start(next),
            value_start: word as u32,
            value_end: next as u32,
            is_put: word & IS_PUT != 0,
            has_deadline: word & HAS_DEADLINE != 0,
        }
    }

    fn kind(self) -> RecordKind {
        if self.is_put { RecordKind::Put } else { RecordKind::Delete }
    }
}

/// The tag of a key with this hash.
fn tag_of(hash: u64) -> u8 {
    (hash >> 24) as u8
}

/// The directory of checked columns: the tags, the first in the lowest byte of the first word, then a word a record and
/// one behind the last (see [`Position`]).
///
/// Errors: the keys lie too far from the archive's start.
fn directory_of(archive: &[u8], columns: &ArchivedColumns) -> std::result::Result<Box<[u64]>, String> {
    let count = columns.lsns.len();
    let tag_words = count.div_ceil(8);
    let mut directory = vec![0; tag_words + count + 1].into_boxed_slice();
    // The pointer of an empty column may lie anywhere.
    let start_of = |column: &[u8]| match column {
        [] => 0,
        held => held.as_ptr().addr() - archive.as_ptr().addr(),
    };
    let (keys, values) = (start_of(&columns.key_bytes), start_of(&columns.value_bytes));
    if keys + columns.key_bytes.len() > KEY_START_MAX {
        return Err(format!("keys beyond {KEY_START_MAX} bytes"));
    }
    let word = |key_end: usize, value_end: usize| ((keys + key_end) as u64) << 32 | (values + value_end) as u64;
    let (mut key_end, mut value_end) = (0, 0);
    for index in 0..count {
        let mut marks = 0;
        if columns.kinds[index] == RecordKind::Put as u8 {
            marks |= IS_PUT;
        }
        if columns.expiries.get(index).is_some_and(|expiry| expiry.to_native() != 0) {
            marks |= HAS_DEADLINE;
        }
        directory[index / 8] |= u64::from(tag_of(key_hash(columns.key(index)))) << (index % 8 * 8);
        directory[tag_words + index] = word(key_end, value_end) | marks;
        (key_end, value_end) =
            (columns.key_ends[index].to_native() as usize, columns.value_ends[index].to_native() as usize);
    }
    directory[tag_words + count] = word(key_end, value_end);
    Ok(directory)
}

/// What the check of a block's bytes leaves: proof of it, and the directory. May be made on another thread than the one
/// that reads the block.
#[derive(Debug)]
pub(crate) struct CheckedBlock {
    directory: Box<[u64]>,
    count: u32,
    is_distinct: bool,
}

impl CheckedBlock {
    /// Checks checksum, structure, meaning and order.
    ///
    /// Errors: what is wrong, without the place.
    pub fn new(bytes: &[u8], expected_crc: u32) -> std::result::Result<CheckedBlock, String> {
        let crc = crc32c::crc32c(bytes);
        if crc != expected_crc && !planted(Bug::SkipChecksum) {
            return Err(format!("block checksum {crc:08x}, its index says {expected_crc:08x}"));
        }
        CheckedBlock::check(bytes)
    }

    /// Checks structure, meaning and order of bytes whose checksum (or that of their stored form) was right.
    fn check(bytes: &[u8]) -> std::result::Result<CheckedBlock, String> {
        let columns = check_columns(bytes)?;
        let mut is_distinct = true;
        let ordered = (1..columns.lsns.len()).all(|index| match columns.key(index - 1).cmp(columns.key(index)) {
            Ordering::Less => true,
            Ordering::Equal => {
                is_distinct = false;
                columns.lsns[index - 1].to_native() > columns.lsns[index].to_native()
            }
            Ordering::Greater => false,
        });
        if !ordered {
            return Err("records out of order".into());
        }
        if columns.kinds.contains(&(RecordKind::RangeDelete as u8)) {
            return Err("a range deletion in a table".into());
        }
        if (0..columns.lsns.len()).any(|index| columns.key(index).len() > KEY_LEN_MAX) {
            return Err(format!("a key above {KEY_LEN_MAX} bytes"));
        }
        let directory = directory_of(bytes, columns)?;
        Ok(CheckedBlock { directory, count: columns.lsns.len() as u32, is_distinct })
    }
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
    pub fn new(bytes: AlignedBytes, expected_crc: u32) -> std::result::Result<VerifiedBlock, String> {
        let len = bytes.len();
        VerifiedBlock::among(&Rc::new(bytes), 0..len, expected_crc)
    }

    /// Verifies the stored bytes of a compressed block against the parent's checksum, then what is in them.
    ///
    /// # Errors
    /// As [`VerifiedBlock::new`].
    pub(super) fn of_stored(
        stored: &[u8],
        expected_crc: u32,
        unpacker: &Unpacker,
    ) -> std::result::Result<VerifiedBlock, String> {
        let crc = crc32c::crc32c(stored);
        if crc != expected_crc && !planted(Bug::SkipChecksum) {
            return Err(format!("block checksum {crc:08x}, its index says {expected_crc:08x}"));
        }
        let bytes = unpacker.unpack(stored)?;
        let checked = CheckedBlock::check(&bytes)?;
        let len = bytes.len();
        Ok(VerifiedBlock::read(Rc::new(bytes), 0..len, checked))
    }

    /// Verifies the block that lies at `range` of `bytes`, a start that archives may have; it keeps all of them in memory.
    ///
    /// Errors: as [`VerifiedBlock::new`].
    pub(super) fn among(
        bytes: &Rc<AlignedBytes>,
        range: std::ops::Range<usize>,
        expected_crc: u32,
    ) -> std::result::Result<VerifiedBlock, String> {
        let checked = CheckedBlock::new(&bytes[range.clone()], expected_crc)?;
        Ok(VerifiedBlock::read(Rc::clone(bytes), range, checked))
    }

    fn read(bytes: Rc<AlignedBytes>, range: std::ops::Range<usize>, checked: CheckedBlock) -> VerifiedBlock {
        let CheckedBlock { directory, count, is_distinct } = checked;
        let (start, archive_len) = (range.start as u32, range.len() as u32);
        VerifiedBlock { count, is_distinct, memory: Memory::Read { bytes, start, archive_len, directory } }
    }

    /// The block that was checked at `start` of `map`.
    pub(crate) fn resident(map: &Arc<LockedMap>, start: usize, len: usize, checked: CheckedBlock) -> VerifiedBlock {
        let CheckedBlock { directory, count, is_distinct } = checked;
        let memory = Memory::Resident { map: Arc::clone(map), start, archive_len: len as u32, directory };
        VerifiedBlock { count, is_distinct, memory }
    }

    /// The same block in a frame of `pool`.
    pub(super) fn into_frame(self, pool: &Rc<FramePool>) -> VerifiedBlock {
        let (archive, directory) = (self.memory.archive(), self.memory.directory());
        let start = archive_start(directory.len());
        let mut frame = pool.allocate(start + archive.len());
        frame.words_mut()[..directory.len()].copy_from_slice(directory);
        frame.bytes_mut()[start..start + archive.len()].copy_from_slice(archive);
        let (directory_words, archive_len) = (directory.len() as u32, archive.len() as u32);
        VerifiedBlock { memory: Memory::Cached { frame, directory_words, archive_len }, ..self }
    }

    fn columns(&self) -> &ArchivedColumns {
        // SAFETY: `CheckedBlock::new` validated exactly these bytes as this type, alignment included, where they lie or
        // before `into_frame` copied them whole, and nothing changes them afterwards. A frame is aligned to 16 bytes at
        // least, as the type demands at most.
        unsafe { rkyv::access_unchecked::<ArchivedColumns>(self.memory.archive()) }
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether the block holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the block takes, as counted by the cache.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let outside = match &self.memory {
            Memory::Read { archive_len, directory, .. } => *archive_len as usize + directory.len() * size_of::<u64>(),
            Memory::Cached { frame, .. } => frame.bytes().len(),
            Memory::Resident { archive_len, directory, .. } => {
                *archive_len as usize + directory.len() * size_of::<u64>()
            }
        };
        outside + size_of::<VerifiedBlock>()
    }

    /// Where its directory begins.
    pub(super) fn directory_start(&self) -> *const u8 {
        self.memory.directory().as_ptr().cast()
    }

    /// The frame that the block lies in, if it is a pool's.
    pub(super) fn frame(&self) -> Option<&Frame> {
        match &self.memory {
            Memory::Cached { frame, .. } => Some(frame),
            Memory::Read { .. } | Memory::Resident { .. } => None,
        }
    }

    /// The slab of the frame pool that the block lies in.
    pub(super) fn slab(&self) -> Option<u32> {
        self.frame().and_then(Frame::slab)
    }

    /// The record at `index`.
    ///
    /// # Panics
    /// When `index >= len()`.
    #[must_use]
    pub fn record(&self, index: usize) -> RecordView<'_> {
        // Most of it from the directory: two words instead of six columns.
        let (columns, position) = (self.columns(), self.position(index));
        RecordView {
            key: self.key_of(position),
            lsn: Lsn(columns.lsns[index].to_native()),
            hlc: Hlc(columns.hlcs[index].to_native()),
            kind: position.kind(),
            expires_at_ms: if position.has_deadline { columns.expiries[index].to_native() } else { 0 },
            value: self.value_of(position),
        }
    }

    /// The key of the record at `index`.
    #[must_use]
    pub fn key(&self, index: usize) -> &[u8] {
        self.key_of(self.position(index))
    }

    /// Index of the first record whose key is at or after `key`.
    #[must_use]
    pub fn seek(&self, key: &[u8]) -> usize {
        // The search jumps about in the keys, and whoever seeks reads on from there.
        prefetch::<16>(self.keys());
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low < self.len() {
            prefetch::<8>(self.value_of(self.position(low)));
        }
        low
    }

    /// All keys, one after another.
    fn keys(&self) -> &[u8] {
        match self.len() {
            0 => &[],
            len => {
                let (first, last) = (self.position(0), self.position(len - 1));
                &self.memory.archive()[first.key_start as usize..last.key_end as usize]
            }
        }
    }

    /// Whether no key has two versions in the block.
    pub(crate) fn is_distinct(&self) -> bool {
        self.is_distinct
    }

    /// LSN of the record at `index`.
    pub(crate) fn lsn(&self, index: usize) -> Lsn {
        Lsn(self.columns().lsns[index].to_native())
    }

    /// Hands the records of `range` that are live at `now_ms` to `visit`, the first and those that follow while their keys
    /// lie before `bound`, until it breaks off. Returns how many records were passed, and whether it did.
    pub(crate) fn visit_live(
        &self,
        range: std::ops::Range<usize>,
        bound: Option<Bound<'_>>,
        now_ms: u64,
        visit: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> (usize, ControlFlow<()>) {
        let (directory, archive) = (self.memory.directory(), self.memory.archive());
        let words = &directory[self.len().div_ceil(8)..];
        let bytes = |start: u32, end: u32| &archive[start as usize..end as usize];
        for index in range.clone() {
            let position = Position::between(words[index], words[index + 1]);
            let key = bytes(position.key_start, position.key_end);
            if index > range.start && bound.is_some_and(|bound| bound.is_reached_by(key)) {
                return (index - range.start, ControlFlow::Continue(()));
            }
            let is_live =
                position.is_put && (!position.has_deadline || self.columns().expiries[index].to_native() > now_ms);
            if is_live && visit(key, bytes(position.value_start, position.value_end)).is_break() {
                return (index + 1 - range.start, ControlFlow::Break(()));
            }
        }
        (range.len(), ControlFlow::Continue(()))
    }

    /// Index of the newest version of `key` at or below `max_lsn`; `hash` is the key's.
    /// Cost: independent of the number of records but for one step per eight of them.
    pub(crate) fn find(&self, key: &[u8], hash: u64, max_lsn: Lsn) -> Option<usize> {
        let first = self.first_version(key, tag_of(hash))?;
        if max_lsn == Lsn(u64::MAX) {
            return Some(first);
        }
        let columns = self.columns();
        (first..self.len())
            .take_while(|index| *index == first || columns.key(*index) == key)
            .find(|index| columns.lsns[*index].to_native() <= max_lsn.0)
    }

    /// Index of the first record of `key`.
    fn first_version(&self, key: &[u8], tag: u8) -> Option<usize> {
        let directory = self.memory.directory();
        for (word_index, word) in directory[..self.len().div_ceil(8)].iter().enumerate() {
            let mut marked = matching_bytes(*word, tag);
            while marked != 0 {
                let index = word_index * 8 + marked.trailing_zeros() as usize / 8;
                // Zeros behind the last record may match as well.
                if index < self.len() {
                    let position = self.position(index);
                    prefetch::<4>(self.value_of(position));
                    if self.key_of(position) == key {
                        return Some(index);
                    }
                }
                marked &= marked - 1;
            }
        }
        None
    }

    fn position(&self, index: usize) -> Position {
        let words = &self.memory.directory()[self.len().div_ceil(8)..];
        Position::between(words[index], words[index + 1])
    }

    fn value_of(&self, position: Position) -> &[u8] {
        &self.memory.archive()[position.value_start as usize..position.value_end as usize]
    }

    fn key_of(&self, position: Position) -> &[u8] {
        &self.memory.archive()[position.key_start as usize..position.key_end as usize]
    }
}

/// A record of a block that is kept in memory as long as this lives.
#[derive(Clone, Debug)]
pub struct BlockRecord {
    block: Rc<VerifiedBlock>,
    index: usize,
}

impl BlockRecord {
    pub(super) fn new(block: Rc<VerifiedBlock>, index: usize) -> BlockRecord {
        BlockRecord { block, index }
    }

    /// The record; nothing is copied.
    #[must_use]
    pub fn view(&self) -> RecordView<'_> {
        self.block.record(self.index)
    }

    /// The record's LSN.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.block.lsn(self.index)
    }

    /// Kind, deadline and value: what a reader needs, from few cache lines.
    #[must_use]
    pub fn content(&self) -> (RecordKind, u64, &[u8]) {
        let position = self.block.position(self.index);
        let value = self.block.value_of(position);
        let deadline = if position.has_deadline { self.view().expires_at_ms } else { 0 };
        (position.kind(), deadline, value)
    }
}
