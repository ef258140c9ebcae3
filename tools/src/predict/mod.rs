//! `antumbra predict`: evaluate scorers on a trace; train the GRU (feature `torch`).

mod eval;
mod page;
mod plot;
mod record;
mod signal;
mod train;

use std::path::{Path, PathBuf};

use antumbra_predictor::eval::Mapping;
use clap::Subcommand;

use crate::CliError;

#[derive(Subcommand)]
pub enum PredictCommand {
    /// Prints every scorer against the oracle on a trace, or a row for each of several.
    Eval(eval::EvalOptions),
    /// Draws what came beside what was expected, as heat maps.
    Plot(plot::PlotOptions),
    /// Exports the request log of a live node as a trace.
    Record(record::RecordOptions),
    /// Tries the trigger of a move against a reactive one and one that knows the future, on seeded loads.
    Signal(signal::SignalOptions),
    /// Trains the GRU on traces and writes its weights.
    Train(train::TrainOptions),
    /// For each trace: trains on the others and evaluates on it.
    Loo(train::LooOptions),
}

/// Runs a predictor command.
pub fn run(command: PredictCommand) -> Result<(), CliError> {
    match command {
        PredictCommand::Eval(options) => eval::run(&options),
        PredictCommand::Plot(options) => plot::run(&options),
        PredictCommand::Record(options) => record::run(&options),
        PredictCommand::Signal(options) => signal::run(&options),
        PredictCommand::Train(options) => train::run(&options),
        PredictCommand::Loo(options) => train::run_loo(&options),
    }
}

/// A trace as given on the command line, PATH or PATH:MAPPING; a path that exists may have colons of its own.
fn given_trace(given: &str, otherwise: Mapping) -> Result<(PathBuf, Mapping), CliError> {
    match given.rsplit_once(':') {
        Some((path, mapping)) if !Path::new(given).exists() => {
            Ok((path.into(), mapping.parse().map_err(|cause| format!("--trace {given}: {cause}"))?))
        }
        _ => Ok((given.into(), otherwise)),
    }
}

/// The name of a trace in reports: its file name without the endings.
fn trace_name(path: &Path) -> String {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let bare = name.strip_suffix(".zst").unwrap_or(&name);
    bare.strip_suffix(".csv").unwrap_or(bare).to_owned()
}
