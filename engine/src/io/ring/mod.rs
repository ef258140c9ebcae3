//! The ring by which a thread reads and writes its direct files.
//!
//! glommio has rings too, but hands requests over and takes answers up only between two turns of its queues, and a turn costs
//! about 25 us of system calls: at depth 64 the device stood still while the answers of one turn were worked on, and a write
//! waited for the turn to end. Here a request is handed over with a few others, or at the latest when all tasks that are ready
//! have run; answers are taken up whenever requests are handed over.
//!
//! When nothing is ready the executor sleeps on glommio's rings. What wakes it then is the *bell*, a pair of sockets: glommio
//! waits at one end, and this ring writes to the other as soon as one more request is done (a timeout that counts completions,
//! linked to a send). It is armed only when all tasks have run, so a busy thread does not pay for it.
//!
//! - `INV-RING`: memory of a request belongs to the ring from the moment it is made until it is done, whoever waits for it.
//! - A request that nobody waits for any more is handed over before its file can be closed, so that its number cannot have
//!   come to mean another file.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use glommio::{Latency, Shares};
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use crate::memory::Pages;

use self::idle::{answer_bell, idle};
use super::runtime;

mod idle;
#[cfg(test)]
mod tests;

/// Requests that can wait to be handed over.
const ENTRIES: u32 = 256;
/// As many are handed over at once.
const BATCH: usize = 8;
/// How long a request waits for others while tasks keep the core.
const WAIT_MAX: Duration = Duration::from_micros(50);
/// Looks for answers between two at everything else that may want the core: about 2 us.
const LOOKS: usize = 64;
/// Number of what belongs to the bell.
const BELL: u64 = u64::MAX;
/// Longer than any process runs.
static NEVER: types::Timespec = types::Timespec::new().sec(1 << 40);
/// What the bell sends.
static STROKE: [u8; 1] = [1];

thread_local! {
    static OF_THREAD: OnceCell<Rc<Ring>> = const { OnceCell::new() };
    static LOG_AWAITED: Cell<usize> = const { Cell::new(0) };
}

/// While there is one, somebody of this thread goes on as soon as the log is written: the thread waits for its writes as it
/// does for reads.
pub(crate) struct LogAwaited(PhantomData<Rc<()>>);

impl LogAwaited {
    pub fn new() -> LogAwaited {
        LOG_AWAITED.set(LOG_AWAITED.get() + 1);
        LogAwaited(PhantomData)
    }
}

impl Drop for LogAwaited {
    fn drop(&mut self) {
        LOG_AWAITED.set(LOG_AWAITED.get() - 1);
    }
}

/// What to do with a file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    Read,
    Write,
}

/// One request: `len` bytes of memory from `start` on, and of the file from `offset` on.
#[derive(Debug)]
pub(super) struct Request {
    pub verb: Verb,
    pub fd: RawFd,
    pub offset: u64,
    pub pages: Pages,
    pub start: usize,
    pub len: usize,
}

/// Makes a request; returns the memory and how many bytes were read or written, which may be fewer than asked for.
///
/// `fd` has to be open until the request is done or dropped.
///
/// Errors: the system's, the memory lost with them.
/// Cancel: the device may do it or not.
pub(super) async fn request(request: Request) -> io::Result<(Pages, usize)> {
    let ring = of_thread()?;
    let Request { verb, fd, offset, mut pages, start, len } = request;
    assert!(start + len <= pages.len(), "INV-RING: a request stays within its memory");
    let (fd, len) = (types::Fd(fd), u32::try_from(len).unwrap_or(u32::MAX));
    loop {
        let memory = pages.as_ptr().wrapping_add(start);
        let entry = match verb {
            Verb::Read => opcode::Read::new(fd, memory, len).offset(offset).build(),
            Verb::Write => opcode::Write::new(fd, memory, len).offset(offset).build(),
        };
        let kind = match verb {
            Verb::Read if runtime::is_in_background() => Kind::BackgroundRead,
            Verb::Read => Kind::UrgentRead,
            Verb::Write if runtime::is_in_background() => Kind::BackgroundWrite,
            Verb::Write => Kind::LogWrite,
        };
        let started = ring.start(entry, pages, kind)?;
        if matches!(verb, Verb::Write) {
            // The log has gathered already what others wait for.
            ring.turn();
        }
        let (again, answer) = started.await;
        match answer {
            Ok(bytes) => return Ok((again, bytes)),
            Err(cause) if matches!(cause.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                pages = again
            }
            Err(cause) => return Err(cause),
        }
    }
}

/// Hands over what has waited long enough. For tasks that keep the core.
pub(super) fn hurry() {
    if_there(|ring| {
        if ring.is_overdue() {
            ring.turn();
        }
    });
}

/// Takes up the answers that there are. For background work, which the ring's own task may be kept waiting by.
pub(super) fn take_up() {
    if_there(|ring| {
        if ring.unanswered.get() > 0 {
            ring.take_answers();
        }
    });
}

fn if_there(work: impl FnOnce(&Ring)) {
    OF_THREAD.with(|ring| {
        if let Some(ring) = ring.get() {
            work(ring);
        }
    });
}

fn of_thread() -> io::Result<Rc<Ring>> {
    OF_THREAD.with(|ring| match ring.get() {
        Some(ring) => Ok(Rc::clone(ring)),
        None => {
            let made = Ring::new()?;
            Ok(Rc::clone(ring.get_or_init(|| made)))
        }
    })
}

#[derive(Debug)]
struct InFlight {
    pages: Pages,
    kind: Kind,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Somebody waits for it to go on.
    UrgentRead,
    BackgroundRead,
    /// Workers of the kernel finish a write, on this very core.
    LogWrite,
    BackgroundWrite,
}

#[derive(Debug)]
enum State {
    /// Nobody has asked for the answer yet.
    Made,
    Awaited(Waker),
    /// Nobody is going to.
    Abandoned,
    /// As the kernel answers: bytes, or the negative of an error's number.
    Done(i32),
}

struct Ring {
    uring: RefCell<IoUring>,
    in_flight: RefCell<Slab<InFlight>>,
    /// Requests without an answer, and how many of them are what.
    unanswered: Cell<usize>,
    urgent_reads: Cell<usize>,
    log_writes: Cell<usize>,
    background_writes: Cell<usize>,
    /// Since when the oldest request waits that the kernel does not have yet.
    since: Cell<Instant>,
    /// Whether there is something to do for the task that runs behind all that are ready.
    is_due: Cell<bool>,
    idler: RefCell<Option<Waker>>,
    bell: UnixStream,
    is_armed: Cell<bool>,
    /// Those who have an answer; kept for its memory.
    answered: RefCell<Vec<Waker>>,
}

impl Ring {
    fn new() -> io::Result<Rc<Ring>> {
        let (near, far) = UnixStream::pair()?;
        let ring = Rc::new(Ring {
            uring: RefCell::new(IoUring::new(ENTRIES)?),
            in_flight: RefCell::default(),
            unanswered: Cell::new(0),
            urgent_reads: Cell::new(0),
            log_writes: Cell::new(0),
            background_writes: Cell::new(0),
            since: Cell::new(Instant::now()),
            is_due: Cell::new(false),
            idler: RefCell::default(),
            bell: near,
            is_armed: Cell::new(false),
            answered: RefCell::default(),
        });
        // SAFETY: the descriptor is open and from here on the stream's alone.
        let far = unsafe { glommio::net::UnixStream::from_raw_fd(far.into_raw_fd()) };
        // Of so little weight that whoever else is ready comes first.
        let queue = glommio::executor().create_task_queue(Shares::Static(1), Latency::NotImportant, "device");
        let idler = glommio::spawn_local_into(idle(Rc::downgrade(&ring)), queue);
        idler.map_err(|cause| io::Error::other(cause.to_string()))?.detach();
        glommio::spawn_local(answer_bell(Rc::downgrade(&ring), far)).detach();
        Ok(ring)
    }

    /// Puts a request in line.
    fn start(self: &Rc<Ring>, entry: squeue::Entry, pages: Pages, kind: Kind) -> io::Result<Awaiting> {
        let is_first = self.waiting() == 0;
        let key = self.in_flight.borrow_mut().insert(InFlight { pages, kind, state: State::Made });
        if let Err(cause) = self.push(&[entry.user_data(key as u64)]) {
            self.in_flight.borrow_mut().remove(key);
            return Err(cause);
        }
        self.count(kind, 1);
        if is_first {
            self.since.set(Instant::now());
            self.make_due();
        }
        if self.waiting() >= BATCH || self.is_overdue() {
            self.turn();
        }
        Ok(Awaiting { ring: Rc::clone(self), key, is_answered: false })
    }

    fn count(&self, kind: Kind, more: isize) {
        let of_kind = match kind {
            Kind::UrgentRead => Some(&self.urgent_reads),
            Kind::BackgroundRead => None,
            Kind::LogWrite => Some(&self.log_writes),
            Kind::BackgroundWrite => Some(&self.background_writes),
        };
        for count in std::iter::once(&self.unanswered).chain(of_kind) {
            count.update(|requests| requests.saturating_add_signed(more));
        }
    }

    fn push(&self, entries: &[squeue::Entry]) -> io::Result<()> {
        let mut uring = self.uring.borrow_mut();
        // SAFETY: what the entries point to is static, or pages that `in_flight` keeps until the kernel has answered.
        while unsafe { uring.submission().push_multiple(entries) }.is_err() {
            uring.submit()?;
        }
        Ok(())
    }

    fn is_writing(&self) -> bool {
        self.log_writes.get() + self.background_writes.get() > 0
    }

    /// Whether somebody goes on as soon as a write that is under way is done.
    fn is_log_awaited(&self) -> bool {
        self.log_writes.get() > 0 && LOG_AWAITED.get() > 0
    }

    /// Requests that the kernel does not have yet.
    fn waiting(&self) -> usize {
        self.uring.borrow_mut().submission().len()
    }

    fn is_overdue(&self) -> bool {
        self.waiting() > 0 && self.since.get().elapsed() >= WAIT_MAX
    }

    fn make_due(&self) {
        self.is_due.set(true);
        if let Some(idler) = self.idler.borrow_mut().take() {
            idler.wake();
        }
    }

    /// Hands requests over and takes answers up.
    fn turn(&self) {
        self.submit();
        self.take_answers();
    }

    fn submit(&self) {
        // What the kernel has no room for now, or was interrupted in, stays in line for the next turn.
        let _ = self.uring.borrow().submit();
        if self.waiting() > 0 {
            self.since.set(Instant::now());
            self.make_due();
        }
    }

    /// Wakes those whose requests are done; true if there are any.
    fn take_answers(&self) -> bool {
        let mut answered = self.answered.take();
        {
            let (mut uring, mut in_flight) = (self.uring.borrow_mut(), self.in_flight.borrow_mut());
            for answer in uring.completion().filter(|answer| answer.user_data() != BELL) {
                let key = answer.user_data() as usize;
                self.count(in_flight[key].kind, -1);
                match std::mem::replace(&mut in_flight[key].state, State::Done(answer.result())) {
                    State::Awaited(waker) => answered.push(waker),
                    State::Made => {}
                    State::Abandoned => drop(in_flight.remove(key)),
                    State::Done(_) => unreachable!("INV-RING: a request is answered once"),
                }
            }
        }
        let is_any = !answered.is_empty();
        answered.drain(..).for_each(Waker::wake);
        self.answered.replace(answered);
        is_any
    }

    /// Looks for answers for a while; false if there are none.
    fn look(&self) -> bool {
        (0..LOOKS).any(|_| {
            std::hint::spin_loop();
            self.take_answers()
        })
    }

    /// Has the bell rung when one more request is done.
    fn arm(&self) {
        if self.is_armed.get() || self.unanswered.get() == 0 {
            return;
        }
        let (stroke, len) = (STROKE.as_ptr(), STROKE.len() as u32);
        let timeout = opcode::Timeout::new(&NEVER).count(1).build().flags(squeue::Flags::IO_LINK).user_data(BELL);
        let send = opcode::Send::new(types::Fd(self.bell.as_raw_fd()), stroke, len).build().user_data(BELL);
        if self.push(&[timeout, send]).is_ok() {
            self.is_armed.set(true);
            // What was done before the bell was armed does not ring it: it is taken up behind it.
            self.submit();
        }
    }
}

impl Drop for Ring {
    /// Waits for what is in flight: its memory goes away behind this. Nobody is left to be woken.
    fn drop(&mut self) {
        let uring = self.uring.get_mut();
        let mut unanswered = self.unanswered.get();
        while unanswered > 0 {
            if uring.submit_and_wait(1).is_err_and(|cause| cause.kind() != io::ErrorKind::Interrupted) {
                // Better to lose memory than to have it overwritten.
                std::mem::forget(self.in_flight.take());
                return;
            }
            unanswered -= uring.completion().filter(|answer| answer.user_data() != BELL).count();
        }
    }
}

struct Awaiting {
    ring: Rc<Ring>,
    key: usize,
    is_answered: bool,
}

impl Future for Awaiting {
    type Output = (Pages, io::Result<usize>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = {
            let mut in_flight = self.ring.in_flight.borrow_mut();
            let request = &mut in_flight[self.key];
            match &mut request.state {
                State::Done(result) => {
                    let result = *result;
                    Some((in_flight.remove(self.key).pages, result))
                }
                State::Awaited(waker) => {
                    waker.clone_from(context.waker());
                    None
                }
                state => {
                    *state = State::Awaited(context.waker().clone());
                    None
                }
            }
        };
        let Some((pages, result)) = answered else {
            return Poll::Pending;
        };
        self.is_answered = true;
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Poll::Ready((pages, result))
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let ring = &self.ring;
        if ring.waiting() > 0 {
            ring.turn();
        }
        let mut in_flight = ring.in_flight.borrow_mut();
        match in_flight[self.key].state {
            State::Done(_) => drop(in_flight.remove(self.key)),
            _ => in_flight[self.key].state = State::Abandoned,
        }
    }
}
