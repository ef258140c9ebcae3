//! Wakes executors that sleep although they should not.
//!
//! Seen here with glommio 0.9.0 and reproduced by opening engines in a loop: when an executor's preemption timer expires
//! between its arming and the first look at the queues (the thread was displaced for that long), the executor takes the
//! queues for empty and sleeps, with work to do and perhaps with no timer armed. A message from another thread does not
//! help: a task that is runnable already is not announced again. What always ends the sleep is a signal, since the wait
//! returns with EINTR. So each executor says by when it will be awake again, and one thread per process sends SIGURG to
//! those that are late. SIGURG is ignored by default and nobody else's business here; a handler that does nothing makes
//! it interrupt the wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the thread looks while an executor is busy. While all are idle it looks when the first is due: an idle
/// process is woken a few times a second and not two hundred.
const PERIOD: Duration = Duration::from_millis(5);
/// How late an executor may be: it may be busy, or wait for its core.
const GRACE: Duration = Duration::from_millis(2);

/// By when an executor wants to be awake again.
#[derive(Debug)]
pub(super) struct Beat {
    thread: libc::pid_t,
    /// Microseconds since [`epoch`].
    due_us: AtomicU64,
}

impl Beat {
    /// Registers the executor of the calling thread, to be awake within `nap`. It is watched until the beat is dropped.
    pub fn start(nap: Duration) -> Arc<Beat> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install_handler);
        // SAFETY: the call has no preconditions.
        let thread = unsafe { libc::gettid() };
        let beat = Arc::new(Beat { thread, due_us: AtomicU64::new(0) });
        beat.expect_within(nap);
        let mut watched = watched().lock().unwrap_or_else(PoisonError::into_inner);
        watched.beats.push(Arc::downgrade(&beat));
        if !watched.running {
            watched.running = true;
            std::thread::spawn(watch);
        }
        beat
    }

    /// The executor will be awake again after `nap` at the latest.
    pub fn expect_within(&self, nap: Duration) {
        self.due_us.store((epoch().elapsed() + nap).as_micros() as u64, Ordering::Relaxed);
        if nap < PERIOD
            && RESTS.load(Ordering::Relaxed)
            && RESTS.swap(false, Ordering::Relaxed)
            && let Some(thread) = THREAD.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        {
            thread.unpark();
        }
    }
}

/// Gives SIGURG a handler unless the process has one already.
fn install_handler() {
    extern "C" fn ignore(_signal: libc::c_int) {}
    // SAFETY: all zeros is a valid `sigaction`: default disposition, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with no new action the call only writes the present one to `action`.
    let status = unsafe { libc::sigaction(libc::SIGURG, std::ptr::null(), &raw mut action) };
    if status == 0 && action.sa_sigaction == libc::SIG_DFL {
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the handler does nothing, so it may run at any time; no SA_RESTART, so that waits return.
        unsafe { libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut()) };
    }
}

#[derive(Default)]
struct Watched {
    beats: Vec<Weak<Beat>>,
    running: bool,
}

fn watched() -> &'static Mutex<Watched> {
    static WATCHED: OnceLock<Mutex<Watched>> = OnceLock::new();
    WATCHED.get_or_init(Mutex::default)
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Whether the watching thread sleeps for longer than [`PERIOD`], and that thread.
static RESTS: AtomicBool = AtomicBool::new(false);
static THREAD: Mutex<Option<std::thread::Thread>> = Mutex::new(None);

/// How long to sleep, given when the first executor is due.
fn rest(first_due_us: u64) {
    let until_due = Duration::from_micros(first_due_us).saturating_sub(epoch().elapsed()) + GRACE;
    if until_due <= PERIOD {
        return std::thread::sleep(PERIOD);
    }
    RESTS.store(true, Ordering::Relaxed);
    // An executor that became busy meanwhile ends this early, or at the latest its old due time does.
    std::thread::park_timeout(until_due);
    RESTS.store(false, Ordering::Relaxed);
}

/// Looks until nobody is left to be watched.
fn watch() {
    *THREAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    // SAFETY: the call has no preconditions.
    let process = unsafe { libc::getpid() };
    let mut first_due_us = 0;
    loop {
        rest(first_due_us);
        first_due_us = u64::MAX;
        let late_us = epoch().elapsed().saturating_sub(GRACE).as_micros() as u64;
        let mut watched = watched().lock().unwrap_or_else(PoisonError::into_inner);
        watched.beats.retain(|beat| {
            let Some(beat) = beat.upgrade() else {
                return false;
            };
            let due_us = beat.due_us.load(Ordering::Relaxed);
            first_due_us = first_due_us.min(due_us);
            if due_us < late_us {
                // SAFETY: a signal to a thread of this process; the beat lives, so its thread does.
                unsafe { libc::syscall(libc::SYS_tgkill, process, beat.thread, libc::SIGURG) };
            }
            true
        });
        if watched.beats.is_empty() {
            watched.running = false;
            return;
        }
    }
}
