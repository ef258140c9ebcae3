//! `antumbra predict`: evaluate scorers on a trace; train the GRU (feature `torch`).

use std::path::PathBuf;

use antumbra_predictor::eval::{EvalConfig, Mapping, Report, Requests, evaluate};
use antumbra_predictor::model::Model;
use antumbra_predictor::trace;
use clap::{Args, Subcommand};

use crate::CliError;

#[derive(Subcommand)]
pub enum PredictCommand {
    /// Prints every scorer against the oracle on a trace.
    Eval(EvalOptions),
    /// Trains the GRU on traces and writes its weights.
    Train(TrainOptions),
}

#[derive(Args)]
pub struct EvalOptions {
    /// Trace file (zstd CSV `ts_us,op,key,size`).
    #[arg(long)]
    trace: PathBuf,
    /// How keys lie in the key order: range, arrival or hash.
    #[arg(long, default_value = "range")]
    mapping: String,
    /// Segments of the partition.
    #[arg(long, default_value_t = 256)]
    segments: usize,
    /// Weights; without it the shipped ones.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

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

/// Runs a predictor command.
pub fn run(command: PredictCommand) -> Result<(), CliError> {
    match command {
        PredictCommand::Eval(options) => eval(&options),
        PredictCommand::Train(options) => train(&options),
    }
}

fn eval(options: &EvalOptions) -> Result<(), CliError> {
    let mapping: Mapping = options.mapping.parse()?;
    let name = options.trace.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let requests = Requests { trace: name, requests: trace::read_all(&options.trace)? };
    let mut config = EvalConfig::new(mapping);
    config.segments = options.segments;
    config.model = options.model.as_deref().map(Model::load).transpose()?;
    let report = evaluate(&requests, &config)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&report);
    }
    Ok(())
}

fn print_table(report: &Report) {
    println!("{} ({:?}, {} segments, {} positions)", report.trace, report.mapping, report.segments, report.positions);
    println!("{:<16} {:>8} {:>12} {:>18}", "scorer", "share", "% of oracle", "95 % interval");
    for (name, scorer) in &report.scorers {
        let [low, high] = scorer.ci95;
        println!("{name:<16} {:>8.4} {:>12.2} {:>8.2} - {:>7.2}", scorer.share, scorer.pct_of_oracle, low, high);
    }
    for (what, gap) in [("ewma", report.gap_vs_ewma), ("the best rule", report.gap_vs_classic)] {
        if let Some(gap) = gap {
            println!("gap to the oracle that gru closes against {what}: {:.1} %", gap * 100.0);
        }
    }
}

#[cfg(feature = "torch")]
fn train(options: &TrainOptions) -> Result<(), CliError> {
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

#[cfg(not(feature = "torch"))]
fn train(_options: &TrainOptions) -> Result<(), CliError> {
    Err("this build has no libtorch: run `cargo xtask setup`, then build with `--features torch`".into())
}
