//! Blocks compressed on disk, with a dictionary trained on the data.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Compression, Durability, Engine, KeyspaceOptions};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        let mut sizes = Vec::new();
        for (name, compression) in [("plain", Compression::None), ("small", Compression::Zstd)] {
            let log = engine.create_keyspace(name, KeyspaceOptions::new().compression(compression)).await?;
            let log = log.with_durability(Durability::Buffered);
            for line in 0..10_000 {
                let text =
                    format!("{{\"level\":\"info\",\"request\":{line},\"path\":\"/orders/{}\"}}", line * 31 % 977);
                log.put(format!("{line:08}"), text).await?;
            }
            log.compact_range::<&[u8]>(..).await?;
            sizes.push(log.stats().await?.table_bytes);
        }
        assert!(sizes[1] * 2 < sizes[0], "{sizes:?}");
        engine.close().await?;
        Ok(())
    })
}
