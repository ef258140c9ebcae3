//! The state of the cluster as this node knows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antumbra_engine::types::{HostId, PartitionId};
use antumbra_engine::{EngineStats, Serving};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::controller::trend::{HostTrend, METRICS};
use crate::controller::{Automation, steer};
use crate::coordinator::embedded::SYSTEM_PARTITION;
use crate::coordinator::{self, ClusterState, CoordinatorHealth, PartitionRecord};
use crate::error::{Error, Result};
use crate::host::{Host, Stall};
use crate::resp::Service;
use crate::resp::latency::LatencyCounts;
use crate::resp::slot::slot_at;
use crate::shadow::accounts::StepTime;
use crate::shadow::drive::MoveProgress;
use crate::shadow::{MoveHandle, MoveReport};
use crate::sink::SinkState;
use crate::time;

/// A node's state and what it knows of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// This host.
    pub host: u32,
    /// Release.
    pub version: String,
    /// Milliseconds since the Unix epoch by this host's wall clock.
    pub now_ms: u64,
    /// Who decides on moves.
    pub automation: Automation,
    /// The host that decides for all, if one does.
    pub leader: Option<u32>,
    /// The way to the coordinator.
    pub coordinator: CoordinatorHealth,
    /// Why the coordinator could not be read; the cluster is then as it was seen last.
    pub coordinator_error: Option<String>,
    /// Names of the metrics in trends, in their order.
    pub metrics: Vec<String>,
    /// Ascending by id.
    pub hosts: Vec<HostStatus>,
    /// All of the cluster, ascending by id.
    pub partitions: Vec<PartitionStatus>,
    /// Those that began here, ascending by partition.
    pub moves: Vec<MoveStatus>,
    /// What makes no progress on this host, and what it waits for.
    pub stalls: Vec<Stall>,
    /// What this host tells servers of other people, and whether they say it.
    pub sinks: Vec<SinkState>,
    /// Commands on keys that this host's clients have sent lately.
    pub requests: Requests,
    /// This host's engine.
    #[serde(skip)]
    pub engine: Arc<EngineStats>,
}

/// The next move of a host that is being emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainMove {
    /// The first of those that the host owns.
    pub partition: u64,
    /// The host that answers and owns the least data.
    pub destination: u32,
    /// How many the host owns, this one included.
    pub left: usize,
}

impl Status {
    /// What has to move next so that a host owns nothing; `None` when it owns nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] when no other host answers.
    pub fn next_drain_move(&self, host: u32) -> Result<Option<DrainMove>> {
        let mut owned = self.partitions.iter().map(|known| &known.record).filter(|record| record.owner == host);
        let Some(first) = owned.next() else {
            return Ok(None);
        };
        let nobody = || Error::Refused { what: "there is no other host that answers".into() };
        let destination = self.emptiest_but(host).ok_or_else(nobody)?;
        Ok(Some(DrainMove { partition: first.partition, destination, left: 1 + owned.count() }))
    }

    /// The host that answers and owns the least data, other than `but`.
    fn emptiest_but(&self, but: u32) -> Option<u32> {
        let answers = self.hosts.iter().filter(|host| host.host != but && host.trend.is_some());
        answers
            .min_by_key(|host| {
                let partitions = host.trend.as_ref().map_or(&[][..], |trend| &trend.partitions);
                (partitions.iter().map(|partition| partition.bytes).sum::<u64>(), partitions.len(), host.host)
            })
            .map(|host| host.host)
    }
}

/// Rates and times since the state before this one.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    /// Reads per second.
    pub reads_s: f64,
    /// Writes per second.
    pub writes_s: f64,
    /// 99th percentile of the reads' time in microseconds; none without reads.
    pub read_p99_us: Option<f64>,
    /// The same of the writes.
    pub write_p99_us: Option<f64>,
}

/// A host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Id.
    pub host: u32,
    /// The coordinator has not heard of it for longer than its lease: it stands still, or is cut off.
    pub lapsed: bool,
    /// RESP, TCP; as it was last, and empty if it never was known.
    pub resp: String,
    /// What it says of itself; none while it does not answer.
    pub trend: Option<HostTrend>,
}

impl HostStatus {
    /// Why it says nothing of its load, if it does not.
    #[must_use]
    pub fn silence(&self) -> &'static str {
        match &self.trend {
            Some(_) => "no window yet",
            None if self.lapsed => "LEASE LAPSED",
            None => "does not answer",
        }
    }
}

/// A partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// What the cluster agrees on.
    #[serde(flatten)]
    pub record: PartitionRecord,
    /// What this host holds of it.
    pub here: Option<Here>,
}

/// What a host holds of a partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Here {
    /// Owner, frozen, suspended, shadow or released.
    pub serving: String,
    /// Its shard.
    pub shard: u16,
    /// Number of segments.
    pub segments: usize,
    /// Those that are still at the owner before.
    pub missing_segments: usize,
    /// Bytes in tables.
    pub table_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: usize,
    /// Bytes locked in memory.
    pub resident_bytes: u64,
    /// Reads in the last window.
    pub reads: u64,
    /// Writes in the last window.
    pub writes: u64,
}

/// A move that began on this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoveStatus {
    /// The partition.
    pub partition: u64,
    /// Where to.
    pub destination: u32,
    /// Whether the controller has begun it.
    pub automatic: bool,
    /// Whether it has not ended.
    pub under_way: bool,
    /// How far it is.
    pub progress: MoveProgress,
    /// What it cost, once complete.
    pub done: Option<Done>,
}

/// What a move cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// Attempt id.
    pub attempt: u64,
    /// Microseconds for which writes were parked.
    pub frozen_us: u64,
    /// Steps of the switchover with their times.
    pub steps: Vec<StepTime>,
    /// Seconds of the copy.
    pub seconds: f64,
    /// Bytes on the wire.
    pub bytes_on_wire: u64,
    /// Whether both sides agreed on every record.
    pub equal: bool,
}

impl From<MoveReport> for Done {
    fn from(report: MoveReport) -> Done {
        Done {
            attempt: report.attempt,
            frozen_us: report.frozen_us,
            steps: report.switchover.steps,
            seconds: report.shadow.seconds,
            bytes_on_wire: report.shadow.bytes_on_wire,
            equal: report.verify.equal,
        }
    }
}

/// The last state, made anew when somebody asks and it is no longer fresh.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    last: Mutex<Option<(Instant, Arc<Status>)>>,
    counted: Mutex<Option<(Instant, LatencyCounts, LatencyCounts)>>,
    cluster: Mutex<ClusterState>,
}

impl Cache {
    /// A state that is younger than `fresh`, or a new one.
    pub async fn get(&self, host: &Arc<Host>, service: &Service, fresh: Duration) -> Result<Arc<Status>> {
        let mut last = self.last.lock().await;
        if let Some((_, status)) = last.as_ref().filter(|(at, _)| at.elapsed() < fresh) {
            return Ok(Arc::clone(status));
        }
        let status = Arc::new(self.make(host, service).await?);
        *last = Some((Instant::now(), Arc::clone(&status)));
        Ok(status)
    }

    /// What has been served since the last call.
    async fn requests(&self, service: &Service) -> Requests {
        let figures = service.figures();
        let now = Instant::now();
        let last = self.counted.lock().await.replace((now, figures.reads.clone(), figures.writes.clone()));
        let Some((since, reads, writes)) = last else {
            return Requests::default();
        };
        let seconds = now.duration_since(since).as_secs_f64().max(1e-3);
        let (reads, writes) = (figures.reads.since(&reads), figures.writes.since(&writes));
        Requests {
            reads_s: reads.count() as f64 / seconds,
            writes_s: writes.count() as f64 / seconds,
            read_p99_us: reads.quantile_us(0.99),
            write_p99_us: writes.quantile_us(0.99),
        }
    }

    async fn make(&self, host: &Arc<Host>, service: &Service) -> Result<Status> {
        let engine = Arc::new(host.engine.stats().await?);
        let (cluster, coordinator_error) =
            match host.on_plane(|host| async move { coordinator::list(host.coordinator.as_ref()).await }).await {
                Ok(state) => {
                    self.cluster.lock().await.clone_from(&state);
                    (state, None)
                }
                Err(cause) => (self.cluster.lock().await.clone(), Some(cause.to_string())),
            };
        let hosts = hosts(host, &cluster);
        let hosts = host
            .on_plane(|host| async move {
                Ok(join_all(hosts.into_iter().map(|mut status| {
                    let host = Arc::clone(&host);
                    async move {
                        if !status.lapsed {
                            status.trend = steer::trend_of(&host, HostId(status.host)).await.ok();
                        }
                        status
                    }
                }))
                .await)
            })
            .await?;
        Ok(Status {
            host: host.id.0,
            version: env!("CARGO_PKG_VERSION").to_string(),
            now_ms: time::wall_ms(),
            automation: host.automation,
            leader: cluster.leader.as_ref().map(|leader| leader.host),
            coordinator: host.coordinator.health(),
            coordinator_error,
            metrics: METRICS.map(str::to_string).to_vec(),
            hosts,
            partitions: partitions(host, &engine, &cluster),
            moves: moves(host),
            stalls: host.stalls(),
            sinks: service.sinks(),
            requests: self.requests(service).await,
            engine,
        })
    }
}

/// Hosts that the coordinator knows, and those that it has forgotten: they are where the routes, or the records, know them.
fn hosts(host: &Host, cluster: &ClusterState) -> Vec<HostStatus> {
    let routing = host.routing.load();
    let routed = routing.hosts.iter().map(|(id, addresses)| (id.0, addresses.resp.to_string()));
    let owners = cluster.records.values().map(|record| (record.owner, String::new()));
    let known = cluster.hosts.values().map(|info| (info.host, info.resp.clone()));
    // What stands later is the better.
    let all: BTreeMap<u32, String> = owners.chain(routed).chain(known).collect();
    let status = |(id, resp)| HostStatus { host: id, lapsed: !cluster.hosts.contains_key(&id), resp, trend: None };
    all.into_iter().map(status).collect()
}

/// The last moves that began here, ascending by partition.
pub(crate) fn moves(host: &Host) -> Vec<MoveStatus> {
    let status = |(partition, known): (PartitionId, MoveHandle)| MoveStatus {
        partition: partition.0,
        destination: known.destination().0,
        automatic: known.is_automatic(),
        under_way: !known.is_finished(),
        progress: known.progress(),
        done: known.report().map(Done::from),
    };
    host.all_moves().into_iter().map(status).collect()
}

fn partitions(host: &Host, engine: &EngineStats, cluster: &ClusterState) -> Vec<PartitionStatus> {
    let shards = host.engine.partitions();
    let here = |id: u64| {
        let stats = engine.partitions.iter().find(|known| known.id.0 == id && known.id != SYSTEM_PARTITION)?;
        Some(Here {
            serving: serving(stats.serving).to_string(),
            shard: shards.iter().find(|(known, _)| *known == stats.id).map_or(0, |(_, shard)| shard.0),
            segments: stats.segments,
            missing_segments: stats.missing_segments,
            table_bytes: stats.table_bytes,
            memtable_bytes: stats.memtable_bytes,
            resident_bytes: stats.resident_bytes,
            reads: stats.totals.reads,
            writes: stats.totals.writes,
        })
    };
    let records = cluster.records.values();
    records.map(|record| PartitionStatus { record: record.clone(), here: here(record.partition) }).collect()
}

pub(crate) fn serving(serving: Serving) -> &'static str {
    match serving {
        Serving::Owner => "owner",
        Serving::Frozen => "frozen",
        Serving::Suspended => "suspended",
        Serving::Shadow { .. } => "shadow",
        Serving::Released { .. } => "released",
    }
}

/// A segment for the heat strip.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmentStatus {
    /// Id.
    pub segment: u64,
    /// First slot.
    pub slot: u16,
    /// Bytes to copy, about.
    pub bytes: u64,
    /// Accesses in the last window.
    pub observed: u64,
    /// Expected accesses by the guard over all scorers.
    pub predicted: f32,
    /// The same by the GRU alone.
    pub gru: f32,
    /// Part of it that is locked in memory (0..1).
    pub resident: f64,
    /// Whether the shadow that is being filled, or was last, holds it.
    pub held: bool,
    /// Whether it is still at the owner before.
    pub missing: bool,
}

/// The segments of a partition here, ascending by key.
pub(crate) async fn segments(host: &Arc<Host>, id: u64) -> Result<Vec<SegmentStatus>> {
    let id = PartitionId(id);
    let partition = host.engine.partition(id)?;
    let summaries = partition.with(|partition| async move { Ok(partition.segment_summaries()) }).await?;
    let held = host.find_move(id).map(|known| known.held()).unwrap_or_default();
    let status = |segment: &antumbra_engine::partition::SegmentSummary| SegmentStatus {
        segment: segment.id.0,
        slot: slot_at(&segment.start),
        bytes: segment.bytes,
        observed: segment.accesses,
        predicted: segment.auto,
        gru: segment.gru,
        resident: segment.resident_bytes as f64 / segment.bytes as f64,
        held: held.contains(&segment.id),
        missing: segment.is_missing,
    };
    Ok(summaries.iter().map(status).collect())
}
