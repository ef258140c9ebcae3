//! The guard: the mean of several scorers' expectations, weighted by how well each has ordered this partition lately.
//!
//! A choice of one of them would lose on every load where the lead changes hands faster than it can be measured; a mean
//! needs no decision, and is mostly better than the best of its parts (the crate's README has both). Weights are
//! exponential in the trailing share of hits, as in the forecaster of that name (Cesa-Bianchi and Lugosi, "Prediction,
//! Learning, and Games", chapter 2): one point of share behind the best costs a candidate most of its weight.

use super::{Choice, Scorer, panel::Panel};
use crate::features::LANES;
use crate::model::Model;
use crate::window::SegmentCounts;

/// What the weight falls by a unit of trailing share (0..1), as an exponent.
const SHARPNESS: f64 = 200.0;
/// Part of the fast trailing share in what a candidate is judged by; the rest is the slow one.
const FAST_PART: f64 = 0.25;

/// A scorer that mixes its candidates.
pub struct Mixture {
    name: &'static str,
    panel: Panel,
    /// Weight of each candidate; their sum is 1.
    weights: Vec<f64>,
    /// What each candidate's scores are multiplied with: the weights are of shares, so that a candidate that expects
    /// more accesses counts no more.
    factors: Vec<f64>,
    /// What each candidate expects of all segments together.
    sums: Vec<f64>,
    scores: Vec<f32>,
    working: Vec<f32>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Panel,
    /// Sums up the scores of the candidate of this number.
    Sum(usize),
    /// Adds the scores of the candidate of this number.
    Add(usize),
    Done,
}

impl Mixture {
    /// Mixes `candidates` over `segments` segments, evenly until something was judged.
    ///
    /// # Panics
    /// When there is no candidate.
    #[must_use]
    pub fn new(name: &'static str, candidates: Vec<Box<dyn Scorer + Send>>, segments: usize) -> Mixture {
        Mixture {
            name,
            weights: vec![0.0; candidates.len()],
            factors: vec![0.0; candidates.len()],
            sums: vec![0.0; candidates.len()],
            panel: Panel::new(candidates, segments),
            scores: vec![0.0; segments],
            working: vec![0.0; segments],
            phase: Phase::Done,
        }
    }

    /// `auto`: the learned scorers given and the rules. `lru` gives ranks, which have no mean.
    #[must_use]
    pub fn auto(learned: Vec<Box<dyn Scorer + Send>>, segments: usize) -> Mixture {
        let rules = Choice::rules(segments).into_iter().filter(|rule| rule.name() != "lru");
        Mixture::new("auto", learned.into_iter().chain(rules).collect(), segments)
    }

    /// Names and weights (their sum is 1) of the candidates in the last complete pass; zeros before the first.
    pub fn standings(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.panel.candidates.iter().zip(&self.weights).map(|(candidate, weight)| (candidate.name(), *weight))
    }

    /// Scores of the candidate of this name, of its last complete pass or of the one under way; empty if there is none.
    #[must_use]
    pub fn scores_of(&self, name: &str) -> &[f32] {
        self.panel
            .candidates
            .iter()
            .find(|candidate| candidate.name() == name)
            .map_or(&[], |candidate| candidate.scores())
    }

    fn sum_up(&mut self, candidate: usize) {
        // sums side by side: one sum would wait for itself at every segment
        let mut sums = [0.0; LANES];
        for scores in self.panel.candidates[candidate].scores().chunks(LANES) {
            sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += f64::from(*score));
        }
        self.sums[candidate] = sums.iter().sum();
    }

    /// Forms weights and factors; the mean keeps the mean of the candidates' sums.
    fn weigh(&mut self) {
        let (slow, fast) = (self.panel.judge.means(), self.panel.judge.recent());
        for (weight, (slow, fast)) in self.weights.iter_mut().zip(slow.iter().zip(fast)) {
            *weight = (1.0 - FAST_PART) * slow + FAST_PART * fast;
        }
        let best = self.weights.iter().copied().fold(0.0, f64::max);
        self.weights.iter_mut().for_each(|weight| *weight = (SHARPNESS * (*weight - best)).exp());
        let sum: f64 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|weight| *weight /= sum);
        let mut expected = 0.0;
        for ((factor, weight), sum) in self.factors.iter_mut().zip(&self.weights).zip(&self.sums) {
            expected += weight * sum;
            *factor = if *sum > 0.0 { weight / sum } else { 0.0 };
        }
        self.factors.iter_mut().for_each(|factor| *factor *= expected);
        self.working.fill(0.0);
    }

    fn advance(&mut self, budget: usize) {
        self.phase = match self.phase {
            Phase::Panel if !self.panel.step(budget) => Phase::Panel,
            Phase::Panel => Phase::Sum(0),
            Phase::Sum(at) if at < self.weights.len() => {
                self.sum_up(at);
                Phase::Sum(at + 1)
            }
            Phase::Sum(_) => {
                self.weigh();
                Phase::Add(0)
            }
            Phase::Add(at) if at < self.weights.len() => {
                let factor = self.factors[at] as f32;
                let scores = self.panel.candidates[at].scores();
                self.working.iter_mut().zip(scores).for_each(|(sum, score)| *sum += factor * score);
                Phase::Add(at + 1)
            }
            Phase::Add(_) => {
                std::mem::swap(&mut self.working, &mut self.scores);
                Phase::Done
            }
            Phase::Done => Phase::Done,
        };
    }

    fn finish(&mut self) {
        while !self.step(usize::MAX) {}
    }

    /// Scores of the new structure at once.
    fn resized(&mut self) {
        self.working.resize(self.panel.len(), 0.0);
        self.scores.resize(self.panel.len(), 0.0);
        self.phase = Phase::Sum(0);
        self.finish();
    }
}

impl Scorer for Mixture {
    fn name(&self) -> &'static str {
        self.name
    }

    fn begin(&mut self, counts: &[SegmentCounts]) {
        self.finish();
        self.panel.begin(counts);
        self.phase = Phase::Panel;
    }

    /// As [`Scorer::step`]; one candidate's scores are added at once, a fraction of a nanosecond a segment.
    fn step(&mut self, budget: usize) -> bool {
        if budget > 0 && self.phase != Phase::Done {
            self.advance(budget);
            while budget == usize::MAX && self.phase != Phase::Done {
                self.advance(budget);
            }
        }
        self.phase == Phase::Done
    }

    fn scores(&self) -> &[f32] {
        &self.scores
    }

    fn split(&mut self, index: usize, left_share: f32) {
        self.finish();
        self.panel.split(index, left_share);
        self.resized();
    }

    fn merge(&mut self, index: usize) {
        self.finish();
        self.panel.merge(index);
        self.resized();
    }

    fn reset(&mut self, segments: usize) {
        self.panel.reset(segments);
        for column in [&mut self.scores, &mut self.working] {
            column.clear();
            column.resize(segments, 0.0);
        }
        self.phase = Phase::Done;
    }

    fn set_model(&mut self, model: &Model) {
        self.finish();
        self.panel.candidates.iter_mut().for_each(|candidate| candidate.set_model(model));
    }
}
