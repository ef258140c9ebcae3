//! Who may write to a data folder.
//!
//! `INV-GHOST`: after a process is killed, writes that it had submitted to its ring may still reach the device, while
//! an ordinary lock file is free at once. Each such write holds its file open until it ends. So every WAL file is
//! locked (`flock`) through the very descriptor that it is written by: a lock on the file is free only when the last
//! old write has ended. Start-up takes the lock of each file, with retries, before it reads it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::error::{Error, Result};

use super::fs::{self, File};

const RETRY: Duration = Duration::from_millis(10);

/// Holds a data folder for this process until it is dropped.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the folder's lock; waits up to `timeout` for another process to let go.
    ///
    /// Errors: [`Error::Locked`], [`Error::Io`].
    pub fn acquire(dir: &Path, timeout: Duration) -> Result<DataLock> {
        let file = File::ensure(&dir.join("LOCK"))?;
        lock_within(&file, dir, clock::monotonic() + timeout)?;
        Ok(DataLock { _file: file })
    }
}

/// Waits until nobody writes to `path` any more, not even a ring whose process is dead, and returns it open for
/// reading and writing, locked. `deadline` is a time of [`clock::monotonic`].
pub(crate) fn open_when_quiet(path: &Path, deadline: Duration) -> Result<File> {
    let file = File::open_write(path)?;
    lock_within(&file, path, deadline)?;
    Ok(file)
}

fn lock_within(file: &File, what: &Path, deadline: Duration) -> Result<()> {
    while !file.try_lock()? {
        if clock::monotonic() >= deadline {
            return Err(Error::Locked { path: PathBuf::from(what) });
        }
        fs::nap(RETRY);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn acquire_held_lock_is_refused_and_free_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataLock::acquire(dir.path(), Duration::ZERO).unwrap();
        assert!(matches!(DataLock::acquire(dir.path(), Duration::from_millis(30)), Err(Error::Locked { .. })));
        drop(held);
        DataLock::acquire(dir.path(), Duration::ZERO).unwrap();
    }
}
