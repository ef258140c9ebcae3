//! What an embedder chooses of a keyspace.

use bytes::Bytes;

use crate::config::{Compression, PartitionOptions};
use crate::error::{Error, Result};
use crate::types::KeyRange;

/// Partitions of one keyspace.
pub const PARTITIONS_MAX: usize = 4096;

/// How the keys of a keyspace are spread over partitions, and with them over the shards. Chosen once.
///
/// # Example
/// ```
/// use antumbra_engine::Partitioning;
/// let ranges = Partitioning::Range { splits: vec!["h".into()] };
/// assert_eq!((ranges.partitions(), ranges.route(b"ada"), ranges.route(b"zoe")), (2, 0, 1));
/// assert!(ranges.range_of(0).contains(b"ada"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Partitioning {
    /// All keys in one partition, on one core. Every batch is possible, ranges are read from one place.
    #[default]
    Single,
    /// By a hash of the key (xxh3-64) over this many partitions: load spreads evenly. A range is read from all of them.
    Hash {
        /// Number of partitions; a multiple of the shards spreads best.
        partitions: u16,
    },
    /// Neighbouring keys together: one partition before the first of these keys, one between each two, one behind.
    Range {
        /// First key of each partition but the first, ascending.
        splits: Vec<Bytes>,
    },
}

impl Partitioning {
    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> usize {
        match self {
            Partitioning::Single => 1,
            Partitioning::Hash { partitions } => usize::from(*partitions),
            Partitioning::Range { splits } => splits.len() + 1,
        }
    }

    /// Index of the partition that `key` belongs to.
    #[must_use]
    pub fn route(&self, key: &[u8]) -> usize {
        match self {
            Partitioning::Single => 0,
            // The upper half times the count: even for any count, without a division.
            Partitioning::Hash { partitions } => {
                let hash = xxhash_rust::xxh3::xxh3_64(key);
                (((hash >> 32) * u64::from(*partitions)) >> 32) as usize
            }
            Partitioning::Range { splits } => splits.partition_point(|split| split.as_ref() <= key),
        }
    }

    /// The keys that partition `index` may hold.
    #[must_use]
    pub fn range_of(&self, index: usize) -> KeyRange {
        match self {
            Partitioning::Single | Partitioning::Hash { .. } => KeyRange::all(),
            Partitioning::Range { splits } => KeyRange {
                start: index
                    .checked_sub(1)
                    .and_then(|before| splits.get(before))
                    .map_or(Vec::new(), |key| key.to_vec()),
                end: splits.get(index).map(|key| key.to_vec()),
            },
        }
    }

    /// Whether neighbouring keys lie in one partition or in neighbouring ones.
    pub(crate) fn keeps_order(&self) -> bool {
        !matches!(self, Partitioning::Hash { .. })
    }

    fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::Invalid { what });
        if self.partitions() == 0 || self.partitions() > PARTITIONS_MAX {
            return invalid(format!("{} partitions: a keyspace has 1 to {PARTITIONS_MAX}", self.partitions()));
        }
        if let Partitioning::Range { splits } = self {
            splits.iter().try_for_each(|split| crate::limits::check_key(split))?;
            if !splits.is_sorted_by(|a, b| a < b) {
                return invalid("the split keys of a keyspace rise strictly".into());
            }
        }
        Ok(())
    }
}

/// Options of a keyspace; kept with it.
///
/// # Example
/// ```
/// use antumbra_engine::{Compression, KeyspaceOptions, PartitionOptions};
/// let options = KeyspaceOptions::new().hash(4).compression(Compression::Zstd);
/// assert_eq!(options.partitioning.partitions(), 4);
/// let ranges = KeyspaceOptions::new().split_at(["h", "p"]).merge_operator("add");
/// assert_eq!(ranges.partitioning.partitions(), 3);
/// let large = KeyspaceOptions::new().partition(PartitionOptions { block_bytes: 16 << 10, ..PartitionOptions::default() });
/// large.check()?;
/// # Ok::<(), antumbra_engine::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceOptions {
    /// How keys are spread.
    pub partitioning: Partitioning,
    /// Name of the operator that merges use (see [`crate::MergeOperators`]).
    pub merge_operator: Option<String>,
    /// Options of every partition.
    pub partition: PartitionOptions,
}

impl KeyspaceOptions {
    /// The defaults: one partition, no merge operator.
    #[must_use]
    pub fn new() -> KeyspaceOptions {
        KeyspaceOptions::default()
    }

    /// Spreads keys by hash over `partitions` partitions.
    #[must_use]
    pub fn hash(mut self, partitions: u16) -> KeyspaceOptions {
        self.partitioning = Partitioning::Hash { partitions };
        self
    }

    /// Cuts the keys into neighbouring partitions before each of `splits`.
    #[must_use]
    pub fn split_at<K: Into<Bytes>>(mut self, splits: impl IntoIterator<Item = K>) -> KeyspaceOptions {
        self.partitioning = Partitioning::Range { splits: splits.into_iter().map(Into::into).collect() };
        self
    }

    /// Names the merge operator.
    #[must_use]
    pub fn merge_operator(mut self, name: impl Into<String>) -> KeyspaceOptions {
        self.merge_operator = Some(name.into());
        self
    }

    /// Chooses how blocks are stored.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> KeyspaceOptions {
        self.partition.compression = compression;
        self
    }

    /// Sets the options of every partition.
    #[must_use]
    pub fn partition(mut self, options: PartitionOptions) -> KeyspaceOptions {
        self.partition = options;
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::KeyLength`] for a split key.
    pub fn check(&self) -> Result<()> {
        self.partitioning.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_range_agrees_with_range_of() {
        let options = KeyspaceOptions::new().split_at(["f", "m", "t"]);
        for key in ["a", "f", "fa", "l", "m", "s", "t", "z"] {
            let index = options.partitioning.route(key.as_bytes());
            assert!(options.partitioning.range_of(index).contains(key.as_bytes()), "{key}");
        }
        assert_eq!(options.partitioning.partitions(), 4);
    }

    #[test]
    fn route_hash_spreads_evenly_and_golden_places_stay() {
        let partitioning = Partitioning::Hash { partitions: 7 };
        let mut counts = [0; 7];
        for number in 0..7_000_u32 {
            counts[partitioning.route(&number.to_be_bytes())] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        // Where keys lie is part of the format.
        let places: Vec<usize> =
            ["a", "b", "c", "d", "e"].iter().map(|key| partitioning.route(key.as_bytes())).collect();
        assert_eq!(places, [6, 2, 3, 1, 6]);
    }

    #[test]
    fn check_bad_options_are_refused() {
        assert!(KeyspaceOptions::new().hash(0).check().is_err());
        assert!(KeyspaceOptions::new().hash(5_000).check().is_err());
        assert!(KeyspaceOptions::new().split_at(["b", "a"]).check().is_err());
        assert!(KeyspaceOptions::new().split_at([""]).check().is_err());
    }
}
