//! `antumbra bench`: the harness of `antumbra-benches` for Antumbra alone, and moves under load.

mod moves;

use std::process::ExitCode;

use antumbra_benches::compare;
use antumbra_benches::device::DeviceOptions;
use antumbra_benches::options::BenchOptions;
use antumbra_benches::scores::ScoresOptions;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use crate::CliError;

/// Stores that only the benches crate can measure, since their builds are heavy.
const PEERS: [&str; 4] = ["rocksdb", "fjall", "redb", "lmdb"];

#[derive(Subcommand)]
pub enum BenchCommand {
    /// Loads data and runs workloads of YCSB, then durable puts; prints throughput and latency of each.
    Ycsb(YcsbOptions),
    /// The engine beside fio: random reads, durable group commit, a lone durable put; and an idle engine's use of a core.
    Device(DeviceOptions),
    /// What the predictor's scores gain in the engine: residency, read-ahead, the order of compaction; each on and off.
    Scores(ScoresOptions),
    /// Moves a partition between two nodes under an open-loop load; prints what readers, writers and neighbours notice.
    Move(moves::MoveOptions),
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
        BenchCommand::Ycsb(options) => ycsb(options).map(|()| ExitCode::SUCCESS),
        BenchCommand::Device(options) => device(options).map(|()| ExitCode::SUCCESS),
        BenchCommand::Scores(options) => scores(options).map(|()| ExitCode::SUCCESS),
        BenchCommand::Move(options) => moves::run(options),
    }
}

fn ycsb(options: &YcsbOptions) -> Result<(), CliError> {
    let name = options.engine.as_str();
    let Some(candidate) = antumbra_benches::candidates().into_iter().find(|candidate| candidate.name == name) else {
        return Err(unknown(name).into());
    };
    let bar = if options.bench.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar.set_message("measuring the device, then loading");
    let report = compare::run_alone(candidate, &options.bench, |result| {
        bar.set_message(format!("{}: {:.0} op/s; next", result.phase, result.ops_per_second));
    })?;
    bar.finish_and_clear();
    if options.bench.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}{}", report.header(), report.tables());
    }
    Ok(())
}

fn device(options: &DeviceOptions) -> Result<(), CliError> {
    let bar = if options.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let report = antumbra_benches::device::run(options, |next| bar.set_message(next))?;
    bar.finish_and_clear();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

fn scores(options: &ScoresOptions) -> Result<(), CliError> {
    let bar = if options.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let report = antumbra_benches::scores::run(options, |next| bar.set_message(next))?;
    bar.finish_and_clear();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
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
