//! A partition as other threads see it.

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;

use crate::config::Durability;
use crate::error::Result;
use crate::partition::{Partition, PartitionStats, ScanPage, Write, Written};
use crate::types::{KeyRange, PartitionId, ShardId};

use super::Engine;

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
    /// As [`Partition::get`], [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = key.into();
        self.with(move |partition| async move { partition.get(&key).await }).await
    }

    /// See [`Partition::write`].
    ///
    /// # Errors
    /// As [`Partition::write`], [`Error::UnknownPartition`], [`Error::Closed`].
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

    /// See [`Partition::scan`].
    ///
    /// # Errors
    /// As [`Partition::scan`], [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn scan(&self, range: KeyRange, limit: usize) -> Result<ScanPage> {
        self.with(move |partition| async move { partition.scan(&range, limit).await }).await
    }

    /// Counts and sizes.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn stats(&self) -> Result<PartitionStats> {
        self.with(move |partition| async move { Ok(partition.stats()) }).await
    }

    /// See [`Partition::compact_all`].
    ///
    /// # Errors
    /// As [`Partition::compact_all`], [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn compact(&self) -> Result<()> {
        self.with(move |partition| async move { partition.compact_all().await }).await
    }

    /// Runs code beside the partition on its shard's core.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`], [`Error::Closed`], whatever the code returns.
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
