//! From logits to scores: their softmax, times the accesses expected of the whole partition, in slices.

use crate::features::{LANES, Lanes};
use crate::gru::math::exp;
use crate::simd::{self, for_each_level};
use crate::window::checked_share;

/// Logits beyond this differ by more than f32 can say after the softmax.
const LOGIT_MAX: f32 = 40.0;

/// Scores of the last complete pass, and the one under way.
#[derive(Clone, Debug)]
pub(super) struct Softmax {
    working: Vec<f32>,
    scores: Vec<f32>,
    /// Largest logit and sum of exponentials, by lane: slices do not change them.
    largest: Lanes,
    sums: Lanes,
    /// Visits done, 0..=2 * segments: exponentials first, then the scale.
    cursor: usize,
}

impl Softmax {
    pub(super) fn new(segments: usize) -> Softmax {
        Softmax {
            working: vec![0.0; segments],
            scores: vec![0.0; segments],
            largest: Lanes::of(-LOGIT_MAX),
            sums: Lanes::ZERO,
            cursor: 2 * segments,
        }
    }

    /// A new pass; its logits are put next.
    pub(super) fn begin(&mut self) {
        self.largest = Lanes::of(-LOGIT_MAX);
        self.sums = Lanes::ZERO;
        self.cursor = 0;
    }

    /// Takes in the logits of the segments from `first` on.
    #[inline]
    pub(super) fn put(&mut self, first: usize, logits: &Lanes) {
        let end = self.working.len().min(first + LANES);
        let mut limited = Lanes::ZERO;
        for lane in 0..LANES {
            // f32::clamp would pass a NaN on; lanes past the last segment say nothing
            let says = lane < end - first && !logits[lane].is_nan();
            limited[lane] = if says { logits[lane].clamp(-LOGIT_MAX, LOGIT_MAX) } else { -LOGIT_MAX };
            self.largest[lane] = if limited[lane] > self.largest[lane] { limited[lane] } else { self.largest[lane] };
        }
        self.working[first..end].copy_from_slice(&limited[..end - first]);
    }

    /// Works on at most `budget` segments, rounded up to whole tiles; `accesses` are expected of all together. True when
    /// the pass is complete.
    pub(super) fn step(&mut self, budget: usize, accesses: f32) -> bool {
        let segments = self.working.len();
        let was_done = self.is_done();
        let mut left = budget;
        if self.cursor < segments && left > 0 {
            let end = segments.min((self.cursor + left.min(segments)).next_multiple_of(LANES));
            exponentials_at(simd::level(), self, self.cursor..end);
            left = left.saturating_sub(end - self.cursor);
            self.cursor = end;
        }
        if self.cursor >= segments {
            // one segment has e^0, so the sum is at least 1 unless there is none
            let scale = accesses / self.sums.iter().sum::<f32>().max(1.0);
            let first = self.cursor - segments;
            let end = segments.min(first.saturating_add(left));
            self.working[first..end].iter_mut().for_each(|slot| *slot *= scale);
            self.cursor = segments + end;
        }
        if self.is_done() && !was_done {
            std::mem::swap(&mut self.working, &mut self.scores);
        }
        self.is_done()
    }

    pub(super) fn is_done(&self) -> bool {
        self.cursor == 2 * self.working.len()
    }

    pub(super) fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The scores are divided; no pass may be under way.
    pub(super) fn split(&mut self, index: usize, left_share: f32) {
        let share = checked_share(left_share);
        for column in [&mut self.scores, &mut self.working] {
            let whole = column[index];
            column[index] = whole * share;
            column.insert(index + 1, whole - whole * share);
        }
        self.cursor = 2 * self.working.len();
    }

    /// The scores are added; no pass may be under way.
    pub(super) fn merge(&mut self, index: usize) {
        for column in [&mut self.scores, &mut self.working] {
            let right = column.remove(index + 1);
            column[index] += right;
        }
        self.cursor = 2 * self.working.len();
    }
}

for_each_level! {
    fn exponentials_at(level, softmax: &mut Softmax, range: std::ops::Range<usize>) = exponentials_on
}

/// Logits to their exponentials; the range begins with a tile.
#[inline(always)]
fn exponentials_on<const FUSED: bool>(softmax: &mut Softmax, range: std::ops::Range<usize>) {
    let largest = softmax.largest.iter().copied().fold(-LOGIT_MAX, f32::max);
    for tile in softmax.working[range].chunks_mut(LANES) {
        for (slot, sum) in tile.iter_mut().zip(&mut softmax.sums) {
            *slot = exp::<FUSED>(*slot - largest);
            *sum += *slot;
        }
    }
}
