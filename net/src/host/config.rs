//! What a host is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use antumbra_engine::PartitionOptions;
use antumbra_engine::types::HostId;

use crate::controller::ControllerConfig;
use crate::coordinator::etcd::EtcdConfig;
use crate::failpoint::Failpoint;
use crate::tls::Identity;
use crate::transport::WireVersions;

use super::reports::Reports;

/// Where the coordinator is.
#[derive(Clone, Debug)]
pub enum CoordinatorAt {
    /// In this host's engine.
    Here,
    /// In another host's.
    Remote(SocketAddr, HostId),
    /// In etcd; needs the feature `etcd`.
    Etcd(Box<EtcdConfig>),
}

/// Configuration of a host.
///
/// # Example
/// ```no_run
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use antumbra_engine::types::{HostId, ShardId};
/// use antumbra_engine::{Engine, EngineConfig};
/// use antumbra_net::controller::ControllerConfig;
/// use antumbra_net::host::{CoordinatorAt, Host, HostConfig, HostSettings, Reports};
/// use antumbra_net::resp::{self, ServerConfig, Service};
/// use antumbra_net::tls::Identity;
///
/// let engine = Engine::open(EngineConfig { host: HostId(1), ..EngineConfig::new("data") })?;
/// let settings = HostSettings {
///     resp: "127.0.0.1:6379".parse()?,
///     resp_tls: None,
///     coordinator: CoordinatorAt::Here,
///     options: Default::default(),
///     failpoint: Default::default(),
///     reports: Reports::Folder("conflicts".into()),
///     events: None,
///     controller: Some(ControllerConfig::default()),
///     roll_back_for: Duration::from_secs(60),
///     stall: None,
/// };
/// let config = HostConfig {
///     identity: Identity::load("certs".as_ref())?,
///     versions: Default::default(),
///     control: "127.0.0.1:7379".parse()?,
///     bulk: "127.0.0.1:7380".parse()?,
///     settings,
/// };
/// let host = Host::start(engine.clone(), config).await?;
/// // Clients are served by every shard.
/// let service = Service::new(ServerConfig::new("127.0.0.1:6379".parse()?))?;
/// for shard in 0..engine.shards() {
///     let (host, service) = (host.clone(), service.clone());
///     let serve = move |shard| async move { drop(resp::serve(host, shard, service).await) };
///     engine.spawn_on_shard(ShardId(shard as u16), serve).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Certificates; they name the host.
    pub identity: Identity,
    /// Versions of the protocol between hosts that are offered.
    pub versions: WireVersions,
    /// Control plane, UDP.
    pub control: SocketAddr,
    /// Bulk plane, UDP.
    pub bulk: SocketAddr,
    /// Everything else.
    pub settings: HostSettings,
}

/// What a host is told beside its planes.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// RESP address as clients are told.
    pub resp: SocketAddr,
    /// The same with TLS, where there is one.
    pub resp_tls: Option<SocketAddr>,
    /// The coordinator.
    pub coordinator: CoordinatorAt,
    /// Partitions are created with these options.
    pub options: PartitionOptions,
    /// Where a test has the process die.
    pub failpoint: Failpoint,
    /// Where reports of reconciliations go.
    pub reports: Reports,
    /// Where the event history goes, beside the memory.
    pub events: Option<PathBuf>,
    /// What is measured, and who decides on moves; `None` = nothing is measured.
    pub controller: Option<ControllerConfig>,
    /// For how long the host before keeps its copy of what was moved here: a roll-back needs only what changed since.
    pub roll_back_for: Duration,
    /// A move or a shard without progress for so long becomes an event; `None` = nobody looks.
    pub stall: Option<Duration>,
}
