//! `antumbra inspect`: what single files hold. Reads only, beside a running engine too.

use std::path::{Path, PathBuf};

use antumbra_engine::offline::{
    self, ManifestEdit, ManifestReport, Role, SegmentReport, TableRef, WalFile, WalRecord, WalRest,
};
use antumbra_engine::record::RecordKind;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::CliError;
use crate::show::{hex, key, size};

#[derive(Subcommand)]
pub enum InspectCommand {
    /// A write-ahead log: batches, unused and recycled parts, damage.
    Wal(WalOptions),
    /// A table file: tables, blocks, damage.
    Segment(SegmentOptions),
    /// A manifest: edits, and the partitions and segments they build.
    Manifest(ManifestOptions),
}

#[derive(Args)]
pub struct WalOptions {
    /// A shard's folder, its `wal` folder, or one file.
    path: PathBuf,
    /// Print every record too.
    #[arg(long)]
    records: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct SegmentOptions {
    /// A table file (`*.tab`).
    path: PathBuf,
    /// Print every block too.
    #[arg(long)]
    blocks: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ManifestOptions {
    /// A shard's folder, or a manifest file.
    path: PathBuf,
    /// Print every edit too.
    #[arg(long)]
    edits: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints; damage that was found is an error at the end.
pub fn run(command: &InspectCommand) -> Result<(), CliError> {
    let damaged = match command {
        InspectCommand::Wal(options) => inspect_wal(options)?,
        InspectCommand::Segment(options) => inspect_segment(options)?,
        InspectCommand::Manifest(options) => inspect_manifest(options)?,
    };
    if damaged {
        return Err("damage was found, see above; `antumbra repair --dir DIR` says what can be saved".into());
    }
    Ok(())
}

fn inspect_wal(options: &WalOptions) -> Result<bool, CliError> {
    let mut records = Vec::new();
    let files = offline::inspect_wal(&options.path, |file, record| {
        if options.records && options.json {
            records.push(record_json(file, &record));
        } else if options.records {
            println!("{}", record_line(&record));
        }
    })?;
    if options.json {
        let files: Vec<Value> = files.iter().map(wal_json).collect();
        let records = options.records.then_some(records);
        println!("{}", serde_json::to_string_pretty(&json!({ "files": files, "records": records }))?);
    } else {
        files.iter().for_each(print_wal);
    }
    // The last broken batch is what a crash leaves; it is no damage.
    Ok(false)
}

fn record_line(record: &WalRecord<'_>) -> String {
    let found = record.record;
    let kind = match found.kind {
        RecordKind::Put => format!("put {} bytes", found.value.len()),
        other => format!("{other:?}").to_lowercase(),
    };
    let attempt = if record.attempt.0 == 0 { String::new() } else { format!(" attempt {}", record.attempt) };
    format!(
        "batch {} partition {}{attempt} LSN {} at {} ms: {kind} {}",
        record.seq,
        record.partition,
        found.lsn,
        found.hlc.wall_ms(),
        key(found.key)
    )
}

fn record_json(file: &Path, record: &WalRecord<'_>) -> Value {
    let found = record.record;
    json!({
        "file": file, "batch": record.seq.0, "partition": record.partition.0, "attempt": record.attempt.0,
        "lsn": found.lsn.0, "hlc": found.hlc.0, "kind": format!("{:?}", found.kind).to_lowercase(),
        "key_hex": hex(found.key), "value_bytes": found.value.len(), "expires_at_ms": found.expires_at_ms,
    })
}

fn wal_json(file: &WalFile) -> Value {
    let batches: Vec<Value> = file
        .batches
        .iter()
        .map(|batch| {
            json!({ "offset": batch.offset, "batch": batch.seq.0, "first_of_incarnation": batch.incarnation,
                    "records": batch.entries, "bytes": batch.bytes })
        })
        .collect();
    let rest: Vec<Value> = file
        .rest
        .iter()
        .map(|rest| match rest {
            WalRest::Unused { offset, bytes } => json!({ "kind": "unused", "offset": offset, "bytes": bytes }),
            WalRest::Recycled { offset, bytes } => json!({ "kind": "recycled", "offset": offset, "bytes": bytes }),
            WalRest::Unreadable { offset, bytes, what } => {
                json!({ "kind": "unreadable", "offset": offset, "bytes": bytes, "what": what })
            }
        })
        .collect();
    json!({ "path": file.path, "generation": file.generation, "bytes": file.bytes, "batches": batches, "rest": rest })
}

fn print_wal(file: &WalFile) {
    let records: u64 = file.batches.iter().map(|batch| u64::from(batch.entries)).sum();
    let used: usize = file.batches.iter().map(|batch| batch.bytes).sum();
    println!(
        "{}: generation {}, {}: {} batches, {records} records in {}",
        file.path.display(),
        file.generation,
        size(file.bytes),
        file.batches.len(),
        size(used as u64)
    );
    if let (Some(first), Some(last)) = (file.batches.first(), file.batches.last()) {
        println!("  batches {} to {}", first.seq, last.seq);
    }
    for rest in &file.rest {
        match rest {
            WalRest::Unused { offset, bytes } => println!("  at {offset}: {} never written", size(*bytes)),
            WalRest::Recycled { offset, bytes } => println!("  at {offset}: {} of an earlier life", size(*bytes)),
            WalRest::Unreadable { offset, bytes, what } => {
                println!("  at {offset}: {} unreadable: {what} (at the log's end: torn by a crash)", size(*bytes));
            }
        }
    }
}

fn inspect_segment(options: &SegmentOptions) -> Result<bool, CliError> {
    let tables = offline::inspect_segment(&options.path)?;
    if options.json {
        let tables: Vec<Value> = tables.iter().map(|table| table_json(table, options.blocks)).collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "path": options.path, "tables": tables }))?);
    } else {
        for table in &tables {
            print_table(table, options.blocks);
        }
    }
    Ok(tables.iter().any(|table| table.damage.is_some()))
}

fn table_json(table: &SegmentReport, blocks: bool) -> Value {
    let meta = &table.meta;
    let listed: Option<Vec<Value>> = blocks.then(|| {
        let block = |block: &offline::BlockReport| {
            json!({ "offset": block.offset, "bytes": block.len, "records": block.records,
                    "last_key_hex": hex(&block.last_key), "damage": block.damage })
        };
        table.blocks.iter().map(block).collect()
    });
    json!({
        "offset": table.offset, "bytes": meta.len, "records": meta.records, "tombstones": meta.tombstones,
        "min_lsn": meta.min_lsn.0, "max_lsn": meta.max_lsn.0, "raw_bytes": meta.raw_bytes,
        "digest": format!("{:032x}", meta.digest), "block_count": table.blocks.len(), "damage": table.damage,
        "blocks": listed,
    })
}

fn print_table(table: &SegmentReport, blocks: bool) {
    let meta = &table.meta;
    println!(
        "table at {}: {}, {} records ({} tombstones) of {}, LSN {} to {}, {} blocks, digest {:032x}",
        table.offset,
        size(meta.len),
        meta.records,
        meta.tombstones,
        size(meta.raw_bytes),
        meta.min_lsn,
        meta.max_lsn,
        table.blocks.len(),
        meta.digest
    );
    for block in table.blocks.iter().filter(|block| blocks || block.damage.is_some()) {
        let state = block.damage.as_ref().map_or("sound".to_string(), |what| format!("DAMAGED: {what}"));
        println!(
            "  at {}: {} bytes, {} records up to {}: {state}",
            block.offset,
            block.len,
            block.records,
            key(&block.last_key)
        );
    }
    if let Some(what) = &table.damage {
        println!("  DAMAGED: {what}");
    }
}

fn inspect_manifest(options: &ManifestOptions) -> Result<bool, CliError> {
    let report = offline::inspect_manifest(&options.path)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&manifest_json(&report, options.edits))?);
    } else {
        print_manifest(&report, options.edits);
    }
    Ok(report.damage.is_some())
}

fn role_text(role: Role) -> String {
    match role {
        Role::Owner => "owner".into(),
        Role::Shadow { attempt } => format!("shadow of attempt {attempt}"),
        Role::Released { owner } => format!("released to host {owner}"),
    }
}

fn place_json(table: &TableRef) -> Value {
    json!({ "file": table.file.0, "offset": table.offset, "bytes": table.len, "max_lsn": table.max_lsn.0 })
}

fn manifest_json(report: &ManifestReport, edits: bool) -> Value {
    let partitions: Vec<Value> = report
        .state
        .partitions
        .iter()
        .map(|(id, known)| {
            let segments: Vec<Value> = known
                .segments
                .iter()
                .map(|segment| {
                    json!({ "segment": segment.id.0, "start_hex": hex(&segment.start_key),
                            "base": segment.base.as_ref().map(place_json),
                            "slices": segment.slices.iter().map(place_json).collect::<Vec<_>>(),
                            "range_deletions": segment.erasures.len() })
                })
                .collect();
            json!({
                "partition": id.0, "keyspace": known.keyspace, "start_hex": hex(&known.range.start),
                "end_hex": known.range.end.as_deref().map(hex), "epoch": known.epoch.0, "role": role_text(known.role),
                "replay_from": known.replay_from.0, "last_lsn": known.last_lsn.0, "segments": segments,
            })
        })
        .collect();
    let groups: Vec<Value> = report
        .groups
        .iter()
        .map(|group| {
            let listed: Option<Vec<String>> = edits.then(|| group.edits.iter().map(edit_text).collect());
            json!({ "offset": group.offset, "bytes": group.len, "edit_count": group.edits.len(), "edits": listed })
        })
        .collect();
    let damage = report.damage.as_ref().map(|(offset, what)| json!({ "offset": offset, "what": what }));
    json!({ "path": report.path, "bytes": report.bytes, "groups": groups, "partitions": partitions, "damage": damage })
}

fn print_manifest(report: &ManifestReport, edits: bool) {
    println!("{}: {} groups in {}", report.path.display(), report.groups.len(), size(report.bytes));
    for group in report.groups.iter().filter(|_| edits) {
        println!("  group at {}", group.offset);
        group.edits.iter().for_each(|edit| println!("    {}", edit_text(edit)));
    }
    for (id, known) in &report.state.partitions {
        println!(
            "partition {id} of {}: [{}, {}), epoch {}, {}, log from batch {}, LSN {} at least",
            known.keyspace,
            key(&known.range.start),
            known.range.end.as_deref().map_or("end".into(), key),
            known.epoch,
            role_text(known.role),
            known.replay_from,
            known.last_lsn
        );
        for segment in &known.segments {
            let slices: Vec<String> = segment.slices.iter().map(place_text).collect();
            println!(
                "  segment {} from {}: base {}, slices [{}], {} range deletions",
                segment.id,
                key(&segment.start_key),
                segment.base.as_ref().map_or("none".into(), place_text),
                slices.join(", "),
                segment.erasures.len()
            );
        }
    }
    if let Some((offset, what)) = &report.damage {
        println!("DAMAGED at {offset}: {what}");
    }
}

fn place_text(table: &TableRef) -> String {
    format!("{:012}.tab@{}+{}", table.file.0, table.offset, table.len)
}

fn edit_text(edit: &ManifestEdit) -> String {
    match edit {
        ManifestEdit::CreatePartition(new) => {
            format!("create partition {} of {} ({})", new.partition, new.keyspace, role_text(new.role))
        }
        ManifestEdit::SetRole { partition, role, epoch, .. } => {
            format!("partition {partition}: {} in epoch {epoch}", role_text(*role))
        }
        ManifestEdit::SetOptions { partition, compression } => {
            format!("partition {partition}: compression {compression:?}")
        }
        ManifestEdit::DropPartition { partition } => format!("drop partition {partition}"),
        ManifestEdit::Flushed { partition, lsn } => format!("partition {partition}: flushed up to LSN {lsn}"),
        ManifestEdit::Missing { partition, attempt, segments } => {
            format!("partition {partition}: {} segments to come by attempt {attempt}", segments.len())
        }
        ManifestEdit::Logged { seq } => format!("log on the device up to batch {seq}"),
        ManifestEdit::Held { partition, segment } => format!("partition {partition}: segment {segment} is held"),
        ManifestEdit::AddErasures { partition, segment, erasures } => {
            format!("partition {partition}: {} range deletions in segment {segment}", erasures.len())
        }
        ManifestEdit::AddRun { partition, slices, replay_from, .. } => {
            format!("partition {partition}: run of {} slices, log from batch {replay_from}", slices.len())
        }
        ManifestEdit::ReplaceSegments { partition, remove, add } => {
            let ids = |ids: Vec<u64>| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            let (from, to) = (
                ids(remove.iter().map(|segment| segment.0).collect()),
                ids(add.iter().map(|segment| segment.id.0).collect()),
            );
            format!("partition {partition}: segments [{from}] become [{to}]")
        }
    }
}
