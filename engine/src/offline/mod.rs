//! Work on a data folder that no engine has open: look at files, check everything, repair.
//!
//! Nothing here changes a file except [`repair`], and that only when it is asked to.

mod inspect;
mod repair;
mod tables;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::io::fs;
use crate::io::lock::DataLock;

pub use crate::manifest::{
    ManifestEdit, ManifestGroup, ManifestReport, ManifestState, NewPartition, PartitionState, Role, SegmentDesc,
    TableRef,
};
pub use crate::table::{LostKeys, TableMeta};
pub use crate::wal::{WalBatch, WalFile, WalRecord, WalRest};
pub use inspect::{inspect_manifest, inspect_segment, inspect_wal};
pub use repair::{Finding, Repair, WalLoss, repair};
pub use tables::{BlockReport, SegmentReport};
pub use verify::{Verified, verify};

/// The shard folders of a data folder, ascending.
///
/// Errors: [`Error::Invalid`] when there is none, so that a mistyped path is not taken for an empty store.
fn shard_dirs(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut names: Vec<String> = fs::list_dir(dir)?.into_iter().filter(|name| name.starts_with("shard-")).collect();
    if names.is_empty() {
        let what =
            format!("{} is no data folder: it holds no shard-000 (of a node, name its `data` folder)", dir.display());
        return Err(Error::Invalid { what });
    }
    names.sort();
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Keeps every engine away from a data folder, and says so when one has it open.
fn lock(dir: &Path) -> Result<(DataLock, Vec<PathBuf>)> {
    let shards = shard_dirs(dir)?;
    Ok((DataLock::acquire(dir, Duration::ZERO)?, shards))
}
