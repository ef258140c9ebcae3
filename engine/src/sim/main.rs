//! `antumbra-sim`: runs seeds of the simulator on all cores. `cargo xtask sim` builds and starts it.

use std::process::ExitCode;
use std::time::Instant;

use antumbra_engine::sim::{Bug, Failure, Options, Report, run_seed};

const HELP: &str = "\
cargo xtask sim [--seeds N] [--first S] [--ops N] [--threads N]   runs N seeds from S on (2000, 0), N operations each
cargo xtask sim --seed S [--ops N] [--verbose]                    runs one seed twice: it has to replay exactly
cargo xtask sim --mutant NAME [--seeds N]                         a planted defect has to be found within N seeds (200);
                                                                  drop-wal-sync, skip-checksum, reorder-manifest
";

struct Arguments {
    seeds: Option<u64>,
    first: u64,
    seed: Option<u64>,
    threads: usize,
    options: Options,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}\n{HELP}");
            return ExitCode::FAILURE;
        }
    };
    // A panic of the engine is a finding like any other, and is reported with its seed.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let passed = match (arguments.seed, arguments.options.bug) {
        (Some(seed), _) => replay(seed, &arguments.options),
        (None, Some(bug)) => hunt(bug, &arguments),
        (None, None) => sweep(&arguments),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments = Arguments { seeds: None, first: 0, seed: None, threads, options: Options::default() };
    while let Some(flag) = words.next() {
        if flag == "--verbose" {
            arguments.options.verbose = true;
            continue;
        }
        if flag == "--help" {
            println!("{HELP}");
            std::process::exit(0);
        }
        let value = words.next().ok_or_else(|| format!("{flag} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{flag} wants a number, not '{value}'"));
        match flag.as_str() {
            "--seeds" => arguments.seeds = Some(number()?),
            "--first" => arguments.first = number()?,
            "--seed" => arguments.seed = Some(number()?),
            "--ops" => arguments.options.operations = number()?,
            "--threads" => arguments.threads = (number()? as usize).max(1),
            "--mutant" => {
                arguments.options.bug = Some(match value.as_str() {
                    "drop-wal-sync" => Bug::DropWalSync,
                    "skip-checksum" => Bug::SkipChecksum,
                    "reorder-manifest" => Bug::ReorderManifest,
                    other => return Err(format!("no mutant is called '{other}'")),
                });
            }
            other => return Err(format!("unknown flag '{other}'")),
        }
    }
    Ok(arguments)
}

/// Runs one seed twice and compares.
fn replay(seed: u64, options: &Options) -> bool {
    println!("seed {seed}");
    let quiet = Options { verbose: false, ..options.clone() };
    let (one, two) = (run_seed(seed, options), run_seed(seed, &quiet));
    match &one {
        Ok(report) => println!("{report:#?}"),
        Err(failure) => println!("FAILED {failure}"),
    }
    if one != two {
        println!("FAILED: the second run went another way: {two:?}");
    }
    one.is_ok() && one == two
}

/// Runs many seeds; every failure is printed.
fn sweep(arguments: &Arguments) -> bool {
    let seeds = arguments.seeds.unwrap_or(2_000);
    println!(
        "seeds {}..{}, {} operations each",
        arguments.first,
        arguments.first + seeds,
        arguments.options.operations
    );
    let start = Instant::now();
    let (sum, failures) = run_seeds(arguments, seeds, false);
    let seconds = start.elapsed().as_secs_f64();
    println!("{sum:#?}");
    println!("{} of {seeds} seeds failed, {seconds:.1} s on {} threads", failures.len(), arguments.threads);
    if let Some(first) = failures.first() {
        println!("replay: cargo xtask sim --seed {}", first.seed);
    }
    failures.is_empty()
}

/// Runs seeds until one finds the planted defect.
fn hunt(bug: Bug, arguments: &Arguments) -> bool {
    let seeds = arguments.seeds.unwrap_or(200);
    let (_, failures) = run_seeds(arguments, seeds, true);
    antumbra_engine::sim::report_hunt(&bug, seeds, &failures)
}

/// Failures come back ascending by seed.
fn run_seeds(arguments: &Arguments, seeds: u64, until_found: bool) -> (Report, Vec<Failure>) {
    let range = arguments.first..arguments.first + seeds;
    let run = |seed| run_seed(seed, &arguments.options).map_err(|failure| *failure);
    antumbra_engine::sim::run_seeds(arguments.threads, range, until_found, run, Report::add)
}
