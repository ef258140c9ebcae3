//! `antumbra load`.

use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::path::PathBuf;

use antumbra_engine::config::Compression;
use antumbra_engine::types::{Epoch, PartitionId, ShardId};
use antumbra_engine::{Durability, Engine, EngineConfig, PartitionHandle, PartitionOptions, PartitionSpec, Write};
use clap::Args;
use futures_lite::future::block_on;
use indicatif::ProgressBar;

use crate::CliError;

use super::format::{Line, PartitionLine, Reader};

/// Bytes sent to a shard at a time.
const BATCH_BYTES: usize = 1 << 20;

#[derive(Args)]
pub struct LoadOptions {
    /// Data folder; created when missing. No other engine may have it open.
    #[arg(long)]
    dir: PathBuf,
    /// The dump; without it, standard input.
    #[arg(long = "in")]
    input: Option<PathBuf>,
    /// Shards of a new folder; partitions take turns.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Load into partitions that are there already; a key of the dump replaces the one that is there.
    #[arg(long)]
    merge: bool,
}

/// Loads a dump. Everything is on the device when it returns. What was loaded before an error stays.
pub fn run(options: &LoadOptions) -> Result<(), CliError> {
    let input: Box<dyn BufRead> = match &options.input {
        Some(path) => {
            let file = File::open(path).map_err(|cause| format!("{}: {cause}", path.display()))?;
            Box::new(BufReader::with_capacity(1 << 20, file))
        }
        None => Box::new(stdin().lock()),
    };
    // The first line is read before a folder is made.
    let mut reader = Reader::new(input)?;
    let mut config = EngineConfig::new(&options.dir);
    config.shards = options.shards;
    let engine = Engine::open(config)?;
    let loaded = load(&engine, options, &mut reader);
    let closed = block_on(engine.close());
    let loaded = loaded.map_err(|cause| format!("{cause}; what was loaded up to there stays in the folder"))?;
    closed?;
    eprintln!("{loaded} records");
    Ok(())
}

fn load(engine: &Engine, options: &LoadOptions, reader: &mut Reader<Box<dyn BufRead>>) -> Result<u64, CliError> {
    let bar = ProgressBar::new_spinner();
    let (mut partition, mut batch, mut batch_bytes) = (None, Vec::new(), 0);
    let (mut loaded, mut created) = (0_u64, 0);
    while let Some(line) = reader.next()? {
        match line {
            Line::Partition { partition: described } => {
                flush(partition.as_ref(), &mut batch)?;
                let shard = ShardId((created % engine.shards()) as u16);
                partition = Some(target(engine, options, shard, &described)?);
                created += 1;
            }
            Line::Record(record) => {
                let place = |cause: CliError| format!("line {}: {cause}", reader.number());
                let (key, value) = (record.k.bytes().map_err(place)?, record.v.bytes().map_err(place)?);
                batch_bytes += key.len() + value.len();
                batch.push(Write { expires_at_ms: record.x, ..Write::put(key, value) });
                loaded += 1;
                if batch_bytes >= BATCH_BYTES {
                    flush(partition.as_ref(), &mut batch)?;
                    batch_bytes = 0;
                    bar.set_message(format!("{loaded} records so far"));
                    bar.tick();
                }
            }
            Line::Begin { .. } | Line::End { .. } => {}
        }
    }
    flush(partition.as_ref(), &mut batch)?;
    bar.finish_and_clear();
    Ok(loaded)
}

/// The partition that a dump's partition is loaded into.
fn target(
    engine: &Engine,
    options: &LoadOptions,
    shard: ShardId,
    described: &PartitionLine,
) -> Result<PartitionHandle, CliError> {
    let id = PartitionId(described.id);
    let range = described.range()?;
    if let Ok(found) = engine.partition(id) {
        let stats = block_on(found.stats())?;
        if !options.merge {
            return Err(
                format!("partition {id} is there already: give --merge to load into it, or another --dir").into()
            );
        }
        if stats.range != range {
            return Err(format!("partition {id} is there with another key range than the dump's").into());
        }
        return Ok(found);
    }
    let spec = PartitionSpec {
        id,
        keyspace: described.keyspace.clone(),
        range,
        epoch: Epoch(described.epoch),
        options: PartitionOptions {
            segment_target_bytes: described.segment_target_bytes,
            block_bytes: described.block_bytes,
            compression: if described.zstd { Compression::Zstd } else { Compression::None },
        },
    };
    Ok(block_on(engine.create_partition(shard, spec))?)
}

/// Writes a batch: buffered but for the last record, whose acknowledgement covers those before it.
fn flush(partition: Option<&PartitionHandle>, batch: &mut Vec<Write>) -> Result<(), CliError> {
    let writes = std::mem::take(batch);
    if writes.is_empty() {
        return Ok(());
    }
    let partition = partition.ok_or("a record before the first partition")?;
    Ok(block_on(partition.with(move |partition| async move {
        let last = writes.len() - 1;
        for (index, write) in writes.into_iter().enumerate() {
            let durability = if index == last { Durability::Durable } else { Durability::Buffered };
            partition.write(write, durability).await?;
        }
        Ok(())
    }))?)
}
