//! `antumbra predict eval`: every scorer against the oracle on one trace, as a table, JSON or a page; on several, a row of
//! a table for each.

use std::path::PathBuf;

use antumbra_predictor::eval::{EvalConfig, Mapping, Report, Requests, ScorerReport, evaluate};
use antumbra_predictor::model::Model;
use antumbra_predictor::online::OnlineConfig;
use antumbra_predictor::scorer::ScorerKind;
use antumbra_predictor::trace;
use clap::Args;
use serde::Serialize;

use super::{given_trace, page, trace_name};
use crate::CliError;

#[derive(Args)]
pub struct EvalOptions {
    /// Trace file (zstd CSV `ts_us,op,key,size`), as PATH or PATH:MAPPING; may be given several times.
    #[arg(long = "trace", required = true)]
    traces: Vec<String>,
    /// How keys lie in the key order, unless a trace says it: range, arrival or hash.
    #[arg(long, default_value = "range")]
    mapping: Mapping,
    /// Segments of the partition.
    #[arg(long, default_value_t = 256)]
    segments: usize,
    /// Windows of the whole trace, of equal numbers of requests.
    #[arg(long, default_value_t = 1024)]
    windows: usize,
    /// Windows that the copy takes.
    #[arg(long, default_value_t = 8)]
    horizon: usize,
    /// `all`, or names separated by commas. The gaps need gru and ewma.
    #[arg(long, default_value = "all")]
    scorer: String,
    /// Weights; without it the shipped ones.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Whether gru learns from the trace's own windows as they close, as on a host: on or off.
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    online: String,
    /// Copying takes its time by bytes, and the order is by score per byte.
    #[arg(long)]
    per_byte: bool,
    /// Leave out the first request of each key, which may have created it.
    #[arg(long)]
    known_keys: bool,
    /// Seed of the random order and of the confidence intervals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// Print a page.
    #[arg(long)]
    html: bool,
}

impl EvalOptions {
    fn config(&self, mapping: Mapping) -> Result<EvalConfig, CliError> {
        let scorers = match self.scorer.as_str() {
            "all" => ScorerKind::ALL.to_vec(),
            names => names.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>()?,
        };
        Ok(EvalConfig {
            segments: self.segments,
            windows: self.windows,
            horizon: self.horizon,
            scorers,
            model: self.model.as_deref().map(Model::load).transpose()?,
            online: (self.online == "on").then(OnlineConfig::default),
            per_byte: self.per_byte,
            known_keys_only: self.known_keys,
            seed: self.seed,
            ..EvalConfig::new(mapping)
        })
    }

    fn report(&self, given: &str) -> Result<Report, CliError> {
        let (path, mapping) = given_trace(given, self.mapping)?;
        let config = self.config(mapping)?;
        let requests = Requests { trace: trace_name(&path), requests: trace::read_all(&path)? };
        Ok(evaluate(&requests, &config)?)
    }
}

/// Runs `antumbra predict eval`.
pub fn run(options: &EvalOptions) -> Result<(), CliError> {
    let [given] = options.traces.as_slice() else {
        return several(options);
    };
    let report = options.report(given)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if options.html {
        println!("{}", page::of_report(&report));
    } else {
        print_table(&report);
    }
    Ok(())
}

/// What several traces have in common.
#[derive(Serialize)]
struct Summary {
    traces: Vec<Report>,
    /// Means over those that have one.
    mean_gap_vs_ewma: Option<f64>,
    mean_gap_vs_classic: Option<f64>,
    /// The least that `auto` has above the best rule of a trace, in points of the oracle: the guard.
    least_auto_above_best_rule: Option<f64>,
}

impl Summary {
    fn of(traces: Vec<Report>) -> Summary {
        let mean = |gap: fn(&Report) -> Option<f64>| {
            let gaps: Vec<f64> = traces.iter().filter_map(gap).collect();
            (!gaps.is_empty()).then(|| gaps.iter().sum::<f64>() / gaps.len() as f64)
        };
        Summary {
            mean_gap_vs_ewma: mean(|report| report.gap_vs_ewma),
            mean_gap_vs_classic: mean(|report| report.gap_vs_classic),
            least_auto_above_best_rule: traces.iter().filter_map(Report::auto_above_best_rule).min_by(f64::total_cmp),
            traces,
        }
    }
}

/// One row a trace, as Markdown has tables, each when it is known.
fn several(options: &EvalOptions) -> Result<(), CliError> {
    if options.html {
        return Err("--html: a page is of one trace; with several, print the table or --json".into());
    }
    let mut reports = Vec::new();
    for given in &options.traces {
        let report = options.report(given)?;
        if !options.json {
            if reports.is_empty() {
                print_head(&report);
            }
            println!("{}", markdown_row(&report));
        }
        reports.push(report);
    }
    let summary = Summary::of(reports);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
        return Ok(());
    }
    let percent = |gap: Option<f64>| gap.map_or("-".to_owned(), |gap| format!("{:+.1} %", 100.0 * gap));
    let (ewma, classic) = (percent(summary.mean_gap_vs_ewma), percent(summary.mean_gap_vs_classic));
    println!("\nmean gap to the oracle that gru closes: {ewma} against ewma, {classic} against classic");
    if let Some(least) = summary.least_auto_above_best_rule {
        println!("auto less the best rule of the trace, at worst: {least:+.2} points");
    }
    Ok(())
}

fn print_head(report: &Report) {
    let names = columns(report).map(ScorerKind::as_str).collect::<Vec<_>>().join(" | ");
    println!(
        "| trace/mapping | {names} | classic | gap vs ewma (95 %) | gap vs classic (95 %) | auto less best rule |\n|{}",
        "---|".repeat(columns(report).count() + 5)
    );
}

/// The scorers of a report, floor first.
fn columns(report: &Report) -> impl Iterator<Item = ScorerKind> + '_ {
    ScorerKind::ALL.into_iter().filter(|kind| report.scorers.contains_key(kind.as_str()))
}

fn markdown_row(report: &Report) -> String {
    let pct = |kind: ScorerKind| format!("{:.1}", report.scorers[kind.as_str()].pct_of_oracle);
    let gap = |gap: Option<f64>, ci95: Option<[f64; 2]>| match (gap, ci95) {
        (Some(gap), Some([low, high])) => {
            format!("{:+.0} % ({:+.0} to {:+.0})", 100.0 * gap, 100.0 * low, 100.0 * high)
        }
        _ => "-".to_owned(),
    };
    format!(
        "| {}/{} | {} | {:.1} | {} | {} | {} |",
        report.trace,
        report.mapping,
        columns(report).map(pct).collect::<Vec<_>>().join(" | "),
        report.classic.pct_of_oracle,
        gap(report.gap_vs_ewma, report.gap_vs_ewma_ci95),
        gap(report.gap_vs_classic, report.gap_vs_classic_ci95),
        report.auto_above_best_rule().map_or("-".to_owned(), |points| format!("{points:+.1}")),
    )
}

fn print_table(report: &Report) {
    println!("{} ({}, {} segments, {} positions)", report.trace, report.mapping, report.segments, report.positions);
    println!("{:<24} {:>8} {:>12} {:>18}", "scorer", "share", "% of oracle", "95 % interval");
    for (name, scorer) in rows(report) {
        let [low, high] = scorer.ci95;
        println!("{name:<24} {:>8.4} {:>12.2} {low:>8.2} - {high:>7.2}", scorer.share, scorer.pct_of_oracle);
    }
    for (what, gap) in gaps(report) {
        println!("gap to the oracle that gru closes against {what}: {gap}");
    }
}

/// Names and figures, best last; what the rules alone can do among them.
pub(super) fn rows(report: &Report) -> Vec<(String, &ScorerReport)> {
    let with_alpha = |name: &str, scorer: &ScorerReport| match scorer.alpha {
        Some(alpha) => format!("{name} (alpha {alpha})"),
        None => name.to_owned(),
    };
    let mut rows: Vec<(String, &ScorerReport)> =
        report.scorers.iter().map(|(name, scorer)| (with_alpha(name, scorer), scorer)).collect();
    rows.push(("classic (chosen rule)".to_owned(), &report.classic));
    rows.push(("auto of rules alone".to_owned(), &report.rules_mixed));
    rows.sort_by(|a, b| a.1.share.total_cmp(&b.1.share));
    rows
}

/// Rivals and the part of the gap that is closed, in words.
pub(super) fn gaps(report: &Report) -> Vec<(&'static str, String)> {
    let text = |gap: Option<f64>, ci95: Option<[f64; 2]>| match (gap, ci95) {
        (Some(gap), Some([low, high])) => {
            format!("{:+.1} % (95 % interval {:+.1} to {:+.1})", 100.0 * gap, 100.0 * low, 100.0 * high)
        }
        _ => "not known: it needs gru, its rival, and room above the rival".to_owned(),
    };
    vec![
        ("ewma of the best alpha", text(report.gap_vs_ewma, report.gap_vs_ewma_ci95)),
        ("classic", text(report.gap_vs_classic, report.gap_vs_classic_ci95)),
    ]
}
