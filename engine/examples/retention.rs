//! A time series with retention: old points go by range, at a cost that does not depend on how many there are.

use std::error::Error;
use std::path::Path;

use antumbra_engine::types::KeyRange;
use antumbra_engine::{Durability, Engine, KeyspaceOptions};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

fn point(second: u64) -> Vec<u8> {
    second.to_be_bytes().to_vec()
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        let series = engine.create_keyspace("series", KeyspaceOptions::new()).await?;
        let series = series.with_durability(Durability::Buffered);
        for hour in 0..10_u64 {
            // One batch an hour: its points and the end of the oldest hour, together or not at all.
            let mut batch = series.batch();
            for second in (hour * 3_600..(hour + 1) * 3_600).step_by(10) {
                batch.put(point(second), "1.0");
            }
            let cut = (hour + 1).saturating_sub(3) * 3_600;
            batch.delete_range(KeyRange::from_bounds(..point(cut)));
            series.commit(batch).await?;
        }
        let points = series.iter().collect().await?;
        assert_eq!(points.len(), 3 * 360);
        assert_eq!(points[0].key, point(7 * 3_600));
        drop(series);
        engine.close().await?;
        Ok(())
    })
}
