//! The background task of a shard: flush, compaction, recycling of the log, removal of files, access windows.

use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::io::{fs, runtime};
use crate::partition::Partition;

use super::Shard;

/// Work is looked for at least this often.
const INTERVAL: Duration = Duration::from_millis(500);
/// Time in which the executor closes files that were dropped.
const CLOSE_GRACE: Duration = Duration::from_millis(2);
/// Log files in use above which idle memtables are flushed, so that the log can be recycled.
const WAL_FILES_MAX: usize = 4;

impl Shard {
    /// Starts the tasks that run until the shard closes.
    pub(super) fn start_tasks(self: &Rc<Shard>, removals: async_channel::Receiver<std::path::PathBuf>) {
        let shard = Rc::clone(self);
        self.background().spawn_detached(async move { shard.maintain().await });
        // What sleeps may sleep longer than the shard lives, and an executor that ends does not take its tasks apart.
        self.background().spawn_detached(tick(Rc::downgrade(self)));
        self.background().spawn_detached(close_windows(Rc::downgrade(self), self.config.window));
        let shard = Rc::downgrade(self);
        self.background().spawn_detached(async move {
            while let Ok(path) = removals.recv().await {
                if let Err(cause) = runtime::unblock(move || fs::remove_file(&path)).await {
                    tracing::warn!(%cause, "an obsolete table file stays until the next start");
                }
            }
            if let Some(shard) = shard.upgrade() {
                shard.removals_ended.set(true);
                shard.task_ended.notify_all();
            }
        });
    }

    async fn maintain(self: Rc<Shard>) {
        loop {
            self.maintenance_wanted
                .wait_for(|| (self.maintenance_pending.get() || self.closing.get()).then_some(()))
                .await;
            if self.closing.get() {
                self.maintenance_ended.set(true);
                self.task_ended.notify_all();
                return;
            }
            // Before the look, so that a request that comes during it is not lost.
            self.maintenance_pending.set(false);
            if let Err(cause) = self.maintain_once().await {
                tracing::error!(%cause, shard = self.id.0, "maintenance failed; it is tried again");
                runtime::sleep(INTERVAL).await;
                self.maintenance_pending.set(true);
            }
        }
    }

    /// Does all the work there is.
    async fn maintain_once(self: &Rc<Shard>) -> Result<()> {
        loop {
            let mut worked = false;
            // One memtable at a time: under sustained writes there is always a next one, and neither compaction nor the log
            // may starve behind it.
            for partition in self.partitions() {
                worked |= partition.flush_oldest().await?;
            }
            self.recycle_wal().await?;
            for partition in self.partitions() {
                // A flush gives every segment a slice, so all would need their compaction at the same time, and writers would
                // wait for all of them: as many go behind each flush as are due in the long run.
                for _ in 0..partition.owed_compactions().max(1) {
                    if self.closing.get() || !partition.compact_next().await? {
                        break;
                    }
                    worked = true;
                    self.recycle_wal().await?;
                }
                // The next flush, and with it the writers, waits until what has fallen behind all the same is paid off.
                while partition.is_in_debt() && !self.closing.get() && partition.compact_next().await? {}
            }
            if !worked || self.closing.get() {
                return Ok(());
            }
        }
    }

    /// Flushes what waits for it, in the middle of a compaction: writers may need the room sooner than that ends. The
    /// caller holds the maintenance lock of `compacting`. What fails is tried again behind the compaction, which may make room.
    pub(crate) async fn flush_meanwhile(&self, compacting: &Partition) {
        let waits = |partition: &&Rc<Partition>| partition.has_frozen_memtable() && !partition.is_in_debt();
        let waiting: Vec<Rc<Partition>> = self.partitions.borrow().values().filter(waits).cloned().collect();
        for partition in waiting {
            if self.is_flush_failing() || self.closing.get() {
                return;
            }
            let flushed = if std::ptr::eq(Rc::as_ptr(&partition), compacting) {
                partition.flush_oldest_locked().await
            } else if let Some(_guard) = partition.try_lock_maintenance() {
                partition.flush_oldest_locked().await
            } else {
                continue;
            };
            match flushed {
                Ok(_) => self.release_log(),
                Err(cause) => tracing::warn!(%cause, shard = self.id.0, "a flush failed; it is tried again"),
            }
        }
    }

    async fn recycle_wal(self: &Rc<Shard>) -> Result<()> {
        let (files, Some(second)) = self.wal.backlog() else {
            return Ok(());
        };
        for partition in self.partitions() {
            if partition.unflushed_from() < second && files > WAL_FILES_MAX {
                partition.freeze_memtable();
                while partition.flush_oldest().await? {}
            }
            if partition.unflushed_from() >= second {
                partition.advance_replay().await?;
            }
        }
        self.release_log();
        Ok(())
    }

    /// Lets go of what no partition needs of the log.
    fn release_log(&self) {
        let needed = self.partitions.borrow().values().map(|partition| partition.replay_from()).min();
        self.wal.release_before(needed.unwrap_or_else(|| self.wal.durable()));
    }

    /// Ends the shard: what was accepted is on the device on return.
    pub(crate) async fn close(self: &Rc<Shard>) -> Result<()> {
        self.closing.set(true);
        self.maintenance_wanted.notify_all();
        self.task_ended.wait_for(|| self.maintenance_ended.get().then_some(())).await;
        let flushed = self.flush_unlogged().await;
        let failure = self.wal.failure().filter(|cause| !matches!(cause, Error::Closed));
        self.wal.close().await;
        self.partitions.borrow_mut().clear();
        // A removal under way is waited for: its thread answers to this executor.
        self.removals.close();
        self.task_ended.wait_for(|| self.removals_ended.get().then_some(())).await;
        // Files that were just dropped are closed by the executor, which has to live until then.
        runtime::sleep(CLOSE_GRACE).await;
        failure.map_or(flushed, Err)
    }

    /// Flushes what no log holds (writes of the level `Memory`).
    async fn flush_unlogged(self: &Rc<Shard>) -> Result<()> {
        for partition in self.partitions() {
            if partition.has_unlogged() {
                partition.freeze_memtable();
                while partition.flush_oldest().await? {}
            }
        }
        Ok(())
    }
}

/// The shard, unless it closes or is gone.
fn open(shard: &Weak<Shard>) -> Option<Rc<Shard>> {
    shard.upgrade().filter(|shard| !shard.closing.get())
}

async fn tick(shard: Weak<Shard>) {
    while let Some(shard) = open(&shard) {
        shard.memtable_stock.clear_if_idle();
        shard.account_memtables();
        shard.request_maintenance();
        drop(shard);
        runtime::sleep(INTERVAL).await;
    }
}

async fn close_windows(shard: Weak<Shard>, window: Duration) {
    loop {
        runtime::sleep(window).await;
        let Some(shard) = open(&shard) else {
            return;
        };
        for partition in shard.partitions() {
            partition.close_window().await;
        }
        shard.refresh_residency().await;
    }
}
