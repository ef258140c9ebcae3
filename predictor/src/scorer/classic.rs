//! The one-line rules, all on one frame: a state of one number a segment, updated by one function of the counts.

use super::{HORIZON_WINDOWS, Scorer};
use crate::window::{SegmentCounts, checked_share};

/// One number a segment and how a window changes it.
pub(super) trait Rule {
    const NAME: &'static str;
    /// Whether the number is an amount (divided by a split, added by a merge) or a state (copied, larger one kept).
    const IS_AMOUNT: bool;
    /// Called once a window, before any segment.
    fn begin(&mut self) {}
    /// Called when everything is forgotten.
    fn reset(&mut self) {}
    fn update(&mut self, value: f32, accesses: f32) -> f32;
    /// Score of the number.
    fn score(&self, value: f32) -> f32;
}

/// A [`Rule`] over all segments, with slicing and structure changes.
#[derive(Clone, Debug)]
pub(super) struct Ruled<R> {
    pub(super) rule: R,
    accesses: Vec<f32>,
    values: Vec<f32>,
    working: Vec<f32>,
    scores: Vec<f32>,
    cursor: usize,
}

impl<R: Rule> Ruled<R> {
    pub(super) fn new(rule: R, segments: usize) -> Self {
        Ruled {
            rule,
            accesses: vec![0.0; segments],
            values: vec![0.0; segments],
            working: vec![0.0; segments],
            scores: vec![0.0; segments],
            cursor: segments,
        }
    }

    pub(super) fn begin(&mut self, counts: &[SegmentCounts]) {
        assert_eq!(counts.len(), self.accesses.len(), "counts of another structure");
        self.step(usize::MAX);
        self.accesses.iter_mut().zip(counts).for_each(|(slot, counts)| *slot = counts.accesses() as f32);
        self.cursor = 0;
        self.rule.begin();
    }

    pub(super) fn step(&mut self, budget: usize) -> bool {
        let segments = self.accesses.len();
        if self.cursor < segments {
            let end = segments.min(self.cursor.saturating_add(budget));
            let range = self.cursor..end;
            let columns = self.values[range.clone()].iter_mut().zip(&mut self.working[range.clone()]);
            for ((value, score), accesses) in columns.zip(&self.accesses[range]) {
                *value = self.rule.update(*value, *accesses);
                *score = self.rule.score(*value);
            }
            self.cursor = end;
            if end == segments {
                std::mem::swap(&mut self.working, &mut self.scores);
            }
        }
        self.cursor == segments
    }

    pub(super) fn scores(&self) -> &[f32] {
        &self.scores
    }

    pub(super) fn split(&mut self, index: usize, left_share: f32) {
        self.step(usize::MAX);
        let share = if R::IS_AMOUNT { Some(checked_share(left_share)) } else { None };
        self.accesses.insert(index, 0.0);
        self.cursor = self.accesses.len();
        for column in [&mut self.values, &mut self.working, &mut self.scores] {
            let whole = column[index];
            let left = share.map_or(whole, |share| whole * share);
            column[index] = share.map_or(whole, |_| whole - left);
            column.insert(index, left);
        }
    }

    pub(super) fn merge(&mut self, index: usize) {
        self.step(usize::MAX);
        self.accesses.remove(index + 1);
        self.cursor = self.accesses.len();
        for column in [&mut self.values, &mut self.working, &mut self.scores] {
            let right = column.remove(index + 1);
            column[index] = if R::IS_AMOUNT { column[index] + right } else { column[index].max(right) };
        }
    }

    pub(super) fn reset(&mut self, segments: usize) {
        self.rule.reset();
        for column in [&mut self.accesses, &mut self.values, &mut self.working, &mut self.scores] {
            column.clear();
            column.resize(segments, 0.0);
        }
        self.cursor = segments;
    }
}

macro_rules! ruled_scorer {
    ($scorer:ty) => {
        impl Scorer for $scorer {
            fn name(&self) -> &'static str {
                name_of(&self.0.rule)
            }
            fn begin(&mut self, counts: &[SegmentCounts]) {
                self.0.begin(counts);
            }
            fn step(&mut self, budget: usize) -> bool {
                self.0.step(budget)
            }
            fn scores(&self) -> &[f32] {
                self.0.scores()
            }
            fn split(&mut self, index: usize, left_share: f32) {
                self.0.split(index, left_share);
            }
            fn merge(&mut self, index: usize) {
                self.0.merge(index);
            }
            fn reset(&mut self, segments: usize) {
                self.0.reset(segments);
            }
        }
    };
}

fn name_of<R: Rule>(_: &R) -> &'static str {
    R::NAME
}

/// Random ranks, new ones each window: the floor of every comparison.
#[derive(Clone, Debug)]
pub struct Random(Ruled<RandomRule>);

#[derive(Clone, Debug)]
struct RandomRule(fastrand::Rng);

impl Rule for RandomRule {
    const NAME: &'static str = "random";
    const IS_AMOUNT: bool = false;

    fn update(&mut self, _: f32, _: f32) -> f32 {
        self.0.f32()
    }

    fn score(&self, value: f32) -> f32 {
        value
    }
}

impl Random {
    /// Ranks drawn from `seed`.
    #[must_use]
    pub fn new(segments: usize, seed: u64) -> Self {
        Random(Ruled::new(RandomRule(fastrand::Rng::with_seed(seed)), segments))
    }
}
ruled_scorer!(Random);

/// What was accessed in the last window will be accessed in each window of the horizon.
#[derive(Clone, Debug)]
pub struct LastWindow(Ruled<LastWindowRule>);

#[derive(Clone, Debug)]
struct LastWindowRule;

impl Rule for LastWindowRule {
    const NAME: &'static str = "last-window";
    const IS_AMOUNT: bool = true;

    fn update(&mut self, _: f32, accesses: f32) -> f32 {
        accesses
    }

    fn score(&self, value: f32) -> f32 {
        value * HORIZON_WINDOWS as f32
    }
}

impl LastWindow {
    /// The rule over `segments` segments.
    #[must_use]
    pub fn new(segments: usize) -> Self {
        LastWindow(Ruled::new(LastWindowRule, segments))
    }
}
ruled_scorer!(LastWindow);

/// Most recently accessed first; within one window the more accessed segment counts as the more recent one.
#[derive(Clone, Debug)]
pub struct Lru(Ruled<LruRule>);

/// The state is 1 / (1 + age) plus what ranks segments of one age: at most half the step to the next younger age.
#[derive(Clone, Debug)]
struct LruRule;

impl Rule for LruRule {
    const NAME: &'static str = "lru";
    const IS_AMOUNT: bool = false;

    fn update(&mut self, value: f32, accesses: f32) -> f32 {
        // in (1, 2] when accessed, then v -> v / (1 + v), which keeps the order and ages like 1 / age
        if accesses > 0.0 { 1.0 + accesses / (1.0 + accesses) } else { value / (1.0 + value) }
    }

    fn score(&self, value: f32) -> f32 {
        value
    }
}

impl Lru {
    /// The rule over `segments` segments.
    #[must_use]
    pub fn new(segments: usize) -> Self {
        Lru(Ruled::new(LruRule, segments))
    }
}
ruled_scorer!(Lru);

/// Mean accesses since the start, times the horizon.
#[derive(Clone, Debug)]
pub struct Lfu(Ruled<LfuRule>);

#[derive(Clone, Debug)]
struct LfuRule {
    windows: f32,
}

impl Rule for LfuRule {
    const NAME: &'static str = "lfu";
    const IS_AMOUNT: bool = true;

    fn begin(&mut self) {
        self.windows += 1.0;
    }

    fn reset(&mut self) {
        self.windows = 0.0;
    }

    fn update(&mut self, value: f32, accesses: f32) -> f32 {
        value + accesses
    }

    fn score(&self, value: f32) -> f32 {
        value * (HORIZON_WINDOWS as f32 / self.windows.max(1.0))
    }
}

impl Lfu {
    /// The rule over `segments` segments.
    #[must_use]
    pub fn new(segments: usize) -> Self {
        Lfu(Ruled::new(LfuRule { windows: 0.0 }, segments))
    }
}
ruled_scorer!(Lfu);

/// Exponential moving average of accesses, times the horizon.
#[derive(Clone, Debug)]
pub struct Ewma(Ruled<EwmaRule>);

#[derive(Clone, Debug)]
struct EwmaRule {
    alpha: f32,
}

impl Rule for EwmaRule {
    const NAME: &'static str = "ewma";
    const IS_AMOUNT: bool = true;

    fn update(&mut self, value: f32, accesses: f32) -> f32 {
        value + self.alpha * (accesses - value)
    }

    fn score(&self, value: f32) -> f32 {
        value * HORIZON_WINDOWS as f32
    }
}

impl Ewma {
    /// An average in which one window has the share `alpha` (clamped to 0.0001..=1).
    #[must_use]
    pub fn new(segments: usize, alpha: f32) -> Self {
        Ewma(Ruled::new(EwmaRule { alpha: alpha.clamp(1e-4, 1.0) }, segments))
    }
}
ruled_scorer!(Ewma);
