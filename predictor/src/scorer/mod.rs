//! Scorers: the expected number of accesses of each segment over the coming horizon, window by window.
//!
//! A pass is [`Scorer::begin`] with the window's counts, then [`Scorer::step`] until it says that it is complete; in
//! between the shard serves requests. [`Scorer::scores`] gives the last complete pass, so that a reader never sees half
//! of one. The copy order is by score divided by the segment's bytes; that division is the caller's.
//!
//! `gru` is the learned one. The rest are its rivals, one rule each; every evaluation prints all of them. `auto` is the
//! guard: their mean, weighted by how well each has ordered this partition lately.

mod choice;
mod classic;
mod gru;
mod judge;
mod linear;
mod markov;
mod mixture;
mod panel;
mod readahead;
mod softmax;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::window::SegmentCounts;

pub use choice::Choice;
pub use classic::{Ewma, LastWindow, Lfu, Lru, Random};
pub use gru::Gru;
pub(crate) use judge::Judge;
pub use linear::Linear;
pub use markov::Markov;
pub use mixture::Mixture;
pub use readahead::EwmaReadahead;

/// Windows ahead that scores stand for, where the model does not say otherwise.
pub const HORIZON_WINDOWS: usize = 8;
/// Share of one window in the average of [`Ewma`] when nobody chose another.
pub const EWMA_ALPHA: f32 = 0.15;

/// Scores the segments of one partition.
pub trait Scorer {
    /// Its name, as in reports and on the command line.
    fn name(&self) -> &'static str;

    /// Takes in the counts of the window just closed, one a segment, in key order. A pass under way is completed first.
    ///
    /// Panics when there are not as many counts as segments. Cost: O(segments), no allocation.
    fn begin(&mut self, counts: &[SegmentCounts]);

    /// Works on at most `budget` segments (a pass may visit each more than once); true when the pass is complete.
    ///
    /// Cost: no allocation. With a budget of 0 nothing happens.
    fn step(&mut self, budget: usize) -> bool;

    /// Expected accesses per segment over the horizon, of the last complete pass; all zero before the first.
    /// Finite, not negative. `random` and `lru` give ranks in the same direction instead.
    fn scores(&self) -> &[f32];

    /// Follows the split of segment `index` into `index` (with `left_share` of its accesses, 0..=1) and `index + 1`.
    /// A pass under way is completed first. Panics when there is no such segment; may allocate.
    fn split(&mut self, index: usize, left_share: f32);

    /// Follows the merge of segment `index` with its right neighbour. As [`Scorer::split`].
    fn merge(&mut self, index: usize);

    /// Forgets everything and starts with `segments` segments. May allocate.
    fn reset(&mut self, segments: usize);

    /// Goes on with other weights; the rules have none. A pass under way is completed first; may allocate.
    fn set_model(&mut self, _model: &Model) {}

    /// A whole pass at once.
    fn observe(&mut self, counts: &[SegmentCounts]) {
        self.begin(counts);
        while !self.step(usize::MAX) {}
    }
}

/// The scorers there are.
///
/// # Example
/// ```
/// use antumbra_predictor::ScorerKind;
/// assert_eq!("ewma".parse::<ScorerKind>()?, ScorerKind::Ewma);
/// assert_eq!(ScorerKind::Auto.as_str(), "auto");
/// assert!(ScorerKind::Lru.is_rule() && ScorerKind::Lru.is_classic() && !ScorerKind::Gru.is_rule());
/// # Ok::<(), antumbra_predictor::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ScorerKind {
    /// A random order, the floor.
    Random,
    /// Accesses of the last window.
    LastWindow,
    /// Most recently accessed first.
    Lru,
    /// Most accessed since the start first.
    Lfu,
    /// Exponential moving average of accesses.
    Ewma,
    /// The same, of the alpha that has been best lately.
    EwmaAdaptive,
    /// The same, passed on to neighbours: what a scan reads next.
    EwmaReadahead,
    /// What has followed the active segments before.
    Markov,
    /// The learned one without a hidden state.
    Linear,
    /// The learned one.
    Gru,
    /// The mean of the others, weighted by how good each has been lately.
    Auto,
}

impl ScorerKind {
    /// Whether it has no learned weights, nor follows one that has.
    #[must_use]
    pub fn is_rule(self) -> bool {
        !matches!(self, ScorerKind::Linear | ScorerKind::Gru | ScorerKind::Auto)
    }

    /// All of them, floor first.
    pub const ALL: [ScorerKind; 11] = [
        ScorerKind::Random,
        ScorerKind::LastWindow,
        ScorerKind::Lru,
        ScorerKind::Lfu,
        ScorerKind::Ewma,
        ScorerKind::EwmaAdaptive,
        ScorerKind::EwmaReadahead,
        ScorerKind::Markov,
        ScorerKind::Linear,
        ScorerKind::Gru,
        ScorerKind::Auto,
    ];

    /// The name in reports and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ScorerKind::Random => "random",
            ScorerKind::LastWindow => "last-window",
            ScorerKind::Lru => "lru",
            ScorerKind::Lfu => "lfu",
            ScorerKind::Ewma => "ewma",
            ScorerKind::EwmaAdaptive => "ewma-adaptive",
            ScorerKind::EwmaReadahead => "ewma-readahead",
            ScorerKind::Markov => "markov",
            ScorerKind::Linear => "linear",
            ScorerKind::Gru => "gru",
            ScorerKind::Auto => "auto",
        }
    }

    /// Whether it follows one rule, without trained weights (and is no random order).
    #[must_use]
    pub fn is_classic(self) -> bool {
        !matches!(self, ScorerKind::Random | ScorerKind::Linear | ScorerKind::Gru | ScorerKind::Auto)
    }
}

impl fmt::Display for ScorerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ScorerKind {
    type Err = Error;

    /// Accepts the names of [`ScorerKind::as_str`], with `_` for `-` as well.
    fn from_str(text: &str) -> Result<Self> {
        let wanted = text.replace('_', "-");
        ScorerKind::ALL.into_iter().find(|kind| kind.as_str() == wanted).ok_or_else(|| Error::UnknownName {
            kind: "scorer",
            given: text.to_owned(),
            known: ScorerKind::ALL.map(ScorerKind::as_str).join(", "),
        })
    }
}

/// Builds a scorer of `segments` segments. `given` is for the learned ones; without one they take the shipped weights.
///
/// # Errors
/// [`Error::Model`] when the shipped weights are needed and damaged.
///
/// # Example
/// ```
/// use antumbra_predictor::{ScorerKind, SegmentCounts, scorer};
/// let mut auto = scorer::build(ScorerKind::Auto, None, 3)?; // the shipped weights
/// let window = [5, 0, 1].map(|reads| SegmentCounts { reads, ..SegmentCounts::default() });
/// auto.observe(&window);
/// assert!(auto.scores()[0] > auto.scores()[1], "what was read is expected again");
/// # Ok::<(), antumbra_predictor::Error>(())
/// ```
pub fn build(kind: ScorerKind, given: Option<&Model>, segments: usize) -> Result<Box<dyn Scorer + Send>> {
    let model = |given: Option<&Model>| given.map_or_else(Model::shipped, |model| Ok(model.clone()));
    Ok(match kind {
        ScorerKind::Random => Box::new(Random::new(segments, 0)),
        ScorerKind::LastWindow => Box::new(LastWindow::new(segments)),
        ScorerKind::Lru => Box::new(Lru::new(segments)),
        ScorerKind::Lfu => Box::new(Lfu::new(segments)),
        ScorerKind::Ewma => Box::new(Ewma::new(segments, EWMA_ALPHA)),
        ScorerKind::EwmaAdaptive => Box::new(Choice::ewma_adaptive(segments)),
        ScorerKind::EwmaReadahead => Box::new(EwmaReadahead::new(segments, EWMA_ALPHA)),
        ScorerKind::Markov => Box::new(Markov::new(segments)),
        ScorerKind::Linear => Box::new(Linear::new(&model(given)?, segments)),
        ScorerKind::Gru => Box::new(Gru::new(&model(given)?, segments)),
        ScorerKind::Auto => {
            let model = model(given)?;
            let (gru, linear) = (Gru::new(&model, segments), Linear::new(&model, segments));
            Box::new(Mixture::auto(vec![Box::new(gru), Box::new(linear)], segments))
        }
    })
}

#[cfg(test)]
mod tests;
