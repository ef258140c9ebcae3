//! A disk in memory that forgets what was not made durable.
//!
//! Each file has two contents: what readers see, and what is durable; between them lie the changes since the last sync.
//! Each folder has the same for its names. A power cut keeps what is durable, and of everything else what chance
//! decides: each change whole, in pieces, or not at all, each name change or not, whatever the order they were made in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::task::Waker;

use fastrand::Rng;

use super::content::{Content, PAGE_BYTES};
use super::fault::Silent;

pub(super) type InodeId = u64;
pub(super) type HandleId = u64;
pub(super) type FlightId = u64;

/// Smallest unit that a device writes whole.
const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug, Default)]
struct Inode {
    current: Content,
    durable: Content,
    /// Since the last sync.
    pending: Vec<Change>,
    lock: Option<HandleId>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate,
}

#[derive(Clone, Debug, Default)]
struct Folder {
    current: BTreeMap<String, InodeId>,
    durable: BTreeMap<String, InodeId>,
    pending: Vec<NameChange>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link { name: String, inode: InodeId },
    Unlink { name: String },
    Rename { from: String, to: String, inode: InodeId },
}

#[derive(Debug)]
struct Handle {
    inode: InodeId,
    /// Opened with O_DSYNC.
    durable: bool,
    closed: bool,
    in_flight: u32,
}

/// A write on its way to the device.
#[derive(Debug)]
pub(super) struct Flight {
    handle: HandleId,
    offset: u64,
    bytes: Vec<u8>,
    pub fate: Fate,
    pub result: Option<io::Result<usize>>,
    pub waker: Option<Waker>,
    /// Nobody waits for it any more.
    pub abandoned: bool,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lands,
    /// An error is reported; some sectors may be written.
    Fails(i32),
    /// Success is reported and nothing is written.
    Lost,
    /// Success is reported; the bytes went elsewhere in the same file.
    Misdirected,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    inodes: BTreeMap<InodeId, Inode>,
    folders: BTreeMap<PathBuf, Folder>,
    handles: BTreeMap<HandleId, Handle>,
    flights: BTreeMap<FlightId, Flight>,
    next_id: u64,
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no {}", path.display()))
}

fn split(path: &Path) -> io::Result<(&Path, String)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name.to_string_lossy().into_owned())),
        _ => Err(missing(path)),
    }
}

impl Disk {
    /// A copy without handles. Writes on their way are not part of it.
    pub fn copy_at_rest(&self) -> Disk {
        let mut inodes = self.inodes.clone();
        for inode in inodes.values_mut() {
            inode.lock = None;
        }
        Disk { inodes, folders: self.folders.clone(), next_id: self.next_id, ..Disk::default() }
    }

    /// Becomes a copy. Numbers of files and writes go on: who still holds an old one means nothing new by it.
    pub fn replace_by(&mut self, copy: &Disk) {
        *self = Disk { next_id: self.next_id.max(copy.next_id), ..copy.copy_at_rest() };
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn folder(&mut self, path: &Path) -> io::Result<&mut Folder> {
        self.folders.get_mut(path).ok_or_else(|| missing(path))
    }

    /// Folders are durable at once: the engine makes them before anything depends on them.
    pub fn create_folder(&mut self, path: &Path) {
        for folder in path.ancestors() {
            self.folders.entry(folder.to_path_buf()).or_default();
        }
    }

    pub fn find(&self, path: &Path) -> io::Result<InodeId> {
        let (parent, name) = split(path)?;
        let folder = self.folders.get(parent).ok_or_else(|| missing(path))?;
        folder.current.get(&name).copied().ok_or_else(|| missing(path))
    }

    /// Opens a file, made when `create` says so, emptied when `truncate` does.
    pub fn open(&mut self, path: &Path, create: bool, truncate: bool, durable: bool) -> io::Result<HandleId> {
        let inode = match self.find(path) {
            Ok(inode) => inode,
            Err(cause) if !create => return Err(cause),
            Err(_) => self.create(path)?,
        };
        if truncate && self.inode(inode).current.len() > 0 {
            self.inode(inode).current.set_len(0);
            self.inode(inode).pending.push(Change::Truncate);
        }
        let id = self.fresh_id();
        self.handles.insert(id, Handle { inode, durable, closed: false, in_flight: 0 });
        Ok(id)
    }

    fn create(&mut self, path: &Path) -> io::Result<InodeId> {
        let (parent, name) = split(path)?;
        let inode = self.fresh_id();
        let folder = self.folder(parent)?;
        folder.current.insert(name.clone(), inode);
        folder.pending.push(NameChange::Link { name, inode });
        self.inodes.insert(inode, Inode::default());
        Ok(inode)
    }

    fn inode(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.entry(id).or_default()
    }

    fn inode_of(&mut self, handle: HandleId) -> io::Result<InodeId> {
        let handle = self.handles.get(&handle).filter(|handle| !handle.closed);
        handle.map(|handle| handle.inode).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Closes a handle; its lock goes when its last write has landed.
    pub fn close(&mut self, id: HandleId) {
        if let Some(handle) = self.handles.get_mut(&id) {
            handle.closed = true;
        }
        self.reap(id);
    }

    fn reap(&mut self, id: HandleId) {
        if let Some(handle) = self.handles.get(&id).filter(|handle| handle.closed && handle.in_flight == 0) {
            let inode = handle.inode;
            self.handles.remove(&id);
            self.inode(inode).lock.take_if(|holder| *holder == id);
        }
    }

    /// The process is dead: its handles are closed, its writes still land.
    pub fn close_all(&mut self) {
        let handles: Vec<HandleId> = self.handles.keys().copied().collect();
        handles.into_iter().for_each(|handle| self.close(handle));
        self.forget_nameless();
    }

    pub fn try_lock(&mut self, id: HandleId) -> io::Result<bool> {
        let inode = self.inode_of(id)?;
        let lock = &mut self.inode(inode).lock;
        let free = lock.is_none_or(|holder| holder == id);
        if free {
            *lock = Some(id);
        }
        Ok(free)
    }

    pub fn read(&mut self, handle: HandleId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let inode = self.inode_of(handle)?;
        Ok(self.inode(inode).current.read(offset, len))
    }

    pub fn len(&mut self, handle: HandleId) -> io::Result<u64> {
        let inode = self.inode_of(handle)?;
        Ok(self.inode(inode).current.len())
    }

    /// A write through the page cache: seen at once, durable after a sync.
    pub fn write_cached(&mut self, handle: HandleId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let inode = self.inode_of(handle)?;
        let inode = self.inode(inode);
        inode.current.write(offset, bytes);
        inode.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }

    pub fn sync(&mut self, handle: HandleId) -> io::Result<()> {
        let inode = self.inode_of(handle)?;
        let inode = self.inode(inode);
        inode.durable = inode.current.clone();
        inode.pending.clear();
        Ok(())
    }

    /// Sends a direct write off. It lands by [`Disk::land`].
    pub fn launch(&mut self, handle: HandleId, offset: u64, bytes: Vec<u8>, fate: Fate) -> io::Result<FlightId> {
        self.inode_of(handle)?;
        if let Some(handle) = self.handles.get_mut(&handle) {
            handle.in_flight += 1;
        }
        let id = self.fresh_id();
        self.flights.insert(id, Flight { handle, offset, bytes, fate, result: None, waker: None, abandoned: false });
        Ok(id)
    }

    pub fn flight(&mut self, id: FlightId) -> Option<&mut Flight> {
        self.flights.get_mut(&id)
    }

    /// Nobody waits for the write any more; it lands all the same.
    pub fn abandon_flight(&mut self, id: FlightId) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.abandoned = true;
        }
        if self.flights.get(&id).is_some_and(|flight| flight.result.is_some()) {
            self.flights.remove(&id);
        }
    }

    /// A direct write reaches the device. Returns what was damaged, if its fate was a silent one.
    pub fn land(&mut self, id: FlightId, random: &mut Rng) -> Option<Silent> {
        let flight = self.flights.get_mut(&id).filter(|flight| flight.result.is_none())?;
        let (fate, offset, handle) = (flight.fate, flight.offset, flight.handle);
        let bytes = std::mem::take(&mut flight.bytes);
        flight.result = Some(match fate {
            Fate::Fails(code) => Err(io::Error::from_raw_os_error(code)),
            Fate::Lands | Fate::Lost | Fate::Misdirected => Ok(bytes.len()),
        });
        if let Some(waker) = flight.waker.take() {
            waker.wake();
        }
        if flight.abandoned {
            self.flights.remove(&id);
        }
        let opened = self.handles.get_mut(&handle)?;
        opened.in_flight -= 1;
        let (inode_id, durable) = (opened.inode, opened.durable);
        let inode = self.inodes.entry(inode_id).or_default();
        let mut damaged = None;
        match fate {
            Fate::Lands => inode.write_direct(offset, &bytes, durable),
            Fate::Fails(_) => {
                for (at, piece) in torn(&bytes, random) {
                    inode.write_direct(offset + at as u64, piece, durable);
                }
            }
            Fate::Lost => damaged = Some(Silent { inode: inode_id, restore: vec![(offset, bytes)] }),
            Fate::Misdirected => {
                let pages = (inode.current.len() as usize / PAGE_BYTES).max(1);
                let elsewhere = (random.usize(0..pages) * PAGE_BYTES) as u64;
                let overwritten = inode.current.read(elsewhere, bytes.len());
                inode.write_direct(elsewhere, &bytes, durable);
                damaged = Some(Silent { inode: inode_id, restore: vec![(elsewhere, overwritten), (offset, bytes)] });
            }
        }
        self.reap(handle);
        damaged
    }

    /// Puts right what a silent fault has damaged.
    pub fn heal(&mut self, silent: Silent) {
        let inode = self.inode(silent.inode);
        for (offset, bytes) in silent.restore {
            inode.write_direct(offset, &bytes, true);
        }
    }

    /// Flips one bit at rest in one of the files that `wanted` chooses by name.
    pub fn flip_bit(&mut self, random: &mut Rng, wanted: impl Fn(&str) -> bool) -> Option<(String, Silent)> {
        let files: Vec<(String, InodeId)> = self
            .folders
            .values()
            .flat_map(|folder| folder.current.iter().map(|(name, inode)| (name.clone(), *inode)))
            .filter(|(name, _)| wanted(name))
            .collect();
        let (name, id) = files.get(random.usize(0..files.len().max(1)))?.clone();
        let inode = self.inode(id);
        if inode.current.len() == 0 {
            return None;
        }
        let offset = random.u64(0..inode.current.len());
        let before = inode.current.read(offset, 1);
        inode.write_direct(offset, &[before[0] ^ (1 << random.u8(0..8))], true);
        Some((name, Silent { inode: id, restore: vec![(offset, before)] }))
    }

    pub fn names(&mut self, path: &Path) -> io::Result<Vec<String>> {
        Ok(self.folder(path)?.current.keys().cloned().collect())
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        let ((parent, from_name), (to_parent, to_name)) = (split(from)?, split(to)?);
        assert_eq!(parent, to_parent, "the engine renames within one folder");
        let folder = self.folder(parent)?;
        folder.current.remove(&from_name);
        folder.current.insert(to_name.clone(), inode);
        folder.pending.push(NameChange::Rename { from: from_name, to: to_name, inode });
        Ok(())
    }

    pub fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        if self.find(to).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let (parent, name) = split(to)?;
        let folder = self.folder(parent)?;
        folder.current.insert(name.clone(), inode);
        folder.pending.push(NameChange::Link { name, inode });
        Ok(())
    }

    pub fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        let (parent, name) = split(path)?;
        let folder = self.folder(parent)?;
        folder.current.remove(&name);
        folder.pending.push(NameChange::Unlink { name });
        Ok(())
    }

    pub fn sync_folder(&mut self, path: &Path) -> io::Result<()> {
        let folder = self.folder(path)?;
        folder.durable = folder.current.clone();
        folder.pending.clear();
        Ok(())
    }

    /// The power goes: what is not durable survives by chance.
    pub fn cut_power(&mut self, random: &mut Rng) {
        for flight in std::mem::take(&mut self.flights).into_values() {
            let Some(inode) = self.handles.get(&flight.handle).map(|handle| handle.inode) else {
                continue;
            };
            let inode = self.inodes.entry(inode).or_default();
            for (at, piece) in torn(&flight.bytes, random) {
                inode.durable.write(flight.offset + at as u64, piece);
            }
        }
        self.handles.clear();
        for inode in self.inodes.values_mut() {
            inode.cut_power(random);
        }
        for folder in self.folders.values_mut() {
            folder.cut_power(random);
        }
        self.forget_nameless();
    }

    /// Frees what no name and no handle leads to.
    fn forget_nameless(&mut self) {
        let mut wanted: BTreeSet<InodeId> = self.handles.values().map(|handle| handle.inode).collect();
        for folder in self.folders.values() {
            wanted.extend(folder.current.values().chain(folder.durable.values()));
            wanted.extend(folder.pending.iter().filter_map(|change| match change {
                NameChange::Link { inode, .. } | NameChange::Rename { inode, .. } => Some(inode),
                NameChange::Unlink { .. } => None,
            }));
        }
        self.inodes.retain(|id, _| wanted.contains(id));
    }
}

impl Inode {
    fn write_direct(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        self.current.write(offset, bytes);
        if durable {
            self.durable.write(offset, bytes);
        } else {
            self.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
        }
    }

    fn cut_power(&mut self, random: &mut Rng) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Truncate if random.bool() => self.durable.set_len(0),
                Change::Truncate => {}
                Change::Write { offset, bytes } => {
                    for (at, piece) in torn(&bytes, random) {
                        self.durable.write(offset + at as u64, piece);
                    }
                    // The size may be written without the data.
                    let end = offset + bytes.len() as u64;
                    if random.u8(0..8) == 0 && end > self.durable.len() {
                        self.durable.set_len(end);
                    }
                }
            }
        }
        self.current = self.durable.clone();
        self.lock = None;
    }
}

impl Folder {
    fn cut_power(&mut self, random: &mut Rng) {
        for change in std::mem::take(&mut self.pending) {
            if random.bool() {
                continue;
            }
            match change {
                NameChange::Link { name, inode } => {
                    self.durable.insert(name, inode);
                }
                NameChange::Unlink { name } => {
                    self.durable.remove(&name);
                }
                NameChange::Rename { from, to, inode } => {
                    if self.durable.get(&from) == Some(&inode) {
                        self.durable.remove(&from);
                    }
                    self.durable.insert(to, inode);
                }
            }
        }
        self.current = self.durable.clone();
    }
}

/// The pieces of a write that reach the device when it does not end: none, all, a beginning, or any sectors.
fn torn<'a>(bytes: &'a [u8], random: &mut Rng) -> Vec<(usize, &'a [u8])> {
    let mut pieces: Vec<(usize, &'a [u8])> = match random.u8(0..4) {
        0 => Vec::new(),
        1 => vec![(0, bytes)],
        2 => {
            let sectors = random.usize(0..=bytes.len() / SECTOR_BYTES);
            vec![(0, &bytes[..sectors * SECTOR_BYTES])]
        }
        _ => {
            let unit = if random.bool() { SECTOR_BYTES } else { PAGE_BYTES };
            let pieces = bytes.chunks(unit).enumerate().filter(|_| random.bool());
            pieces.map(|(index, piece)| (index * unit, piece)).collect()
        }
    };
    pieces.retain(|(_, piece)| !piece.is_empty());
    pieces
}
