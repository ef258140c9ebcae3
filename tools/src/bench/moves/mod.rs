//! `antumbra bench move`: a partition moves under an open-loop load; what readers, writers and the neighbours notice. With
//! `--rival` a slot of Valkey or Redis moves instead, by their own atomic migration, under the same load.

mod figures;
mod rival;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use antumbra_benches::process::{Usage, peak_bytes};
use antumbra_benches::zipf::Zipf;
use antumbra_net::resp::slot;
use antumbra_net::shadow::{MoveReport, Order, SetPoint};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::CliError;
use crate::client::Client;
use crate::moving;
use crate::moving::cluster::{self, NodeConfig};
use crate::moving::cpus::{self, Cpus};
use crate::moving::load::{self, Route, Sample};
use crate::moving::model::Model;
use crate::moving::report::{self, Latency, Report};
use crate::moving::workload::{Ramp, Space, Workload};
use figures::Row;
use rival::Rival;

const NODES: NodeConfig = NodeConfig { segment_kib: 4096, memory_mib: 512, window: Duration::from_secs(1) };
/// Tag of the partition that moves.
const MOVED: &str = "move";
/// Tags of the partition beside it; the first whose slot lies below the moved one is taken.
const OTHERS: [&str; 6] = ["beside", "other", "next", "left", "one", "two"];
/// Keys of the partition beside it.
const OTHER_KEYS: u32 = 20_000;
/// Requests to it for each request to the moved one.
const OTHER_SHARE: f64 = 0.2;
/// Exponent of the popularity; popular keys are spread over the key space.
const EXPONENT: f64 = 0.99;
/// Steps of the load until it repeats itself.
const STEPS: usize = 1 << 20;
/// Clients of the closed loop that finds the capacity, and how long it runs.
const CAPACITY_CLIENTS: usize = 64;
const CAPACITY_TIME: Duration = Duration::from_secs(4);
/// The load before what is measured.
const WARM_UP: Duration = Duration::from_secs(3);
/// A load that nobody stopped.
const LOAD_SECONDS_MAX: f64 = 900.0;
/// Bytes that measure the link.
const LINK_MEBIBYTES: u64 = 1024;

#[derive(Args)]
pub struct MoveOptions {
    /// Size of the partition, in MiB of values.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    mib: u32,
    /// Bytes of a value.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    value_bytes: u32,
    /// Load, in percent of what a closed loop of 64 clients reaches on the partition before.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u8).range(1..=100))]
    load_percent: u8,
    /// Load, in requests per second; instead of --load-percent.
    #[arg(long)]
    rate: Option<u32>,
    /// Share of writes, in percent.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100))]
    writes: u8,
    /// Neighbouring keys that a write sets in one MSET.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    batch: u32,
    /// Copy order: auto, gru, ewma, key or random.
    #[arg(long, default_value = "auto")]
    order: Order,
    /// Cap of the copy, in MB (10^6 bytes) per second on the wire; 0 = none.
    #[arg(long, default_value_t = 0.0)]
    throttle_mb_s: f64,
    /// What requests may see beside the copy, as the 99th percentile of how late they run and of the log's writes: in
    /// microseconds, `auto` = a tenth more than in quiet, or `off` = whatever: the copy takes what it can get.
    #[arg(long, default_value = "auto", value_parser = set_point)]
    set_point: String,
    /// Switch when the target holds this share of the expected accesses, in percent.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
    early: Option<u8>,
    /// Seconds of load before the move, and after it.
    #[arg(long, default_value_t = 10)]
    before_s: u32,
    #[arg(long, default_value_t = 5)]
    after_s: u32,
    /// Let both nodes run on all CPUs. Otherwise each has its half of them, as hosts have their own, and the load all.
    #[arg(long)]
    shared_cpus: bool,
    /// Runs, each with fresh nodes; the median of each figure is printed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Move a slot of this rival instead, from a server that is on the PATH or given; nothing is downloaded.
    #[arg(long, value_enum, conflicts_with_all = ["order", "throttle_mb_s", "set_point", "early"])]
    rival: Option<Rival>,
    /// Its server.
    #[arg(long, requires = "rival")]
    rival_bin: Option<PathBuf>,
    /// When its log is on the device: `always` is before each acknowledgement, Antumbra's class.
    #[arg(long, default_value = "always", value_parser = ["always", "everysec", "no"], requires = "rival")]
    rival_fsync: String,
    /// Data folder; without it a temporary one.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print JSON: the report of the run, or of each run and the medians.
    #[arg(long)]
    json: bool,
}

impl MoveOptions {
    /// Those of each node.
    fn cpus(&self) -> [Cpus; 2] {
        if self.shared_cpus { cpus::SHARED } else { cpus::halves() }
    }
}

/// No set-point.
const OFF: &str = "off";

fn set_point(text: &str) -> Result<String, String> {
    text.parse::<SetPoint>().map(|_| text.into())
}

/// One run.
#[derive(Debug, Serialize)]
struct MoveBench {
    /// `antumbra`, or the rival and its version.
    system: String,
    #[serde(flatten)]
    report: Report,
    /// The partition beside it, on the same shard.
    other_partitions: Latency,
    copy_mb_s: f64,
    /// From the order to its end.
    move_s: f64,
    /// What the bulk plane alone moves between the same two processes, before the load; 0 for rivals, which have none.
    quic_limit_mb_s: f64,
    coordinator: &'static str,
    partition_mib: u32,
    /// As asked for; empty for a rival, which knows none.
    set_point: String,
    capacity_ops_s: f64,
    rate_ops_s: f64,
    /// Of both nodes together, while the partition moved.
    cpu_s: f64,
    /// The most memory that each node ever had, added up.
    peak_mib: f64,
    /// What is compared.
    figures: Vec<Row>,
}

/// What serves the load: two nodes.
enum Nodes {
    Antumbra(Vec<cluster::Node>),
    Rival(rival::Servers),
}

impl Nodes {
    fn start(options: &MoveOptions, dir: &Path) -> Result<Nodes, CliError> {
        let cpus = options.cpus();
        match options.rival {
            None => Ok(Nodes::Antumbra(cluster::start(dir, NODES, cpus)?)),
            Some(rival) => {
                let program = options.rival_bin.as_deref();
                let servers = rival::Servers::start(rival, program, &options.rival_fsync, dir, cpus)?;
                Ok(Nodes::Rival(servers))
            }
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Nodes::Antumbra(nodes) => nodes.iter().map(|node| node.resp).collect(),
            Nodes::Rival(servers) => servers.addresses(),
        }
    }

    fn processes(&self) -> Vec<u32> {
        match self {
            Nodes::Antumbra(nodes) => nodes.iter().map(cluster::Node::process).collect(),
            Nodes::Rival(servers) => servers.processes(),
        }
    }

    fn cpu_seconds(&self) -> f64 {
        self.processes().into_iter().map(|process| Usage::of(process).cpu_seconds).sum()
    }

    fn peak_mib(&self) -> f64 {
        self.processes().into_iter().map(peak_bytes).sum::<u64>() as f64 / f64::from(1 << 20)
    }

    /// Makes a cluster of them whose first node owns the slot; what the link alone moves, in MB/s.
    async fn prepare(&self, admins: &[Client], slot: u16) -> Result<f64, CliError> {
        match self {
            Nodes::Antumbra(_) => {
                cluster::create_partitions(admins, slot).await?;
                let link = admins[0].json(&format!("ANTUMBRA LINK 2 {LINK_MEBIBYTES}")).await?;
                Ok(link["mb_s"].as_f64().unwrap_or(0.0))
            }
            Nodes::Rival(servers) => servers.form_cluster(admins, slot).await.map(|()| 0.0),
        }
    }

    /// Brings what was loaded to rest.
    async fn settle(&self, admins: &[Client]) -> Result<(), CliError> {
        if let Nodes::Antumbra(_) = self {
            for partition in [cluster::PARTITION, 2] {
                admins[0].json(&format!("ANTUMBRA COMPACT {partition}")).await?;
            }
        }
        Ok(())
    }

    async fn move_now(
        &self,
        options: &MoveOptions,
        admins: &[Client],
        slot: u16,
        bar: &ProgressBar,
    ) -> Result<MoveReport, CliError> {
        match self {
            Nodes::Antumbra(_) => move_now(options, &admins[0], bar).await,
            Nodes::Rival(servers) => servers.move_slot(admins, slot, u64::from(options.mib) << 20).await,
        }
    }

    fn system(&self) -> String {
        match self {
            Nodes::Antumbra(_) => "antumbra".into(),
            Nodes::Rival(servers) => servers.name.clone(),
        }
    }

    fn durability(&self, options: &MoveOptions) -> String {
        match self {
            Nodes::Antumbra(_) => "durable on both hosts before the acknowledgement".into(),
            Nodes::Rival(_) => format!("append-only file, appendfsync {}, of the owner alone", options.rival_fsync),
        }
    }
}

/// Runs the benchmark; fails if a request failed, a read was stale or a write was lost in any run of Antumbra. What a rival
/// does is reported.
pub fn run(options: &MoveOptions) -> Result<ExitCode, CliError> {
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        super::say(&bar, format!("run {number} of {}", options.runs));
        let temporary = tempfile::Builder::new().prefix("antumbra-move-").tempdir()?;
        let dir = options.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf()).join(format!("run-{number}"));
        let nodes = Nodes::start(options, &dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runs.push(runtime.block_on(drive(options, &nodes, &bar))?);
        drop(nodes);
        std::fs::remove_dir_all(&dir)?;
        bar.finish_and_clear();
    }
    if options.json {
        match runs.as_slice() {
            [one] => println!("{}", serde_json::to_string_pretty(one)?),
            _ => println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "runs": runs }))?),
        }
    } else {
        figures::print(&runs);
    }
    let passed = options.rival.is_some() || runs.iter().all(|run| run.report.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn drive(options: &MoveOptions, nodes: &Nodes, bar: &ProgressBar) -> Result<MoveBench, CliError> {
    let addresses = nodes.addresses();
    let admins = vec![Client::connect(addresses[0]).await?, Client::connect(addresses[1]).await?];
    let moved_space = Space { tag: MOVED, value_bytes: options.value_bytes as usize, spread_bytes: 0 };
    let moved_slot = slot::slot_of(&moved_space.key(0));
    let tag = OTHERS.into_iter().find(|tag| slot::slot_of(format!("{{{tag}}}").as_bytes()) < moved_slot);
    let other_space = Space { tag: tag.ok_or("no tag has a slot below the moved one's")?, ..moved_space };
    bar.set_message("making a cluster and measuring its link");
    let quic_limit_mb_s = nodes.prepare(&admins, moved_slot).await?;

    let keys = (u64::from(options.mib) * (1 << 20) / u64::from(options.value_bytes)) as u32;
    let mut main = popular(moved_space, keys, options.writes, 1);
    main.batch = options.batch;
    let main = Arc::new(main);
    let other = Arc::new(popular(other_space, OTHER_KEYS, options.writes, 2));
    let (route, other_route) =
        (Arc::new(Route::connect(&addresses).await?), Arc::new(Route::connect(&addresses).await?));
    bar.set_message("loading");
    load::load_keys(&route, &main, &ProgressBar::hidden()).await?;
    load::load_keys(&other_route, &other, &ProgressBar::hidden()).await?;
    nodes.settle(&admins).await?;
    let (model, other_model) = (Arc::new(Model::new(keys)), Arc::new(Model::new(OTHER_KEYS)));
    bar.set_message("finding the capacity");
    let capacity = match options.rate {
        Some(_) => 0.0,
        None => find_capacity(&route, &main, &model).await,
    };
    let rate = options.rate.map_or(capacity * f64::from(options.load_percent) / 100.0, f64::from).max(1.0);

    let stop = Arc::new(AtomicBool::new(false));
    let constant = |rate: f64| Ramp { from: rate, to: rate, begin: 0.0, length: 1.0 };
    let start = |route: &Arc<Route>, workload: &Arc<Workload>, model: &Arc<Model>, rate: f64| {
        let (route, workload, model) = (Arc::clone(route), Arc::clone(workload), Arc::clone(model));
        tokio::spawn(load::run(route, workload, model, constant(rate), LOAD_SECONDS_MAX, Arc::clone(&stop)))
    };
    let running = start(&route, &main, &model, rate);
    let other_running = start(&other_route, &other, &other_model, (rate * OTHER_SHARE).max(1.0));
    bar.set_message(format!("{rate:.0} requests/s, before the move"));
    tokio::time::sleep(WARM_UP).await;
    let from_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64;
    tokio::time::sleep(Duration::from_secs(options.before_s.into())).await;
    let (began, cpu_before) = (Instant::now(), nodes.cpu_seconds());
    let moved = nodes.move_now(options, &admins, moved_slot, bar).await?;
    let (move_s, cpu_s) = (began.elapsed().as_secs_f64(), nodes.cpu_seconds() - cpu_before);
    bar.set_message("after the move");
    tokio::time::sleep(Duration::from_secs(options.after_s.into())).await;
    stop.store(true, Ordering::Relaxed);
    let measured =
        |samples: Vec<Sample>| samples.into_iter().filter(|sample| sample.at_us >= from_us).collect::<Vec<_>>();
    let (samples, other_samples) = (measured(running.await?), measured(other_running.await?));
    bar.set_message("looking for lost writes");
    let lost =
        load::count_lost(&route, &model, &main).await? + load::count_lost(&other_route, &other_model, &other).await?;

    let copy_mb_s = moved.shadow.bytes_copied as f64 / 1e6 / moved.shadow.seconds.max(1e-9);
    let other_partitions = report::latency(&other_samples, &moved);
    let mut report = Report {
        trace: format!("zipf {EXPONENT}, {} % writes", options.writes),
        order: options.order.to_string(),
        keys: keys.into(),
        durability: nodes.durability(options),
        environment: moving::environment(options.cpus()),
        ..Report::default()
    };
    match nodes {
        Nodes::Antumbra(_) => report.fill(&samples, moved, &model.counts, lost, from_us),
        Nodes::Rival(_) => report.fill_load(&samples, &moved, &model.counts, lost, from_us),
    }
    let mut bench = MoveBench {
        system: nodes.system(),
        report,
        other_partitions,
        copy_mb_s,
        move_s,
        quic_limit_mb_s,
        coordinator: if options.rival.is_some() { "its own" } else { "embedded" },
        partition_mib: options.mib,
        set_point: if options.rival.is_none() { options.set_point.clone() } else { String::new() },
        capacity_ops_s: capacity,
        rate_ops_s: rate,
        cpu_s,
        peak_mib: nodes.peak_mib(),
        figures: Vec::new(),
    };
    bench.figures = figures::rows(&bench);
    Ok(bench)
}

/// A load whose popular keys are spread over the key space.
fn popular(space: Space, keys: u32, writes: u8, seed: u64) -> Workload {
    let zipf = Zipf::new(keys.into(), EXPONENT);
    // A multiplier without a common divisor with the number of keys names each key once.
    let step = (0x9e37_79b1_u64..).step_by(2).find(|step| gcd(*step, keys.into()) == 1).unwrap_or(1);
    Workload::made(space, keys, STEPS, writes, seed, move |random| {
        (zipf.sample(random).wrapping_mul(step) % u64::from(keys)) as u32
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Requests per second of a closed loop on the partition.
async fn find_capacity(route: &Arc<Route>, workload: &Arc<Workload>, model: &Arc<Model>) -> f64 {
    let began = Instant::now();
    let clients = (0..CAPACITY_CLIENTS).map(|client| {
        let (route, workload, model) = (Arc::clone(route), Arc::clone(workload), Arc::clone(model));
        tokio::spawn(async move {
            let mut done = 0_u64;
            while began.elapsed() < CAPACITY_TIME {
                let step = workload.step((client as u64) << 12 | done);
                load::request(&route, &model, &workload, step).await;
                done += 1;
            }
            done
        })
    });
    let mut done = 0;
    for client in clients.collect::<Vec<_>>() {
        done += client.await.unwrap_or(0);
    }
    done as f64 / began.elapsed().as_secs_f64()
}

async fn move_now(options: &MoveOptions, admin: &Client, bar: &ProgressBar) -> Result<MoveReport, CliError> {
    let early = options.early.map_or_else(String::new, |percent| format!(" EARLY {percent}"));
    let (id, order, throttle, set_point) =
        (cluster::PARTITION, options.order, options.throttle_mb_s, &options.set_point);
    admin.json(&format!("ANTUMBRA MOVE {id} 2 ORDER {order} THROTTLE {throttle} SETPOINT {set_point}{early}")).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let progress = admin.json(&format!("ANTUMBRA PROGRESS {id}")).await?;
        if let Some(what) = progress["failed"].as_str() {
            return Err(format!("the move failed: {what}").into());
        }
        let state = progress["state"].as_str().unwrap_or("");
        bar.set_message(format!("{state}: {}/{} segments", progress["held"], progress["segments"]));
        let report = admin.json(&format!("ANTUMBRA REPORT {id}")).await?;
        if !report.is_null() {
            return Ok(serde_json::from_value(report)?);
        }
    }
}
