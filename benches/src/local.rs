//! What measurements share that have an engine to themselves instead of a store among others: one partition of numbered
//! rows, code on its core, figures of rounds in which the rivals take turns.

use std::rc::Rc;

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{
    Durability, Engine, Partition, PartitionHandle, PartitionOptions, PartitionSpec, Write, runtime,
};
use bytes::Bytes;
use futures_lite::future::block_on;

use crate::error::{Error, Result};

pub(crate) const PARTITION: PartitionId = PartitionId(1);
pub(crate) const VALUE_BYTES: usize = 256;
/// Budget of an engine that is filled: with the little that is measured with, loading takes ten times as long.
pub(crate) const LOAD_MEMORY_BYTES: usize = 256 << 20;

/// A failure of the engine.
pub(crate) fn failed(cause: antumbra_engine::Error) -> Error {
    Error::store("antumbra", cause)
}

/// Fills a partition with the rows below `keys`, compacts it and closes the engine.
pub(crate) fn fill(engine: Engine, options: PartitionOptions, keys: u64, key: fn(u64) -> Bytes) -> Result<()> {
    let (keyspace, range) = ("bench".into(), KeyRange::all());
    let spec = PartitionSpec { id: PARTITION, keyspace, range, epoch: Epoch(1), options };
    let partition = block_on(engine.create_partition(ShardId(0), spec)).map_err(failed)?;
    on_shard(&partition, async move |at| {
        for number in 0..keys {
            at.write(Write::put(key(number), vec![number as u8; VALUE_BYTES]), Durability::Buffered).await?;
            if number % 64 == 0 {
                runtime::yield_now().await;
            }
        }
        Ok(())
    })?;
    block_on(partition.compact()).map_err(failed)?;
    drop(partition);
    block_on(engine.close()).map_err(failed)
}

/// Ships code to the partition's core and waits for what it makes.
pub(crate) fn on_shard<T: Send + 'static, F: Future<Output = antumbra_engine::Result<T>> + 'static>(
    partition: &PartitionHandle,
    work: impl FnOnce(Rc<Partition>) -> F + Send + 'static,
) -> Result<T> {
    block_on(partition.with(work)).map_err(failed)
}

/// 0 of no values.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The smallest and the largest.
pub(crate) fn spread(values: &[f64]) -> [f64; 2] {
    [values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(0.0, f64::max)]
}
