//! Compare and set: a lease that one of many holds, fenced by the version of its last renewal.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Commit, Condition, Engine, KeyspaceOptions, Write};
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        let leases = engine.create_keyspace("leases", KeyspaceOptions::new()).await?;
        let held = leases.put_if("leader", "node 1", Condition::Absent).await?;
        let held = held.written().ok_or("the first one gets it")?;

        // A conflict is an answer and not an error; it says who was there first.
        match leases.put_if("leader", "node 2", Condition::Absent).await? {
            Commit::Conflict(conflict) => assert_eq!(conflict.found.ok_or("held")?.value, "node 1"),
            Commit::Written(_) => return Err("two leaders".into()),
        }

        // Renewal: only while nobody has taken over, whatever the value says.
        let renewed = leases.put_if("leader", "node 1", Condition::Version(held)).await?;
        assert!(renewed.is_written());
        let stale = leases.write_if(Condition::Version(held), Write::delete("leader")).await?;
        assert!(!stale.is_written(), "the version is that of the renewal now");
        drop(leases);
        engine.close().await?;
        Ok(())
    })
}
