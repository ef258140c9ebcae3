//! `antumbra repair`: what keeps a data folder from opening or being read, what can be done, and what that costs.

use std::path::PathBuf;
use std::process::ExitCode;

use antumbra_engine::offline::{self, Finding, LostKeys};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::CliError;
use crate::show::{hex, key};

/// Exit code of a dry run that found something, and of a repair that could not mend everything.
const FOUND: u8 = 2;

#[derive(Args)]
pub struct RepairOptions {
    /// Data folder (of a node: its `data` folder). No engine may have it open.
    #[arg(long)]
    dir: PathBuf,
    /// Repair. Without it nothing is changed, and what would be done is printed.
    #[arg(long)]
    apply: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Exit code 0: sound, or repaired; 2: something is left to be done.
pub fn run(options: &RepairOptions) -> Result<ExitCode, CliError> {
    let bar = if options.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let done = offline::repair(&options.dir, options.apply, |path| {
        bar.set_message(path.display().to_string());
        bar.tick();
    })?;
    bar.finish_and_clear();
    let beyond = done.findings.iter().any(|finding| matches!(finding, Finding::Beyond { .. }));
    if options.json {
        let findings: Vec<Value> = done.findings.iter().map(finding_json).collect();
        let report = json!({ "applied": done.applied, "findings": findings, "quarantine": done.quarantine });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        done.findings.iter().for_each(print_finding);
        match (done.findings.is_empty(), done.applied) {
            (true, _) => println!("sound: nothing to repair"),
            (false, false) => println!("nothing was changed; run again with --apply to do this"),
            (false, true) if beyond => println!("repaired, except for what is beyond repair"),
            (false, true) => println!("repaired"),
        }
        if let Some(place) = done.quarantine.filter(|_| done.applied) {
            println!("what was taken out of service lies in {}", place.display());
        }
    }
    let left = beyond || (!done.findings.is_empty() && !done.applied);
    Ok(if left { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

fn print_finding(finding: &Finding) {
    match finding {
        Finding::TornTail { path, offset, bytes } => {
            println!("{}: the log is torn at {offset} ({bytes} bytes)", path.display());
            println!("  cut there; lost: nothing that was acknowledged as durable");
        }
        Finding::LogCut { path, offset, what, batches, records, later } => {
            println!("{}: hole in the log at {offset}: {what}", path.display());
            println!("  cut there; lost: the damaged batches, and {batches} whole batches behind them");
            for (partition, loss) in records {
                println!("    partition {partition}: {} records, LSN {} to {}", loss.records, loss.first, loss.last);
            }
            later.iter().for_each(|file| println!("    set aside whole: {}", file.display()));
        }
        Finding::Table { path, table, partition, segment, is_base, what, kept, lost, ranges } => {
            let role = if *is_base { "base" } else { "a slice" };
            println!(
                "{}: table at {}, {role} of partition {partition}, segment {segment}: {what}",
                path.display(),
                table.offset
            );
            let lost = lost.map_or("an unknown number of".to_string(), |lost| lost.to_string());
            println!("  set aside, replaced by the {kept} records that can be read; lost: {lost} records");
            for range in ranges {
                println!("    keys {}: {}", range_text(range), range.what);
            }
            if !is_base && !ranges.is_empty() {
                println!("    where an older version of such a key exists, it comes back");
            }
        }
        Finding::Beyond { path, what } => println!("{}: BEYOND REPAIR: {what}", path.display()),
    }
}

fn range_text(range: &LostKeys) -> String {
    let after =
        range.after.as_deref().map_or("from the table's first".to_string(), |after| format!("after {}", key(after)));
    let through =
        range.through.as_deref().map_or("to its last".to_string(), |through| format!("up to {}", key(through)));
    format!("{after} {through}")
}

fn finding_json(finding: &Finding) -> Value {
    match finding {
        Finding::TornTail { path, offset, bytes } => {
            json!({ "kind": "torn-tail", "path": path, "offset": offset, "bytes": bytes })
        }
        Finding::LogCut { path, offset, what, batches, records, later } => {
            let records: Vec<Value> = records
                .iter()
                .map(|(partition, loss)| {
                    json!({ "partition": partition.0, "records": loss.records, "first_lsn": loss.first.0, "last_lsn": loss.last.0 })
                })
                .collect();
            json!({ "kind": "log-cut", "path": path, "offset": offset, "what": what, "batches_lost": batches,
                    "records_lost": records, "files_set_aside": later })
        }
        Finding::Table { path, table, partition, segment, is_base, what, kept, lost, ranges } => {
            let ranges: Vec<Value> = ranges
                .iter()
                .map(|range| {
                    json!({ "after_hex": range.after.as_deref().map(hex), "through_hex": range.through.as_deref().map(hex),
                            "what": range.what })
                })
                .collect();
            json!({ "kind": "table", "path": path, "offset": table.offset, "partition": partition.0,
                    "segment": segment.0, "is_base": is_base, "what": what, "records_kept": kept, "records_lost": lost,
                    "keys_lost": ranges })
        }
        Finding::Beyond { path, what } => json!({ "kind": "beyond-repair", "path": path, "what": what }),
    }
}
