//! What stays and what goes: the two queues of S3-FIFO.

use crate::table::frames::Owner;

use super::fifo::Fifo;
use super::slots::{Queue, Usage};

/// A queued block: its table's slots and its place in them. The table may be gone, and the block too.
pub(super) type Queued = Owner;

/// Blocks that are spared for one that goes. Where all are in use, going round until one is not took 10 ms at a time.
const SPARED_MAX: u32 = 32;

#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) small: Fifo<Queued>,
    pub(super) main: Fifo<Queued>,
    /// Blocks dropped from the small queue so far.
    pub(super) drops: u32,
}

impl Queues {
    /// Decides about the oldest block of the small queue; false if the queue is empty.
    pub(super) fn step_small(&mut self, usage: &Usage) -> bool {
        let Some((table, block)) = self.small.pop_front() else {
            return false;
        };
        let Some(slots) = table.upgrade() else {
            return true;
        };
        let mut held = slots.slots.borrow_mut();
        let slot = &mut held[block as usize];
        if slot.queue != Queue::Small || slot.block.is_none() {
            // It became resident, or its slab was emptied, since it was queued.
            return true;
        }
        let weight = slot.weight();
        usage.small.update(|bytes| bytes - weight);
        if slot.uses > 0 {
            slot.uses = 0;
            slot.queue = Queue::Main;
            usage.main.update(|bytes| bytes + weight);
            drop(held);
            self.push((table, block), Queue::Main);
        } else {
            slot.block = None;
            self.drops += 1;
            slot.dropped_at = self.drops;
        }
        true
    }

    /// Decides about the oldest block of the main queue; false if the queue is empty. `spared` counts the blocks in a row
    /// that stay because they were used.
    pub(super) fn step_main(&mut self, usage: &Usage, spared: &mut u32) -> bool {
        let Some((table, block)) = self.main.pop_front() else {
            return false;
        };
        let Some(slots) = table.upgrade() else {
            return true;
        };
        let mut held = slots.slots.borrow_mut();
        let slot = &mut held[block as usize];
        if slot.queue != Queue::Main || slot.block.is_none() {
            return true;
        }
        if slot.uses > 0 && *spared < SPARED_MAX {
            *spared += 1;
            slot.uses -= 1;
            drop(held);
            self.push((table, block), Queue::Main);
        } else {
            *spared = 0;
            usage.main.update(|bytes| bytes - slot.weight());
            slot.block = None;
        }
        true
    }

    /// Queues a block that has just been put into its slot.
    pub(super) fn push(&mut self, queued: Queued, queue: Queue) {
        let queues = if queue == Queue::Main { &mut self.main } else { &mut self.small };
        queues.push_back(queued, |(table, block)| {
            table.upgrade().is_some_and(|slots| {
                let slot = &slots.slots.borrow()[*block as usize];
                slot.queue == queue && slot.block.is_some()
            })
        });
    }
}
