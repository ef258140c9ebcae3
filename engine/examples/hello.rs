//! Open, write, read, close.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Engine, KeyspaceOptions};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        let people = engine.create_keyspace("people", KeyspaceOptions::new()).await?;
        people.put("ada", "1815").await?; // on the device when it returns
        assert_eq!(people.get("ada").await?.as_deref(), Some(&b"1815"[..]));
        people.delete("ada").await?;
        assert_eq!(people.get("ada").await?, None);
        drop(people);
        engine.close().await
    })?;
    Ok(())
}
