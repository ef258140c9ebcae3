//! A device that remembers: one file behind FUSE, under a loop device. Every write and every flush that reaches it is kept in
//! order, so that what a power cut would have left can be put together afterwards; and it fails when told to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use tempfile::TempDir;

use super::mount::{Loop, folder, run};

const NAME: &str = "device";
const FILE: INodeNo = INodeNo(2);
const CHUNK_BYTES: usize = 64 << 10;
/// The kernel asks again each time.
const NEVER: Duration = Duration::ZERO;

/// What is on a device; a copy costs next to nothing.
#[derive(Clone, Debug, Default)]
pub struct Content {
    chunks: BTreeMap<u64, Arc<[u8; CHUNK_BYTES]>>,
}

impl Content {
    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let inside = offset as usize % CHUNK_BYTES;
            let len = bytes.len().min(CHUNK_BYTES - inside);
            let chunk = self.chunks.entry(offset / CHUNK_BYTES as u64).or_insert_with(|| Arc::new([0; CHUNK_BYTES]));
            Arc::make_mut(chunk)[inside..inside + len].copy_from_slice(&bytes[..len]);
            (offset, bytes) = (offset + len as u64, &bytes[len..]);
        }
    }

    pub fn read(&self, mut offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let inside = offset as usize % CHUNK_BYTES;
            let len = rest.len().min(CHUNK_BYTES - inside);
            if let Some(chunk) = self.chunks.get(&(offset / CHUNK_BYTES as u64)) {
                rest[..len].copy_from_slice(&chunk[inside..inside + len]);
            }
            (offset, rest) = (offset + len as u64, &mut rest[len..]);
        }
        bytes
    }
}

/// What reached the device.
#[derive(Clone, Debug)]
pub enum Entry {
    Write { offset: u64, bytes: Arc<[u8]> },
    Flush,
}

/// What happens to a write or a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// It fails with EIO.
    Fails,
}

#[derive(Debug, Default)]
struct State {
    content: Content,
    log: Vec<Entry>,
    fault: Fault,
}

/// The device; unmounted and detached when dropped.
pub struct Recorder {
    state: Arc<Mutex<State>>,
    // In the order in which they have to go.
    device: Loop,
    session: Option<BackgroundSession>,
    place: TempDir,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// A device of so many MiB with this on it.
    pub fn new(mib: u64, content: Content) -> Recorder {
        let state = Arc::new(Mutex::new(State { content, ..State::default() }));
        let place = folder();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("antumbra-recorder".into())];
        let served = Served { state: Arc::clone(&state), len: mib << 20 };
        let session = fuser::spawn_mount(served, place.path(), &config).unwrap();
        let file: PathBuf = place.path().join(NAME);
        Recorder { state, device: Loop::over(&file), session: Some(session), place }
    }

    /// The block device.
    pub fn device(&self) -> &str {
        &self.device.device
    }

    /// What is on it now.
    pub fn content(&self) -> Content {
        locked(&self.state).content.clone()
    }

    /// Forgets what has reached it.
    pub fn begin(&self) {
        locked(&self.state).log.clear();
    }

    /// How much has reached it.
    pub fn reached(&self) -> usize {
        locked(&self.state).log.len()
    }

    /// Everything that has reached it.
    pub fn log(&self) -> Vec<Entry> {
        locked(&self.state).log.clone()
    }

    pub fn set_fault(&self, fault: Fault) {
        locked(&self.state).fault = fault;
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // The kernel lets go of the file some time after the loop device has been detached.
        let until = Instant::now() + Duration::from_millis(200);
        let place = self.place.path().display().to_string();
        let _ = run("losetup", &["--detach", &self.device.device]);
        let mut gone = false;
        while !gone && Instant::now() < until {
            gone = run("umount", &[&place]).is_ok();
            std::thread::sleep(Duration::from_millis(5));
        }
        let session = self.session.take();
        if !gone {
            // It serves whoever still has a file of it open, until this process ends.
            let _ = run("umount", &["--lazy", &place]);
            std::mem::forget(session);
        }
    }
}

/// The file system with one file.
struct Served {
    state: Arc<Mutex<State>>,
    len: u64,
}

impl Served {
    fn attributes(&self, of: INodeNo) -> FileAttr {
        let is_file = of == FILE;
        FileAttr {
            ino: of,
            size: if is_file { self.len } else { 0 },
            blocks: if is_file { self.len / 512 } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&NEVER, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, of: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NEVER, &self.attributes(of));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(len).min(self.len.saturating_sub(offset));
        reply.data(&locked(&self.state).content.read(offset, len as usize));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = locked(&self.state);
        if state.fault == Fault::Fails {
            return reply.error(Errno::EIO);
        }
        state.content.write(offset, bytes);
        state.log.push(Entry::Write { offset, bytes: bytes.into() });
        reply.written(bytes.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = locked(&self.state);
        if state.fault == Fault::Fails {
            return reply.error(Errno::EIO);
        }
        state.log.push(Entry::Flush);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
