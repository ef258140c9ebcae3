//! Request and response over a stream of their own.

use std::net::SocketAddr;
use std::time::Duration;

use antumbra_engine::types::HostId;

use crate::error::{Error, Result};
use crate::time;

use super::{Incoming, PlaneHandle, RecvStream, StreamKind};

/// Largest request and response, in bytes: a value of the largest size fits.
const CALL_BYTES_MAX: usize = 20 << 20;
/// A call that failed sooner may be repeated at once.
const REPEAT_WITHIN: Duration = Duration::from_secs(1);

/// Sends a request and waits for the response.
///
/// # Errors
/// [`Error::Link`] when the peer cannot be reached; [`Error::Unknown`] when it may have acted but did not answer within
/// `timeout`.
pub async fn call(
    plane: &PlaneHandle,
    peer: SocketAddr,
    host: HostId,
    kind: StreamKind,
    request: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>> {
    let (mut send, mut recv) = plane.open_bi(peer, host, kind).await?;
    let exchange = async {
        send.write_all(request).await.map_err(|cause| Error::link(peer, cause))?;
        send.finish().map_err(|cause| Error::link(peer, cause))?;
        recv.read_to_end(CALL_BYTES_MAX).await.map_err(|cause| Error::Unknown { what: format!("{peer}: {cause}") })
    };
    match time::timeout(timeout, exchange).await {
        Some(result) => result,
        None => Err(Error::Unknown { what: format!("{peer} did not answer within {timeout:?}") }),
    }
}

/// As [`call`], for a request that may take place twice: it is repeated once when it fails soon, as on a connection to an
/// earlier life of the peer, which shows with its first use.
///
/// # Errors
/// As [`call`].
pub async fn call_repeatable(
    plane: &PlaneHandle,
    peer: SocketAddr,
    host: HostId,
    kind: StreamKind,
    request: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>> {
    let began = time::now();
    match call(plane, peer, host, kind, request, timeout).await {
        Err(Error::Unknown { .. } | Error::Link { .. }) if time::since(began) < REPEAT_WITHIN => {
            call(plane, peer, host, kind, request, timeout).await
        }
        result => result,
    }
}

/// Serves one call: reads the request, answers with what `serve` makes of it.
///
/// # Errors
/// [`Error::Link`], [`Error::Protocol`].
pub async fn serve_call<F: Future<Output = Vec<u8>>>(
    incoming: Incoming,
    serve: impl FnOnce(Vec<u8>) -> F,
) -> Result<()> {
    let Incoming { peer, send, mut recv, .. } = incoming;
    let mut send = send.ok_or_else(|| Error::protocol("a call without a way back"))?;
    let request = recv.read_to_end(CALL_BYTES_MAX).await.map_err(|cause| Error::link(peer, cause))?;
    let response = serve(request).await;
    send.write_all(&response).await.map_err(|cause| Error::link(peer, cause))?;
    send.finish().map_err(|cause| Error::link(peer, cause))
}

/// Reads exactly `len` bytes, refusing more than `max` before anything is allocated.
///
/// # Errors
/// [`Error::Protocol`], [`Error::Link`].
pub async fn read_exact_limited(recv: &mut RecvStream, len: usize, max: usize) -> Result<Vec<u8>> {
    if len > max {
        return Err(Error::protocol(format!("{len} bytes announced, at most {max} are taken")));
    }
    let mut bytes = vec![0; len];
    recv.read_exact(&mut bytes).await.map_err(|cause| Error::link("peer", format!("{cause:?}")))?;
    Ok(bytes)
}
