//! The directory of a block, by which a point lookup goes: it is made when the block is verified and kept beside it.
//!
//! One byte of each record's key hash (eight are compared at a time), then where each record's key and value lie. With it
//! the lookup touches one line of tags, one of positions, the key and the value; through the columns alone it would follow
//! ten loads each of which waits for the one before. It takes nine bytes a record, and is not stored: nothing on disk can
//! disagree with the keys, and making it costs a few per cent of the verification.

use crate::record::RecordKind;

use super::columns::ArchivedColumns;
use super::filter::key_hash;

/// Where a record's key and value lie, from the archive's start, and what kind of record it is.
///
/// Keys lie one after another, and so do values: a word of the directory says where a record's key and value begin, the
/// next one where they end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub key_start: u32,
    pub key_end: u32,
    pub value_start: u32,
    pub value_end: u32,
    pub is_put: bool,
    pub has_deadline: bool,
}

/// Marks of a word of the directory, above the start of the key.
const IS_PUT: u64 = 1 << 63;
const HAS_DEADLINE: u64 = 1 << 62;
/// Keys lie below this in an archive.
const KEY_START_MAX: usize = (1 << 30) - 1;

impl Position {
    /// Of the record whose word is the first.
    pub fn between(word: u64, next: u64) -> Position {
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

    pub fn kind(self) -> RecordKind {
        if self.is_put { RecordKind::Put } else { RecordKind::Delete }
    }
}

/// The tag of a key with this hash.
pub(super) fn tag_of(hash: u64) -> u8 {
    (hash >> 24) as u8
}

/// The directory of checked columns: the tags, the first in the lowest byte of the first word, then a word a record and
/// one behind the last (see [`Position`]).
///
/// Errors: the keys lie too far from the archive's start.
pub(super) fn directory_of(archive: &[u8], columns: &ArchivedColumns) -> std::result::Result<Box<[u64]>, String> {
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

/// Marks (in its top bit) each byte of `word` that equals `tag`; a byte above a marked one may be marked in error.
pub(super) fn matching_bytes(word: u64, tag: u8) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let difference = word ^ (ONES * u64::from(tag));
    difference.wrapping_sub(ONES) & !difference & (ONES << 7)
}
