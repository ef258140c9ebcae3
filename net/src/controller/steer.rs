//! What the leader asks of the other hosts, one call each: their trends, and what it has decided.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::{HostId, PartitionId};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::events::Topic;
use crate::host::Host;
use crate::shadow::{MoveOptions, Policy};
use crate::transport::{Call, Incoming, StreamKind, call, serve_call};

use super::plan::{Action, Decision};
use super::trend::HostTrend;

/// A host that takes longer is left out; a split takes its time on a busy one.
const TIMEOUT: Duration = Duration::from_secs(2);
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// A request of the leader.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// The last trend.
    Trend,
    /// Casts a shadow ahead, to be switched to when told so; of what lies above a slot, if one is given.
    Start { partition: u64, destination: u32, cut: Option<u16>, copy: Copy, reason: String },
    /// Switches to it.
    Switch { partition: u64, reason: String },
    /// Drops it.
    GiveUp { partition: u64, reason: String },
}

/// How the controller's copies are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Copy {
    /// Cap on bytes per second on the wire.
    pub throttle_bytes_s: Option<u64>,
    /// Share of the expected accesses (0..1) that suffices for the switchover; `None` = all segments.
    pub early: Option<f64>,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
enum Response {
    Trend(HostTrend),
    /// About this partition: one that was cut off has an id of its own.
    Done(u64),
    Refused(String),
}

/// The last trend of a host.
pub(crate) async fn trend_of(host: &Arc<Host>, of: HostId) -> Result<HostTrend> {
    match ask(host, of, Request::Trend).await? {
        Response::Trend(trend) => Ok(trend),
        Response::Refused(what) => Err(Error::Refused { what }),
        Response::Done(_) => Err(Error::protocol("no trend in the answer")),
    }
}

/// Has a decision carried out; the partition that it is about from then on.
pub(super) async fn carry_out(host: &Arc<Host>, decision: &Decision, copy: Copy) -> Result<u64> {
    let reason = decision.reason.clone();
    let request = match decision.action {
        Action::Start { partition, destination, cut, .. } => {
            Request::Start { partition, destination, cut, copy, reason }
        }
        Action::Switch { partition, .. } => Request::Switch { partition, reason },
        Action::GiveUp { partition, .. } => Request::GiveUp { partition, reason },
    };
    match ask(host, HostId(decision.action.source()), request).await? {
        Response::Refused(what) => Err(Error::Refused { what }),
        Response::Done(partition) => Ok(partition),
        Response::Trend(_) => Err(Error::protocol("a trend in the answer")),
    }
}

async fn ask(host: &Arc<Host>, of: HostId, request: Request) -> Result<Response> {
    if of == host.id {
        return Ok(answer(host, request).await);
    }
    let addresses = host.routing.load().addresses(of).cloned();
    let address = addresses.ok_or_else(|| Error::Refused { what: format!("host {of} is not known") })?.control;
    let timeout = if matches!(request, Request::Start { .. }) { START_TIMEOUT } else { TIMEOUT };
    let request = serde_json::to_vec(&request).map_err(|cause| Error::protocol(cause.to_string()))?;
    let kind = StreamKind::Steer;
    let request = Call { peer: address, host: of, kind, request: &request, timeout, may_repeat: false };
    let response = call(&host.control, request).await?;
    serde_json::from_slice(&response).map_err(|cause| Error::protocol(format!("host {of} answered: {cause}")))
}

/// Serves one request of the leader.
pub(crate) async fn serve(host: Arc<Host>, incoming: Incoming) {
    let peer = incoming.peer;
    let served = serve_call(incoming, |request| async move {
        let response = match serde_json::from_slice(&request) {
            Ok(request) => answer(&host, request).await,
            Err(cause) => Response::Refused(format!("no request: {cause}")),
        };
        serde_json::to_vec(&response).unwrap_or_default()
    });
    if let Err(cause) = served.await {
        tracing::debug!(%cause, %peer, "a leader's call");
    }
}

async fn answer(host: &Arc<Host>, request: Request) -> Response {
    let done = match request {
        Request::Trend => {
            return match host.trend() {
                Some(trend) => Response::Trend(trend),
                None => Response::Refused(format!("host {} measures no trends", host.id)),
            };
        }
        Request::Start { partition, destination, cut, copy, reason } => {
            let options = MoveOptions {
                policy: Policy::Manual,
                throttle_bytes_s: copy.throttle_bytes_s,
                early: copy.early,
                automatic: true,
                ..MoveOptions::default()
            };
            start(host, partition, HostId(destination), cut, options, &reason).await
        }
        Request::Switch { partition, reason } => automatic(host, partition).map(|moving| {
            let id = PartitionId(partition);
            host.events.note(
                Topic::Decision,
                Some(id),
                format!("switchover to host {}: {reason}", moving.destination()),
            );
            moving.switch();
            partition
        }),
        Request::GiveUp { partition, reason } => automatic(host, partition).map(|moving| {
            let id = PartitionId(partition);
            host.events.note(Topic::Decision, Some(id), format!("the shadow is dropped: {reason}"));
            moving.give_up();
            partition
        }),
    };
    done.map_or_else(|cause| Response::Refused(cause.to_string()), Response::Done)
}

/// Begins a move of a partition, or of what is cut off it; the moved one's id.
async fn start(
    host: &Arc<Host>,
    partition: u64,
    destination: HostId,
    cut: Option<u16>,
    options: MoveOptions,
    reason: &str,
) -> Result<u64> {
    let mut id = PartitionId(partition);
    if let Some(slot) = cut {
        id = PartitionId(host.split(id, slot, None).await?.partition);
        host.events.note(Topic::Decision, Some(id), format!("cut off partition {partition} at slot {slot}"));
    }
    host.start_move(id, destination, options)?;
    host.events.note(Topic::Decision, Some(id), format!("a shadow is cast on host {destination}: {reason}"));
    Ok(id.0)
}

/// The move of a partition, if a controller has begun it: those of operators are theirs.
fn automatic(host: &Host, partition: u64) -> Result<crate::shadow::MoveHandle> {
    let found = host.find_move(PartitionId(partition));
    found.filter(|moving| moving.is_automatic() && !moving.is_finished()).ok_or_else(|| Error::Refused {
        what: format!("no move of partition {partition} that a controller has begun is under way on host {}", host.id),
    })
}
