//! A keyspace as of one moment.

use std::ops::RangeBounds;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::engine::PartitionSnapshot;
use crate::error::Result;
use crate::types::KeyRange;

use super::{Entries, Keyspace};

/// What readers of a keyspace saw when it was taken; each partition of one moment, so that no batch is seen half. Owned,
/// cheap to clone, kept until the last clone is gone.
#[doc = example!(r#"people.put("ada", "1815").await?;
let moment = people.snapshot().await?;
people.delete("ada").await?;
assert!(moment.get("ada").await?.is_some());"#)]
#[derive(Clone, Debug)]
pub struct Snapshot {
    keyspace: Keyspace,
    partitions: Arc<[PartitionSnapshot]>,
}

impl Snapshot {
    pub(super) fn new(keyspace: Keyspace, partitions: Vec<PartitionSnapshot>) -> Snapshot {
        Snapshot { keyspace, partitions: partitions.into() }
    }

    /// The keyspace.
    #[doc = example!(r#"assert_eq!(people.snapshot().await?.keyspace().name(), "people");"#)]
    #[must_use]
    pub fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// The partitions' snapshots, in the order of [`Keyspace::partitions`].
    #[doc = example!(r#"assert_eq!(people.snapshot().await?.partitions().len(), 1);"#)]
    #[must_use]
    pub fn partitions(&self) -> &[PartitionSnapshot] {
        &self.partitions
    }

    /// The value that `key` had.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    #[doc = example!(r#"assert_eq!(people.snapshot().await?.get("ada").await?, None);"#)]
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = key.into();
        self.partitions[self.keyspace.partitioning().route(&key)].get(key).await
    }

    /// The values that many keys had, in their order.
    ///
    /// # Errors
    /// As [`Keyspace::get`]; the first ends the call. Cost: one hop a partition.
    #[doc = example!(r#"assert_eq!(people.snapshot().await?.multi_get(["ada"]).await?, [None]);"#)]
    pub async fn multi_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Bytes>>> {
        let keys: Vec<Bytes> = keys.into_iter().map(Into::into).collect();
        let partitioning = self.keyspace.partitioning();
        let mut found = vec![None; keys.len()];
        let reads = self.partitions.iter().enumerate().filter_map(|(index, partition)| {
            let of_partition = |(_, key): &(usize, &Bytes)| partitioning.route(key) == index;
            let wanted = keys.iter().enumerate().filter(of_partition).map(|(place, key)| (place, key.clone()));
            let (places, wanted): (Vec<usize>, Vec<Bytes>) = wanted.unzip();
            (!wanted.is_empty()).then_some(async move { Ok((places, partition.multi_get(wanted).await?)) })
        });
        for (places, values) in try_join_all(reads).await? {
            places.into_iter().zip(values).for_each(|(place, value)| found[place] = value);
        }
        Ok(found)
    }

    /// All entries, ascending by key.
    #[doc = example!(r#"assert!(people.snapshot().await?.iter().collect().await?.is_empty());"#)]
    #[must_use]
    pub fn iter(&self) -> Entries {
        self.entries(&KeyRange::all())
    }

    /// The entries of a range, ascending by key.
    #[doc = example!(r#"assert!(people.snapshot().await?.range("a".."b").collect().await?.is_empty());"#)]
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Entries {
        self.entries(&KeyRange::from_bounds(range))
    }

    /// The entries whose keys begin with `prefix`, ascending.
    #[doc = example!(r#"assert!(people.snapshot().await?.prefix("a").rev().next().await.is_none());"#)]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Entries {
        self.entries(&KeyRange::prefix(prefix.as_ref()))
    }

    fn entries(&self, range: &KeyRange) -> Entries {
        Entries::new(self.keyspace.partitioning(), range, |index| self.partitions[index].entries(range.clone()))
    }
}
