//! File system and device of a folder.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use super::read_text;

/// What was read of the place of the data. Absent files give `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The folder that was looked at.
    pub dir: PathBuf,
    /// Type of its file system.
    pub file_system: String,
    /// Options that it is mounted with.
    pub mount_options: String,
    /// Its source: a device, most often.
    pub source: String,
    /// Alignment of memory for direct I/O, as the kernel says.
    pub memory_align: Option<u32>,
    /// Alignment of offsets for direct I/O, as the kernel says.
    pub offset_align: Option<u32>,
    /// Why a file cannot be opened with O_DIRECT; `None` if it can.
    pub direct_problem: Option<String>,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
    /// Bytes of the file system.
    pub total_bytes: u64,
    /// Whether the device spins.
    pub rotational: Option<bool>,
    /// `write back` when the device keeps writes in a volatile cache until it is told to flush.
    pub write_cache: Option<String>,
    /// Whether completions can be polled for (IOPOLL).
    pub io_poll: Option<bool>,
    /// The I/O scheduler in use.
    pub scheduler: Option<String>,
    /// Requests that the device takes at a time.
    pub queue_depth: Option<u32>,
    /// Logical block size.
    pub block_bytes: Option<u32>,
}

impl DeviceFacts {
    /// Reads them for an existing folder. Writes one small file there and removes it.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn read(dir: &Path) -> Result<DeviceFacts> {
        let mounts = read_text(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let absolute = std::fs::canonicalize(dir).map_err(|cause| Error::io("look at", dir, cause))?;
        let mount = mount_of(&absolute, &mounts).unwrap_or_default();
        let mut facts = DeviceFacts {
            dir: absolute.clone(),
            file_system: mount.file_system,
            mount_options: mount.options,
            source: mount.source,
            ..DeviceFacts::default()
        };
        facts.read_space();
        facts.try_direct()?;
        facts.read_queue();
        Ok(facts)
    }

    fn read_space(&mut self) {
        let Ok(path) = CString::new(self.dir.as_os_str().as_bytes()) else {
            return;
        };
        let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
        // SAFETY: `path` ends with a zero and `found` is a valid place for the answer.
        let status = unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) };
        if status == 0 {
            // SAFETY: all of it is integers; it was zeroed and then filled in.
            let found = unsafe { found.assume_init() };
            self.free_bytes = found.f_bavail * found.f_frsize;
            self.total_bytes = found.f_blocks * found.f_frsize;
        }
    }

    /// Opens a file as the engine does.
    fn try_direct(&mut self) -> Result<()> {
        let path = self.dir.join(format!(".antumbra-doctor-{}", std::process::id()));
        std::fs::write(&path, [0; 4096]).map_err(|cause| Error::io("write", &path, cause))?;
        match std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) {
            Ok(file) => (self.memory_align, self.offset_align) = alignment(&file),
            Err(cause) => self.direct_problem = Some(cause.to_string()),
        }
        std::fs::remove_file(&path).map_err(|cause| Error::io("remove", &path, cause))
    }

    /// The queue of the block device below.
    fn read_queue(&mut self) {
        let Some(queue) = std::fs::metadata(&self.dir).ok().and_then(|metadata| queue_of(metadata.dev())) else {
            return;
        };
        let text = |name: &str| read_text(&queue.join(name));
        let flag = |name: &str| text(name).map(|value| value == "1");
        self.rotational = flag("rotational");
        self.io_poll = flag("io_poll");
        self.write_cache = text("write_cache");
        let chosen = |line: String| {
            let inside = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
            inside.map_or(line.clone(), |(inside, _)| inside.to_string())
        };
        self.scheduler = text("scheduler").map(chosen);
        self.queue_depth = text("nr_requests").and_then(|number| number.parse().ok());
        self.block_bytes = text("logical_block_size").and_then(|number| number.parse().ok());
    }
}

/// The `queue` folder of a device, or of the disk that a partition is part of.
fn queue_of(device: u64) -> Option<PathBuf> {
    let link = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
    let place = std::fs::canonicalize(link).ok()?;
    [place.join("queue"), place.parent()?.join("queue")].into_iter().find(|queue| queue.is_dir())
}

/// What statx says of direct I/O: alignment of memory and of offsets.
fn alignment(file: &std::fs::File) -> (Option<u32>, Option<u32>) {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty string that ends with a zero, and `found` is a valid place.
    let status = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, found.as_mut_ptr())
    };
    if status != 0 {
        return (None, None);
    }
    // SAFETY: all of it is integers; it was zeroed and then filled in.
    let found = unsafe { found.assume_init() };
    if found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return (None, None);
    }
    (Some(found.stx_dio_mem_align), Some(found.stx_dio_offset_align))
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mount {
    file_system: String,
    source: String,
    options: String,
}

/// The mount that a folder lies on: the one with the longest path that leads to it; the last of equals.
fn mount_of(dir: &Path, mounts: &str) -> Option<Mount> {
    let parse = |line: &str| -> Option<(usize, Mount)> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        let mut rest = after.split(' ');
        let (file_system, source) = (rest.next()?.to_string(), rest.next()?.to_string());
        let point = point.replace("\\040", " ");
        dir.starts_with(&point).then(|| (point.len(), Mount { file_system, source, options: options.to_string() }))
    };
    mounts.lines().filter_map(parse).max_by_key(|(len, _)| *len).map(|(_, mount)| mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_of_takes_the_longest_path() {
        let mounts = "20 1 8:1 / / rw,noatime - ext4 /dev/a rw\n\
                      21 20 8:2 / /my\\040data rw - xfs /dev/b rw\n\
                      bad line\n";
        let found = mount_of(Path::new("/my data/x"), mounts).unwrap_or_default();
        assert_eq!((found.file_system.as_str(), found.source.as_str()), ("xfs", "/dev/b"));
        assert_eq!(mount_of(Path::new("/other"), mounts).unwrap_or_default().options, "rw,noatime");
        assert_eq!(mount_of(Path::new("/"), ""), None);
    }
}
