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

/// A request to a host.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Where the host listens.
    pub peer: SocketAddr,
    /// The host.
    pub host: HostId,
    /// Who serves it there.
    pub kind: StreamKind,
    /// The request.
    pub request: &'a [u8],
    /// How long to wait for the response.
    pub timeout: Duration,
    /// Whether it may take place twice: then it is repeated once when it fails soon, as on a connection to an earlier life of
    /// the host, which shows with its first use.
    pub may_repeat: bool,
}

/// Sends a request and waits for the response.
///
/// # Errors
/// [`Error::Link`] when the peer cannot be reached; [`Error::Unknown`] when it may have acted but did not answer within the
/// timeout.
pub async fn call(plane: &PlaneHandle, call: Call<'_>) -> Result<Vec<u8>> {
    let began = time::now();
    match call_once(plane, call).await {
        Err(Error::Unknown { .. } | Error::Link { .. }) if call.may_repeat && time::since(began) < REPEAT_WITHIN => {
            call_once(plane, call).await
        }
        result => result,
    }
}

async fn call_once(plane: &PlaneHandle, call: Call<'_>) -> Result<Vec<u8>> {
    let Call { peer, host, kind, request, timeout, .. } = call;
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
