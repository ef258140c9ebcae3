//! `antumbra bench report`: every benchmark in one run, as one page, one JSON, one CSV and one Markdown.
//!
//! Each part is a command of its own, so that one that fails, hangs or dies takes nothing else with it; it is shown as failed,
//! with what it said.

mod child;
mod commit;
mod criterion;
mod csv;
mod figures;
mod header;
mod html;
mod markdown;
pub mod model;
mod parts;
mod plots;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::CliError;
use model::{FORMAT, Outcome, Part, Suite};
use parts::{Job, Mode, Task};

#[derive(Args)]
pub struct ReportOptions {
    /// Under a minute: shows that every part works; the figures mean nothing.
    #[arg(long, conflicts_with_all = ["quick", "full"])]
    smoke: bool,
    /// Ten minutes on two cores (the default).
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// An hour and a half, more rounds.
    #[arg(long)]
    full: bool,
    /// Some parts alone, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Folder of report.html, report.json, report.csv and report.md.
    #[arg(long, default_value = "bench-report")]
    out: PathBuf,
    /// Measures nothing: writes the pages of this report.json anew.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["smoke", "quick", "full", "only", "dir", "compare", "hot", "predictor", "traces"]
    )]
    from: Option<PathBuf>,
    /// Folder for the data, whose device is measured; a temporary one without it.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The program `compare` of antumbra-benches, built with the peers: measures them beside Antumbra.
    #[arg(long)]
    compare: Option<PathBuf>,
    /// The bench `hot` of antumbra-benches.
    #[arg(long)]
    hot: Option<PathBuf>,
    /// The bench `predictor` of antumbra-benches.
    #[arg(long)]
    predictor: Option<PathBuf>,
    /// Traces for the predictor, as PATH:MAPPING; the bundled one without it.
    #[arg(long = "trace")]
    traces: Vec<String>,
}

impl ReportOptions {
    fn mode(&self) -> Mode {
        match (self.smoke, self.full) {
            (true, _) => Mode::Smoke,
            (_, true) => Mode::Full,
            _ => Mode::Quick,
        }
    }
}

/// Runs all parts and writes the report; fails if a part failed, not if a goal is missed.
pub fn run(options: &ReportOptions) -> Result<ExitCode, CliError> {
    let make_folder = || {
        let made = std::fs::create_dir_all(&options.out);
        made.map_err(|cause| format!("--out {}: {cause}", options.out.display()))
    };
    if let Some(kept) = &options.from {
        let suite = read(kept).map_err(|cause| format!("--from {}: {cause}", kept.display()))?;
        make_folder()?;
        write(&suite, &options.out)?;
        print(&suite, &options.out);
        return Ok(ExitCode::SUCCESS);
    }
    let work = tempfile::Builder::new().prefix("antumbra-report-").tempdir()?;
    let trace = figures::bundled_trace(work.path())?;
    let mut jobs = parts::jobs(options, &trace)?;
    if let Some(unknown) = options.only.iter().find(|wanted| jobs.iter().all(|job| job.name != **wanted)) {
        let names: Vec<&str> = jobs.iter().map(|job| job.name).collect();
        return Err(format!("--only {unknown}: the parts are {}", names.join(", ")).into());
    }
    jobs.retain(|job| options.only.is_empty() || options.only.iter().any(|wanted| wanted == job.name));
    make_folder()?;
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut suite =
        Suite { format: FORMAT, mode: options.mode().name().into(), header: header::read(&dir)?, parts: Vec::new() };
    let bar = ProgressBar::new(jobs.len() as u64);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {prefix} [{elapsed_precise}] {wide_msg}")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    for job in jobs {
        bar.set_prefix(job.name);
        bar.set_message("");
        suite.parts.push(part(job, work.path(), &bar));
        bar.inc(1);
        // After each part: what was measured stays, whatever comes.
        write(&suite, &options.out)?;
    }
    bar.finish_and_clear();
    print(&suite, &options.out);
    Ok(if suite.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn part(job: Job, work: &Path, bar: &ProgressBar) -> Part {
    let begin = Instant::now();
    let mut part = Part {
        name: job.name.into(),
        title: job.title.into(),
        about: job.about.into(),
        command: String::new(),
        seconds: 0.0,
        outcome: Outcome::Done,
        facts: Vec::new(),
        figures: Vec::new(),
        raw: Value::Null,
    };
    match &job.task {
        Err(reason) => part.outcome = Outcome::Skipped { reason: reason.clone() },
        Ok(task) => {
            part.command = task.text();
            if let Err(cause) = measure(&job, task, &work.join(job.name), bar, &mut part) {
                part.outcome = Outcome::Failed { error: cause.to_string() };
            }
        }
    }
    part.seconds = begin.elapsed().as_secs_f64();
    part
}

fn measure(job: &Job, task: &Task, home: &Path, bar: &ProgressBar, part: &mut Part) -> Result<(), CliError> {
    let left = child::run(task.command(home), job.limit, task.criterion, bar)?;
    let raw = if task.criterion {
        criterion::estimates(home)
    } else {
        serde_json::from_str(&left.stdout).map_err(|cause| format!("what it printed is no JSON: {cause}").into())
    };
    // A command that failed may have measured all the same: a move that lost a write says so in its JSON.
    match (raw, left.error) {
        (Ok(raw), error) => {
            let read = job.reader.read(&raw);
            part.raw = raw;
            (part.figures, part.facts) = read?;
            error.map_or(Ok(()), |error| Err(error.into()))
        }
        (Err(_), Some(error)) => Err(error.into()),
        (Err(cause), None) => Err(cause),
    }
}

/// A report that was written before.
fn read(path: &Path) -> Result<Suite, CliError> {
    let suite: Suite = serde_json::from_slice(&std::fs::read(path)?)?;
    if suite.format != FORMAT {
        return Err(format!("a report of format {}; this program knows {FORMAT}", suite.format).into());
    }
    Ok(suite)
}

fn write(suite: &Suite, out: &Path) -> Result<(), CliError> {
    let texts = [
        ("report.json", serde_json::to_string_pretty(suite)?),
        ("report.csv", csv::table(suite)),
        ("report.md", markdown::page(suite)),
        ("report.html", html::page(suite)?),
    ];
    for (name, text) in texts {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(|cause| format!("{}: {cause}", path.display()))?;
    }
    Ok(())
}

fn print(suite: &Suite, out: &Path) {
    for part in &suite.parts {
        match &part.outcome {
            Outcome::Done => println!("{:<10} done in {:.0} s", part.name, part.seconds),
            Outcome::Skipped { reason } => println!("{:<10} left out: {reason}", part.name),
            Outcome::Failed { error } => println!("{:<10} FAILED: {error}", part.name),
        }
    }
    for (part, figure) in suite.judged() {
        let (median, verdict) = (html::digits(figure.median), figure.verdict());
        let what = format!("{}: {}, {}", part.name, figure.group, figure.name);
        let goal = figure.goal.map_or(String::new(), |goal| goal.to_string());
        println!("{what:<64} {median:>10} {:<12} {goal:<8} {verdict}", figure.unit);
    }
    println!("{}", out.join("report.html").display());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
