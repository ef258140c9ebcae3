//! The same engine for code without async: every call waits for its answer on the calling thread.
//!
//! Not to be used on a shard or in an async task: the thread that waits serves nobody meanwhile. [`Engine::inner`] and
//! [`Keyspace::inner`] lead back to the async side; both may be used side by side.

use std::ops::RangeBounds;
use std::path::Path;

use bytes::Bytes;
use futures_lite::future::block_on;

use crate::checkpoint::BackupReport;
use crate::config::{Durability, EngineConfig};
use crate::engine::{EngineBuilder, EngineStats};
use crate::error::Result;
use crate::keyspace::{self, KeyspaceOptions, KeyspaceStats};
use crate::partition::{Batch, Commit, Condition, KeyValue, Versioned, Write, Written};

/// See [`crate::Engine`].
///
/// # Example
/// ```
/// use antumbra_engine::{Engine, KeyspaceOptions, blocking};
/// # let dir = tempfile::tempdir()?;
/// let engine = blocking::Engine::from(Engine::builder(dir.path()).memory_budget(64 << 20).open()?);
/// let people = engine.create_keyspace("people", KeyspaceOptions::new())?;
/// people.put("ada", "1815")?;
/// assert_eq!(engine.list_keyspaces(), ["people"]);
/// assert_eq!(engine.inner().shards(), 1); // the async side
/// # drop(people);
/// engine.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Engine {
    inner: crate::Engine,
}

impl From<crate::Engine> for Engine {
    fn from(inner: crate::Engine) -> Engine {
        Engine { inner }
    }
}

impl Engine {
    /// See [`crate::Engine::open`].
    ///
    /// # Errors
    /// As [`crate::Engine::open`].
    pub fn open(config: EngineConfig) -> Result<Engine> {
        crate::Engine::open(config).map(Engine::from)
    }

    /// See [`crate::Engine::builder`]; [`Engine::from`] takes what it opens.
    pub fn builder(dir: impl AsRef<Path>) -> EngineBuilder {
        crate::Engine::builder(dir)
    }

    /// The engine behind it.
    #[must_use]
    pub fn inner(&self) -> &crate::Engine {
        &self.inner
    }

    /// See [`crate::Engine::create_keyspace`].
    ///
    /// # Errors
    /// As [`crate::Engine::create_keyspace`].
    pub fn create_keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        block_on(self.inner.create_keyspace(name, options)).map(Keyspace::from)
    }

    /// See [`crate::Engine::keyspace`].
    ///
    /// # Errors
    /// As [`crate::Engine::keyspace`].
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        self.inner.keyspace(name).map(Keyspace::from)
    }

    /// See [`crate::Engine::open_keyspace`].
    ///
    /// # Errors
    /// As [`crate::Engine::open_keyspace`].
    pub fn open_keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        block_on(self.inner.open_keyspace(name, options)).map(Keyspace::from)
    }

    /// See [`crate::Engine::list_keyspaces`].
    #[must_use]
    pub fn list_keyspaces(&self) -> Vec<String> {
        self.inner.list_keyspaces()
    }

    /// See [`crate::Engine::drop_keyspace`].
    ///
    /// # Errors
    /// As [`crate::Engine::drop_keyspace`].
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        block_on(self.inner.drop_keyspace(name))
    }

    /// See [`crate::Engine::stats`].
    ///
    /// # Errors
    /// As [`crate::Engine::stats`].
    pub fn stats(&self) -> Result<EngineStats> {
        block_on(self.inner.stats())
    }

    /// See [`crate::Engine::checkpoint`].
    ///
    /// # Errors
    /// As [`crate::Engine::checkpoint`].
    pub fn checkpoint(&self, dir: impl AsRef<Path>) -> Result<()> {
        block_on(self.inner.checkpoint(dir))
    }

    /// See [`crate::Engine::backup`].
    ///
    /// # Errors
    /// As [`crate::Engine::backup`].
    pub fn backup(&self, repository: impl AsRef<Path>) -> Result<BackupReport> {
        block_on(self.inner.backup(repository))
    }

    /// See [`crate::Engine::close`].
    ///
    /// # Errors
    /// As [`crate::Engine::close`].
    pub fn close(self) -> Result<()> {
        block_on(self.inner.close())
    }
}

/// See [`crate::Keyspace`].
///
/// # Example
/// ```
/// # use antumbra_engine::{Engine, KeyspaceOptions, blocking};
/// # let dir = tempfile::tempdir()?;
/// # let engine = blocking::Engine::from(Engine::builder(dir.path()).memory_budget(64 << 20).open()?);
/// let people = engine.open_keyspace("people", KeyspaceOptions::new())?;
/// people.put("ada", "1815")?;
/// assert!(people.get("ada")?.is_some());
/// assert_eq!(people.inner().name(), "people"); // the async side
/// for entry in people.iter() {
///     assert_eq!(entry?.key, "ada");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Keyspace {
    inner: crate::Keyspace,
}

impl From<crate::Keyspace> for Keyspace {
    fn from(inner: crate::Keyspace) -> Keyspace {
        Keyspace { inner }
    }
}

impl Keyspace {
    /// The keyspace behind it.
    #[must_use]
    pub fn inner(&self) -> &crate::Keyspace {
        &self.inner
    }

    /// See [`crate::Keyspace::with_durability`].
    #[must_use]
    pub fn with_durability(&self, durability: Durability) -> Keyspace {
        Keyspace { inner: self.inner.with_durability(durability) }
    }

    /// See [`crate::Keyspace::get`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::get`].
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        block_on(self.inner.get(key))
    }

    /// See [`crate::Keyspace::get_versioned`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::get_versioned`].
    pub fn get_versioned(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>> {
        block_on(self.inner.get_versioned(key))
    }

    /// See [`crate::Keyspace::multi_get`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::multi_get`].
    pub fn multi_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Bytes>>> {
        block_on(self.inner.multi_get(keys))
    }

    /// See [`crate::Keyspace::put`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::put`].
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        block_on(self.inner.put(key, value))
    }

    /// See [`crate::Keyspace::put_until`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::put_until`].
    pub fn put_until(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, expires_at_ms: u64) -> Result<Written> {
        block_on(self.inner.put_until(key, value, expires_at_ms))
    }

    /// See [`crate::Keyspace::delete`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::delete`].
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<Written> {
        block_on(self.inner.delete(key))
    }

    /// See [`crate::Keyspace::put_if`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::put_if`].
    pub fn put_if(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, condition: Condition) -> Result<Commit> {
        block_on(self.inner.put_if(key, value, condition))
    }

    /// See [`crate::Keyspace::write_if`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::write_if`].
    pub fn write_if(&self, condition: Condition, write: Write) -> Result<Commit> {
        block_on(self.inner.write_if(condition, write))
    }

    /// See [`crate::Keyspace::merge`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::merge`].
    pub fn merge(&self, key: impl Into<Bytes>, operand: impl Into<Bytes>) -> Result<Written> {
        block_on(self.inner.merge(key, operand))
    }

    /// See [`crate::Keyspace::delete_range`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::delete_range`].
    pub fn delete_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        block_on(self.inner.delete_range(range))
    }

    /// See [`crate::Keyspace::batch`].
    #[must_use]
    pub fn batch(&self) -> Batch {
        self.inner.batch()
    }

    /// See [`crate::Keyspace::commit`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::commit`].
    pub fn commit(&self, batch: Batch) -> Result<Commit> {
        block_on(self.inner.commit(batch))
    }

    /// See [`crate::Keyspace::snapshot`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::snapshot`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        block_on(self.inner.snapshot()).map(|inner| Snapshot { inner })
    }

    /// See [`crate::Keyspace::iter`].
    #[must_use]
    pub fn iter(&self) -> Entries {
        Entries { inner: self.inner.iter() }
    }

    /// See [`crate::Keyspace::range`].
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Entries {
        Entries { inner: self.inner.range(range) }
    }

    /// See [`crate::Keyspace::prefix`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Entries {
        Entries { inner: self.inner.prefix(prefix) }
    }

    /// See [`crate::Keyspace::compact_range`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::compact_range`].
    pub fn compact_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        block_on(self.inner.compact_range(range))
    }

    /// See [`crate::Keyspace::stats`].
    ///
    /// # Errors
    /// As [`crate::Keyspace::stats`].
    pub fn stats(&self) -> Result<KeyspaceStats> {
        block_on(self.inner.stats())
    }
}

impl IntoIterator for &Keyspace {
    type Item = Result<KeyValue>;
    type IntoIter = Entries;

    fn into_iter(self) -> Entries {
        self.iter()
    }
}

/// See [`crate::Snapshot`].
///
/// # Example
/// ```
/// # use antumbra_engine::{Engine, KeyspaceOptions, blocking};
/// # let dir = tempfile::tempdir()?;
/// # let engine = blocking::Engine::from(Engine::builder(dir.path()).memory_budget(64 << 20).open()?);
/// let people = engine.open_keyspace("people", KeyspaceOptions::new())?;
/// let before = people.snapshot()?;
/// people.put("ada", "1815")?;
/// assert_eq!(before.get("ada")?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Snapshot {
    inner: keyspace::Snapshot,
}

impl Snapshot {
    /// See [`crate::Snapshot::get`].
    ///
    /// # Errors
    /// As [`crate::Snapshot::get`].
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        block_on(self.inner.get(key))
    }

    /// See [`crate::Snapshot::multi_get`].
    ///
    /// # Errors
    /// As [`crate::Snapshot::multi_get`].
    pub fn multi_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Bytes>>> {
        block_on(self.inner.multi_get(keys))
    }

    /// See [`crate::Snapshot::iter`].
    #[must_use]
    pub fn iter(&self) -> Entries {
        Entries { inner: self.inner.iter() }
    }

    /// See [`crate::Snapshot::range`].
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Entries {
        Entries { inner: self.inner.range(range) }
    }

    /// See [`crate::Snapshot::prefix`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Entries {
        Entries { inner: self.inner.prefix(prefix) }
    }
}

impl IntoIterator for &Snapshot {
    type Item = Result<KeyValue>;
    type IntoIter = Entries;

    fn into_iter(self) -> Entries {
        self.iter()
    }
}

/// See [`crate::Entries`]: an iterator that waits for each page.
///
/// # Example
/// ```
/// # use antumbra_engine::{Engine, KeyspaceOptions, blocking};
/// # let dir = tempfile::tempdir()?;
/// # let engine = blocking::Engine::from(Engine::builder(dir.path()).memory_budget(64 << 20).open()?);
/// let people = engine.open_keyspace("people", KeyspaceOptions::new())?;
/// people.put("ada", "1815")?;
/// people.put("bob", "1816")?;
/// let last = people.iter().rev().next().expect("two")?;
/// assert_eq!(last.key, "bob");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Entries {
    inner: keyspace::Entries,
}

impl Entries {
    /// Walks the other way. To be called before the first entry is taken.
    #[must_use]
    pub fn rev(self) -> Entries {
        Entries { inner: self.inner.rev() }
    }
}

impl Iterator for Entries {
    type Item = Result<KeyValue>;

    fn next(&mut self) -> Option<Result<KeyValue>> {
        block_on(self.inner.next())
    }
}
