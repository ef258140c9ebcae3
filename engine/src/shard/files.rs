//! Table files of a shard: names, reading, and removal when nobody needs them any more.
//!
//! `INV-FILES`: a file is removed only when the durable manifest no longer names it and no reader holds a table in it.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::Result;
use crate::heads::Bound;
use crate::io::direct::DirectFile;
use crate::io::runtime;
use crate::manifest::TableRef;
use crate::record::RecordView;
use crate::residency::Resident;
use crate::table::{
    BlockRecord, BlockSource, Charge, Frame, HashedKey, LoadedTable, Lookup, NoCache, PreparedBlock, Purpose,
    ShardBlockCache, TableIter, TableMeta, TablePlace, TableReader, VerifiedBlock, Warmth,
};
use crate::types::{FileId, Lsn};
use bytes::Bytes;

/// Path of table file `id` under a shard's folder.
pub(crate) fn table_path(dir: &Path, id: FileId) -> PathBuf {
    dir.join(format!("{:012}.tab", id.0))
}

/// The id in a table file's name.
pub(crate) fn parse_table_name(name: &str) -> Option<FileId> {
    name.strip_suffix(".tab")?.parse().ok().map(FileId)
}

/// One open table file. Dropping the last reference to an obsolete file removes it.
pub(crate) struct TableFile {
    pub id: FileId,
    file: DirectFile,
    obsolete: Cell<bool>,
    /// Tables of the file that are open and not retired.
    tables: Cell<usize>,
    removals: async_channel::Sender<PathBuf>,
}

impl std::fmt::Debug for TableFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableFile").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TableFile {
    pub fn new(id: FileId, file: DirectFile, removals: async_channel::Sender<PathBuf>) -> Rc<TableFile> {
        Rc::new(TableFile { id, file, obsolete: Cell::new(false), tables: Cell::new(0), removals })
    }

    /// The durable manifest no longer names the file.
    pub fn mark_obsolete(&self) {
        self.obsolete.set(true);
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl Drop for TableFile {
    fn drop(&mut self) {
        if self.obsolete.get() {
            remove(&self.removals, self.file.path().to_path_buf());
        }
    }
}

/// A full or closed queue leaves the file for the next start, which removes what no manifest names.
fn remove(removals: &async_channel::Sender<PathBuf>, path: PathBuf) {
    let _ = removals.try_send(path);
}

/// The name of a table file that may never be finished; the file is removed with it.
#[derive(Debug)]
pub(crate) struct Unfinished {
    path: Option<PathBuf>,
    removals: async_channel::Sender<PathBuf>,
}

impl Unfinished {
    pub fn new(path: PathBuf, removals: async_channel::Sender<PathBuf>) -> Unfinished {
        Unfinished { path: Some(path), removals }
    }

    /// The file is whole.
    pub fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            remove(&self.removals, path);
        }
    }
}

impl BlockSource for Rc<TableFile> {
    async fn read(&self, offset: u64, len: usize) -> Result<Frame> {
        self.file.read(offset, len).await
    }
}

/// An open table: where it lies, its index and filter in memory, and the cache its blocks go through.
pub(crate) struct Table {
    pub location: TableRef,
    pub file: Rc<TableFile>,
    reader: Rc<TableReader<Rc<TableFile>>>,
    cache: Rc<ShardBlockCache>,
    /// Index and filter count against the memory budget.
    _memory: Charge,
    resident: Resident,
    /// Segments that name it, as far as it was told; 0 once it is retired.
    segments: Cell<usize>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Table {
    /// Opens the table at `location` of `file`; reads and verifies its footer, index and filter.
    pub async fn open(file: Rc<TableFile>, location: TableRef, cache: Rc<ShardBlockCache>) -> Result<Rc<Table>> {
        let path = file.path().to_path_buf();
        let reader = TableReader::open(Rc::clone(&file), location.offset, location.len, &path).await?;
        let memory = cache.charge(reader.bytes());
        file.tables.update(|tables| tables + 1);
        Ok(Rc::new(Table {
            location,
            file,
            reader: Rc::new(reader),
            cache,
            _memory: memory,
            resident: Resident::default(),
            segments: Cell::new(1),
        }))
    }

    /// So many segments name the table from now on, which one has named until now.
    pub fn share(&self, segments: usize) {
        self.segments.update(|before| before + segments - 1);
    }

    /// Its bytes, divided among the segments that name it.
    pub fn bytes_per_segment(&self) -> u64 {
        self.location.len / self.segments.get().max(1) as u64
    }

    /// A segment of the durable manifest no longer names the table. Behind the last one it is *retired*, and the file is
    /// obsolete with the last of its tables.
    pub fn retire(&self) {
        let before = self.segments.get();
        self.segments.set(before.saturating_sub(1));
        if before == 1 {
            self.file.tables.update(|tables| tables - 1);
            if self.file.tables.get() == 0 {
                self.file.mark_obsolete();
            }
        }
    }

    /// Whether no segment names it any more.
    pub fn is_retired(&self) -> bool {
        self.segments.get() == 0
    }

    /// Gives the memory of its blocks back piece by piece, letting others run in between. For a retired table: who still
    /// reads it reads the device.
    pub async fn forget_blocks(&self) {
        self.leave_memory().await;
        while self.reader.forget_some() {
            runtime::yield_now().await;
        }
    }

    /// Fills the cache with blocks that were prepared while the table was written.
    pub fn adopt(&self, prepared: Vec<(usize, PreparedBlock)>) {
        self.reader.adopt(prepared, &self.cache);
    }

    /// Whether its blocks are locked in memory.
    pub fn is_resident(&self) -> bool {
        self.resident.is_resident()
    }

    /// Whether it may be kept in memory as it lies on disk.
    pub fn is_readable_in_place(&self) -> bool {
        self.reader.is_readable_in_place()
    }

    /// Where its blocks lie, for another thread to load them.
    pub fn place(&self) -> TablePlace {
        self.reader.place()
    }

    /// Serves its blocks from `loaded`, which `charge` accounts for.
    pub fn stay_in_memory(&self, loaded: LoadedTable, charge: Charge) {
        self.reader.set_resident(loaded);
        self.resident.hold(charge);
    }

    /// Serves its blocks through the cache again.
    pub async fn leave_memory(&self) {
        if self.resident.release()
            && let Some(map) = self.reader.clear_resident()
        {
            runtime::unblock(move || drop(map)).await;
        }
    }

    /// Bytes of the table as they lie on the device, not verified.
    pub async fn read_bytes(&self, offset: u64, len: usize) -> Result<Frame> {
        assert!(offset + len as u64 <= self.location.len, "INV-FILES: a table's bytes are its own");
        self.file.file.read(self.location.offset + offset, len).await
    }

    /// The newest version of `key` at or below `max_lsn`; see [`TableReader::get`].
    pub async fn get(&self, key: HashedKey<'_>, max_lsn: Lsn, read_bytes: usize) -> Result<Option<BlockRecord>> {
        self.reader.get(key, max_lsn, &*self.cache, read_bytes).await
    }

    /// As [`Table::get`], from memory alone; see [`TableReader::lookup`].
    pub fn lookup(&self, key: HashedKey<'_>, max_lsn: Lsn, filter_first: bool) -> Lookup {
        self.reader.lookup(key, max_lsn, &*self.cache, filter_first)
    }

    /// Whether a quarter of its bytes has expired by `now_ms`.
    pub fn is_stale(&self, now_ms: u64) -> bool {
        self.reader.meta().stale_at_ms.is_some_and(|stale_at_ms| stale_at_ms <= now_ms)
    }

    /// See [`TableReader::key_before`].
    pub fn key_before(&self, end: Option<&[u8]>, records: usize, bytes: usize) -> Option<Bytes> {
        self.reader.key_before(end, records, bytes).map(Bytes::copy_from_slice)
    }

    /// What its footer said when it was opened.
    pub fn meta(&self) -> &TableMeta {
        self.reader.meta()
    }

    /// Number of data blocks.
    pub fn blocks(&self) -> usize {
        self.reader.blocks()
    }

    /// Reads a block from the device, whatever the cache holds, and verifies it.
    pub async fn reread_block(&self, block: usize) -> Result<Rc<VerifiedBlock>> {
        self.reader.block(block, &NoCache).await
    }

    /// Reads footer, index and filter from the device and verifies them; returns their length.
    pub async fn reread_parts(&self) -> Result<u64> {
        let (file, location) = (Rc::clone(&self.file), self.location);
        let path = self.file.path();
        let read = TableReader::open(file, location.offset, location.len, path).await?;
        Ok(read.parts_len())
    }

    /// The records of `[start, end)`.
    pub fn records(&self, start: Bytes, end: Option<Bytes>, purpose: Purpose) -> TableRecords {
        let iter = TableIter::new(Rc::clone(&self.reader), start, end, Rc::clone(&self.cache), purpose);
        TableRecords { iter, max_lsn: self.location.max_lsn }
    }
}

/// Walks records of one table.
pub(crate) struct TableRecords {
    iter: TableIter<Rc<TableFile>, ShardBlockCache>,
    max_lsn: Lsn,
}

impl TableRecords {
    pub async fn advance(&mut self) -> Result<bool> {
        self.iter.advance().await
    }

    pub fn advance_now(&mut self) -> Option<bool> {
        self.iter.advance_now()
    }

    pub fn current(&self) -> RecordView<'_> {
        self.iter.current()
    }

    pub fn current_key(&self) -> &[u8] {
        self.iter.current_key()
    }

    /// Largest LSN of the table.
    pub fn max_lsn(&self) -> Lsn {
        self.max_lsn
    }

    /// See [`TableIter::visit`].
    pub fn visit(
        &mut self,
        bound: Option<Bound<'_>>,
        now_ms: u64,
        visit: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Option<ControlFlow<()>> {
        self.iter.visit(bound, now_ms, visit)
    }

    pub fn warmth(&self) -> Warmth {
        self.iter.warmth()
    }
}
