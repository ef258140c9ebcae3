//! Data blocks: an rkyv archive of struct-of-arrays primitive vectors.
//!
//! [`CheckedBlock`] is the only way to a readable block. It compares the crc32c of the stored bytes with the parent's and
//! validates the archive and its meaning once; every access after that is unchecked.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use crate::heads::Bound;
use crate::io::{Bug, planted};
use crate::limits::KEY_LEN_MAX;
use crate::memory::{AlignedBytes, LockedMap, prefetch};
use crate::record::{RecordKind, RecordView};
use crate::types::{Hlc, Lsn};

use super::columns::{ArchivedColumns, check_columns};
use super::compress::Unpacker;
use super::directory::{Position, directory_of, matching_bytes, tag_of};
use super::frames::{Frame, FramePool};

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
