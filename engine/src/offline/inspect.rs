//! What single files hold.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::fs;
use crate::manifest::{self, ManifestReport};
use crate::wal::{self, WalFile, WalRecord};

use super::tables::{SegmentReport, find_tables, map_file};

/// Looks at a WAL file, or at all of a shard's (its folder or its `wal` folder), oldest first. `visit` sees every record
/// of every whole batch. Reads only; a running engine may append meanwhile, so the end may look torn.
///
/// # Errors
/// [`Error::Io`]; damage is part of the report.
pub fn inspect_wal(path: &Path, mut visit: impl FnMut(&Path, WalRecord<'_>)) -> Result<Vec<WalFile>> {
    let mut files = Vec::new();
    for file in wal_files(path)? {
        let map = map_file(&file)?;
        files.push(wal::inspect(&file, &map, |record| visit(&file, record))?);
    }
    Ok(files)
}

fn wal_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let inner = path.join("wal");
    let dir = if inner.is_dir() { inner } else { path.to_path_buf() };
    let mut files: Vec<PathBuf> =
        fs::list_dir(&dir)?.iter().filter(|name| name.ends_with(".wal")).map(|name| dir.join(name)).collect();
    files.sort();
    if files.is_empty() {
        let what =
            format!("{} holds no WAL file (000000000001.wal ...): name a shard's folder or a file", dir.display());
        return Err(Error::Invalid { what });
    }
    Ok(files)
}

/// Looks at the tables of a table file (`*.tab`): footers, blocks, damage.
///
/// # Errors
/// [`Error::Io`], [`Error::Corruption`] when no table can be found in it; other damage is part of the report.
pub fn inspect_segment(path: &Path) -> Result<Vec<SegmentReport>> {
    let map = map_file(path)?;
    find_tables(path, &map)
}

/// Looks at a manifest file, or at the one in force in a shard's folder.
///
/// # Errors
/// [`Error::Io`]; damage is part of the report.
pub fn inspect_manifest(path: &Path) -> Result<ManifestReport> {
    let file = if path.is_dir() { manifest::current_path(path)? } else { path.to_path_buf() };
    manifest::inspect(&file)
}
