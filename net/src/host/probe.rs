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

/// Sends `bytes`, or a piece more, over the bulk plane without a cap; returns bytes per second, up to the peer's word that it has read all.
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
            let (piece, pieces) = (vec![0x5a; PIECE_BYTES], bytes.div_ceil(PIECE_BYTES as u64));
            send.write_all(&pieces.to_le_bytes()).await.map_err(|cause| Error::link(peer, cause))?;
            let began = Instant::now();
            for _ in 0..pieces {
                send.write_all(&piece).await.map_err(|cause| Error::link(peer, cause))?;
            }
            send.finish().map_err(|cause| Error::link(peer, cause))?;
            recv.read_exact(&mut [0]).await.map_err(|cause| Error::link(peer, format!("{cause:?}")))?;
            Ok((pieces * PIECE_BYTES as u64) as f64 / began.elapsed().as_secs_f64())
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
    let read = async {
        let mut pieces = [0; 8];
        recv.read_exact(&mut pieces).await?;
        let mut piece = vec![0; PIECE_BYTES];
        for _ in 0..u64::from_le_bytes(pieces) {
            recv.read_exact(&mut piece).await?;
        }
        send.write_all(&[1]).await?;
        send.finish()
    };
    if let Err(cause) = read.await {
        return tracing::debug!(%cause, "a probe ended early");
    }
    send.stopped().await;
}
