//! The keys of a memtable in order: a two-level tree whose nodes are searched by key heads (see [`crate::heads`]).
//!
//! A leaf holds up to [`LEAF_MAX`] keys; the top is one list of the leaves' first keys. For the sizes that a memtable
//! reaches (up to some million keys) two levels are enough: the top stays in the processor's cache.

use std::cmp::Ordering;

use crate::heads::{common_len, compare_to_prefix, head_of, position};

use super::arena::{Arena, NodeRef};

const LEAF_MAX: usize = 128;

/// A sorted list of keys with the bytes that all of them share taken out.
#[derive(Debug, Default)]
struct Keys {
    prefix: Vec<u8>,
    heads: Vec<u64>,
    nodes: Vec<NodeRef>,
}

impl Keys {
    /// Keys that are below `key`, or at or below it if `with_equal`.
    fn count(&self, key: &[u8], with_equal: bool, arena: &Arena) -> usize {
        match compare_to_prefix(key, &self.prefix) {
            Ordering::Less => 0,
            Ordering::Greater => self.nodes.len(),
            Ordering::Equal => position_of(self, key, with_equal, arena),
        }
    }

    fn insert(&mut self, at: usize, key: &[u8], node: NodeRef, arena: &Arena) {
        if self.nodes.is_empty() {
            self.prefix = key.to_vec();
        }
        let shared = common_len(&self.prefix, key);
        if shared < self.prefix.len() {
            self.prefix.truncate(shared);
            self.refresh(arena);
        }
        self.heads.insert(at, head_of(key, self.prefix.len()));
        self.nodes.insert(at, node);
    }

    /// Cuts the list in two before `at`; each half takes out what its keys share.
    fn split_off(&mut self, at: usize, arena: &Arena) -> Keys {
        let (nodes, heads) = (self.nodes.split_off(at), self.heads.split_off(at));
        let mut right = Keys { prefix: self.prefix.clone(), heads, nodes };
        right.nodes.reserve_exact(LEAF_MAX - right.nodes.len());
        right.heads.reserve_exact(LEAF_MAX - right.heads.len());
        self.tighten(arena);
        right.tighten(arena);
        right
    }

    fn tighten(&mut self, arena: &Arena) {
        if let (Some(first), Some(last)) = (self.nodes.first(), self.nodes.last()) {
            let (first, last) = (arena.payload(*first), arena.payload(*last));
            let shared = common_len(first, last);
            if shared == self.prefix.len() {
                // The heads are what they were: no key has to be looked at.
                return;
            }
            self.prefix.clear();
            self.prefix.extend_from_slice(&first[..shared]);
        }
        self.refresh(arena);
    }

    fn refresh(&mut self, arena: &Arena) {
        self.heads.clear();
        let skip = self.prefix.len();
        self.heads.extend(self.nodes.iter().map(|node| head_of(arena.payload(*node), skip)));
    }

    fn bytes(&self) -> usize {
        self.prefix.capacity() + self.heads.capacity() * 8 + self.nodes.capacity() * 4 + size_of::<Keys>()
    }
}

fn position_of(keys: &Keys, key: &[u8], with_equal: bool, arena: &Arena) -> usize {
    position(&keys.heads, head_of(key, keys.prefix.len()), |index| match arena.payload(keys.nodes[index]).cmp(key) {
        Ordering::Less => true,
        Ordering::Equal => with_equal,
        Ordering::Greater => false,
    })
}

/// A place between two keys, valid while `changes` is what it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    leaf: usize,
    at: usize,
    changes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Order {
    /// First key of each leaf.
    top: Keys,
    leaves: Vec<Keys>,
    /// Keys inserted so far.
    changes: u64,
    bytes: usize,
}

impl Order {
    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        self.bytes + self.top.bytes()
    }

    /// Adds a key that is not there yet.
    pub fn insert(&mut self, node: NodeRef, arena: &Arena) {
        let key = arena.payload(node);
        self.changes += 1;
        if self.leaves.is_empty() {
            self.add_leaf(0, Keys::default());
        }
        let mut leaf = self.top.count(key, true, arena).saturating_sub(1);
        if self.leaves[leaf].nodes.len() == LEAF_MAX {
            self.split(leaf, key, arena);
            leaf = self.top.count(key, true, arena).saturating_sub(1);
        }
        let keys = &mut self.leaves[leaf];
        let at = keys.count(key, false, arena);
        let before = keys.bytes();
        keys.insert(at, key, node, arena);
        self.bytes = self.bytes - before + keys.bytes();
        if at == 0 {
            // The leaf begins earlier now (or has just been made).
            if leaf < self.top.nodes.len() {
                self.top.nodes.remove(leaf);
                self.top.heads.remove(leaf);
            }
            self.top.insert(leaf, key, node, arena);
        }
    }

    fn add_leaf(&mut self, at: usize, keys: Keys) {
        self.bytes += keys.bytes();
        self.leaves.insert(at, keys);
    }

    /// Makes room in a full leaf for `key`. Keys that come in order fill their leaves.
    fn split(&mut self, leaf: usize, key: &[u8], arena: &Arena) {
        let full = &mut self.leaves[leaf];
        let at_end = leaf + 1 == self.top.nodes.len() && full.count(key, false, arena) == LEAF_MAX;
        let before = full.bytes();
        let right = full.split_off(if at_end { LEAF_MAX - 1 } else { LEAF_MAX / 2 }, arena);
        self.bytes = self.bytes - before + self.leaves[leaf].bytes();
        let first = right.nodes[0];
        self.top.insert(leaf + 1, arena.payload(first), first, arena);
        self.add_leaf(leaf + 1, right);
    }

    /// Before the first key at or above `key`, or above it if `behind`.
    pub fn seek(&self, key: &[u8], behind: bool, arena: &Arena) -> Place {
        let leaf = self.top.count(key, true, arena).saturating_sub(1);
        let at = self.leaves.get(leaf).map_or(0, |keys| keys.count(key, behind, arena));
        Place { leaf, at, changes: self.changes }
    }

    /// Whether keys were added since the place was found.
    pub fn is_stale(&self, place: Place) -> bool {
        place.changes != self.changes
    }

    /// The key behind the place, and the place behind it. The place is not stale.
    pub fn next(&self, place: Place) -> Option<(NodeRef, Place)> {
        let keys = self.leaves.get(place.leaf)?;
        if let Some(node) = keys.nodes.get(place.at) {
            return Some((*node, Place { at: place.at + 1, ..place }));
        }
        let node = self.leaves.get(place.leaf + 1)?.nodes.first()?;
        Some((*node, Place { leaf: place.leaf + 1, at: 1, ..place }))
    }

    /// The `count`-th key below `end`, counted back from it (from the last key without an `end`); `None` if there are
    /// fewer.
    pub fn back(&self, end: Option<&[u8]>, count: usize, arena: &Arena) -> Option<NodeRef> {
        let (mut leaf, mut at) = match end {
            Some(end) => {
                let place = self.seek(end, false, arena);
                (place.leaf, place.at)
            }
            None => (self.leaves.len().checked_sub(1)?, self.leaves.last()?.nodes.len()),
        };
        let mut left = count;
        while at < left {
            left -= at;
            leaf = leaf.checked_sub(1)?;
            at = self.leaves[leaf].nodes.len();
        }
        self.leaves.get(leaf)?.nodes.get(at - left).copied()
    }

    /// Frees some leaves; false if none is left. The order is of no use afterwards.
    pub fn shed(&mut self) -> bool {
        const LEAVES: usize = 64;
        self.leaves.truncate(self.leaves.len().saturating_sub(LEAVES));
        !self.leaves.is_empty()
    }

    /// All keys, ascending.
    pub fn iter(&self) -> impl Iterator<Item = NodeRef> {
        self.leaves.iter().flat_map(|keys| keys.nodes.iter().copied())
    }
}
