//! Tables for people, JSON for programs.

use std::fmt::Write;
use std::time::Duration;

use antumbra_net::coordinator::{CoordinatorKind, RecordState};
use antumbra_net::events::Event;
use antumbra_net::sink::SinkState;
use antumbra_net::status::{MoveStatus, PartitionStatus, Status};
use serde::Serialize;

use crate::CliError;
use crate::show::size;

use super::{Cluster, typed};

/// Prints a value as JSON, or as `text` words it.
pub fn print<T: Serialize + ?Sized>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
    if json {
        println!("{}", serde_json::to_string(value)?);
    } else {
        print!("{}", text(value));
    }
    Ok(())
}

/// Columns as wide as their widest cell.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// The state of a partition in a word or two.
pub fn state(partition: &PartitionStatus) -> String {
    match (&partition.record.diverged, &partition.record.state) {
        (Some(diverged), _) => format!("diverged from host {}", diverged.host),
        (None, RecordState::Stable) => "stable".into(),
        (None, RecordState::Moving(moving)) => format!("moving to host {}", moving.destination),
        (None, RecordState::Committed(moving)) => format!("moved to host {}, finishing", moving.destination),
    }
}

pub fn partitions(partitions: &[PartitionStatus]) -> String {
    let rows: Vec<Vec<String>> = partitions
        .iter()
        .map(|partition| {
            let record = &partition.record;
            let here = partition.here.as_ref();
            vec![
                record.partition.to_string(),
                format!("{}-{}", record.slots.0, record.slots.1),
                record.owner.to_string(),
                record.epoch.to_string(),
                state(partition),
                here.map_or("-".into(), |here| here.serving.clone()),
                here.map_or("-".into(), |here| size(here.table_bytes + here.memtable_bytes as u64)),
            ]
        })
        .collect();
    table(&["PARTITION", "SLOTS", "OWNER", "EPOCH", "STATE", "HERE", "DATA"], &rows)
}

/// A move in a line.
pub fn moving(known: &MoveStatus) -> String {
    let progress = &known.progress;
    let by = if known.automatic { "controller" } else { "operator" };
    let head = format!("partition {} to host {} ({by}): ", known.partition, known.destination);
    match (&progress.failed, &known.done) {
        (Some(cause), _) => format!("{head}ended: {cause}"),
        (None, Some(done)) => format!(
            "{head}done in {:.1} s, {} sent, writes parked for {:.2} ms, both sides {}",
            done.seconds,
            size(done.bytes_on_wire),
            done.frozen_us as f64 / 1e3,
            if done.equal { "equal" } else { "DIFFERENT" }
        ),
        (None, None) => format!(
            "{head}{}, {} of {} segments held, {} sent",
            progress.state.to_lowercase(),
            progress.held,
            progress.segments,
            size(progress.bytes_on_wire)
        ),
    }
}

pub fn status(status: &Status) -> String {
    let leader = status.leader.map_or("nobody".into(), |leader| format!("host {leader}"));
    let mut text =
        format!("host {} ({}), policy {:?}, {leader} leads\n", status.host, status.version, status.automation);
    let health = &status.coordinator;
    let answers = if health.reachable { "answers" } else { "DOES NOT ANSWER" };
    let _ = writeln!(text, "coordinator ({}): {answers} since {}", kind(health.kind), clock(health.since));
    if let Some(cause) = &health.last_error {
        let _ = writeln!(text, "  last error: {cause}");
    }
    for stall in &status.stalls {
        let subject = &stall.subject;
        let _ = writeln!(text, "{subject} STANDS STILL since {}: it waits for {}", clock(stall.since), stall.waits_for);
    }
    if let Some(cause) = &status.coordinator_error {
        let _ = writeln!(text, "THE COORDINATOR CANNOT BE REACHED, what follows may be old: {cause}");
    }
    let rows: Vec<Vec<String>> = status
        .hosts
        .iter()
        .flat_map(|host| {
            let owned = status.partitions.iter().filter(|known| known.record.owner == host.host).count();
            let head = vec![host.host.to_string(), host.resp.clone(), owned.to_string()];
            let shards = host.trend.as_ref().map_or(&[][..], |trend| &trend.shards);
            let percent = |part: f64| format!("{:.0} %", part * 100.0);
            let rows: Vec<Vec<String>> = shards
                .iter()
                .enumerate()
                .map(|(shard, trend)| {
                    let signal = if trend.raised { "raised" } else { "-" };
                    let more = [shard.to_string(), percent(trend.level), percent(trend.expected), signal.into()];
                    head.iter().cloned().chain(more).collect()
                })
                .collect();
            if rows.is_empty() {
                return vec![head.into_iter().chain(["-".into(), host.silence().into()]).collect()];
            }
            rows
        })
        .collect();
    text += &table(&["HOST", "ADDRESS", "PARTITIONS", "SHARD", "LOAD", "EXPECTED", "SIGNAL"], &rows);
    text.push('\n');
    text += &partitions(&status.partitions);
    if !status.sinks.is_empty() {
        text.push('\n');
        text += &sinks(&status.sinks);
    }
    if !status.moves.is_empty() {
        text.push('\n');
    }
    for known in &status.moves {
        let _ = writeln!(text, "{}", moving(known));
    }
    text
}

/// A partition as a split or a merge has left it.
pub fn reshaped(record: &serde_json::Value) -> String {
    let (partition, owner, slots) = (&record["partition"], &record["owner"], &record["slots"]);
    format!("partition {partition} on host {owner} has slots {} to {}", slots[0], slots[1])
}

fn kind(kind: CoordinatorKind) -> &'static str {
    match kind {
        CoordinatorKind::Embedded => "in this node",
        CoordinatorKind::Remote => "in another node",
        CoordinatorKind::Etcd => "etcd",
    }
}

/// For each server that is told of partitions, how much of it is confirmed, and what is not.
fn sinks(states: &[SinkState]) -> String {
    let mut text = String::new();
    for of_one in states.chunk_by(|a, b| a.sink == b.sink) {
        let is_open = |state: &&SinkState| state.confirmed.is_none();
        let confirmed = of_one.len() - of_one.iter().filter(is_open).count();
        let _ = writeln!(text, "{}: {confirmed} of {} entries confirmed", of_one[0].sink, of_one.len());
        for state in of_one.iter().filter(is_open) {
            let cause = state.last_error.as_deref().unwrap_or("not told yet");
            let _ = writeln!(text, "  {}: {} is NOT CONFIRMED: {cause}", state.target, state.wanted);
        }
    }
    text
}

/// An event in a line.
pub fn event(event: &Event) -> String {
    let about = event.partition.map_or(String::new(), |partition| format!("partition {partition}: "));
    let topic = serde_json::to_value(event.topic).ok().and_then(|topic| topic.as_str().map(str::to_string));
    format!("{}  {:<9} {about}{}", clock(event.at_ms), topic.unwrap_or_default(), event.text)
}

/// Time of day, UTC.
fn clock(at_ms: u64) -> String {
    let seconds = at_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, at_ms % 1000)
}

/// Prints events, and goes on with those to come where that is wanted.
pub async fn events(cluster: &Cluster, follow: bool, most: u64, json: bool) -> Result<(), CliError> {
    const PERIOD: Duration = Duration::from_millis(500);
    let (mut last, mut most) = (0, most);
    loop {
        let events: Vec<Event> = typed(cluster.node.json(&format!("ANTUMBRA EVENTS {last} {most}")).await?)?;
        for known in &events {
            last = known.number;
            print(json, known, |known| event(known) + "\n")?;
        }
        if !follow {
            return Ok(());
        }
        most = 1000;
        tokio::time::sleep(PERIOD).await;
    }
}
