//! Newtypes for identities, positions and times. Each wraps one integer and carries its unit in its name.

use std::fmt;
use std::ops::{Bound, RangeBounds};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id_type!(
    /// Log sequence number: per partition, +1 per record, never reused. `Lsn(0)` is "before the first record".
    Lsn(u64)
);
id_type!(
    /// Ownership generation of a partition; rises on every commit and every abort of a move.
    Epoch(u64)
);
id_type!(
    /// A partition: the unit of ownership and of shadowing. Unique in the cluster.
    PartitionId(u64)
);
id_type!(
    /// A segment of a partition: the unit of scoring, residency, compaction and copying. Unique in its partition, never reused.
    SegmentId(u64)
);
id_type!(
    /// One attempt to move a partition. Unique in the cluster; a closed attempt changes nothing any more.
    AttemptId(u64)
);
id_type!(
    /// A host of the cluster.
    HostId(u32)
);
id_type!(
    /// A shard: one pinned core with its executor, numbered from 0 on each host.
    ShardId(u16)
);
id_type!(
    /// A table file of a shard (run or segment base). Never reused.
    FileId(u64)
);
id_type!(
    /// Position in a shard's WAL: the number of a group-commit batch, +1 per batch, never reused.
    WalSeq(u64)
);

impl Lsn {
    /// The next LSN.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

impl Epoch {
    /// The next epoch.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// Hybrid logical clock timestamp: 48 bits of milliseconds since the Unix epoch, 16 bits of logical counter.
///
/// Source: Kulkarni et al., "Logical Physical Clocks", 2014.
///
/// # Example
/// ```
/// use antumbra_engine::types::Hlc;
/// assert_eq!(Hlc::from_wall_ms(1_700_000_000_000).wall_ms(), 1_700_000_000_000);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Timestamp of `wall_ms` (milliseconds since the Unix epoch) with logical counter 0.
    #[must_use]
    pub fn from_wall_ms(wall_ms: u64) -> Hlc {
        Hlc(wall_ms << 16)
    }

    /// The physical part, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_ms(self) -> u64 {
        self.0 >> 16
    }
}

/// A half-open range of routing keys, `[start, end)`; no `end` means "to the end of the keyspace".
///
/// # Example
/// ```
/// use antumbra_engine::types::KeyRange;
/// let range = KeyRange::from_bounds("a"..="c");
/// assert!(range.contains(b"bob") && range.contains(b"c") && !range.contains(b"ca"));
/// assert!(KeyRange::prefix(b"b").overlaps(&range) && KeyRange::all().contains(b"anything"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key of the range; empty means "from the beginning".
    pub start: Vec<u8>,
    /// First key after the range.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// The whole keyspace.
    #[must_use]
    pub fn all() -> KeyRange {
        KeyRange { start: Vec::new(), end: None }
    }

    /// The keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> KeyRange {
        // The first key behind them: the prefix with its last byte that can be raised raised, and nothing after it.
        let end = prefix.iter().rposition(|byte| *byte < u8::MAX).map(|last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        });
        KeyRange { start: prefix.to_vec(), end }
    }

    /// The keys within Rust's bounds.
    pub fn from_bounds<K: AsRef<[u8]>>(bounds: impl RangeBounds<K>) -> KeyRange {
        // No key lies between a key and the key followed by a zero byte.
        let behind = |key: &K| [key.as_ref(), &[0]].concat();
        let start = match bounds.start_bound() {
            Bound::Included(key) => key.as_ref().to_vec(),
            Bound::Excluded(key) => behind(key),
            Bound::Unbounded => Vec::new(),
        };
        let end = match bounds.end_bound() {
            Bound::Included(key) => Some(behind(key)),
            Bound::Excluded(key) => Some(key.as_ref().to_vec()),
            Bound::Unbounded => None,
        };
        KeyRange { start, end }
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_slice() && self.end.as_deref().is_none_or(|end| key < end)
    }

    /// Whether the two ranges share a key.
    #[must_use]
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        let starts_before = |a: &KeyRange, b: &KeyRange| a.end.as_deref().is_none_or(|end| b.start.as_slice() < end);
        starts_before(self, other) && starts_before(other, self)
    }
}

/// The validation token of a copy request: which version of which segment is meant.
///
/// `checksum` is the crc32c of (partition, segment, bounds, version), so a token of a segment that has been split or
/// merged since never matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValidationToken {
    /// The segment.
    pub segment: SegmentId,
    /// LSN of the last write to the segment.
    pub version: Lsn,
    /// crc32c of the identity.
    pub checksum: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_of_largest_bytes_has_the_right_end() {
        assert_eq!(KeyRange::prefix(b"ab").end, Some(b"ac".to_vec()));
        assert_eq!(KeyRange::prefix(b"a\xff\xff").end, Some(b"b".to_vec()));
        assert_eq!(KeyRange::prefix(b"\xff\xff").end, None);
        assert_eq!(KeyRange::prefix(b""), KeyRange::all());
        let range = KeyRange::prefix(b"a\xff");
        assert!(range.contains(b"a\xff") && range.contains(b"a\xff\xff\xff") && !range.contains(b"b"));
    }

    #[test]
    fn from_bounds_each_kind_holds_the_keys_that_rust_says() {
        let inclusive = KeyRange::from_bounds("b"..="d");
        assert!(inclusive.contains(b"b") && inclusive.contains(b"d") && !inclusive.contains(b"d\0"));
        let exclusive = KeyRange::from_bounds::<&str>((Bound::Excluded("b"), Bound::Excluded("d")));
        assert!(!exclusive.contains(b"b") && exclusive.contains(b"b\0") && !exclusive.contains(b"d"));
        assert_eq!(KeyRange::from_bounds::<&str>(..), KeyRange::all());
    }
}
