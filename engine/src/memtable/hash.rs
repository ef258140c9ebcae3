//! From a key's hash to its node: open addressing with linear probing.
//!
//! A slot holds 32 bits of the hash beside the reference, so growing needs no key and a probe follows a reference only
//! when those bits agree. A table that has to grow is moved a few slots with each insertion: to move a large one at once
//! would take milliseconds.

use crate::memory::Words;

use super::arena::NodeRef;

const SLOTS_MIN: usize = 64;
/// Slots moved with each insertion. Half as many would do before the larger table is full.
const MOVED_PER_INSERT: usize = 8;

#[derive(Debug, Default)]
pub(super) struct HashIndex {
    /// A power of two, at most three quarters in use; 0 is free.
    slots: Words,
    /// What `slots` was before it grew. Slots below `moved` are in both.
    old: Words,
    moved: usize,
    used: usize,
}

impl HashIndex {
    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        (self.slots.len() + self.old.len()) * size_of::<u64>()
    }

    /// The node with this hash that `is_it` accepts.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(NodeRef) -> bool) -> Option<NodeRef> {
        find_in(&self.slots, hash as u32, &mut is_it).or_else(|| find_in(&self.old, hash as u32, &mut is_it))
    }

    /// Adds a node that [`HashIndex::find`] does not find.
    pub fn insert(&mut self, hash: u64, node: NodeRef) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        self.move_some();
        self.used += 1;
        self.place(u64::from(hash as u32) << 32 | u64::from(NodeRef::pack(Some(node))));
    }

    fn place(&mut self, slot: u64) {
        let slots = &mut *self.slots;
        let mut at = home(slots, (slot >> 32) as u32);
        while slots[at] != 0 {
            at = (at + 1) & (slots.len() - 1);
        }
        slots[at] = slot;
    }

    fn grow(&mut self) {
        assert!(self.old.is_empty(), "INV-HASH: a table has been moved before it is full");
        let slots = Words::zeroed((self.slots.len() * 2).max(SLOTS_MIN));
        self.old = std::mem::replace(&mut self.slots, slots);
        self.moved = 0;
    }

    fn move_some(&mut self) {
        if self.old.is_empty() {
            return;
        }
        let until = (self.moved + MOVED_PER_INSERT).min(self.old.len());
        for at in self.moved..until {
            if self.old[at] != 0 {
                self.place(self.old[at]);
            }
        }
        self.moved = until;
        if until == self.old.len() {
            self.old = Words::default();
        }
    }
}

fn home(slots: &[u64], hash: u32) -> usize {
    hash as usize & (slots.len() - 1)
}

fn find_in(slots: &[u64], hash: u32, is_it: &mut impl FnMut(NodeRef) -> bool) -> Option<NodeRef> {
    if slots.is_empty() {
        return None;
    }
    let mut at = home(slots, hash);
    loop {
        let slot = slots[at];
        let node = NodeRef::unpack(slot as u32)?;
        if (slot >> 32) as u32 == hash && is_it(node) {
            return Some(node);
        }
        at = (at + 1) & (slots.len() - 1);
    }
}
