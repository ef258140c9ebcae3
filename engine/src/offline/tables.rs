//! Table files in memory maps.

use std::fs::File;
use std::path::Path;

use futures_lite::future::block_on;
use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::manifest::TableRef;
use crate::table::{self, NoCache, TableMeta, TableReader};

/// Tables of a file begin at multiples of this.
const TABLE_ALIGN_BYTES: u64 = 4096;

/// One block of a table, as its index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockReport {
    /// Offset in the file.
    pub offset: u64,
    /// Length.
    pub len: usize,
    /// Records; 0 when it is damaged.
    pub records: usize,
    /// Its last key, as the index says.
    pub last_key: Vec<u8>,
    /// What is wrong with it.
    pub damage: Option<String>,
}

/// One table of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Offset in the file.
    pub offset: u64,
    /// What its footer says.
    pub meta: TableMeta,
    /// Its blocks; empty when the index is damaged.
    pub blocks: Vec<BlockReport>,
    /// The first thing that is wrong with it.
    pub damage: Option<String>,
}

/// Maps a table file.
pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
    // SAFETY: table files never change once written, and the data lock keeps every engine away; a person who cuts the
    // file meanwhile gets SIGBUS, as with any mapped file.
    unsafe { Mmap::map(&file) }.map_err(|cause| Error::io("map", path, cause))
}

/// The bytes of a table in its file.
pub(super) fn table_bytes<'a>(path: &Path, map: &'a [u8], table: TableRef) -> Result<&'a [u8]> {
    let end = table.offset.checked_add(table.len);
    let range = usize::try_from(table.offset).ok().zip(end.and_then(|end| usize::try_from(end).ok()));
    let bytes = range.and_then(|(start, end)| map.get(start..end));
    bytes.ok_or_else(|| Error::corruption(path, table.offset, "the file ends before the table does"))
}

/// Verifies a table whole.
pub(super) fn verify_table(path: &Path, map: &[u8], table: TableRef) -> Result<TableMeta> {
    let bytes = table_bytes(path, map, table)?;
    block_on(table::verify_image(bytes)).map_err(|cause| in_file(path, table.offset, cause))
}

/// Puts the place into an error of an image, which does not know where it lies.
pub(super) fn in_file(path: &Path, at: u64, cause: Error) -> Error {
    match cause {
        Error::Corruption { offset, what, .. } => Error::corruption(path, at + offset, what),
        Error::Version { what, found, known, .. } => Error::Version { path: path.to_path_buf(), what, found, known },
        other => other,
    }
}

/// The tables of a file, found by their footers, without a manifest.
pub(super) fn find_tables(path: &Path, map: &[u8]) -> Result<Vec<SegmentReport>> {
    let mut found = Vec::new();
    for (offset, len) in table::find_footers(map) {
        if offset.is_multiple_of(TABLE_ALIGN_BYTES) {
            found.push(report(path, &map[offset as usize..(offset + len) as usize], offset)?);
        }
    }
    if found.is_empty() {
        return Err(Error::corruption(
            path,
            0,
            "no table footer anywhere in the file: not a table file, or all of it is damaged",
        ));
    }
    Ok(found)
}

fn report(path: &Path, bytes: &[u8], offset: u64) -> Result<SegmentReport> {
    let whole = block_on(table::verify_image(bytes));
    let damage = whole.as_ref().err().map(|cause| in_file(path, offset, cause.clone()).to_string());
    let meta = table::footer_meta(bytes).map_err(|cause| in_file(path, offset, cause))?;
    let mut blocks = Vec::new();
    if let Ok(reader) = block_on(TableReader::open_unfiltered(bytes, 0, bytes.len() as u64, path)) {
        for block in 0..reader.blocks() {
            let (at, len, last_key) = reader.block_place(block);
            let read = block_on(reader.block(block, &NoCache));
            blocks.push(BlockReport {
                offset: offset + at,
                len,
                records: read.as_ref().map_or(0, |block| block.len()),
                last_key,
                damage: read.err().map(|cause| in_file(path, offset, cause).to_string()),
            });
        }
    }
    Ok(SegmentReport { offset, meta, blocks, damage })
}
