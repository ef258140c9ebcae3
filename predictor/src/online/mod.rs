//! Learning from the host's own windows, in the background and without libtorch.
//!
//! ```text
//! shard's core                         background thread, lowest priority
//! Gru (deployed weights)  --counts-->  Learner: features, ring of windows
//!                                        three GRUs score every window: base, deployed, candidate
//!                                        a few chunks a window are learned (truncated BPTT, Adam)
//!                         <--Model---    swap, when the candidate has hit more lately
//! ```
//!
//! - INV-O1: what a model is judged on it has not learned yet: each is asked for an order when a window closes, and
//!   judged by the windows after it; a window's horizon is learned from when it has passed.
//! - INV-O2: bounded work: [`OnlineConfig::chunks_per_window`] chunks of bounded rows and windows each window; bounded
//!   memory (48 MiB of windows).
//! - INV-O3: weights that are not finite, or that have hit clearly less than the deployed ones, are thrown away, and
//!   learning starts from the deployed ones again. If the deployed ones fall behind the base (what was shipped or
//!   given), the base is deployed again. Beyond that `auto` does not follow a model that loses to a rule.
//! - INV-O4: equal inputs and seeds give equal weights.
//!
//! The candidate is a moving average of the weights that are trained, pulled towards the base: single chunks are noisy.

mod adam;
mod net;
mod replay;

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::scorer::{Gru, Judge, Scorer};
use crate::window::SegmentCounts;

use adam::Adam;
pub use net::LossWeights;
use net::{Chunk, Net};
use replay::{ChunkSpec, Replay};

/// Settings of a [`Learner`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OnlineConfig {
    /// Chunks learned for each window that closes.
    pub chunks_per_window: usize,
    /// Windows that warm up the hidden state at the start of a chunk.
    pub warm_up: usize,
    /// Windows of a chunk that are learned.
    pub learned: usize,
    /// Most segments of a chunk.
    pub rows_max: usize,
    /// Step size.
    pub learning_rate: f32,
    /// Pull of each weight towards the base, a step.
    pub pull: f32,
    /// Share of one step in the candidate, a moving average.
    pub average: f32,
    /// Terms of the loss.
    pub loss: LossWeights,
    /// Windows that a candidate is judged by before a swap.
    pub judged_min: u64,
    /// Lead in trailing share (0..1) that a swap takes.
    pub lead: f64,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for OnlineConfig {
    fn default() -> OnlineConfig {
        OnlineConfig {
            chunks_per_window: 2,
            warm_up: 12,
            learned: 20,
            rows_max: 256,
            learning_rate: 1e-3,
            pull: 1e-4,
            average: 0.01,
            loss: LossWeights { count: 1.0, order: 1.0 },
            judged_min: 24,
            lead: 2e-4,
            seed: 1,
        }
    }
}

impl OnlineConfig {
    fn check(&self) -> Result<()> {
        let fail = |name, what: String| Err(Error::Config { name, what });
        if self.learned < 2 || self.rows_max < 2 {
            return fail("learned, rows_max", "at least 2".into());
        }
        let positive = |value: f32| value.is_finite() && value > 0.0;
        if !positive(self.learning_rate) {
            return fail("learning_rate", format!("{}: a positive number", self.learning_rate));
        }
        if !(positive(self.average) && self.average <= 1.0) {
            return fail("average", format!("{}: above 0, at most 1", self.average));
        }
        let terms = [self.pull, self.loss.count, self.loss.order];
        if !terms.iter().all(|value| value.is_finite() && *value >= 0.0) {
            return fail("pull, loss", "finite and not negative".into());
        }
        Ok(())
    }
}

const BASE: usize = 0;
const DEPLOYED: usize = 1;
const CANDIDATE: usize = 2;
/// A candidate that has hit so much less (0..1) than the deployed weights is thrown away.
const HOPELESS: f64 = 0.02;

/// What a [`Learner`] has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct OnlineStats {
    /// Chunks learned.
    pub chunks: u64,
    /// Swaps of the deployed weights.
    pub swaps: u64,
    /// Candidates thrown away.
    pub resets: u64,
    /// Loss of the chunk learned last.
    pub loss: f32,
}

/// The background learner of one partition.
///
/// # Example
/// ```
/// use antumbra_predictor::online::{Learner, OnlineConfig};
/// use antumbra_predictor::{Model, SegmentCounts};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("learned.safetensors");
/// let (base, config) = (Model::shipped()?, OnlineConfig::default());
/// let mut learner = Learner::new(&base, 4, config)?;
/// let window = [9, 0, 0, 1].map(|reads| SegmentCounts { reads, ..SegmentCounts::default() });
/// if let Some(better) = learner.observe(&window) {
///     assert_eq!(&better, learner.deployed());
/// }
/// learner.split(0, 0.5);
/// learner.merge(0);
/// assert_eq!((learner.segments(), learner.stats().resets), (4, 0));
/// learner.save(&path)?;
/// Learner::restore(&path, &base, 4, config)?; // after a restart
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Learner {
    config: OnlineConfig,
    base: Model,
    deployed: Model,
    /// Scorers of the three models; all see every window.
    tracks: [Gru; 3],
    judge: Judge,
    replay: Replay,
    net: Net,
    adam: Adam,
    /// The base in the net's layout.
    anchor: Vec<f32>,
    candidate: Vec<f32>,
    chunk: Chunk,
    accesses: Vec<f32>,
    rng: fastrand::Rng,
    stats: OnlineStats,
}

impl Learner {
    /// A learner that starts from `base`, for a partition of `segments` segments.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of its range.
    pub fn new(base: &Model, segments: usize, config: OnlineConfig) -> Result<Learner> {
        config.check()?;
        let net = Net::new(base);
        let gru = || Gru::new(base, segments);
        Ok(Learner {
            tracks: [gru(), gru(), gru()],
            judge: Judge::new(3, segments),
            replay: Replay::new(base.horizon()),
            adam: Adam::new(net.weights.len()),
            anchor: net.weights.clone(),
            candidate: net.weights.clone(),
            net,
            chunk: Chunk::default(),
            accesses: vec![0.0; segments],
            rng: fastrand::Rng::with_seed(config.seed),
            stats: OnlineStats::default(),
            base: base.clone(),
            deployed: base.clone(),
            config,
        })
    }

    /// Takes in a window that has closed, learns, and gives new weights when they are to be deployed.
    ///
    /// # Panics
    /// When there are not as many counts as segments.
    ///
    /// Cost: three scoring passes and `chunks_per_window` chunks: about 10 ms of one core for 256 segments or more.
    pub fn observe(&mut self, counts: &[SegmentCounts]) -> Option<Model> {
        self.score(counts);
        self.replay.push(self.tracks[BASE].features(), counts);
        for _ in 0..self.config.chunks_per_window {
            self.learn();
        }
        self.decide()
    }

    /// The weights that are deployed: what a host saves, and starts a [`Learner`] from after a restart.
    #[must_use]
    pub fn deployed(&self) -> &Model {
        &self.deployed
    }

    /// Segments of the windows that it expects.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.accesses.len()
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> OnlineStats {
        self.stats
    }

    /// Writes the deployed weights to a file that [`Model::load`] and [`Learner::restore`] read.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Model`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.deployed.save(path)
    }

    /// Goes on from weights that [`Learner::save`] wrote; `base` stays what they are pulled towards and judged against.
    ///
    /// # Errors
    /// As [`Learner::new`]; [`Error::Io`] and [`Error::Model`] of the file; [`Error::Config`] when its hidden size is not
    /// that of `base`.
    pub fn restore(path: &Path, base: &Model, segments: usize, config: OnlineConfig) -> Result<Learner> {
        let saved = Model::load(path)?;
        if saved.hidden() != base.hidden() {
            let what = format!("{} in {}, {} in the base", saved.hidden(), path.display(), base.hidden());
            return Err(Error::Config { name: "hidden", what });
        }
        let mut learner = Learner::new(base, segments, config)?;
        learner.deploy(saved);
        learner.start_over();
        Ok(learner)
    }

    /// Follows the split of segment `index`, as [`Scorer::split`].
    pub fn split(&mut self, index: usize, left_share: f32) {
        self.tracks.iter_mut().for_each(|track| track.split(index, left_share));
        self.resized();
    }

    /// Follows the merge of segment `index` with its right neighbour, as [`Scorer::merge`].
    pub fn merge(&mut self, index: usize) {
        self.tracks.iter_mut().for_each(|track| track.merge(index));
        self.resized();
    }

    fn resized(&mut self) {
        let segments = self.tracks[BASE].features().len();
        self.accesses.resize(segments, 0.0);
        self.judge.resize(segments);
        self.replay.new_structure();
    }

    fn score(&mut self, counts: &[SegmentCounts]) {
        let accesses = counts.iter().map(|counts| counts.accesses() as f32);
        self.accesses.iter_mut().zip(accesses).for_each(|(slot, count)| *slot = count);
        self.judge.close_window(&self.accesses);
        self.tracks.iter_mut().for_each(|track| track.observe(counts));
        if self.judge.wants_order() {
            let slot = self.judge.open();
            for (at, track) in self.tracks.iter().enumerate() {
                self.judge.keep(slot, at, track.scores());
            }
        }
    }

    /// Learns one chunk, more often a recent one than an old one.
    fn learn(&mut self) {
        let config = &self.config;
        let spec = ChunkSpec { warm_up: config.warm_up, learned: config.learned, rows_max: config.rows_max };
        let draw = self.rng.f32();
        let age = (draw * draw.sqrt() * self.replay.len() as f32) as usize;
        if !self.replay.cut(&spec, age, &mut self.rng, &mut self.chunk) {
            return;
        }
        self.stats.loss = self.net.learn(&self.chunk, config.loss, &mut self.rng);
        self.stats.chunks += 1;
        let Net { weights, gradient, .. } = &mut self.net;
        self.adam.step(weights, gradient, config.learning_rate);
        for (weight, anchor) in weights.iter_mut().zip(&self.anchor) {
            *weight += config.pull * (anchor - *weight);
        }
        for (mean, weight) in self.candidate.iter_mut().zip(&self.net.weights) {
            *mean += config.average * (weight - *mean);
        }
        self.net.refresh();
    }

    fn decide(&mut self) -> Option<Model> {
        let Ok(candidate) = self.net.model_of(&self.candidate) else {
            self.start_over();
            return None;
        };
        let (judged, lead) = (self.judge.judged(), self.config.lead);
        let [base, deployed, trial] = [BASE, DEPLOYED, CANDIDATE].map(|track| self.judge.means()[track]);
        if judged >= self.config.judged_min {
            if trial > deployed + lead && trial >= base {
                self.deploy(candidate.clone());
                self.tracks[CANDIDATE].set_model(&candidate);
                return Some(candidate);
            }
            if base > deployed + 5.0 * lead && base > trial {
                self.deploy(self.base.clone());
                return Some(self.base.clone());
            }
            if trial < deployed - HOPELESS {
                self.start_over();
                return None;
            }
        }
        self.tracks[CANDIDATE].set_model(&candidate);
        None
    }

    /// The new weights take over the candidate's record: they are what has been judged under that name.
    fn deploy(&mut self, model: Model) {
        self.tracks[DEPLOYED].set_model(&model);
        self.deployed = model;
        self.judge.forget();
        self.stats.swaps += 1;
    }

    /// Throws the candidate away: learning starts from the deployed weights.
    fn start_over(&mut self) {
        self.net.set(&self.deployed);
        self.candidate.clone_from(&self.net.weights);
        self.adam = Adam::new(self.candidate.len());
        self.tracks[CANDIDATE].set_model(&self.deployed);
        self.judge.forget();
        self.stats.resets += 1;
    }
}

/// A GRU and its learner on one thread, as the evaluation runs them: the weights deployed after a window score the next.
///
/// # Example
/// ```
/// use antumbra_predictor::online::{OnlineConfig, OnlineGru};
/// use antumbra_predictor::{Model, SegmentCounts};
/// let mut gru = OnlineGru::new(&Model::shipped()?, 2, OnlineConfig::default())?;
/// let window = [9, 0].map(|reads| SegmentCounts { reads, ..SegmentCounts::default() });
/// let scores = gru.observe(&window).to_vec();
/// assert_eq!(scores, gru.scores());
/// assert_eq!(gru.learner().segments(), 2);
/// # Ok::<(), antumbra_predictor::Error>(())
/// ```
pub struct OnlineGru {
    gru: Gru,
    learner: Learner,
}

impl OnlineGru {
    /// A scorer of `segments` segments that starts from `model`.
    ///
    /// # Errors
    /// As [`Learner::new`].
    pub fn new(model: &Model, segments: usize, config: OnlineConfig) -> Result<OnlineGru> {
        Ok(OnlineGru { gru: Gru::new(model, segments), learner: Learner::new(model, segments, config)? })
    }

    /// Takes in a window and gives the scores after it; what is learned from it counts from the next window on.
    pub fn observe(&mut self, counts: &[SegmentCounts]) -> &[f32] {
        self.gru.observe(counts);
        if let Some(model) = self.learner.observe(counts) {
            self.gru.set_model(&model);
        }
        self.gru.scores()
    }

    /// Scores after the last window.
    #[must_use]
    pub fn scores(&self) -> &[f32] {
        self.gru.scores()
    }

    /// The learner.
    #[must_use]
    pub fn learner(&self) -> &Learner {
        &self.learner
    }
}

#[cfg(test)]
mod tests;
