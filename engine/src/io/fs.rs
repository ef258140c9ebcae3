//! Small blocking file operations with the place in their errors. Callers on a shard run them through
//! [`super::runtime::unblock`].

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|cause| Error::io("fsync folder", dir, cause))
}

/// Creates `dir` and what leads to it, durably.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|cause| Error::io("create folder", dir, cause))?;
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

/// Replaces `path` by a file with these bytes; after a crash it holds the old bytes or the new ones.
pub(crate) fn write_file_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|cause| Error::io("write", &temporary, cause))?;
    std::fs::rename(&temporary, path).map_err(|cause| Error::io("rename", &temporary, cause))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// The names in `dir`, in no order.
pub(crate) fn list_dir(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|cause| Error::io("list", dir, cause))?;
    entries
        .map(|entry| {
            let entry = entry.map_err(|cause| Error::io("list", dir, cause))?;
            Ok(entry.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, cause)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn write_file_atomic_twice_leaves_the_second_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("CURRENT");
        write_file_atomic(&path, b"one").unwrap();
        write_file_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(list_dir(dir.path()).unwrap(), ["CURRENT"]);
    }

    #[test]
    fn remove_file_twice_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"").unwrap();
        remove_file(&path).unwrap();
        remove_file(&path).unwrap();
    }
}
