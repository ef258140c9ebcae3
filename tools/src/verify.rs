//! `antumbra verify`: the tables of a data folder against their checksums.

use std::path::PathBuf;

use antumbra_engine::offline;
use clap::Args;
use indicatif::ProgressBar;

use crate::CliError;
use crate::show::size;

#[derive(Args)]
pub struct VerifyOptions {
    /// Data folder (of a node: its `data` folder).
    #[arg(long)]
    dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Verifies; the first damage is an error that names file and offset.
pub fn run(options: &VerifyOptions) -> Result<(), CliError> {
    let bar = if options.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let found = offline::verify(&options.dir, |so_far| {
        bar.set_message(format!("{} tables, {} records", so_far.tables, so_far.records));
        bar.tick();
    })?;
    bar.finish_and_clear();
    if options.json {
        let json = serde_json::json!({
            "shards": found.shards, "partitions": found.partitions, "tables": found.tables,
            "records": found.records, "bytes": found.bytes,
            "wal_batches": found.wal_batches, "wal_records": found.wal_records,
        });
        println!("{json}");
    } else {
        println!(
            "sound: {} shards, {} partitions, {} tables with {} records in {}, logs with {} records",
            found.shards,
            found.partitions,
            found.tables,
            found.records,
            size(found.bytes),
            found.wal_records
        );
    }
    Ok(())
}
