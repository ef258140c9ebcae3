//! Reads a table block by block. No I/O of its own: bytes come from a [`BlockSource`].

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::chain::RecordDigest;
use crate::error::{Error, Result};
use crate::memory::LockedMap;
use crate::types::Lsn;

pub(crate) use self::place::{LoadedTable, TablePlace};
use super::block::{BlockRecord, VerifiedBlock};
use super::builder::{TableMeta, meta_of};
use super::cache::{BlockCache, BlockSlots, NoCache, PreparedBlock, ShardBlockCache, Warmth};
use super::compress::Unpacker;
use super::filter::{self, key_hash};
use super::footer::{FOOTER_LEN, Footer, Part};
use super::index::LoadedIndex;

mod place;
#[cfg(test)]
pub(super) mod tests;

/// Bytes of one read, aligned to 16 for the archives.
pub use crate::memory::AlignedBytes as Frame;

/// Where a table's bytes come from.
pub trait BlockSource {
    /// Exactly `len` bytes at `offset` of the file.
    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Result<Frame>>;
}

/// A table's bytes in memory.
impl BlockSource for &[u8] {
    async fn read(&self, offset: u64, len: usize) -> Result<Frame> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(bytes) = start.checked_add(len).and_then(|end| self.get(start..end)) else {
            return Err(Error::corruption("<image>", offset, format!("{len} bytes reach behind the end")));
        };
        let mut frame = Frame::with_capacity(len);
        frame.extend_from_slice(bytes);
        Ok(frame)
    }
}

/// A key with its hash, made once for all tables that are asked.
#[derive(Clone, Copy, Debug)]
pub struct HashedKey<'a> {
    /// The key.
    pub bytes: &'a [u8],
    /// Its xxh3-64.
    pub hash: u64,
}

impl<'a> From<&'a [u8]> for HashedKey<'a> {
    fn from(bytes: &'a [u8]) -> HashedKey<'a> {
        HashedKey { bytes, hash: key_hash(bytes) }
    }
}

/// What memory knows of a key in one table.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The table does not hold it.
    Absent,
    /// Here it is.
    Found(BlockRecord),
    /// Its block has to be read.
    OnDevice,
}

/// An open table: index and filter in memory, verified.
#[derive(Debug)]
pub struct TableReader<S> {
    source: S,
    offset: u64,
    path: PathBuf,
    index: LoadedIndex,
    filter: Frame,
    /// Its blocks in the cache.
    slots: Rc<BlockSlots>,
    /// Where the data blocks end.
    data_len: u64,
    /// Where the dictionary ends and the filter begins; equal without compression.
    dictionary_gap: Range<u64>,
    /// Of compressed blocks.
    unpacker: Option<Unpacker>,
    /// What resident blocks lie in.
    map: RefCell<Option<Arc<LockedMap>>>,
    meta: TableMeta,
}

impl<S: BlockSource> TableReader<S> {
    /// Opens the table at `[offset, offset + len)` of a file.
    ///
    /// # Errors
    /// [`Error::Corruption`] naming `path` and the offset, [`Error::Version`]; whatever the source returns.
    pub async fn open(source: S, offset: u64, len: u64, path: &Path) -> Result<TableReader<S>> {
        let (reader, part) = TableReader::open_index(source, offset, len, path).await?;
        let filter = read_part(&reader.source, offset, part, path).await?;
        if !filter::is_valid_len(filter.len()) {
            let what = format!("filter of {} bytes", filter.len());
            return Err(Error::corruption(path, offset + part.offset, what));
        }
        Ok(TableReader { filter, ..reader })
    }

    /// As [`TableReader::open`], without reading the filter: every key may be there. For tables that may be damaged.
    ///
    /// # Errors
    /// As [`TableReader::open`].
    pub async fn open_unfiltered(source: S, offset: u64, len: u64, path: &Path) -> Result<TableReader<S>> {
        TableReader::open_index(source, offset, len, path).await.map(|(reader, _)| reader)
    }

    /// Reads footer and index; says where the filter lies. Until that is read, every key may be there.
    async fn open_index(source: S, offset: u64, len: u64, path: &Path) -> Result<(TableReader<S>, Part)> {
        let corrupt = |at: u64, what: String| Error::corruption(path, offset + at, what);
        let Some(footer_at) = len.checked_sub(FOOTER_LEN as u64) else {
            return Err(corrupt(0, format!("table of {len} bytes is shorter than its footer")));
        };
        let bytes = source.read(offset + footer_at, FOOTER_LEN).await?;
        if let Some(found) = Footer::foreign_version(&bytes) {
            return Err(Error::Version { path: path.to_path_buf(), what: "table", found, known: Footer::version() });
        }
        let footer = Footer::decode(&bytes, len).map_err(|what| corrupt(footer_at, what))?;
        let bytes = read_part(&source, offset, footer.index, path).await?;
        let index = LoadedIndex::decode(&bytes, footer.data_len());
        let index = index.map_err(|what| corrupt(footer.index.offset, what))?;
        let unpacker = match footer.dictionary {
            Some(part) => {
                let dictionary = read_part(&source, offset, part, path).await?;
                Some(Unpacker::new(&dictionary).map_err(|what| corrupt(part.offset, what))?)
            }
            None => None,
        };
        let dictionary_end = footer.dictionary.map_or(footer.filter.offset, |part| part.offset + u64::from(part.len));
        let reader = TableReader {
            source,
            offset,
            path: path.to_path_buf(),
            slots: BlockSlots::new(index.len()),
            index,
            filter: filter::of_everything(),
            data_len: footer.data_len(),
            dictionary_gap: dictionary_end..footer.filter.offset,
            unpacker,
            map: RefCell::default(),
            meta: meta_of(&footer),
        };
        Ok((reader, footer.filter))
    }

    /// What the footer says.
    #[must_use]
    pub fn meta(&self) -> &TableMeta {
        &self.meta
    }

    /// Bytes of filter, index and footer.
    pub(crate) fn parts_len(&self) -> u64 {
        self.meta.len - self.data_len
    }

    /// Number of data blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.index.len()
    }

    /// A key below `end` such that about `records` records or `bytes` bytes, whichever is less, lie from it up to `end`,
    /// cut to whole blocks; `None` if the table does not reach that far back.
    pub(crate) fn key_before(&self, end: Option<&[u8]>, records: usize, bytes: usize) -> Option<&[u8]> {
        let blocks = self.blocks() as u64;
        let of_records = records as u64 * blocks / self.meta.records.max(1);
        let of_bytes = bytes as u64 * blocks / self.meta.raw_bytes.max(1);
        let back = (of_records.min(of_bytes) + 1) as usize;
        let until = end.map_or(self.blocks(), |end| self.block_for(end));
        // The last key of the block before the first one wanted.
        let before = until.checked_sub(back + 1)?;
        Some(self.index.last_key(before))
    }

    /// Offset in the table, length and last key of a block.
    pub(crate) fn block_place(&self, block: usize) -> (u64, usize, Vec<u8>) {
        let entry = self.index.entry(block);
        (entry.offset, entry.len, self.index.last_key(block).to_vec())
    }

    /// The first block that may hold a key at or after `key`; `blocks()` if none.
    #[must_use]
    pub fn block_for(&self, key: &[u8]) -> usize {
        self.index.block_for(key)
    }

    /// Bytes of memory that the open table takes, its cached blocks excepted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let unpacker = self.unpacker.as_ref().map_or(0, Unpacker::bytes);
        self.index.bytes() + self.filter.len() + self.slots.bytes() + unpacker + size_of::<TableReader<S>>()
    }

    /// The newest version of `key` at or below `max_lsn`, tombstones included, as far as memory tells.
    ///
    /// `filter_first` says whether the filter is asked before the cache. Where the key is likely here (the last table
    /// that may hold it) that costs a cache miss for nothing: a cached block answers "no" nearly as fast.
    pub fn lookup(&self, key: HashedKey<'_>, max_lsn: Lsn, cache: &impl BlockCache, filter_first: bool) -> Lookup {
        if self.meta.min_lsn > max_lsn || (filter_first && !filter::may_contain(&self.filter, key.hash)) {
            return Lookup::Absent;
        }
        let block = self.block_for(key.bytes);
        if block == self.blocks() {
            return Lookup::Absent;
        }
        // Where the reader sees every record of the table, none has to be asked for its LSN.
        let max_lsn = if self.meta.max_lsn <= max_lsn { Lsn(u64::MAX) } else { max_lsn };
        if let Some(held) = cache.lookup(&self.slots, block) {
            return match held.find(key.bytes, key.hash, max_lsn) {
                Some(index) => Lookup::Found(BlockRecord::new(held, index)),
                None => Lookup::Absent,
            };
        }
        if filter_first || filter::may_contain(&self.filter, key.hash) { Lookup::OnDevice } else { Lookup::Absent }
    }

    /// The newest version of `key` at or below `max_lsn`, tombstones included.
    /// Cost: at most one read; none when the filter says no or the cache has the block. It brings the block, and of those
    /// behind it what fits into `read_bytes`.
    pub async fn get(
        &self,
        key: HashedKey<'_>,
        max_lsn: Lsn,
        cache: &impl BlockCache,
        read_bytes: usize,
    ) -> Result<Option<BlockRecord>> {
        match self.lookup(key, max_lsn, cache, true) {
            Lookup::Absent => Ok(None),
            Lookup::Found(record) => Ok(Some(record)),
            Lookup::OnDevice => {
                let block = self.block_and_more(self.block_for(key.bytes), cache, read_bytes).await?;
                Ok(block.find(key.bytes, key.hash, max_lsn).map(|index| BlockRecord::new(block, index)))
            }
        }
    }

    /// A data block that the cache has.
    pub fn cached(&self, block: usize, cache: &impl BlockCache) -> Option<Rc<VerifiedBlock>> {
        cache.lookup(&self.slots, block)
    }

    /// As [`TableReader::cached`] for somebody whose interest says nothing about that of readers.
    pub(super) fn peek(&self, block: usize, cache: &impl BlockCache) -> Option<(Rc<VerifiedBlock>, Warmth)> {
        cache.peek(&self.slots, block)
    }

    /// A verified data block, from the cache or the source. Offered to the cache when it was read.
    pub async fn block(&self, block: usize, cache: &impl BlockCache) -> Result<Rc<VerifiedBlock>> {
        if let Some(held) = self.cached(block, cache) {
            return Ok(held);
        }
        let entry = self.index.entry(block);
        let bytes = self.source.read(self.offset + entry.offset, entry.len).await?;
        Ok(cache.insert(&self.slots, block, self.verify(block, &Rc::new(bytes), 0..entry.len)?))
    }

    /// As [`TableReader::block`]; where the source is asked, blocks behind it come along as long as all fit into
    /// `bytes_max`.
    async fn block_and_more(
        &self,
        block: usize,
        cache: &impl BlockCache,
        bytes_max: usize,
    ) -> Result<Rc<VerifiedBlock>> {
        let entry = self.index.entry(block);
        if bytes_max < 2 * entry.len {
            return self.block(block, cache).await;
        }
        if let Some(held) = self.cached(block, cache) {
            return Ok(held);
        }
        let mut run = self.read_ahead(block..self.blocks(), bytes_max, cache, true).await?;
        let Some(wanted) = self.next_of(&mut run, cache, true)? else {
            unreachable!("INV-ITER: a read brings the block it begins with");
        };
        // Nobody has asked for these: damage in one of them is told to whoever does.
        while let Ok(Some(_)) = self.next_of(&mut run, cache, true) {}
        Ok(wanted)
    }

    /// The first blocks of `blocks` by one read: the first in any case, then those that follow it, are not cached (if
    /// they are going to `be_kept`) and fit into `bytes_max`. What was read is not verified yet.
    pub(super) async fn read_ahead(
        &self,
        blocks: Range<usize>,
        bytes_max: usize,
        cache: &impl BlockCache,
        be_kept: bool,
    ) -> Result<UnverifiedRun> {
        let first = self.index.entry(blocks.start);
        let end_of = |block: usize| {
            let entry = self.index.entry(block);
            entry.offset as usize + entry.len - first.offset as usize
        };
        let fits =
            |block: &usize| end_of(*block) <= bytes_max && (!be_kept || cache.peek(&self.slots, *block).is_none());
        let more = (blocks.start + 1..blocks.end.min(self.blocks())).take_while(fits).count();
        let run = blocks.start..blocks.start + 1 + more;
        let bytes = self.source.read(self.offset + first.offset, end_of(run.end - 1)).await?;
        Ok(UnverifiedRun { bytes: Rc::new(bytes), offset: first.offset, blocks: run })
    }

    /// Verifies the next block of a run, and offers it to the cache if it is to `be_kept`.
    pub(super) fn next_of(
        &self,
        run: &mut UnverifiedRun,
        cache: &impl BlockCache,
        be_kept: bool,
    ) -> Result<Option<Rc<VerifiedBlock>>> {
        let Some(block) = run.blocks.next() else {
            return Ok(None);
        };
        let entry = self.index.entry(block);
        let start = (entry.offset - run.offset) as usize;
        let verified = self.verify(block, &run.bytes, start..start + entry.len)?;
        Ok(Some(if be_kept { cache.insert(&self.slots, block, verified) } else { Rc::new(verified) }))
    }

    /// Whether its blocks can be read where they lie: not when they are compressed.
    pub(crate) fn is_readable_in_place(&self) -> bool {
        self.unpacker.is_none()
    }

    /// Where the data blocks lie, for [`TablePlace::load`], which takes only what is readable in place.
    pub(crate) fn place(&self) -> TablePlace {
        let entry = |block| {
            let entry = self.index.entry(block);
            (entry.offset as usize, entry.len, entry.crc)
        };
        TablePlace {
            path: self.path.clone(),
            offset: self.offset,
            len: self.data_len as usize,
            blocks: (0..self.blocks()).map(entry).collect(),
        }
    }

    /// Serves every block from `loaded` until [`TableReader::clear_resident`].
    pub(crate) fn set_resident(&self, loaded: LoadedTable) {
        let LoadedTable { map, checked } = loaded;
        let block = |(block, checked)| {
            let entry = self.index.entry(block);
            VerifiedBlock::resident(&map, entry.offset as usize, entry.len, checked)
        };
        self.slots.fill_resident(checked.into_iter().enumerate().map(block).collect());
        self.map.replace(Some(map));
    }

    /// Lets go of what [`TableReader::set_resident`] set. To unmap takes long: the caller has that done elsewhere.
    pub(crate) fn clear_resident(&self) -> Option<Arc<LockedMap>> {
        self.slots.clear_resident();
        self.map.take()
    }

    /// Fills slots with blocks that were prepared while the table was written.
    pub(crate) fn adopt(&self, prepared: Vec<(usize, PreparedBlock)>, cache: &ShardBlockCache) {
        for (block, prepared) in prepared {
            cache.adopt(&self.slots, block, prepared);
        }
    }

    /// Takes some blocks out of the cache; false if none is left.
    pub(crate) fn forget_some(&self) -> bool {
        self.slots.forget_some()
    }

    /// Verifies a block that lies at `range` of `bytes`.
    fn verify(&self, block: usize, bytes: &Rc<Frame>, range: Range<usize>) -> Result<VerifiedBlock> {
        let entry = self.index.entry(block);
        let corrupt = |what: String| Error::corruption(&self.path, self.offset + entry.offset, what);
        match &self.unpacker {
            None => VerifiedBlock::among(bytes, range, entry.crc).map_err(corrupt),
            Some(unpacker) => VerifiedBlock::of_stored(&bytes[range], entry.crc, unpacker).map_err(corrupt),
        }
    }
}

/// Neighbouring blocks as they were read. Verifying a block takes some microseconds: each is when its turn comes, so that
/// other tasks may run in between.
#[derive(Debug)]
pub(super) struct UnverifiedRun {
    bytes: Rc<Frame>,
    /// Where the bytes begin in the table.
    offset: u64,
    /// Those that were not taken yet.
    blocks: Range<usize>,
}

/// Verifies a whole table in memory, every block, the order and the digest.
///
/// # Errors
/// [`Error::Corruption`] in `<image>`.
pub async fn verify_image(bytes: &[u8]) -> Result<TableMeta> {
    let reader = TableReader::open(bytes, 0, bytes.len() as u64, Path::new("<image>")).await?;
    let mut digest = RecordDigest::default();
    let mut records = 0;
    let mut last_key = Vec::new();
    for block in 0..reader.blocks() {
        let verified = reader.block(block, &NoCache).await?;
        let entry = reader.index.entry(block);
        let next_at = if block + 1 < reader.blocks() { reader.index.entry(block + 1).offset } else { reader.data_len };
        let gap = entry.offset as usize + entry.len..next_at as usize;
        if bytes[gap].iter().any(|byte| *byte != 0) {
            return Err(Error::corruption("<image>", entry.offset, "bytes between blocks are not zero"));
        }
        let keys_follow = block == 0 || verified.record(0).key > last_key.as_slice();
        if !keys_follow {
            return Err(Error::corruption("<image>", entry.offset, "blocks out of order"));
        }
        for index in 0..verified.len() {
            digest.update(verified.record(index));
        }
        records += verified.len() as u64;
        last_key = verified.record(verified.len() - 1).key.to_vec();
    }
    let gap = reader.dictionary_gap.start as usize..reader.dictionary_gap.end as usize;
    if bytes[gap].iter().any(|byte| *byte != 0) {
        return Err(Error::corruption(
            "<image>",
            reader.dictionary_gap.start,
            "bytes behind the dictionary are not zero",
        ));
    }
    if records != reader.meta.records || digest.finish() != reader.meta.digest {
        return Err(Error::corruption("<image>", 0, "records do not match the footer's count and digest"));
    }
    Ok(reader.meta.clone())
}

async fn read_part<S: BlockSource>(source: &S, offset: u64, part: Part, path: &Path) -> Result<Frame> {
    let bytes = source.read(offset + part.offset, part.len as usize).await?;
    let crc = crc32c::crc32c(&bytes);
    if crc != part.crc {
        let what = format!("checksum {crc:08x}, the footer says {:08x}", part.crc);
        return Err(Error::corruption(path, offset + part.offset, what));
    }
    Ok(bytes)
}
