//! Writes that depend on what the keys hold: read, decide and write in one step.

use bytes::Bytes;

use crate::clock;
use crate::config::Durability;
use crate::error::Result;
use crate::limits;
use crate::record::RecordView;
use crate::types::Lsn;

use super::super::Partition;
use super::super::batch::RECORD_OVERHEAD_BYTES;
use super::{Change, Write};

impl Partition {
    /// Reads keys as the newest writes left them, lets `decide` say what to write, and writes it: nothing is written to
    /// `keys` in between, and the writes are atomic as those of [`Partition::commit`] are. `look` takes from a live record
    /// what `decide` needs, where it lies. Both may be called several times; what the last call of `decide` returned
    /// beside the writes is returned, once it cannot be undone by a crash, whether there were writes or not.
    ///
    /// Errors: as [`Partition::commit`]; nothing was written.
    /// Cancel: as [`Partition::write`].
    /// Cost: a read a key; the copies that `look` makes. While the keys are in memory nothing else runs in between, so
    /// that a key that many change is not tried twice.
    pub async fn read_modify_write<S, T>(
        &self,
        keys: &[Bytes],
        durability: Durability,
        mut look: impl FnMut(usize, Option<RecordView<'_>>) -> S,
        mut decide: impl FnMut(&[S]) -> (Vec<Write>, T),
    ) -> Result<T> {
        keys.iter().try_for_each(|key| self.check_key(key))?;
        loop {
            self.wait_writable(durability).await?;
            let base = self.read_base();
            let now_ms = clock::wall_ms();
            // Older versions go as newer ones become visible.
            let _pin = self.snapshots.pin(base.lsn, now_ms);
            // What is told must not be undone by a crash; an absent key may owe that to a delete on its way.
            let mut seen = Lsn(0);
            let mut found = Vec::with_capacity(keys.len());
            for (index, key) in keys.iter().enumerate() {
                let look = |record: Option<RecordView<'_>>| {
                    (record.map_or(base.lsn, |record| record.lsn), look(index, record))
                };
                let (lsn, state) = self.look_at(key, base.lsn, now_ms, look).await?;
                seen = seen.max(lsn);
                found.push(state);
            }
            if !self.may_write_now() || !keys.iter().all(|key| self.unchanged_since(key, base)) {
                continue;
            }
            let (writes, result) = decide(&found);
            let mut last = seen;
            if !writes.is_empty() {
                self.check_writes(&writes)?;
                let first = self.assigned().next();
                for write in writes {
                    last = self.append(Change::from(write), durability)?.lsn;
                }
                self.progress.borrow_mut().group(first);
                self.freeze_if_full();
            }
            self.settle(last, durability).await?;
            return Ok(result);
        }
    }

    fn check_writes(&self, writes: &[Write]) -> Result<()> {
        let mut bytes = 0;
        for write in writes {
            self.check_key(&write.key)?;
            let value = write.value.as_deref().unwrap_or_default();
            limits::check_value(value)?;
            bytes += RECORD_OVERHEAD_BYTES + write.key.len() + value.len();
        }
        limits::check_batch(bytes)?;
        self.shard.wal().check_batch(bytes)
    }
}
