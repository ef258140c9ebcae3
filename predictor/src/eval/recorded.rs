//! Scores kept at every window, and played back as a scorer.

use std::sync::Arc;

use super::Windowed;
use crate::scorer::Scorer;
use crate::window::SegmentCounts;

/// Scores of one scorer at the first windows of a trace.
pub(crate) struct Recorded {
    segments: usize,
    /// By window, then segment.
    scores: Vec<f32>,
}

impl Recorded {
    /// Lets `scorer` see the first `until` windows; it appends its scores. Cost: 4 bytes a window and segment.
    pub(crate) fn of(
        windowed: &Windowed,
        until: usize,
        mut scorer: impl FnMut(&[SegmentCounts], &mut Vec<f32>),
    ) -> Recorded {
        let segments = windowed.segments();
        let mut scores = Vec::with_capacity(until * segments);
        (0..until).for_each(|window| scorer(windowed.window(window), &mut scores));
        Recorded { segments, scores }
    }

    /// Scores after `window`.
    pub(crate) fn window(&self, window: usize) -> &[f32] {
        &self.scores[window * self.segments..(window + 1) * self.segments]
    }
}

/// Gives recorded scores out again, window by window; what it observes it does not look at.
pub(crate) struct Replay {
    name: &'static str,
    recorded: Arc<Recorded>,
    nothing: Vec<f32>,
    windows: usize,
}

impl Replay {
    pub(crate) fn new(name: &'static str, recorded: &Arc<Recorded>) -> Replay {
        let nothing = vec![0.0; recorded.segments];
        Replay { name, recorded: Arc::clone(recorded), nothing, windows: 0 }
    }
}

impl Scorer for Replay {
    fn name(&self) -> &'static str {
        self.name
    }

    fn begin(&mut self, _: &[SegmentCounts]) {
        self.windows += 1;
    }

    fn step(&mut self, _: usize) -> bool {
        true
    }

    fn scores(&self) -> &[f32] {
        self.windows.checked_sub(1).map_or(&self.nothing, |window| self.recorded.window(window))
    }

    fn split(&mut self, _: usize, _: f32) {
        panic!("a trace's segments never change");
    }

    fn merge(&mut self, _: usize) {
        panic!("a trace's segments never change");
    }

    fn reset(&mut self, _: usize) {
        self.windows = 0;
    }
}
