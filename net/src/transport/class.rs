//! The scheduling class of a plane's threads, and the floor below which an idle-class plane is lifted.
//!
//! The kernel runs a thread of class idle only in what others leave (its weight is 3 against 1024), which is what bulk
//! copying should get, until a busy machine leaves nothing: then connections would die of silence, and copies of waiting.
//! The kernel counts for how long a thread ran and for how long it stood ready while others did
//! (`/proc/self/task/*/schedstat`); a watchdog thread lifts a plane one of whose threads gets too little of what it wants to
//! the normal class until it has caught up, for at most [`LIFT_MS_MAX`] at a time. How much a plane gets done says nothing of
//! that: a copy that yields to requests does little, and must not be lifted for it.
//!
//! Leaving the idle class needs CAP_SYS_NICE or RLIMIT_NICE >= 20 (`LimitNICE=-0` in a systemd unit). Without them the
//! plane stays idle and says so.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadId, set_thread_priority_and_policy, thread_native_id,
    thread_schedule_policy_param,
};
use thread_priority::{ThreadPriority, ThreadSchedulePolicy};

use crate::error::{Error, Result};

/// How long a thread may get too little before the plane is lifted.
const WINDOW_MS: u64 = 100;
/// The longest time in the normal class in one go.
const LIFT_MS_MAX: u64 = 100;
/// A thread that waits longer than this many times what it runs gets too little.
const WAIT_PER_RUN: u64 = 20;
/// One that has waited for less of the window, in per cent, wants next to nothing.
const WAIT_PERCENT_MIN: u64 = 25;
/// What the library maps to niceness 0, the only value that class idle takes (it cannot be given as such).
const NICENESS_0: u8 = 47;
const TICK: Duration = Duration::from_millis(50);

/// What the watchdog is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassChange {
    /// Put the thread into the normal class.
    Lift,
    /// Put it back into the idle class.
    Lower,
}

/// What a thread has had of the cores, in nanoseconds since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// It ran.
    pub ran_ns: u64,
    /// It was ready to run, and did not.
    pub waited_ns: u64,
}

/// Decides when an idle-class thread is lifted. Pure: time and counters are inputs.
#[derive(Debug, Default)]
pub struct FloorGuard {
    /// When the present account began, and what the thread had had by then.
    account: Option<(u64, CpuTimes)>,
    lifted_at_ms: Option<u64>,
}

impl FloorGuard {
    /// Whether the thread is to be in the normal class.
    fn is_lifted(&self) -> bool {
        self.lifted_at_ms.is_some()
    }

    /// Takes the counters at `now_ms` (monotonic) and says what to change.
    pub fn observe(&mut self, now_ms: u64, times: CpuTimes) -> Option<ClassChange> {
        let (since_ms, before) = *self.account.get_or_insert((now_ms, times));
        let elapsed_ms = now_ms.saturating_sub(since_ms);
        let ran_ns = times.ran_ns.saturating_sub(before.ran_ns);
        let waited_ns = times.waited_ns.saturating_sub(before.waited_ns);
        let kept = waited_ns <= ran_ns.saturating_mul(WAIT_PER_RUN)
            || waited_ns <= elapsed_ms * (1_000_000 / 100) * WAIT_PERCENT_MIN;
        if let Some(lifted_at_ms) = self.lifted_at_ms {
            if kept || now_ms.saturating_sub(lifted_at_ms) >= LIFT_MS_MAX {
                self.lifted_at_ms = None;
                // A new account: what a lift could not make good is not carried on, or lifts would follow back to back.
                self.account = Some((now_ms, times));
                return Some(ClassChange::Lower);
            }
            return None;
        }
        if elapsed_ms < WINDOW_MS {
            return None;
        }
        if kept {
            self.account = Some((now_ms, times));
            return None;
        }
        self.lifted_at_ms = Some(now_ms);
        Some(ClassChange::Lift)
    }
}

/// A thread of a plane, and what the kernel says of it.
#[derive(Clone, Debug)]
struct Thread {
    id: ThreadId,
    /// Its folder in /proc.
    folder: PathBuf,
}

impl Thread {
    fn current() -> Thread {
        let folder = PathBuf::from("/proc").join(std::fs::read_link("/proc/thread-self").unwrap_or_default());
        Thread { id: thread_native_id(), folder }
    }

    /// What it has had so far, and whether it is ready to run now; `None` where the kernel does not tell.
    fn look(&self) -> Option<(CpuTimes, bool)> {
        let counters = std::fs::read_to_string(self.folder.join("schedstat")).ok()?;
        let mut counters = counters.split_ascii_whitespace().map(str::parse);
        let times = CpuTimes { ran_ns: counters.next()?.ok()?, waited_ns: counters.next()?.ok()? };
        // "tid (name) state ...", and a name may have spaces and brackets.
        let stat = std::fs::read_to_string(self.folder.join("stat")).ok()?;
        Some((times, stat.rsplit_once(") ")?.1.starts_with('R')))
    }
}

/// What a watchdog knows of one thread.
#[derive(Debug, Default)]
struct Watched {
    guard: FloorGuard,
    /// The last look that showed something new.
    last: Option<(u64, CpuTimes)>,
}

impl Watched {
    /// Whether the thread is to be in the normal class.
    fn observe(&mut self, now_ms: u64, times: CpuTimes, ready: bool) -> bool {
        let since_ms = match self.last {
            Some((since_ms, last)) if ready && last == times => since_ms,
            _ => self.last.insert((now_ms, times)).0,
        };
        // The kernel counts a wait when it ends.
        let waiting_ns = (now_ms - since_ms) * 1_000_000;
        self.guard.observe(now_ms, CpuTimes { waited_ns: times.waited_ns + waiting_ns, ..times });
        self.guard.is_lifted()
    }
}

/// The threads of one idle-class plane that are running.
#[derive(Clone, Debug, Default)]
pub(super) struct IdleThreads(Arc<Mutex<Vec<Thread>>>);

impl IdleThreads {
    /// Puts the calling thread into the idle class. SCHED_IDLE needs no privilege; where it fails, bulk copying competes
    /// with the shards.
    pub fn enter_or_warn(&self) {
        let thread = Thread::current();
        match set_policy(thread.id, NormalThreadSchedulePolicy::Idle) {
            Ok(()) => self.lock().push(thread),
            Err(what) => tracing::warn!(what, "a thread of the bulk plane runs in the normal scheduling class"),
        }
    }

    /// The calling thread ends: from here on its id may be another's.
    pub fn leave(&self) {
        let id = thread_native_id();
        self.lock().retain(|other| other.id != id);
    }

    fn set_policy(&self, policy: NormalThreadSchedulePolicy) -> std::result::Result<(), String> {
        self.lock().iter().try_for_each(|thread| set_policy(thread.id, policy))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Thread>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Watches these threads.
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

fn watch(threads: &IdleThreads, stop: &AtomicBool) {
    let started = Instant::now();
    let mut known: HashMap<PathBuf, Watched> = HashMap::new();
    let mut lifted = false;
    while !stop.load(Ordering::Acquire) {
        std::thread::park_timeout(TICK);
        let now_ms = started.elapsed().as_millis() as u64;
        let present: Vec<Thread> = threads.lock().clone();
        known.retain(|folder, _| present.iter().any(|thread| thread.folder == *folder));
        let (mut told, mut behind) = (present.is_empty(), false);
        for thread in present {
            // It may have ended meanwhile; the plane's own does not.
            if let Some((times, ready)) = thread.look() {
                told = true;
                behind |= known.entry(thread.folder).or_default().observe(now_ms, times, ready);
            }
        }
        if !told {
            tracing::warn!(
                "no /proc/self/task/*/schedstat in this kernel: the bulk plane has no floor on a busy machine"
            );
            return;
        }
        if lifted == behind {
            continue;
        }
        lifted = behind;
        let policy = if lifted { NormalThreadSchedulePolicy::Other } else { NormalThreadSchedulePolicy::Idle };
        if let Err(what) = threads.set_policy(policy) {
            tracing::warn!(lifted, what, "the bulk plane cannot change its scheduling class: it has no floor");
            return;
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

    fn ms(ran: u64, waited: u64) -> CpuTimes {
        CpuTimes { ran_ns: ran * 1_000_000, waited_ns: waited * 1_000_000 }
    }

    #[test]
    fn guard_never_lifts_who_wants_nothing_or_gets_a_twentieth() {
        let mut rests = FloorGuard::default();
        let mut wants_little = FloorGuard::default();
        let mut gets = FloorGuard::default();
        for now in (0..30_000).step_by(50) {
            assert_eq!(rests.observe(now, ms(0, 0)), None);
            assert_eq!(wants_little.observe(now, ms(0, now / 5)), None);
            assert_eq!(gets.observe(now, ms(now / 20, now - now / 20)), None);
        }
    }

    #[test]
    fn guard_starved_lifts_after_the_window_and_lowers_when_caught_up() {
        let mut guard = FloorGuard::default();
        assert_eq!(guard.observe(1_000, ms(7, 3_000)), None);
        assert_eq!(guard.observe(1_099, ms(7, 3_099)), None);
        assert_eq!(guard.observe(1_100, ms(7, 3_100)), Some(ClassChange::Lift));
        assert_eq!(guard.observe(1_120, ms(11, 3_100)), None, "owed 5 ms");
        assert_eq!(guard.observe(1_140, ms(12, 3_100)), Some(ClassChange::Lower));
        assert_eq!(guard.observe(1_160, ms(12, 3_120)), None, "a new account has begun");
    }

    #[test]
    fn guard_lift_is_bounded_and_repeats_while_starved() {
        let mut guard = FloorGuard::default();
        let changes: Vec<_> =
            (0..50).filter_map(|tick| guard.observe(tick * 20, ms(0, tick * 20)).map(|c| (tick * 20, c))).collect();
        use ClassChange::{Lift, Lower};
        assert_eq!(changes[..4], [(100, Lift), (200, Lower), (300, Lift), (400, Lower)]);
    }

    #[test]
    fn thread_that_the_kernel_does_not_run_at_all_is_noticed() {
        let mut watched = Watched::default();
        let lifted: Vec<bool> = (0..6).map(|tick| watched.observe(tick * 50, ms(7, 3), true)).collect();
        assert_eq!(lifted, [false, false, true, true, false, false]);
        let mut rests = Watched::default();
        assert!((0..100).all(|tick| !rests.observe(tick * 50, ms(7, 3), false)), "it is not ready");
    }

    proptest! {
        #[test]
        fn guard_changes_alternate(steps in proptest::collection::vec((0u64..500, 0u64..30, 0u64..500), 1..200)) {
            let mut guard = FloorGuard::default();
            let (mut now, mut times, mut lifted) = (0, (0, 0), false);
            for (passed, ran, waited) in steps {
                now += passed;
                times = (times.0 + ran, times.1 + waited);
                match guard.observe(now, ms(times.0, times.1)) {
                    Some(ClassChange::Lift) => { prop_assert!(!lifted); lifted = true; }
                    Some(ClassChange::Lower) => { prop_assert!(lifted); lifted = false; }
                    None => {}
                }
                prop_assert_eq!(lifted, guard.is_lifted());
            }
        }
    }

    #[test]
    fn kernel_tells_how_long_a_thread_ran_and_that_it_is_ready() {
        let thread = Thread::current();
        let (before, ready) = thread.look().unwrap();
        assert!(ready, "it runs");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        // The counter is brought up to date when the thread gives way, or at the scheduler's tick.
        std::thread::sleep(Duration::from_millis(1));
        let (after, _) = thread.look().unwrap();
        let ns = (after.ran_ns - before.ran_ns) + (after.waited_ns - before.waited_ns);
        assert!((15_000_000..2_000_000_000).contains(&ns), "{ns} ns of 20 ms");
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
