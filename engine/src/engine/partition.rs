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
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    pub(super) engine: Engine,
    pub(super) id: PartitionId,
    pub(super) shard: ShardId,
}

impl PartitionHandle {
    /// The partition's id.
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The shard it is pinned to.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// See [`Partition::get`].
    ///
    /// # Errors
    /// As [`Partition::get`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
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
    pub async fn write(&self, write: Write, durability: Durability) -> Result<Written> {
        self.with(move |partition| async move { partition.write(write, durability).await }).await
    }

    /// Sets a key, durably.
    ///
    /// # Errors
    /// As [`PartitionHandle::write`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::put(key, value), Durability::Durable).await
    }

    /// Removes a key, durably.
    ///
    /// # Errors
    /// As [`PartitionHandle::write`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::delete(key), Durability::Durable).await
    }

    /// See [`Partition::get_versioned`].
    ///
    /// # Errors
    /// As [`Partition::get_versioned`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    pub async fn get_versioned(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>> {
        let key = key.into();
        self.with(move |partition| async move { partition.get_versioned(&key).await }).await
    }

    /// See [`Partition::multi_get`]: one hop for all keys.
    ///
    /// # Errors
    /// As [`Partition::multi_get`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    pub async fn multi_get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>> {
        self.with(move |partition| async move { partition.multi_get(&keys).await }).await
    }

    /// See [`Partition::commit`]: one hop for the whole batch.
    ///
    /// # Errors
    /// As [`Partition::commit`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    /// Cancel: as [`Partition::write`]; once the shard has taken the batch it takes place whole.
    pub async fn commit(&self, batch: Batch, durability: Durability) -> Result<Commit> {
        self.with(move |partition| async move { partition.commit(batch, durability).await }).await
    }

    /// Applies one write if `condition` holds for its key.
    ///
    /// # Errors
    /// As [`PartitionHandle::commit`].
    pub async fn write_if(&self, condition: Condition, write: Write, durability: Durability) -> Result<Commit> {
        let mut batch = Batch::new();
        batch.require(write.key.clone(), condition).push(write);
        self.commit(batch, durability).await
    }

    /// Removes every key of `range`, at a cost that does not depend on how many there are.
    ///
    /// # Errors
    /// As [`PartitionHandle::commit`].
    pub async fn delete_range(&self, range: KeyRange, durability: Durability) -> Result<Commit> {
        let mut batch = Batch::new();
        batch.delete_range(range);
        self.commit(batch, durability).await
    }

    /// Keeps what readers see now.
    ///
    /// # Errors
    /// [`crate::Error::UnknownPartition`], [`crate::Error::Moved`], [`crate::Error::NotOwner`], [`crate::Error::Closed`].
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
    pub async fn scan(&self, range: KeyRange, limit: usize) -> Result<ScanPage> {
        self.with(move |partition| async move { partition.scan(&range, limit).await }).await
    }

    /// The entries of a range as a stream, ascending by key.
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
    pub async fn stats(&self) -> Result<PartitionStats> {
        self.with(move |partition| async move { Ok(partition.stats()) }).await
    }

    /// See [`Partition::compact_all`].
    ///
    /// # Errors
    /// As [`Partition::compact_all`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    pub async fn compact(&self) -> Result<()> {
        self.with(move |partition| async move { partition.compact_all().await }).await
    }

    /// See [`Partition::compact_range`].
    ///
    /// # Errors
    /// As [`Partition::compact_range`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    pub async fn compact_range(&self, range: KeyRange) -> Result<()> {
        self.with(move |partition| async move { partition.compact_range(&range).await }).await
    }

    /// See [`Partition::scrub`].
    ///
    /// # Errors
    /// As [`Partition::scrub`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    pub async fn scrub(&self, bytes_per_second: Option<u64>) -> Result<ScrubReport> {
        self.with(move |partition| async move { partition.scrub(bytes_per_second).await }).await
    }

    /// See [`Partition::export`].
    ///
    /// # Errors
    /// As [`Partition::export`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    pub async fn export(&self, start: impl Into<Bytes>, bytes_max: usize) -> Result<ExportPage> {
        let start = start.into();
        self.with(move |partition| async move { partition.export(&start, bytes_max).await }).await
    }

    /// Runs code beside the partition on its shard's core.
    ///
    /// # Errors
    /// [`crate::Error::UnknownPartition`], [`crate::Error::Closed`], whatever the code returns.
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
