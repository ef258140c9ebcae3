//! Merge operators: counters without read-modify-write, and one of the embedder's own.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Durability, Engine, KeyspaceOptions};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

/// Keeps the ten smallest bytes that were merged, sorted.
fn ten_smallest(_key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> Result<Vec<u8>, String> {
    let mut all = [existing.unwrap_or_default(), operand].concat();
    all.sort_unstable();
    all.truncate(10);
    Ok(all)
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    // An operator is known by its name, which is stored with the keyspace: register it before every opening.
    let engine = Engine::builder(dir).memory_budget(64 << 20).merge_operator("ten-smallest", ten_smallest).open()?;
    block_on(async {
        let hits = engine.create_keyspace("hits", KeyspaceOptions::new().hash(4).merge_operator("add")).await?;
        let hits = hits.with_durability(Durability::Buffered);
        for request in 0..1_000_u32 {
            hits.merge(format!("page-{}", request % 10), 1_i64.to_le_bytes().to_vec()).await?;
        }
        let page = hits.get("page-3").await?.ok_or("counted")?;
        assert_eq!(i64::from_le_bytes(page.as_ref().try_into()?), 100);

        let best = engine.create_keyspace("best", KeyspaceOptions::new().merge_operator("ten-smallest")).await?;
        for score in (0..50_u8).rev() {
            best.merge("scores", vec![score]).await?;
        }
        assert_eq!(best.get("scores").await?.ok_or("scored")?, (0..10).collect::<Vec<u8>>());
        drop((hits, best));
        engine.close().await?;
        Ok(())
    })
}
