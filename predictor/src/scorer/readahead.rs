//! EWMA with read-ahead: an active segment lends part of its score to the segments that a scan would reach next.

use super::{Ewma, Scorer};
use crate::window::SegmentCounts;

// The best mean of 16 settings over the test parts of eight development traces: chosen in hindsight, to be a hard rival.
// Lending more pushes segments with accesses of their own down (0.5 with wider reach cost 6 points on hplajw_1992).

/// What a segment lends to its right neighbour; scans mostly go up.
const PASS_RIGHT: f32 = 0.4;
/// What a segment lends to its left neighbour: locality without a scan.
const PASS_LEFT: f32 = 0.1;
/// Share of what is lent in the score, so that a segment's own accesses count first.
const LENT: f32 = 0.1;

/// [`Ewma`], where each segment's score is at least what its neighbours lend it.
#[derive(Clone, Debug)]
pub struct EwmaReadahead {
    ewma: Ewma,
    working: Vec<f32>,
    scores: Vec<f32>,
    /// Segments that both sweeps have passed together, 0..=2 * segments.
    cursor: usize,
    carry: f32,
}

impl EwmaReadahead {
    /// The rule over `segments` segments; `alpha` as in [`Ewma::new`].
    #[must_use]
    pub fn new(segments: usize, alpha: f32) -> Self {
        EwmaReadahead {
            ewma: Ewma::new(segments, alpha),
            working: vec![0.0; segments],
            scores: vec![0.0; segments],
            cursor: 2 * segments,
            carry: 0.0,
        }
    }

    fn resize(&mut self, segments: usize) {
        self.working.resize(segments, 0.0);
        self.scores.resize(segments, 0.0);
        self.cursor = 0;
        self.carry = 0.0;
        // scores of the new structure at once: both sweeps over the averages as they are
        while !self.sweep(usize::MAX) {}
    }

    /// Two sweeps over the averages: rightward, then leftward.
    fn sweep(&mut self, budget: usize) -> bool {
        let segments = self.working.len();
        let averages = self.ewma.scores();
        let end = (2 * segments).min(self.cursor.saturating_add(budget));
        for visit in self.cursor..end {
            if visit < segments {
                self.working[visit] = averages[visit] + LENT * self.carry;
                self.carry = averages[visit].max(PASS_RIGHT * self.carry);
            } else {
                let index = 2 * segments - 1 - visit;
                if visit == segments {
                    self.carry = 0.0;
                }
                self.working[index] += LENT * PASS_LEFT * self.carry;
                self.carry = averages[index].max(PASS_LEFT * self.carry);
            }
        }
        let was_open = self.cursor < 2 * segments;
        self.cursor = end;
        if was_open && end == 2 * segments {
            std::mem::swap(&mut self.working, &mut self.scores);
        }
        end == 2 * segments
    }
}

impl Scorer for EwmaReadahead {
    fn name(&self) -> &'static str {
        "ewma-readahead"
    }

    fn begin(&mut self, counts: &[SegmentCounts]) {
        while !self.step(usize::MAX) {}
        self.ewma.begin(counts);
        self.cursor = 0;
        self.carry = 0.0;
    }

    fn step(&mut self, budget: usize) -> bool {
        if !self.ewma.step(0) {
            // the averages have the whole budget of this call; the sweeps begin with the next
            self.ewma.step(budget);
            return false;
        }
        self.sweep(budget)
    }

    fn scores(&self) -> &[f32] {
        &self.scores
    }

    fn split(&mut self, index: usize, left_share: f32) {
        while !self.step(usize::MAX) {}
        self.ewma.split(index, left_share);
        self.resize(self.ewma.scores().len());
    }

    fn merge(&mut self, index: usize) {
        while !self.step(usize::MAX) {}
        self.ewma.merge(index);
        self.resize(self.ewma.scores().len());
    }

    fn reset(&mut self, segments: usize) {
        self.ewma.reset(segments);
        self.resize(segments);
    }
}
