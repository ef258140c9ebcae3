//! Flush: the oldest closed memtable becomes one run file, of which each segment owns a slice.

use std::rc::Rc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::erasure::Erasure;
use crate::error::Result;
use crate::governor::IoClass;
use crate::io::runtime;
use crate::manifest::ManifestEdit;
use crate::memtable::{Memtable, MemtableCursor};
use crate::merge::{MergeIter, Retain, Source};
use crate::shard::files::{Table, TableFile};
use crate::types::{Lsn, WalSeq};

use super::Partition;
use super::compact::LOOK_RECORDS;
use super::layout::Layout;
use super::output::{TableFileWriter, WrittenTable};

/// Slices of a run that are opened at the same time: each takes some reads, one after another.
const OPENED_AT_ONCE: usize = 16;

impl Partition {
    /// Flushes the oldest closed memtable; false if there is none.
    ///
    /// Errors: the memtable stays, nothing is lost; the next call tries again unless the manifest latched.
    pub(crate) async fn flush_oldest(&self) -> Result<bool> {
        let Some(_guard) = self.lock_maintenance().await else {
            return Ok(false);
        };
        self.flush_oldest_locked().await
    }

    /// As [`Partition::flush_oldest`], for whoever holds the maintenance lock.
    pub(crate) async fn flush_oldest_locked(&self) -> Result<bool> {
        let Some(memtable) = self.frozen.borrow().last().cloned() else {
            return Ok(false);
        };
        let flushed = self.flush(memtable).await;
        // First, so that whoever is told of the room is not let in by what was flushed before.
        self.shard.note_flushed(0.0);
        if flushed.is_ok() {
            self.shard.handle_memtable_freed();
        }
        self.shard.note_flush(&flushed);
        flushed.map(|()| true)
    }

    async fn flush(&self, memtable: Rc<Memtable>) -> Result<()> {
        self.wait_logged(&memtable).await?;
        let layout = self.layout();
        let erased = self.erased_by(&memtable, &layout);
        let (writer, slices) = self.write_run(&memtable, &layout).await?;
        let file = writer.finish().await?;
        if slices.is_empty() {
            // Nothing but range deletions: no table lies in the file.
            file.mark_obsolete();
        }
        // Opened before the manifest names them: a file that cannot be read back leaves the memtable where it is.
        let tables = self.open_slices(slices, &file).await.inspect_err(|_| file.mark_obsolete())?;
        let replay_from = self.replay_from_after(&memtable);
        let mut edits = vec![ManifestEdit::AddRun {
            partition: self.id,
            slices: tables.iter().map(|(index, table)| (layout.segments[*index].id, table.location)).collect(),
            replay_from,
            last_lsn: memtable.max_lsn().max(self.progress.borrow().durable()),
        }];
        edits.push(ManifestEdit::Flushed { partition: self.id, lsn: memtable.max_lsn() });
        edits.extend(erased.iter().map(|(index, erasures)| ManifestEdit::AddErasures {
            partition: self.id,
            segment: layout.segments[*index].id,
            erasures: erasures.clone(),
        }));
        self.shard.log_edits(edits).await?;
        // Nothing is awaited from here until the layout is in place: a write in between would raise the version of a
        // segment that has been copied already.
        let mut segments = layout.segments.clone();
        for (index, table) in tables {
            segments[index] = Rc::new(segments[index].with_flushed(Some(table), &[]));
        }
        for (index, erasures) in erased {
            segments[index] = Rc::new(segments[index].with_flushed(None, &erasures));
        }
        self.replay_from.set(replay_from);
        // One step: readers see the records in the memtable or in the slices, never in neither.
        *self.layout.borrow_mut() = Layout::new(segments);
        let flushed = self.frozen.borrow_mut().pop();
        drop(memtable);
        self.flushes.set(self.flushes.get() + 1);
        self.count_table_bytes();
        self.owed_compactions.update(|owed| owed + self.compactions_for_flush());
        if let Some(Ok(mut unread)) = flushed.map(Rc::try_unwrap) {
            while unread.shed() {
                runtime::yield_now().await;
            }
        }
        Ok(())
    }

    /// Opens the slices of a run, in their order.
    async fn open_slices(
        &self,
        slices: Vec<(usize, WrittenTable)>,
        file: &Rc<TableFile>,
    ) -> Result<Vec<(usize, Rc<Table>)>> {
        let opening =
            slices.into_iter().map(|(index, slice)| async move { Ok((index, slice.open(&self.shard, file).await?)) });
        stream::iter(opening).buffered(OPENED_AT_ONCE).try_collect().await
    }

    /// Bytes of the memtable that is written to, and of those that wait for their flush.
    pub(crate) fn active_and_frozen_bytes(&self) -> (usize, usize) {
        (self.active.borrow().bytes(), self.frozen.borrow().iter().map(|table| table.bytes()).sum())
    }

    /// Whether the memtables may hold records that are in no log.
    pub(crate) fn has_unlogged(&self) -> bool {
        self.unlogged.get()
    }

    /// Memtables that wait for their flush.
    pub(crate) fn frozen_memtables(&self) -> usize {
        self.frozen.borrow().len()
    }

    /// Whether a memtable waits for its flush.
    pub(crate) fn has_frozen_memtable(&self) -> bool {
        !self.frozen.borrow().is_empty()
    }

    /// First batch that holds a record which is in no table; everything is, up to the batch being collected, when the
    /// memtables are empty.
    pub(crate) fn unflushed_from(&self) -> WalSeq {
        let frozen = self.frozen.borrow();
        let active = self.active.borrow();
        match frozen.last() {
            Some(oldest) => oldest.first_seq(),
            None if active.is_empty() => self.shard.wal().collecting(),
            None => active.first_seq(),
        }
    }

    /// First batch that the durable manifest still needs.
    pub(crate) fn replay_from(&self) -> WalSeq {
        self.replay_from.get()
    }

    /// Tells the manifest that an idle partition needs nothing of the log before the batch being collected.
    ///
    /// Errors: [`crate::Error::Io`].
    pub(crate) async fn advance_replay(&self) -> Result<()> {
        let Some(_guard) = self.lock_maintenance().await else {
            return Ok(());
        };
        let idle = self.frozen.borrow().is_empty() && self.active.borrow().is_empty();
        let replay_from = self.shard.wal().collecting();
        if !idle || replay_from <= self.replay_from.get() {
            return Ok(());
        }
        *self.active.borrow_mut() = Rc::new(Memtable::with_stock(replay_from, self.shard.memtable_stock()));
        let last_lsn = self.progress.borrow().durable();
        let edit = ManifestEdit::AddRun { partition: self.id, slices: Vec::new(), replay_from, last_lsn };
        self.shard.log_edits(vec![edit]).await?;
        self.replay_from.set(replay_from);
        Ok(())
    }

    /// Where recovery has to begin once `flushed` (the oldest memtable) is on the device.
    fn replay_from_after(&self, flushed: &Rc<Memtable>) -> WalSeq {
        let frozen = self.frozen.borrow();
        let next = frozen.iter().rev().find(|table| !Rc::ptr_eq(table, flushed));
        next.map_or_else(|| self.active.borrow().first_seq(), |table| table.first_seq())
    }

    /// A run never holds a record that the WAL could still lose.
    async fn wait_logged(&self, memtable: &Rc<Memtable>) -> Result<()> {
        let last_batch = self.replay_from_after(memtable);
        self.shard.wal().wait_durable(last_batch).await
    }

    /// What the readers of now and to come need.
    fn needed_versions(&self) -> Retain {
        Retain::needed(&self.snapshots.lsns(), self.progress.borrow().visible())
    }

    /// The range deletions of a memtable, by index of the segment that they lie in.
    fn erased_by(&self, memtable: &Memtable, layout: &Layout) -> Vec<(usize, Vec<Erasure>)> {
        let retain = self.needed_versions();
        let pieces = layout.segments.iter().enumerate().map(|(index, segment)| {
            let within = memtable.erasures().within(&segment.start, segment.end.as_ref(), Lsn(0), memtable.max_lsn());
            let mut erasures = within;
            retain.keep_erasures(&mut erasures);
            (index, erasures)
        });
        pieces.filter(|(_, erasures)| !erasures.is_empty()).collect()
    }

    async fn write_run(
        &self,
        memtable: &Rc<Memtable>,
        layout: &Rc<Layout>,
    ) -> Result<(TableFileWriter, Vec<(usize, WrittenTable)>)> {
        let mut writer = TableFileWriter::create(&self.shard, self.options, IoClass::Flush).await?;
        let mut slices = Vec::new();
        let mut done: u64 = 0;
        for (index, segment) in layout.segments.iter().enumerate() {
            let cursor = MemtableCursor::new(
                Rc::clone(memtable),
                segment.start.clone(),
                segment.end.clone(),
                memtable.max_lsn(),
            );
            let erasures = memtable.erasures().within(&segment.start, segment.end.as_ref(), Lsn(0), memtable.max_lsn());
            let mut records =
                MergeIter::new(vec![Source::Memtable(cursor)], self.needed_versions()).erased_by(erasures);
            while records.advance().await? {
                writer.add(records.current(), records.current_warmth()).await?;
                done += 1;
                if done.is_multiple_of(LOOK_RECORDS) {
                    self.shard.note_flushed(memtable.bytes() as f64 * done as f64 / memtable.records() as f64);
                }
            }
            if let Some(slice) = writer.end_table().await? {
                slices.push((index, slice));
            }
        }
        Ok((writer, slices))
    }
}
