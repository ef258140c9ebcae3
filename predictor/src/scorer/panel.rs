//! Several scorers that take in the same windows, and a [`Judge`] of them: what [`Choice`](super::Choice) and
//! [`Mixture`](super::Mixture) have in common.

use super::{
    Scorer,
    judge::{Judge, OPEN},
};
use crate::window::SegmentCounts;

/// Candidates, what they were worth lately, and the pass over all of them.
pub(super) struct Panel {
    pub(super) candidates: Vec<Box<dyn Scorer + Send>>,
    pub(super) judge: Judge,
    counts: Vec<SegmentCounts>,
    accesses: Vec<f32>,
    total: f64,
    phase: Phase,
    /// The candidate that works last: until then its scores are those of the last complete pass.
    pub(super) last: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Keeps the last pass's order of the candidate of this number; the slot that it goes to.
    Keep(usize, usize),
    /// Judges the order in this slot by the window just closed.
    Judge(usize),
    /// Hands the window to the candidate of this number.
    Enter(usize),
    /// Lets that candidate work.
    Work(usize),
    Done,
}

impl Panel {
    /// Panics when there is no candidate.
    pub(super) fn new(candidates: Vec<Box<dyn Scorer + Send>>, segments: usize) -> Panel {
        assert!(!candidates.is_empty(), "a choice among nothing");
        Panel {
            judge: Judge::new(candidates.len(), segments),
            candidates,
            counts: vec![SegmentCounts::default(); segments],
            accesses: vec![0.0; segments],
            total: 0.0,
            phase: Phase::Done,
            last: 0,
        }
    }

    /// Segments.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Starts a pass; none may be under way.
    pub(super) fn begin(&mut self, counts: &[SegmentCounts]) {
        assert_eq!(counts.len(), self.counts.len(), "counts of another structure");
        self.counts.copy_from_slice(counts);
        self.total = 0.0;
        for (slot, counts) in self.accesses.iter_mut().zip(counts) {
            *slot = counts.accesses() as f32;
            self.total += f64::from(*slot);
        }
        self.phase = if self.judge.wants_order() { Phase::Keep(0, self.judge.open()) } else { Phase::Judge(0) };
    }

    /// Works on at most `budget` segments; true when the pass is complete. The pieces of the judgement (one candidate's
    /// order, one window's hits) are never cut, they cost a few nanoseconds a segment.
    pub(super) fn step(&mut self, budget: usize) -> bool {
        if budget > 0 && self.phase != Phase::Done {
            self.advance(budget);
            while budget == usize::MAX && self.phase != Phase::Done {
                self.advance(budget);
            }
        }
        self.phase == Phase::Done
    }

    /// The candidate that comes after `at` candidates.
    fn entering(&self, at: usize) -> Phase {
        let next = (at..self.candidates.len()).find(|next| *next != self.last);
        Phase::Enter(next.unwrap_or(self.last))
    }

    /// One piece of work.
    fn advance(&mut self, budget: usize) {
        self.phase = match self.phase {
            Phase::Keep(at, slot) if at < self.candidates.len() => {
                self.judge.keep(slot, at, self.candidates[at].scores());
                Phase::Keep(at + 1, slot)
            }
            Phase::Keep(..) => Phase::Judge(0),
            Phase::Judge(slot) if slot < OPEN => {
                // an order kept in this very pass is judged by this window first, which is the first of its horizon
                self.judge.close_window_of(slot, &self.accesses, self.total);
                Phase::Judge(slot + 1)
            }
            Phase::Judge(_) => {
                self.judge.next_window();
                self.entering(0)
            }
            Phase::Enter(at) => {
                self.candidates[at].begin(&self.counts);
                Phase::Work(at)
            }
            Phase::Work(at) if !self.candidates[at].step(budget) => Phase::Work(at),
            Phase::Work(at) if at == self.last => Phase::Done,
            Phase::Work(at) => self.entering(at + 1),
            Phase::Done => Phase::Done,
        };
    }

    /// As [`Scorer::split`]; no pass may be under way.
    pub(super) fn split(&mut self, index: usize, left_share: f32) {
        self.candidates.iter_mut().for_each(|candidate| candidate.split(index, left_share));
        self.counts.insert(index, SegmentCounts::default());
        self.resized();
    }

    /// As [`Scorer::merge`]; no pass may be under way.
    pub(super) fn merge(&mut self, index: usize) {
        self.candidates.iter_mut().for_each(|candidate| candidate.merge(index));
        self.counts.remove(index + 1);
        self.resized();
    }

    fn resized(&mut self) {
        self.accesses.resize(self.counts.len(), 0.0);
        self.judge.resize(self.counts.len());
    }

    /// As [`Scorer::reset`].
    pub(super) fn reset(&mut self, segments: usize) {
        self.phase = Phase::Done;
        self.last = 0;
        self.candidates.iter_mut().for_each(|candidate| candidate.reset(segments));
        self.counts.clear();
        self.counts.resize(segments, SegmentCounts::default());
        self.accesses.resize(segments, 0.0);
        self.judge.reset(segments);
    }
}
