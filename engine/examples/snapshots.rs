//! A report over data that changes: every read shows the same moment.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Durability, Engine, KeyspaceOptions};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        let stock = engine.create_keyspace("stock", KeyspaceOptions::new()).await?;
        let stock = stock.with_durability(Durability::Buffered);
        for item in 0..1_000_u32 {
            stock.put(item.to_be_bytes().to_vec(), "10").await?;
        }
        let monday = stock.snapshot().await?;
        for item in 0..1_000_u32 {
            stock.put(item.to_be_bytes().to_vec(), "7").await?;
        }
        stock.delete_range::<[u8; 4]>(..500_u32.to_be_bytes()).await?;
        stock.compact_range::<&[u8]>(..).await?;

        let entries = monday.iter().collect().await?;
        assert_eq!(entries.len(), 1_000);
        assert!(entries.iter().all(|entry| entry.value == "10"));
        assert_eq!(stock.iter().collect().await?.len(), 500);
        // From now on a compaction may take the old versions away.
        drop(monday);
        drop(stock);
        engine.close().await?;
        Ok(())
    })
}
