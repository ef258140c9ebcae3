//! A manifest file, group by group, for people.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::fs::File;

use super::edit::ManifestEdit;
use super::log;
use super::state::ManifestState;

/// One whole group of edits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestGroup {
    /// Offset in the file.
    pub offset: u64,
    /// Length, header included.
    pub len: usize,
    /// Its edits.
    pub edits: Vec<ManifestEdit>,
}

/// What a manifest file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestReport {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Whole groups from the beginning on.
    pub groups: Vec<ManifestGroup>,
    /// The state that they build.
    pub state: ManifestState,
    /// Where and why reading ended before the end of the file.
    pub damage: Option<(u64, String)>,
}

/// Reads as many groups as are whole and fit the state before them.
///
/// # Errors
/// [`Error::Io`]; damage is part of the report.
pub fn inspect(path: &Path) -> Result<ManifestReport> {
    let bytes = File::open(path)?.read_to_end()?;
    let (mut groups, mut state, mut damage) = (Vec::new(), ManifestState::default(), None);
    let mut offset = 0;
    while offset < bytes.len() {
        let decoded = log::decode_group(&bytes[offset..], groups.len() as u64);
        let applied = decoded.and_then(|(edits, len)| {
            let mut next = state.clone();
            edits.iter().try_for_each(|edit| next.apply(edit))?;
            Ok((edits, len, next))
        });
        match applied {
            Ok((edits, len, next)) => {
                groups.push(ManifestGroup { offset: offset as u64, len, edits });
                state = next;
                offset += len;
            }
            Err(what) => {
                damage = Some((offset as u64, what));
                break;
            }
        }
    }
    Ok(ManifestReport { path: path.to_path_buf(), bytes: bytes.len() as u64, groups, state, damage })
}

/// The manifest file in force in a shard's folder.
///
/// # Errors
/// [`Error::Io`] when there is no `CURRENT`.
pub fn current_path(dir: &Path) -> Result<PathBuf> {
    let current = dir.join(log::CURRENT);
    let name = File::open(&current)?.read_to_end()?;
    let name = String::from_utf8_lossy(&name).trim().to_string();
    if log::parse_name(&name).is_none() {
        return Err(Error::corruption(current, 0, format!("{name:?} is no manifest's name")));
    }
    Ok(dir.join(name))
}
