//! Simple co-access: what has followed the segments that are active now.

use super::{HORIZON_WINDOWS, Scorer};
use crate::features::CoAccess;
use crate::window::{SegmentCounts, checked_share};

/// Share of one window in the average that ranks what the chain does not know.
const ALPHA: f32 = 0.15;
/// Weight of the chain's expectation against that average.
const CHAIN: f32 = 0.5;

/// A sparse first-order chain over windows, mixed with a moving average for what it has not seen.
#[derive(Clone, Debug)]
pub struct Markov {
    counts: Vec<SegmentCounts>,
    chain: CoAccess,
    average: Vec<f32>,
    accesses: f32,
    accesses_average: f32,
    scores: Vec<f32>,
    working: Vec<f32>,
    /// Visits done, 0..=2 * segments: first every segment is taken in, then every score is formed.
    cursor: usize,
}

impl Markov {
    /// An empty chain over `segments` segments.
    #[must_use]
    pub fn new(segments: usize) -> Self {
        Markov {
            counts: vec![SegmentCounts::default(); segments],
            chain: CoAccess::new(segments),
            average: vec![0.0; segments],
            accesses: 0.0,
            accesses_average: 0.0,
            scores: vec![0.0; segments],
            working: vec![0.0; segments],
            cursor: 2 * segments,
        }
    }

    fn take_in(&mut self, index: usize) {
        let count = self.counts[index].accesses() as f32;
        let share = if self.accesses > 0.0 { count / self.accesses } else { 0.0 };
        self.chain.offer(index, share);
        self.average[index] += ALPHA * (count - self.average[index]);
    }
}

impl Scorer for Markov {
    fn name(&self) -> &'static str {
        "markov"
    }

    fn begin(&mut self, counts: &[SegmentCounts]) {
        assert_eq!(counts.len(), self.counts.len(), "counts of another structure");
        while !self.step(usize::MAX) {}
        self.counts.copy_from_slice(counts);
        self.accesses = counts.iter().map(SegmentCounts::accesses).sum::<u64>() as f32;
        self.accesses_average += ALPHA * (self.accesses - self.accesses_average);
        self.cursor = 0;
    }

    fn step(&mut self, budget: usize) -> bool {
        let segments = self.counts.len();
        if self.cursor == 2 * segments {
            return true;
        }
        let end = (2 * segments).min(self.cursor.saturating_add(budget));
        for visit in self.cursor..end {
            if visit < segments {
                self.take_in(visit);
                continue;
            }
            if visit == segments {
                self.chain.finish();
            }
            let index = visit - segments;
            let expected = self.chain.expected()[index] * self.accesses_average;
            let mixed = CHAIN * expected + (1.0 - CHAIN) * self.average[index];
            self.working[index] = mixed * HORIZON_WINDOWS as f32;
        }
        self.cursor = end;
        if end == 2 * segments {
            std::mem::swap(&mut self.working, &mut self.scores);
        }
        end == 2 * segments
    }

    fn scores(&self) -> &[f32] {
        &self.scores
    }

    fn split(&mut self, index: usize, left_share: f32) {
        while !self.step(usize::MAX) {}
        let share = checked_share(left_share);
        self.chain.split(index, share);
        self.counts.insert(index, SegmentCounts::default());
        for column in [&mut self.average, &mut self.scores, &mut self.working] {
            let whole = column[index];
            column[index] = whole * share;
            column.insert(index + 1, whole - whole * share);
        }
        self.cursor = 2 * self.counts.len();
    }

    fn merge(&mut self, index: usize) {
        while !self.step(usize::MAX) {}
        self.chain.merge(index);
        self.counts.remove(index + 1);
        for column in [&mut self.average, &mut self.scores, &mut self.working] {
            let right = column.remove(index + 1);
            column[index] += right;
        }
        self.cursor = 2 * self.counts.len();
    }

    fn reset(&mut self, segments: usize) {
        *self = Markov::new(segments);
    }
}
