//! A simulated machine: disk, clock and scheduler in memory, all of them driven by one seed.
//!
//! A thread that has [entered](Machine::enter) a machine runs the engine on it; nothing in the engine knows. The same
//! seed and the same work give the same run to the last step ([`Machine::trace`] is a hash over all of them), so a
//! failure replays. What it does not simulate: parallel threads (blocking work runs between two steps of the shard's
//! tasks, not beside them) and the classes of glommio's queues (any order of runnable tasks may happen).

mod content;
mod disk;
mod fault;
mod files;
mod tasks;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use fastrand::Rng;

use super::bug::Bug;
use super::fs::Mode;

use disk::{Disk, Fate};
use tasks::{Alarm, JoinHandle, Scheduler};

pub(crate) use fault::{Faults, Silent, is_table};
pub(crate) use files::{SimFile, SimStream};

thread_local! {
    static CURRENT: RefCell<Option<Rc<Machine>>> = const { RefCell::new(None) };
}

/// The machine that this thread has entered.
pub(crate) fn current() -> Option<Rc<Machine>> {
    // Destructors may ask while the thread ends.
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// Where the wall clock of every simulated machine begins, in milliseconds since the Unix epoch.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// Operations that a power cut may strike and that the trace knows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Open = 1,
    Lock,
    Read,
    Write,
    Land,
    Sync,
    SyncFolder,
    Rename,
    Unlink,
    Link,
    List,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended<T> {
    Done(T),
    /// The interruption that was planned came: [`Machine::kill`] or [`Machine::power_up`] decides which it was.
    Interrupted,
    /// Nothing can run, or virtual time ran out.
    Stuck,
}

/// A disk at rest, to come back to.
#[derive(Debug)]
pub(crate) struct DiskCopy(Disk);

/// What was injected so far.
#[derive(Debug, Default)]
pub(crate) struct Injected {
    /// Errors that some operation was answered with.
    pub errors: Cell<u64>,
    /// Damage that no operation was told of.
    pub silent: RefCell<Vec<Silent>>,
}

/// The machine. See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    id: u64,
    now_ns: Cell<u64>,
    /// What the wall clock shows too much, in milliseconds.
    wall_ahead_ms: Cell<i64>,
    random: RefCell<Rng>,
    disk: RefCell<Disk>,
    tasks: Rc<Scheduler>,
    pub faults: RefCell<Faults>,
    pub injected: Injected,
    dark: Cell<bool>,
    operations: Cell<u64>,
    cut_at: Cell<Option<u64>>,
    trace: Cell<u64>,
    bug: Option<Bug>,
}

/// While it lives, the thread is on the machine.
#[derive(Debug)]
pub(crate) struct Entered {
    before: Option<Rc<Machine>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = CURRENT.replace(self.before.take());
        drop(left);
    }
}

impl Machine {
    pub fn new(seed: u64, bug: Option<Bug>) -> Rc<Machine> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Rc::new(Machine {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            now_ns: Cell::new(0),
            wall_ahead_ms: Cell::new(0),
            random: RefCell::new(Rng::with_seed(seed)),
            disk: RefCell::default(),
            tasks: Rc::default(),
            faults: RefCell::default(),
            injected: Injected::default(),
            dark: Cell::new(false),
            operations: Cell::new(0),
            cut_at: Cell::new(None),
            trace: Cell::new(seed),
            bug,
        })
    }

    /// Puts this thread on the machine until the guard is dropped.
    pub fn enter(self: &Rc<Machine>) -> Entered {
        Entered { before: CURRENT.replace(Some(Rc::clone(self))) }
    }

    /// Runs `main` and what it spawns until `main` ends, the power goes, or nothing happens for `patience` of virtual
    /// time. The tasks are left as they are: see [`Machine::kill`] and [`Machine::power_up`].
    pub fn run<T: 'static>(
        self: &Rc<Machine>,
        patience: Duration,
        main: impl Future<Output = T> + 'static,
    ) -> Ended<T> {
        let deadline_ns = self.now_ns.get() + patience.as_nanos() as u64;
        let main = self.spawn(main);
        loop {
            if self.dark.get() {
                return Ended::Interrupted;
            }
            if let Some(result) = main.take() {
                return Ended::Done(result);
            }
            if self.now_ns.get() > deadline_ns {
                return Ended::Stuck;
            }
            let ran = self.run_one();
            let mut until_ns = self.spend();
            if !ran {
                match self.tasks.next_due() {
                    Some(due_ns) => until_ns = until_ns.max(due_ns),
                    None => return Ended::Stuck,
                }
            }
            self.advance_to(until_ns);
        }
    }

    /// Lets one task run; false if none can.
    fn run_one(&self) -> bool {
        self.tasks.run_one(|ready| self.draw(|random| random.usize(0..ready)))
    }

    /// When a step that begins now is over.
    fn spend(&self) -> u64 {
        self.now_ns.get() + self.draw(|random| random.u64(100..2_000))
    }

    /// When something happens here next; `None` if only something from outside can bring it about.
    pub fn next_step_ns(&self) -> Option<u64> {
        if self.tasks.is_ready() { Some(self.now_ns.get()) } else { self.tasks.next_due() }
    }

    /// Lets time pass up to `now_ns`, then one task run. For a machine among others, whose time somebody else keeps.
    pub fn step_at(&self, now_ns: u64) {
        self.advance_to(now_ns.max(self.now_ns.get()));
        if !self.dark.get() && self.run_one() {
            let until_ns = self.spend();
            self.advance_to(until_ns);
        }
    }

    /// The process dies here and now: what it still does means nothing; [`Machine::kill`] ends it.
    pub fn darken(&self) {
        self.dark.set(true);
    }

    /// Puts the wall clock wrong, by milliseconds.
    pub fn set_wall_ahead_ms(&self, ahead_ms: i64) {
        self.wall_ahead_ms.set(ahead_ms);
    }

    /// The process dies: tasks end, files are closed; what was written stays, and writes that were sent off still land.
    pub fn kill(&self) {
        self.dark.set(true);
        self.tasks.clear();
        self.disk.borrow_mut().close_all();
        self.cut_at.set(None);
        self.dark.set(false);
    }

    /// The machine starts again after a power cut, with what is durable and what chance has kept.
    pub fn power_up(&self) {
        self.dark.set(true);
        self.tasks.clear();
        self.tasks.clear_timers();
        self.draw(|random| self.disk.borrow_mut().cut_power(random));
        self.cut_at.set(None);
        self.dark.set(false);
    }

    /// The `operations`-th operation from now fails and so does everything after it; [`Machine::run`] ends.
    pub fn interrupt_after(&self, operations: u64) {
        self.cut_at.set(Some(self.operations.get() + operations));
    }

    /// No interruption is due any more.
    #[cfg(test)]
    pub fn cancel_interruption(&self) {
        self.cut_at.set(None);
    }

    /// Whether the machine was interrupted: what operations return now means nothing.
    pub fn is_dark(&self) -> bool {
        self.dark.get()
    }

    /// Hash over every step so far.
    pub fn trace(&self) -> u64 {
        self.trace.get()
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.operations.get()
    }

    pub fn has_bug(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Draws from the machine's randomness.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.random.borrow_mut())
    }

    /// What the disk holds now. Cheap: pages are shared.
    pub fn copy_disk(&self) -> DiskCopy {
        DiskCopy(self.disk.borrow().copy_at_rest())
    }

    /// Puts a copy in place of the disk. Nothing may be open or on its way.
    pub fn put_disk(&self, copy: &DiskCopy) {
        self.disk.borrow_mut().replace_by(&copy.0);
    }

    /// Flips a bit at rest in a file that `wanted` chooses by name. [`Machine::heal`] puts it right.
    pub fn flip_bit(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let (name, silent) = self.draw(|random| self.disk.borrow_mut().flip_bit(random, wanted))?;
        self.injected.silent.borrow_mut().push(silent);
        Some(name)
    }

    /// Forgets silent damage without putting it right.
    pub fn forget_damage(&self) {
        self.injected.silent.borrow_mut().clear();
    }

    /// Undoes all silent damage.
    pub fn heal(&self) {
        let damaged: Vec<Silent> = self.injected.silent.borrow_mut().drain(..).rev().collect();
        for silent in damaged {
            self.disk.borrow_mut().heal(silent);
        }
    }

    pub fn wall_ms(&self) -> u64 {
        (WALL_START_MS + self.now_ns.get() / 1_000_000).saturating_add_signed(self.wall_ahead_ms.get())
    }

    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.get())
    }

    pub fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        self.tasks.spawn(task)
    }

    /// Wakes a task at a moment of [`Machine::now`].
    pub fn wake_at(&self, due: Duration, waker: std::task::Waker) {
        self.tasks.set(due.as_nanos() as u64, Alarm::Wake(waker));
    }

    pub async fn sleep(&self, duration: Duration) {
        let due_ns = self.now_ns.get() + duration.as_nanos() as u64;
        poll_fn(|context| {
            if self.now_ns.get() >= due_ns {
                return Poll::Ready(());
            }
            self.tasks.set(due_ns, Alarm::Wake(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    pub async fn yield_now(&self) {
        let mut yields = self.draw(|random| random.u8(0..4) == 0);
        poll_fn(|context| {
            if !std::mem::take(&mut yields) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    pub async fn unblock<T>(&self, work: impl FnOnce() -> T) -> T {
        let delay_ns = self.draw(|random| random.u64(1_000..60_000));
        let delay_ns = delay_ns * self.faults.borrow().times();
        self.sleep(Duration::from_nanos(delay_ns)).await;
        let result = work();
        if self.dark.get() {
            return pending().await;
        }
        result
    }

    /// Time goes on while the thread sleeps; tasks do not run.
    pub fn nap(&self, duration: Duration) {
        self.advance_to(self.now_ns.get() + duration.as_nanos() as u64);
    }

    /// Brings everything about that is due by then, in order.
    fn advance_to(&self, until_ns: u64) {
        while let Some((due_ns, alarm)) = self.tasks.take_due(until_ns) {
            self.now_ns.set(self.now_ns.get().max(due_ns));
            match alarm {
                Alarm::Wake(waker) => waker.wake(),
                Alarm::Close(handle) => self.disk.borrow_mut().close(handle),
                Alarm::Land(flight) => {
                    if self.step(Op::Land, flight, 0).is_err() {
                        // Still on its way: it lands after a kill, and by chance after a power cut.
                        self.tasks.set(due_ns, Alarm::Land(flight));
                        return;
                    }
                    let damaged = self.draw(|random| self.disk.borrow_mut().land(flight, random));
                    self.injected.silent.borrow_mut().extend(damaged);
                }
            }
        }
        self.now_ns.set(self.now_ns.get().max(until_ns));
    }

    /// Counts an operation; an error when the machine is interrupted, by this operation or before.
    fn step(&self, op: Op, place: u64, len: u64) -> io::Result<()> {
        let number = self.operations.get() + 1;
        self.operations.set(number);
        for word in [op as u64, place, len, self.now_ns.get()] {
            self.trace.set((self.trace.get() ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
        }
        if self.cut_at.get().is_some_and(|at| number >= at) {
            self.dark.set(true);
        }
        if self.dark.get() { Err(io::Error::other("the machine was interrupted")) } else { Ok(()) }
    }

    /// An error to answer an operation with.
    fn injected(&self, code: i32) -> io::Error {
        self.injected.errors.set(self.injected.errors.get() + 1);
        io::Error::from_raw_os_error(code)
    }

    fn count_fate(&self, fate: Fate) {
        if let Fate::Fails(_) = fate {
            self.injected.errors.set(self.injected.errors.get() + 1);
        }
    }

    pub(super) fn open_stream(self: &Rc<Machine>, path: &Path, mode: Mode) -> io::Result<SimStream> {
        self.open(path, mode, false).map(SimStream::new)
    }

    pub(super) fn open_direct(self: &Rc<Machine>, path: &Path, mode: Mode, durable: bool) -> io::Result<SimFile> {
        self.open(path, mode, durable)
    }

    fn open(self: &Rc<Machine>, path: &Path, mode: Mode, durable: bool) -> io::Result<SimFile> {
        self.step(Op::Open, 0, 0)?;
        let create = matches!(mode, Mode::Create | Mode::CreateDirect | Mode::Ensure);
        let mut disk = self.disk.borrow_mut();
        if create && self.faults.borrow().full && disk.find(path).is_err() {
            return Err(self.injected(libc::ENOSPC));
        }
        let handle = disk.open(path, create, matches!(mode, Mode::Create | Mode::CreateDirect), durable)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(SimFile::new(self, handle, name))
    }

    pub(super) fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step(Op::Open, 1, 0)?;
        self.disk.borrow_mut().create_folder(path);
        Ok(())
    }

    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(Op::SyncFolder, 0, 0)?;
        if self.draw(|random| Faults::happens(self.faults.borrow().sync_error, random)) {
            return Err(self.injected(libc::EIO));
        }
        self.disk.borrow_mut().sync_folder(path)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Op::Rename, 0, 0)?;
        self.disk.borrow_mut().rename(from, to)
    }

    pub(super) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(Op::Unlink, 0, 0)?;
        self.disk.borrow_mut().unlink(path)
    }

    pub(super) fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Op::Link, 0, 0)?;
        self.disk.borrow_mut().link(from, to)
    }

    pub(super) fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.step(Op::List, 0, 0)?;
        let mut names = self.disk.borrow_mut().names(path)?;
        self.draw(|random| random.shuffle(&mut names));
        Ok(names)
    }
}
