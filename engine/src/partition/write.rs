//! The life of a put: check, wait for the gate, assign an LSN, WAL and memtable, wait until visible.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;

use crate::clock;
use crate::config::Durability;
use crate::error::Result;
use crate::limits;
use crate::memtable::Memtable;
use crate::record::{Record, RecordKind};
use crate::types::{AttemptId, Hlc, Lsn, WalSeq};
use crate::wal::Entry;

use super::{Partition, Serving};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Routing key.
    pub key: Bytes,
    /// The new value; `None` deletes.
    pub value: Option<Bytes>,
    /// Deadline in milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
}

impl Write {
    /// Sets `key` to `value`.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Write {
        Write { key: key.into(), value: Some(value.into()), expires_at_ms: 0 }
    }

    /// Removes `key`.
    pub fn delete(key: impl Into<Bytes>) -> Write {
        Write { key: key.into(), value: None, expires_at_ms: 0 }
    }

    fn into_record(self, lsn: Lsn, hlc: Hlc) -> Record {
        let kind = if self.value.is_some() { RecordKind::Put } else { RecordKind::Delete };
        let value = self.value.unwrap_or_default();
        Record { key: self.key, lsn, hlc, kind, expires_at_ms: self.expires_at_ms, value }
    }
}

/// What an acknowledged write was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its place in the partition's history.
    pub lsn: Lsn,
    /// Its timestamp.
    pub hlc: Hlc,
}

impl Partition {
    /// Applies one write. Parks while the partition is frozen.
    ///
    /// Errors: limits, [`Error::WrongPartition`], [`Error::Moved`], [`Error::NotOwner`], [`Error::ReadOnly`]; in each
    /// case nothing was written, except that after `ReadOnly` the write may or may not survive a restart.
    /// Cancel: before the first await nothing happened; later the write takes place unacknowledged.
    /// Cost: one WAL record, one memtable insert; no I/O of its own (group commit).
    pub async fn write(&self, write: Write, durability: Durability) -> Result<Written> {
        self.check_key(&write.key)?;
        if let Some(value) = &write.value {
            limits::check_value(value)?;
        }
        self.wait_writable().await?;
        let written = self.append(write)?;
        match durability {
            Durability::Durable => self.wait_visible(written.lsn).await?,
            Durability::Buffered => self.progress.borrow_mut().expose(written.lsn),
        }
        Ok(written)
    }

    /// Waits until this host accepts writes and the WAL and the memtables have room.
    async fn wait_writable(&self) -> Result<()> {
        loop {
            self.serving_changed.wait_for(|| self.gate()).await?;
            if !self.shard.wal().has_room() {
                self.shard.wal().wait_room().await?;
            } else if self.shard.memtables_full() {
                self.shard.wait_memtable_room().await?;
            } else {
                return Ok(());
            }
        }
    }

    /// Whether writes may pass; `None` parks them.
    fn gate(&self) -> Option<Result<()>> {
        if let Some(cause) = self.shard.wal().failure() {
            return Some(Err(cause));
        }
        match self.serving.get() {
            Serving::Owner => Some(Ok(())),
            Serving::Frozen | Serving::Suspended => None,
            Serving::Shadow { attempt } => Some(Err(self.not_owner(attempt))),
            Serving::Released { owner } => Some(Err(self.moved(owner))),
        }
    }

    /// The step without an await: LSN, WAL, memtable, counters and mirror agree on one order.
    fn append(&self, write: Write) -> Result<Written> {
        assert_eq!(self.serving.get(), Serving::Owner, "INV-GATE: only the owner writes");
        let hlc = self.shard.clock().tick(clock::wall_ms());
        let lsn = self.progress.borrow_mut().assign();
        let record = write.into_record(lsn, hlc);
        let seq = self.log(AttemptId(0), &record)?;
        self.progress.borrow_mut().submitted(seq);

        let layout = self.layout();
        let index = layout.locate(&record.key);
        let segment = &layout.segments[index];
        segment.version.set(lsn);
        let bytes = (record.key.len() + record.value.len()) as u64;
        self.access.borrow_mut().windows.record_write(index, bytes);
        if let Some(tap) = self.mirror.borrow_mut().as_mut() {
            tap.push(index, segment.id, &record);
        }
        self.insert(&record);
        Ok(Written { lsn, hlc })
    }

    /// Appends a record to the shard's WAL.
    pub(super) fn log(&self, attempt: AttemptId, record: &Record) -> Result<WalSeq> {
        self.shard.wal().append(Entry { partition: self.id, attempt, record: record.view() })
    }

    /// Inserts into the active memtable, and closes it when it has grown to its share.
    pub(super) fn insert(&self, record: &Record) {
        let full = {
            let active = self.active.borrow();
            active.insert(record.view());
            active.bytes() >= self.shard.memtable_bytes_max()
        };
        if full {
            self.freeze_memtable();
        }
    }

    /// Closes a memtable that recovery filled beyond its share.
    pub(crate) fn freeze_if_full(&self) {
        if self.active.borrow().bytes() >= self.shard.memtable_bytes_max() {
            self.freeze_memtable();
        }
    }

    /// Closes the active memtable; the flush task takes it from there.
    pub(crate) fn freeze_memtable(&self) {
        if self.active.borrow().is_empty() {
            return;
        }
        let fresh = Rc::new(Memtable::new(self.shard.wal().collecting()));
        let full = self.active.replace(fresh);
        self.frozen.borrow_mut().insert(0, full);
        self.shard.request_maintenance();
    }

    /// Waits until readers see `lsn`.
    pub(super) async fn wait_visible(&self, lsn: Lsn) -> Result<()> {
        poll_fn(|context| {
            let mut progress = self.progress.borrow_mut();
            if progress.visible() >= lsn {
                return Poll::Ready(Ok(()));
            }
            if let Some(cause) = self.shard.wal().failure() {
                return Poll::Ready(Err(cause));
            }
            progress.wait(lsn, context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
