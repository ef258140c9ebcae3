//! What is counted on the data path, and what the predictor makes of it.

use std::sync::Arc;

use antumbra_predictor::scorer::{Gru, Linear, Mixture, Scorer, ScorerKind};
use antumbra_predictor::window::{AccessWindows, SegmentCounts};

use antumbra_predictor::model::Model;

use super::observing::{Observed, Observing};
use super::recording::Recording;

/// Access windows and scorer of one partition. All indices are those of the segment layout.
pub(crate) struct Access {
    pub windows: AccessWindows,
    /// The guard over the GRU, a linear model and the rules.
    scorer: Mixture,
    /// Operations in the window that closed last: reads, writes, bytes.
    last_totals: Totals,
    /// The same of all closed windows.
    sums: Totals,
    windows_closed: u64,
    /// The request log, while somebody records.
    pub recording: Option<Box<Recording>>,
    /// What a learner in the background has not taken yet.
    pub observing: Observing,
    /// Weights that the learned scorers take over with the next window, when no pass is under way.
    pub next_model: Option<Arc<Model>>,
}

/// Sums over one closed window, or over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of keys and values read and written.
    pub bytes: u64,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("segments", &self.windows.len()).finish_non_exhaustive()
    }
}

impl Access {
    pub fn new(model: &Model, segments: usize) -> Access {
        Access {
            windows: AccessWindows::new(segments),
            scorer: Mixture::auto(
                vec![Box::new(Gru::new(model, segments)), Box::new(Linear::new(model, segments))],
                segments,
            ),
            last_totals: Totals::default(),
            sums: Totals::default(),
            windows_closed: 0,
            recording: None,
            observing: Observing::default(),
            next_model: None,
        }
    }

    /// Counts a read of a segment.
    #[inline]
    pub fn record_read(&mut self, index: usize, key: &[u8], bytes: u64) {
        self.windows.record_read(index, bytes);
        if let Some(recording) = &mut self.recording {
            recording.push(key, false, bytes);
        }
    }

    /// Counts a write to a segment.
    #[inline]
    pub fn record_write(&mut self, index: usize, key: &[u8], bytes: u64) {
        self.windows.record_write(index, bytes);
        if let Some(recording) = &mut self.recording {
            recording.push(key, true, bytes);
        }
    }

    /// Closes the open window and hands it to the scorer; [`Access::step`] does their work.
    pub fn close_window(&mut self) {
        let counts: &[SegmentCounts] = self.windows.close();
        let mut totals = Totals::default();
        for count in counts {
            totals.reads += u64::from(count.reads);
            totals.writes += u64::from(count.writes);
            totals.bytes += count.bytes;
        }
        self.observing.push(|| Observed::Window(counts.to_vec()));
        if let Some(model) = self.next_model.take() {
            self.scorer.set_model(&model);
        }
        self.scorer.begin(counts);
        self.last_totals = totals;
        self.sums.reads += totals.reads;
        self.sums.writes += totals.writes;
        self.sums.bytes += totals.bytes;
        self.windows_closed += 1;
    }

    /// Scores up to `budget` segments; true when the pass is complete.
    pub fn step(&mut self, budget: usize) -> bool {
        self.scorer.step(budget)
    }

    /// Expected accesses by segment index, by the guard or by one of its candidates; empty for another.
    pub fn scores(&self, kind: ScorerKind) -> &[f32] {
        match kind {
            ScorerKind::Auto => self.scorer.scores(),
            candidate => self.scorer.scores_of(candidate.as_str()),
        }
    }

    /// Requests counted so far, those of the open window included. Cost: O(segments).
    pub fn requests(&self) -> u64 {
        let open: u64 = self.windows.open().iter().map(SegmentCounts::accesses).sum();
        self.sums.reads + self.sums.writes + open
    }

    /// Sums over the last closed window, over all of them, and how many they are.
    pub fn totals(&self) -> (Totals, Totals, u64) {
        (self.last_totals, self.sums, self.windows_closed)
    }

    /// Segment `index` became two; `left_share` of its history stays left.
    pub fn split(&mut self, index: usize, left_share: f32) {
        self.observing.push(|| Observed::Split { index, left_share });
        self.windows.split(index, left_share);
        self.scorer.split(index, left_share);
    }

    /// Segments `index` and `index + 1` became one.
    pub fn merge(&mut self, index: usize) {
        self.observing.push(|| Observed::Merge { index });
        self.windows.merge(index);
        self.scorer.merge(index);
    }
}
