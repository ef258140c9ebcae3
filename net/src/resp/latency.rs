//! How long requests took, in buckets whose bounds grow by about half: what one shard counts and all read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets; the last one has no upper bound.
pub const BUCKETS: usize = 48;

/// Upper bound of a bucket in nanoseconds: 1024, 1536, 2048, 3072, ...
#[must_use]
pub fn bound_ns(bucket: usize) -> u64 {
    let octave = 1024_u64 << (bucket / 2);
    octave + if bucket % 2 == 1 { octave / 2 } else { 0 }
}

fn bucket_of(ns: u64) -> usize {
    if ns <= 1024 {
        return 0;
    }
    // of the last value that is still below: bounds belong to their buckets
    let below = ns - 1;
    let octave = below.ilog2() as usize;
    let upper_half = (below >> (octave - 1)) & 1;
    ((octave - 10) * 2 + upper_half as usize + 1).min(BUCKETS - 1)
}

/// A histogram with one writer.
#[derive(Debug)]
pub(crate) struct Latency {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }
}

impl Latency {
    /// Counts one request.
    pub fn note(&self, took: Duration) {
        let ns = took.as_nanos() as u64;
        let bucket = &self.buckets[bucket_of(ns)];
        bucket.store(bucket.load(Relaxed) + 1, Relaxed);
        self.sum_ns.store(self.sum_ns.load(Relaxed).wrapping_add(ns), Relaxed);
    }

    pub(super) fn add_to(&self, counts: &mut LatencyCounts) {
        for (count, bucket) in counts.buckets.iter_mut().zip(&self.buckets) {
            *count += bucket.load(Relaxed);
        }
        counts.sum_ns += self.sum_ns.load(Relaxed);
    }
}

/// What the histograms of all shards have counted since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyCounts {
    /// Requests by bucket; see [`bound_ns`].
    pub buckets: [u64; BUCKETS],
    /// Nanoseconds of all together.
    pub sum_ns: u64,
}

impl Default for LatencyCounts {
    fn default() -> LatencyCounts {
        LatencyCounts { buckets: [0; BUCKETS], sum_ns: 0 }
    }
}

impl LatencyCounts {
    /// What has been added since `before`.
    #[must_use]
    pub fn since(&self, before: &LatencyCounts) -> LatencyCounts {
        let mut buckets = self.buckets;
        for (count, earlier) in buckets.iter_mut().zip(&before.buckets) {
            *count = count.saturating_sub(*earlier);
        }
        LatencyCounts { buckets, sum_ns: self.sum_ns.saturating_sub(before.sum_ns) }
    }

    /// Requests.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bound in microseconds of the bucket that the quantile (0..=1) falls in; `None` without requests.
    #[must_use]
    pub fn quantile_us(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        let rank = ((count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|bucket| {
            seen += bucket;
            seen >= rank
        });
        bucket.filter(|_| count > 0).map(|bucket| bound_ns(bucket) as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_those_of_the_requests() {
        let latency = Latency::default();
        for us in 1..=1000 {
            latency.note(Duration::from_micros(us));
        }
        let mut counts = LatencyCounts::default();
        latency.add_to(&mut counts);
        assert_eq!((counts.count(), counts.sum_ns), (1000, 500_500_000));
        assert_eq!(counts.quantile_us(0.5), Some(524.288));
        assert_eq!(counts.quantile_us(1.0), Some(1048.576));
        assert_eq!(counts.since(&counts).quantile_us(0.99), None);
    }

    proptest! {
        #[test]
        fn value_lies_within_its_bucket(ns in prop_oneof![0..5000u64, 0..u64::MAX]) {
            let bucket = bucket_of(ns);
            prop_assert!(bucket == BUCKETS - 1 || ns <= bound_ns(bucket));
            prop_assert!(bucket == 0 || ns > bound_ns(bucket - 1));
        }
    }
}
