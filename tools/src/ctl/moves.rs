//! Moves from the command line: begun, followed, judged.

use std::process::ExitCode;
use std::time::Duration;

use antumbra_net::status::{DrainMove, MoveStatus};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::CliError;
use crate::client::Client;

use super::{Cluster, show, typed};

/// Between two looks at a move.
const PERIOD: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct MoveArgs {
    /// The partition.
    partition: u64,
    /// Where to.
    destination: u32,
    #[command(flatten)]
    how: How,
    /// Wait with the switchover until `ctl switch`.
    #[arg(long)]
    manual: bool,
    /// Return when it has begun.
    #[arg(long)]
    detach: bool,
}

#[derive(Args)]
pub struct SplitArgs {
    /// The partition.
    partition: u64,
    /// The first slot of the new one.
    slot: u16,
    /// Id of the new one; without it, the next that is free.
    #[arg(long)]
    id: Option<u64>,
    /// Move the new one to this host, and follow that to its end.
    #[arg(long)]
    to: Option<u32>,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
pub struct RollbackArgs {
    /// The partition.
    partition: u64,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
pub struct DrainArgs {
    /// The host.
    host: u32,
    #[command(flatten)]
    how: How,
}

/// How copies are made.
#[derive(Args)]
struct How {
    /// Order of the copy: auto, gru, ewma, key or random.
    #[arg(long, default_value = "auto")]
    order: String,
    /// Cap on what is sent, in MB per second.
    #[arg(long)]
    throttle_mb_s: Option<f64>,
    /// Switch over when so many per cent of the expected reads would be served by what is held.
    #[arg(long)]
    early: Option<f64>,
    /// Copy at the rate that the cap allows, whatever requests see.
    #[arg(long)]
    rash: bool,
}

impl How {
    fn words(&self) -> String {
        let mut words = format!(" ORDER {}", self.order);
        if let Some(rate) = self.throttle_mb_s {
            words += &format!(" THROTTLE {rate}");
        }
        if let Some(percent) = self.early {
            words += &format!(" EARLY {percent}");
        }
        if self.rash {
            words += " SETPOINT off";
        }
        words
    }
}

/// `ctl move`: succeeds when the partition has moved and both sides agreed.
pub async fn run(cluster: &Cluster, args: &MoveArgs, json: bool) -> Result<ExitCode, CliError> {
    let source = cluster.owner_of(args.partition).await?;
    let manual = if args.manual { " MANUAL" } else { "" };
    let how = args.how.words();
    source.command(&format!("ANTUMBRA MOVE {} {}{how}{manual}", args.partition, args.destination)).await?;
    if args.detach {
        let what = format!("partition {} is being moved to host {}", args.partition, args.destination);
        show::print(json, &json!({ "done": what }), |_| format!("{what}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    conclude(&source, args.partition, json).await
}

/// Follows a move to its end and says how that was.
async fn conclude(source: &Client, partition: u64, json: bool) -> Result<ExitCode, CliError> {
    let ended = follow(source, partition, &format!("partition {partition}")).await?;
    show::print(json, &ended, |ended| show::moving(ended) + "\n")?;
    Ok(if is_well(&ended) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `ctl split`: succeeds when both halves are there, and the new one is where it was to go.
pub async fn split(cluster: &Cluster, args: &SplitArgs, json: bool) -> Result<ExitCode, CliError> {
    let owner = cluster.owner_of(args.partition).await?;
    let id = args.id.map_or_else(String::new, |id| format!(" {id}"));
    let to = args.to.map_or_else(String::new, |to| format!(" MOVE {to}{}", args.how.words()));
    let record = owner.json(&format!("ANTUMBRA SPLIT {} {}{id}{to}", args.partition, args.slot)).await?;
    match (args.to, record["partition"].as_u64()) {
        (Some(_), Some(new)) => {
            if !json {
                println!("{}", show::reshaped(&record));
            }
            conclude(&owner, new, json).await
        }
        _ => {
            show::print(json, &record, |record| format!("{}\n", show::reshaped(record)))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// `ctl rollback`: succeeds when the partition is back and both sides agreed.
pub async fn roll_back(cluster: &Cluster, args: &RollbackArgs, json: bool) -> Result<ExitCode, CliError> {
    let owner = cluster.owner_of(args.partition).await?;
    owner.json(&format!("ANTUMBRA ROLLBACK {}{}", args.partition, args.how.words())).await?;
    conclude(&owner, args.partition, json).await
}

fn is_well(ended: &MoveStatus) -> bool {
    ended.progress.failed.is_none() && ended.done.as_ref().is_some_and(|done| done.equal)
}

/// Follows a move to its end, with a bar where there is a terminal.
async fn follow(source: &Client, partition: u64, what: &str) -> Result<MoveStatus, CliError> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} segments {elapsed} {msg}")?);
    bar.set_prefix(what.to_string());
    loop {
        let moves: Vec<MoveStatus> = typed(source.json("ANTUMBRA MOVES").await?)?;
        let known = moves.into_iter().find(|known| known.partition == partition);
        let known = known.ok_or_else(|| format!("the move of partition {partition} is not known to its source"))?;
        bar.set_length(known.progress.segments as u64);
        bar.set_position(known.progress.held as u64);
        bar.set_message(format!("{}, {}", known.progress.state, crate::show::size(known.progress.bytes_on_wire)));
        if !known.under_way {
            bar.finish_and_clear();
            return Ok(known);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// `ctl drain`: succeeds when the host owns nothing any more.
pub async fn drain(cluster: &Cluster, args: &DrainArgs, json: bool) -> Result<ExitCode, CliError> {
    let mut ended = Vec::new();
    loop {
        let status = cluster.status().await?;
        let Some(DrainMove { partition, destination, left }) = status.next_drain_move(args.host)? else {
            break;
        };
        let source = cluster.host(&status, args.host).await?;
        let how = args.how.words();
        source.command(&format!("ANTUMBRA MOVE {partition} {destination}{how}")).await?;
        let done = follow(&source, partition, &format!("{left} left, partition {partition}")).await?;
        if !json {
            println!("{}", show::moving(&done));
        }
        let well = is_well(&done);
        ended.push(done);
        if !well {
            show::print(json, &ended, |_| format!("host {} is not empty\n", args.host))?;
            return Ok(ExitCode::FAILURE);
        }
    }
    show::print(json, &ended, |_| format!("host {} owns nothing\n", args.host))?;
    Ok(ExitCode::SUCCESS)
}
