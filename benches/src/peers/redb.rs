//! redb: one table, one transaction a write; a buffered write is a commit without durability, and every so many of them
//! one is durable, as its documentation asks for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, Durability, ReadableDatabase, TableDefinition};

use crate::client::{ClientRecord, Plan};
use crate::data::{Key, Seen};
use crate::error::{Error, Result};
use crate::spec::{Class, Spec};
use crate::store::{Candidate, Session, Store, drive_threads};

use super::line;

const NAME: &str = "redb";
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bench");
/// Buffered commits from one durable one to the next.
const COMMITS_PER_SYNC: u64 = 1024;

/// redb.
pub const REDB: Candidate = Candidate { name: NAME, open };

struct Redb {
    db: Database,
    commits: AtomicU64,
    cache_bytes: usize,
}

fn store(cause: impl std::fmt::Display) -> Error {
    Error::store(NAME, cause)
}

fn open(dir: &Path, spec: &Spec) -> Result<Box<dyn Store>> {
    let db = Database::builder().set_cache_size(spec.memory_bytes).create(dir.join("redb")).map_err(store)?;
    let write = db.begin_write().map_err(store)?;
    write.open_table(TABLE).map(drop).map_err(store)?;
    write.commit().map_err(store)?;
    Ok(Box::new(Redb { db, commits: AtomicU64::new(0), cache_bytes: spec.memory_bytes }))
}

impl Store for Redb {
    fn configuration(&self) -> Vec<(String, String)> {
        vec![
            line("crate", "redb 4.6.0"),
            line("cache", format!("{} MiB", self.cache_bytes >> 20)),
            line("device access", "page cache, beyond the budget"),
            line("durable", "Durability::Immediate, one transaction a write"),
            line("buffered", format!("Durability::None, every {COMMITS_PER_SYNC}th commit Immediate")),
        ]
    }

    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        drive_threads(plan, || Ok(RedbSession { store: self }))
    }

    fn settle(&self) -> Result<()> {
        // Nothing waits in memory but what the next durable commit writes.
        self.db.begin_write().map_err(store)?.commit().map_err(store)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.settle()
    }
}

struct RedbSession<'a> {
    store: &'a Redb,
}

impl Session for RedbSession<'_> {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        let table = self.store.db.begin_read().map_err(store)?.open_table(TABLE).map_err(store)?;
        let found = table.get(key.bytes.as_slice()).map_err(store)?;
        Ok(found.map(|value| Seen::of(value.value())))
    }

    async fn put(&mut self, key: &Key, value: &[u8], class: Class) -> Result<()> {
        let mut write = self.store.db.begin_write().map_err(store)?;
        let number = self.store.commits.fetch_add(1, Ordering::Relaxed);
        let durable = class == Class::Durable || number % COMMITS_PER_SYNC == COMMITS_PER_SYNC - 1;
        write.set_durability(if durable { Durability::Immediate } else { Durability::None }).map_err(store)?;
        write.open_table(TABLE).map_err(store)?.insert(key.bytes.as_slice(), value).map(drop).map_err(store)?;
        write.commit().map_err(store)
    }

    async fn scan(&mut self, start: &Key, rows: usize) -> Result<usize> {
        let table = self.store.db.begin_read().map_err(store)?.open_table(TABLE).map_err(store)?;
        let mut found = 0;
        for row in table.range(start.bytes.as_slice()..).map_err(store)?.take(rows) {
            let (key, value) = row.map_err(store)?;
            std::hint::black_box((key.value(), Seen::of(value.value())));
            found += 1;
        }
        Ok(found)
    }
}
