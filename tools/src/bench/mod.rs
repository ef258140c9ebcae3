//! `antumbra bench`: the harness of `antumbra-benches` for Antumbra alone, and moves under load.

mod moves;
mod report;

use std::process::ExitCode;

use antumbra_benches::device::{self, DeviceOptions};
use antumbra_benches::limits::{self, LimitsOptions};
use antumbra_benches::options::BenchOptions;
use antumbra_benches::report::Report;
use antumbra_benches::scores::{self, ScoresOptions};
use antumbra_benches::{Result as BenchResult, compare};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::CliError;

/// Stores that only the benches crate can measure, since their builds are heavy.
const PEERS: [&str; 4] = ["rocksdb", "fjall", "redb", "lmdb"];

#[derive(Subcommand)]
pub enum BenchCommand {
    /// Loads data and runs workloads of YCSB, then durable puts; prints throughput and latency of each.
    Ycsb(YcsbOptions),
    /// What the machine can do: the device by fio and by blocking calls, memory, loopback TCP, quinn alone.
    Limits(LimitsOptions),
    /// The engine beside fio: random reads, durable group commit, a lone durable put; and an idle engine's use of a core.
    Device(DeviceOptions),
    /// What the predictor's scores gain in the engine: residency, read-ahead, the order of compaction; each on and off.
    Scores(ScoresOptions),
    /// Moves a partition between two nodes under an open-loop load; prints what readers, writers and neighbours notice.
    Move(moves::MoveOptions),
    /// All of these in one run, as one page, one JSON and one CSV; `cargo xtask bench` builds what it needs and runs it.
    Report(report::ReportOptions),
}

#[derive(Args)]
pub struct YcsbOptions {
    /// Store: antumbra, or null for the harness's own cost.
    #[arg(long, default_value = "antumbra")]
    engine: String,
    #[command(flatten)]
    bench: BenchOptions,
}

/// Runs a benchmark.
pub fn run(command: &BenchCommand) -> Result<ExitCode, CliError> {
    match command {
        BenchCommand::Ycsb(options) => ycsb(options),
        BenchCommand::Device(options) => {
            measure(options.json, ToString::to_string, |bar| device::run(options, |next| say(bar, next)))
        }
        BenchCommand::Scores(options) => {
            measure(options.json, ToString::to_string, |bar| scores::run(options, |next| say(bar, next)))
        }
        BenchCommand::Limits(options) => {
            measure(options.json, ToString::to_string, |bar| limits::run(options, |next| say(bar, next)))
        }
        BenchCommand::Move(options) => moves::run(options),
        BenchCommand::Report(options) => report::run(options),
    }
}

fn ycsb(options: &YcsbOptions) -> Result<ExitCode, CliError> {
    let name = options.engine.as_str();
    let Some(candidate) = antumbra_benches::candidates().into_iter().find(|candidate| candidate.name == name) else {
        return Err(unknown(name).into());
    };
    let text = |report: &Report| format!("{}{}\n", report.header(), report.tables());
    measure(options.bench.json, text, |bar| {
        say(bar, "measuring the device, then loading".into());
        compare::run_alone(candidate, &options.bench, |result| {
            say(bar, format!("{}: {:.0} op/s; next", result.phase, result.ops_per_second));
        })
    })
}

/// Runs a measurement behind a spinner and prints its report, as JSON or as text.
fn measure<T: Serialize>(
    json: bool,
    text: impl FnOnce(&T) -> String,
    run: impl FnOnce(&ProgressBar) -> BenchResult<T>,
) -> Result<ExitCode, CliError> {
    // The bar is drawn on standard error, and only on a terminal.
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let report = run(&bar)?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows a message beside the bar, or as a line of its own where no terminal shows bars.
fn say(bar: &ProgressBar, message: String) {
    if bar.is_hidden() { eprintln!("{message}") } else { bar.set_message(message) }
}

fn unknown(name: &str) -> String {
    if PEERS.contains(&name) {
        let command = "cargo run --release -p antumbra-benches --features peers --bin compare --";
        return format!(
            "{name} is not built into this program; from the source tree: {command} --engines antumbra,{name}"
        );
    }
    format!("--engine {name}: antumbra, null, or (from the source tree) one of {}", PEERS.join(", "))
}
