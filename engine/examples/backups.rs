//! Checkpoints, incremental backups and restoring, all while the engine runs.

use std::error::Error;
use std::path::Path;

use antumbra_engine::checkpoint::{list_backups, remove_backup, restore, restore_backup};
use antumbra_engine::{Durability, Engine, KeyspaceOptions};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir.join("data")).memory_budget(64 << 20).open()?;
    let (checkpoint, repository) = (dir.join("checkpoint"), dir.join("backups"));
    block_on(async {
        let notes = engine.create_keyspace("notes", KeyspaceOptions::new()).await?;
        let notes = notes.with_durability(Durability::Buffered);
        for note in 0..5_000 {
            notes.put(format!("{note:05}"), vec![b'n'; 200]).await?;
        }
        engine.checkpoint(&checkpoint).await?; // hard links: at once, whatever the size
        let first = engine.backup(&repository).await?;
        notes.put("00000", "changed").await?;
        let second = engine.backup(&repository).await?;
        assert!(second.files_shared >= first.files_copied && second.bytes_copied < first.bytes_copied / 10);
        drop(notes);
        engine.close().await
    })?;

    let verified = restore(&checkpoint, dir.join("restored"))?;
    assert_eq!(verified.records, 5_000);
    let numbers: Vec<u64> = list_backups(&repository)?.iter().map(|backup| backup.number).collect();
    assert_eq!(numbers, [1, 2]);
    remove_backup(&repository, 1)?;
    restore_backup(&repository, 2, dir.join("second"))?;
    let engine = Engine::builder(dir.join("second")).memory_budget(64 << 20).open()?;
    let notes = engine.keyspace("notes")?;
    assert_eq!(block_on(notes.get("00000"))?.ok_or("restored")?, "changed");
    Ok(())
}
