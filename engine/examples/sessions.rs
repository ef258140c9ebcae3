//! Deadlines: sessions that end by themselves and give their space back.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use antumbra_engine::{Durability, Engine, KeyspaceOptions};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        // What a crash may cost: sessions since the last flush. What is gained: no log.
        let sessions = engine.create_keyspace("sessions", KeyspaceOptions::new()).await?;
        let sessions = sessions.with_durability(Durability::Memory);
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        for session in 0..2_000_u32 {
            let deadline = if session.is_multiple_of(10) { now_ms + 3_600_000 } else { now_ms + 50 };
            sessions.put_until(session.to_be_bytes().to_vec(), vec![7; 500], deadline).await?;
        }
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(sessions.get(1_u32.to_be_bytes().to_vec()).await?, None);
        assert_eq!(sessions.iter().collect().await?.len(), 200);
        // Compaction does this by itself when enough has expired.
        sessions.compact_range::<&[u8]>(..).await?;
        assert!(sessions.stats().await?.table_bytes < 200_000);
        drop(sessions);
        engine.close().await?;
        Ok(())
    })
}
