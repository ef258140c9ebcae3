//! Flush: the oldest closed memtable becomes one run file, of which each segment owns a slice.

use std::rc::Rc;

use crate::error::Result;
use crate::manifest::{ManifestEdit, TableRef};
use crate::memtable::{Memtable, MemtableCursor};
use crate::merge::{MergeIter, Retain, Source};
use crate::types::{SegmentId, WalSeq};

use super::Partition;
use super::layout::Layout;
use super::output::TableFileWriter;

impl Partition {
    /// Flushes the oldest closed memtable; false if there is none.
    ///
    /// Errors: the memtable stays, nothing is lost; the next call tries again unless the manifest latched.
    pub(crate) async fn flush_oldest(&self) -> Result<bool> {
        let _guard = self.maintenance.lock().await;
        let Some(memtable) = self.frozen.borrow().last().cloned() else {
            return Ok(false);
        };
        self.wait_logged(&memtable).await?;
        let layout = self.layout();
        let (writer, slices) = self.write_run(&memtable, &layout).await?;
        let file = writer.finish().await?;
        let replay_from = self.replay_from_after(&memtable);
        let edit = ManifestEdit::AddRun {
            partition: self.id,
            slices: slices.clone(),
            replay_from,
            last_lsn: memtable.max_lsn().max(self.progress.borrow().durable()),
        };
        self.shard.log_edits(vec![edit]).await?;
        let mut segments = layout.segments.clone();
        for (segment, location) in slices {
            let index = layout.index_of(segment).unwrap_or_else(|| unreachable!("INV-MAINT: the layout is ours"));
            let table = self.shard.open_table(&file, location).await?;
            segments[index] = Rc::new(segments[index].with_slice(table));
        }
        self.replay_from.set(replay_from);
        // One step: readers see the records in the memtable or in the slices, never in neither.
        *self.layout.borrow_mut() = Layout::new(segments);
        self.frozen.borrow_mut().pop();
        Ok(true)
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
        let _guard = self.maintenance.lock().await;
        let idle = self.frozen.borrow().is_empty() && self.active.borrow().is_empty();
        let replay_from = self.shard.wal().collecting();
        if !idle || replay_from <= self.replay_from.get() {
            return Ok(());
        }
        *self.active.borrow_mut() = Rc::new(Memtable::new(replay_from));
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

    async fn write_run(
        &self,
        memtable: &Rc<Memtable>,
        layout: &Rc<Layout>,
    ) -> Result<(TableFileWriter, Vec<(SegmentId, TableRef)>)> {
        let mut writer = TableFileWriter::create(&self.shard, self.options).await?;
        let mut slices = Vec::new();
        for segment in &layout.segments {
            let cursor = MemtableCursor::new(
                Rc::clone(memtable),
                segment.start.clone(),
                segment.end.clone(),
                memtable.max_lsn(),
            );
            let mut records = MergeIter::new(vec![Source::Memtable(cursor)], Retain::needed(&self.snapshots.lsns()));
            while records.advance().await? {
                writer.add(records.current()).await?;
            }
            if let Some(location) = writer.end_table().await? {
                slices.push((segment.id, location));
            }
        }
        Ok((writer, slices))
    }
}
