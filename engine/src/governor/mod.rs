//! Who may use the device when: limits for background I/O, shared by all shards of an engine.
//!
//! glommio's shares divide the processor, not the device. Classes, most important first: log writes and foreground reads
//! are never held up; flush, compaction, then scrub and shadow copies each have a rate, a part of what the device was
//! measured to do. What a class uses is taken from every less important one too, so compaction gives way to flushes, and
//! scrubbing to both. Each class is a virtual clock (GCRA) in one atomic: no lock, no thread, no timer but the waiter's.
//!
//! - `INV-PACE`: in any stretch of time a class is granted at most its rate times that stretch, plus one burst and one
//!   request.

mod probe;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::io::runtime;

pub(crate) use probe::device_rate;

/// What background I/O is for; the more important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoClass {
    /// Memtables into run files: writers wait for it when it falls behind.
    Flush,
    /// Slices into bases.
    Compaction,
    /// Scrub, digests, copies to a shadow.
    Idle,
}

const CLASSES: [IoClass; 3] = [IoClass::Flush, IoClass::Compaction, IoClass::Idle];
/// Share of the device's rate that each class may use, in per cent.
const SHARES_PERCENT: [u64; 3] = [100, 70, 20];
/// How far a class that was silent may be ahead.
const BURST: Duration = Duration::from_millis(20);

/// The limits of one engine.
#[derive(Debug)]
pub struct Governor {
    begin: Instant,
    /// Nanoseconds that a MiB of each class takes; 0 means no limit.
    nanos_per_mib: [AtomicU64; 3],
    /// When each class has used up what was granted, in nanoseconds since `begin`.
    used_up_at: [AtomicU64; 3],
}

impl Governor {
    /// Limits for a device that writes `bytes_per_second`; 0 means no limit.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Governor {
        let governor =
            Governor { begin: Instant::now(), nanos_per_mib: Default::default(), used_up_at: Default::default() };
        governor.set_rate(bytes_per_second);
        governor
    }

    /// Changes the device's rate; 0 means no limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        for (nanos, share) in self.nanos_per_mib.iter().zip(SHARES_PERCENT) {
            let rate = bytes_per_second.saturating_mul(share) / 100;
            nanos.store((1_000_000_000_u64 << 20).checked_div(rate).unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Takes `bytes` of a class's share and waits until they are due.
    ///
    /// Cancel: what was taken stays taken.
    pub async fn take(&self, class: IoClass, bytes: usize) {
        let wait = self.reserve(class, bytes as u64, self.begin.elapsed());
        if !wait.is_zero() {
            runtime::sleep(wait).await;
        }
    }

    /// Takes `bytes` at `now` (since the governor began); returns how long to wait before they are used.
    fn reserve(&self, class: IoClass, bytes: u64, now: Duration) -> Duration {
        let now_ns = now.as_nanos() as u64;
        let mut wait_ns = 0;
        for each in CLASSES.into_iter().filter(|each| *each >= class) {
            let cost_ns = (self.nanos_per_mib[each as usize].load(Ordering::Relaxed) * bytes) >> 20;
            let earliest = now_ns.saturating_sub(BURST.as_nanos() as u64);
            let grant = |used_up: u64| used_up.max(earliest) + cost_ns;
            let before = self.used_up_at[each as usize]
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used_up| Some(grant(used_up)))
                .unwrap_or_else(|used_up| used_up);
            if each == class {
                wait_ns = before.max(earliest).saturating_sub(now_ns);
            }
        }
        Duration::from_nanos(wait_ns)
    }
}

impl Default for Governor {
    /// No limits.
    fn default() -> Governor {
        Governor::new(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Requests one after another for a second; returns the bytes whose wait was over by then.
    fn granted(governor: &Governor, class: IoClass, also: Option<(IoClass, u64)>) -> u64 {
        let mut now = Duration::ZERO;
        let mut bytes = 0;
        while now < Duration::from_secs(1) {
            if let Some((other, other_bytes)) = also {
                governor.reserve(other, other_bytes, now);
            }
            now += governor.reserve(class, MIB / 4, now) + Duration::from_micros(100);
            bytes += MIB / 4;
        }
        bytes
    }

    #[test]
    fn reserve_each_class_gets_its_share_and_no_more() {
        for (class, share) in CLASSES.into_iter().zip(SHARES_PERCENT) {
            let bytes = granted(&Governor::new(400 * MIB), class, None);
            let limit = 400 * MIB * share / 100;
            assert!(
                bytes <= limit + limit * BURST.as_millis() as u64 / 1000 + MIB / 2,
                "{class:?}: {bytes} of {limit}"
            );
            assert!(bytes >= limit * 9 / 10, "{class:?}: {bytes} of {limit}");
        }
    }

    #[test]
    fn reserve_flush_takes_from_compaction_and_not_the_other_way() {
        let alone = granted(&Governor::new(400 * MIB), IoClass::Compaction, None);
        let beside = granted(&Governor::new(400 * MIB), IoClass::Compaction, Some((IoClass::Flush, MIB / 4)));
        assert!(beside * 10 <= alone * 7, "compaction got {beside} beside a flush, {alone} alone");
        let governor = Governor::new(400 * MIB);
        for _ in 0..100 {
            governor.reserve(IoClass::Compaction, MIB, Duration::ZERO);
        }
        assert_eq!(governor.reserve(IoClass::Flush, MIB, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn reserve_without_limit_never_waits() {
        let governor = Governor::default();
        assert!((0..1_000).all(|_| governor.reserve(IoClass::Idle, 64 * MIB, Duration::ZERO).is_zero()));
    }
}
