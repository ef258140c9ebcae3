//! Wakes executors that sleep although they should not.
//!
//! Seen here with glommio 0.9.0: an executor sleeps in its main ring while the timer of its latency ring has long
//! expired, and wakes only with the next event from outside (reproduced by opening engines in a loop, about once in
//! twenty; a debugger that attaches ends it). Each executor therefore says by when it will be awake again; one thread
//! per process looks, and sends a message to those that are late.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the thread looks.
const PERIOD: Duration = Duration::from_millis(5);
/// How late an executor may be: it may be busy, or wait for its core.
const GRACE: Duration = Duration::from_millis(2);

/// By when an executor wants to be awake again.
#[derive(Debug)]
pub(super) struct Beat {
    /// Microseconds since [`epoch`].
    due_us: AtomicU64,
    wake: async_channel::Sender<()>,
}

impl Beat {
    /// Registers an executor; it is watched until the beat is dropped. The executor reads the receiver.
    pub fn start() -> (Arc<Beat>, async_channel::Receiver<()>) {
        let (wake, woken) = async_channel::bounded(1);
        let beat = Arc::new(Beat { due_us: AtomicU64::new(u64::MAX), wake });
        let mut watched = watched().lock().unwrap_or_else(PoisonError::into_inner);
        watched.beats.push(Arc::downgrade(&beat));
        if !watched.running {
            watched.running = true;
            std::thread::spawn(watch);
        }
        (beat, woken)
    }

    /// The executor will be awake again after `nap` at the latest.
    pub fn expect_within(&self, nap: Duration) {
        self.due_us.store((epoch().elapsed() + nap).as_micros() as u64, Ordering::Relaxed);
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

/// Looks until nobody is left to be watched.
fn watch() {
    loop {
        std::thread::sleep(PERIOD);
        let late_us = epoch().elapsed().saturating_sub(GRACE).as_micros() as u64;
        let mut watched = watched().lock().unwrap_or_else(PoisonError::into_inner);
        watched.beats.retain(|beat| {
            let Some(beat) = beat.upgrade() else {
                return false;
            };
            if beat.due_us.load(Ordering::Relaxed) < late_us {
                // A message that still waits will wake it as well as another one.
                let _ = beat.wake.try_send(());
            }
            true
        });
        if watched.beats.is_empty() {
            watched.running = false;
            return;
        }
    }
}
