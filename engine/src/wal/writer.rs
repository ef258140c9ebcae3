//! Drives [`super::group::GroupCommit`] on the shard's executor.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::clock;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::io::direct::DirectFile;
use crate::io::runtime::{self, Background};
use crate::types::WalSeq;

use super::files;
use super::format::Entry;
use super::group::{FLIGHT_MAX, GroupCommit, SealedBatch, Step};
use super::recover::Recovered;

/// How long a recycled file may stay locked by the descriptor it was written through before.
const UNLOCK_TIMEOUT: Duration = Duration::from_secs(10);
const UNLOCK_RETRY: Duration = Duration::from_millis(1);

/// What the log tells its shard, once per batch and not once per record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalEvent {
    /// Every batch up to this one is on the device.
    Durable(WalSeq),
    /// A write failed; the log is latched.
    Failed,
}

type Observer = Box<dyn Fn(WalEvent)>;

/// A file in use, oldest first.
#[derive(Debug)]
struct LiveFile {
    generation: u64,
    first: WalSeq,
}

struct Inner {
    dir: PathBuf,
    file_bytes: u64,
    background: Background,
    group: RefCell<GroupCommit>,
    /// The file that batches go to.
    current: RefCell<Option<Rc<DirectFile>>>,
    /// The file that comes next, if it is ready.
    next: RefCell<Option<(u64, Rc<DirectFile>)>>,
    preparing: Cell<bool>,
    last_generation: Cell<u64>,
    live: RefCell<VecDeque<LiveFile>>,
    /// Generations whose batches nobody needs, oldest first: recycled in that order, so that what is left has no gap.
    retired: RefCell<VecDeque<u64>>,
    /// Entries were added, a batch ended, a file became ready, or the log is closing.
    changed: Event,
    /// `durable` advanced, or the log failed.
    settled: Event,
    observer: RefCell<Option<Observer>>,
    closing: Cell<bool>,
    writers: Cell<usize>,
    /// How long the device took for each batch, until somebody asks.
    write_times: RefCell<Vec<Duration>>,
    /// Bytes of batches that are on the device.
    written_bytes: Cell<u64>,
}

/// Times that are kept of the log's writes.
const WRITE_TIMES_MAX: usize = 1024;

/// The log of one shard. Clones share it.
#[derive(Clone)]
pub(crate) struct Wal {
    inner: Rc<Inner>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = &self.inner;
        f.debug_struct("Wal")
            .field("durable", &self.durable())
            .field("group", &inner.group)
            .field("live", &inner.live)
            .field("retired", &inner.retired)
            .field("next_is_ready", &inner.next.borrow().is_some())
            .field("preparing", &inner.preparing)
            .finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens the file of the new incarnation and starts the writers. At most three batches of about `open_bytes_max`
    /// bytes are in memory.
    ///
    /// Errors: [`Error::Locked`], [`Error::Io`].
    pub async fn open(recovered: Recovered, background: Background, open_bytes_max: usize) -> Result<Wal> {
        let Recovered { durable, generation, offset, file_bytes, dir, older } = recovered;
        let current = DirectFile::open_write_locked(&files::wal_path(&dir, generation)).await?;
        let mut live: VecDeque<LiveFile> =
            older.into_iter().map(|(generation, first)| LiveFile { generation, first }).collect();
        live.push_back(LiveFile { generation, first: durable });
        let inner = Rc::new(Inner {
            dir,
            file_bytes,
            background,
            group: RefCell::new(GroupCommit::new(durable, generation, offset, file_bytes, open_bytes_max)),
            current: RefCell::new(Some(Rc::new(current))),
            next: RefCell::default(),
            preparing: Cell::new(false),
            last_generation: Cell::new(generation),
            live: RefCell::new(live),
            retired: RefCell::default(),
            changed: Event::default(),
            settled: Event::default(),
            observer: RefCell::default(),
            closing: Cell::new(false),
            writers: Cell::new(FLIGHT_MAX),
            write_times: RefCell::default(),
            written_bytes: Cell::new(0),
        });
        for _ in 0..FLIGHT_MAX {
            let inner = Rc::clone(&inner);
            runtime::spawn_detached(async move {
                inner.write_batches().await;
                inner.writers.set(inner.writers.get() - 1);
                inner.settled.notify_all();
            });
        }
        inner.prepare_ahead();
        Ok(Wal { inner })
    }

    /// Sets who hears of batches that became durable. Called on the shard, right after the fact.
    pub fn observe(&self, observer: impl Fn(WalEvent) + 'static) {
        *self.inner.observer.borrow_mut() = Some(Box::new(observer));
    }

    /// Adds an entry to the batch being collected and returns that batch. Does not wait.
    ///
    /// Errors: [`Error::ReadOnly`] once a write has failed, [`Error::Closed`].
    pub fn append(&self, entry: Entry<'_>) -> Result<WalSeq> {
        if self.inner.closing.get() {
            return Err(Error::Closed);
        }
        let mut group = self.inner.group.borrow_mut();
        let seq = group.push(entry)?;
        drop(group);
        self.inner.changed.notify_all();
        Ok(seq)
    }

    /// Whether entries of `bytes` bytes together (keys, values and 64 bytes each) can go into one batch.
    ///
    /// Errors: [`Error::BatchLength`].
    pub fn check_batch(&self, bytes: usize) -> Result<()> {
        let max = self.inner.group.borrow().batch_bytes_left();
        if bytes > max { Err(Error::BatchLength { len: bytes, max }) } else { Ok(()) }
    }

    /// The batch that the next entry joins.
    pub fn collecting(&self) -> WalSeq {
        self.inner.group.borrow().collecting()
    }

    /// Every batch up to this one is on the device.
    pub fn durable(&self) -> WalSeq {
        self.inner.group.borrow().durable()
    }

    /// Bytes of the batches that were written since the log was opened.
    pub fn written_bytes(&self) -> u64 {
        self.inner.written_bytes.get()
    }

    /// The failure that latched the log.
    pub fn failure(&self) -> Option<Error> {
        if self.inner.closing.get() {
            return Some(Error::Closed);
        }
        self.inner.group.borrow().failure().cloned()
    }

    /// Accepts and acknowledges nothing more: something else that the shard's writes depend on has failed.
    pub fn latch(&self, cause: &Error) {
        self.inner.fail(cause);
    }

    /// Waits until every entry added so far to batch `seq` or earlier is on the device. A batch that has no entry yet
    /// is not waited for.
    pub async fn wait_durable(&self, seq: WalSeq) -> Result<()> {
        let inner = &self.inner;
        let target = {
            let group = inner.group.borrow();
            if group.is_idle() { group.durable() } else { seq.min(group.collecting()) }
        };
        inner
            .settled
            .wait_for(|| {
                let group = inner.group.borrow();
                if group.durable() >= target || group.is_idle() {
                    return Some(Ok(()));
                }
                group.failure().cloned().map(Err)
            })
            .await
    }

    /// Whether writers may add entries without waiting.
    pub fn has_room(&self) -> bool {
        self.inner.group.borrow().has_room()
    }

    /// How long the device took for each batch since the last call; of the first ones, if nobody asked for long.
    pub fn take_write_times(&self) -> Vec<Duration> {
        self.inner.write_times.take()
    }

    /// Waits for room.
    pub async fn wait_room(&self) -> Result<()> {
        let inner = &self.inner;
        inner
            .settled
            .wait_for(|| {
                let group = inner.group.borrow();
                if let Some(cause) = group.failure() {
                    return Some(Err(cause.clone()));
                }
                group.has_room().then_some(Ok(()))
            })
            .await
    }

    /// Number of files in use, and the first batch of the second-oldest: once nobody needs batches before it, the
    /// oldest can be recycled.
    pub fn backlog(&self) -> (usize, Option<WalSeq>) {
        let live = self.inner.live.borrow();
        (live.len(), live.get(1).map(|file| file.first))
    }

    /// Nobody needs batches before `seq` any more: files that hold only such are recycled.
    pub fn release_before(&self, seq: WalSeq) {
        let mut live = self.inner.live.borrow_mut();
        while live.len() > 1 && live[1].first <= seq {
            if let Some(file) = live.pop_front() {
                self.inner.retired.borrow_mut().push_back(file.generation);
            }
        }
    }

    /// Writes what was added, then ends the writers and closes the files.
    pub async fn close(&self) {
        let inner = &self.inner;
        inner.closing.set(true);
        inner.changed.notify_all();
        inner.settled.wait_for(|| (inner.writers.get() == 0 && !inner.preparing.get()).then_some(())).await;
        *inner.observer.borrow_mut() = None;
        // Closed and not just dropped: a descriptor that outlives its executor would keep the file locked.
        let (current, next) = (inner.current.take(), inner.next.take());
        for file in current.into_iter().chain(next.map(|(_, file)| file)) {
            if let Some(Err(cause)) = close_if_last(file).await {
                tracing::warn!(%cause, "a log file was not closed");
            }
        }
    }
}

async fn close_if_last(file: Rc<DirectFile>) -> Option<Result<()>> {
    match Rc::try_unwrap(file) {
        Ok(file) => Some(file.close().await),
        Err(_) => None,
    }
}

impl Inner {
    /// One of the writers: sends a batch, waits for it, sends the next.
    async fn write_batches(self: &Rc<Inner>) {
        loop {
            let step = self
                .changed
                .wait_for(|| {
                    let mut group = self.group.borrow_mut();
                    match group.next_step() {
                        Step::Write(batch) => Some(Some(batch)),
                        Step::NextFile => {
                            drop(group);
                            self.begin_next_file();
                            match self.group.borrow_mut().next_step() {
                                Step::Write(batch) => Some(Some(batch)),
                                Step::NextFile | Step::Wait => None,
                            }
                        }
                        Step::Wait => {
                            let done = self.closing.get() && (group.is_idle() || group.failure().is_some());
                            done.then_some(None)
                        }
                    }
                })
                .await;
            let Some(batch) = step else {
                return;
            };
            self.write(batch).await;
        }
    }

    async fn write(self: &Rc<Inner>, batch: SealedBatch) {
        let SealedBatch { seq, offset, bytes, .. } = batch;
        let Some(file) = self.current.borrow().clone() else {
            unreachable!("INV-FLIGHT: the file is closed after the last writer has ended");
        };
        let (begun, len) = (clock::monotonic(), bytes.len() as u64);
        let result = file.write_all(offset, bytes).await;
        {
            let mut times = self.write_times.borrow_mut();
            if times.len() < WRITE_TIMES_MAX {
                times.push(clock::monotonic().saturating_sub(begun));
            }
        }
        let event = match result {
            Ok(()) => {
                self.written_bytes.update(|written| written + len);
                let mut group = self.group.borrow_mut();
                group.handle_written(seq).then(|| WalEvent::Durable(group.durable()))
            }
            Err(cause) => {
                self.fail(&cause);
                None
            }
        };
        if let Some(event) = event {
            self.tell(event);
        }
        self.changed.notify_all();
        self.settled.notify_all();
    }

    fn fail(&self, cause: &Error) {
        tracing::error!(%cause, dir = %self.dir.display(), "log or manifest failed; the shard is read-only from now on");
        self.group.borrow_mut().handle_failed(cause);
        self.tell(WalEvent::Failed);
        self.changed.notify_all();
        self.settled.notify_all();
    }

    fn tell(&self, event: WalEvent) {
        if let Some(observer) = self.observer.borrow().as_ref() {
            observer(event);
        }
    }

    /// Switches to the prepared file, if there is one, and has another prepared.
    fn begin_next_file(self: &Rc<Inner>) {
        let ready = self.next.borrow_mut().take();
        if let Some((generation, file)) = ready {
            let mut group = self.group.borrow_mut();
            group.begin_file(generation);
            self.live.borrow_mut().push_back(LiveFile { generation, first: group.collecting() });
            *self.current.borrow_mut() = Some(file);
        }
        self.prepare_ahead();
    }

    /// Has the next file prepared in the background, so that a full file never makes a writer wait.
    fn prepare_ahead(self: &Rc<Inner>) {
        if self.preparing.get() || self.next.borrow().is_some() || self.closing.get() {
            return;
        }
        self.preparing.set(true);
        let inner = Rc::clone(self);
        self.background.spawn_detached(async move {
            let result = inner.prepare_next().await;
            inner.preparing.set(false);
            match result {
                Ok(ready) => *inner.next.borrow_mut() = Some(ready),
                Err(cause) => inner.fail(&cause),
            }
            inner.changed.notify_all();
            inner.settled.notify_all();
        });
    }

    async fn prepare_next(&self) -> Result<(u64, Rc<DirectFile>)> {
        let generation = self.last_generation.get() + 1;
        let retired = self.retired.borrow_mut().pop_front();
        let (dir, file_bytes) = (self.dir.clone(), self.file_bytes);
        runtime::unblock(move || files::prepare(&dir, generation, file_bytes, retired)).await?;
        self.last_generation.set(generation);
        let path = files::wal_path(&self.dir, generation);
        let deadline = clock::monotonic() + UNLOCK_TIMEOUT;
        loop {
            match DirectFile::open_write_locked(&path).await {
                // A recycled file's old descriptor is closed a little after it was dropped.
                Err(Error::Locked { .. }) if clock::monotonic() < deadline => runtime::sleep(UNLOCK_RETRY).await,
                opened => return Ok((generation, Rc::new(opened?))),
            }
        }
    }
}
