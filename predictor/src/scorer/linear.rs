//! The learned weights without a memory of their own: one product with the features, softmax, times the expected load.
//!
//! What the GRU has to beat to be worth its hidden state.

use super::{Scorer, softmax::Softmax};
use crate::features::{FEATURES, Features, LANES, Lanes};
use crate::model::Model;
use crate::window::SegmentCounts;

/// A linear model over the features of each segment, trained with the GRU's own loss.
#[derive(Clone, Debug)]
pub struct Linear {
    weights: [f32; FEATURES],
    horizon: f32,
    features: Features,
    softmax: Softmax,
    /// Segments whose logit is formed; none while the features are.
    cursor: Option<usize>,
}

impl Linear {
    /// A scorer of `segments` segments with the linear weights of `model`.
    #[must_use]
    pub fn new(model: &Model, segments: usize) -> Linear {
        let mut weights = [0.0; FEATURES];
        weights.copy_from_slice(&model.weights().linear);
        Linear {
            weights,
            horizon: model.horizon() as f32,
            features: Features::new(segments),
            softmax: Softmax::new(segments),
            cursor: Some(segments),
        }
    }

    /// Forms logits from `first` on; the segments done.
    fn logits(&mut self, first: usize, budget: usize) -> usize {
        let segments = self.features.len();
        let end = segments.min(first.saturating_add((budget / LANES).max(1).saturating_mul(LANES)));
        let mut x: [Lanes; FEATURES] = [Lanes::ZERO; FEATURES];
        for tile in (first..end).step_by(LANES) {
            self.features.tile(tile, &mut x);
            let mut logits = Lanes::ZERO;
            for (weight, row) in self.weights.iter().zip(&x) {
                logits.iter_mut().zip(row).for_each(|(logit, x)| *logit += weight * x);
            }
            self.softmax.put(tile, &logits);
        }
        end - first
    }

    fn finish(&mut self) {
        while !self.step(usize::MAX) {}
    }
}

impl Scorer for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn begin(&mut self, counts: &[SegmentCounts]) {
        self.finish();
        self.features.begin(counts);
        self.cursor = None;
    }

    /// As [`Scorer::step`], in whole tiles of [`LANES`] segments; each call does one kind of work.
    fn step(&mut self, budget: usize) -> bool {
        if budget == 0 {
            return self.cursor == Some(self.features.len()) && self.softmax.is_done();
        }
        match self.cursor {
            None => {
                if self.features.step(budget) {
                    self.cursor = Some(0);
                    self.softmax.begin();
                }
                false
            }
            Some(first) if first < self.features.len() => {
                self.cursor = Some(first + self.logits(first, budget));
                false
            }
            Some(_) => self.softmax.step(budget, self.features.accesses_per_window() * self.horizon),
        }
    }

    fn scores(&self) -> &[f32] {
        self.softmax.scores()
    }

    fn split(&mut self, index: usize, left_share: f32) {
        self.finish();
        self.features.split(index, left_share);
        self.softmax.split(index, left_share);
        self.cursor = Some(self.features.len());
    }

    fn merge(&mut self, index: usize) {
        self.finish();
        self.features.merge(index);
        self.softmax.merge(index);
        self.cursor = Some(self.features.len());
    }

    fn reset(&mut self, segments: usize) {
        self.features = Features::new(segments);
        self.softmax = Softmax::new(segments);
        self.cursor = Some(segments);
    }

    fn set_model(&mut self, model: &Model) {
        self.finish();
        self.weights.copy_from_slice(&model.weights().linear);
        self.horizon = model.horizon() as f32;
    }
}
