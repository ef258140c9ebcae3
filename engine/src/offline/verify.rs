//! Everything of a data folder against its checksums.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::manifest::{self, TableRef};
use crate::shard::files::table_path;
use crate::types::FileId;
use crate::wal;

use super::tables::{map_file, verify_table};

/// What [`verify`] looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Shards.
    pub shards: u64,
    /// Partitions.
    pub partitions: u64,
    /// Tables.
    pub tables: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Whole batches of the logs.
    pub wal_batches: u64,
    /// Records in them.
    pub wal_records: u64,
}

/// Checks what an engine would read: manifests, logs, and every table that a manifest names, each block's checksum, the
/// order of the records, count and digest. Changes nothing. `progress` is called after each table.
///
/// # Errors
/// [`Error::Locked`](crate::Error::Locked) while an engine has the folder open,
/// [`Error::Corruption`](crate::Error::Corruption) naming file and offset of the first damage,
/// [`Error::Version`](crate::Error::Version), [`Error::Io`](crate::Error::Io).
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// # futures_lite::future::block_on(antumbra_engine::Engine::builder(dir.path()).open()?.close())?;
/// let found = antumbra_engine::offline::verify(dir.path(), |so_far| println!("{} tables", so_far.tables))?;
/// assert_eq!((found.shards, found.records), (1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn verify(dir: &Path, mut progress: impl FnMut(Verified)) -> Result<Verified> {
    let (_lock, shards) = super::lock(dir)?;
    let mut found = Verified::default();
    for shard in shards {
        let state = manifest::read_current(&shard)?;
        found.shards += 1;
        found.partitions += state.partitions.len() as u64;
        let mut last = None;
        let wal_dir = shard.join("wal");
        // A restored folder that was never opened has no log yet.
        if wal_dir.exists() {
            wal::check(&wal_dir, state.known_of_log(), |seq, _| {
                found.wal_batches += u64::from(last != Some(seq));
                found.wal_records += 1;
                last = Some(seq);
            })?;
        }
        let mut by_file: BTreeMap<FileId, Vec<TableRef>> = BTreeMap::new();
        for table in state.tables() {
            by_file.entry(table.file).or_default().push(*table);
        }
        for (file, tables) in by_file {
            let path = table_path(&shard, file);
            let map = map_file(&path)?;
            for table in tables {
                let meta = verify_table(&path, &map, table)?;
                found.tables += 1;
                found.records += meta.records;
                found.bytes += meta.len;
                progress(found);
            }
        }
    }
    Ok(found)
}
