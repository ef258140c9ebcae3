//! `antumbra predict eval`: every scorer against the oracle on one trace, as a table, JSON or a page.

use std::path::PathBuf;

use antumbra_predictor::eval::{EvalConfig, Mapping, Report, Requests, ScorerReport, evaluate};
use antumbra_predictor::model::Model;
use antumbra_predictor::online::OnlineConfig;
use antumbra_predictor::scorer::ScorerKind;
use antumbra_predictor::trace;
use clap::Args;

use super::{page, trace_name};
use crate::CliError;

#[derive(Args)]
pub struct EvalOptions {
    /// Trace file (zstd CSV `ts_us,op,key,size`).
    #[arg(long)]
    trace: PathBuf,
    /// How keys lie in the key order: range, arrival or hash.
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
    fn config(&self) -> Result<EvalConfig, CliError> {
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
            ..EvalConfig::new(self.mapping)
        })
    }
}

/// Runs `antumbra predict eval`.
pub fn run(options: &EvalOptions) -> Result<(), CliError> {
    let config = options.config()?;
    let requests = Requests { trace: trace_name(&options.trace), requests: trace::read_all(&options.trace)? };
    let report = evaluate(&requests, &config)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if options.html {
        println!("{}", page::of_report(&report));
    } else {
        print_table(&report);
    }
    Ok(())
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
