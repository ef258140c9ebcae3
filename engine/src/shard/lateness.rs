//! How late requests of a shard run, and how long its log takes: what a copy, a neighbour or the machine costs them.
//!
//! A probe in the requests' own queue sleeps for a moment, again and again, and notes how much longer that took: its wake-up
//! waits for what a request's first step waits for. It runs while somebody asks, so that a shard without a move pays nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use crate::clock;
use crate::io::runtime;

use super::Shard;

/// Time between two looks. Each wakes the thread, which costs it as much as a request does, so there are few.
const INTERVAL: Duration = Duration::from_millis(2);
/// What was seen for longer than this ago is forgotten.
const WINDOW: Duration = Duration::from_millis(600);
/// The probe ends when nobody has asked for this long.
const INTEREST: Duration = Duration::from_secs(2);
/// Fewer looks say nothing of a ninety-ninth percentile.
const LOOKS_MIN: usize = 50;
/// Where fewer requests were served since the last call, there is nobody who could have waited.
const REQUESTS_MIN: u64 = 10;

/// Times of the last [`WINDOW`], each with when it was noted.
#[derive(Debug, Default)]
struct Recent(VecDeque<(Duration, Duration)>);

impl Recent {
    fn note(&mut self, now: Duration, time: Duration) {
        self.forget(now);
        self.0.push_back((now, time));
    }

    /// Drops what is too old.
    fn forget(&mut self, now: Duration) {
        while self.0.front().is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            self.0.pop_front();
        }
    }

    /// The ninety-ninth percentile of the last [`WINDOW`]; `None` of fewer than `least`.
    fn p99(&mut self, now: Duration, least: usize) -> Option<Duration> {
        self.forget(now);
        let mut times: Vec<Duration> = self.0.iter().map(|(_, time)| *time).collect();
        let place = times.len() * 99 / 100;
        (times.len() >= least.max(1)).then(|| *times.select_nth_unstable(place).1)
    }
}

/// The probe of one shard.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    looks: RefCell<Recent>,
    log_writes: RefCell<Recent>,
    asked_at: Cell<Duration>,
    /// Requests that had been served at the last call.
    served: Cell<u64>,
    running: Cell<bool>,
}

impl Shard {
    /// What requests of this shard waited for lately, beside their own work: the ninety-ninth percentile of how late one ran,
    /// and that of the log's writes. Zero where no requests were served since the last call: a shadow's own log is no
    /// request's concern. `None` until enough was seen.
    pub fn foreground_p99(self: &Rc<Self>) -> Option<Duration> {
        let now = clock::monotonic();
        self.lateness.asked_at.set(now);
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
        let mut log_writes = self.lateness.log_writes.borrow_mut();
        for time in self.wal.take_write_times() {
            log_writes.note(now, time);
        }
        let late = self.lateness.looks.borrow_mut().p99(now, LOOKS_MIN)?;
        let served = self.partitions.borrow().values().map(|partition| partition.requests_served()).sum::<u64>();
        let since = served.saturating_sub(self.lateness.served.replace(served));
        let waited = late + log_writes.p99(now, 1).unwrap_or_default();
        Some(if since < REQUESTS_MIN { Duration::ZERO } else { waited })
    }
}

impl Lateness {
    /// Notes a look that began and ended at these times; false if nobody is interested any more.
    fn note(&self, begun: Duration, ended: Duration) -> bool {
        self.looks.borrow_mut().note(ended, ended.saturating_sub(begun).saturating_sub(INTERVAL));
        ended.saturating_sub(self.asked_at.get()) < INTEREST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let mut recent = Recent::default();
        assert_eq!(recent.p99(Duration::ZERO, 0), None);
        (0..200).for_each(|ms| recent.note(ms * MS, if ms == 7 { 9 * MS } else { MS }));
        assert_eq!(recent.p99(200 * MS, 200), Some(MS), "one of two hundred");
        recent.note(200 * MS, 8 * MS);
        recent.note(200 * MS, 7 * MS);
        assert_eq!(recent.p99(200 * MS, 200), Some(7 * MS), "two of two hundred and two are above");
        assert_eq!(recent.p99(800 * MS, 2), Some(8 * MS), "only the last two are left");
        assert_eq!(recent.p99(800 * MS, 3), None);
        assert_eq!(recent.p99(801 * MS, 0), None);
    }
}
