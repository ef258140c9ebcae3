//! A partition as other threads see it.

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use futures_channel::oneshot;

use crate::config::Durability;
use crate::error::Result;
use crate::io::runtime;
use crate::partition::{
    Batch, Commit, Condition, Direction, ExportPage, Page, PageLimits, Partition, PartitionStats, ScanPage,
    ScrubReport, Versioned, Write, Written,
};
use crate::shard::Shard;
use crate::types::{KeyRange, PartitionId, ShardId};

use super::{Engine, PartitionEntries, PartitionSnapshot};

/// A partition behind its shard's queue: one hop to the shard's core and back per call.
#[doc = example!(r#"let partition = people.partition_of(b"ada");
partition.put("ada", "1815").await?;
assert_eq!(partition.stats().await?.id, partition.id());"#)]
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    pub(super) engine: Engine,
    pub(super) id: PartitionId,
    pub(super) shard: ShardId,
}

impl PartitionHandle {
    /// The partition's id.
    #[doc = example!(r#"let partition = &people.partitions()[0];
assert_eq!(engine.partitions()[0].0, partition.id());"#)]
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The shard it is pinned to.
    #[doc = example!(r#"use antumbra_engine::types::ShardId;
assert_eq!(people.partitions()[0].shard(), ShardId(0));"#)]
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// See [`Partition::get`].
    ///
    /// # Errors
    /// As [`Partition::get`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let partition = &people.partitions()[0];
partition.put("ada", "1815").await?;
assert_eq!(partition.get("ada").await?.expect("there"), "1815");"#)]
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let (id, key) = (self.id, key.into());
        let get = move |shard: Rc<Shard>, answer: oneshot::Sender<Result<Option<Bytes>>>| {
            let found = match shard.partition(id) {
                Ok(partition) => match partition.get_now(&key) {
                    Some(found) => found,
                    None => {
                        return runtime::spawn_detached(async move {
                            // The caller may have gone.
                            let _ = answer.send(partition.get(&key).await);
                        });
                    }
                },
                Err(cause) => Err(cause),
            };
            let _ = answer.send(found);
        };
        self.engine.call(self.shard, get).await?
    }

    /// See [`Partition::write`].
    ///
    /// # Errors
    /// As [`Partition::write`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let partition = &people.partitions()[0];
partition.write(Write::put("ada", "1815"), Durability::Buffered).await?;"#)]
    pub async fn write(&self, write: Write, durability: Durability) -> Result<Written> {
        self.with(move |partition| async move { partition.write(write, durability).await }).await
    }

    /// Sets a key, durably.
    ///
    /// # Errors
    /// As [`PartitionHandle::write`].
    #[doc = example!(r#"let written = people.partitions()[0].put("ada", "1815").await?;
assert!(written.lsn.0 > 0);"#)]
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::put(key, value), Durability::Durable).await
    }

    /// Removes a key, durably.
    ///
    /// # Errors
    /// As [`PartitionHandle::write`].
    #[doc = example!(r#"people.partitions()[0].delete("ada").await?;"#)]
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::delete(key), Durability::Durable).await
    }

    /// See [`Partition::get_versioned`].
    ///
    /// # Errors
    /// As [`Partition::get_versioned`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let partition = &people.partitions()[0];
let written = partition.put("ada", "1815").await?;
assert_eq!(partition.get_versioned("ada").await?.expect("there").version, written);"#)]
    pub async fn get_versioned(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>> {
        let key = key.into();
        self.with(move |partition| async move { partition.get_versioned(&key).await }).await
    }

    /// See [`Partition::multi_get`]: one hop for all keys.
    ///
    /// # Errors
    /// As [`Partition::multi_get`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let partition = &people.partitions()[0];
partition.put("ada", "1815").await?;
let found = partition.multi_get(vec!["ada".into(), "bob".into()]).await?;
assert!(found[0].is_some() && found[1].is_none());"#)]
    pub async fn multi_get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>> {
        self.with(move |partition| async move { partition.multi_get(&keys).await }).await
    }

    /// See [`Partition::commit`]: one hop for the whole batch.
    ///
    /// # Errors
    /// As [`Partition::commit`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    /// Cancel: as [`Partition::write`]; once the shard has taken the batch it takes place whole.
    #[doc = example!(r#"let mut batch = Batch::new();
batch.put("ada", "1815").delete("bob");
people.partitions()[0].commit(batch, Durability::Durable).await?;"#)]
    pub async fn commit(&self, batch: Batch, durability: Durability) -> Result<Commit> {
        self.with(move |partition| async move { partition.commit(batch, durability).await }).await
    }

    /// Applies one write if `condition` holds for its key.
    ///
    /// # Errors
    /// As [`PartitionHandle::commit`].
    #[doc = example!(r#"let partition = &people.partitions()[0];
let commit = partition.write_if(Condition::Absent, Write::put("ada", "1815"), Durability::Durable).await?;
assert!(commit.is_written());"#)]
    pub async fn write_if(&self, condition: Condition, write: Write, durability: Durability) -> Result<Commit> {
        let mut batch = Batch::new();
        batch.require(write.key.clone(), condition).push(write);
        self.commit(batch, durability).await
    }

    /// Removes every key of `range`, at a cost that does not depend on how many there are.
    ///
    /// # Errors
    /// As [`PartitionHandle::commit`].
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
people.partitions()[0].delete_range(KeyRange::prefix(b"a"), Durability::Durable).await?;"#)]
    pub async fn delete_range(&self, range: KeyRange, durability: Durability) -> Result<Commit> {
        let mut batch = Batch::new();
        batch.delete_range(range);
        self.commit(batch, durability).await
    }

    /// Keeps what readers see now.
    ///
    /// # Errors
    /// [`crate::Error::UnknownPartition`], [`crate::Error::Moved`], [`crate::Error::NotOwner`], [`crate::Error::Closed`].
    #[doc = example!(r#"let partition = &people.partitions()[0];
let before = partition.snapshot().await?;
partition.put("ada", "1815").await?;
assert_eq!(before.get("ada").await?, None);"#)]
    pub async fn snapshot(&self) -> Result<PartitionSnapshot> {
        let handle = self.clone();
        self.with(move |partition| async move {
            partition.wait_readable().await?;
            Ok(PartitionSnapshot::keep(handle, &partition, partition.pin_latest()))
        })
        .await
    }

    /// See [`Partition::scan`].
    ///
    /// # Errors
    /// As [`Partition::scan`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
let partition = &people.partitions()[0];
partition.put("ada", "1815").await?;
assert_eq!(partition.scan(KeyRange::all(), 10).await?.items.len(), 1);"#)]
    pub async fn scan(&self, range: KeyRange, limit: usize) -> Result<ScanPage> {
        self.with(move |partition| async move { partition.scan(&range, limit).await }).await
    }

    /// The entries of a range as a stream, ascending by key.
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
let mut entries = people.partitions()[0].entries(KeyRange::all());
assert!(entries.next().await.is_none());"#)]
    #[must_use]
    pub fn entries(&self, range: KeyRange) -> PartitionEntries {
        PartitionEntries::new(self.clone(), None, range)
    }

    /// Pins what readers see now and reads the first page of a range: one hop. The pin is kept only if there is more.
    pub(super) async fn first_page(
        &self,
        range: KeyRange,
        direction: Direction,
        limits: PageLimits,
    ) -> Result<(Option<PartitionSnapshot>, Page)> {
        let handle = self.clone();
        self.with(move |partition| async move {
            let pin = partition.pin_latest();
            let page = partition.page(&range, direction, &pin.moment(), limits).await?;
            let more = page.rest.is_some();
            Ok((more.then(|| PartitionSnapshot::keep(handle, &partition, pin)), page))
        })
        .await
    }

    /// Counts and sizes.
    ///
    /// # Errors
    /// [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"assert_eq!(people.partitions()[0].stats().await?.segments, 1);"#)]
    pub async fn stats(&self) -> Result<PartitionStats> {
        self.with(move |partition| async move { Ok(partition.stats()) }).await
    }

    /// See [`Partition::compact_all`].
    ///
    /// # Errors
    /// As [`Partition::compact_all`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"people.partitions()[0].compact().await?;"#)]
    pub async fn compact(&self) -> Result<()> {
        self.with(move |partition| async move { partition.compact_all().await }).await
    }

    /// See [`Partition::compact_range`].
    ///
    /// # Errors
    /// As [`Partition::compact_range`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
people.partitions()[0].compact_range(KeyRange::prefix(b"a")).await?;"#)]
    pub async fn compact_range(&self, range: KeyRange) -> Result<()> {
        self.with(move |partition| async move { partition.compact_range(&range).await }).await
    }

    /// See [`Partition::scrub`].
    ///
    /// # Errors
    /// As [`Partition::scrub`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let report = people.partitions()[0].scrub(Some(50_000_000)).await?;
assert!(report.damage.is_empty());"#)]
    pub async fn scrub(&self, bytes_per_second: Option<u64>) -> Result<ScrubReport> {
        self.with(move |partition| async move { partition.scrub(bytes_per_second).await }).await
    }

    /// See [`Partition::export`].
    ///
    /// # Errors
    /// As [`Partition::export`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let partition = &people.partitions()[0];
partition.put("ada", "1815").await?;
assert_eq!(partition.export("", 1 << 20).await?.records.len(), 1);"#)]
    pub async fn export(&self, start: impl Into<Bytes>, bytes_max: usize) -> Result<ExportPage> {
        let start = start.into();
        self.with(move |partition| async move { partition.export(&start, bytes_max).await }).await
    }

    /// Runs code beside the partition on its shard's core.
    ///
    /// # Errors
    /// [`crate::Error::UnknownPartition`], [`crate::Error::Closed`], whatever the code returns.
    #[doc = example!(r#"let length = people.partitions()[0]
    .with(|partition| async move { partition.get_with(b"ada", |value| value.map_or(0, <[u8]>::len)).await })
    .await?;
assert_eq!(length, 0);"#)]
    pub async fn with<F, Fut, T>(&self, work: F) -> Result<T>
    where
        F: FnOnce(Rc<Partition>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        let id = self.id;
        self.engine
            .on_shard(self.shard, move |shard| async move {
                let partition = shard.partition(id)?;
                work(partition).await
            })
            .await?
    }
}
