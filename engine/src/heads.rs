//! Heads of sorted keys: eight bytes of each, behind what all of them share, as one integer.
//!
//! A binary search over integers that lie side by side touches a few cache lines and no key; only keys of equal head
//! are compared as bytes. A head is big-endian and padded with zeros, so heads are ordered as their keys are, except
//! that different keys may have equal heads.

use std::cmp::Ordering;

/// Bytes that two keys share at their start.
pub(crate) fn common_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The head of `key` behind its first `skip` bytes.
pub(crate) fn head_of(key: &[u8], skip: usize) -> u64 {
    let rest = key.get(skip..).unwrap_or_default();
    if let Some(head) = rest.first_chunk::<8>() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; 8];
    head[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(head)
}

/// How `key` compares to keys that all begin with `prefix`: `Equal` when it begins with it too.
pub(crate) fn compare_to_prefix(key: &[u8], prefix: &[u8]) -> Ordering {
    match key.get(..prefix.len()) {
        Some(start) => start.cmp(prefix),
        None => key.cmp(prefix),
    }
}

/// Position in ascending `heads` of the first whose key is not before the one sought: `head` is the sought key's, and
/// `is_before` compares the key at a position as bytes, asked only where heads are equal.
pub(crate) fn position(heads: &[u64], head: u64, is_before: impl Fn(usize) -> bool) -> usize {
    let mut low = heads.partition_point(|other| *other < head);
    if heads.get(low).is_none_or(|other| *other != head) {
        return low;
    }
    let mut high = low + heads[low..].partition_point(|other| *other == head);
    while low < high {
        let middle = low.midpoint(high);
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// A key that others are compared with, all of which begin with the same `skip` bytes as it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound<'a> {
    key: &'a [u8],
    head: u64,
    skip: usize,
}

impl<'a> Bound<'a> {
    pub fn new(key: &'a [u8], skip: usize) -> Bound<'a> {
        Bound { key, head: head_of(key, skip), skip }
    }

    /// Whether `key` is not before it.
    pub fn is_reached_by(&self, key: &[u8]) -> bool {
        match head_of(key, self.skip).cmp(&self.head) {
            Ordering::Less => false,
            Ordering::Equal => key >= self.key,
            Ordering::Greater => true,
        }
    }
}

/// The heads of a sorted list of keys that no longer changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyHeads {
    prefix: Box<[u8]>,
    heads: Box<[u64]>,
}

impl KeyHeads {
    /// Heads of `keys`, which ascend.
    pub fn new<'a>(keys: impl Iterator<Item = &'a [u8]> + Clone) -> KeyHeads {
        let mut ends = keys.clone();
        let prefix = match (ends.next(), ends.last()) {
            (Some(first), Some(last)) => &first[..common_len(first, last)],
            _ => &[],
        };
        KeyHeads { prefix: prefix.into(), heads: keys.map(|key| head_of(key, prefix.len())).collect() }
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.prefix.len() + self.heads.len() * size_of::<u64>()
    }

    /// How many keys are below `key`.
    pub fn count_below<'a>(&self, key: &[u8], key_at: impl Fn(usize) -> &'a [u8]) -> usize {
        self.count_while(key, |index| key_at(index) < key)
    }

    /// How many keys are at or below `key`.
    pub fn count_up_to<'a>(&self, key: &[u8], key_at: impl Fn(usize) -> &'a [u8]) -> usize {
        self.count_while(key, |index| key_at(index) <= key)
    }

    fn count_while(&self, key: &[u8], is_before: impl Fn(usize) -> bool) -> usize {
        match compare_to_prefix(key, &self.prefix) {
            Ordering::Less => 0,
            Ordering::Equal => position(&self.heads, head_of(key, self.prefix.len()), is_before),
            Ordering::Greater => self.heads.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_equal_those_of_a_plain_search(
            prefix in prop::collection::vec(0..2u8, 0..12),
            mut tails in prop::collection::vec(prop::collection::vec(0..3u8, 0..14), 0..40),
            probes in prop::collection::vec(prop::collection::vec(0..3u8, 0..20), 0..40),
        ) {
            tails.sort();
            tails.dedup();
            let with_prefix = |tail: &Vec<u8>| [prefix.as_slice(), tail].concat();
            let keys: Vec<Vec<u8>> = tails.iter().map(with_prefix).collect();
            let heads = KeyHeads::new(keys.iter().map(Vec::as_slice));
            for probe in probes.iter().cloned().chain(probes.iter().map(with_prefix)).chain(keys.iter().cloned()) {
                let below = keys.partition_point(|key| *key < probe);
                let up_to = keys.partition_point(|key| *key <= probe);
                prop_assert_eq!(heads.count_below(&probe, |index| &keys[index]), below);
                prop_assert_eq!(heads.count_up_to(&probe, |index| &keys[index]), up_to);
                if probe.starts_with(&prefix) {
                    let bound = Bound::new(&probe, prefix.len());
                    prop_assert!(keys.iter().all(|key| bound.is_reached_by(key) == (*key >= probe)));
                }
            }
        }
    }
}
