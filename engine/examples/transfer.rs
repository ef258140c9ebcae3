//! An atomic batch with conditions: money moves between accounts, or nothing happens.

use std::error::Error;
use std::path::Path;

use antumbra_engine::{Commit, Condition, Engine, Keyspace, KeyspaceOptions};
use bytes::Bytes;
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}

pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(dir).memory_budget(64 << 20).open()?;
    block_on(async {
        let accounts = engine.create_keyspace("accounts", KeyspaceOptions::new()).await?;
        accounts.put("alice", amount(100)).await?;
        accounts.put("bob", amount(20)).await?;
        assert!(transfer(&accounts, "alice", "bob", 70).await?);
        assert!(!transfer(&accounts, "alice", "bob", 70).await?, "alice has 30 left");
        assert_eq!(balance(&accounts.get("bob").await?), 90);
        drop(accounts);
        engine.close().await?;
        Ok(())
    })
}

/// Moves `sum`; false if the account does not hold it.
async fn transfer(accounts: &Keyspace, from: &'static str, to: &'static str, sum: u64) -> Result<bool, Box<dyn Error>> {
    loop {
        let (source, target) = (accounts.get(from).await?, accounts.get(to).await?);
        let Some(left) = balance(&source).checked_sub(sum) else {
            return Ok(false);
        };
        let mut batch = accounts.batch();
        // Nobody may have changed either account since it was read.
        for (key, value) in [(from, &source), (to, &target)] {
            let unchanged = value.clone().map_or(Condition::Absent, Condition::Value);
            batch.require(key, unchanged);
        }
        batch.put(from, amount(left)).put(to, amount(balance(&target) + sum));
        match accounts.commit(batch).await? {
            Commit::Written(_) => return Ok(true),
            // Somebody was faster: read again.
            Commit::Conflict(_) => {}
        }
    }
}

fn amount(sum: u64) -> Bytes {
    Bytes::copy_from_slice(&sum.to_be_bytes())
}

fn balance(value: &Option<Bytes>) -> u64 {
    value.as_deref().and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}
