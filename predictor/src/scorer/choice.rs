//! A trailing choice: of several scorers the one that has ordered this partition best lately.
//!
//! All candidates take in every window; the judge keeps their trailing share of hits. The choice changes only when
//! another candidate leads by [`HYSTERESIS`], so that two equals do not take turns, or has been far better in the last few
//! windows. `ewma-adaptive` chooses among averages of different alphas, the evaluation's "classic" among the rules. Whoever
//! is chosen, the rest keep learning, so a change takes effect at once.

use super::{Ewma, EwmaReadahead, LastWindow, Lfu, Lru, Markov, Scorer, panel::Panel};
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
    panel: Panel,
    /// The candidate whose scores are given out.
    shown: usize,
    open: bool,
    switches: u64,
}

impl Choice {
    /// Chooses among `candidates` over `segments` segments; the first is followed until enough was judged.
    ///
    /// # Panics
    /// When there is no candidate.
    #[must_use]
    pub fn new(name: &'static str, candidates: Vec<Box<dyn Scorer + Send>>, segments: usize) -> Choice {
        Choice { name, panel: Panel::new(candidates, segments), shown: 0, open: false, switches: 0 }
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
        &*self.panel.candidates[self.shown]
    }

    /// How often the choice has changed.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.switches
    }

    fn choose(&mut self) {
        let judge = &self.panel.judge;
        if judge.judged() < JUDGED_MIN {
            return;
        }
        let (slow, fast) = (judge.means(), judge.recent());
        let lead = |means: &[f64]| {
            let best = (0..means.len()).fold(0, |best, at| if means[at] > means[best] { at } else { best });
            (best, means[best] - means[self.shown])
        };
        let ((best, ahead), (latest, suddenly)) = (lead(slow), lead(fast));
        let chosen = if suddenly > SUDDEN {
            latest
        } else if ahead > HYSTERESIS && fast[best] > fast[self.shown] - 0.5 * SUDDEN {
            best
        } else {
            self.shown
        };
        self.switches += u64::from(chosen != self.shown);
        self.shown = chosen;
        self.panel.last = chosen;
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
        self.finish();
        self.panel.begin(counts);
        self.open = true;
    }

    fn step(&mut self, budget: usize) -> bool {
        if self.open && self.panel.step(budget) {
            self.open = false;
            self.choose();
        }
        !self.open
    }

    fn scores(&self) -> &[f32] {
        self.panel.candidates[self.shown].scores()
    }

    fn split(&mut self, index: usize, left_share: f32) {
        self.finish();
        self.panel.split(index, left_share);
    }

    fn merge(&mut self, index: usize) {
        self.finish();
        self.panel.merge(index);
    }

    fn reset(&mut self, segments: usize) {
        self.panel.reset(segments);
        (self.shown, self.open, self.switches) = (0, false, 0);
    }
}
