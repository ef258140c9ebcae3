//! `antumbra-cluster-sim`: runs seeds of the cluster's simulation. `cargo xtask sim --cluster` builds and starts it.

use std::process::ExitCode;
use std::time::Instant;

use antumbra_net::sim::{Failure, Mutant, Options, Report, run_seed};

const HELP: &str = "\
cargo xtask sim --cluster [--seeds N] [--first S] [--ops N] [--threads N]   runs N seeds from S on (200, 0)
cargo xtask sim --cluster --seed S [--ops N] [--verbose]    runs one seed twice: it has to replay exactly
cargo xtask sim --cluster --mutant NAME [--seeds N]         a planted defect has to be found within N seeds (400)
";
/// What a failing seed shows of what happened before.
const LINES_SHOWN: usize = 60;

const MUTANTS: [(&str, Mutant); 10] = [
    ("write-before-hand-over", Mutant::WriteBeforeHandOver),
    ("freeze-left-by-timer", Mutant::FreezeLeftByTimer),
    ("stale-attempt", Mutant::StaleAttempt),
    ("serve-unread", Mutant::ServeUnread),
    ("endless-lease", Mutant::EndlessLease),
    ("drop-parted", Mutant::DropParted),
    ("mirror-unsynced", Mutant::MirrorUnsynced),
    ("delta-from-now", Mutant::DeltaFromNow),
    ("reshape-unflushed", Mutant::ReshapeUnflushed),
    ("drop-unmerged", Mutant::DropUnmerged),
];

struct Arguments {
    seeds: Option<u64>,
    first: u64,
    seed: Option<u64>,
    threads: usize,
    verbose: bool,
    options: Options,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(what) => {
            let mutants: Vec<&str> = MUTANTS.iter().map(|(name, _)| *name).collect();
            eprintln!("{what}\n{HELP}mutants: {}", mutants.join(", "));
            return ExitCode::FAILURE;
        }
    };
    // A panic of a host is a finding like any other, and is reported with its seed.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let passed = match (arguments.seed, arguments.options.mutant) {
        (Some(seed), _) => replay(seed, &arguments),
        (None, Some(mutant)) => hunt(mutant, &arguments),
        (None, None) => sweep(&arguments),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options::default();
    let mut arguments = Arguments { seeds: None, first: 0, seed: None, threads, verbose: false, options };
    while let Some(flag) = words.next() {
        if flag == "--verbose" {
            arguments.verbose = true;
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
            "--ops" => arguments.options.operations = number()? as usize,
            "--threads" => arguments.threads = (number()? as usize).max(1),
            "--mutant" => {
                let known = MUTANTS.iter().find(|(name, _)| *name == value);
                let known = known.ok_or_else(|| format!("no mutant is called '{value}'"))?;
                arguments.options.mutant = Some(known.1);
            }
            other => return Err(format!("unknown flag '{other}'")),
        }
    }
    Ok(arguments)
}

/// Runs one seed twice and compares.
fn replay(seed: u64, arguments: &Arguments) -> bool {
    println!("seed {seed}");
    let traced = Options { traced: true, ..arguments.options.clone() };
    let ((one, lines), (two, again)) = (run_seed(seed, &traced), run_seed(seed, &traced));
    show(&lines, if arguments.verbose { usize::MAX } else { LINES_SHOWN }, arguments.verbose || one.is_err());
    match &one {
        Ok(report) => println!("{report:#?}"),
        Err(failure) => println!("FAILED {failure}"),
    }
    let same = one == two && lines == again;
    if !same {
        let at = lines.iter().zip(&again).take_while(|(one, two)| one == two).count();
        println!("FAILED: the second run went another way from line {at} on: {two:?}");
        println!("  {:?}\n  {:?}", lines.get(at), again.get(at));
    }
    one.is_ok() && same
}

fn show(lines: &[String], last: usize, wanted: bool) {
    if wanted {
        lines.iter().skip(lines.len().saturating_sub(last)).for_each(|line| println!("{line}"));
    }
}

/// Runs many seeds; every failure is printed, and of the first what happened before it.
fn sweep(arguments: &Arguments) -> bool {
    let seeds = arguments.seeds.unwrap_or(200);
    let start = Instant::now();
    let (sum, failures) = run_seeds(arguments, seeds, false);
    let seconds = start.elapsed().as_secs_f64();
    println!("{sum:#?}");
    if let Some(first) = failures.first() {
        let (_, lines) = run_seed(first.seed, &Options { traced: true, ..arguments.options.clone() });
        show(&lines, LINES_SHOWN, true);
        println!("FAILED {first}\nreplay: cargo xtask sim --cluster --seed {}{}", first.seed, operations(arguments));
    }
    println!("{} of {seeds} seeds failed, {seconds:.1} s on {} threads", failures.len(), arguments.threads);
    failures.is_empty()
}

/// The flag without which a seed would not replay.
fn operations(arguments: &Arguments) -> String {
    match arguments.options.operations {
        same if same == Options::default().operations => String::new(),
        other => format!(" --ops {other}"),
    }
}

/// Runs seeds until one finds the planted defect.
fn hunt(mutant: Mutant, arguments: &Arguments) -> bool {
    let seeds = arguments.seeds.unwrap_or(400);
    let (_, failures) = run_seeds(arguments, seeds, true);
    antumbra_engine::sim::report_hunt(&mutant, seeds, &failures)
}

/// Failures come back ascending by seed.
fn run_seeds(arguments: &Arguments, seeds: u64, until_found: bool) -> (Report, Vec<Failure>) {
    let range = arguments.first..arguments.first + seeds;
    let run = |seed| run_seed(seed, &arguments.options).0;
    antumbra_engine::sim::run_seeds(arguments.threads, range, until_found, run, Report::add)
}
