//! Work on a data folder that no engine has open.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::io::fs;
use crate::io::lock::DataLock;
use crate::manifest::{self, TableRef};
use crate::shard::files::table_path;
use crate::table;
use crate::types::FileId;

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
}

/// Checks every table that a data folder's manifests name: each block's checksum, the order of the records, count and
/// digest. Changes nothing. `progress` is called after each table.
///
/// # Errors
/// [`Error::Locked`] while an engine has the folder open, [`Error::Corruption`] naming file and offset of the first
/// damage, [`Error::Io`].
pub fn verify(dir: &Path, mut progress: impl FnMut(Verified)) -> Result<Verified> {
    let _lock = DataLock::acquire(dir, Duration::ZERO)?;
    let mut found = Verified::default();
    let mut shards: Vec<String> = fs::list_dir(dir)?.into_iter().filter(|name| name.starts_with("shard-")).collect();
    shards.sort();
    for shard in shards {
        let shard = dir.join(shard);
        let state = manifest::read_current(&shard)?;
        found.shards += 1;
        found.partitions += state.partitions.len() as u64;
        let mut by_file: BTreeMap<FileId, Vec<TableRef>> = BTreeMap::new();
        for table in state.tables() {
            by_file.entry(table.file).or_default().push(*table);
        }
        for (file, tables) in by_file {
            let path = table_path(&shard, file);
            let map = map_file(&path)?;
            for table in tables {
                verify_table(&path, &map, table, &mut found)?;
                progress(found);
            }
        }
    }
    Ok(found)
}

fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
    // SAFETY: table files never change once written, and the data lock keeps every engine away; a person who cuts the
    // file meanwhile gets SIGBUS, as with any mapped file.
    unsafe { Mmap::map(&file) }.map_err(|cause| Error::io("map", path, cause))
}

fn verify_table(path: &Path, map: &Mmap, table: TableRef, found: &mut Verified) -> Result<()> {
    let range = usize::try_from(table.offset).ok().zip(usize::try_from(table.offset + table.len).ok());
    let bytes = range.and_then(|(start, end)| map.get(start..end));
    let bytes = bytes.ok_or_else(|| Error::corruption(path, table.offset, "the file ends before the table does"))?;
    let meta = futures_lite::future::block_on(table::verify_image(bytes)).map_err(|cause| match cause {
        // The image does not know where it lies.
        Error::Corruption { offset, what, .. } => Error::corruption(path, table.offset + offset, what),
        other => other,
    })?;
    found.tables += 1;
    found.records += meta.records;
    found.bytes += meta.len;
    Ok(())
}
