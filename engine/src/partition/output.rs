//! Writes tables one after another into a new table file, in bounded pieces, letting other tasks run in between.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;

use futures_lite::future;

use crate::config::{Compression, PartitionOptions};
use crate::error::{Error, Result};
use crate::governor::IoClass;
use crate::io::direct::{AlignedBuf, DirectFile};
use crate::io::{Bug, planted, runtime};
use crate::manifest::TableRef;
use crate::record::RecordView;
use crate::shard::Shard;
use crate::shard::files::{Table, TableFile, Unfinished};
use crate::table::{PreparedBlock, TableBuilder, TableOptions, VerifiedBlock, WarmBlock, Warmth};
use crate::types::FileId;

/// Tables of a file begin at multiples of this.
const TABLE_ALIGN_BYTES: usize = 4096;
/// Records added between two chances for other tasks.
const YIELD_RECORDS: u32 = 8;
/// Bytes per write request; bounds how long a foreground request waits behind it at the device.
const WRITE_CHUNK_BYTES: usize = 256 << 10;
/// Writes of a file under way at the same time: while the device works on them, the records of the next are merged.
const WRITES_AT_ONCE: usize = 2;

/// The options of a partition's tables.
fn table_options(options: PartitionOptions) -> TableOptions {
    TableOptions { block_bytes: options.block_bytes as usize, compression: options.compression }
}

/// The options of tables that travel or are built in one go: the wire has a compression of its own, and no dictionary is
/// trained on the core.
pub(super) fn plain_options(options: PartitionOptions) -> TableOptions {
    TableOptions { compression: Compression::None, ..table_options(options) }
}

/// A table that was written.
pub(super) struct WrittenTable {
    pub location: TableRef,
    /// Those of its blocks that the cache is to have, by place.
    prepared: Vec<(usize, PreparedBlock)>,
}

impl WrittenTable {
    /// Opens it, once its file is finished.
    pub async fn open(self, shard: &Shard, file: &Rc<TableFile>) -> Result<Rc<Table>> {
        let table = shard.open_table(file, self.location).await?;
        table.adopt(self.prepared);
        Ok(table)
    }
}

/// A table file being written. Dropped before [`TableFileWriter::finish`], it is removed: on a full device a flush that is
/// tried again must not take more room each time.
pub(super) struct TableFileWriter {
    shard: Rc<Shard>,
    class: IoClass,
    id: FileId,
    file: Rc<DirectFile>,
    unfinished: Unfinished,
    options: PartitionOptions,
    builder: TableBuilder,
    /// Blocks of the open table that are in the cache's memory.
    prepared: Vec<(usize, PreparedBlock)>,
    /// Where the open table begins.
    table_start: u64,
    /// What is written next, and where.
    chunk: AlignedBuf,
    offset: u64,
    /// Oldest first.
    writes: VecDeque<Pin<Box<dyn Future<Output = Result<()>>>>>,
    since_yield: u32,
}

impl TableFileWriter {
    pub async fn create(shard: &Rc<Shard>, options: PartitionOptions, class: IoClass) -> Result<TableFileWriter> {
        let id = shard.allocate_file();
        let file = Rc::new(DirectFile::create(&shard.table_path(id)).await?);
        let unfinished = shard.unfinished(id);
        let builder = TableBuilder::reusing(table_options(options), shard.take_build_buffers());
        let shard = Rc::clone(shard);
        Ok(TableFileWriter {
            shard,
            class,
            id,
            file,
            unfinished,
            options,
            builder,
            prepared: Vec::new(),
            table_start: 0,
            chunk: AlignedBuf::with_capacity(WRITE_CHUNK_BYTES),
            offset: 0,
            writes: VecDeque::with_capacity(WRITES_AT_ONCE),
            since_yield: 0,
        })
    }

    /// Adds a record to the open table. What was warm stays in memory: blocks of warm records go into the cache as they
    /// are written, and all blocks while it has room.
    pub async fn add(&mut self, record: RecordView<'_>, warmth: Warmth) -> Result<()> {
        let has_room = self.shard.cache().has_room(self.options.block_bytes as usize * 2);
        self.builder.add_warm(record, warmth, has_room)?;
        let collected = self.builder.take_collected();
        self.prepare(collected).await?;
        self.pack_backlog(false).await?;
        let room = WRITE_CHUNK_BYTES - self.chunk.len();
        if self.builder.take_ready(room, room, |ready| self.chunk.extend_from_slice(ready)) {
            self.write_chunk().await?;
        }
        self.since_yield += 1;
        if self.since_yield == YIELD_RECORDS {
            self.since_yield = 0;
            runtime::yield_now().await;
        }
        Ok(())
    }

    /// Bytes of the open table so far.
    pub fn table_bytes(&self) -> usize {
        self.builder.estimated_len()
    }

    async fn prepare(&mut self, collected: Vec<WarmBlock>) -> Result<()> {
        for WarmBlock { block, crc, warmth, archive } in collected {
            let corrupt = |what| Error::Invalid { what: format!("a block that was just built is wrong: {what}") };
            let verified = VerifiedBlock::new(archive.into(), crc).map_err(corrupt)?;
            self.shard.cache().prepare_slab().await;
            self.prepared.push((block, self.shard.cache().prepare(verified, warmth)));
        }
        Ok(())
    }

    /// Ends the open table and begins the next; `None` if it held no record.
    pub async fn end_table(&mut self) -> Result<Option<WrittenTable>> {
        if self.builder.is_empty() {
            return Ok(None);
        }
        self.pack_backlog(true).await?;
        let builder = std::mem::replace(&mut self.builder, TableBuilder::new(table_options(self.options)));
        let mut built = builder.finish()?;
        self.prepare(std::mem::take(&mut built.collected)).await?;
        let (len, max_lsn) = (built.meta.len, built.meta.max_lsn);
        let location = self.end_at(&built.bytes, len, max_lsn).await?;
        self.builder = TableBuilder::reusing(table_options(self.options), built.buffers());
        Ok(Some(WrittenTable { location, prepared: std::mem::take(&mut self.prepared) }))
    }

    /// Has a dictionary trained and the blocks that waited for it compressed, off the core.
    async fn pack_backlog(&mut self, at_end: bool) -> Result<()> {
        if let Some(backlog) = self.builder.take_backlog(at_end)? {
            let packed = runtime::unblock(move || backlog.pack()).await?;
            self.builder.resume(packed);
        }
        Ok(())
    }

    /// Writes a complete table (of this builder or of another host).
    pub async fn write_table(&mut self, bytes: &[u8], max_lsn: crate::types::Lsn) -> Result<TableRef> {
        assert!(self.builder.is_empty(), "INV-OUTPUT: tables of a file do not interleave");
        self.end_at(bytes, bytes.len() as u64, max_lsn).await
    }

    /// Takes the last bytes of a table in, which has `len` of them; the next one begins behind it.
    async fn end_at(&mut self, mut last: &[u8], len: u64, max_lsn: crate::types::Lsn) -> Result<TableRef> {
        while !last.is_empty() {
            let (next, rest) = last.split_at(last.len().min(WRITE_CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(next);
            last = rest;
            if rest.is_empty() {
                self.chunk.pad_to(TABLE_ALIGN_BYTES);
            }
            if self.chunk.len() == WRITE_CHUNK_BYTES {
                self.write_chunk().await?;
            }
        }
        let location = TableRef { file: self.id, offset: self.table_start, len, max_lsn };
        self.table_start = self.offset + self.chunk.len() as u64;
        Ok(location)
    }

    /// Begins to write what has been gathered. What a write fails with is told by a later one, or at the end.
    async fn write_chunk(&mut self) -> Result<()> {
        let chunk = std::mem::replace(&mut self.chunk, AlignedBuf::with_capacity(WRITE_CHUNK_BYTES));
        let (file, offset, len) = (Rc::clone(&self.file), self.offset, chunk.len());
        self.shard.governor().take(self.class, len).await;
        self.wait_for_writes(WRITES_AT_ONCE - 1).await?;
        let mut write: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move { file.write_all(offset, chunk).await });
        // The device has it from the first look on.
        match future::poll_once(&mut write).await {
            Some(written) => written?,
            None => self.writes.push_back(write),
        }
        self.offset += len as u64;
        Ok(())
    }

    /// Waits until at most so many writes are under way.
    async fn wait_for_writes(&mut self, left: usize) -> Result<()> {
        while self.writes.len() > left
            && let Some(oldest) = self.writes.pop_front()
        {
            oldest.await?;
        }
        Ok(())
    }

    /// Makes the file and its name durable and opens it for reading.
    pub async fn finish(mut self) -> Result<Rc<TableFile>> {
        if self.chunk.len() > 0 {
            self.write_chunk().await?;
        }
        self.wait_for_writes(0).await?;
        self.shard.keep_build_buffers(self.builder.into_buffers());
        let dir = self.shard.dir().to_path_buf();
        let Ok(file) = Rc::try_unwrap(self.file) else {
            unreachable!("only writes share the file, and all have ended")
        };
        file.close_durable().await?;
        if !planted(Bug::ReorderManifest) {
            runtime::unblock(move || crate::io::fs::sync_dir(&dir)).await?;
        }
        let opened = self.shard.open_file(self.id).await?;
        self.unfinished.keep();
        Ok(opened)
    }
}
