//! Memory of a shard's memtables: what they may take, who waits for room, and who is made to give some.

use std::rc::Rc;

use crate::config::Durability;
use crate::error::{Error, Result};
use crate::memtable::ChunkStock;
use crate::table::Charge;

use super::Shard;

/// The memtables' memory is accounted for in steps of this.
const MEMTABLE_CHARGE_STEP: usize = 256 << 10;

/// Flushes that fail in a row, half a second apart, until writers are told: what passes by itself only makes them wait.
const FLUSH_FAILURES_MAX: u32 = 2;

impl Shard {
    /// Bytes at which one partition's active memtable is closed: half the shard's budget, shared by those that write.
    pub(crate) fn memtable_bytes_max(&self) -> usize {
        self.config.memtable_bytes_max()
    }

    /// Memory that memtables leave and take.
    pub(crate) fn memtable_stock(&self) -> &Rc<ChunkStock> {
        &self.memtable_stock
    }

    fn memtable_bytes(&self) -> usize {
        self.partitions.borrow().values().map(|partition| partition.memtable_bytes()).sum()
    }

    /// Charges the memtables' memory to the cache, which gives way to them. To be called when that has changed.
    pub(crate) fn account_memtables(&self) {
        let bytes = (self.memtable_bytes() + self.memtable_stock.bytes()).next_multiple_of(MEMTABLE_CHARGE_STEP);
        let mut held = self.memtable_charge.borrow_mut();
        if held.as_ref().map_or(0, Charge::bytes) != bytes {
            // Let go first: the two never count together.
            *held = None;
            *held = Some(self.cache.charge(bytes));
        }
        drop(held);
        self.set_pace();
    }

    /// Whether the last flush failed.
    pub(super) fn is_flush_failing(&self) -> bool {
        self.flush_failures.borrow().is_some()
    }

    /// Whether the log and the memtables can take a write of somebody who has waited for his turn.
    pub(crate) fn has_room(&self) -> bool {
        self.wal.has_room() && !self.stops_writers()
    }

    /// Waits until the log and the memtables have room and writers go, or until those of this class that stand may go once.
    ///
    /// Errors: the failure that latched the log, [`Error::NoRoom`].
    pub(crate) async fn wait_room(&self, durability: Durability) -> Result<()> {
        loop {
            if !self.wal.has_room() {
                self.wal.wait_room().await?;
            } else if self.holds_writers() {
                self.wait_memtable_room(durability).await?;
                if self.has_room() {
                    return Ok(());
                }
            } else {
                return Ok(());
            }
        }
    }

    /// Waits until background work has made room, or until writers that stand may go once, and sees to it that room comes: many
    /// partitions may fill the budget with memtables none of which has reached its own share.
    async fn wait_memtable_room(&self, durability: Durability) -> Result<()> {
        let turn = self.pace.next_turn(durability);
        self.memtable_room
            .wait_for(|| {
                if let Some(cause) = self.wal.failure() {
                    return Some(Err(cause));
                }
                if self.pace.lets_go(turn) {
                    return Some(Ok(()));
                }
                // Whoever waited would wait for as long as the device is full.
                if let Some((FLUSH_FAILURES_MAX.., cause)) = &*self.flush_failures.borrow() {
                    return Some(Err(Error::NoRoom { cause: cause.to_string().into() }));
                }
                if self.stops_writers() {
                    self.freeze_largest_memtable();
                }
                self.request_maintenance();
                None
            })
            .await
    }

    fn freeze_largest_memtable(&self) {
        let partitions = self.partitions();
        if !partitions.iter().any(|partition| partition.has_frozen_memtable())
            && let Some(largest) = partitions.iter().max_by_key(|partition| partition.memtable_bytes())
        {
            largest.freeze_memtable();
        }
    }

    /// Whether a flush worked decides whether writers wait for room or are told that there is none.
    pub(crate) fn note_flush<T>(&self, flushed: &Result<T>) {
        let mut failures = self.flush_failures.borrow_mut();
        let in_a_row = failures.as_ref().map_or(0, |(in_a_row, _)| *in_a_row);
        *failures = flushed.as_ref().err().map(|cause| (in_a_row + 1, cause.clone()));
        if failures.is_some() {
            self.memtable_room.notify_all();
        }
    }

    /// A memtable is gone, by whomever it was flushed: writers that wait for room look again.
    pub(crate) fn handle_memtable_freed(&self) {
        self.account_memtables();
        self.memtable_room.notify_all();
    }
}
