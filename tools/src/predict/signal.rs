//! `antumbra predict signal`: the trigger of a move against its rivals.

use std::path::PathBuf;

use antumbra_predictor::signal::WatchConfig;
use antumbra_predictor::signal::contest::{Contest, Summary, Table, Trigger, summarise, table};
use antumbra_predictor::signal::scenario::Scenario;
use antumbra_predictor::trace;
use clap::Args;

use super::trace_name;
use crate::CliError;

#[derive(Args)]
pub struct SignalOptions {
    /// Scenarios; their shapes go round with the seed.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    seeds: u32,
    /// Seed of the first one. The trigger was tuned on seeds below 1200.
    #[arg(long, default_value_t = 100_000)]
    first_seed: u64,
    /// Replay the load of a recorded trace instead; may be given several times.
    #[arg(long = "trace")]
    traces: Vec<PathBuf>,
    /// With --trace: the part of the trace's highest load that hurts.
    #[arg(long, default_value_t = 0.8)]
    limit: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Windows that a recorded trace is cut into, by time.
const TRACE_WINDOWS: usize = 1000;

/// Runs `antumbra predict signal`.
pub fn run(options: &SignalOptions) -> Result<(), CliError> {
    let contest = Contest::default();
    let config = WatchConfig::for_copy(contest.copy_windows as f64);
    if options.traces.is_empty() {
        let table = table(&contest, config, options.first_seed, options.seeds as usize)?;
        if options.json {
            println!("{}", serde_json::to_string_pretty(&table)?);
        } else {
            print(&table);
        }
        return Ok(());
    }
    for path in &options.traces {
        let scenario = replayed(path, options.limit)?;
        let of = |trigger| summarise(&contest, std::slice::from_ref(&scenario), trigger);
        let all = [
            ("predictive", of(Trigger::Predictive(config))?),
            ("reactive", of(Trigger::Reactive { level: 1.0 })?),
            ("oracle", of(Trigger::Oracle)?),
        ];
        if options.json {
            let all: serde_json::Map<_, _> = all
                .iter()
                .map(|(name, summary)| Ok(((*name).to_owned(), serde_json::to_value(summary)?)))
                .collect::<Result<_, serde_json::Error>>()?;
            println!("{}", serde_json::json!({ "trace": trace_name(path), "triggers": all }));
        } else {
            println!("{}", trace_name(path));
            head();
            all.iter().for_each(|(name, summary)| row(name, summary));
        }
    }
    Ok(())
}

/// Requests of a trace by window of equal time.
fn replayed(path: &std::path::Path, limit: f64) -> Result<Scenario, CliError> {
    if !(limit > 0.0 && limit <= 1.0) {
        return Err(format!("--limit {limit}: above 0, at most 1").into());
    }
    let requests = trace::read_all(path)?;
    let end = requests.last().map_or(0, |request| u128::from(request.ts_us)) + 1;
    if requests.windows(2).all(|pair| pair[1].ts_us - pair[0].ts_us <= 1) {
        return Err(format!("{}: its times are request numbers, so it has no load over time", path.display()).into());
    }
    let mut totals = vec![0.0; TRACE_WINDOWS];
    for request in &requests {
        totals[(u128::from(request.ts_us) * TRACE_WINDOWS as u128 / end) as usize] += 1.0;
    }
    let highest = totals.iter().copied().fold(1.0, f64::max);
    Ok(Scenario::replayed(&totals, limit * highest))
}

fn head() {
    println!(
        "{:<22} {:>10} {:>11} {:>8} {:>7} {:>6} {:>6} {:>8} {:>7} {:>10} {:>7}",
        "trigger",
        "violations",
        "foreseeable",
        "signalled",
        "ready",
        "lead",
        "recall",
        "precision",
        "fading",
        "oscillate",
        "wasted"
    );
}

fn row(name: &str, of: &Summary) {
    println!(
        "{name:<22} {:>10} {:>11} {:>8.1}% {:>6.1}% {:>6.0} {:>5.0}% {:>8.0}% {:>6.0}% {:>9.0}% {:>4} GiB",
        of.violations,
        of.violations_foreseeable,
        100.0 * of.signalled,
        100.0 * of.ready,
        of.lead_windows,
        100.0 * of.recall,
        100.0 * of.precision,
        100.0 * of.false_alarms,
        100.0 * of.false_alarms_oscillating,
        of.wasted_bytes >> 30,
    );
}

fn print(table: &Table) {
    println!("{} scenarios from seed {} on; a copy takes 20 windows", table.scenarios, table.first_seed);
    head();
    row("predictive", &table.predictive);
    row("reactive", &table.reactive);
    let level = format!("reactive from {:.0} % on", 100.0 * table.reactive_equal_cost_level);
    row(&level, &table.reactive_equal_cost);
    row("oracle", &table.oracle);
    println!(
        "violations avoided: {:.1} % of the reactive trigger's, {:.1} % without steps, which nobody can foresee;\n\
         at equal cost (bytes copied) {:.1} %, {:.1} % without steps; {:.1} % are to be had at that cost by a trigger\n\
         that foresees all but steps",
        100.0 * table.fewer_violations,
        100.0 * table.fewer_foreseeable,
        100.0 * table.fewer_violations_equal_cost,
        100.0 * table.fewer_foreseeable_equal_cost,
        100.0 * table.bound_equal_cost,
    );
}
