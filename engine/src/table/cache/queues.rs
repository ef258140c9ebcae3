//! What stays and what goes: the two queues of S3-FIFO.

use std::collections::VecDeque;

use crate::table::frames::Owner;

use super::slots::{Queue, Usage};

/// A queued block: its table's slots and its place in them. The table may be gone, and the block too.
pub(super) type Queued = Owner;

#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) small: VecDeque<Queued>,
    pub(super) main: VecDeque<Queued>,
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
        let slot = &mut slots.slots.borrow_mut()[block as usize];
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
            self.main.push_back((table, block));
        } else {
            slot.block = None;
            self.drops += 1;
            slot.dropped_at = self.drops;
        }
        true
    }

    /// Decides about the oldest block of the main queue; false if the queue is empty.
    pub(super) fn step_main(&mut self, usage: &Usage) -> bool {
        let Some((table, block)) = self.main.pop_front() else {
            return false;
        };
        let Some(slots) = table.upgrade() else {
            return true;
        };
        let slot = &mut slots.slots.borrow_mut()[block as usize];
        if slot.queue != Queue::Main || slot.block.is_none() {
            return true;
        }
        if slot.uses > 0 {
            slot.uses -= 1;
            self.main.push_back((table, block));
        } else {
            usage.main.update(|bytes| bytes - slot.weight());
            slot.block = None;
        }
        true
    }

    /// Forgets entries whose block is gone, when they may have become many.
    pub(super) fn sweep(&mut self) {
        for (queue, kind) in [(&mut self.small, Queue::Small), (&mut self.main, Queue::Main)] {
            if queue.len() < queue.capacity() || queue.len() < 1024 {
                continue;
            }
            queue.retain(|(table, block)| {
                table.upgrade().is_some_and(|slots| {
                    let slot = &slots.slots.borrow()[*block as usize];
                    slot.queue == kind && slot.block.is_some()
                })
            });
            // The next sweep comes after as many insertions as this one has looked at.
            queue.reserve(queue.len() + 1);
        }
    }
}
