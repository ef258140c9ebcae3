//! In which order segments are copied.

use std::str::FromStr;

use antumbra_engine::partition::SegmentSummary;
use antumbra_engine::types::{SegmentId, ValidationToken};

/// Where the order comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Expected accesses, per byte, by the GRU and the rules that guard it.
    #[default]
    Auto,
    /// The same by the GRU alone.
    Gru,
    /// The same by the moving average.
    Ewma,
    /// Ascending by key.
    Key,
    /// By a hash of the segment.
    Random,
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Order, String> {
        match text {
            "auto" => Ok(Order::Auto),
            "gru" => Ok(Order::Gru),
            "ewma" => Ok(Order::Ewma),
            "key" => Ok(Order::Key),
            "random" => Ok(Order::Random),
            other => Err(format!("unknown order '{other}': auto, gru, ewma, key or random")),
        }
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Order::Auto => "auto",
            Order::Gru => "gru",
            Order::Ewma => "ewma",
            Order::Key => "key",
            Order::Random => "random",
        })
    }
}

/// Accesses that are expected of a segment, by the scorer of `order`; by the guard where that has none.
#[must_use]
pub fn expected(order: Order, segment: &SegmentSummary) -> f32 {
    match order {
        Order::Auto | Order::Key | Order::Random => segment.auto,
        Order::Gru => segment.gru,
        Order::Ewma => segment.ewma,
    }
}

/// Score of each segment, per byte where the order is by accesses; `index` is its place in key order.
#[must_use]
pub fn score(order: Order, index: usize, segment: &SegmentSummary) -> f64 {
    match order {
        Order::Auto | Order::Gru | Order::Ewma => f64::from(expected(order, segment)) / segment.bytes as f64,
        Order::Key => -(index as f64),
        Order::Random => {
            let hash = xxhash_rust::xxh3::xxh3_64(&segment.id.0.to_le_bytes());
            (hash >> 11) as f64
        }
    }
}

/// A segment of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanEntry {
    /// Its present version.
    pub token: ValidationToken,
    /// Higher goes first.
    pub score: f64,
    /// Bytes to copy, about.
    pub bytes: u64,
}

/// The segments in copy order.
#[must_use]
pub fn plan(order: Order, segments: &[SegmentSummary], wanted: impl Fn(SegmentId) -> bool) -> Vec<PlanEntry> {
    let mut entries: Vec<PlanEntry> = segments
        .iter()
        .enumerate()
        .filter(|(_, segment)| wanted(segment.id))
        .map(|(index, segment)| PlanEntry {
            token: segment.token,
            score: score(order, index, segment),
            bytes: segment.bytes,
        })
        .collect();
    // Among equals the one that is held soonest; then in key order.
    entries.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.bytes.cmp(&b.bytes)));
    entries
}

#[cfg(test)]
mod tests {
    use antumbra_engine::types::Lsn;
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn summary(id: u64, bytes: u64, gru: f32, ewma: f32) -> SegmentSummary {
        let token = ValidationToken { segment: SegmentId(id), version: Lsn(0), checksum: 0 };
        SegmentSummary {
            id: SegmentId(id),
            start: Bytes::new(),
            bytes,
            token,
            resident_bytes: 0,
            is_missing: false,
            accesses: 0,
            auto: gru + ewma,
            gru,
            ewma,
        }
    }

    #[test]
    fn plan_by_score_per_byte() {
        let segments = [summary(1, 100, 5.0, 1.0), summary(2, 10, 1.0, 9.0), summary(3, 1000, 5.0, 0.0)];
        let ids =
            |order| plan(order, &segments, |_| true).iter().map(|entry| entry.token.segment.0).collect::<Vec<_>>();
        assert_eq!(ids(Order::Auto), [2, 1, 3]);
        assert_eq!(ids(Order::Ewma), [2, 1, 3]);
        assert_eq!(ids(Order::Gru), [2, 1, 3]);
        assert_eq!(ids(Order::Key), [1, 2, 3]);
    }

    #[test]
    fn plan_of_equals_takes_the_nearest_done_first() {
        let segments = [summary(1, 100, 0.0, 0.0), summary(2, 30, 0.0, 0.0), summary(3, 30, 0.0, 0.0)];
        let ids: Vec<u64> = plan(Order::Gru, &segments, |_| true).iter().map(|entry| entry.token.segment.0).collect();
        assert_eq!(ids, [2, 3, 1]);
    }

    proptest! {
        #[test]
        fn plan_holds_every_wanted_segment_once(scores: Vec<(f32, f32)>, order in 0..5usize) {
            let order = [Order::Auto, Order::Gru, Order::Ewma, Order::Key, Order::Random][order];
            let segments: Vec<_> =
                scores.iter().enumerate().map(|(id, (gru, ewma))| summary(id as u64, 1 + id as u64, *gru, *ewma)).collect();
            let mut ids: Vec<u64> =
                plan(order, &segments, |id| id.0 % 2 == 0).iter().map(|entry| entry.token.segment.0).collect();
            ids.sort_unstable();
            prop_assert_eq!(ids, (0..scores.len() as u64).step_by(2).collect::<Vec<_>>());
        }
    }
}
