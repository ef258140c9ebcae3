//! From a key's hash to its node: open addressing with linear probing.
//!
//! A slot holds 32 bits of the hash beside the reference, so growing needs no key and a probe follows a reference only
//! when those bits agree.

use super::arena::NodeRef;

const SLOTS_MIN: usize = 64;

#[derive(Debug, Default)]
pub(super) struct HashIndex {
    /// A power of two, at most three quarters in use; 0 is free.
    slots: Vec<u64>,
    used: usize,
}

impl HashIndex {
    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }

    /// The node with this hash that `is_it` accepts.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(NodeRef) -> bool) -> Option<NodeRef> {
        if self.slots.is_empty() {
            return None;
        }
        let mut at = self.home(hash as u32);
        loop {
            let slot = self.slots[at];
            let node = NodeRef::unpack(slot as u32)?;
            if (slot >> 32) as u32 == hash as u32 && is_it(node) {
                return Some(node);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// Adds a node that [`HashIndex::find`] does not find.
    pub fn insert(&mut self, hash: u64, node: NodeRef) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        self.used += 1;
        self.place(u64::from(hash as u32) << 32 | u64::from(NodeRef::pack(Some(node))));
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    fn place(&mut self, slot: u64) {
        let mut at = self.home((slot >> 32) as u32);
        while self.slots[at] != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = slot;
    }

    fn grow(&mut self) {
        let slots = vec![0; (self.slots.len() * 2).max(SLOTS_MIN)];
        for slot in std::mem::replace(&mut self.slots, slots) {
            if slot != 0 {
                self.place(slot);
            }
        }
    }
}
