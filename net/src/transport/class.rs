//! The scheduling class of a plane's thread, and the floor below which an idle-class plane is lifted.
//!
//! The kernel runs a thread of class idle only in what others leave (its weight is 3 against 1024), which is what bulk
//! copying should get, until a busy machine leaves nothing: then connections would die of silence, and copies of waiting. So
//! the plane's runtime beats, [`BEATS_PER_S`] times a second when it gets the core, and counts the jobs beside it and the bytes
//! of its streams while one waits for more; a watchdog thread lifts a plane that is behind with any of them to the normal class
//! until it has caught up, for at most [`LIFT_MS_MAX`] at a time. Beats alone say little of a transfer: each round trip waits for
//! two such threads, and a socket that nobody empties loses packets.
//!
//! Leaving the idle class needs CAP_SYS_NICE or RLIMIT_NICE >= 20 (`LimitNICE=-0` in a systemd unit). Without them the
//! plane stays idle and says so.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadId, set_thread_priority_and_policy, thread_native_id,
    thread_schedule_policy_param,
};
use thread_priority::{ThreadPriority, ThreadSchedulePolicy};

use crate::error::{Error, Result};

/// How long progress may stay below the floor before the plane is lifted.
const WINDOW_MS: u64 = 200;
/// The longest time in the normal class in one go.
const LIFT_MS_MAX: u64 = 100;
/// What the library maps to niceness 0, the only value that class idle takes (it cannot be given as such).
const NICENESS_0: u8 = 47;
const TICK: Duration = Duration::from_millis(20);

/// Beats of a plane that gets the core.
const BEATS_PER_S: u64 = 50;
/// Beats per second below which it is lifted: a fifth of the time.
const FLOOR_PER_S: u64 = BEATS_PER_S / 5;

/// Jobs beside a plane (a segment is compressed, or checked) per second below which it is lifted.
const FLOOR_JOBS_PER_S: u64 = 5;
/// Bytes per second below which it is lifted while a stream waits to send or to receive.
const FLOOR_BYTES_PER_S: u64 = 8 << 20;

/// What the watchdog is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassChange {
    /// Put the thread into the normal class.
    Lift,
    /// Put it back into the idle class.
    Lower,
}

/// Decides when an idle-class thread is lifted. Pure: time and counters are inputs.
#[derive(Debug)]
pub struct FloorGuard {
    floor_per_s: u64,
    /// When the present account began, and what was done by then; `None` while nothing is queued.
    account: Option<(u64, u64)>,
    lifted_at_ms: Option<u64>,
}

impl FloorGuard {
    /// A guard of a thread that is in the idle class now.
    #[must_use]
    pub fn new(floor_per_s: u64) -> FloorGuard {
        FloorGuard { floor_per_s, account: None, lifted_at_ms: None }
    }

    /// Whether the thread is to be in the normal class.
    fn is_lifted(&self) -> bool {
        self.lifted_at_ms.is_some()
    }

    /// Takes the counters at `now_ms` (monotonic) and says what to change.
    pub fn observe(&mut self, now_ms: u64, queued: u64, done: u64) -> Option<ClassChange> {
        if queued == 0 {
            self.account = None;
            return self.lifted_at_ms.take().map(|_| ClassChange::Lower);
        }
        let (since_ms, done_before) = *self.account.get_or_insert((now_ms, done));
        let elapsed_ms = now_ms.saturating_sub(since_ms);
        let owed = u128::from(self.floor_per_s) * u128::from(elapsed_ms) / 1000;
        let kept = u128::from(done.saturating_sub(done_before)) >= owed;
        if let Some(lifted_at_ms) = self.lifted_at_ms {
            if kept || now_ms.saturating_sub(lifted_at_ms) >= LIFT_MS_MAX {
                self.lifted_at_ms = None;
                // A new account: what a lift could not make good is not carried on, or lifts would follow back to back.
                self.account = Some((now_ms, done));
                return Some(ClassChange::Lower);
            }
            return None;
        }
        if elapsed_ms < WINDOW_MS {
            return None;
        }
        if kept {
            self.account = Some((now_ms, done));
            return None;
        }
        self.lifted_at_ms = Some(now_ms);
        Some(ClassChange::Lift)
    }
}

/// The threads of one idle-class plane that are running.
#[derive(Clone, Debug, Default)]
pub(super) struct IdleThreads {
    ids: Arc<Mutex<Vec<ThreadId>>>,
    beats: Arc<Account>,
    jobs: Arc<Account>,
    transfers: Arc<Account>,
}

/// Work of one kind: how much is wanted now, and how much was done.
#[derive(Debug, Default)]
struct Account {
    open: AtomicU64,
    done: AtomicU64,
}

impl Account {
    fn observed_by(&self, guard: &mut FloorGuard, now_ms: u64) -> bool {
        guard.observe(now_ms, self.open.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
        guard.is_lifted()
    }
}

/// A piece of work of an idle-class plane, from its being wanted to its end.
#[derive(Debug)]
pub(super) struct Open {
    /// `None` on the thread of another plane, whose work is not counted.
    account: Option<Arc<Account>>,
    worth: u64,
}

impl Open {
    /// A job beside the calling thread's plane.
    pub fn job() -> Open {
        Open::begin(1, |threads| &threads.jobs)
    }

    /// Bytes that a stream of the calling thread's plane sends or receives.
    pub fn transfer(bytes: usize) -> Open {
        Open::begin(bytes as u64, |threads| &threads.transfers)
    }

    fn begin(worth: u64, account: impl Fn(&IdleThreads) -> &Arc<Account>) -> Open {
        let account = CURRENT.with_borrow(|threads| threads.as_ref().map(|threads| Arc::clone(account(threads))));
        if let Some(account) = &account {
            account.open.fetch_add(1, Ordering::Relaxed);
        }
        Open { account, worth }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(account) = &self.account {
            account.open.fetch_sub(1, Ordering::Relaxed);
            account.done.fetch_add(self.worth, Ordering::Relaxed);
        }
    }
}

thread_local! {
    /// The idle-class plane that this thread belongs to.
    static CURRENT: RefCell<Option<IdleThreads>> = const { RefCell::new(None) };
}

impl IdleThreads {
    /// Shows the watchdog, for as long as it runs, that the plane's runtime gets the core.
    pub async fn beat(self) {
        self.beats.open.store(1, Ordering::Relaxed);
        let mut ticker = tokio::time::interval(Duration::from_millis(1_000 / BEATS_PER_S));
        loop {
            ticker.tick().await;
            self.beats.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts the calling thread into the idle class. SCHED_IDLE needs no privilege; where it fails, bulk copying competes
    /// with the shards.
    pub fn enter_or_warn(&self) {
        let id = thread_native_id();
        CURRENT.set(Some(self.clone()));
        match set_policy(id, NormalThreadSchedulePolicy::Idle) {
            Ok(()) => self.lock().push(id),
            Err(what) => tracing::warn!(what, "a thread of the bulk plane runs in the normal scheduling class"),
        }
    }

    /// The calling thread ends: from here on its id may be another's.
    pub fn leave(&self) {
        let id = thread_native_id();
        self.lock().retain(|other| *other != id);
    }

    fn set_policy(&self, policy: NormalThreadSchedulePolicy) -> std::result::Result<(), String> {
        self.lock().iter().try_for_each(|id| set_policy(*id, policy))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<ThreadId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watchdog thread of one idle-class plane.
///
/// Must be dropped before the plane's own thread ends: until then its id stays valid.
pub(super) struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches threads whose runtime [beats](IdleThreads::beat).
    pub fn start(name: &str, watched: IdleThreads) -> Result<Watchdog> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("{name}-floor"))
            .spawn(move || watch(&watched, &stopping))
            .map_err(|cause| Error::link(name, cause))?;
        Ok(Watchdog { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the floor watchdog panicked");
            }
        }
    }
}

fn watch(watched: &IdleThreads, stop: &AtomicBool) {
    let started = Instant::now();
    let IdleThreads { beats, jobs, transfers, .. } = watched;
    let mut floors = [(beats, FLOOR_PER_S), (jobs, FLOOR_JOBS_PER_S), (transfers, FLOOR_BYTES_PER_S)]
        .map(|(account, per_s)| (account, FloorGuard::new(per_s)));
    let mut lifted = false;
    let mut refused = false;
    while !stop.load(Ordering::Acquire) && !refused {
        std::thread::park_timeout(TICK);
        let now_ms = started.elapsed().as_millis() as u64;
        // Each is looked at, also behind one that is behind.
        let behind = floors.each_mut().map(|(account, guard)| account.observed_by(guard, now_ms));
        if lifted == behind.contains(&true) {
            continue;
        }
        lifted = !lifted;
        let policy = if lifted { NormalThreadSchedulePolicy::Other } else { NormalThreadSchedulePolicy::Idle };
        if let Err(what) = watched.set_policy(policy) {
            tracing::warn!(lifted, what, "the bulk plane cannot change its scheduling class: it has no floor");
            refused = true;
        }
    }
}

/// Puts the calling thread into the idle class; it has no floor there.
pub(crate) fn enter_idle_class() -> std::result::Result<(), String> {
    set_policy(thread_native_id(), NormalThreadSchedulePolicy::Idle)
}

/// Judged by what the kernel says afterwards: the library also sets the niceness of the *calling* thread, and a
/// refusal of that does not matter here.
fn set_policy(thread: ThreadId, policy: NormalThreadSchedulePolicy) -> std::result::Result<(), String> {
    let wanted = ThreadSchedulePolicy::Normal(policy);
    let niceness = ThreadPriority::Crossplatform(NICENESS_0.try_into()?);
    let outcome = set_thread_priority_and_policy(thread, niceness, wanted);
    match thread_schedule_policy_param(thread) {
        Ok((now, _)) if now == wanted => Ok(()),
        Ok((now, _)) => Err(format!("class is {now:?} after {outcome:?}")),
        Err(e) => Err(format!("{e}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn guard_without_work_never_lifts() {
        let mut guard = FloorGuard::new(10 * MIB);
        assert!((0..500).all(|tick| guard.observe(tick * 20, 0, 0).is_none()));
    }

    #[test]
    fn guard_starved_lifts_after_the_window_and_lowers_when_caught_up() {
        let mut guard = FloorGuard::new(10 * MIB);
        assert_eq!(guard.observe(1_000, MIB, 0), None);
        assert_eq!(guard.observe(1_199, MIB, 0), None);
        assert_eq!(guard.observe(1_200, MIB, 0), Some(ClassChange::Lift));
        assert_eq!(guard.observe(1_220, MIB, MIB), None, "owes 2.2 MiB by now");
        assert_eq!(guard.observe(1_240, MIB, 3 * MIB), Some(ClassChange::Lower));
        assert_eq!(guard.observe(1_260, MIB, 3 * MIB), None, "a new account has begun");
    }

    #[test]
    fn guard_lift_is_bounded_and_repeats_while_starved() {
        let mut guard = FloorGuard::new(1_000 * MIB);
        let changes: Vec<_> =
            (0..50).filter_map(|tick| guard.observe(tick * 20, MIB, 0).map(|c| (tick * 20, c))).collect();
        use ClassChange::{Lift, Lower};
        assert_eq!(changes, [(200, Lift), (300, Lower), (500, Lift), (600, Lower), (800, Lift), (900, Lower)]);
    }

    #[test]
    fn guard_lowers_when_the_work_is_gone() {
        let mut guard = FloorGuard::new(MIB);
        guard.observe(0, 1, 0);
        assert_eq!(guard.observe(200, 1, 0), Some(ClassChange::Lift));
        assert_eq!(guard.observe(210, 0, 1), Some(ClassChange::Lower));
    }

    #[test]
    fn guard_floor_zero_or_kept_never_lifts() {
        let mut zero = FloorGuard::new(0);
        let mut kept = FloorGuard::new(MIB);
        for tick in 0..500 {
            assert_eq!(zero.observe(tick * 20, 1, 0), None);
            assert_eq!(kept.observe(tick * 20, 1, tick * 20 * MIB / 1000 + tick), None);
        }
    }

    proptest! {
        #[test]
        fn guard_changes_alternate(steps in proptest::collection::vec((0u64..500, 0u64..3, 0u64..5_000_000), 1..200)) {
            let mut guard = FloorGuard::new(2_000_000);
            let (mut now, mut done, mut lifted) = (0, 0, false);
            for (ms, queued, moved) in steps {
                now += ms;
                done += moved;
                match guard.observe(now, queued, done) {
                    Some(ClassChange::Lift) => { prop_assert!(!lifted && queued > 0); lifted = true; }
                    Some(ClassChange::Lower) => { prop_assert!(lifted); lifted = false; }
                    None => prop_assert!(!lifted || queued > 0),
                }
            }
        }
    }

    #[test]
    fn jobs_of_an_idle_plane_are_counted_from_any_of_its_threads() {
        drop(Open::job());
        let threads = IdleThreads::default();
        let count = |account: &Account| (account.open.load(Ordering::Relaxed), account.done.load(Ordering::Relaxed));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                threads.enter_or_warn();
                let (job, _bytes) = (Open::job(), Open::transfer(300));
                assert_eq!((count(&threads.jobs), count(&threads.transfers)), ((1, 0), (1, 0)));
                std::thread::spawn(move || drop(job)).join().unwrap();
            });
        });
        assert_eq!(
            (count(&threads.jobs), count(&threads.transfers)),
            ((0, 1), (0, 300)),
            "the first job was of no plane"
        );
    }

    #[test]
    fn thread_enters_the_idle_class() {
        let policy = std::thread::spawn(|| {
            IdleThreads::default().enter_or_warn();
            thread_schedule_policy_param(thread_native_id()).unwrap().0
        });
        assert_eq!(policy.join().unwrap(), ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle));
    }
}
