//! `antumbra demo`: the whole life of a move on one machine, checked.

mod html;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use antumbra_net::resp::slot;
use antumbra_net::shadow::{MoveReport, Order};
use antumbra_predictor::signal::{Signal, SignalConfig, SignalEvent};
use antumbra_predictor::trace::{self, Request, TraceReader};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use crate::CliError;
use crate::client::Client;

use crate::moving;
use crate::moving::cluster::{self, NodeConfig};
use crate::moving::fill::FillWatch;
use crate::moving::load::{self, Route};
use crate::moving::model::Model;
use crate::moving::report::{Report, SignalReport};
use crate::moving::workload::{Ramp, Space, Workload};

/// The trace that comes with the program; see `assets/ATTRIBUTION.md`.
pub const BUNDLED: &[u8] = include_bytes!("../../assets/mooncake_conv.csv.zst");
const BUNDLED_NAME: &str = "mooncake_conv (bundled)";
/// Small segments, so that there are a few hundred; short access windows, so that a run of seconds has many.
const NODES: NodeConfig = NodeConfig { segment_kib: 256, memory_mib: 256, window: Duration::from_millis(250) };
const SPACE: Space = Space { tag: "demo", value_bytes: 100, spread_bytes: 200 };
/// Keys that are loaded at least.
const KEYS_MIN: u32 = 200_000;
/// Part of the run before the load begins to rise, and part in which it rises.
const WARM_UP: f64 = 0.2;
const RISE: f64 = 0.4;
/// Part of the run after which the move is started even without a signal.
const LATEST_START: f64 = 0.65;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CoordinatorKind {
    /// In the first node's own store.
    Embedded,
}

#[derive(Args)]
pub struct DemoOptions {
    /// Trace to replay (zstd CSV `ts_us,op,key,size`); without it, the bundled one.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Copy order: auto, gru, ewma, key or random.
    #[arg(long, default_value = "auto")]
    order: Order,
    /// Cap of the copy, in MB (10^6 bytes) per second on the wire; 0 = none.
    #[arg(long, default_value_t = 3.0)]
    throttle_mb_s: f64,
    /// Switch when the target holds this share of the expected accesses, in percent; it fetches the rest afterwards.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
    early: Option<u8>,
    /// Share of writes, in percent; without it, 30.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=100))]
    writes: u8,
    /// Length of the load, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Requests per second at first; the load rises to three times as many.
    #[arg(long, default_value_t = 1200)]
    rate: u32,
    /// Coordinator.
    #[arg(long, value_enum, default_value_t = CoordinatorKind::Embedded)]
    coordinator: CoordinatorKind,
    /// Data folder; without it a temporary one.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where report.json and report.html go.
    #[arg(long, default_value = "antumbra-demo")]
    out: PathBuf,
    /// Print the report as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs the demo; the exit code says whether everything held.
pub fn run(options: DemoOptions) -> Result<ExitCode, CliError> {
    let requests = match &options.trace {
        Some(path) => trace::read_all(path)?,
        None => TraceReader::new(BUNDLED, Path::new(BUNDLED_NAME))?.collect::<Result<Vec<Request>, _>>()?,
    };
    if requests.is_empty() {
        return Err("the trace holds no request".into());
    }
    let temporary = tempfile::Builder::new().prefix("antumbra-demo-").tempdir()?;
    let dir = options.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    let nodes = cluster::start(&dir, NODES, moving::cpus::halves())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(drive(&options, &requests, &nodes))?;
    drop(nodes);
    std::fs::create_dir_all(&options.out)?;
    let json = serde_json::to_string_pretty(&report)?;
    std::fs::write(options.out.join("report.json"), &json)?;
    std::fs::write(options.out.join("report.html"), html::page(&report)?)?;
    if options.json {
        println!("{json}");
    } else {
        report.print();
        println!("  {}", options.out.join("report.html").display());
    }
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn drive(options: &DemoOptions, requests: &[Request], nodes: &[cluster::Node]) -> Result<Report, CliError> {
    let addresses: Vec<_> = nodes.iter().map(|node| node.resp).collect();
    let admins = vec![Client::connect(addresses[0]).await?, Client::connect(addresses[1]).await?];
    cluster::create_partitions(&admins, slot::slot_of(&SPACE.key(0))).await?;
    let workload = Arc::new(Workload::new(SPACE, requests, KEYS_MIN, Some(options.writes), 1));
    let route = Arc::new(Route::connect(&addresses).await?);
    let bar = progress_bar(options.json, u64::from(workload.keys()), "loading");
    load::load_keys(&route, &workload, &bar).await?;
    bar.finish_and_clear();
    admins[0].json(&format!("ANTUMBRA COMPACT {}", cluster::PARTITION)).await?;

    let seconds = f64::from(options.seconds);
    let rate = f64::from(options.rate);
    let ramp = Ramp { from: rate, to: rate * 3.0, begin: seconds * WARM_UP, length: seconds * RISE };
    let model = Arc::new(Model::new(workload.keys()));
    let start_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64;
    let bar = progress_bar(options.json, u64::from(options.seconds) * 10, "load");
    let running = tokio::spawn(load::run(
        Arc::clone(&route),
        Arc::clone(&workload),
        Arc::clone(&model),
        ramp,
        seconds,
        Arc::default(),
    ));
    let mut fill = FillWatch::default();
    let (moved, signal) = watch_and_move(options, &admins, rate, seconds, &bar, &mut fill).await?;
    let samples = running.await?;
    bar.finish_and_clear();
    let lost = load::count_lost(&route, &model, &workload).await?;

    let mut report = Report {
        trace: options.trace.as_ref().map_or_else(|| BUNDLED_NAME.into(), |path| path.display().to_string()),
        order: options.order.to_string(),
        keys: u64::from(workload.keys()),
        durability: "durable on both hosts before the acknowledgement".into(),
        environment: moving::environment(moving::cpus::halves()),
        signal,
        early: options.early.map(|percent| fill.report(f64::from(percent), moved.switchover.missing)),
        ..Report::default()
    };
    report.fill(&samples, moved, &model.counts, lost, start_us);
    Ok(report)
}

/// Watches the load of the partition; moves it when its trend says so. Returns when the move is complete.
async fn watch_and_move(
    options: &DemoOptions,
    admins: &[Client],
    rate: f64,
    seconds: f64,
    bar: &ProgressBar,
    fill: &mut FillWatch,
) -> Result<(MoveReport, SignalReport), CliError> {
    let (admin, window) = (&admins[0], NODES.window.as_secs_f64());
    // The host could bear this much; the shadow takes about as long as the lead.
    let threshold = rate * 2.5;
    let lead_windows = (seconds * 0.15 / window).max(4.0);
    let mut signal = Signal::new(SignalConfig::new(threshold, lead_windows))?;
    let mut found = SignalReport { threshold_ops_s: threshold, ..SignalReport::default() };
    let began = Instant::now();
    let mut windows = 0;
    let early = options.early.map_or_else(String::new, |percent| format!(" EARLY {percent}"));
    let (id, order, throttle) = (cluster::PARTITION, options.order, options.throttle_mb_s);
    let start = format!("ANTUMBRA MOVE {id} 2 ORDER {order} THROTTLE {throttle} SETPOINT off{early}");
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let elapsed = began.elapsed().as_secs_f64();
        bar.set_position((elapsed * 10.0) as u64);
        let state = admin.json("ANTUMBRA PARTITIONS").await?;
        let partition = state["partitions"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["partition"] == cluster::PARTITION));
        let partition = partition.ok_or("the demo's partition is gone")?;
        if partition["windows"].as_u64().unwrap_or(0) == windows {
            continue;
        }
        windows = partition["windows"].as_u64().unwrap_or(0);
        let last = &partition["last_window"];
        let operations = last["reads"].as_u64().unwrap_or(0) + last["writes"].as_u64().unwrap_or(0);
        // The first windows after the loading are not the load's.
        let event = if elapsed > 1.0 { signal.observe(operations as f64 / window) } else { None };
        if let Some(SignalEvent::Raised { crossing_in_windows }) = event {
            (found.raised_at_s, found.lead_s) = (Some(elapsed), Some(crossing_in_windows * window));
            break;
        }
        if elapsed > seconds * LATEST_START {
            break;
        }
    }
    admin.json(&start).await?;
    bar.set_message("moving");
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        bar.set_position((began.elapsed().as_secs_f64() * 10.0) as u64);
        if options.early.is_some() {
            fill.look(&admins[1]).await?;
        }
        let progress = admin.json(&format!("ANTUMBRA PROGRESS {}", cluster::PARTITION)).await?;
        if let Some(what) = progress["failed"].as_str() {
            return Err(format!("the move failed: {what}").into());
        }
        bar.set_message(format!(
            "{}: {}/{} segments",
            progress["state"].as_str().unwrap_or(""),
            progress["held"],
            progress["segments"]
        ));
        let report = admin.json(&format!("ANTUMBRA REPORT {}", cluster::PARTITION)).await?;
        if !report.is_null() {
            return Ok((serde_json::from_value(report)?, found));
        }
    }
}

fn progress_bar(quiet: bool, len: u64, what: &'static str) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:8} {wide_bar} {percent:>3} % {msg}");
    let bar = ProgressBar::new(len).with_prefix(what);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}
