//! One host as its drivers see it: engine, planes, coordinator, routes, moves.

pub(crate) mod claims;
mod config;
pub mod learn;
mod moves;
pub mod probe;
mod promote;
mod reconcile;
mod reports;
mod reshape;
mod watchdog;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use antumbra_engine::types::{AttemptId, Epoch, HostId, PartitionId, ShardId};
use antumbra_engine::{Engine, Error as EngineError, Partition, PartitionOptions, PartitionSpec};
use tokio::sync::Notify;

use crate::controller::trend::HostTrend;
use crate::controller::{self, Automation, steer};
use crate::coordinator::embedded::{Embedded, SYSTEM_PARTITION};
#[cfg(feature = "etcd")]
use crate::coordinator::etcd::Etcd;
use crate::coordinator::remote::Remote;
use crate::coordinator::{self, ClusterState, Command, Coordinator, HostInfo, PartitionRecord, RecordState};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::failpoint::Failpoint;
#[cfg(feature = "sim")]
use crate::mutant::{Mutant, planted};
use crate::resp::forward;
use crate::resp::slot;
use crate::routing::RoutingTable;
use crate::shadow::drive::{self, MoveHandle, Pace, TargetInbox};
use crate::time;
use crate::tls::Identity;
use crate::transport::{Handler, Incoming, Plane, PlaneConfig, PlaneHandle, SchedulingClass, StreamKind};

use claims::Claims;
use reconcile::Reconciler;
pub(crate) use reconcile::release;

pub use config::{CoordinatorAt, HostConfig, HostSettings};
use moves::Heard;
pub use promote::Prospect;
pub(crate) use reports::Report;
pub use reports::Reports;
pub use watchdog::Stall;

/// How long a start waits for partitions whose owner is not known yet; later they are settled while the others serve.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Flow-control window; small, so that a control message never waits behind much.
const WINDOW_BYTES: u32 = 256 << 10;

/// The ways to and from other hosts.
struct Planes {
    control: PlaneHandle,
    bulk: PlaneHandle,
    threads: Vec<Plane>,
    identity: Option<Identity>,
    /// Where the handler of incoming streams finds the host.
    slot: Arc<OnceLock<Weak<Host>>>,
}

/// A running host.
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its engine.
    pub engine: Engine,
    /// The control plane.
    pub control: PlaneHandle,
    /// The bulk plane.
    pub bulk: PlaneHandle,
    /// Who owns what, for clients.
    pub routing: RoutingTable,
    /// The coordinator.
    pub coordinator: Arc<dyn Coordinator>,
    /// Options of new partitions.
    pub options: PartitionOptions,
    /// Where a test has the process die.
    pub failpoint: Failpoint,
    /// Where reports of reconciliations go.
    pub reports: Reports,
    /// What has happened here.
    pub events: Events,
    /// Who decides on moves.
    pub automation: Automation,
    /// See [`HostConfig::roll_back_for`].
    pub(crate) roll_back_for: Duration,
    embedded: Option<Embedded>,
    resp: SocketAddr,
    resp_tls: Option<SocketAddr>,
    pub(crate) claims: Claims,
    /// Something happened that the reconciler should look at now.
    pub(crate) reconcile_wanted: Notify,
    inboxes: Mutex<HashMap<AttemptId, TargetInbox>>,
    moves: Mutex<HashMap<PartitionId, MoveHandle>>,
    /// Caps of the moves that began here.
    paces: Mutex<HashMap<AttemptId, Pace>>,
    /// Partitions whose missing segments are being fetched.
    fetching: Mutex<HashSet<PartitionId>>,
    /// Partitions whose parted histories are being handed out or settled.
    returning: Arc<Mutex<HashSet<PartitionId>>>,
    /// What the sources of the shadows here have said last.
    heard: Mutex<HashMap<PartitionId, (AttemptId, Heard)>>,
    /// The last window's, if it is measured.
    trend: Mutex<Option<HostTrend>>,
    /// Partitions whose automatic moves have ended well since the last window.
    used: Mutex<Vec<PartitionId>>,
    /// What makes no progress.
    stalls: Mutex<Vec<Stall>>,
    _planes: Mutex<Vec<Plane>>,
    /// Its certificates; a simulated host has none.
    identity: Option<Identity>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Host {
    /// Starts the planes and brings the partitions in line with the coordinator's records; until its record has been
    /// read, a partition that was served here before parks its requests.
    ///
    /// # Errors
    /// [`Error::Link`], [`Error::Tls`], [`Error::Engine`]; [`Error::Unknown`] when the coordinator cannot be asked.
    pub async fn start(engine: Engine, config: HostConfig) -> Result<Arc<Host>> {
        let HostConfig { identity, versions, control, bulk, mut settings } = config;
        let id = identity.host()?;
        suspend_all(&engine).await?;
        let slot: Arc<OnceLock<Weak<Host>>> = Arc::default();
        let plane = |name, listen, class| {
            let (identity, versions) = (identity.clone(), versions.clone());
            let config = PlaneConfig { name, listen, identity, class, versions, window_bytes: WINDOW_BYTES };
            Plane::start(config, handler(Arc::clone(&slot)))
        };
        let control = plane("control", control, SchedulingClass::Normal)?;
        let bulk = plane("bulk", bulk, SchedulingClass::Idle)?;
        if let CoordinatorAt::Etcd(etcd) = &mut settings.coordinator {
            etcd.cluster = Some(identity.cluster());
        }
        let (control_at, bulk_at, identity) = (control.handle(), bulk.handle(), Some(identity));
        let planes = Planes { control: control_at, bulk: bulk_at, threads: vec![control, bulk], slot, identity };
        Host::serve_on(engine, id, planes, settings).await
    }

    /// As [`Host::start`], on a simulated network.
    #[cfg(feature = "sim")]
    pub(crate) async fn start_simulated(
        engine: Engine,
        id: HostId,
        settings: HostSettings,
        listen: impl Fn(SchedulingClass, Handler) -> PlaneHandle,
    ) -> Result<Arc<Host>> {
        if !planted(Mutant::ServeUnread) {
            suspend_all(&engine).await?;
        }
        let slot: Arc<OnceLock<Weak<Host>>> = Arc::default();
        let plane = |class| listen(class, handler(Arc::clone(&slot)));
        let (control, bulk) = (plane(SchedulingClass::Normal), plane(SchedulingClass::Idle));
        Host::serve_on(engine, id, Planes { control, bulk, threads: Vec::new(), slot, identity: None }, settings).await
    }

    async fn serve_on(engine: Engine, id: HostId, planes: Planes, settings: HostSettings) -> Result<Arc<Host>> {
        let mut embedded = None;
        let coordinator: Arc<dyn Coordinator> = match settings.coordinator {
            CoordinatorAt::Here => {
                let opened = Embedded::open(&engine, settings.failpoint.clone()).await?;
                embedded = Some(opened.clone());
                Arc::new(opened)
            }
            CoordinatorAt::Remote(address, host) => Arc::new(Remote::new(planes.control.clone(), address, host)),
            #[cfg(feature = "etcd")]
            CoordinatorAt::Etcd(config) => Arc::new(Etcd::open(*config)?),
            #[cfg(not(feature = "etcd"))]
            CoordinatorAt::Etcd(_) => {
                let what =
                    "this program was built without etcd: build it with --features etcd (needs protobuf-compiler)";
                return Err(Error::Refused { what: what.into() });
            }
        };
        let host = Arc::new(Host {
            id,
            engine,
            control: planes.control,
            bulk: planes.bulk,
            routing: RoutingTable::default(),
            coordinator,
            options: settings.options,
            failpoint: settings.failpoint,
            reports: settings.reports,
            events: Events::new(settings.events),
            automation: settings.controller.map_or(Automation::Manual, |config| config.automation),
            roll_back_for: settings.roll_back_for,
            embedded,
            resp: settings.resp,
            resp_tls: settings.resp_tls,
            claims: Claims::default(),
            reconcile_wanted: Notify::new(),
            inboxes: Mutex::default(),
            moves: Mutex::default(),
            paces: Mutex::default(),
            fetching: Mutex::default(),
            returning: Arc::default(),
            heard: Mutex::default(),
            trend: Mutex::default(),
            used: Mutex::default(),
            stalls: Mutex::default(),
            _planes: Mutex::new(planes.threads),
            identity: planes.identity,
        });
        let _ = planes.slot.set(Arc::downgrade(&host));
        host.register().await?;
        let mut reconciler = Reconciler::default();
        let began = time::now();
        while reconciler.pass(&host, host.refresh().await?.as_ref()).await > 0 {
            if time::since(began) > START_PATIENCE {
                tracing::warn!("some partitions are not settled yet; the others are served");
                break;
            }
            time::pause(Duration::from_millis(50)).await;
        }
        host.control.spawn(reconcile::run(Arc::downgrade(&host), reconciler));
        if let Some(limit) = settings.stall {
            host.control.spawn(watchdog::run(Arc::downgrade(&host), limit));
        }
        if let Some(config) = settings.controller {
            controller::start(&host, config)?;
        }
        Ok(host)
    }

    /// Reads this host's certificates anew, for the connections to come; returns where they lie.
    ///
    /// # Errors
    /// [`Error::Tls`]; nothing has changed then.
    pub fn reload_identity(&self) -> Result<Option<PathBuf>> {
        let Some(identity) = &self.identity else {
            return Ok(None);
        };
        let fresh = identity.read_anew()?;
        self.control.renew(&fresh)?;
        self.bulk.renew(&fresh)?;
        Ok(Some(fresh.dir().to_path_buf()))
    }

    /// What makes no progress here.
    #[must_use]
    pub fn stalls(&self) -> Vec<Stall> {
        lock(&self.stalls).clone()
    }

    pub(crate) fn set_stalls(&self, stalls: Vec<Stall>) {
        *lock(&self.stalls) = stalls;
    }

    /// Tells the coordinator this host's addresses.
    async fn register(&self) -> Result<()> {
        let info = HostInfo {
            host: self.id.0,
            control: self.control.local_addr().to_string(),
            bulk: self.bulk.local_addr().to_string(),
            resp: self.resp.to_string(),
            resp_tls: self.resp_tls.map(|address| address.to_string()),
        };
        // The coordinator's node may start at the same time.
        let began = time::now();
        loop {
            match self.coordinator.ask(Command::Register(info.clone())).await {
                Ok(_) => return Ok(()),
                Err(cause) if time::since(began) > START_PATIENCE => return Err(cause),
                Err(cause) => tracing::debug!(%cause, "not registered yet"),
            }
            time::pause(Duration::from_millis(100)).await;
        }
    }

    /// Takes routes and addresses from the watch, or reads them where there is none; creates partitions that the table gives
    /// to this host and nobody has yet.
    async fn refresh(&self) -> Result<Arc<ClusterState>> {
        let shown = self.coordinator.watching().and_then(|watching| watching.borrow().clone());
        let state = match shown {
            Some(state) => state,
            None => Arc::new(coordinator::list(self.coordinator.as_ref()).await?),
        };
        self.routing.update(&state);
        let is_fresh = |record: &PartitionRecord| {
            record.epoch == 1 && record.owner == self.id.0 && record.state == RecordState::Stable
        };
        for record in state.records.values() {
            if !is_fresh(record) || self.engine.partition(PartitionId(record.partition)).is_ok() {
                continue;
            }
            // The state may be older than a move that has taken the partition away since.
            let record = coordinator::read(self.coordinator.as_ref(), record.partition).await?;
            if is_fresh(&record) {
                self.create(&record).await?;
            }
        }
        Ok(state)
    }

    async fn create(&self, record: &PartitionRecord) -> Result<()> {
        let spec = self.spec(record);
        match self.engine.create_partition(self.shard_of(spec.id), spec).await {
            Ok(_) | Err(EngineError::Invalid { .. }) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    fn spec(&self, record: &PartitionRecord) -> PartitionSpec {
        PartitionSpec {
            id: PartitionId(record.partition),
            keyspace: record.keyspace.clone(),
            range: slot::range_of(record.slots),
            epoch: Epoch(record.epoch),
            options: self.options,
        }
    }

    /// The shard that a new partition is pinned to.
    #[must_use]
    pub fn shard_of(&self, partition: PartitionId) -> ShardId {
        ShardId((partition.0 % self.engine.shards() as u64) as u16)
    }

    /// Runs what talks to other hosts where they are talked to, whatever runtime asks.
    pub(crate) async fn on_plane<T, F>(self: &Arc<Self>, work: impl FnOnce(Arc<Host>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (answer, answered) = futures_channel::oneshot::channel();
        let work = work(Arc::clone(self));
        self.control.spawn(async move {
            // Who asked may have gone.
            let _ = answer.send(work.await);
        });
        answered.await.unwrap_or_else(|_| Err(Error::link(self.id, "the control plane is closed")))
    }

    /// What the last window looked like, if windows are measured and one has closed.
    #[must_use]
    pub fn trend(&self) -> Option<HostTrend> {
        lock(&self.trend).clone()
    }

    pub(crate) fn set_trend(&self, trend: HostTrend) {
        *lock(&self.trend) = Some(trend);
    }

    async fn serve(self: Arc<Self>, incoming: Incoming) {
        match incoming.kind {
            StreamKind::Control => drive::serve_control(self, incoming).await,
            StreamKind::Mirror => drive::serve_mirror(self, incoming).await,
            StreamKind::Bulk => drive::serve_bulk(self, incoming).await,
            StreamKind::Coordinator => match &self.embedded {
                Some(embedded) => embedded.serve(incoming).await,
                None => tracing::debug!(peer = %incoming.peer, "asked for a coordinator that is not here"),
            },
            StreamKind::Forward => forward::serve(&self, incoming).await,
            StreamKind::Fetch => drive::serve_fetch(self, incoming).await,
            StreamKind::Return => drive::serve_return(self, incoming).await,
            StreamKind::Probe => probe::serve(incoming).await,
            StreamKind::Steer => steer::serve(self, incoming).await,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn handler(slot: Arc<OnceLock<Weak<Host>>>) -> Handler {
    Arc::new(move |incoming| {
        let host = slot.get().and_then(Weak::upgrade);
        Box::pin(async move {
            // A stream that comes before the host is up is reset; the peer tries again.
            if let Some(host) = host {
                host.serve(incoming).await;
            }
        })
    })
}

/// Nothing is served until the records have been read: another host may own it by now.
async fn suspend_all(engine: &Engine) -> Result<()> {
    for (id, _) in engine.partitions() {
        if id != SYSTEM_PARTITION {
            let partition = engine.partition(id)?;
            let suspend = |partition: std::rc::Rc<Partition>| async move {
                partition.suspend();
                Ok(())
            };
            partition.with(suspend).await?;
        }
    }
    Ok(())
}
