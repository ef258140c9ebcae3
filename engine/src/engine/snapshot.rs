//! A moment of a partition that any thread may hold.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::partition::{Direction, Moment, Page, PageLimits, Partition, SnapshotPin};
use crate::types::KeyRange;

use super::{PartitionEntries, PartitionHandle};

/// What readers of a partition saw at one moment, kept for as long as a clone of this lives. Owned, `Send` and `'static`.
///
/// Every version that it sees stays on disk until then, so an old snapshot costs space; it costs writers nothing. Deadlines
/// are judged by the time it was taken at. It ends with the partition: once that has moved or been dropped, reads fail.
#[doc = example!(r#"let moment = people.partitions()[0].snapshot().await?;
assert_eq!(moment.get("ada").await?, None);"#)]
#[derive(Clone, Debug)]
pub struct PartitionSnapshot {
    pinned: Arc<Pinned>,
}

#[derive(Debug)]
struct Pinned {
    handle: PartitionHandle,
    moment: Moment,
    number: u64,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.handle.engine.unpin(self.handle.shard, self.number);
    }
}

impl PartitionSnapshot {
    /// Hands a pin over to whoever holds the result. Called on the shard, so that an answer nobody waits for any more
    /// lets go of it.
    pub(super) fn keep(handle: PartitionHandle, partition: &Partition, pin: SnapshotPin) -> PartitionSnapshot {
        let (moment, number) = (pin.moment(), partition.shard.keep_pin(pin));
        PartitionSnapshot { pinned: Arc::new(Pinned { handle, moment, number }) }
    }

    /// The moment.
    #[doc = example!(r#"let partition = &people.partitions()[0];
let written = partition.put("ada", "1815").await?;
assert!(partition.snapshot().await?.moment().lsn >= written.lsn);"#)]
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.pinned.moment
    }

    /// See [`Partition::get_at`].
    ///
    /// # Errors
    /// As [`Partition::get_at`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let moment = people.partitions()[0].snapshot().await?;
people.put("ada", "1815").await?;
assert_eq!(moment.get("ada").await?, None);"#)]
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let (key, moment) = (key.into(), self.pinned.moment);
        self.with(move |partition| async move { partition.get_at(&key, &moment).await }).await
    }

    /// See [`Partition::multi_get_at`].
    ///
    /// # Errors
    /// As [`Partition::multi_get_at`], [`crate::Error::UnknownPartition`], [`crate::Error::Closed`].
    #[doc = example!(r#"let moment = people.partitions()[0].snapshot().await?;
assert_eq!(moment.multi_get(vec!["ada".into()]).await?, [None]);"#)]
    pub async fn multi_get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>> {
        let moment = self.pinned.moment;
        self.with(move |partition| async move { partition.multi_get_at(&keys, &moment).await }).await
    }

    /// The entries of a range as a stream, ascending by key.
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
people.put("ada", "1815").await?;
let moment = people.partitions()[0].snapshot().await?;
assert_eq!(moment.entries(KeyRange::all()).next().await.expect("one")?.key, "ada");"#)]
    #[must_use]
    pub fn entries(&self, range: KeyRange) -> PartitionEntries {
        PartitionEntries::new(self.pinned.handle.clone(), Some(self.clone()), range)
    }

    pub(super) async fn page(&self, range: KeyRange, direction: Direction, limits: PageLimits) -> Result<Page> {
        let moment = self.pinned.moment;
        self.with(move |partition| async move { partition.page(&range, direction, &moment, limits).await }).await
    }

    /// Runs code beside the partition on its shard's core; the moment stays readable until it is done.
    ///
    /// # Errors
    /// As [`PartitionHandle::with`].
    #[doc = example!(r#"let moment = people.partitions()[0].snapshot().await?;
let serving = moment.with(|partition| async move { Ok(partition.serving()) }).await?;
assert_eq!(serving, Serving::Owner);"#)]
    pub async fn with<F, Fut, T>(&self, work: F) -> Result<T>
    where
        F: FnOnce(Rc<Partition>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        // The job holds the pin too: dropping this future must not let go of what the job still reads.
        let pinned = Arc::clone(&self.pinned);
        let job = move |partition| {
            let done = work(partition);
            async move {
                let result = done.await;
                drop(pinned);
                result
            }
        };
        self.pinned.handle.with(job).await
    }
}
