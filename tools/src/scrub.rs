//! `antumbra scrub`: opens a data folder and reads everything in it at a pace. A running node does it by
//! `ANTUMBRA SCRUB`.

use std::path::PathBuf;
use std::process::ExitCode;

use antumbra_engine::{Engine, EngineConfig};
use clap::Args;
use futures_lite::future::block_on;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::CliError;
use crate::show::size;

#[derive(Args)]
pub struct ScrubOptions {
    /// Data folder (of a node: its `data` folder). No other engine may have it open.
    #[arg(long)]
    dir: PathBuf,
    /// Read at most this many MB a second; 0 for as fast as the device gives.
    #[arg(long, default_value_t = 50.0)]
    mb_per_second: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Exit code 0: sound; 1: damage was found.
pub fn run(options: &ScrubOptions) -> Result<ExitCode, CliError> {
    if !options.dir.join("shard-000").is_dir() {
        return Err(format!("{} is no data folder: it holds no shard-000", options.dir.display()).into());
    }
    let rate = (options.mb_per_second > 0.0).then_some((options.mb_per_second * 1e6) as u64);
    let engine = Engine::open(EngineConfig::new(&options.dir))?;
    let partitions = engine.partitions();
    let bar = if options.json { ProgressBar::hidden() } else { ProgressBar::new(partitions.len() as u64) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} partitions {msg}")?);
    let (mut tables, mut records, mut bytes, mut damage) = (0, 0, 0, Vec::new());
    for (id, _) in partitions {
        let report = block_on(engine.partition(id)?.scrub(rate))?;
        tables += report.tables;
        records += report.records;
        bytes += report.bytes;
        damage.extend(report.damage.into_iter().map(|(segment, cause)| (id, segment, cause)));
        bar.set_message(format!("{}, {} damaged", size(bytes), damage.len()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    block_on(engine.close())?;
    if options.json {
        let listed: Vec<serde_json::Value> = damage
            .iter()
            .map(|(partition, segment, cause)| {
                json!({ "partition": partition.0, "segment": segment.0, "what": cause.to_string() })
            })
            .collect();
        println!("{}", json!({ "tables": tables, "records": records, "bytes": bytes, "damage": listed }));
    } else {
        for (partition, segment, cause) in &damage {
            println!("partition {partition}, segment {segment}: {cause}");
        }
        let state = if damage.is_empty() { "sound" } else { "DAMAGED, see above" };
        println!("{state}: {tables} tables, {records} records, {}", size(bytes));
    }
    Ok(if damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
