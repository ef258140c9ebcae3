//! Files read and written past the page cache through the executor's ring.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use glommio::io::{DmaFile, OpenOptions};

use crate::error::{Error, Result};
use crate::memory::{AlignedBytes, Pages};

#[cfg(any(test, feature = "sim"))]
use super::fs::Mode;
use super::ring::{self, Request, Verb};
use super::runtime;

/// Offsets and lengths of writes are multiples of this: the largest block of the devices in use.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// A growable buffer that the device can write from directly.
pub(crate) struct AlignedBuf {
    pages: Pages,
    len: usize,
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).field("capacity", &self.pages.len()).finish()
    }
}

impl AlignedBuf {
    /// An empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> AlignedBuf {
        AlignedBuf { pages: Pages::new(capacity.max(BLOCK_BYTES)), len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the first `len` bytes were written, and are borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_ptr(), self.len) }
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        // SAFETY: there is room for the bytes behind the first `len`, and nobody else knows of that memory.
        unsafe { self.end().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.len += bytes.len();
    }

    /// Appends zeros up to the next multiple of `multiple`.
    pub fn pad_to(&mut self, multiple: usize) {
        let padded = self.len.next_multiple_of(multiple);
        self.reserve(padded - self.len);
        // SAFETY: there is room up to `padded`.
        unsafe { self.end().write_bytes(0, padded - self.len) };
        self.len = padded;
    }

    /// Where the next byte goes.
    fn end(&mut self) -> *mut u8 {
        self.pages.as_ptr().wrapping_add(self.len)
    }

    fn reserve(&mut self, more: usize) {
        let needed = self.len + more;
        if needed > self.pages.len() {
            let mut grown = AlignedBuf::with_capacity(needed.max(self.pages.len() * 2));
            grown.extend_from_slice(self.as_slice());
            *self = grown;
        }
    }
}

/// A file of one executor.
#[derive(Debug)]
pub(crate) struct DirectFile {
    backend: Backend,
    path: PathBuf,
}

#[derive(Debug)]
enum Backend {
    Ring(DmaFile),
    #[cfg(any(test, feature = "sim"))]
    Simulated(super::sim::SimFile),
}

/// Prepares this executor for files under `dir`: says what is missing for direct reads before anything else is opened. (The first
/// file that an executor opens on a device is probed by glommio, which needs one that exists, is not empty and can be read.)
pub(crate) async fn warm_up(dir: &Path) -> Result<()> {
    let path = dir.join("PROBE");
    if super::fs::read_if_present(&path)?.is_none_or(|bytes| bytes.is_empty()) {
        super::fs::write_file_atomic(&path, &[0xA5; BLOCK_BYTES])?;
    }
    let file = DirectFile::open_read(&path).await?;
    file.read(0, BLOCK_BYTES).await?;
    file.close().await
}

impl DirectFile {
    /// Opens for reading.
    pub async fn open_read(path: &Path) -> Result<DirectFile> {
        #[cfg(any(test, feature = "sim"))]
        if let Some(machine) = super::sim::current() {
            return DirectFile::simulated(path, machine.open_direct(path, Mode::Read, false));
        }
        let file = DmaFile::open(path).await.map_err(|cause| glommio_error("open", path, cause))?;
        Ok(DirectFile { backend: Backend::Ring(file), path: path.to_path_buf() })
    }

    /// Creates (or empties) a file whose writes are on the device once [`DirectFile::close_durable`] has returned: one
    /// flush of the device for all of them.
    pub async fn create(path: &Path) -> Result<DirectFile> {
        #[cfg(any(test, feature = "sim"))]
        if let Some(machine) = super::sim::current() {
            return DirectFile::simulated(path, machine.open_direct(path, Mode::Create, false));
        }
        let mut options = OpenOptions::new();
        let opened = options.create(true).truncate(true).read(true).write(true).dma_open(path).await;
        let file = opened.map_err(|cause| glommio_error("open", path, cause))?;
        Ok(DirectFile { backend: Backend::Ring(file), path: path.to_path_buf() })
    }

    /// Creates (or empties) a file whose writes are on the device when they return.
    #[cfg(test)]
    pub async fn create_durable(path: &Path) -> Result<DirectFile> {
        #[cfg(any(test, feature = "sim"))]
        if let Some(machine) = super::sim::current() {
            return DirectFile::simulated(path, machine.open_direct(path, Mode::Create, true));
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(true);
        DirectFile::open_durable(&mut options, path).await
    }

    /// Opens an existing file whose writes are on the device when they return, and locks it through this descriptor
    /// (see [`super::lock`]).
    pub async fn open_write_locked(path: &Path) -> Result<DirectFile> {
        #[cfg(any(test, feature = "sim"))]
        if let Some(machine) = super::sim::current() {
            let durable = !super::planted(super::Bug::DropWalSync);
            let file = DirectFile::simulated(path, machine.open_direct(path, Mode::Write, durable))?;
            return if file.try_lock()? { Ok(file) } else { Err(Error::Locked { path: path.to_path_buf() }) };
        }
        let file = DirectFile::open_durable(&mut OpenOptions::new(), path).await?;
        if file.try_lock()? { Ok(file) } else { Err(Error::Locked { path: path.to_path_buf() }) }
    }

    async fn open_durable(options: &mut OpenOptions, path: &Path) -> Result<DirectFile> {
        let opened = options.read(true).write(true).custom_flags(libc::O_DSYNC).dma_open(path).await;
        let file = opened.map_err(|cause| glommio_error("open", path, cause))?;
        Ok(DirectFile { backend: Backend::Ring(file), path: path.to_path_buf() })
    }

    #[cfg(any(test, feature = "sim"))]
    fn simulated(path: &Path, opened: std::io::Result<super::sim::SimFile>) -> Result<DirectFile> {
        let file = opened.map_err(|cause| Error::io("open", path, cause))?;
        Ok(DirectFile { backend: Backend::Simulated(file), path: path.to_path_buf() })
    }

    fn try_lock(&self) -> Result<bool> {
        match &self.backend {
            Backend::Ring(file) => try_flock(file).map_err(|cause| Error::io("lock", &self.path, cause)),
            #[cfg(any(test, feature = "sim"))]
            Backend::Simulated(file) => file.try_lock().map_err(|cause| Error::io("lock", &self.path, cause)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Exactly `len` bytes at `offset`, whatever their alignment.
    ///
    /// Errors: [`Error::Corruption`] when the file ends before, [`Error::Io`].
    pub async fn read(&self, offset: u64, len: usize) -> Result<AlignedBytes> {
        let (bytes, found) = match &self.backend {
            Backend::Ring(file) => {
                // The device reads whole blocks.
                let first = file.align_down(offset);
                let until = file.align_up(offset + len as u64);
                let (pages, found) = self.read_pages(file, first, (until - first) as usize).await?;
                let start = (offset - first) as usize;
                let found = found.saturating_sub(start).min(len);
                // SAFETY: the device has written what it found.
                (unsafe { AlignedBytes::of_pages(pages, start..start + found) }, found)
            }
            #[cfg(any(test, feature = "sim"))]
            Backend::Simulated(file) => {
                let mut bytes = AlignedBytes::with_capacity(len);
                // A device may return less than it was asked for before the file ends.
                while bytes.len() < len {
                    let found = file.read_at(offset + bytes.len() as u64, len - bytes.len()).await;
                    let found = found.map_err(|cause| Error::io("read", &self.path, cause))?;
                    bytes.extend_from_slice(&found);
                    if found.is_empty() {
                        break;
                    }
                }
                let found = bytes.len();
                (bytes, found)
            }
        };
        if found < len {
            let what = format!("the file ends after {found} of {len} bytes");
            return Err(Error::corruption(&self.path, offset, what));
        }
        Ok(bytes)
    }

    /// Reads up to `len` bytes at `offset`, both aligned; says how many there were before the file's end.
    async fn read_pages(&self, file: &DmaFile, offset: u64, len: usize) -> Result<(Pages, usize)> {
        let (fd, verb) = (file.as_raw_fd(), Verb::Read);
        let (mut pages, mut found) = (Pages::new(len), 0);
        while found < len {
            let request = Request { verb, fd, offset: offset + found as u64, pages, start: found, len: len - found };
            let more;
            (pages, more) = ring::request(request).await.map_err(|cause| Error::io("read", &self.path, cause))?;
            found += more;
            // Fewer than whole blocks are the last of the file.
            if more == 0 || file.align_down(found as u64) != found as u64 {
                break;
            }
        }
        Ok((pages, found))
    }

    /// Writes the whole buffer; offset and length are multiples of [`BLOCK_BYTES`].
    pub async fn write_all(&self, offset: u64, buffer: AlignedBuf) -> Result<()> {
        let len = buffer.len();
        assert!(
            offset.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES),
            "INV-DIRECT: writes are made of whole blocks"
        );
        let written = match &self.backend {
            Backend::Ring(file) => {
                let (fd, verb) = (file.as_raw_fd(), Verb::Write);
                let request = Request { verb, fd, offset, pages: buffer.pages, start: 0, len };
                ring::request(request).await.map(|(_, written)| written)
            }
            #[cfg(any(test, feature = "sim"))]
            Backend::Simulated(file) => file.write_at(offset, buffer.as_slice().to_vec()).await,
        };
        let written = written.map_err(|cause| Error::io("write", &self.path, cause))?;
        if written != len {
            let cause = std::io::Error::new(std::io::ErrorKind::WriteZero, format!("{written} of {len} bytes written"));
            return Err(Error::io("write", &self.path, cause));
        }
        Ok(())
    }

    /// Makes content and size durable, off the core, and closes the file.
    ///
    /// Errors: [`Error::Io`]; what was written before may be lost, and syncing again would not tell.
    pub async fn close_durable(self) -> Result<()> {
        let path = self.path.clone();
        runtime::unblock(move || super::fs::File::open_write(&path)?.sync_data()).await?;
        self.close().await
    }

    /// Closes the file. Dropping it closes it later, with the error lost.
    pub async fn close(self) -> Result<()> {
        let path = self.path;
        match self.backend {
            Backend::Ring(file) => file.close().await.map_err(|cause| glommio_error("close", &path, cause)),
            #[cfg(any(test, feature = "sim"))]
            Backend::Simulated(file) => {
                drop(file);
                Ok(())
            }
        }
    }

    #[cfg(test)]
    pub fn raw_fd(&self) -> i32 {
        match &self.backend {
            Backend::Ring(file) => file.as_raw_fd(),
            Backend::Simulated(_) => -1,
        }
    }
}

/// Locks a file through its descriptor; false while another descriptor holds it.
fn try_flock(file: &DmaFile) -> std::io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` lives.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let cause = std::io::Error::last_os_error();
    if cause.kind() == std::io::ErrorKind::WouldBlock { Ok(false) } else { Err(cause) }
}

/// glommio's errors cannot leave their thread; ours can.
fn glommio_error(op: &'static str, path: &Path, cause: glommio::GlommioError<()>) -> Error {
    Error::io(op, path, std::io::Error::from(cause))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::runtime::{self, RuntimeOptions};

    /// Runs a future on an executor of its own.
    fn on_executor<F: Future<Output = T> + 'static, T: Send + 'static>(
        start: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        let options = RuntimeOptions {
            name: "test".into(),
            cpu: None,
            spin: Duration::ZERO,
            preempt: Duration::from_micros(200),
        };
        runtime::spawn(options, start).unwrap().join().unwrap()
    }

    #[test]
    fn write_then_read_any_range_returns_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        on_executor(move || async move {
            warm_up(&path).await.unwrap();
            let file = DirectFile::create_durable(&path.join("f")).await.unwrap();
            let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.raw_fd())).unwrap();
            let flags = flags.lines().find_map(|line| line.strip_prefix("flags:\t")).unwrap();
            let flags = i32::from_str_radix(flags, 8).unwrap();
            assert_ne!(flags & libc::O_DSYNC, 0, "O_DSYNC is on");
            assert_ne!(flags & libc::O_DIRECT, 0, "O_DIRECT is on");
            let content: Vec<u8> = (0..10_000_u32).map(|index| index as u8).collect();
            let mut buffer = AlignedBuf::with_capacity(10);
            buffer.extend_from_slice(&content[..5_000]);
            buffer.extend_from_slice(&content[5_000..]);
            buffer.pad_to(BLOCK_BYTES);
            file.write_all(0, buffer).await.unwrap();
            assert_eq!(&file.read(4_000, 5_000).await.unwrap()[..], &content[4_000..9_000]);
            assert!(matches!(file.read(12_000, 1_000).await, Err(Error::Corruption { .. })), "behind the end");
            file.close().await.unwrap();
        });
    }

    #[test]
    fn open_write_locked_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        on_executor(move || async move {
            warm_up(&path).await.unwrap();
            let name = path.join("w");
            std::fs::write(&name, [0; BLOCK_BYTES]).unwrap();
            let held = DirectFile::open_write_locked(&name).await.unwrap();
            assert!(matches!(DirectFile::open_write_locked(&name).await, Err(Error::Locked { .. })));
            held.close().await.unwrap();
        });
    }
}
