//! How late requests of a shard run, and how long its log takes: what a copy, a neighbour or the machine costs them.
//!
//! A probe in the requests' own queue sleeps for a moment, again and again, and notes how much longer that took: its wake-up
//! waits for what a request's first step waits for. It runs while somebody asks, so that a shard without a move pays nothing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::clock;
use crate::io::runtime;

use super::Shard;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_micros(500);
/// The probe ends when nobody has asked for this long.
const INTEREST: Duration = Duration::from_secs(2);
/// Looks that are kept until somebody asks.
const SAMPLES_MAX: usize = 4096;
/// Fewer say nothing of a ninety-ninth percentile.
const SAMPLES_MIN: usize = 50;
/// Where fewer requests were served since the last call, there is nobody who could have waited.
const REQUESTS_MIN: u64 = 10;

/// The probe of one shard.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    samples: RefCell<Vec<Duration>>,
    asked_at: Cell<Duration>,
    /// Requests that had been served at the last call.
    served: Cell<u64>,
    running: Cell<bool>,
}

impl Shard {
    /// What requests of this shard waited for since the last call, beside their own work: the ninety-ninth percentile of
    /// how late one ran, and that of the log's writes. Zero where no requests were served: a shadow's own log is no request's
    /// concern. `None` if the last call was too short a time ago, or this is the first.
    pub fn foreground_p99(self: &Rc<Self>) -> Option<Duration> {
        self.lateness.asked_at.set(clock::monotonic());
        if !self.lateness.running.replace(true) {
            // Those of long ago say nothing.
            drop(self.wal.take_write_times());
            let shard = Rc::downgrade(self);
            runtime::spawn_detached(async move {
                loop {
                    let begun = clock::monotonic();
                    runtime::sleep(INTERVAL).await;
                    let Some(shard) = shard.upgrade() else {
                        return;
                    };
                    if !shard.lateness.note(begun, clock::monotonic()) || shard.closing.get() {
                        return shard.lateness.running.set(false);
                    }
                }
            });
        }
        let mut samples = self.lateness.samples.take();
        if samples.len() < SAMPLES_MIN {
            *self.lateness.samples.borrow_mut() = samples;
            return None;
        }
        let waited = p99(&mut samples) + p99(&mut self.wal.take_write_times());
        let served = self.partitions.borrow().values().map(|partition| partition.requests_served()).sum::<u64>();
        let since = served.saturating_sub(self.lateness.served.replace(served));
        Some(if since < REQUESTS_MIN { Duration::ZERO } else { waited })
    }
}

fn p99(samples: &mut [Duration]) -> Duration {
    match samples.len() * 99 / 100 {
        _ if samples.is_empty() => Duration::ZERO,
        place => *samples.select_nth_unstable(place).1,
    }
}

impl Lateness {
    /// Notes a look that began and ended at these times; false if nobody is interested any more.
    fn note(&self, begun: Duration, ended: Duration) -> bool {
        let mut samples = self.samples.borrow_mut();
        if samples.len() < SAMPLES_MAX {
            samples.push(ended.saturating_sub(begun).saturating_sub(INTERVAL));
        }
        let interested = ended.saturating_sub(self.asked_at.get()) < INTEREST;
        if !interested {
            samples.clear();
        }
        interested
    }
}
