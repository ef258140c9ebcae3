//! The files of a log: names, preparation, recycling. Blocking; the writer calls it off the core.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::direct::AlignedBuf;
use crate::io::fs;

/// Zeros written at a time.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

pub(super) fn wal_path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{generation:012}.wal"))
}

/// The generation in a file's name.
pub(super) fn generation_of(path: &Path) -> Result<u64> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_suffix(".wal").and_then(|number| number.parse().ok()).ok_or_else(|| Error::Invalid {
        what: format!("{} is no WAL file: its name has to be a generation, such as 000000000001.wal", path.display()),
    })
}

/// The generations present, ascending.
pub(super) fn list_generations(dir: &Path) -> Result<Vec<u64>> {
    let mut generations: Vec<u64> =
        fs::list_dir(dir)?.iter().filter_map(|name| name.strip_suffix(".wal")?.parse().ok()).collect();
    generations.sort_unstable();
    Ok(generations)
}

/// Makes the file of `generation` ready: from a retired one if there is one, else zero-filled, so that a later write
/// changes neither size nor extents. Its name is durable on return.
pub(super) fn prepare(dir: &Path, generation: u64, file_bytes: u64, retired: Option<u64>) -> Result<()> {
    let path = wal_path(dir, generation);
    match retired {
        Some(old) => fs::rename(&wal_path(dir, old), &path)?,
        None => create_zeroed(&path, file_bytes)?,
    }
    // Direct writes to what the page cache holds leave the executor's thread: a worker of the kernel has to drop it first.
    fs::File::open(&path)?.drop_cached();
    fs::sync_dir(dir)
}

fn create_zeroed(path: &Path, bytes: u64) -> Result<()> {
    // Under another name until it is whole: a file with a log's name has the full size.
    let temporary = path.with_extension("new");
    let mut file = fs::File::create_direct(&temporary)?;
    let mut zeros = AlignedBuf::with_capacity(ZERO_CHUNK_BYTES);
    zeros.extend_from_slice(&[0]);
    zeros.pad_to(ZERO_CHUNK_BYTES);
    let mut left = bytes;
    while left > 0 {
        let chunk = left.min(ZERO_CHUNK_BYTES as u64);
        file.write_all(&zeros.as_slice()[..chunk as usize])?;
        left -= chunk;
    }
    file.sync()?;
    drop(file);
    fs::rename(&temporary, path)
}
