//! Ranges and prefixes, both ways, as streams that own what they need.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Durability, Engine, KeyspaceOptions};
use futures_lite::{StreamExt, future::block_on};

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        // Neighbouring keys stay together: a prefix is read from one or two partitions.
        let options = KeyspaceOptions::new().split_at(["user/5"]);
        let keyspace = engine.create_keyspace("events", options).await?.with_durability(Durability::Buffered);
        for user in 0..10 {
            for event in 0..100 {
                keyspace.put(format!("user/{user}/{event:03}"), format!("event {event}")).await?;
            }
        }
        // The three newest events of one user.
        let newest = keyspace.prefix("user/7/").rev().take(3);
        let newest: Vec<_> = newest.map(|entry| entry.map(|entry| entry.value)).try_collect().await?;
        assert_eq!(newest, ["event 99", "event 98", "event 97"]);

        // A range across the partitions, on another thread while this one writes: it shows one moment a partition.
        let mut entries = keyspace.range("user/4/050".."user/6/");
        let first = entries.next().await.ok_or("not empty")??;
        assert_eq!(first.key, "user/4/050");
        let counter = std::thread::spawn(move || block_on(entries.count()));
        keyspace.put("user/4/zzz", "after the stream's moment").await?;
        assert_eq!(counter.join().map_err(|_| "counting failed")?, 149);
        drop(keyspace);
        engine.close().await?;
        Ok(())
    })
}
