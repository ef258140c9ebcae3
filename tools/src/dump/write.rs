//! `antumbra dump`.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use antumbra_engine::config::Compression;
use antumbra_engine::types::PartitionId;
use antumbra_engine::{Engine, EngineConfig, PartitionHandle};
use bytes::Bytes;
use clap::Args;
use futures_lite::future::block_on;
use indicatif::ProgressBar;

use crate::CliError;

use super::format::{Data, PartitionLine, RecordLine, Writer};

/// Bytes fetched from a shard at a time.
const PAGE_BYTES: usize = 1 << 20;

#[derive(Args)]
pub struct DumpOptions {
    /// Data folder (of a node: its `data` folder). No other engine may have it open.
    #[arg(long)]
    dir: PathBuf,
    /// Where the dump goes; without it, standard output.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only this partition; may be given several times.
    #[arg(long = "partition")]
    partitions: Vec<u64>,
}

/// Writes all live records, partition by partition, in key order.
pub fn run(options: &DumpOptions) -> Result<(), CliError> {
    if !options.dir.join("shard-000").is_dir() {
        return Err(format!("{} is no data folder: it holds no shard-000", options.dir.display()).into());
    }
    let out: Box<dyn Write> = match &options.out {
        Some(path) => Box::new(File::create(path).map_err(|cause| format!("{}: {cause}", path.display()))?),
        None => Box::new(stdout().lock()),
    };
    let engine = Engine::open(EngineConfig::new(&options.dir))?;
    let mut chosen: Vec<PartitionId> = options.partitions.iter().copied().map(PartitionId).collect();
    if chosen.is_empty() {
        chosen = engine.partitions().into_iter().map(|(id, _)| id).collect();
    }
    let bar = ProgressBar::new_spinner();
    let mut writer = Writer::new(BufWriter::new(out))?;
    let mut written = 0_u64;
    for id in chosen {
        let partition = engine.partition(id)?;
        writer.partition(block_on(describe(&partition))?)?;
        let mut start = Bytes::new();
        loop {
            let page = block_on(partition.export(start, PAGE_BYTES))?;
            written += page.records.len() as u64;
            for record in page.records {
                writer.record(RecordLine {
                    k: Data::of(&record.key),
                    v: Data::of(&record.value),
                    x: record.expires_at_ms,
                })?;
            }
            bar.set_message(format!("partition {id}: {written} records so far"));
            bar.tick();
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
    }
    let records = writer.end()?;
    bar.finish_and_clear();
    eprintln!("{records} records");
    Ok(block_on(engine.close())?)
}

async fn describe(partition: &PartitionHandle) -> antumbra_engine::Result<PartitionLine> {
    let stats = partition.stats().await?;
    let options = partition.with(|partition| async move { Ok(partition.options()) }).await?;
    Ok(PartitionLine {
        id: stats.id.0,
        keyspace: stats.keyspace,
        start: Data::of(&stats.range.start),
        end: stats.range.end.as_deref().map(Data::of),
        epoch: stats.epoch.0,
        segment_target_bytes: options.segment_target_bytes,
        block_bytes: options.block_bytes,
        zstd: options.compression == Compression::Zstd,
    })
}
