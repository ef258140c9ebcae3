//! `antumbra predict train`: from traces to weights.

use std::path::PathBuf;

use clap::Args;

use crate::CliError;

#[derive(Args)]
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "training needs feature torch"))]
pub struct TrainOptions {
    /// Trace file, as PATH or PATH:MAPPING; may be given several times.
    #[arg(long = "trace", required = true)]
    traces: Vec<String>,
    /// Where the weights go.
    #[arg(long)]
    out: PathBuf,
    /// Passes over the training part.
    #[arg(long)]
    epochs: Option<usize>,
    /// Seed.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs `antumbra predict train`.
#[cfg(feature = "torch")]
pub fn run(options: &TrainOptions) -> Result<(), CliError> {
    use antumbra_predictor::eval::Mapping;
    use antumbra_predictor::train::{TrainConfig, TrainTrace, train};

    let traces = options.traces.iter().map(|given| {
        let (path, mapping) = match given.rsplit_once(':') {
            Some((path, mapping)) => (path, mapping.parse()?),
            None => (given.as_str(), Mapping::Range),
        };
        Ok(TrainTrace { path: path.into(), mapping })
    });
    let mut config = TrainConfig::new(traces.collect::<Result<Vec<_>, CliError>>()?);
    config.epochs = options.epochs.unwrap_or(config.epochs);
    config.seed = options.seed.unwrap_or(config.seed);
    let trained = train(&config, &mut |at| {
        println!("epoch {:3}/{}: loss {:.4}, {:.2} % of oracle", at.epoch, at.epochs, at.loss, at.pct_of_oracle);
    })?;
    trained.model.save(&options.out)?;
    println!("wrote {}", options.out.display());
    Ok(())
}

/// Says what is missing.
#[cfg(not(feature = "torch"))]
pub fn run(_options: &TrainOptions) -> Result<(), CliError> {
    Err("this build has no libtorch: run `cargo xtask setup`, then build with `--features torch`".into())
}
