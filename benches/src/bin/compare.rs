//! Antumbra and its peers in turns: `cargo run --release -p antumbra-benches --features peers --bin compare -- --help`.

use std::process::ExitCode;

use antumbra_benches::children::{StoreProcess, serve};
use antumbra_benches::compare::{Place, begin_report};
use antumbra_benches::options::BenchOptions;
use antumbra_benches::report::Report;
use antumbra_benches::spec::{Phase, Spec};
use antumbra_benches::store::Candidate;
use antumbra_benches::{Error, Result, candidates};
use clap::Parser;

/// Memory beside the budget that a limited process gets: the harness, code, stacks, holes of the heap. What a store leaves of
/// it is page cache: more would be memory beyond the budget to those that read through it.
const HARNESS_BYTES: u64 = 96 << 20;

#[derive(Parser)]
#[command(about = "Measures stores in turns, each in a process of its own that is stopped while another is measured")]
struct Cli {
    /// Stores, separated by commas; the first is what the others are compared with.
    #[arg(long, value_delimiter = ',', default_value = "antumbra")]
    engines: Vec<String>,
    /// Limit each process to the budget and what the harness needs, page cache included (control groups; needs root).
    #[arg(long)]
    enforce_memory: bool,
    #[command(flatten)]
    bench: BenchOptions,
    /// The store that this process is to be; used by the program itself.
    #[arg(long, hide = true)]
    serve: Option<String>,
    /// Its specification.
    #[arg(long, hide = true, requires = "serve")]
    spec: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.serve {
        Some(name) => serve_store(&cli, name),
        None => compare(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("compare: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn candidate(name: &str) -> Result<Candidate> {
    let known = candidates();
    let names: Vec<&str> = known.iter().map(|candidate| candidate.name).collect();
    let unknown = format!("--engines {name}: this build knows {} (others need --features peers)", names.join(", "));
    known.into_iter().find(|candidate| candidate.name == name).ok_or_else(|| Error::refused(unknown))
}

fn serve_store(cli: &Cli, name: &str) -> Result<()> {
    let (Some(spec), Some(dir)) = (&cli.spec, &cli.bench.dir) else {
        return Err(Error::refused("--serve is for the program itself"));
    };
    let spec: Spec = serde_json::from_str(spec).map_err(|cause| Error::refused(format!("--spec: {cause}")))?;
    serve(candidate(name)?, &spec, dir)
}

fn compare(cli: &Cli) -> Result<()> {
    let chosen: Vec<Candidate> = cli.engines.iter().map(|name| candidate(name)).collect::<Result<_>>()?;
    let spec = cli.bench.spec()?;
    let place = Place::new(cli.bench.dir.as_deref())?;
    let mut report = begin_report(&place, &spec)?;
    let limit = cli.enforce_memory.then_some(spec.memory_bytes as u64 + HARNESS_BYTES);
    for round in 0..cli.bench.rounds {
        for phases in cli.bench.sessions() {
            let mut stores = Vec::new();
            for candidate in &chosen {
                let dir = place.emptied(candidate.name)?;
                let mut store = StoreProcess::start(*candidate, &spec, &dir, limit)?;
                report.stores.insert(candidate.name.to_string(), store.configuration.clone());
                // Loaded one after another: the first is stopped while the next one loads.
                run(&mut store, phases[0], round, &mut report)?;
                stores.push(store);
            }
            for &phase in &phases[1..] {
                // Who goes first changes from round to round.
                let count = stores.len();
                for turn in 0..count {
                    run(&mut stores[(turn + round as usize) % count], phase, round, &mut report)?;
                }
            }
            stores.into_iter().try_for_each(StoreProcess::finish)?;
        }
    }
    if cli.bench.json {
        let json = serde_json::to_string_pretty(&report);
        println!("{}", json.map_err(|cause| Error::client(format!("JSON: {cause}")))?);
    } else {
        println!("{}{}", report.header(), report.tables());
    }
    Ok(())
}

fn run(store: &mut StoreProcess, phase: Phase, round: u32, report: &mut Report) -> Result<()> {
    let result = store.run(phase, round)?;
    eprintln!("round {round}, {phase}, {}: {:.0} op/s", result.store, result.ops_per_second);
    report.phases.push(result);
    Ok(())
}
