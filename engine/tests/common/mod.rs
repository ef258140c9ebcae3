//! What the tests of this folder share.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{Engine, EngineConfig, PartitionHandle, PartitionOptions, PartitionSpec};
use bytes::Bytes;

pub use futures_lite::future::block_on;

pub const PARTITION: PartitionId = PartitionId(7);

/// A small engine: memtables of 2 MiB, windows of 50 ms.
pub fn open(dir: &Path) -> Engine {
    Engine::open(config(dir)).unwrap()
}

pub fn config(dir: &Path) -> EngineConfig {
    let mut config = EngineConfig::new(dir);
    config.memory_budget_bytes = 16 << 20;
    config.wal_file_bytes = 32 << 20;
    config.window = Duration::from_millis(50);
    config
}

pub fn spec() -> PartitionSpec {
    PartitionSpec {
        id: PARTITION,
        keyspace: "test".into(),
        range: KeyRange::all(),
        epoch: Epoch(1),
        options: PartitionOptions {
            segment_target_bytes: 64 << 10,
            block_bytes: 4 << 10,
            ..PartitionOptions::default()
        },
    }
}

/// What a partition is to hold, and does.
pub type Model = BTreeMap<Bytes, Bytes>;

/// What the partition holds, by scans of a few keys each.
pub fn contents(handle: &PartitionHandle) -> Model {
    let mut model = Model::new();
    let mut range = KeyRange::all();
    loop {
        let page = block_on(handle.scan(range.clone(), 300)).unwrap();
        model.extend(page.items.into_iter().map(|item| (item.key, item.value)));
        match page.next {
            Some(next) => range.start = next.to_vec(),
            None => return model,
        }
    }
}

pub fn create(engine: &Engine) -> PartitionHandle {
    block_on(engine.create_partition(ShardId(0), spec())).unwrap()
}
