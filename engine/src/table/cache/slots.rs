//! The blocks of a table that are in memory, and the account of what they take.

use std::cell::{Cell, OnceCell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::table::block::VerifiedBlock;

/// Bookkeeping of one cached block: its slot, its place in a queue, its reference counts.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Queue {
    #[default]
    Small,
    Main,
    /// In none: the block's table is resident.
    Resident,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) block: Option<Rc<VerifiedBlock>>,
    /// Where the directory of the last block begins or began: only to ask the processor for it.
    pub(super) directory: Option<NonNull<u8>>,
    pub(super) queue: Queue,
    pub(super) uses: u8,
    /// Count of drops at the block's own from the small queue; 0 if it never was.
    pub(super) dropped_at: u32,
}

impl Slot {
    pub(super) fn put(&mut self, block: Rc<VerifiedBlock>) {
        self.directory = NonNull::new(block.directory_start().cast_mut());
        self.block = Some(block);
    }

    pub(super) fn weight(&self) -> usize {
        self.block.as_ref().map_or(0, |block| weight(block))
    }

    /// Empties the slot and settles the account.
    pub(super) fn take(&mut self, usage: Option<&Usage>) {
        if let Some(account) = usage.and_then(|usage| usage.of(self.queue)) {
            account.update(|bytes| bytes - self.weight());
        }
        self.block = None;
    }
}

pub(super) fn weight(block: &VerifiedBlock) -> usize {
    block.bytes() + ENTRY_OVERHEAD_BYTES
}

/// The blocks of one table that are in memory.
#[derive(Debug)]
pub struct BlockSlots {
    pub(super) slots: RefCell<Box<[Slot]>>,
    /// The account of the cache that fills the slots.
    pub(super) usage: OnceCell<Rc<Usage>>,
}

impl BlockSlots {
    /// Slots of a table with `blocks` blocks.
    #[must_use]
    pub fn new(blocks: usize) -> Rc<BlockSlots> {
        let slots = std::iter::repeat_with(Slot::default).take(blocks).collect();
        Rc::new(BlockSlots { slots: RefCell::new(slots), usage: OnceCell::new() })
    }

    /// Puts all of the table's blocks in their slots, to stay until [`BlockSlots::clear_resident`].
    pub(in crate::table) fn fill_resident(&self, blocks: Vec<VerifiedBlock>) {
        let mut slots = self.slots.borrow_mut();
        assert_eq!(slots.len(), blocks.len(), "INV-CACHE: a table is resident as a whole");
        for (slot, block) in slots.iter_mut().zip(blocks) {
            slot.take(self.usage.get().map(|usage| &**usage));
            slot.queue = Queue::Resident;
            slot.put(Rc::new(block));
        }
    }

    /// Takes resident blocks out.
    pub(in crate::table) fn clear_resident(&self) {
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.queue == Queue::Resident) {
            *slot = Slot::default();
        }
    }

    /// Empties some slots; false if all are empty.
    pub(in crate::table) fn forget_some(&self) -> bool {
        const BLOCKS: usize = 32;
        let usage = self.usage.get().map(|usage| &**usage);
        let mut slots = self.slots.borrow_mut();
        let mut held = slots.iter_mut().filter(|slot| slot.block.is_some());
        held.by_ref().take(BLOCKS).for_each(|slot| slot.take(usage));
        held.next().is_some()
    }

    /// Bytes that the slots take without the blocks in them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slots.borrow().len() * size_of::<Slot>()
    }
}

impl Drop for BlockSlots {
    fn drop(&mut self) {
        let usage = self.usage.get();
        for slot in self.slots.get_mut() {
            slot.take(usage.map(|usage| &**usage));
        }
    }
}

/// Bytes in each queue, and bytes that were charged.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) small: Cell<usize>,
    pub(super) main: Cell<usize>,
    pub(super) charged: Cell<usize>,
}

impl Usage {
    /// The account of a queue; what is resident has been charged.
    pub(super) fn of(&self, queue: Queue) -> Option<&Cell<usize>> {
        match queue {
            Queue::Small => Some(&self.small),
            Queue::Main => Some(&self.main),
            Queue::Resident => None,
        }
    }

    pub(super) fn blocks(&self) -> usize {
        self.small.get() + self.main.get()
    }

    pub(super) fn total(&self) -> usize {
        self.blocks() + self.charged.get()
    }
}
