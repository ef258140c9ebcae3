//! The guard: of several scorers the one that has ordered this partition best lately.
//!
//! All candidates take in every window; [`Judge`] keeps their trailing share of hits. The choice changes only when
//! another candidate leads by [`HYSTERESIS`], so that two equals do not take turns, or has been far better in the last few
//! windows. `auto` chooses among the rules and
//! the learned models, `ewma-adaptive` among averages of different alphas, and the evaluation's "classic" among the
//! rules alone. Whoever is chosen, the rest keep learning, so a change takes effect at once.

use super::{
    Ewma, EwmaReadahead, LastWindow, Lfu, Lru, Markov, Scorer,
    judge::{Judge, OPEN},
};
use crate::window::SegmentCounts;

/// Lead in the slow trailing share (0..1) that another candidate needs.
const HYSTERESIS: f64 = 0.002;
/// Lead in the fast trailing share that is enough by itself: the load has changed, and the record is void.
const SUDDEN: f64 = 0.03;
/// Windows judged by before the first change: before that the first candidate (the default) is followed.
const JUDGED_MIN: u64 = 12;
/// Averages that `ewma-adaptive` chooses from, the usual one first.
const ADAPTIVE_ALPHAS: [f32; 6] = [super::EWMA_ALPHA, 0.4, 0.8, 0.05, 0.02, 0.007];

/// A scorer that follows one of its candidates.
pub struct Choice {
    name: &'static str,
    candidates: Vec<Box<dyn Scorer + Send>>,
    judge: Judge,
    counts: Vec<SegmentCounts>,
    accesses: Vec<f32>,
    total: f64,
    /// The candidate whose scores are given out.
    shown: usize,
    /// The candidate whose scores will be given out when the pass is complete.
    chosen: usize,
    phase: Phase,
    switches: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Keeps the last pass's order of the candidate of this number; the slot that it goes to.
    Keep(usize, usize),
    /// Judges the order in this slot by the window just closed.
    Judge(usize),
    /// Hands the window to the candidate of this number.
    Enter(usize),
    /// Lets that candidate work. The one that is shown comes last.
    Work(usize),
    Done,
}

impl Choice {
    /// Chooses among `candidates` over `segments` segments; the first is followed until enough was judged.
    ///
    /// # Panics
    /// When there is no candidate.
    #[must_use]
    pub fn new(name: &'static str, candidates: Vec<Box<dyn Scorer + Send>>, segments: usize) -> Choice {
        assert!(!candidates.is_empty(), "a choice among nothing");
        Choice {
            name,
            judge: Judge::new(candidates.len(), segments),
            candidates,
            counts: vec![SegmentCounts::default(); segments],
            accesses: vec![0.0; segments],
            total: 0.0,
            shown: 0,
            chosen: 0,
            phase: Phase::Done,
            switches: 0,
        }
    }

    /// `ewma` with the alpha that has been best lately.
    #[must_use]
    pub fn ewma_adaptive(segments: usize) -> Choice {
        Choice::new("ewma-adaptive", ADAPTIVE_ALPHAS.map(|alpha| boxed(Ewma::new(segments, alpha))).into(), segments)
    }

    /// The rules without a learned model, `ewma` first.
    #[must_use]
    pub fn rules(segments: usize) -> Vec<Box<dyn Scorer + Send>> {
        vec![
            boxed(Ewma::new(segments, super::EWMA_ALPHA)),
            boxed(EwmaReadahead::new(segments, super::EWMA_ALPHA)),
            boxed(EwmaReadahead::new(segments, 0.5)),
            boxed(EwmaReadahead::new(segments, 0.02)),
            boxed(Markov::new(segments)),
            boxed(Choice::ewma_adaptive(segments)),
            boxed(Lfu::new(segments)),
            boxed(Lru::new(segments)),
            boxed(LastWindow::new(segments)),
        ]
    }

    /// The candidate that is followed at present.
    #[must_use]
    pub fn followed(&self) -> &dyn Scorer {
        &*self.candidates[self.shown]
    }

    /// Names and trailing shares of hits (0..1) of the candidates; zeros before the first verdict.
    pub fn standings(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.candidates.iter().zip(self.judge.means()).map(|(candidate, mean)| (candidate.name(), *mean))
    }

    /// How often the choice has changed.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.switches
    }

    fn choose(&mut self) {
        if self.judge.judged() < JUDGED_MIN {
            return;
        }
        let (slow, fast) = (self.judge.means(), self.judge.recent());
        let lead = |means: &[f64]| {
            let best = (0..means.len()).fold(0, |best, at| if means[at] > means[best] { at } else { best });
            (best, means[best] - means[self.chosen])
        };
        let ((best, ahead), (latest, suddenly)) = (lead(slow), lead(fast));
        let chosen = if suddenly > SUDDEN {
            latest
        } else if ahead > HYSTERESIS && fast[best] > fast[self.chosen] - 0.5 * SUDDEN {
            best
        } else {
            self.chosen
        };
        self.switches += u64::from(chosen != self.chosen);
        self.chosen = chosen;
    }

    /// The candidate that comes after `at` candidates: by number, the one shown last.
    fn entering(&self, at: usize) -> Phase {
        let next = (at..self.candidates.len()).find(|next| *next != self.shown);
        Phase::Enter(next.unwrap_or(self.shown))
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
                self.choose();
                self.entering(0)
            }
            Phase::Enter(at) => {
                self.candidates[at].begin(&self.counts);
                Phase::Work(at)
            }
            Phase::Work(at) if !self.candidates[at].step(budget) => Phase::Work(at),
            Phase::Work(at) if at == self.shown => {
                self.shown = self.chosen;
                Phase::Done
            }
            Phase::Work(at) => self.entering(at + 1),
            Phase::Done => Phase::Done,
        };
    }

    fn finish(&mut self) {
        while !self.step(usize::MAX) {}
    }
}

fn boxed(scorer: impl Scorer + Send + 'static) -> Box<dyn Scorer + Send> {
    Box::new(scorer)
}

impl Scorer for Choice {
    fn name(&self) -> &'static str {
        self.name
    }

    fn begin(&mut self, counts: &[SegmentCounts]) {
        assert_eq!(counts.len(), self.counts.len(), "counts of another structure");
        self.finish();
        self.counts.copy_from_slice(counts);
        self.total = 0.0;
        for (slot, counts) in self.accesses.iter_mut().zip(counts) {
            *slot = counts.accesses() as f32;
            self.total += f64::from(*slot);
        }
        self.phase = if self.judge.wants_order() { Phase::Keep(0, self.judge.open()) } else { Phase::Judge(0) };
    }

    /// As [`Scorer::step`]; the pieces of the judgement (one candidate's order, one window's hits) are never cut, they
    /// cost a few nanoseconds a segment.
    fn step(&mut self, budget: usize) -> bool {
        if self.phase == Phase::Done || budget == 0 {
            return self.phase == Phase::Done;
        }
        self.advance(budget);
        while budget == usize::MAX && self.phase != Phase::Done {
            self.advance(budget);
        }
        self.phase == Phase::Done
    }

    fn scores(&self) -> &[f32] {
        self.candidates[self.shown].scores()
    }

    fn split(&mut self, index: usize, left_share: f32) {
        self.finish();
        self.candidates.iter_mut().for_each(|candidate| candidate.split(index, left_share));
        self.counts.insert(index, SegmentCounts::default());
        self.accesses.resize(self.counts.len(), 0.0);
        self.judge.resize(self.counts.len());
    }

    fn merge(&mut self, index: usize) {
        self.finish();
        self.candidates.iter_mut().for_each(|candidate| candidate.merge(index));
        self.counts.remove(index + 1);
        self.accesses.resize(self.counts.len(), 0.0);
        self.judge.resize(self.counts.len());
    }

    fn reset(&mut self, segments: usize) {
        self.phase = Phase::Done;
        self.candidates.iter_mut().for_each(|candidate| candidate.reset(segments));
        self.counts.clear();
        self.counts.resize(segments, SegmentCounts::default());
        self.accesses.resize(segments, 0.0);
        self.judge.reset(segments);
        (self.shown, self.chosen, self.switches) = (0, 0, 0);
    }
}
