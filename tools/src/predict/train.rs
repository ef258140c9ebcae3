//! `antumbra predict train` and `antumbra predict loo`: from traces to weights, and how well they carry over.

use std::path::PathBuf;

use clap::Args;

use crate::CliError;

#[cfg(feature = "torch")]
mod run;

/// What training can be told.
#[derive(Args)]
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "training needs feature torch"))]
pub struct Settings {
    /// Trace file, as PATH or PATH:MAPPING; may be given several times.
    #[arg(long = "trace", required = true)]
    traces: Vec<String>,
    /// Most passes over the training part.
    #[arg(long)]
    epochs: Option<usize>,
    /// Passes without a better validation after which training stops.
    #[arg(long)]
    patience: Option<usize>,
    /// Seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Hidden units.
    #[arg(long)]
    hidden: Option<usize>,
    /// Windows ahead that the model is to expect.
    #[arg(long)]
    horizon: Option<usize>,
    /// Segment counts, separated by commas; the first one is validated with.
    #[arg(long, value_delimiter = ',')]
    segments: Vec<usize>,
    /// Step size of the first pass.
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Weight of the order term of the loss; 0 leaves the listwise and the count term.
    #[arg(long)]
    order_weight: Option<f64>,
    /// Weight of the count term of the loss.
    #[arg(long)]
    count_weight: Option<f64>,
    /// Numbers of features to switch off, separated by commas.
    #[arg(long, value_delimiter = ',')]
    features_off: Vec<usize>,
    /// Learn each trace as it is only, not mirrored as well.
    #[arg(long)]
    no_mirror: bool,
    /// Train on the processor even where there is a GPU.
    #[arg(long)]
    cpu: bool,
}

#[derive(Args)]
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "training needs feature torch"))]
pub struct TrainOptions {
    #[command(flatten)]
    settings: Settings,
    /// Where the weights go.
    #[arg(long)]
    out: PathBuf,
    /// Weights to start from, e.g. a checkpoint.
    #[arg(long)]
    start: Option<PathBuf>,
    /// Where the best weights so far go, after each pass that found better ones.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Where the learning curve goes, as SVG.
    #[arg(long)]
    curve: Option<PathBuf>,
}

#[derive(Args)]
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "training needs feature torch"))]
pub struct LooOptions {
    #[command(flatten)]
    settings: Settings,
    /// Print one JSON report a trace.
    #[arg(long)]
    json: bool,
    /// Folder where the weights are kept, one file for each trace left out; those that are there are not trained anew.
    #[arg(long)]
    models: Option<PathBuf>,
}

/// Runs `antumbra predict train`.
pub fn run(options: &TrainOptions) -> Result<(), CliError> {
    #[cfg(feature = "torch")]
    return run::train(options);
    #[cfg(not(feature = "torch"))]
    no_torch(options)
}

/// Runs `antumbra predict loo`.
pub fn run_loo(options: &LooOptions) -> Result<(), CliError> {
    #[cfg(feature = "torch")]
    return run::leave_one_out(options);
    #[cfg(not(feature = "torch"))]
    no_torch(options)
}

/// Says what is missing.
#[cfg(not(feature = "torch"))]
fn no_torch<T>(_: &T) -> Result<(), CliError> {
    Err("this build has no libtorch: run `cargo xtask setup`, then build with `--features torch`".into())
}
