//! The same without async.

use std::error::Error;
use std::path::Path;

use antumbra_engine::blocking::Engine;
use antumbra_engine::{Durability, KeyspaceOptions};

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::from(Engine::builder(dir).memory_budget(64 << 20).open()?);
    let words = engine.open_keyspace("words", KeyspaceOptions::new())?.with_durability(Durability::Buffered);
    for word in ["umbra", "penumbra", "antumbra"] {
        words.put(word, word.len().to_string())?;
    }
    let mut found = Vec::new();
    for entry in &words {
        found.push(entry?.key);
    }
    assert_eq!(found, ["antumbra", "penumbra", "umbra"]);
    assert_eq!(words.stats()?.partitions.len(), 1);
    drop(words);
    engine.close()?;
    Ok(())
}
