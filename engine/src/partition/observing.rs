//! What a learner in the background is told: each window's counts as they are closed, and every change of the segments
//! in between, in the order in which they came. What it has learned comes back as weights ([`Partition::set_model`]).
//!
//! Off by default; then a window pays one test of a pointer. On, it pays a copy of its counts.
//!
//! - INV-OBS: at most [`OBSERVED_MAX`] entries wait. When more come, all are dropped and observing ends: indices would
//!   mean other segments from then on, so the learner has to begin anew.

use std::sync::Arc;

use antumbra_predictor::model::Model;
use antumbra_predictor::window::SegmentCounts;

use super::Partition;

/// Entries that wait to be taken, at most.
pub const OBSERVED_MAX: usize = 256;

/// One thing that happened; indices are those of the segment layout at that time.
#[derive(Clone, Debug, PartialEq)]
pub enum Observed {
    /// A window was closed.
    Window(Vec<SegmentCounts>),
    /// The segment became two; so much of its history stays left.
    Split {
        /// Index of the segment.
        index: usize,
        /// Share of the left half, 0..=1.
        left_share: f32,
    },
    /// The segment and its right neighbour became one.
    Merge {
        /// Index of the segment.
        index: usize,
    },
}

/// What waits to be taken; none when nobody observes, or came too late.
#[derive(Debug, Default)]
pub(crate) struct Observing(Option<Vec<Observed>>);

impl Observing {
    #[inline]
    pub(crate) fn push(&mut self, what: impl FnOnce() -> Observed) {
        if let Some(waiting) = &mut self.0 {
            if waiting.len() < OBSERVED_MAX {
                waiting.push(what());
            } else {
                self.0 = None;
            }
        }
    }
}

impl Partition {
    /// Starts to observe; the number of segments that the first entries are about.
    pub fn start_observing(&self) -> usize {
        let mut access = self.access.borrow_mut();
        access.observing = Observing(Some(Vec::new()));
        access.windows.len()
    }

    /// Takes what was observed since the last call; none when observing was not started, or has ended because too much
    /// was waiting.
    pub fn take_observed(&self) -> Option<Vec<Observed>> {
        self.access.borrow_mut().observing.0.as_mut().map(std::mem::take)
    }

    /// Ends observing.
    pub fn stop_observing(&self) {
        self.access.borrow_mut().observing = Observing::default();
    }

    /// Lets the partition's learned scorers go on with other weights from the next window on.
    pub fn set_model(&self, model: Arc<Model>) {
        self.access.borrow_mut().next_model = Some(model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_their_order_and_too_many_end_it() {
        let mut observing = Observing::default();
        observing.push(|| panic!("nobody observes"));
        observing.0 = Some(Vec::new());
        observing.push(|| Observed::Merge { index: 0 });
        observing.push(|| Observed::Window(Vec::new()));
        assert_eq!(observing.0.as_deref(), Some(&[Observed::Merge { index: 0 }, Observed::Window(Vec::new())][..]));
        for _ in 2..OBSERVED_MAX {
            observing.push(|| Observed::Window(Vec::new()));
        }
        assert!(observing.0.is_some());
        observing.push(|| Observed::Window(Vec::new()));
        assert!(observing.0.is_none());
    }
}
