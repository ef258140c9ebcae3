//! The cache of verified blocks of one shard.
//!
//! Each open table has one slot per block ([`BlockSlots`]), so a hit is two loads: no hash, no search. What stays is
//! decided by S3-FIFO: a block enters a small queue, moves to the main queue if it is read again while there, and in the
//! main queue each pass of the hand takes one use from it. A slot remembers when its block was last dropped from the
//! small queue; one that comes back soon enters the main queue at once (the algorithm's ghost queue, without a table of
//! its own).
//!
//! Memory that open tables take for themselves is charged to the cache as well ([`ShardBlockCache::charge`]), so that one
//! budget holds for both: blocks give way to indexes and filters.
//!
//! - `INV-CACHE`: `small` and `main` are the sums of the weights of the blocks in the slots of living tables.
//!
//! Source: Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::io::runtime;
use crate::memory::{Region, prefetch_lines};

use self::queues::{Queued, Queues};
pub use self::slots::BlockSlots;
use self::slots::{Queue, Usage, weight};
use super::block::VerifiedBlock;
use super::frames::FramePool;

mod fifo;
mod queues;
mod slots;
#[cfg(test)]
mod tests;

/// The part of the budget, one in so many, that is left to frames between two uses.
const IDLE_SHARE: usize = 32;
/// A cache of less than so many slabs leaves them nothing.
const SLABS_MIN: usize = 16;
/// Memory between two uses below which no slab is emptied.
const IDLE_SLABS: usize = 1;
/// Uses that a block is credited with at most.
const USES_MAX: u8 = 3;
/// The small queue gets one part in so many of the budget.
const SMALL_SHARE: usize = 10;
/// Lines of a block's directory that a lookup asks the processor for at once.
const DIRECTORY_LINES: usize = 5;

/// How much readers want the records of a block, by what the cache knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Warmth {
    /// They are not in memory.
    #[default]
    Cold,
    /// They are, and may have been read once.
    Warm,
    /// They were read again and again.
    Hot,
}

/// A block in the cache's memory that waits for its table to be opened.
#[derive(Debug)]
pub(crate) struct PreparedBlock {
    block: Rc<VerifiedBlock>,
    warmth: Warmth,
    /// Counts its memory until it has a slot.
    _charge: Charge,
}

/// Where readers look for blocks before they read the device.
pub trait BlockCache {
    /// The block, if it is held.
    fn lookup(&self, slots: &BlockSlots, block: usize) -> Option<Rc<VerifiedBlock>>;
    /// As [`BlockCache::lookup`], but no use of the block: it stays no longer for it. Says how warm it is.
    fn peek(&self, slots: &BlockSlots, block: usize) -> Option<(Rc<VerifiedBlock>, Warmth)>;
    /// Offers a block that was just read; returns it, perhaps in other memory.
    fn insert(&self, slots: &Rc<BlockSlots>, block: usize, verified: VerifiedBlock) -> Rc<VerifiedBlock>;
}

/// Holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl BlockCache for NoCache {
    fn lookup(&self, _slots: &BlockSlots, _block: usize) -> Option<Rc<VerifiedBlock>> {
        None
    }

    fn peek(&self, _slots: &BlockSlots, _block: usize) -> Option<(Rc<VerifiedBlock>, Warmth)> {
        None
    }

    fn insert(&self, _slots: &Rc<BlockSlots>, _block: usize, verified: VerifiedBlock) -> Rc<VerifiedBlock> {
        Rc::new(verified)
    }
}

/// Sizes and counts of a shard's memory, or of several shards' together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes that blocks and everything charged beside them may take.
    pub budget_bytes: usize,
    /// Bytes of cached blocks.
    pub block_bytes: usize,
    /// Bytes charged: memtables, indexes and filters of open tables, resident segments.
    pub charged_bytes: usize,
    /// Bytes taken from the system for cached blocks, what is free between them included.
    pub mapped_bytes: usize,
    /// Blocks that readers had to fetch from the device so far.
    pub blocks_read: u64,
}

impl std::ops::AddAssign for CacheStats {
    fn add_assign(&mut self, other: CacheStats) {
        self.budget_bytes += other.budget_bytes;
        self.block_bytes += other.block_bytes;
        self.charged_bytes += other.charged_bytes;
        self.mapped_bytes += other.mapped_bytes;
        self.blocks_read += other.blocks_read;
    }
}

/// Scan-resistant cache bounded by bytes.
pub struct ShardBlockCache {
    frames: Rc<FramePool>,
    queues: RefCell<Queues>,
    usage: Rc<Usage>,
    capacity: Cell<usize>,
    blocks_read: Cell<u64>,
}

impl std::fmt::Debug for ShardBlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardBlockCache").field("used", &self.used()).field("capacity", &self.capacity).finish()
    }
}

impl ShardBlockCache {
    /// A cache of at most `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> ShardBlockCache {
        ShardBlockCache {
            frames: Rc::new(FramePool::for_capacity(capacity)),
            queues: RefCell::default(),
            usage: Rc::default(),
            capacity: Cell::new(capacity),
            blocks_read: Cell::new(0),
        }
    }

    /// Sizes and counts.
    pub(crate) fn stats(&self) -> CacheStats {
        CacheStats {
            budget_bytes: self.capacity.get(),
            block_bytes: self.usage.blocks(),
            charged_bytes: self.usage.charged.get(),
            mapped_bytes: self.frames.mapped_bytes(),
            blocks_read: self.blocks_read.get(),
        }
    }

    /// Bytes of memory taken, that of frames between two uses included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let idle = self.frames.mapped_bytes() - self.frames.used_bytes();
        self.used() + idle
    }

    /// Bytes held.
    #[must_use]
    pub fn used(&self) -> usize {
        self.usage.total()
    }

    /// Whether more than `percent` of the budget is in use.
    pub(crate) fn is_short(&self, percent: usize) -> bool {
        self.usage.total() > self.capacity.get() / 100 * percent
    }

    /// Changes the budget; what is too much is dropped now.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.set(capacity);
        self.shrink();
    }

    /// Counts memory that is not the cache's own against its budget until the charge is dropped.
    #[must_use]
    pub fn charge(&self, bytes: usize) -> Charge {
        self.usage.charged.update(|charged| charged + bytes);
        self.shrink();
        Charge { usage: Rc::clone(&self.usage), bytes }
    }

    /// Whether so many bytes more push nothing out.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.usage.total() + bytes <= self.capacity.get() - self.capacity.get() / IDLE_SHARE
    }

    /// Has memory for the next slab made ready off the core, where it may be needed soon. Only while that pushes nothing out.
    pub(crate) async fn prepare_slab(&self) {
        if self.frames.wants_spare() && self.has_room(self.frames.slab_bytes()) {
            let len = self.frames.slab_bytes();
            self.frames.keep_spare(runtime::unblock(move || Region::huge_touched(len)).await);
        }
    }

    /// Takes memory for a block of a table that is being written, which replaces others that are as warm.
    pub(crate) fn prepare(&self, verified: VerifiedBlock, warmth: Warmth) -> PreparedBlock {
        let block = Rc::new(verified.into_frame(&self.frames));
        let charge = self.charge(weight(&block));
        PreparedBlock { block, warmth, _charge: charge }
    }

    /// Gives a prepared block its slot.
    pub(crate) fn adopt(&self, slots: &Rc<BlockSlots>, block: usize, prepared: PreparedBlock) {
        let PreparedBlock { block: verified, warmth, _charge: charge } = prepared;
        drop(charge);
        self.place(slots, block, verified, warmth);
    }

    /// Puts a block into its slot, unless there is one; returns the one that is there then.
    fn place(
        &self,
        slots: &Rc<BlockSlots>,
        block: usize,
        verified: Rc<VerifiedBlock>,
        warmth: Warmth,
    ) -> Rc<VerifiedBlock> {
        let mut queues = self.queues.borrow_mut();
        let queue = {
            let mut table = slots.slots.borrow_mut();
            let slot = &mut table[block];
            if let Some(held) = &slot.block {
                // Two readers missed at once; the first one's stays.
                return Rc::clone(held);
            }
            let usage = slots.usage.get_or_init(|| Rc::clone(&self.usage));
            let is_back = slot.dropped_at != 0 && queues.drops - slot.dropped_at <= queues.main.len() as u32;
            let (queue, account) = match is_back || warmth == Warmth::Hot {
                true => (Queue::Main, &usage.main),
                false => (Queue::Small, &usage.small),
            };
            slot.queue = queue;
            slot.uses = 0;
            slot.dropped_at = 0;
            slot.put(Rc::clone(&verified));
            account.update(|bytes| bytes + weight(&verified));
            queue
        };
        let queued: Queued = (Rc::downgrade(slots), block as u32);
        if let Some(frame) = verified.frame() {
            self.frames.set_owner(frame, queued.clone());
        }
        queues.push(queued, queue);
        verified
    }

    fn shrink(&self) {
        let mut queues = self.queues.borrow_mut();
        let (whole, slab_bytes) = (self.capacity.get(), self.frames.slab_bytes());
        let capacity = if whole < SLABS_MIN * slab_bytes { whole } else { whole - whole / IDLE_SHARE };
        let mut spared = 0;
        while self.usage.total() > capacity && self.usage.blocks() > 0 {
            let small_is_due = self.usage.small.get() * SMALL_SHARE > capacity;
            let took = if small_is_due || queues.main.is_empty() {
                queues.step_small(&self.usage)
            } else {
                queues.step_main(&self.usage, &mut spared)
            };
            assert!(took, "INV-CACHE: bytes in use belong to queued blocks");
        }
        // Frames between two uses are memory too: where they have become many, the emptiest slabs are given back.
        while self.bytes() > whole.max(capacity + IDLE_SLABS * slab_bytes) {
            if self.frames.give_back_spare() {
                continue;
            }
            if let Some(slab) = self.frames.sparsest() {
                self.empty_slab(slab);
            }
            if !self.frames.give_back_spare() {
                // Readers still hold blocks of it.
                return;
            }
        }
    }

    /// Drops every block that lies in a slab. Their places in the queues are passed over when their turn comes.
    fn empty_slab(&self, slab: u32) {
        for (table, block) in self.frames.take_owners(slab) {
            let Some(slots) = table.upgrade() else {
                continue;
            };
            let slot = &mut slots.slots.borrow_mut()[block as usize];
            if slot.block.as_ref().is_some_and(|held| held.slab() == Some(slab)) {
                slot.take(Some(&self.usage));
            }
        }
    }
}

/// Memory charged to a cache.
#[derive(Debug)]
pub struct Charge {
    usage: Rc<Usage>,
    bytes: usize,
}

impl Charge {
    /// Bytes charged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.usage.charged.update(|charged| charged - self.bytes);
    }
}

impl BlockCache for ShardBlockCache {
    fn lookup(&self, slots: &BlockSlots, block: usize) -> Option<Rc<VerifiedBlock>> {
        let mut slots = slots.slots.borrow_mut();
        let slot = &mut slots[block];
        if let Some(directory) = slot.directory {
            prefetch_lines(directory.as_ptr(), DIRECTORY_LINES);
        }
        let held = slot.block.clone()?;
        slot.uses = (slot.uses + 1).min(USES_MAX);
        Some(held)
    }

    fn peek(&self, slots: &BlockSlots, block: usize) -> Option<(Rc<VerifiedBlock>, Warmth)> {
        let slot = &slots.slots.borrow()[block];
        let warmth = if slot.queue == Queue::Small { Warmth::Warm } else { Warmth::Hot };
        slot.block.clone().map(|block| (block, warmth))
    }

    fn insert(&self, slots: &Rc<BlockSlots>, block: usize, verified: VerifiedBlock) -> Rc<VerifiedBlock> {
        self.blocks_read.update(|blocks| blocks + 1);
        let held = self.place(slots, block, Rc::new(verified.into_frame(&self.frames)), Warmth::Warm);
        self.shrink();
        held
    }
}
