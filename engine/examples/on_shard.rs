//! Code that runs beside the data: one hop instead of one a key, and no copy of what is only looked at.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Durability, Engine, KeyspaceOptions};
use bytes::Bytes;
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).threads(2).memory_budget(64 << 20).open()?;
    block_on(async {
        let vectors = engine.create_keyspace("vectors", KeyspaceOptions::new().hash(4)).await?;
        let vectors = vectors.with_durability(Durability::Buffered);
        for id in 0..400_u32 {
            vectors.put(id.to_be_bytes().to_vec(), vec![(id % 251) as u8; 1_000]).await?;
        }
        // Many keys: one hop a shard, and the device's queue is kept full.
        let keys = (0..400_u32).map(|id| id.to_be_bytes().to_vec());
        let found = vectors.multi_get(keys).await?;
        assert!(found.iter().all(Option::is_some));

        // The sum of a vector is computed where it lies; eight bytes travel.
        let key = Bytes::copy_from_slice(&77_u32.to_be_bytes());
        let sum = vectors
            .partition_of(&key)
            .with(move |partition| async move {
                let sum = |value: Option<&[u8]>| value.map(|bytes| bytes.iter().map(|byte| u64::from(*byte)).sum());
                partition.get_with(&key, sum).await
            })
            .await?;
        assert_eq!(sum, Some(77_000_u64));
        drop(vectors);
        engine.close().await?;
        Ok(())
    })
}
