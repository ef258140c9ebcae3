//! What a thread does when nothing is ready: it looks for answers for a while, then sleeps until the bell rings.

use std::rc::Weak;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, future};

use super::Ring;
use crate::io::{callers, runtime};

/// The longest time that the thread waits for the device without sleeping. To sleep and to be woken costs a thread of glommio more
/// than 100 us of its core, and delays the answer by 40 us.
const SPIN_MAX: Duration = Duration::from_micros(100);
/// The same while somebody waits for the log: a durable write takes the device longer than a read.
const SPIN_MAX_LOG: Duration = Duration::from_micros(400);
/// The longest time without a sleep, however soon answers come: the executor looks at glommio's rings before it sleeps.
const AWAKE_MAX: Duration = Duration::from_micros(500);
/// A thread that looks lets the kernel's workers run, whose work the log's answer may be. When that took longer, another thread
/// computes on this core, and was given a slice of the scheduler's (3 to 5 ms), even if it is of the idle class.
const GIVEN_WAY_MAX: Duration = Duration::from_micros(300);
/// For how long the thread sleeps at once behind that: who is woken comes sooner than who has given way.
const CROWDED: Duration = Duration::from_millis(50);
/// The same for a thread that serves sockets, whose clients pay for each such slice.
const CROWDED_SERVING: Duration = Duration::from_secs(1);
/// Waits in a row that took longer, behind which only one in some is tried.
const VAIN_MAX: u32 = 8;
const VAIN_RETRY: u32 = 64;

/// Waits without sleep, as long as that is worth it.
#[derive(Debug)]
struct Patience {
    /// When the thread last had nothing to do.
    awake_since: Instant,
    /// Since when it waits for the next answer.
    since: Option<Instant>,
    background_turns: u64,
    /// Waits that were in vain since the last one that was not.
    vain: u32,
    /// When giving way last took long.
    crowded_at: Option<Instant>,
}

impl Patience {
    fn new() -> Patience {
        Patience { awake_since: Instant::now(), since: None, background_turns: 0, vain: 0, crowded_at: None }
    }

    /// The thread has work again.
    fn begin(&mut self) {
        self.awake_since = Instant::now();
        self.since = None;
    }

    /// Whether to look for answers once more.
    fn lasts(&mut self, ring: &Ring) -> bool {
        let spin_max = if ring.is_log_awaited() {
            SPIN_MAX_LOG
        } else if ring.urgent_reads.get() > 0 {
            SPIN_MAX
        } else {
            return false;
        };
        if glommio::executor().need_preempt() || self.awake_since.elapsed() >= AWAKE_MAX {
            return false;
        }
        let turns = runtime::background_turns();
        if turns != std::mem::replace(&mut self.background_turns, turns) {
            // The core does not stand still meanwhile.
            self.since = None;
            return true;
        }
        match self.since {
            None if self.vain < VAIN_MAX || self.vain.is_multiple_of(VAIN_RETRY) => {
                self.since = Some(Instant::now());
                return true;
            }
            None => self.vain = self.vain.wrapping_add(1),
            Some(since) if since.elapsed() < spin_max => {
                if !ring.is_writing() || self.gives_way() {
                    return true;
                }
            }
            Some(_) => self.vain = self.vain.wrapping_add(1),
        }
        self.since = None;
        false
    }

    /// Lets the kernel's workers run, unless others would.
    fn gives_way(&mut self) -> bool {
        let rest = if callers::has_sockets() { CROWDED_SERVING } else { CROWDED };
        if self.crowded_at.is_some_and(|crowded| crowded.elapsed() < rest) {
            return false;
        }
        let before = Instant::now();
        std::thread::yield_now();
        let now = Instant::now();
        self.crowded_at = (now - before > GIVEN_WAY_MAX).then_some(now);
        true
    }

    fn pays(&mut self) {
        self.since = None;
        self.vain = 0;
    }
}

/// Runs behind all tasks that are ready: hands over what they have asked for, looks for answers, in between serves whoever wants
/// the thread, and arms the bell before it sleeps.
pub(super) async fn idle(ring: Weak<Ring>) {
    let mut patience = Patience::new();
    loop {
        let due = std::future::poll_fn(|context| match ring.upgrade() {
            Some(ring) if !ring.is_due.replace(false) => {
                ring.idler.replace(Some(context.waker().clone()));
                Poll::Pending
            }
            ring => Poll::Ready(ring.is_some()),
        });
        if !due.await {
            return;
        }
        patience.begin();
        while let Some(ring) = ring.upgrade() {
            if ring.waiting() > 0 {
                ring.turn();
            } else if ring.take_answers() {
                patience.pays();
            } else if patience.lasts(&ring) {
                if ring.look() {
                    patience.pays();
                } else if callers::are_waiting() {
                    drop(ring);
                    callers::serve().await;
                    continue;
                }
            } else {
                ring.arm();
                if !ring.take_answers() {
                    break;
                }
            }
            drop(ring);
            future::yield_now().await;
        }
    }
}

pub(super) async fn answer_bell(ring: Weak<Ring>, mut bell: glommio::net::UnixStream) {
    let mut strokes = [0; 64];
    // The end is that of the ring.
    while bell.read(&mut strokes).await.is_ok_and(|strokes| strokes > 0) {
        let Some(ring) = ring.upgrade() else {
            return;
        };
        ring.is_armed.set(false);
        ring.take_answers();
        ring.make_due();
    }
}
