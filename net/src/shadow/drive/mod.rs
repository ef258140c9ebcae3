//! Carries out what the machines decide.

mod attempt;
mod bulk;
mod copying;
mod fetching;
mod foreground;
mod opening;
mod receiving;
mod returning;
mod sending;
mod streams;
mod switching;

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use antumbra_engine::types::{HostId, PartitionId, SegmentId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::error::Error;
use crate::events::Topic;
use crate::host::Host;
use crate::time;

use super::accounts::{ForegroundAccounts, MoveReport};
use super::plan::Order;
use super::source::{Limits, State};

pub(crate) use bulk::Pace;
pub(crate) use fetching::{fetch_missing, serve_fetch};
pub(crate) use receiving::{TargetInbox, serve_bulk, serve_control, serve_mirror};
pub(crate) use returning::{return_changes, serve_return};

/// When the switchover begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// As soon as the shadow is ready.
    #[default]
    Auto,
    /// When told so by [`MoveHandle::switch`]; until then the shadow is a warm standby.
    Manual,
    /// As `Manual`, and the standby is kept: when it is lost, another attempt begins.
    Standby {
        /// Acknowledgements wait for it, so that its promotion by force loses none of what was acknowledged by then.
        synchronous: bool,
    },
}

/// What requests may see while a copy runs; the rate follows, down to a floor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetPoint {
    /// A tenth more than when the copy began.
    #[default]
    Quiet,
    /// This, as the 99th percentile of how late requests run and of the log's writes, together.
    At(Duration),
    /// Whatever: only the cap counts.
    Off,
}

impl FromStr for SetPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<SetPoint, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(SetPoint::Quiet),
            ("off", _) => Ok(SetPoint::Off),
            (_, Ok(us @ 1..)) => Ok(SetPoint::At(Duration::from_micros(us))),
            _ => Err(format!("unknown set-point '{text}': a number of microseconds, auto or off")),
        }
    }
}

/// Options of a move.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoveOptions {
    /// Where the copy order comes from.
    pub order: Order,
    /// Cap on bytes per second on the wire; `None` = none.
    pub throttle_bytes_s: Option<u64>,
    /// Below the cap, what requests may see.
    pub set_point: SetPoint,
    /// When to switch.
    pub policy: Policy,
    /// Share of the expected accesses (0..1) that the target has to hold for the switchover; it fetches the rest
    /// afterwards. `None` = all.
    pub early: Option<f64>,
    /// Limits of the protocol.
    pub limits: Limits,
    /// A controller has decided on it, and goes on to.
    pub automatic: bool,
}

/// How far a move is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MoveProgress {
    /// State of the source's machine.
    pub state: String,
    /// Segments in all.
    pub segments: usize,
    /// Segments that the target holds.
    pub held: usize,
    /// Bytes sent so far.
    pub bytes_on_wire: u64,
    /// How requests fare, and what that does to the rate.
    pub foreground: ForegroundAccounts,
    /// Why it failed, if it has.
    pub failed: Option<String>,
}

#[derive(Debug)]
struct Shared {
    destination: HostId,
    automatic: bool,
    waits_for_word: bool,
    state: Mutex<State>,
    progress: Mutex<MoveProgress>,
    held: Mutex<HashSet<SegmentId>>,
    report: Mutex<Option<MoveReport>>,
    allow: Notify,
    ended: Notify,
    told_to_end: AtomicBool,
    end: Notify,
}

/// A move under way or done. Clones share it.
#[derive(Clone, Debug)]
pub struct MoveHandle {
    shared: Arc<Shared>,
}

impl MoveHandle {
    fn new(destination: HostId, options: &MoveOptions) -> MoveHandle {
        let shared = Shared {
            destination,
            automatic: options.automatic,
            waits_for_word: !matches!(options.policy, Policy::Auto),
            state: Mutex::new(State::Opening),
            progress: Mutex::default(),
            held: Mutex::default(),
            report: Mutex::default(),
            allow: Notify::new(),
            ended: Notify::new(),
            told_to_end: AtomicBool::new(false),
            end: Notify::new(),
        };
        MoveHandle { shared: Arc::new(shared) }
    }

    /// Where to.
    #[must_use]
    pub fn destination(&self) -> HostId {
        self.shared.destination
    }

    /// Whether a controller has begun it.
    #[must_use]
    pub fn is_automatic(&self) -> bool {
        self.shared.automatic
    }

    /// Whether a shadow that is ready waits to be told to switch.
    #[must_use]
    pub fn waits_for_word(&self) -> bool {
        self.shared.waits_for_word
    }

    /// State of the source's machine.
    #[must_use]
    pub fn state(&self) -> State {
        *lock(&self.shared.state)
    }

    /// The segments that the shadow holds.
    #[must_use]
    pub fn held(&self) -> HashSet<SegmentId> {
        lock(&self.shared.held).clone()
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> MoveProgress {
        lock(&self.shared.progress).clone()
    }

    /// Lets the switchover begin as soon as the shadow is ready.
    pub fn switch(&self) {
        self.shared.allow.notify_one();
    }

    /// Gives it up, unless it has come as far as the commit: the source serves as before, a standby is kept no more.
    pub fn give_up(&self) {
        self.shared.told_to_end.store(true, Ordering::Relaxed);
        self.shared.end.notify_one();
    }

    fn is_told_to_end(&self) -> bool {
        self.shared.told_to_end.load(Ordering::Relaxed)
    }

    /// Waits for `pause`, or until [`MoveHandle::give_up`].
    async fn told_to_end_within(&self, pause: Duration) -> bool {
        let _ = time::timeout(pause, self.shared.end.notified()).await;
        self.is_told_to_end()
    }

    /// Whether it has ended, well or not.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        lock(&self.shared.report).is_some() || lock(&self.shared.progress).failed.is_some()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Error::Aborted`]: the source serves as before.
    pub async fn wait(&self) -> Result<MoveReport, Error> {
        loop {
            let ended = self.shared.ended.notified();
            if let Some(report) = lock(&self.shared.report).clone() {
                return Ok(report);
            }
            if let Some(what) = lock(&self.shared.progress).failed.clone() {
                return Err(Error::Aborted { what });
            }
            ended.await;
        }
    }

    /// The report, once complete.
    #[must_use]
    pub fn report(&self) -> Option<MoveReport> {
        lock(&self.shared.report).clone()
    }

    fn note(&self, change: impl FnOnce(&mut MoveProgress)) {
        change(&mut lock(&self.shared.progress));
    }

    fn note_held(&self, segment: SegmentId) {
        lock(&self.shared.held).insert(segment);
    }

    fn note_state(&self, state: State) {
        *lock(&self.shared.state) = state;
        self.note(|progress| progress.state = format!("{state:?}"));
    }

    fn end(&self, result: Result<MoveReport, Error>) {
        match result {
            Ok(report) => *lock(&self.shared.report) = Some(report),
            Err(cause) => self.note(|progress| progress.failed = Some(cause.to_string())),
        }
        self.shared.ended.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a move on the control plane.
pub(crate) fn start(host: Arc<Host>, partition: PartitionId, destination: HostId, options: MoveOptions) -> MoveHandle {
    let handle = MoveHandle::new(destination, &options);
    let plane = host.control.clone();
    let task = handle.clone();
    let who = if options.automatic { "the controller" } else { "an operator" };
    host.events.note(Topic::Move, Some(partition), format!("{who} begins a move to host {destination}"));
    plane.spawn(async move {
        let result = attempt::run(&host, partition, destination, options, &task).await;
        let text = match &result {
            Ok(report) => report.in_words(destination),
            Err(cause) => format!("the move to host {destination} ended, this host serves as before: {cause}"),
        };
        host.events.note(Topic::Move, Some(partition), text);
        if result.is_ok() && options.automatic {
            host.note_used(partition);
        }
        task.end(result);
    });
    handle
}
