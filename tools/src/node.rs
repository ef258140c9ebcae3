//! `antumbra node`: engine, planes, coordinator and RESP server of one host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::{HostId, ShardId};
use antumbra_engine::{Engine, EngineConfig, PartitionOptions};
use antumbra_net::controller::plan::Settings;
use antumbra_net::controller::trend::Limits;
use antumbra_net::controller::{Automation, ControllerConfig, Copy};
use antumbra_net::coordinator::etcd;
use antumbra_net::events::Topic;
use antumbra_net::failpoint::Failpoint;
use antumbra_net::host::learn::{LearnConfig, Learning};
use antumbra_net::host::{CoordinatorAt, Host, HostConfig, HostSettings, Reports};
use antumbra_net::http::{self, HttpConfig};
use antumbra_net::resp::{self, LogLevel, ServerConfig, Service, TlsConfig, TlsFiles, Users};
use antumbra_net::sink::Sinks;
use antumbra_net::tls::{Authority, Identity};
use antumbra_net::transport::WireVersions;
use antumbra_predictor::Model;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::outside::{EtcdOptions, SinkOptions};
use crate::{CliError, secret};

#[derive(Args)]
pub struct NodeOptions {
    /// File of settings (TOML): `name = value` for any of these options. What stands in the environment (ANTUMBRA_...) goes
    /// before it, what stands on the command line before both.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Check the settings and the files that they name, say what holds, and start nothing.
    #[arg(long)]
    check: bool,
    /// Number of this host in the cluster.
    #[arg(long)]
    host: u32,
    /// Data folder.
    #[arg(long)]
    dir: PathBuf,
    /// Folder with the cluster's authority; created when missing.
    #[arg(long)]
    ca: PathBuf,
    /// Address for clients (Redis protocol, TCP).
    #[arg(long, default_value = "127.0.0.1:6379")]
    resp: SocketAddr,
    /// Address for clients that speak TLS; without it there is none.
    #[arg(long, requires_all = ["resp_cert", "resp_key"])]
    resp_tls: Option<SocketAddr>,
    /// Certificate for them (PEM), with those between it and its authority.
    #[arg(long, requires = "resp_tls")]
    resp_cert: Option<PathBuf>,
    /// Its key (PEM, mode 600).
    #[arg(long, requires = "resp_tls")]
    resp_key: Option<PathBuf>,
    /// Authority of clients' certificates (PEM): a client without one is refused.
    #[arg(long, requires = "resp_tls")]
    resp_client_ca: Option<PathBuf>,
    /// Address of the control plane (UDP).
    #[arg(long, default_value = "127.0.0.1:7379")]
    control: SocketAddr,
    /// Address of the bulk plane (UDP).
    #[arg(long, default_value = "127.0.0.1:7380")]
    bulk: SocketAddr,
    /// The host that serves the coordinator, as HOST@ADDRESS of its control plane; without it, this one does.
    #[arg(long)]
    coordinator: Option<String>,
    #[command(flatten)]
    etcd: EtcdOptions,
    #[command(flatten)]
    sinks: SinkOptions,
    /// Number of shards (threads).
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Pin shards to CPUs from this one on.
    #[arg(long)]
    first_cpu: Option<usize>,
    /// Memory of memtables and caches, in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: usize,
    /// Target size of a segment, in KiB.
    #[arg(long, default_value_t = 4096)]
    segment_kib: u64,
    /// Length of an access window, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    window_ms: u64,
    /// Address for operators (HTTP): status page, metrics for Prometheus, health; without it there is none.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// File with the token that lets the status page act, at least 16 bytes; only its owner may read it.
    #[arg(long, requires = "http")]
    http_token_file: Option<PathBuf>,
    /// Connections of clients; more are refused.
    #[arg(long, default_value_t = 20_000)]
    connections_max: usize,
    /// Close a client's connection that has been silent for so many seconds; 0 lets it wait.
    #[arg(long, default_value_t = 0)]
    idle_s: u64,
    /// Memory of clients' buffers on one shard, in MiB.
    #[arg(long, default_value_t = 256)]
    client_memory_mib: usize,
    /// File of users, their passwords and rights; without it everybody may do everything.
    #[arg(long)]
    users: Option<PathBuf>,
    /// Let FLUSHDB and FLUSHALL delete everything.
    #[arg(long)]
    allow_flush: bool,
    /// Let DEBUG SLEEP make a connection wait.
    #[arg(long)]
    allow_debug: bool,
    /// Learn from the windows of so many partitions, the busiest ones, in the background: up to 48 MiB each, 5 % of a core
    /// together. Weights are kept in the data folder. 0: the shipped weights stay.
    #[arg(long, default_value_t = 0)]
    learn: usize,
    #[command(flatten)]
    controller: ControllerOptions,
    /// For how many seconds the host that a partition was moved away from keeps its copy: ANTUMBRA ROLLBACK sends only
    /// what has changed since. Until then deletions and the state of that moment take space here too.
    #[arg(long, default_value_t = 60)]
    roll_back_s: u64,
    /// Seconds without progress after which a move, or a shard, is reported.
    #[arg(long, default_value_t = 15)]
    stall_s: u64,
    /// Versions of the protocol between hosts to offer, instead of this release's (tests of an upgrade).
    #[arg(long, hide = true)]
    wire_versions: Option<WireVersions>,
    /// Die at this step of a move (crash tests).
    #[arg(long, hide = true)]
    failpoint: Option<String>,
}

/// Who decides on moves, and by what.
#[derive(Args)]
#[command(next_help_heading = "Moves ahead of need")]
struct ControllerOptions {
    /// Who decides on moves: manual (signals are noted), advise (decisions are noted), auto (they are carried out). One host
    /// decides for all, the first of those with `advise` or `auto`; give all the same.
    #[arg(long, default_value = "manual")]
    policy: Automation,
    /// Share of its core at which a shard is overloaded.
    #[arg(long, default_value_t = 0.8)]
    limit_core: f64,
    /// Requests per second at which a shard is overloaded.
    #[arg(long)]
    limit_requests: Option<f64>,
    /// MB per second of its log at which a shard is overloaded.
    #[arg(long)]
    limit_log_mb_s: Option<f64>,
    /// MiB of data at which this host is full.
    #[arg(long)]
    limit_data_mib: Option<f64>,
    /// Cap on what the controller's copies send, in MB per second.
    #[arg(long)]
    copy_mb_s: Option<f64>,
    /// Share of the expected reads, in per cent, that a shadow has to serve before it is switched to; 100 = all segments.
    #[arg(long, default_value_t = 95.0)]
    copy_early: f64,
    /// Moves that a host may be part of at a time.
    #[arg(long, default_value_t = 1)]
    moves_per_host: usize,
}

impl ControllerOptions {
    fn config(&self, window: Duration) -> ControllerConfig {
        ControllerConfig {
            automation: self.policy,
            window,
            limits: Limits {
                core: self.limit_core,
                requests_s: self.limit_requests,
                log_bytes_s: self.limit_log_mb_s.map(|limit| limit * 1e6),
                data_bytes: self.limit_data_mib.map(|limit| limit * f64::from(1 << 20)),
            },
            settings: Settings { moves_per_host: self.moves_per_host, ..Settings::default() },
            copy: Copy {
                throttle_bytes_s: self.copy_mb_s.map(|rate| (rate * 1e6) as u64),
                early: (self.copy_early < 100.0).then_some(self.copy_early.max(0.0) / 100.0),
            },
        }
    }
}

/// Runs until SIGINT or SIGTERM.
pub fn run(options: NodeOptions) -> Result<(), CliError> {
    let id = HostId(options.host);
    if options.check {
        return check(&options);
    }
    let certs = options.dir.join("certs");
    if !certs.join("host.der").exists() {
        Authority::open_or_create(&options.ca)?.issue(id, &certs)?;
    }
    let identity = Identity::load(&certs)?;
    let service = Service::new(server_config(&options)?)?;
    service.set_log(LogLevel::new(crate::log::level));
    let mut config = EngineConfig::new(options.dir.join("data"));
    config.host = id;
    config.shards = options.shards;
    config.first_cpu = options.first_cpu;
    config.memory_budget_bytes = options.memory_mib << 20;
    config.window = Duration::from_millis(options.window_ms);
    let engine = Engine::open(config)?;
    let host_config = HostConfig {
        identity,
        versions: options.wire_versions.clone().unwrap_or_default(),
        control: options.control,
        bulk: options.bulk,
        settings: host_settings(&options)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let host = Host::start(engine.clone(), host_config).await?;
        for shard in 0..engine.shards() {
            serve_clients(&host, ShardId(shard as u16), &service).await?;
        }
        service.show_sinks(Sinks::start(host.routing.clone(), options.sinks.config())?);
        let learning = learn(&engine, &options)?;
        let mut http = String::new();
        if let Some(listen) = options.http {
            let token = options.http_token_file.as_deref().map(secret::read).transpose()?;
            let config = HttpConfig { listen, token };
            let (address, serving) = http::bind(Arc::clone(&host), Arc::clone(&service), config).await?;
            tokio::spawn(serving);
            http = format!(" http {address}");
        }
        println!("READY host {id} resp {}{http}", options.resp);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => break,
                _ = terminate.recv() => break,
                _ = hang_up.recv() => reload(&service, &host),
            }
        }
        drop(learning);
        drop(host);
        Ok::<(), CliError>(engine.close().await?)
    })
}

/// Reads users and certificates anew; what is wrong with them stands in the log and the events.
fn reload(service: &Service, host: &Host) {
    match service.reload(host) {
        Ok(reloaded) => host.events.note(Topic::Operator, None, format!("read anew: {}", serde_json::json!(reloaded))),
        Err(cause) => {
            eprintln!("antumbra: nothing was read anew: {cause}");
            host.events.note(Topic::Alarm, None, format!("nothing was read anew: {cause}"));
        }
    }
}

/// Everything that can be said without starting.
fn check(options: &NodeOptions) -> Result<(), CliError> {
    Service::new(server_config(options)?)?;
    coordinator_at(options)?;
    options.sinks.config().check()?;
    options.http_token_file.as_deref().map(secret::read).transpose()?;
    let certs = options.dir.join("certs");
    if certs.join("host.der").exists() {
        Identity::load(&certs)?;
    }
    let mut config = EngineConfig::new(options.dir.join("data"));
    config.shards = options.shards;
    config.memory_budget_bytes = options.memory_mib << 20;
    config.check()?;
    println!(
        "host {}: data in {}, RESP on {}, {} shards, {} MiB{}",
        options.host,
        options.dir.display(),
        options.resp,
        options.shards,
        options.memory_mib,
        if options.users.is_some() { ", with users" } else { "" }
    );
    Ok(())
}

fn server_config(options: &NodeOptions) -> Result<ServerConfig, CliError> {
    let mut config = ServerConfig::new(options.resp);
    config.limits.connections_max = options.connections_max;
    config.limits.idle = (options.idle_s > 0).then(|| Duration::from_secs(options.idle_s));
    config.limits.client_bytes_max = options.client_memory_mib << 20;
    config.allow_flush = options.allow_flush;
    config.allow_debug = options.allow_debug;
    if let (Some(listen), Some(cert), Some(key)) = (options.resp_tls, &options.resp_cert, &options.resp_key) {
        let files = TlsFiles { cert: cert.clone(), key: key.clone(), client_ca: options.resp_client_ca.clone() };
        config.tls = Some(TlsConfig { listen, files });
    }
    if let Some(path) = &options.users {
        config.users = Users::load(path)?;
    }
    Ok(config)
}

/// Learning in the background, where it is wanted.
fn learn(engine: &Engine, options: &NodeOptions) -> Result<Option<Learning>, CliError> {
    if options.learn == 0 {
        return Ok(None);
    }
    let config = LearnConfig::new(options.learn, options.dir.join("models"), Arc::new(Model::shipped()?));
    Ok(Some(Learning::start(engine.clone(), config)?))
}

async fn serve_clients(host: &Arc<Host>, shard: ShardId, service: &Arc<Service>) -> Result<(), CliError> {
    let (failed, failure) = std::sync::mpsc::channel();
    let (server, service) = (Arc::clone(host), Arc::clone(service));
    host.engine
        .spawn_on_shard(shard, move |shard| async move {
            if let Err(cause) = resp::serve(server, shard, service).await {
                let _ = failed.send(cause);
            }
        })
        .await?;
    // A port that is taken shows at once.
    match failure.recv_timeout(Duration::from_millis(50)) {
        Ok(cause) => Err(cause.into()),
        Err(_) => Ok(()),
    }
}

fn host_settings(options: &NodeOptions) -> Result<HostSettings, CliError> {
    Ok(HostSettings {
        resp: options.resp,
        resp_tls: options.resp_tls,
        coordinator: coordinator_at(options)?,
        failpoint: Failpoint::new(options.failpoint.clone())?,
        roll_back_for: Duration::from_secs(options.roll_back_s),
        stall: Some(Duration::from_secs(options.stall_s.max(1))),
        reports: Reports::Folder(options.dir.join("conflicts")),
        events: Some(options.dir.join("events")),
        controller: Some(options.controller.config(Duration::from_millis(options.window_ms))),
        options: PartitionOptions { segment_target_bytes: options.segment_kib << 10, ..PartitionOptions::default() },
    })
}

fn coordinator_at(options: &NodeOptions) -> Result<CoordinatorAt, CliError> {
    if let Some(config) = options.etcd.config()? {
        if !etcd::BUILT_IN {
            let what = "this program was built without etcd: build it with --features etcd (needs protobuf-compiler)";
            return Err(what.into());
        }
        return Ok(CoordinatorAt::Etcd(Box::new(config)));
    }
    let Some(text) = &options.coordinator else {
        return Ok(CoordinatorAt::Here);
    };
    let wrong = || format!("--coordinator {text}: HOST@ADDRESS, such as 1@127.0.0.1:7379");
    let (host, address) = text.split_once('@').ok_or_else(wrong)?;
    Ok(CoordinatorAt::Remote(address.parse().map_err(|_| wrong())?, HostId(host.parse().map_err(|_| wrong())?)))
}
