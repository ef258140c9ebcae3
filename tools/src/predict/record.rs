//! `antumbra predict record`: the request log of a live node as a trace.
//!
//! The node samples keys and keeps their requests; this command takes them in pages. A trace wants numbers whose order
//! is the key order, so at the end each key becomes its rank among all keys that were seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use antumbra_predictor::trace::{Op, Request, TraceWriter};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::CliError;
use crate::client::Client;

#[derive(Args)]
pub struct RecordOptions {
    /// Address of the node's Redis port.
    #[arg(long)]
    node: SocketAddr,
    /// Partition.
    #[arg(long)]
    partition: u64,
    /// Where the trace goes.
    #[arg(long)]
    out: PathBuf,
    /// How long to record.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// One key of so many is sampled; all its requests are kept.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Stop after so many requests.
    #[arg(long, default_value_t = 10_000_000)]
    requests: usize,
}

/// One page of the node's log.
#[derive(Deserialize)]
struct Page {
    /// Microseconds, key in hexadecimal, `g` or `p`, bytes.
    requests: Vec<(u64, String, String, u32)>,
    dropped: u64,
    on: bool,
}

/// Runs `antumbra predict record`.
pub fn run(options: &RecordOptions) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(record(options))
}

async fn record(options: &RecordOptions) -> Result<(), CliError> {
    let client = Client::connect(options.node).await?;
    let partition = options.partition;
    client.command(&format!("ANTUMBRA RECORD {partition} START {}", options.every)).await?;
    let bar = ProgressBar::new(options.seconds);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} s {msg}")?);
    let begin = Instant::now();
    let (mut taken, mut dropped) = (Vec::new(), 0);
    while begin.elapsed() < Duration::from_secs(options.seconds) && taken.len() < options.requests {
        let page: Page = serde_json::from_value(client.json(&format!("ANTUMBRA RECORD {partition} TAKE")).await?)?;
        if !page.on {
            return Err(format!("partition {partition}: recording was stopped, or the partition has moved").into());
        }
        dropped = page.dropped;
        let is_empty = page.requests.is_empty();
        taken.extend(page.requests);
        bar.set_position(begin.elapsed().as_secs());
        bar.set_message(format!("{} requests", taken.len()));
        if is_empty {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    client.command(&format!("ANTUMBRA RECORD {partition} STOP")).await?;
    bar.finish_and_clear();
    taken.truncate(options.requests);
    write(options, &taken)?;
    println!("wrote {} requests to {}; {dropped} were dropped", taken.len(), options.out.display());
    Ok(())
}

fn write(options: &RecordOptions, taken: &[(u64, String, String, u32)]) -> Result<(), CliError> {
    let mut writer = TraceWriter::create(&options.out)?;
    for request in requests(taken) {
        writer.write(&request)?;
    }
    writer.finish()?.sync_all()?;
    Ok(())
}

/// Keys in hexadecimal sort as the keys themselves do.
fn requests(taken: &[(u64, String, String, u32)]) -> Vec<Request> {
    let mut ranks: BTreeMap<&str, u64> = taken.iter().map(|request| (request.1.as_str(), 0)).collect();
    ranks.values_mut().zip(0..).for_each(|(rank, place)| *rank = place);
    let first = taken.first().map_or(0, |request| request.0);
    let request = |(at_us, key, operation, size): &(u64, String, String, u32)| Request {
        ts_us: at_us - first,
        op: if operation == "p" { Op::Put } else { Op::Get },
        key: ranks[key.as_str()],
        size: *size,
    };
    taken.iter().map(request).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_their_ranks_in_key_order() {
        let taken = [(5, "0b", "g"), (7, "0a0f", "p"), (9, "0b", "g"), (9, "ff", "g")]
            .map(|(at, key, operation)| (at, key.to_owned(), operation.to_owned(), 3));
        let got = requests(&taken);
        assert_eq!(got.iter().map(|request| request.key).collect::<Vec<_>>(), [1, 0, 1, 2]);
        assert_eq!(got.iter().map(|request| request.ts_us).collect::<Vec<_>>(), [0, 2, 4, 4]);
        assert_eq!(got[1].op, Op::Put);
    }
}
