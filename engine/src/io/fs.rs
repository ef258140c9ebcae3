//! Small blocking file operations with the place in their errors. Callers on a shard run them through
//! [`super::runtime::unblock`]. Everything of the engine that is not a direct file goes through here, so that a
//! simulated machine (`super::sim`) can stand in for the real one.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

/// A file read and written in order, through the page cache.
#[derive(Debug)]
pub(crate) struct File {
    handle: Handle,
    path: PathBuf,
}

#[derive(Debug)]
enum Handle {
    System(std::fs::File),
    #[cfg(any(test, feature = "sim"))]
    Simulated(super::sim::SimStream),
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// For reading; it exists.
    Read,
    /// For reading and writing; it exists.
    Write,
    /// For reading and writing; created when missing, kept as it is otherwise.
    Ensure,
    /// For writing; created when missing, emptied otherwise.
    Create,
    /// The same, past the page cache where the file system can: whole blocks are written, from memory aligned to them.
    CreateDirect,
}

impl File {
    /// Opens an existing file for reading.
    pub fn open(path: &Path) -> Result<File> {
        File::with_mode(path, Mode::Read)
    }

    /// Opens an existing file for reading and writing, at its beginning.
    pub fn open_write(path: &Path) -> Result<File> {
        File::with_mode(path, Mode::Write)
    }

    /// Opens a file for reading and writing, created when missing.
    pub fn ensure(path: &Path) -> Result<File> {
        File::with_mode(path, Mode::Ensure)
    }

    /// Creates a file, or empties the one that is there.
    pub fn create(path: &Path) -> Result<File> {
        File::with_mode(path, Mode::Create)
    }

    /// As [`File::create`], to write past the page cache where the file system can: whole blocks, from memory aligned to them.
    pub fn create_direct(path: &Path) -> Result<File> {
        File::with_mode(path, Mode::CreateDirect)
    }

    fn with_mode(path: &Path, mode: Mode) -> Result<File> {
        let place = |cause| Error::io("open", path, cause);
        #[cfg(any(test, feature = "sim"))]
        if let Some(machine) = super::sim::current() {
            let handle = Handle::Simulated(machine.open_stream(path, mode).map_err(place)?);
            return Ok(File { handle, path: path.to_path_buf() });
        }
        let mut options = std::fs::OpenOptions::new();
        match mode {
            Mode::Read => options.read(true),
            Mode::Write => options.read(true).write(true),
            Mode::Ensure => options.read(true).write(true).create(true).truncate(false),
            Mode::Create => options.write(true).create(true).truncate(true),
            Mode::CreateDirect => options.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT),
        };
        let opened = match options.open(path) {
            Err(cause) if mode == Mode::CreateDirect && cause.raw_os_error() == Some(libc::EINVAL) => {
                options.custom_flags(0).open(path)
            }
            opened => opened,
        };
        let file = opened.map_err(place)?;
        Ok(File { handle: Handle::System(file), path: path.to_path_buf() })
    }

    /// Everything from here to the end.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = match &mut self.handle {
            Handle::System(file) => file.read_to_end(&mut bytes),
            #[cfg(any(test, feature = "sim"))]
            Handle::Simulated(file) => file.read_to_end(&mut bytes),
        };
        read.map_err(|cause| Error::io("read", &self.path, cause))?;
        Ok(bytes)
    }

    /// Writes all of `bytes` here. Not durable before a sync.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.handle {
            Handle::System(file) => file.write_all(bytes),
            #[cfg(any(test, feature = "sim"))]
            Handle::Simulated(file) => file.write_all(bytes),
        };
        written.map_err(|cause| Error::io("write", &self.path, cause))
    }

    /// Makes content and size durable. A failure is final: what was written before may be lost.
    pub fn sync(&self) -> Result<()> {
        let synced = match &self.handle {
            Handle::System(file) => file.sync_all(),
            #[cfg(any(test, feature = "sim"))]
            Handle::Simulated(file) => file.sync(),
        };
        synced.map_err(|cause| Error::io("fsync", &self.path, cause))
    }

    /// As [`File::sync`], without what is not needed to read the content back (times).
    pub fn sync_data(&self) -> Result<()> {
        let synced = match &self.handle {
            Handle::System(file) => file.sync_data(),
            #[cfg(any(test, feature = "sim"))]
            Handle::Simulated(file) => file.sync(),
        };
        synced.map_err(|cause| Error::io("fdatasync", &self.path, cause))
    }

    /// Asks the page cache to forget what it holds of the file and has on the device; it may keep it all the same.
    pub fn drop_cached(&self) {
        match &self.handle {
            Handle::System(file) => {
                // SAFETY: a hint about an open descriptor; no memory is involved.
                unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            }
            #[cfg(any(test, feature = "sim"))]
            Handle::Simulated(_) => {}
        }
    }

    /// Locks the file through this descriptor; false while another descriptor holds it.
    pub fn try_lock(&self) -> Result<bool> {
        let locked = match &self.handle {
            Handle::System(file) => file.try_lock(),
            #[cfg(any(test, feature = "sim"))]
            Handle::Simulated(file) => file.try_lock(),
        };
        match locked {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(cause)) => Err(Error::io("lock", &self.path, cause)),
        }
    }
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let place = |cause| Error::io("fsync folder", dir, cause);
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.sync_dir(dir).map_err(place);
    }
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(place)
}

/// Creates `dir` and what leads to it, durably.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    let place = |cause| Error::io("create folder", dir, cause);
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.create_dir(dir).map_err(place);
    }
    std::fs::create_dir_all(dir).map_err(place)?;
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

/// Gives a file another name in one step. Durable after [`sync_dir`].
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let place = |cause| Error::io("rename", from, cause);
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.rename(from, to).map_err(place);
    }
    std::fs::rename(from, to).map_err(place)
}

/// Replaces `path` by a file with these bytes; after a crash it holds the old bytes or the new ones.
pub(crate) fn write_file_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync()?;
    drop(file);
    rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// The bytes of a file; `None` if there is none.
pub(crate) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match File::open(path) {
        Ok(mut file) => file.read_to_end().map(Some),
        Err(Error::Io { cause, .. }) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// The names in `dir`, in no order.
pub(crate) fn list_dir(dir: &Path) -> Result<Vec<String>> {
    let place = |cause| Error::io("list", dir, cause);
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.list_dir(dir).map_err(place);
    }
    let entries = std::fs::read_dir(dir).map_err(place)?;
    entries.map(|entry| Ok(entry.map_err(place)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match unlink(path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, cause)),
        _ => Ok(()),
    }
}

fn unlink(path: &Path) -> std::io::Result<()> {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.remove_file(path);
    }
    std::fs::remove_file(path)
}

/// Gives a file a second name. Durable after [`sync_dir`].
pub(crate) fn hard_link(from: &Path, to: &Path) -> Result<()> {
    let place = |cause| Error::io("link", from, cause);
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.hard_link(from, to).map_err(place);
    }
    std::fs::hard_link(from, to).map_err(place)
}

/// Blocks the thread for a while.
pub(crate) fn nap(duration: Duration) {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.nap(duration);
    }
    std::thread::sleep(duration);
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
        assert_eq!(read_if_present(&path).unwrap().unwrap(), b"two");
        assert_eq!(list_dir(dir.path()).unwrap(), ["CURRENT"]);
        assert_eq!(read_if_present(&dir.path().join("absent")).unwrap(), None);
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
