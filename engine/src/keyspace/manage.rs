//! Creating, opening and dropping keyspaces.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_lite::future::block_on;

use crate::config::Durability;
use crate::engine::{Engine, off_thread};
use crate::error::{Error, Result};
use crate::shard::PartitionSpec;
use crate::types::{Epoch, PartitionId, ShardId};

use super::catalogue::{Catalogue, Entry, is_managed};
use super::options::KeyspaceOptions;
use super::{Inner, Keyspace};

/// The keyspaces of an engine.
#[derive(Debug)]
pub(crate) struct Keyspaces {
    dir: PathBuf,
    catalogue: Mutex<Catalogue>,
    /// Holds a token while a keyspace is being created or dropped: one change at a time, across awaits.
    changing: (async_channel::Sender<()>, async_channel::Receiver<()>),
}

/// The token; gives it back when dropped.
pub(crate) struct Changing<'a> {
    keyspaces: &'a Keyspaces,
}

impl Changing<'_> {
    /// The catalogue in force; nobody changes it meanwhile.
    pub(crate) fn catalogue(&self) -> Catalogue {
        self.keyspaces.catalogue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let _ = self.keyspaces.changing.1.try_recv();
    }
}

impl Keyspaces {
    /// Reads the catalogue of a data folder.
    ///
    /// Errors: [`Error::Corruption`], [`Error::Io`].
    pub fn read(dir: PathBuf) -> Result<Keyspaces> {
        let catalogue = Mutex::new(Catalogue::read(&dir)?);
        Ok(Keyspaces { dir, catalogue, changing: async_channel::bounded(1) })
    }

    pub(crate) async fn change(&self) -> Result<Changing<'_>> {
        self.changing.0.send(()).await.map_err(|_| Error::Closed)?;
        Ok(Changing { keyspaces: self })
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner).keyspaces.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner).keyspaces.keys().cloned().collect()
    }

    /// A number that no keyspace has had. It becomes durable with the next catalogue; until then nothing durable uses it
    /// but partitions that a restart drops.
    fn take_number(&self) -> u32 {
        let mut catalogue = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        catalogue.next_number += 1;
        catalogue.next_number - 1
    }

    /// Makes a changed catalogue durable, then the one in force.
    async fn install(&self, change: impl FnOnce(&mut BTreeMap<String, Entry>)) -> Result<()> {
        let mut next = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        change(&mut next.keyspaces);
        let (written, dir) = (next.clone(), self.dir.clone());
        off_thread(move || written.write(&dir)).await?;
        *self.catalogue.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Ids of all partitions that keyspaces have.
    fn partitions(&self) -> Vec<PartitionId> {
        let catalogue = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        catalogue.keyspaces.values().flat_map(Entry::partition_ids).collect()
    }
}

impl Engine {
    /// Creates a keyspace. Its partitions go to the shards that hold the fewest.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is empty or taken or the options cannot work, [`Error::UnknownMergeOperator`],
    /// [`Error::Io`]; nothing is created.
    /// Cancel: it is created or not; what was begun goes with the next start.
    #[doc = example!(r#"let spread = engine.create_keyspace("spread", KeyspaceOptions::new().hash(4)).await?;
assert_eq!(spread.partitions().len(), 4);
assert!(engine.create_keyspace("spread", KeyspaceOptions::new()).await.is_err(), "it is there");"#)]
    pub async fn create_keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        options.check()?;
        let operator = options.merge_operator.as_deref().map(|name| self.merge_operators().find(name)).transpose()?;
        if name.is_empty() {
            return Err(Error::Invalid { what: "a keyspace has a name".into() });
        }
        let keyspaces = self.keyspaces();
        let _changing = keyspaces.change().await?;
        if keyspaces.entry(name).is_some() {
            return Err(Error::Invalid { what: format!("keyspace {name:?} exists already") });
        }
        let entry = Entry {
            number: keyspaces.take_number(),
            partitioning: options.partitioning.clone(),
            merge_operator: options.merge_operator.clone(),
        };
        let created = self.create_partitions(name, &entry, &options).await;
        let installed = match created {
            Ok(()) => {
                let (name, entry) = (name.to_string(), entry.clone());
                keyspaces.install(|known| drop(known.insert(name, entry))).await
            }
            Err(cause) => Err(cause),
        };
        if let Err(cause) = installed {
            self.drop_partitions(entry.partition_ids()).await?;
            return Err(cause);
        }
        self.open_entry(name, &entry, operator)
    }

    async fn create_partitions(&self, name: &str, entry: &Entry, options: &KeyspaceOptions) -> Result<()> {
        let mut held = vec![0; self.shards()];
        for (_, shard) in self.partitions() {
            held[usize::from(shard.0)] += 1;
        }
        for (index, id) in entry.partition_ids().enumerate() {
            let least = (0..held.len()).min_by_key(|shard| held[*shard]).unwrap_or_default();
            held[least] += 1;
            let spec = PartitionSpec {
                id,
                keyspace: name.to_string(),
                range: options.partitioning.range_of(index),
                epoch: Epoch(1),
                options: options.partition,
            };
            self.create_partition(ShardId(least as u16), spec).await?;
        }
        Ok(())
    }

    async fn drop_partitions(&self, ids: impl Iterator<Item = PartitionId>) -> Result<()> {
        for id in ids {
            if let Ok(handle) = self.partition(id) {
                self.on_shard(handle.shard(), move |shard| async move { shard.drop_partition(id).await }).await??;
            }
        }
        Ok(())
    }

    /// Opens a keyspace that exists.
    ///
    /// # Errors
    /// [`Error::UnknownKeyspace`], [`Error::UnknownMergeOperator`] when it names one that this engine was opened without.
    #[doc = example!(r#"assert_eq!(engine.keyspace("people")?.name(), "people");
assert!(engine.keyspace("nobody").is_err());"#)]
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        let entry = self.keyspaces().entry(name);
        let entry = entry.ok_or_else(|| Error::UnknownKeyspace { name: name.to_string() })?;
        let operator = entry.merge_operator.as_deref().map(|name| self.merge_operators().find(name)).transpose()?;
        self.open_entry(name, &entry, operator)
    }

    fn open_entry(
        &self,
        name: &str,
        entry: &Entry,
        operator: Option<crate::merge_operator::NamedOperator>,
    ) -> Result<Keyspace> {
        let partitions = entry.partition_ids().map(|id| self.partition(id)).collect::<Result<_>>()?;
        let partitioning = entry.partitioning.clone();
        let inner = Inner { engine: self.clone(), name: name.to_string(), partitioning, partitions, operator };
        Ok(Keyspace { inner: Arc::new(inner), durability: Durability::default() })
    }

    /// Opens a keyspace, or creates it with `options` if there is none of this name. What exists keeps its options.
    ///
    /// # Errors
    /// As [`Engine::keyspace`] and [`Engine::create_keyspace`].
    #[doc = example!(r#"let same = engine.open_keyspace("people", KeyspaceOptions::new()).await?;
assert_eq!(same.name(), "people");"#)]
    pub async fn open_keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        match self.keyspace(name) {
            Err(Error::UnknownKeyspace { .. }) => match self.create_keyspace(name, options).await {
                // Somebody else was there first.
                Err(Error::Invalid { .. }) if self.keyspaces().entry(name).is_some() => self.keyspace(name),
                created => created,
            },
            opened => opened,
        }
    }

    /// Names of all keyspaces, ascending.
    #[doc = example!(r#"assert_eq!(engine.list_keyspaces(), ["people"]);"#)]
    #[must_use]
    pub fn list_keyspaces(&self) -> Vec<String> {
        self.keyspaces().names()
    }

    /// Removes a keyspace and all its data. Handles that are still open fail from then on.
    ///
    /// # Errors
    /// [`Error::UnknownKeyspace`]; [`Error::Io`]: the keyspace is gone or as before, its space comes back with the next
    /// start at the latest.
    #[doc = example!(r#"engine.create_keyspace("old", KeyspaceOptions::new()).await?;
engine.drop_keyspace("old").await?;
assert!(engine.keyspace("old").is_err());"#)]
    pub async fn drop_keyspace(&self, name: &str) -> Result<()> {
        let keyspaces = self.keyspaces();
        let _changing = keyspaces.change().await?;
        let entry = keyspaces.entry(name).ok_or_else(|| Error::UnknownKeyspace { name: name.to_string() })?;
        keyspaces.install(|known| drop(known.remove(name))).await?;
        self.drop_partitions(entry.partition_ids()).await
    }

    /// Drops the partitions that a crash left between a catalogue and the manifests.
    ///
    /// Errors: [`Error::Corruption`] when a keyspace lacks a partition, [`Error::Io`].
    pub(crate) fn settle_keyspaces(&self) -> Result<()> {
        let (keyspaces, found) = (self.keyspaces(), self.partitions());
        let known = keyspaces.partitions();
        if let Some(missing) = known.iter().find(|id| !found.iter().any(|(other, _)| other == *id)) {
            let what = format!("no shard holds partition {missing} of a keyspace");
            return Err(Error::corruption(Catalogue::path(&keyspaces.dir), 0, what));
        }
        let left = found.into_iter().map(|(id, _)| id).filter(|id| is_managed(*id) && !known.contains(id));
        block_on(self.drop_partitions(left))
    }
}
