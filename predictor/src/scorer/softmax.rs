//! From logits to scores: their softmax, times the accesses expected of the whole partition, in slices.

use crate::features::{LANES, Lanes};
use crate::gru::math::exp;
use crate::window::checked_share;

/// Logits beyond this differ by more than f32 can say after the softmax.
const LOGIT_MAX: f32 = 40.0;

/// Scores of the last complete pass, and the one under way.
#[derive(Clone, Debug)]
pub(super) struct Softmax {
    working: Vec<f32>,
    scores: Vec<f32>,
    largest: f32,
    sum: f32,
    /// Visits done, 0..=2 * segments: exponentials first, then the scale.
    cursor: usize,
}

impl Softmax {
    pub(super) fn new(segments: usize) -> Softmax {
        Softmax {
            working: vec![0.0; segments],
            scores: vec![0.0; segments],
            largest: -LOGIT_MAX,
            sum: 0.0,
            cursor: 2 * segments,
        }
    }

    /// A new pass; its logits are put next.
    pub(super) fn begin(&mut self) {
        self.largest = -LOGIT_MAX;
        self.sum = 0.0;
        self.cursor = 0;
    }

    /// Takes in the logits of the segments from `first` on.
    #[inline]
    pub(super) fn put(&mut self, first: usize, logits: &Lanes) {
        let end = self.working.len().min(first + LANES);
        for (slot, logit) in self.working[first..end].iter_mut().zip(logits) {
            // f32::clamp would pass a NaN on
            *slot = if logit.is_nan() { -LOGIT_MAX } else { logit.clamp(-LOGIT_MAX, LOGIT_MAX) };
            self.largest = self.largest.max(*slot);
        }
    }

    /// Works on at most `budget` segments; `accesses` are expected of all together. True when the pass is complete.
    pub(super) fn step(&mut self, budget: usize, accesses: f32) -> bool {
        let segments = self.working.len();
        let was_done = self.is_done();
        let mut left = budget;
        if self.cursor < segments {
            let end = segments.min(self.cursor.saturating_add(left));
            let largest = self.largest;
            let slots = &mut self.working[self.cursor..end];
            slots.iter_mut().for_each(|slot| *slot = exp(*slot - largest));
            self.sum += slots.iter().sum::<f32>();
            left -= end - self.cursor;
            self.cursor = end;
        }
        if self.cursor >= segments {
            // one segment has e^0, so the sum is at least 1 unless there is none
            let scale = accesses / self.sum.max(1.0);
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
