//! An operation, wherever its partition is: on the shard that calls, on another one, on another host.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::{HostId, PartitionId};
use antumbra_engine::{Shard, runtime};

use crate::error::{Error, Result};
use crate::host::Host;

use super::forward;
use super::operation::{self, Operation, Outcome};

/// Looks for the owner of a partition that is just changing hands.
const FIND_OWNER_TRIES: u32 = 2_000;
const FIND_OWNER_PAUSE: Duration = Duration::from_millis(1);
/// A hand-over mostly takes less than that: at first it is looked for more often.
const FIRST_TRIES: u32 = 20;
const FIRST_PAUSE: Duration = Duration::from_micros(100);

/// Runs an operation where its partition is. With `follows_moved` the caller's client goes to another host by itself, and
/// is told of it; else the operation is forwarded, which `forwarding` is told of.
pub(crate) async fn run(
    host: &Arc<Host>,
    shard: &Rc<Shard>,
    operation: Operation,
    follows_moved: bool,
    forwarding: impl Fn(),
) -> Result<Outcome> {
    for tried in 0..FIND_OWNER_TRIES {
        let topology = host.routing.load();
        let Some(route) = topology.route(operation.slot()) else {
            return Err(Error::Refused { what: "CLUSTERDOWN Hash slot not served".into() });
        };
        // What is here is asked first: it knows of a hand-over before the routes do.
        let (owner, may_redirect) = match try_here(host, shard, operation.clone()).await? {
            Some(Outcome::Moved(owner)) => (owner, true),
            // It is about to be promoted or discarded: that is waited for.
            Some(Outcome::Shadow { ready: true }) => (host.id, false),
            // The former owner may have sent the client here: it is not sent back, but served through the owner.
            Some(Outcome::Shadow { ready: false }) => (route.owner, false),
            Some(Outcome::Absent) | None => (route.owner, true),
            Some(done) => return Ok(done),
        };
        if owner != host.id {
            if follows_moved && may_redirect {
                return Ok(Outcome::Moved(owner));
            }
            forwarding();
            match forward(host, owner, route.partition, operation.clone()).await? {
                Outcome::Moved(_) | Outcome::Shadow { .. } | Outcome::Absent => {}
                done => return Ok(done),
            }
        }
        runtime::sleep(if tried < FIRST_TRIES { FIRST_PAUSE } else { FIND_OWNER_PAUSE }).await;
    }
    Err(Error::Refused { what: "TRYAGAIN the partition is changing hands".into() })
}

/// Runs an operation if its partition is on this host.
pub(crate) async fn try_here(host: &Arc<Host>, shard: &Rc<Shard>, operation: Operation) -> Result<Option<Outcome>> {
    let topology = host.routing.load();
    let Some(route) = topology.route(operation.slot()) else {
        return Ok(None);
    };
    operation::apply_here(&host.engine, shard, route.partition, operation).await.map(Some)
}

async fn forward(host: &Arc<Host>, owner: HostId, partition: PartitionId, operation: Operation) -> Result<Outcome> {
    let (answer, answered) = futures_channel::oneshot::channel();
    let task_host = Arc::clone(host);
    // The planes belong to the other runtime.
    host.control.spawn(async move {
        let _ = answer.send(forward::send(&task_host, owner, partition, &operation).await);
    });
    answered.await.unwrap_or_else(|_| Err(Error::link(owner, "the control plane is closed")))
}
