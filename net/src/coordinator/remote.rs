//! The coordinator of another node, over the control plane.

use std::net::SocketAddr;
use std::time::Duration;

use antumbra_engine::types::HostId;

use crate::error::{Error, Result};
use crate::transport::{Call, PlaneHandle, StreamKind, call};

use super::health::{CoordinatorHealth, CoordinatorKind, Pulse};
use super::machine::{Answer, Command};
use super::{Asking, Coordinator, Response};

/// A call that takes longer is of unknown result.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the node that serves the coordinator.
#[derive(Clone, Debug)]
pub struct Remote {
    plane: PlaneHandle,
    address: SocketAddr,
    host: HostId,
    pulse: Pulse,
}

impl Remote {
    /// The coordinator at `address`, served by `host`.
    #[must_use]
    pub fn new(plane: PlaneHandle, address: SocketAddr, host: HostId) -> Remote {
        Remote { plane, address, host, pulse: Pulse::new(CoordinatorKind::Remote) }
    }
}

impl Remote {
    async fn exchange(&self, command: &Command) -> Result<Answer> {
        let request = serde_json::to_vec(command).map_err(|cause| Error::protocol(cause.to_string()))?;
        let request = Call {
            peer: self.address,
            host: self.host,
            kind: StreamKind::Coordinator,
            request: &request,
            timeout: TIMEOUT,
            // Given out twice, an attempt would be lost.
            may_repeat: !matches!(command, Command::Begin { .. }),
        };
        let response = call(&self.plane, request).await?;
        let response: Response = serde_json::from_slice(&response)
            .map_err(|cause| Error::Unknown { what: format!("{}: {cause}", self.address) })?;
        response.into_result()
    }
}

impl Coordinator for Remote {
    fn ask(&self, command: Command) -> Asking<'_> {
        Box::pin(async move {
            let result = self.exchange(&command).await;
            match &result {
                Err(cause @ (Error::Unknown { .. } | Error::Link { .. })) => self.pulse.silent(&cause.to_string()),
                _ => self.pulse.answered(),
            }
            result
        })
    }

    fn health(&self) -> CoordinatorHealth {
        self.pulse.health()
    }
}
