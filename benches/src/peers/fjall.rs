//! fjall with its defaults: one keyspace, Bloom filters of 10 bits, journal persisted as asked.

use std::path::Path;
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::client::{ClientRecord, Plan};
use crate::data::{Key, Seen};
use crate::error::{Error, Result};
use crate::spec::{Class, Spec};
use crate::store::{Candidate, Session, Store, drive_threads};

use super::line;

const NAME: &str = "fjall";

/// fjall.
pub const FJALL: Candidate = Candidate { name: NAME, open };

struct Fjall {
    db: Database,
    keyspace: Keyspace,
    configuration: Vec<(String, String)>,
}

fn open(dir: &Path, spec: &Spec) -> Result<Box<dyn Store>> {
    let write_buffer_bytes = spec.memory_bytes as u64 / 4;
    let cache_bytes = spec.memory_bytes as u64 - write_buffer_bytes;
    let store = |cause| Error::store(NAME, cause);
    #[expect(deprecated, reason = "it is what caps the memory of all memtables; fjall has nothing in its place yet")]
    let builder = Database::builder(dir).cache_size(cache_bytes).max_write_buffer_size(Some(write_buffer_bytes));
    let db = builder.open().map_err(store)?;
    // Two memtables fit into the write buffer: one is filled while the other is flushed.
    let options = || KeyspaceCreateOptions::default().max_memtable_size(write_buffer_bytes / 2);
    let keyspace = db.keyspace("bench", options).map_err(store)?;
    let configuration = vec![
        line("crate", "fjall 3.1.13"),
        line("cache", format!("{} MiB", cache_bytes >> 20)),
        line("write buffer", format!("{} MiB", write_buffer_bytes >> 20)),
        line("compression", "none"),
        line("device access", "page cache, beyond the budget"),
        line("durable", "insert, then persist(SyncData) before the acknowledgement"),
        line("buffered", "journal in the page cache"),
    ];
    Ok(Box::new(Fjall { db, keyspace, configuration }))
}

impl Store for Fjall {
    fn configuration(&self) -> Vec<(String, String)> {
        self.configuration.clone()
    }

    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        drive_threads(plan, || Ok(FjallSession { db: &self.db, keyspace: &self.keyspace }))
    }

    fn settle(&self) -> Result<()> {
        self.keyspace.rotate_memtable_and_wait().map_err(|cause| Error::store(NAME, cause))?;
        self.keyspace.major_compact().map_err(|cause| Error::store(NAME, cause))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.persist(PersistMode::SyncAll).map_err(|cause| Error::store(NAME, cause))
    }
}

struct FjallSession<'a> {
    db: &'a Database,
    keyspace: &'a Keyspace,
}

impl Session for FjallSession<'_> {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        let found = self.keyspace.get(key.bytes).map_err(|cause| Error::store(NAME, cause))?;
        Ok(found.map(|value| Seen::of(&value)))
    }

    async fn put(&mut self, key: &Key, value: &[u8], class: Class) -> Result<()> {
        self.keyspace.insert(key.bytes, value).map_err(|cause| Error::store(NAME, cause))?;
        match class {
            Class::Durable => self.db.persist(PersistMode::SyncData).map_err(|cause| Error::store(NAME, cause)),
            Class::Buffered => Ok(()),
        }
    }

    async fn scan(&mut self, start: &Key, rows: usize) -> Result<usize> {
        let mut found = 0;
        for row in self.keyspace.range(start.bytes..).take(rows) {
            let (key, value) = row.into_inner().map_err(|cause| Error::store(NAME, cause))?;
            std::hint::black_box((key, Seen::of(&value)));
            found += 1;
        }
        Ok(found)
    }
}
