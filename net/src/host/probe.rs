//! What the transport alone moves between two hosts, so that a copy's speed can be judged.

use std::sync::Arc;
use std::time::Instant;

use antumbra_engine::types::HostId;

use crate::error::{Error, Result};
use crate::transport::{Incoming, StreamKind};

use super::Host;

const PIECE_BYTES: usize = 256 << 10;

/// Connections that are tried: the thread of idle class may be late to answer on a busy machine.
const TRIES: u32 = 5;

/// Sends `bytes` over the bulk plane without a cap; returns bytes per second, up to the peer's word that it has read all.
///
/// # Errors
/// [`Error::Link`], [`Error::Refused`] for an unknown host.
pub async fn measure(host: &Arc<Host>, peer: HostId, bytes: u64) -> Result<f64> {
    let addresses = host.routing.load().addresses(peer).cloned();
    let address = addresses.ok_or_else(|| Error::Refused { what: format!("host {peer} is not known") })?.bulk;
    let (answer, answered) = tokio::sync::oneshot::channel();
    let plane = host.bulk.clone();
    host.bulk.spawn(async move {
        let sent = async {
            let mut tried = 1;
            let (mut send, mut recv) = loop {
                match plane.open_bi(address, peer, StreamKind::Probe).await {
                    Err(Error::Link { .. }) if tried < TRIES => tried += 1,
                    opened => break opened?,
                }
            };
            let piece = vec![0x5a; PIECE_BYTES];
            let (began, mut left) = (Instant::now(), bytes);
            while left > 0 {
                let len = left.min(PIECE_BYTES as u64) as usize;
                send.write_all(&piece[..len]).await.map_err(|cause| Error::link(peer, cause))?;
                left -= len as u64;
            }
            send.finish().map_err(|cause| Error::link(peer, cause))?;
            recv.read_exact(&mut [0]).await.map_err(|cause| Error::link(peer, format!("{cause:?}")))?;
            Ok(bytes as f64 / began.elapsed().as_secs_f64())
        };
        let _ = answer.send(sent.await);
    });
    answered.await.unwrap_or_else(|_| Err(Error::link(peer, "the bulk plane is closed")))
}

/// Reads a probe to its end and says so.
pub(super) async fn serve(incoming: Incoming) {
    let (mut recv, Some(mut send)) = (incoming.recv, incoming.send) else {
        return;
    };
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(Some(_)) = recv.read(&mut buffer).await {}
    let _ = send.write_all(&[1]).await;
    let _ = send.finish();
    let _ = send.stopped().await;
}
