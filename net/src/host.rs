//! One host as its drivers see it: engine, planes, coordinator, routes, moves.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use antumbra_engine::types::{AttemptId, Epoch, Hlc, HostId, PartitionId, ShardId};
use antumbra_engine::{Engine, Error as EngineError, PartitionOptions, PartitionSpec, Serving};

use crate::coordinator::embedded::{Embedded, SYSTEM_PARTITION};
use crate::coordinator::remote::Remote;
use crate::coordinator::{self, Command, Coordinator, HostInfo, PartitionRecord, RecordState};
use crate::error::{Error, Result};
use crate::resp::forward;
use crate::resp::slot;
use crate::routing::RoutingTable;
use crate::shadow::drive::{self, MoveHandle, MoveOptions, TargetInbox};
use crate::tls::Identity;
use crate::transport::{Handler, Incoming, Plane, PlaneConfig, PlaneHandle, SchedulingClass, StreamKind};

/// How often the routes are read from the coordinator.
const REFRESH: Duration = Duration::from_millis(250);
/// Flow-control window; small, so that a control message never waits behind much.
const WINDOW_BYTES: u32 = 256 << 10;

/// Where the coordinator is.
#[derive(Clone, Copy, Debug)]
pub enum CoordinatorAt {
    /// In this host's engine.
    Here,
    /// In another host's.
    Remote(SocketAddr, HostId),
}

/// Configuration of a host.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Certificates; they name the host.
    pub identity: Identity,
    /// Control plane, UDP.
    pub control: SocketAddr,
    /// Bulk plane, UDP.
    pub bulk: SocketAddr,
    /// RESP address as clients are told.
    pub resp: SocketAddr,
    /// The coordinator.
    pub coordinator: CoordinatorAt,
    /// Partitions are created with these options.
    pub options: PartitionOptions,
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
    embedded: Option<Embedded>,
    resp: SocketAddr,
    inboxes: Mutex<HashMap<AttemptId, TargetInbox>>,
    moves: Mutex<HashMap<PartitionId, MoveHandle>>,
    _planes: Mutex<Vec<Plane>>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Host {
    /// Starts the planes and brings the partitions in line with the coordinator's records.
    ///
    /// # Errors
    /// [`Error::Link`], [`Error::Tls`], [`Error::Engine`]; [`Error::Unknown`] when the coordinator cannot be asked.
    pub async fn start(engine: Engine, config: HostConfig) -> Result<Arc<Host>> {
        let id = config.identity.host()?;
        let slot: Arc<OnceLock<Weak<Host>>> = Arc::default();
        let plane = |name, listen, class| {
            let config =
                PlaneConfig { name, listen, identity: config.identity.clone(), class, window_bytes: WINDOW_BYTES };
            Plane::start(config, handler(Arc::clone(&slot)))
        };
        let control = plane("control", config.control, SchedulingClass::Normal)?;
        let bulk = plane("bulk", config.bulk, SchedulingClass::Idle)?;
        let (embedded, coordinator): (_, Arc<dyn Coordinator>) = match config.coordinator {
            CoordinatorAt::Here => {
                let embedded = Embedded::open(&engine).await?;
                (Some(embedded.clone()), Arc::new(embedded))
            }
            CoordinatorAt::Remote(address, host) => (None, Arc::new(Remote::new(control.handle(), address, host))),
        };
        let host = Arc::new(Host {
            id,
            engine,
            control: control.handle(),
            bulk: bulk.handle(),
            routing: RoutingTable::default(),
            coordinator,
            options: config.options,
            embedded,
            resp: config.resp,
            inboxes: Mutex::default(),
            moves: Mutex::default(),
            _planes: Mutex::new(vec![control, bulk]),
        });
        let _ = slot.set(Arc::downgrade(&host));
        host.register().await?;
        host.reconcile().await?;
        let refreshed = Arc::downgrade(&host);
        host.control.spawn(async move {
            loop {
                tokio::time::sleep(REFRESH).await;
                let Some(host) = refreshed.upgrade() else {
                    return;
                };
                if let Err(cause) = host.refresh().await {
                    tracing::debug!(%cause, "the coordinator was not read");
                }
            }
        });
        Ok(host)
    }

    /// Tells the coordinator this host's addresses.
    async fn register(&self) -> Result<()> {
        let info = HostInfo {
            host: self.id.0,
            control: self.control.local_addr().to_string(),
            bulk: self.bulk.local_addr().to_string(),
            resp: self.resp.to_string(),
        };
        // The coordinator's node may start at the same time.
        let mut last = None;
        for _ in 0..50 {
            match self.coordinator.ask(Command::Register(info.clone())).await {
                Ok(_) => return self.refresh().await,
                Err(cause) => last = Some(cause),
            }
            pause(Duration::from_millis(100)).await;
        }
        Err(last.unwrap_or_else(|| Error::protocol("the coordinator was not asked")))
    }

    /// Reads routes and addresses, and creates partitions that the table gives to this host and nobody has yet.
    async fn refresh(&self) -> Result<()> {
        let state = coordinator::list(self.coordinator.as_ref()).await?;
        self.routing.update(&state);
        for record in state.records.values() {
            let fresh = record.epoch == 1 && record.owner == self.id.0 && record.state == RecordState::Stable;
            if fresh && self.engine.partition(PartitionId(record.partition)).is_err() {
                self.create(record).await?;
            }
        }
        Ok(())
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

    /// After a start: what the records say decides, not what was served before the stop.
    async fn reconcile(&self) -> Result<()> {
        for (partition, shard) in self.engine.partitions() {
            if partition == SYSTEM_PARTITION {
                continue;
            }
            let stats = self.engine.partition(partition)?.stats().await?;
            loop {
                let record = coordinator::read(self.coordinator.as_ref(), partition.0).await?;
                if self.settle(partition, shard, stats.serving, &record).await? {
                    break;
                }
                pause(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Brings one partition in line with its record; false if the record may still change.
    async fn settle(
        &self,
        id: PartitionId,
        shard: ShardId,
        serving: Serving,
        record: &PartitionRecord,
    ) -> Result<bool> {
        let mine = record.owner == self.id.0;
        let handle = self.engine.partition(id)?;
        let epoch = Epoch(record.epoch);
        match (serving, &record.state) {
            (Serving::Owner | Serving::Frozen, RecordState::Moving(moving)) if mine => {
                let command =
                    Command::Abort { partition: id.0, attempt: moving.attempt, reason: "the source restarted".into() };
                let record = coordinator::change(self.coordinator.as_ref(), command).await?;
                let (attempt, epoch) = (AttemptId(moving.attempt), Epoch(record.epoch));
                handle.with(move |partition| async move { partition.thaw(attempt, epoch).await }).await?;
            }
            (Serving::Owner | Serving::Frozen, _) if !mine => {
                let owner = HostId(record.owner);
                handle.with(move |partition| async move { partition.hand_over(owner, epoch).await }).await?;
            }
            (Serving::Shadow { attempt }, RecordState::Moving(moving)) if moving.attempt == attempt.0 => {
                return Ok(false);
            }
            (Serving::Shadow { attempt }, _) if mine => {
                // The seal was durable before the commit: everything up to it is here.
                handle
                    .with(move |partition| async move {
                        let last = partition.stats().visible;
                        partition.promote(attempt, epoch, last, Hlc(0), 0).await
                    })
                    .await?;
            }
            (Serving::Shadow { attempt }, _) => {
                self.engine
                    .on_shard(shard, move |shard| async move { shard.discard_shadow(id, attempt).await })
                    .await??;
            }
            _ => {}
        }
        Ok(true)
    }

    /// Starts to move a partition that this host owns; returns at once.
    ///
    /// # Errors
    /// [`Error::Refused`] when a move of it is under way here.
    pub fn start_move(
        self: &Arc<Self>,
        partition: PartitionId,
        destination: HostId,
        options: MoveOptions,
    ) -> Result<MoveHandle> {
        let mut moves = self.moves.lock().unwrap_or_else(PoisonError::into_inner);
        if moves.get(&partition).is_some_and(|known| !known.is_finished()) {
            return Err(Error::Refused { what: format!("partition {partition} is being moved") });
        }
        let handle = drive::start(Arc::clone(self), partition, destination, options);
        moves.insert(partition, handle.clone());
        Ok(handle)
    }

    /// The last move of a partition that began here.
    #[must_use]
    pub fn find_move(&self, partition: PartitionId) -> Option<MoveHandle> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).cloned()
    }

    pub(crate) fn inbox(&self, attempt: AttemptId) -> Option<TargetInbox> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).get(&attempt).cloned()
    }

    pub(crate) fn open_inbox(&self, attempt: AttemptId, inbox: TargetInbox) {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt, inbox);
    }

    pub(crate) fn close_inbox(&self, attempt: AttemptId) {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
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
        }
    }
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

/// Waits, on whatever runtime this runs: a start does not depend on one.
async fn pause(duration: Duration) {
    let (done, ended) = futures_channel::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(duration);
        let _ = done.send(());
    });
    let _ = ended.await;
}
