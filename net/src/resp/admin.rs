//! `ANTUMBRA ...`: moves and their state, in JSON.

use std::collections::HashMap;
use std::sync::Arc;

use antumbra_engine::types::{HostId, PartitionId, ShardId};
use antumbra_engine::{PartitionStats, Serving};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::coordinator::{self, Command};
use crate::error::{Error, Result};
use crate::events::Topic;
use crate::host::{Host, probe};
use crate::resp::Service;
use crate::shadow::{MoveOptions, Policy};
use crate::status;

const USAGE: &str = "STATUS | MOVES | PARTITIONS | CREATE id first-slot last-slot owner | MOVE id host [ORDER auto|gru|ewma|key|random] \
                     [THROTTLE mb-per-second] [SETPOINT auto|us|off] [MANUAL] [EARLY percent] | STANDBY id host [ASYNC] | STANDBY id OFF | \
                     PROMOTE id [FORCE [POLICY lww|prefer-target|prefer-source|reject-and-keep-both|merge:operator]] | \
                     ABANDON id FORCE | ROLLBACK id [options of MOVE] | SPLIT id slot [new-id] [MOVE host [options of MOVE]] | \
                     MERGE id other-id | SWITCH id | ABORT id | SCRUB id [mb-per-second] | FILL id | LINK host mebibytes | \
                     PROGRESS id | REPORT id | COMPACT id | SEGMENTS id | STATE id | TRENDS | EVENTS [after [most]] | RELOAD | LOGLEVEL [filter] | \
                     RECORD id START one-key-of | RECORD id TAKE | RECORD id STOP";

/// Runs one admin command.
pub(crate) async fn run(host: &Arc<Host>, service: &Service, args: &[Bytes]) -> Result<Value> {
    let words: Vec<String> = args[1..].iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.first().map(|word| word.to_ascii_uppercase()).as_deref() {
        Some("STATUS") => service.status_now(host).await.map(|status| json!(*status)),
        Some("MOVES") => Ok(json!(status::moves(host))),
        Some("PARTITIONS") => partitions(host).await,
        Some("CREATE") => create(host, &words[1..]).await,
        Some("MOVE") => start_move(host, &words[1..]),
        Some("SPLIT") => split(host, &words[1..]).await,
        Some("MERGE") => merge(host, &words[1..]).await,
        Some("ROLLBACK") => roll_back(host, &words[1..]).await,
        Some("STANDBY") => standby(host, &words[1..]),
        Some("PROMOTE") => promote(host, &words[1..]).await,
        Some("ABANDON") => abandon(host, &words[1..]).await,
        Some("SWITCH") => {
            find_unfinished(host, &words)?.switch();
            Ok(json!("OK"))
        }
        Some("ABORT") => {
            find_unfinished(host, &words)?.give_up();
            Ok(json!("OK"))
        }
        Some("SCRUB") => scrub(host, &words[1..]).await,
        Some("PROGRESS") => Ok(json!(find_move(host, &words)?.progress())),
        Some("REPORT") => Ok(json!(find_move(host, &words)?.report())),
        Some("COMPACT") => {
            host.engine.partition(partition_id(words.get(1))?)?.compact().await?;
            Ok(json!("OK"))
        }
        Some("STATE") => {
            let id = partition_id(words.get(1))?;
            on_plane(host, |host| async move { coordinator::read(host.coordinator.as_ref(), id.0).await }).await
        }
        Some("TRENDS") => host
            .trend()
            .map(|trend| json!(trend))
            .ok_or_else(|| Error::Refused { what: "no window has been measured yet".into() }),
        Some("EVENTS") => events(host, &words[1..]),
        Some("RELOAD") => {
            let reloaded = service.reload(host)?;
            host.events.note(Topic::Operator, None, format!("read anew: {}", json!(reloaded)));
            Ok(json!(reloaded))
        }
        Some("LOGLEVEL") => {
            let log = service
                .log
                .get()
                .ok_or_else(|| Error::Refused { what: "the log of this process has no levels".into() })?;
            let level = log.set(words.get(1).copied())?;
            if words.len() > 1 {
                host.events.note(Topic::Operator, None, format!("the log's level is {level}"));
            }
            Ok(json!({ "level": level }))
        }
        Some("LINK") => link(host, &words[1..]).await,
        Some("FILL") => fill(host, partition_id(words.get(1))?).await,
        Some("SEGMENTS") => segments(host, partition_id(words.get(1))?).await,
        Some("RECORD") => record(host, &words[1..]).await,
        _ => Err(usage()),
    }
}

fn usage() -> Error {
    Error::Refused { what: format!("usage: ANTUMBRA {USAGE}") }
}

fn partition_id(word: Option<&&str>) -> Result<PartitionId> {
    word.and_then(|word| word.parse().ok()).map(PartitionId).ok_or_else(usage)
}

fn find_move(host: &Host, words: &[&str]) -> Result<crate::shadow::MoveHandle> {
    let partition = partition_id(words.get(1))?;
    host.find_move(partition)
        .ok_or_else(|| Error::Refused { what: format!("no move of partition {partition} began here") })
}

/// One that can still be steered.
fn find_unfinished(host: &Host, words: &[&str]) -> Result<crate::shadow::MoveHandle> {
    let known = find_move(host, words)?;
    if known.is_finished() {
        return Err(Error::Refused { what: "the move has ended already".into() });
    }
    Ok(known)
}

/// Those that are here now: one may be dropped while its shard is asked.
async fn partitions(host: &Host) -> Result<Value> {
    let shards: HashMap<PartitionId, ShardId> = host.engine.partitions().into_iter().collect();
    let mut stats = host.engine.stats().await?.partitions;
    stats.sort_unstable_by_key(|partition| partition.id);
    stats.dedup_by_key(|partition| partition.id);
    let found: Vec<Value> = stats.iter().filter_map(|stats| Some(describe(stats, shards.get(&stats.id)?.0))).collect();
    Ok(json!({ "host": host.id.0, "partitions": found }))
}

fn describe(stats: &PartitionStats, shard: u16) -> Value {
    let serving = match stats.serving {
        Serving::Owner => "owner".to_string(),
        Serving::Frozen => "frozen".to_string(),
        Serving::Suspended => "suspended".to_string(),
        Serving::Shadow { attempt } => format!("shadow of attempt {attempt}"),
        Serving::Released { owner } => format!("released to host {owner}"),
    };
    json!({
        "partition": stats.id.0, "keyspace": stats.keyspace, "shard": shard, "serving": serving,
        "epoch": stats.epoch.0, "segments": stats.segments, "missing_segments": stats.missing_segments, "table_bytes": stats.table_bytes,
        "memtable_bytes": stats.memtable_bytes, "last_lsn": stats.visible.0, "windows": stats.windows_closed,
        "last_window": { "reads": stats.totals.reads, "writes": stats.totals.writes, "bytes": stats.totals.bytes },
    })
}

/// The newest 100, or the newest `most` behind number `after`.
fn events(host: &Host, words: &[&str]) -> Result<Value> {
    let number = |index: usize, otherwise: u64| match words.get(index) {
        Some(word) => word.parse().map_err(|_| usage()),
        None => Ok(otherwise),
    };
    let (after, most) = (number(0, 0)?, number(1, 100)?);
    Ok(json!(host.events.since(after, usize::try_from(most).unwrap_or(usize::MAX))))
}

async fn create(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let [id, first, last, owner] = words else {
        return Err(usage());
    };
    let number = |word: &str| word.parse::<u32>().map_err(|_| usage());
    let command = Command::Create {
        partition: u64::from(number(id)?),
        keyspace: "default".into(),
        slots: (number(first)? as u16, number(last)? as u16),
        owner: number(owner)?,
    };
    on_plane(host, |host| async move { coordinator::change(host.coordinator.as_ref(), command).await }).await
}

/// As [`Host::on_plane`], the result in JSON.
async fn on_plane<T, F>(host: &Arc<Host>, work: impl FnOnce(Arc<Host>) -> F) -> Result<Value>
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    host.on_plane(work).await.map(|result| json!(result))
}

fn standby(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let partition = partition_id(words.first())?;
    if words.get(1).is_some_and(|word| word.eq_ignore_ascii_case("OFF")) {
        let kept = host.find_move(partition).filter(|kept| !kept.is_finished());
        let kept = kept.ok_or_else(|| Error::Refused {
            what: format!("no standby of partition {partition} is kept by this host"),
        })?;
        kept.give_up();
        return Ok(json!("OK"));
    }
    let destination = words.get(1).and_then(|word| word.parse().ok()).map(HostId).ok_or_else(usage)?;
    let synchronous = match words.get(2).map(|word| word.to_ascii_uppercase()).as_deref() {
        None => true,
        Some("ASYNC") => false,
        Some(_) => return Err(usage()),
    };
    if destination == host.id && host.engine.partition(partition).is_ok() {
        return Err(Error::Refused { what: format!("partition {partition} is on host {destination} itself") });
    }
    let options = MoveOptions { policy: Policy::Standby { synchronous }, ..MoveOptions::default() };
    host.start_move(partition, destination, options)?;
    Ok(json!("OK"))
}

/// Reads everything that this host holds of a partition and checks it.
async fn scrub(host: &Host, words: &[&str]) -> Result<Value> {
    let rate = match words.get(1) {
        Some(word) => Some(word.parse::<f64>().ok().filter(|rate| *rate > 0.0).ok_or_else(usage)?),
        None => None,
    };
    let partition = host.engine.partition(partition_id(words.first())?)?;
    let report = partition.scrub(rate.map(|rate| (rate * 1e6) as u64)).await?;
    Ok(json!({
        "partition": partition.id().0, "tables": report.tables, "blocks": report.blocks, "bytes": report.bytes,
        "records": report.records,
        "damage": report.damage.iter().map(|(segment, cause)| format!("segment {segment}: {cause}")).collect::<Vec<_>>(),
    }))
}

/// Without `FORCE` it says what may be lost, and changes nothing.
async fn promote(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let id = partition_id(words.first())?;
    let upper: Vec<String> = words.iter().skip(1).map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    let policy = match upper.as_slice() {
        [] => {
            let mut prospect = on_plane(host, |host| async move { host.prospect(id).await }).await?;
            prospect["to_go_on"] = json!(format!("ANTUMBRA PROMOTE {id} FORCE [POLICY policy], on host {}", host.id));
            return Ok(prospect);
        }
        ["FORCE"] => "lww".to_string(),
        ["FORCE", "POLICY", _] => words[3].to_string(),
        _ => return Err(usage()),
    };
    on_plane(host, |host| async move { host.force_promote(id, &policy).await }).await
}

async fn abandon(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let id = partition_id(words.first())?;
    if !words.get(1).is_some_and(|word| word.eq_ignore_ascii_case("FORCE")) || words.len() > 2 {
        let what = "what the old owner has written alone is dropped unread when it returns: ABANDON id FORCE to go on";
        return Err(Error::Refused { what: what.into() });
    }
    on_plane(host, |host| async move { host.abandon(id).await }).await
}

fn start_move(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let partition = partition_id(words.first())?;
    let destination = words.get(1).and_then(|word| word.parse().ok()).map(HostId).ok_or_else(usage)?;
    host.start_move(partition, destination, move_options(&words[2..])?)?;
    Ok(json!("OK"))
}

/// Makes two partitions of one: slots from the one named on are the new one's, which may be moved away at once.
async fn split(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let [id, at, rest @ ..] = words else {
        return Err(usage());
    };
    let id = partition_id(Some(id))?;
    let at = at.parse().map_err(|_| usage())?;
    let is_id = rest.first().is_some_and(|word| word.parse::<u64>().is_ok());
    let (child, rest) = rest.split_at(usize::from(is_id));
    let child = child.first().map(|word| partition_id(Some(word))).transpose()?;
    let to = match rest {
        [] => None,
        [word, to, options @ ..] if word.eq_ignore_ascii_case("MOVE") => {
            let to = to.parse().map(HostId).map_err(|_| usage())?;
            // Asked before anything is split for it.
            if to == host.id || host.routing.load().addresses(to).is_none() {
                return Err(Error::Refused {
                    what: format!("host {to} is no other host of this cluster: nothing is split"),
                });
            }
            Some((to, move_options(options)?))
        }
        _ => return Err(usage()),
    };
    on_plane(host, move |host| async move {
        let child = host.split(id, at, child).await?;
        if let Some((to, options)) = to {
            host.start_move(PartitionId(child.partition), to, options)?;
        }
        Ok(child)
    })
    .await
}

/// Makes one partition of two neighbours.
async fn merge(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let [one, two] = words else {
        return Err(usage());
    };
    let (one, two) = (partition_id(Some(one))?, partition_id(Some(two))?);
    on_plane(host, move |host| async move { host.merge(one, two).await }).await
}

/// Moves a partition back to the host that still has its copy.
async fn roll_back(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    let partition = partition_id(words.first())?;
    let options = move_options(&words[1..])?;
    let back = move |host: Arc<Host>| async move { host.roll_back(partition, options).await.map(|to| to.0) };
    let to = on_plane(host, back).await?;
    Ok(json!({ "to": to }))
}

fn move_options(words: &[&str]) -> Result<MoveOptions> {
    let mut options = MoveOptions::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.to_ascii_uppercase().as_str() {
            "ORDER" => {
                let order = rest.next().ok_or_else(usage)?;
                options.order = order.parse().map_err(|what| Error::Refused { what })?;
            }
            "THROTTLE" => {
                let rate: f64 = rest.next().and_then(|word| word.parse().ok()).ok_or_else(usage)?;
                options.throttle_bytes_s = (rate > 0.0).then_some((rate * 1e6) as u64);
            }
            "SETPOINT" => {
                let set_point = rest.next().ok_or_else(usage)?.to_ascii_lowercase();
                options.set_point = set_point.parse().map_err(|what| Error::Refused { what })?;
            }
            "MANUAL" => options.policy = Policy::Manual,
            "EARLY" => {
                let percent: f64 = rest.next().and_then(|word| word.parse().ok()).ok_or_else(usage)?;
                options.early = Some(percent.clamp(0.0, 100.0) / 100.0);
            }
            _ => return Err(usage()),
        }
    }
    Ok(options)
}

/// What the bulk plane moves to another host without a cap, in MB (10^6 bytes) per second.
async fn link(host: &Arc<Host>, words: &[&str]) -> Result<Value> {
    const MEBIBYTES_MAX: u64 = 16 << 10;
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).ok_or_else(usage);
    let (peer, mebibytes) = (u32::try_from(number(0)?).map_err(|_| usage())?, number(1)?.clamp(1, MEBIBYTES_MAX));
    let bytes_s = probe::measure(host, HostId(peer), mebibytes << 20).await?;
    Ok(json!({ "mb_s": bytes_s / 1e6, "mebibytes": mebibytes }))
}

/// How far a move's target is filled; null where no segment was missing since the start.
async fn fill(host: &Host, id: PartitionId) -> Result<Value> {
    let read = |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
        Ok((partition.serving() == Serving::Owner, partition.fill_progress()))
    };
    let (serving, progress) = host.engine.partition(id)?.with(read).await?;
    Ok(progress.map_or(Value::Null, |progress| {
        json!({
            "serving": serving, "attempt": progress.attempt.0, "segments": progress.segments, "missing": progress.missing,
            "reads": progress.reads, "reads_waited": progress.reads_waited, "out_of_reach": progress.out_of_reach,
        })
    }))
}

async fn segments(host: &Host, id: PartitionId) -> Result<Value> {
    let summaries =
        host.engine.partition(id)?.with(|partition| async move { Ok(partition.segment_summaries()) }).await?;
    let rows: Vec<Value> = summaries
        .iter()
        .map(|segment| {
            json!({
                "segment": segment.id.0, "start": String::from_utf8_lossy(segment.start.get(2..).unwrap_or_default()),
                "bytes": segment.bytes, "version": segment.token.version.0, "auto": segment.auto,
                "gru": segment.gru, "ewma": segment.ewma,
            })
        })
        .collect();
    Ok(json!(rows))
}

/// The sampled request log of a partition. `TAKE` gives `[microseconds, key in hexadecimal, g|p, bytes]` for each request.
async fn record(host: &Host, words: &[&str]) -> Result<Value> {
    /// Requests in one reply.
    const PAGE_REQUESTS: usize = 20_000;
    let partition = host.engine.partition(partition_id(words.first())?)?;
    match (words.get(1).map(|word| word.to_ascii_uppercase()).as_deref(), words.get(2)) {
        (Some("START"), Some(every)) => {
            let every = every.parse().ok().filter(|every| *every > 0).ok_or_else(usage)?;
            partition
                .with(move |partition| async move {
                    partition.start_recording(every);
                    Ok(())
                })
                .await?;
            Ok(json!("OK"))
        }
        (Some("TAKE"), None) => {
            let take = |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                Ok(partition.take_recorded(PAGE_REQUESTS))
            };
            let page = partition.with(take).await?;
            let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let rows: Vec<Value> = page
                .requests
                .iter()
                .map(|request| {
                    let operation = if request.is_write { "p" } else { "g" };
                    json!([request.at_us, hex(&request.key), operation, request.bytes])
                })
                .collect();
            Ok(json!({ "requests": rows, "dropped": page.dropped, "on": page.is_on }))
        }
        (Some("STOP"), None) => {
            partition
                .with(|partition| async move {
                    partition.stop_recording();
                    Ok(())
                })
                .await?;
            Ok(json!("OK"))
        }
        _ => Err(usage()),
    }
}
