//! Where each partition of this host is.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::types::{PartitionId, ShardId};

/// Which shard a partition is pinned to. Read when a handle is made, never by a request.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    shards: RwLock<BTreeMap<PartitionId, ShardId>>,
}

impl Directory {
    pub fn insert(&self, partition: PartitionId, shard: ShardId) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).insert(partition, shard);
    }

    pub fn remove(&self, partition: PartitionId) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }

    pub fn find(&self, partition: PartitionId) -> Option<ShardId> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&partition).copied()
    }

    pub fn list(&self) -> Vec<(PartitionId, ShardId)> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.iter().map(|(partition, shard)| (*partition, *shard)).collect()
    }
}
