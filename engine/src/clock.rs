//! Hybrid logical clock of a host.
//!
//! `INV-HLC`: timestamps handed out by one clock strictly rise, also when the wall clock steps back.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::Hlc;

/// Milliseconds since the Unix epoch by the wall clock; 0 if the clock stands before it.
#[must_use]
pub fn wall_ms() -> u64 {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = crate::io::sim::current() {
        return machine.wall_ms();
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Time since some moment before the first call; never goes back.
pub(crate) fn monotonic() -> Duration {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = crate::io::sim::current() {
        return machine.now();
    }
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Processor time that the calling thread has used; nothing in the simulation, whose hosts share a thread.
pub(crate) fn thread_cpu() -> Duration {
    #[cfg(any(test, feature = "sim"))]
    if crate::io::sim::current().is_some() {
        return Duration::ZERO;
    }
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and `used` is a timespec to write to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut used) };
    if failed == 0 { Duration::new(used.tv_sec as u64, used.tv_nsec as u32) } else { Duration::ZERO }
}

/// The clock of one shard.
#[derive(Debug, Default)]
pub struct HlcClock {
    last: Cell<Hlc>,
}

impl HlcClock {
    /// The next timestamp, given the wall clock in milliseconds since the Unix epoch.
    pub fn tick(&self, wall_ms: u64) -> Hlc {
        let next = Hlc::from_wall_ms(wall_ms).max(Hlc(self.last.get().0 + 1));
        self.last.set(next);
        next
    }

    /// The largest timestamp given out or seen.
    #[must_use]
    pub fn last(&self) -> Hlc {
        self.last.get()
    }

    /// Makes every later timestamp larger than `seen` (a record that came from another host).
    pub fn observe(&self, seen: Hlc) {
        self.last.set(self.last.get().max(seen));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tick_wall_clock_steps_back_still_rises() {
        let clock = HlcClock::default();
        let first = clock.tick(1_000);
        let second = clock.tick(900);
        assert!(second > first);
        assert_eq!(second.wall_ms(), 1_000);
    }

    #[test]
    fn observe_later_timestamp_is_passed() {
        let clock = HlcClock::default();
        clock.observe(Hlc::from_wall_ms(5_000));
        assert!(clock.tick(1) > Hlc::from_wall_ms(5_000));
    }
}
