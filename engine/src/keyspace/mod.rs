//! Keyspaces: named sets of keys, spread over the shards, for embedders that do not want to know of partitions.

pub(crate) mod catalogue;
mod entries;
mod manage;
mod options;
mod snapshot;

use std::ops::RangeBounds;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::config::Durability;
use crate::engine::{Engine, PartitionHandle};
use crate::error::{Error, Result};
use crate::merge_operator::NamedOperator;
use crate::partition::{Batch, Commit, Condition, PartitionStats, Versioned, Write, Written};
use crate::types::{KeyRange, ShardId};

pub use entries::Entries;
pub(crate) use manage::Keyspaces;
pub use options::{KeyspaceOptions, Partitioning};
pub use snapshot::Snapshot;

/// An open keyspace. Cheap to clone; usable from any thread and any runtime.
///
/// Every write goes at the handle's durability, [`Durability::Durable`] unless [`Keyspace::with_durability`] says
/// otherwise.
/// Cancel: a call that is dropped before the shard took it had no effect; later a write takes place, unacknowledged and
/// whole.
#[doc = example!(r#"people.put("ada", "1815").await?;
assert_eq!(people.get("ada").await?.expect("there"), "1815");"#)]
#[derive(Clone, Debug)]
pub struct Keyspace {
    inner: Arc<Inner>,
    durability: Durability,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    name: String,
    partitioning: Partitioning,
    partitions: Vec<PartitionHandle>,
    operator: Option<NamedOperator>,
}

/// Counts and sizes of a keyspace.
#[doc = example!(r#"let stats = people.stats().await?;
assert_eq!((stats.partitions.len(), stats.segments), (1, 1));"#)]
#[derive(Clone, Debug, Default)]
pub struct KeyspaceStats {
    /// Each partition.
    pub partitions: Vec<PartitionStats>,
    /// Segments of all.
    pub segments: usize,
    /// Bytes in tables.
    pub table_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: usize,
}

impl Keyspace {
    /// Its name.
    #[doc = example!(r#"assert_eq!(people.name(), "people");"#)]
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// How its keys are spread.
    #[doc = example!(r#"assert_eq!(people.partitioning().partitions(), 1);"#)]
    #[must_use]
    pub fn partitioning(&self) -> &Partitioning {
        &self.inner.partitioning
    }

    /// Its partitions, in the order of [`Partitioning::route`].
    #[doc = example!(r#"assert_eq!(people.partitions().len(), 1);"#)]
    #[must_use]
    pub fn partitions(&self) -> &[PartitionHandle] {
        &self.inner.partitions
    }

    /// The partition that `key` lies in: [`PartitionHandle::with`] ships code to it.
    #[doc = example!(r#"assert_eq!(people.partition_of(b"ada").id(), people.partitions()[0].id());"#)]
    #[must_use]
    pub fn partition_of(&self, key: &[u8]) -> &PartitionHandle {
        &self.inner.partitions[self.inner.partitioning.route(key)]
    }

    /// The same keyspace with another level for its writes.
    #[doc = example!(r#"let quick = people.with_durability(Durability::Buffered); // `people` itself stays durable
quick.put("ada", "1815").await?;"#)]
    #[must_use]
    pub fn with_durability(&self, durability: Durability) -> Keyspace {
        Keyspace { inner: Arc::clone(&self.inner), durability }
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// As [`crate::Partition::get`], [`Error::Closed`].
    #[doc = example!(r#"assert_eq!(people.get("ada").await?, None);
people.put("ada", "1815").await?;
assert_eq!(people.get("ada").await?.expect("there"), "1815");"#)]
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = key.into();
        self.partition_of(&key).get(key).await
    }

    /// The value of `key` with its version and deadline.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    #[doc = example!(r#"let written = people.put("ada", "1815").await?;
let found = people.get_versioned("ada").await?.expect("there");
assert_eq!((&found.value[..], found.version), (&b"1815"[..], written));"#)]
    pub async fn get_versioned(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>> {
        let key = key.into();
        self.partition_of(&key).get_versioned(key).await
    }

    /// The values of many keys, in their order; those of one partition are of one moment.
    ///
    /// # Errors
    /// As [`Keyspace::get`]; the first ends the call.
    /// Cost: one hop a shard; each keeps up to [`crate::partition::READS_IN_FLIGHT`] reads of a partition under way.
    #[doc = example!(r#"people.put("ada", "1815").await?;
let found = people.multi_get(["ada", "bob"]).await?;
assert!(found[0].is_some() && found[1].is_none());"#)]
    pub async fn multi_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Bytes>>> {
        let mut wanted: Vec<Wanted> = self.inner.partitions.iter().map(|_| Wanted::default()).collect();
        let mut count = 0;
        for key in keys {
            let key = key.into();
            let of_partition = &mut wanted[self.inner.partitioning.route(&key)];
            of_partition.places.push(count);
            of_partition.keys.push(key);
            count += 1;
        }
        let mut found = vec![None; count];
        let mut places = Vec::new();
        let mut calls = Vec::new();
        for (shard, partitions) in self.by_shard(|index| !wanted[index].keys.is_empty()) {
            let mut reads = Vec::new();
            for index in partitions {
                let Wanted { keys, places: of_partition } = std::mem::take(&mut wanted[index]);
                reads.push((self.inner.partitions[index].id(), keys));
                places.extend(of_partition);
            }
            calls.push(self.inner.engine.on_shard(shard, move |shard| async move {
                let reads = reads.into_iter().map(|(partition, keys)| {
                    let shard = &shard;
                    async move { shard.partition(partition)?.multi_get(&keys).await }
                });
                try_join_all(reads).await.map(|found| found.concat())
            }));
        }
        let answers = try_join_all(calls).await?;
        let values = answers.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten();
        for (place, value) in places.into_iter().zip(values) {
            found[place] = value;
        }
        Ok(found)
    }

    /// Indices of the partitions that `wanted` accepts, by shard.
    fn by_shard(&self, wanted: impl Fn(usize) -> bool) -> Vec<(ShardId, Vec<usize>)> {
        let mut shards: Vec<(ShardId, Vec<usize>)> = Vec::new();
        for (index, partition) in self.inner.partitions.iter().enumerate().filter(|(index, _)| wanted(*index)) {
            match shards.iter_mut().find(|(shard, _)| *shard == partition.shard()) {
                Some((_, partitions)) => partitions.push(index),
                None => shards.push((partition.shard(), vec![index])),
            }
        }
        shards
    }

    /// Sets a key.
    ///
    /// # Errors
    /// As [`crate::Partition::write`], [`Error::Closed`].
    #[doc = example!(r#"people.put("ada", "1815").await?; // on the device when it returns"#)]
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::put(key, value)).await
    }

    /// Sets a key until `expires_at_ms`, milliseconds since the Unix epoch. From then on readers do not see it, and a
    /// compaction gives its space back.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    #[doc = example!(r#"people.put_until("session", "state", 1).await?; // a deadline of long ago
assert_eq!(people.get("session").await?, None);"#)]
    pub async fn put_until(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        expires_at_ms: u64,
    ) -> Result<Written> {
        self.write(Write { expires_at_ms, ..Write::put(key, value) }).await
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    #[doc = example!(r#"people.put("ada", "1815").await?;
people.delete("ada").await?;
assert_eq!(people.get("ada").await?, None);"#)]
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::delete(key)).await
    }

    /// Applies one write.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    #[doc = example!(r#"people.write(Write::put("ada", "1815")).await?;"#)]
    pub async fn write(&self, write: Write) -> Result<Written> {
        self.partition_of(&write.key).write(write, self.durability).await
    }

    /// Sets a key if `condition` holds for it. A condition that does not is a [`Commit::Conflict`] and not an error.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    #[doc = example!(r#"assert!(people.put_if("ada", "1815", Condition::Absent).await?.is_written());
assert!(!people.put_if("ada", "1816", Condition::Absent).await?.is_written());"#)]
    pub async fn put_if(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, condition: Condition) -> Result<Commit> {
        self.write_if(condition, Write::put(key, value)).await
    }

    /// Applies one write if `condition` holds for its key.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    #[doc = example!(r#"let version = people.put("ada", "1815").await?;
let commit = people.write_if(Condition::Version(version), Write::delete("ada")).await?;
assert!(commit.is_written());"#)]
    pub async fn write_if(&self, condition: Condition, write: Write) -> Result<Commit> {
        self.partition_of(&write.key).write_if(condition, write, self.durability).await
    }

    /// Changes a key by the keyspace's merge operator.
    ///
    /// # Errors
    /// As [`Keyspace::put`], [`Error::Merge`], [`Error::Invalid`] when the keyspace names no operator.
    #[doc = example!(r#"let hits = engine.create_keyspace("hits", KeyspaceOptions::new().merge_operator("add")).await?;
hits.merge("page", 2_i64.to_le_bytes().to_vec()).await?;
hits.merge("page", 3_i64.to_le_bytes().to_vec()).await?;
assert_eq!(hits.get("page").await?.expect("counted")[..], 5_i64.to_le_bytes());"#)]
    pub async fn merge(&self, key: impl Into<Bytes>, operand: impl Into<Bytes>) -> Result<Written> {
        let mut batch = self.batch();
        batch.merge(key, operand)?;
        let commit = self.commit(batch).await?;
        commit.written().ok_or_else(|| unreachable!("INV-ATOMIC: a batch without conditions has no conflict"))
    }

    /// Removes every key of `range`. Each partition does so atomically, one after another; its cost depends on the number
    /// of segments and not of keys.
    ///
    /// # Errors
    /// As [`Keyspace::put`]; partitions that came before are done.
    #[doc = example!(r#"people.put("ada", "1815").await?;
people.delete_range("a".."b").await?;
assert_eq!(people.get("ada").await?, None);"#)]
    pub async fn delete_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        let range = KeyRange::from_bounds(range);
        for (index, partition) in self.inner.partitions.iter().enumerate() {
            if self.inner.partitioning.range_of(index).overlaps(&range) {
                partition.delete_range(range.clone(), self.durability).await?;
            }
        }
        Ok(())
    }

    /// An empty batch whose merges use the keyspace's operator.
    #[doc = example!(r#"let mut batch = people.batch();
batch.put("ada", "1815").delete("bob");
people.commit(batch).await?;"#)]
    #[must_use]
    pub fn batch(&self) -> Batch {
        self.inner.operator.clone().map_or_else(Batch::new, Batch::with_operator)
    }

    /// Applies a batch: all of it or nothing. Its keys lie in one partition; with [`Partitioning::Single`] all do.
    ///
    /// # Errors
    /// As [`crate::Partition::commit`], [`Error::SpansPartitions`], [`Error::Closed`].
    #[doc = example!(r#"let mut batch = people.batch();
batch.require("ada", Condition::Absent).put("ada", "1815").put("bob", "1816");
assert!(people.commit(batch).await?.is_written());"#)]
    pub async fn commit(&self, batch: Batch) -> Result<Commit> {
        let partitioning = &self.inner.partitioning;
        let mut keys = batch.keys();
        let first = keys.next().or_else(|| batch.ranges().next().map(|range| range.start.as_slice()));
        let index = first.map_or(0, |key| partitioning.route(key));
        let spans = keys.any(|key| partitioning.route(key) != index)
            || batch.ranges().any(|range| !contains(&partitioning.range_of(index), range))
            || (!partitioning.keeps_order() && partitioning.partitions() > 1 && batch.ranges().next().is_some());
        drop(keys);
        if spans {
            return Err(Error::SpansPartitions { keyspace: self.inner.name.clone() });
        }
        self.inner.partitions[index].commit(batch, self.durability).await
    }

    /// Keeps what readers see now: of each partition one moment, of all of them nearly the same one.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::UnknownPartition`] for a keyspace that was dropped.
    #[doc = example!(r#"let before = people.snapshot().await?;
people.put("ada", "1815").await?;
assert_eq!(before.get("ada").await?, None);"#)]
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let pinned = try_join_all(self.inner.partitions.iter().map(PartitionHandle::snapshot)).await?;
        Ok(Snapshot::new(self.clone(), pinned))
    }

    /// All entries, ascending by key.
    #[doc = example!(r#"people.put("ada", "1815").await?;
let mut all = people.iter();
while let Some(entry) = all.next().await {
    assert_eq!(entry?.key, "ada");
}"#)]
    #[must_use]
    pub fn iter(&self) -> Entries {
        self.entries(&KeyRange::all())
    }

    /// The entries of a range, ascending by key; [`Entries::rev`] walks it the other way.
    #[doc = example!(r#"people.put("ada", "1815").await?;
assert_eq!(people.range("a"..="b").collect().await?.len(), 1);"#)]
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Entries {
        self.entries(&KeyRange::from_bounds(range))
    }

    /// The entries whose keys begin with `prefix`, ascending.
    #[doc = example!(r#"people.put("2026-11-26", "rain").await?;
let newest = people.prefix("2026-").rev().next().await.expect("one")?;
assert_eq!(newest.value, "rain");"#)]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Entries {
        self.entries(&KeyRange::prefix(prefix.as_ref()))
    }

    fn entries(&self, range: &KeyRange) -> Entries {
        Entries::new(&self.inner.partitioning, range, |index| self.inner.partitions[index].entries(range.clone()))
    }

    /// Flushes and compacts what `range` touches: what was overwritten, deleted or has expired gives its space back,
    /// unless a snapshot needs it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corruption`], [`Error::Closed`]; what was compacted until then stays so.
    #[doc = example!(r#"people.compact_range::<&str>(..).await?;"#)]
    pub async fn compact_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        let range = KeyRange::from_bounds(range);
        for (index, partition) in self.inner.partitions.iter().enumerate() {
            if self.inner.partitioning.range_of(index).overlaps(&range) {
                partition.compact_range(range.clone()).await?;
            }
        }
        Ok(())
    }

    /// Counts and sizes.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::UnknownPartition`] for a keyspace that was dropped.
    #[doc = example!(r#"assert_eq!(people.stats().await?.partitions.len(), 1);"#)]
    pub async fn stats(&self) -> Result<KeyspaceStats> {
        let partitions = try_join_all(self.inner.partitions.iter().map(PartitionHandle::stats)).await?;
        Ok(KeyspaceStats {
            segments: partitions.iter().map(|partition| partition.segments).sum(),
            table_bytes: partitions.iter().map(|partition| partition.table_bytes).sum(),
            memtable_bytes: partitions.iter().map(|partition| partition.memtable_bytes).sum(),
            partitions,
        })
    }
}

/// Keys of a multi_get in one partition, and their places in the answer.
#[derive(Debug, Default)]
struct Wanted {
    keys: Vec<Bytes>,
    places: Vec<usize>,
}

fn contains(outer: &KeyRange, inner: &KeyRange) -> bool {
    let ends_within = match (&outer.end, &inner.end) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(outer), Some(inner)) => inner <= outer,
    };
    outer.start <= inner.start && ends_within
}
