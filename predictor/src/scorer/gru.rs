//! The learned scorer: features, one GRU step a segment, softmax, times the expected load.
//!
//! The model says how the horizon's accesses divide over the segments; the partition's smoothed load says how many
//! there will be. A pass visits each segment five times (features forward and backward, cell, sum, scale), each visit
//! counted against the budget; the cell's is the dear one. (Features twice, cell, exponential, scale.)

use super::{Scorer, softmax::Softmax};
use crate::features::{FEATURES, Features, LANES, Lanes};
use crate::gru::Cell;
use crate::model::Model;
use crate::window::SegmentCounts;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Features,
    Cell,
    Softmax,
    Done,
}

/// The GRU over all segments of one partition.
///
/// Cost: `4 * hidden` bytes of state a segment, plus features (some 250 bytes); a pass is O(segments * hidden *
/// (hidden + features)) and allocates nothing.
#[derive(Clone, Debug)]
pub struct Gru {
    cell: Cell,
    horizon: f32,
    features: Features,
    /// Hidden state by tiles: `hidden` rows of `LANES` segments each.
    state: Vec<Lanes>,
    softmax: Softmax,
    phase: Phase,
    cursor: usize,
}

impl Gru {
    /// A scorer of `segments` segments with the weights of `model`.
    #[must_use]
    pub fn new(model: &Model, segments: usize) -> Self {
        let cell = Cell::new(model);
        Gru {
            features: Features::new(segments),
            state: vec![Lanes::ZERO; segments.div_ceil(LANES) * cell.hidden()],
            softmax: Softmax::new(segments),
            phase: Phase::Done,
            cursor: 0,
            horizon: model.horizon() as f32,
            cell,
        }
    }

    /// Runs the cell over whole tiles, at least one, at most `budget` segments; the segments done.
    fn run_cell(&mut self, budget: usize) -> usize {
        let segments = self.features.len();
        let first = self.cursor;
        let tiles = (budget / LANES).max(1);
        let end = segments.min(first.saturating_add(tiles.saturating_mul(LANES)));
        let hidden = self.cell.hidden();
        let mut x: [Lanes; FEATURES] = [Lanes::ZERO; FEATURES];
        for tile in (first..end).step_by(LANES) {
            self.features.tile(tile, &mut x);
            let rows = tile / LANES * hidden;
            let logits = self.cell.step(&x, &mut self.state[rows..rows + hidden]);
            self.softmax.put(tile, &logits);
        }
        end - first
    }

    /// One piece of work; what it used of the budget.
    fn advance(&mut self, budget: usize) -> usize {
        match self.phase {
            Phase::Features => {
                // visits each segment twice; the phase ends when the features say so
                if self.features.step(budget) {
                    self.phase = Phase::Cell;
                    self.cursor = 0;
                    self.softmax.begin();
                }
                budget
            }
            Phase::Cell => {
                let done = self.run_cell(budget);
                self.cursor += done;
                if self.cursor == self.features.len() {
                    self.phase = Phase::Softmax;
                }
                done.max(1)
            }
            Phase::Softmax => {
                if self.softmax.step(budget, self.features.accesses_per_window() * self.horizon) {
                    self.phase = Phase::Done;
                }
                budget
            }
            Phase::Done => budget,
        }
    }

    /// The features of the pass completed last.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    fn column(&self, segment: usize) -> Vec<f32> {
        let hidden = self.cell.hidden();
        let rows = segment / LANES * hidden;
        self.state[rows..rows + hidden].iter().map(|row| row[segment % LANES]).collect()
    }

    fn set_column(&mut self, segment: usize, values: &[f32]) {
        let rows = segment / LANES * self.cell.hidden();
        for (row, value) in self.state[rows..].iter_mut().zip(values) {
            row[segment % LANES] = *value;
        }
    }

    /// Rebuilds the tiles for `columns`, one hidden state a segment.
    fn set_columns(&mut self, columns: &[Vec<f32>]) {
        self.state.clear();
        self.state.resize(columns.len().div_ceil(LANES) * self.cell.hidden(), Lanes::ZERO);
        for (segment, values) in columns.iter().enumerate() {
            self.set_column(segment, values);
        }
    }
}

impl Scorer for Gru {
    fn name(&self) -> &'static str {
        "gru"
    }

    fn begin(&mut self, counts: &[SegmentCounts]) {
        while !self.step(usize::MAX) {}
        self.features.begin(counts);
        self.phase = Phase::Features;
    }

    /// As [`Scorer::step`]; the cell works on whole tiles of [`LANES`] segments, so a smaller budget is rounded up.
    fn step(&mut self, budget: usize) -> bool {
        let mut budget = budget;
        while budget > 0 && self.phase != Phase::Done {
            let used = self.advance(budget);
            budget = budget.saturating_sub(used);
        }
        self.phase == Phase::Done
    }

    fn scores(&self) -> &[f32] {
        self.softmax.scores()
    }

    /// Both halves keep the hidden state of the whole.
    fn split(&mut self, index: usize, left_share: f32) {
        while !self.step(usize::MAX) {}
        let mut columns: Vec<Vec<f32>> = (0..self.features.len()).map(|segment| self.column(segment)).collect();
        columns.insert(index, columns[index].clone());
        self.features.split(index, left_share);
        self.set_columns(&columns);
        self.softmax.split(index, left_share);
    }

    /// The hidden state of the half with the larger score stays.
    fn merge(&mut self, index: usize) {
        while !self.step(usize::MAX) {}
        let mut columns: Vec<Vec<f32>> = (0..self.features.len()).map(|segment| self.column(segment)).collect();
        let right = columns.remove(index + 1);
        if self.softmax.scores()[index + 1] > self.softmax.scores()[index] {
            columns[index] = right;
        }
        self.features.merge(index);
        self.set_columns(&columns);
        self.softmax.merge(index);
    }

    fn reset(&mut self, segments: usize) {
        self.features = Features::new(segments);
        self.state.clear();
        self.state.resize(segments.div_ceil(LANES) * self.cell.hidden(), Lanes::ZERO);
        self.softmax = Softmax::new(segments);
        self.phase = Phase::Done;
    }

    /// The hidden state starts anew where the size differs.
    fn set_model(&mut self, model: &Model) {
        while !self.step(usize::MAX) {}
        let same_size = model.hidden() == self.cell.hidden();
        self.cell = Cell::new(model);
        self.horizon = model.horizon() as f32;
        if !same_size {
            let tiles = self.features.len().div_ceil(LANES);
            self.state = vec![Lanes::ZERO; tiles * self.cell.hidden()];
        }
    }
}
