//! Simple co-access: what has followed the segments that are active now.

use std::ops::Range;

use super::{HORIZON_WINDOWS, Scorer};
use crate::features::{CoAccess, LANES, Lanes};
use crate::simd::{self, for_each_level};
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
            chain: CoAccess::new(segments, &[1]),
            average: vec![0.0; segments],
            accesses: 0.0,
            accesses_average: 0.0,
            scores: vec![0.0; segments],
            working: vec![0.0; segments],
            cursor: 2 * segments,
        }
    }
}

for_each_level! {
    fn take_in_at(level, markov: &mut Markov, range: Range<usize>) = take_in_on
}

#[inline(always)]
fn take_in_on<const FUSED: bool>(markov: &mut Markov, range: Range<usize>) {
    let per_access = if markov.accesses > 0.0 { 1.0 / markov.accesses } else { 0.0 };
    for first in range.clone().step_by(LANES) {
        let end = range.end.min(first + LANES);
        let mut shares = Lanes::ZERO;
        let columns = markov.counts[first..end].iter().zip(&mut markov.average[first..end]);
        for ((counts, average), share) in columns.zip(&mut shares) {
            let count = counts.accesses() as f32;
            *share = count * per_access;
            *average += ALPHA * (count - *average);
        }
        markov.chain.offer::<FUSED>(first / LANES, &shares);
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

    /// As [`Scorer::step`]; segments are taken in by whole tiles.
    fn step(&mut self, budget: usize) -> bool {
        let segments = self.counts.len();
        let mut left = budget.min(2 * segments);
        if self.cursor < segments && left > 0 {
            let end = segments.min((self.cursor + left).next_multiple_of(LANES));
            take_in_at(simd::level(), self, self.cursor..end);
            left = left.saturating_sub(end - self.cursor);
            self.cursor = end;
            if end == segments {
                self.chain.finish();
            }
        }
        if self.cursor >= segments {
            let first = self.cursor - segments;
            let range = first..segments.min(first + left);
            self.cursor += range.len();
            let expected = self.chain.expected(0).skip(first).zip(&self.average[range.clone()]);
            for (slot, (expected, average)) in self.working[range.clone()].iter_mut().zip(expected) {
                let mixed = CHAIN * expected * self.accesses_average + (1.0 - CHAIN) * average;
                *slot = mixed * HORIZON_WINDOWS as f32;
            }
            if self.cursor == 2 * segments && !range.is_empty() {
                std::mem::swap(&mut self.working, &mut self.scores);
            }
        }
        self.cursor == 2 * segments
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
