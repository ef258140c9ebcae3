//! The coordinator of one node, durable in the engine's own store.

use std::sync::Arc;

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{Engine, PartitionHandle, PartitionOptions, PartitionSpec};
use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::failpoint::Failpoint;
use crate::transport::{Incoming, serve_call};

use super::health::{CoordinatorHealth, CoordinatorKind, Pulse};
use super::machine::Machine;
use super::{Asking, ClusterState, Command, Coordinator, Response};

/// The partition that holds the coordinator's state. Users' partitions begin at 1.
pub const SYSTEM_PARTITION: PartitionId = PartitionId(0);
const STATE_KEY: &[u8] = b"coordinator/state";

/// The embedded coordinator. Clones share it.
#[derive(Clone, Debug)]
pub struct Embedded {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: PartitionHandle,
    machine: Mutex<Machine>,
    failpoint: Failpoint,
    pulse: Pulse,
}

impl Embedded {
    /// Opens the coordinator in `engine`; its state is created when missing.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::Protocol`] when the stored state is damaged.
    pub async fn open(engine: &Engine, failpoint: Failpoint) -> Result<Embedded> {
        let store = match engine.partition(SYSTEM_PARTITION) {
            Ok(store) => store,
            Err(_) => {
                let spec = PartitionSpec {
                    id: SYSTEM_PARTITION,
                    keyspace: "system".into(),
                    range: KeyRange::all(),
                    epoch: Epoch(1),
                    options: PartitionOptions::default(),
                };
                engine.create_partition(ShardId(0), spec).await?
            }
        };
        let state: ClusterState = match store.get(STATE_KEY).await? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|cause| Error::protocol(format!("stored coordinator state: {cause}")))?,
            None => ClusterState::default(),
        };
        let (machine, pulse) = (Mutex::new(Machine { state }), Pulse::new(CoordinatorKind::Embedded));
        Ok(Embedded { inner: Arc::new(Inner { store, machine, failpoint, pulse }) })
    }

    /// Applies a command; what it changed is durable before the answer.
    async fn apply(&self, command: Command) -> Response {
        let mut machine = self.inner.machine.lock().await;
        let mut next = machine.clone();
        let decides = matches!(command, Command::Commit { .. });
        if decides {
            self.inner.failpoint.pass("coordinator:apply");
        }
        let answer = match next.apply(command) {
            Ok(answer) => answer,
            Err(what) => return Response::Conflict(what),
        };
        if next != *machine {
            let bytes = match serde_json::to_vec(&next.state) {
                Ok(bytes) => bytes,
                Err(cause) => return Response::Failed(cause.to_string()),
            };
            if let Err(cause) = self.inner.store.put(STATE_KEY, bytes).await {
                self.inner.pulse.silent(&cause.to_string());
                return Response::Failed(cause.to_string());
            }
            self.inner.pulse.answered();
            *machine = next;
        }
        if decides {
            self.inner.failpoint.pass("coordinator:applied");
        }
        Response::Answer(answer)
    }

    /// Serves one call of another node.
    pub async fn serve(&self, incoming: Incoming) {
        let peer = incoming.peer;
        let served = serve_call(incoming, |request| async move {
            let response = match serde_json::from_slice(&request) {
                Ok(command) => self.apply(command).await,
                Err(cause) => Response::Conflict(format!("no command: {cause}")),
            };
            serde_json::to_vec(&response).unwrap_or_default()
        });
        if let Err(cause) = served.await {
            tracing::debug!(%cause, %peer, "coordinator call");
        }
    }
}

impl Coordinator for Embedded {
    fn ask(&self, command: Command) -> Asking<'_> {
        Box::pin(async move { self.apply(command).await.into_result() })
    }

    fn health(&self) -> CoordinatorHealth {
        self.inner.pulse.health()
    }
}
