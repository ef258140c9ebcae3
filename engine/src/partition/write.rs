//! The life of a put: check, wait for the gate, assign an LSN, WAL and memtable, wait until visible. A batch is the
//! same with many records in one step, after the reads that it asks for.

mod modify;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;

use crate::clock;
use crate::config::Durability;
use crate::erasure::Erasure;
use crate::error::{Error, Result};
use crate::io::ring::LogAwaited;
use crate::limits;
use crate::memtable::Memtable;
use crate::record::{Record, RecordKind, RecordView};
use crate::types::{AttemptId, Hlc, Lsn, WalSeq};
use crate::wal::Entry;

use super::batch::{Batch, Commit, Conflict, Merged, Operation, RECORD_OVERHEAD_BYTES, Resolved};
use super::{Partition, Serving};

/// Range deletions of a memtable at which it is closed: each costs every read a comparison.
const ERASURES_MAX: usize = 256;

/// One change of one key.
#[doc = example!(r#"people.write(Write::put("ada", "1815")).await?;
people.write(Write::delete("ada")).await?;"#)]
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
    #[doc = example!(r#"people.write(Write::put("ada", "1815")).await?;"#)]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Write {
        Write { key: key.into(), value: Some(value.into()), expires_at_ms: 0 }
    }

    /// Removes `key`.
    #[doc = example!(r#"people.write(Write::delete("ada")).await?;"#)]
    pub fn delete(key: impl Into<Bytes>) -> Write {
        Write { key: key.into(), value: None, expires_at_ms: 0 }
    }
}

/// What an acknowledged write was given.
#[doc = example!(r#"let first = people.put("ada", "1815").await?;
let second = people.put("ada", "1816").await?;
assert!(second.lsn > first.lsn && second.hlc > first.hlc);"#)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its place in the partition's history.
    pub lsn: Lsn,
    /// Its timestamp.
    pub hlc: Hlc,
}

/// The moment that a conditional write looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadBase {
    pub lsn: Lsn,
    /// Memtables flushed until then.
    flushes: u64,
}

/// What one record will say, before it has its place in the history.
#[derive(Debug)]
pub(super) struct Change {
    pub key: Bytes,
    pub kind: RecordKind,
    pub expires_at_ms: u64,
    pub value: Bytes,
}

impl Change {
    fn logged_bytes(&self) -> usize {
        RECORD_OVERHEAD_BYTES + self.key.len() + self.value.len()
    }
}

impl From<Write> for Change {
    fn from(write: Write) -> Change {
        let kind = if write.value.is_some() { RecordKind::Put } else { RecordKind::Delete };
        Change { key: write.key, kind, expires_at_ms: write.expires_at_ms, value: write.value.unwrap_or_default() }
    }
}

impl Partition {
    /// Applies one write. Parks while the partition is frozen.
    ///
    /// Errors: limits, [`crate::Error::WrongPartition`], [`crate::Error::Moved`], [`crate::Error::NotOwner`],
    /// [`crate::Error::ReadOnly`], [`crate::Error::NoRoom`]; in each case nothing was written, except that after `ReadOnly` the write may or may
    /// not survive a restart.
    /// Cancel: before the first await nothing happened; later the write takes place unacknowledged.
    /// Cost: one WAL record, one memtable insert; no I/O of its own (group commit).
    pub async fn write(&self, write: Write, durability: Durability) -> Result<Written> {
        self.check_key(&write.key)?;
        if let Some(value) = &write.value {
            limits::check_value(value)?;
        }
        self.wait_writable(durability).await?;
        let written = self.append(write.into(), durability)?;
        self.freeze_if_full();
        self.settle(written.lsn, durability).await?;
        Ok(written)
    }

    /// Applies a batch: all of it or nothing, in the log, for readers and after a crash. Conditions and merges see the
    /// key as the newest write before this one left it, and nothing is written to those keys in between. A failed
    /// condition is a [`Commit::Conflict`] and not an error.
    ///
    /// Errors: as [`Partition::write`], [`crate::Error::BatchLength`] (also for a batch that the WAL's files cannot
    /// hold in one piece), [`crate::Error::Merge`]; nothing was written.
    /// Cancel: as [`Partition::write`].
    /// Cost: a record a change (a range deletion: one a segment), one read a merge and condition.
    pub async fn commit(&self, batch: Batch, durability: Durability) -> Result<Commit> {
        batch.check(|key| self.check_key(key))?;
        let changes = loop {
            self.wait_writable(durability).await?;
            if !batch.reads() {
                break self.changes_of(&batch, &Resolved::default())?;
            }
            let base = self.read_base();
            // Older versions go as newer ones become visible; until the batch is settled it needs those of its base.
            let _pin = self.snapshots.pin(base.lsn, clock::wall_ms());
            if let Some(conflict) = self.first_conflict(&batch, base.lsn).await? {
                // What is reported must not be undone by a crash; an absent key may owe that to a delete on its way.
                let seen = conflict.found.as_ref().map_or(base.lsn, |found| found.version.lsn);
                self.settle(seen, durability).await?;
                return Ok(Commit::Conflict(conflict));
            }
            let resolved = self.resolve_merges(&batch, base.lsn).await?;
            if self.may_write_now() && batch.keys_read().all(|key| self.unchanged_since(key, base)) {
                break self.changes_of(&batch, &resolved)?;
            }
        };
        let first = self.assigned().next();
        let mut written = Written { lsn: self.assigned(), hlc: self.shard.clock().last() };
        for change in changes {
            written = self.append(change, durability)?;
        }
        self.progress.borrow_mut().group(first);
        self.freeze_if_full();
        self.settle(written.lsn, durability).await?;
        Ok(Commit::Written(written))
    }

    /// Acknowledges what the level promises.
    async fn settle(&self, lsn: Lsn, durability: Durability) -> Result<()> {
        match durability {
            Durability::Durable => self.wait_confirmed(lsn).await,
            Durability::Buffered | Durability::Memory => {
                self.progress.borrow_mut().expose(lsn);
                Ok(())
            }
        }
    }

    /// The first condition that does not hold at `base`.
    async fn first_conflict(&self, batch: &Batch, base: Lsn) -> Result<Option<Conflict>> {
        let now_ms = clock::wall_ms();
        for (key, condition) in &batch.conditions {
            let found = self.state_at(key, base, now_ms).await?;
            if !condition.holds(found.as_ref()) {
                return Ok(Some(Conflict { key: key.clone(), found }));
            }
        }
        Ok(None)
    }

    /// What each merge of the batch makes of the state at `base` and of the changes before it.
    async fn resolve_merges(&self, batch: &Batch, base: Lsn) -> Result<Resolved> {
        let now_ms = clock::wall_ms();
        let mut resolved = Resolved::default();
        for (index, operation) in batch.operations.iter().enumerate() {
            if let Operation::Merge { key, operand, operator } = operation {
                let existing = match batch.changed_before(index, key, &resolved) {
                    Some(changed) => changed,
                    None => self
                        .state_at(key, base, now_ms)
                        .await?
                        .map(|found| Merged { value: found.value, expires_at_ms: found.expires_at_ms }),
                };
                let value = operator.apply(key, existing.as_ref().map(|merged| merged.value.as_ref()), operand)?;
                limits::check_value(&value)?;
                let expires_at_ms = existing.map_or(0, |merged| merged.expires_at_ms);
                resolved.insert(index, Merged { value: value.into(), expires_at_ms });
            }
        }
        Ok(resolved)
    }

    /// The records of a batch, ranges cut at the segments' bounds. Nothing may be awaited between this and their
    /// appending: the layout may change.
    fn changes_of(&self, batch: &Batch, resolved: &Resolved) -> Result<Vec<Change>> {
        let layout = self.layout();
        let mut changes: Vec<Change> = Vec::with_capacity(batch.operations.len());
        for (index, operation) in batch.operations.iter().enumerate() {
            match operation {
                Operation::Write(write) => changes.push(Change::from(write.clone())),
                Operation::Merge { key, .. } => {
                    let Merged { value, expires_at_ms } = resolved.get(&index).cloned().unwrap_or_default();
                    changes.push(Change { key: key.clone(), kind: RecordKind::Put, expires_at_ms, value });
                }
                Operation::DeleteRange(range) => {
                    let (start, end) = self.clamp(range);
                    let whole = Erasure { start, end, lsn: Lsn(0), hlc: Hlc(0) };
                    for segment in &layout.segments {
                        let piece = whole.clipped(&segment.start, segment.end.as_ref());
                        changes.extend(piece.map(|piece| {
                            let Record { key, kind, expires_at_ms, value, .. } = piece.to_record();
                            Change { key, kind, expires_at_ms, value }
                        }));
                    }
                }
            }
        }
        self.shard.wal().check_batch(changes.iter().map(Change::logged_bytes).sum())?;
        Ok(changes)
    }

    /// The moment that a write which reads first looks at.
    pub(super) fn read_base(&self) -> ReadBase {
        ReadBase { lsn: self.assigned(), flushes: self.flushes.get() }
    }

    /// Whether nothing has been written to `key` since a reader looked at it.
    pub(super) fn unchanged_since(&self, key: &[u8], base: ReadBase) -> bool {
        if self.assigned() == base.lsn {
            return true;
        }
        let layout = self.layout.borrow();
        // The segment's version is the cheap answer; a busy segment asks the memtables, which have every newer version
        // of the key unless one was flushed meanwhile.
        layout.segments[layout.locate(key)].version.get() <= base.lsn
            || (self.flushes.get() == base.flushes && self.newest_in_memtables(key) <= base.lsn)
    }

    /// Whether a write that was let through may still be appended.
    fn may_write_now(&self) -> bool {
        matches!(self.gate(), Some(Ok(()))) && self.shard.has_room()
    }

    /// Waits until this host accepts writes and the WAL and the memtables have room.
    pub(super) async fn wait_writable(&self, durability: Durability) -> Result<()> {
        loop {
            self.serving_changed.wait_for(|| self.gate()).await?;
            self.shard.wait_room(durability).await?;
            if self.may_write_now() {
                return Ok(());
            }
        }
    }

    /// Whether writes may pass; `None` parks them.
    fn gate(&self) -> Option<Result<()>> {
        if let Some(cause) = self.shard.wal().failure() {
            return Some(Err(cause));
        }
        if self.retired.get() {
            return Some(Err(Error::UnknownPartition { partition: self.id }));
        }
        match self.serving.get() {
            Serving::Owner => Some(Ok(())),
            Serving::Frozen | Serving::Suspended => None,
            Serving::Shadow { attempt } => Some(Err(self.not_owner(attempt))),
            Serving::Released { owner } => Some(Err(self.moved(owner))),
        }
    }

    /// The step without an await: LSN, WAL, memtable, counters and mirror agree on one order.
    fn append(&self, change: Change, durability: Durability) -> Result<Written> {
        self.append_stamped(change, None, durability)
    }

    /// As [`Partition::append`]; a record that was written elsewhere keeps the timestamp it was given there.
    pub(super) fn append_stamped(&self, change: Change, stamp: Option<Hlc>, durability: Durability) -> Result<Written> {
        assert_eq!(self.serving.get(), Serving::Owner, "INV-GATE: only the owner writes");
        let clock = self.shard.clock();
        stamp.into_iter().for_each(|stamp| clock.observe(stamp));
        let hlc = stamp.unwrap_or_else(|| clock.tick(clock::wall_ms()));
        let lsn = self.progress.borrow_mut().assign();
        let Change { key, kind, expires_at_ms, value } = change;
        let record = Record { key, lsn, hlc, kind, expires_at_ms, value };
        // A mirrored record is logged, whatever its level: source and target hold the same history.
        if durability == Durability::Memory && self.mirror.borrow().is_none() {
            self.unlogged.set(true);
            self.progress.borrow_mut().unlogged();
        } else {
            let seq = self.log(AttemptId(0), &record)?;
            self.progress.borrow_mut().submitted(seq);
        }

        let layout = self.layout.borrow();
        let index = layout.locate(&record.key);
        let segment = &layout.segments[index];
        segment.version.set(lsn);
        let bytes = (record.key.len() + record.value.len()) as u64;
        self.access.borrow_mut().record_write(index, &record.key, bytes);
        if let Some(tap) = self.mirror.borrow_mut().as_mut() {
            tap.push(index, segment.id, &record);
        }
        let horizon = self.snapshots.horizon(self.progress.borrow().visible());
        self.remember(record.view(), horizon);
        Ok(Written { lsn, hlc })
    }

    /// Appends a record to the shard's WAL.
    pub(super) fn log(&self, attempt: AttemptId, record: &Record) -> Result<WalSeq> {
        self.shard.wal().append(Entry { partition: self.id, attempt, record: record.view() })
    }

    /// Inserts into the active memtable; see [`Memtable::insert_above`].
    fn remember(&self, record: RecordView<'_>, horizon: Lsn) {
        let active = self.active.borrow();
        let before = active.bytes();
        match active.insert_above(record, horizon) {
            Some(hash) => self.shard.rows().forget(self.id, hash),
            None => self.shard.rows().forget_all(),
        }
        if active.bytes() != before {
            drop(active);
            self.shard.account_memtables();
        }
    }

    /// Inserts into the active memtable, and closes it when it has grown to its share.
    pub(super) fn insert(&self, record: &Record) {
        self.remember(record.view(), Lsn(0));
        self.freeze_if_full();
    }

    /// Closes the active memtable if it has grown to its share. Not called inside an atomic batch, which one memtable
    /// holds whole.
    pub(crate) fn freeze_if_full(&self) {
        let full = {
            let active = self.active.borrow();
            active.bytes() >= self.shard.memtable_bytes_max() || active.erasures().len() >= ERASURES_MAX
        };
        if full {
            self.freeze_memtable();
        }
    }

    /// Closes the active memtable; the flush task takes it from there.
    pub(crate) fn freeze_memtable(&self) {
        if self.active.borrow().is_empty() {
            return;
        }
        let fresh = Rc::new(Memtable::with_stock(self.shard.wal().collecting(), self.shard.memtable_stock()));
        let full = self.active.replace(fresh);
        self.frozen.borrow_mut().insert(0, full);
        self.shard.set_pace();
        self.shard.request_maintenance();
    }

    /// Waits until `lsn` is durable, at the target of a synchronous mirror too.
    pub(super) async fn wait_confirmed(&self, lsn: Lsn) -> Result<()> {
        let _awaited = LogAwaited::new();
        poll_fn(|context| {
            let mut progress = self.progress.borrow_mut();
            if progress.confirmed() >= lsn {
                return Poll::Ready(Ok(()));
            }
            if let Some(cause) = self.shard.wal().failure() {
                return Poll::Ready(Err(cause));
            }
            // A synchronous mirror ended by a forced promotion elsewhere: the new owner does not have the record, and what
            // becomes of it the reconciliation says.
            if let Serving::Released { owner } = self.serving.get()
                && progress.is_synchronous()
            {
                return Poll::Ready(Err(self.moved(owner)));
            }
            progress.wait(lsn, context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
