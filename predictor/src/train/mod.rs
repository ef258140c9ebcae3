//! Training on libtorch (feature `torch`): from recorded requests to a [`Model`].
//!
//! Each trace becomes one stream a segment count (and, with `mirror`, a second one whose key order is turned around, so
//! that no direction is preferred). A stream is learned from its start to its end with the hidden state kept, as the
//! scorer runs it; gradients reach back `chunk` windows. The linear model learns beside it, with a loss of its own.
//!
//! Three terms make the loss of a window, all over the shares of the horizon's accesses that fall on each segment:
//! - listwise: cross-entropy of the softmax of the logits against the shares, less the shares' own entropy;
//! - count: squared distance of the roots of expected and true shares, which bounds what rare segments may be off by;
//! - order: logistic loss of pairs of segments, weighted by the difference of their shares. The share of requests that
//!   hit while copying at a constant rate falls by just that difference for each pair in the wrong order.
//!
//! The split is chronological: weights are fitted on the first `train_to` of each trace, the epoch is chosen by the
//! task's own figure (percent of the oracle) from there to `validate_to`, and the rest is never looked at.
//!
//! Equal configurations give equal weights on one machine with one thread. The shipped model comes from
//! `antumbra predict train` over the development traces (predictor/README.md has the whole line).

mod net;
mod streams;

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::eval::{Mapping, Windowed, mean};
use crate::features::FEATURES;
use crate::model::{HIDDEN_MAX, HORIZON_MAX, Model};
use crate::trace;

use net::{LossWeights, Trainer};
pub use net::{Net, cuda_is_available};
use streams::{Stream, Validation, group};

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Error {
        // the first line says what, the rest is a C++ stack
        let what = error.to_string().lines().next().unwrap_or_default().to_owned();
        Error::Torch { what }
    }
}

/// One trace to learn from.
#[derive(Clone, Debug)]
pub struct TrainTrace {
    /// The trace file.
    pub path: PathBuf,
    /// How its keys lie in the key order.
    pub mapping: Mapping,
}

/// Settings of a training run. [`TrainConfig::new`] gives the ones of the shipped model.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// What to learn from; each counts the same, however long it is.
    pub traces: Vec<TrainTrace>,
    /// Segment counts: each trace is mapped once for each. The first one is validated with.
    pub segments: Vec<usize>,
    /// Windows that each trace is cut into.
    pub windows: usize,
    /// Hidden units.
    pub hidden: usize,
    /// Windows ahead that the model is to expect.
    pub horizon: usize,
    /// Most epochs.
    pub epochs: usize,
    /// Epochs without a better validation after which training stops.
    pub patience: usize,
    /// Windows that gradients reach back.
    pub chunk: usize,
    /// Streams in a batch.
    pub batch: usize,
    /// Step size of the first epoch; it falls along a cosine to a twentieth.
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Weight of the count term.
    pub count_weight: f64,
    /// Weight of the order term.
    pub order_weight: f64,
    /// Whether each stream is learned mirrored as well.
    pub mirror: bool,
    /// Part of each trace, from the start, that weights are fitted on.
    pub train_to: f64,
    /// End of the part that the epoch is chosen on.
    pub validate_to: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads of libtorch; more than one may change the last bits.
    pub threads: usize,
    /// Whether to use the first GPU when libtorch sees one.
    pub cuda: bool,
    /// Weights to start from, e.g. a checkpoint; none = random ones.
    pub start: Option<Model>,
    /// Features that are switched off (their numbers in the table of [`crate::features`]): what are they worth?
    pub features_off: Vec<usize>,
    /// Where the best weights so far are saved after each epoch that found better ones.
    pub checkpoint: Option<PathBuf>,
}

impl TrainConfig {
    /// The settings of the shipped model.
    #[must_use]
    pub fn new(traces: Vec<TrainTrace>) -> TrainConfig {
        TrainConfig {
            traces,
            segments: vec![256],
            windows: 1024,
            hidden: 16,
            horizon: 8,
            epochs: 16,
            patience: 12,
            chunk: 32,
            batch: 4,
            learning_rate: 4e-3,
            weight_decay: 1e-4,
            count_weight: 1.0,
            order_weight: 1.0,
            mirror: true,
            train_to: 0.6,
            validate_to: 0.8,
            seed: 1,
            threads: 1,
            cuda: true,
            start: None,
            features_off: Vec::new(),
            checkpoint: None,
        }
    }

    /// Refuses settings that no training run could follow.
    fn check(&self) -> Result<()> {
        let fail = |name, what: String| Err(Error::Config { name, what });
        if self.segments.is_empty() {
            return fail("segments", "at least one segment count".into());
        }
        if !(1..=HIDDEN_MAX).contains(&self.hidden) {
            return fail("hidden", format!("{}: 1 to {HIDDEN_MAX}", self.hidden));
        }
        if !(1..=HORIZON_MAX).contains(&self.horizon) {
            return fail("horizon", format!("{}: 1 to {HORIZON_MAX}", self.horizon));
        }
        if self.start.as_ref().is_some_and(|start| start.hidden() != self.hidden) {
            return fail("start, hidden", "the hidden sizes differ".into());
        }
        if self.epochs == 0 || self.chunk == 0 || self.batch == 0 || self.threads == 0 {
            return fail("epochs, chunk, batch, threads", "at least 1".into());
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return fail("learning_rate", format!("{}: a positive number", self.learning_rate));
        }
        let weights = [self.weight_decay, self.count_weight, self.order_weight];
        if !weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0) {
            return fail("weight_decay, count_weight, order_weight", "finite and not negative".into());
        }
        if let Some(unknown) = self.features_off.iter().find(|feature| **feature >= FEATURES) {
            return fail("features_off", format!("{unknown}: below {FEATURES}"));
        }
        let ordered = 0.0 < self.train_to && self.train_to < self.validate_to && self.validate_to <= 1.0;
        if !ordered {
            return fail("train_to, validate_to", format!("{}, {}: rising in 0..=1", self.train_to, self.validate_to));
        }
        Ok(())
    }
}

/// Where a training run stands, after each epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Epochs done.
    pub epoch: usize,
    /// Epochs at most.
    pub epochs: usize,
    /// Mean loss of the epoch.
    pub loss: f64,
    /// Validation: mean percent of the oracle over the traces.
    pub pct_of_oracle: f64,
    /// The epoch whose weights would be returned now.
    pub best_epoch: usize,
}

/// Result of a training run.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Weights of the best epoch.
    pub model: Model,
    /// The learning curve.
    pub curve: Vec<Progress>,
    /// Best validation, by trace in the order given: percent of the oracle.
    pub validation: Vec<f64>,
    /// Whether a GPU was used.
    pub on_cuda: bool,
}

/// Trains on the traces of `config`, and says after each epoch where it stands.
///
/// Cost: about 170 bytes for each trace, segment count, segment and window (twice that with `mirror`); some seconds an
/// epoch and core for ten traces of the default size.
///
/// # Errors
/// [`Error::Config`], what [`trace::read_all`] says of a trace, [`Error::Torch`].
pub fn train(config: &TrainConfig, progress: &mut dyn FnMut(Progress)) -> Result<Trained> {
    config.check()?;
    let mut mapped = Vec::with_capacity(config.traces.len());
    for given in &config.traces {
        let requests = trace::read_all(&given.path)?;
        let of_count = |segments: &usize| Windowed::new(&requests, given.mapping, *segments, config.windows);
        mapped.push(config.segments.iter().map(of_count).collect::<Result<Vec<_>>>()?);
    }
    train_on(config, &mapped, progress)
}

/// As [`train`], on traces that were mapped before: for each trace one mapping a segment count (`config.traces`,
/// `config.segments` and `config.windows` are not looked at). The first mapping of each is validated with.
///
/// # Errors
/// [`Error::Config`], [`Error::Torch`].
pub fn train_on(config: &TrainConfig, mapped: &[Vec<Windowed>], progress: &mut dyn FnMut(Progress)) -> Result<Trained> {
    config.check()?;
    if mapped.is_empty() || mapped.iter().any(Vec::is_empty) {
        return Err(Error::Config { name: "traces", what: "at least one, with at least one mapping each".into() });
    }
    let validations =
        mapped.iter().map(|of_trace| Validation::new(&of_trace[0], config)).collect::<Result<Vec<_>>>()?;
    tch::set_num_threads(i32::try_from(config.threads).unwrap_or(i32::MAX));
    tch::manual_seed(config.seed as i64);
    let mut rng = fastrand::Rng::with_seed(config.seed);
    let on_cuda = config.cuda && cuda_is_available();
    let device = if on_cuda { tch::Device::Cuda(0) } else { tch::Device::Cpu };
    let mut streams = Vec::new();
    for windowed in mapped.iter().flatten() {
        streams.push(Stream::new(windowed, config, device)?);
        if config.mirror {
            streams.push(Stream::new(&windowed.mirrored(), config, device)?);
        }
    }
    let start = match &config.start {
        Some(model) => model.clone(),
        None => net::initial(config.hidden, config.horizon, config.seed, &config.features_off)?,
    };
    let loss = LossWeights { count: config.count_weight, order: config.order_weight };
    let mut trainer = Trainer::new(&start, device, config.weight_decay, loss)?;
    let mut best = Best { model: start, epoch: 0, validation: Vec::new(), pct: f64::NEG_INFINITY };
    let mut curve: Vec<Progress> = Vec::new();
    for epoch in 1..=config.epochs {
        trainer.set_learning_rate(learning_rate(config, epoch));
        let mut losses = Vec::new();
        for batch in group(&streams, config.batch, &mut rng) {
            losses.extend(trainer.epoch_of(&batch, config.chunk, &mut rng)?);
        }
        let model = trainer.model(config.horizon)?;
        let validation: Vec<f64> = validations.iter().map(|part| part.pct_of_oracle(&model)).collect();
        let pct = mean(&validation);
        if pct > best.pct {
            if let Some(path) = &config.checkpoint {
                model.save(path)?;
            }
            best = Best { model, epoch, validation, pct };
        }
        let at =
            Progress { epoch, epochs: config.epochs, loss: mean(&losses), pct_of_oracle: pct, best_epoch: best.epoch };
        curve.push(at);
        progress(at);
        if epoch >= best.epoch + config.patience {
            break;
        }
    }
    Ok(Trained { model: best.model, curve, validation: best.validation, on_cuda })
}

struct Best {
    model: Model,
    epoch: usize,
    validation: Vec<f64>,
    pct: f64,
}

fn learning_rate(config: &TrainConfig, epoch: usize) -> f64 {
    let done = (epoch - 1) as f64 / config.epochs as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    config.learning_rate * (0.05 + 0.95 * cosine)
}

#[cfg(test)]
mod tests;
