//! LMDB by heed: one unnamed database, one transaction a call; buffered writes are commits with `MDB_NOSYNC`.

use std::path::Path;
use std::sync::Arc;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, FlagSetMode, WithTls};

use crate::client::{ClientRecord, Plan};
use crate::data::{KEY_BYTES, Key, Seen};
use crate::error::{Error, Result};
use crate::spec::{Class, Spec};
use crate::store::{Candidate, Session, Store, drive_threads};

use super::line;

const NAME: &str = "lmdb";
/// Map for data and what is freed meanwhile; only address space until it is written.
const MAP_FACTOR: usize = 8;
const MAP_BYTES_MIN: usize = 8 << 30;

/// LMDB.
pub const LMDB: Candidate = Candidate { name: NAME, open };

struct Lmdb {
    env: Env<WithTls>,
    database: Database<'static, Bytes, Bytes>,
}

fn store(cause: impl std::fmt::Display) -> Error {
    Error::store(NAME, cause)
}

fn open(dir: &Path, spec: &Spec) -> Result<Box<dyn Store>> {
    let data_bytes = spec.keys as usize * (KEY_BYTES + spec.value_bytes);
    let mut options = EnvOpenOptions::new();
    options.map_size((data_bytes * MAP_FACTOR).max(MAP_BYTES_MIN)).max_readers(1024);
    // SAFETY: the folder is this run's own: no other process opens or changes it while it is mapped.
    let env = unsafe { options.open(dir) }.map_err(store)?;
    let write = env.write_txn().map_err(store)?;
    let created = env.create_databases_and_commit(write, |opener, write| {
        opener.create_database(write, None).map(CommitOrAbort::<_, ()>::Commit)
    });
    let database = match created.map_err(store)? {
        CommitOrAbort::Commit(database) => database,
        CommitOrAbort::Abort(()) => return Err(store("the first transaction was aborted")),
    };
    Ok(Box::new(Lmdb { env, database }))
}

impl Store for Lmdb {
    fn configuration(&self) -> Vec<(String, String)> {
        vec![
            line("crate", "heed 0.23.1"),
            line("memory", "the page cache is its cache: not bounded by the budget"),
            line("durable", "fdatasync in each commit, one transaction a write"),
            line("buffered", "MDB_NOSYNC: a power cut may damage the whole file"),
        ]
    }

    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        let mode = match plan.class {
            Class::Durable => FlagSetMode::Disable,
            Class::Buffered => FlagSetMode::Enable,
        };
        // SAFETY: no transaction is open between phases; the loss of the last commits in a power cut is what the class
        // of these writes allows, and the data is thrown away after the run.
        unsafe { self.env.set_flags(EnvFlags::NO_SYNC, mode) }.map_err(store)?;
        drive_threads(plan, || Ok(LmdbSession { store: self }))
    }

    fn settle(&self) -> Result<()> {
        self.env.force_sync().map_err(store)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.settle()
    }
}

struct LmdbSession<'a> {
    store: &'a Lmdb,
}

impl Session for LmdbSession<'_> {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        let read = self.store.env.read_txn().map_err(store)?;
        let found = self.store.database.get(&read, &key.bytes).map_err(store)?;
        Ok(found.map(Seen::of))
    }

    async fn put(&mut self, key: &Key, value: &[u8], _class: Class) -> Result<()> {
        let mut write = self.store.env.write_txn().map_err(store)?;
        self.store.database.put(&mut write, &key.bytes, value).map_err(store)?;
        write.commit().map_err(store)
    }

    async fn scan(&mut self, start: &Key, rows: usize) -> Result<usize> {
        let read = self.store.env.read_txn().map_err(store)?;
        let from = (std::ops::Bound::Included(start.bytes.as_slice()), std::ops::Bound::Unbounded);
        let mut found = 0;
        for row in self.store.database.range(&read, &from).map_err(store)?.take(rows) {
            let (key, value) = row.map_err(store)?;
            std::hint::black_box((key, Seen::of(value)));
            found += 1;
        }
        Ok(found)
    }
}
