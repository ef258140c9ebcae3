//! What comes in on a plane: connections, and streams that say what they are for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use antumbra_engine::types::HostId;
use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use quinn_proto::TransportErrorCode;
use rustls::pki_types::CertificateDer;

use super::plane::{Handler, Incoming, StreamKind};
use super::stream::{RecvStream, SendStream};
use crate::error::{Error, Result};
use crate::tls;

/// First bytes of every stream: magic, version, kind.
const PREAMBLE: [u8; 6] = *b"ANTQ\x01\0";

/// Serves the connections that peers open, until the endpoint is closed.
pub(super) async fn accept(endpoint: Endpoint, handler: Handler) {
    // A host of another release tries again and again.
    let said: Arc<Mutex<Option<Instant>>> = Arc::default();
    while let Some(incoming) = endpoint.accept().await {
        let handler = Arc::clone(&handler);
        let (from, said) = (incoming.remote_address(), Arc::clone(&said));
        tokio::spawn(async move {
            match incoming.await {
                Ok(connection) => serve_connection(connection, handler).await,
                Err(cause) if is_of_another_release(&cause) && is_time_to_say(&said) => {
                    let what = "a host was refused: it speaks no version of the protocol that this release does";
                    tracing::warn!(%from, "{what}; hosts may be one release apart");
                }
                Err(cause) => tracing::debug!(%cause, "handshake failed"),
            }
        });
    }
}

fn is_time_to_say(said: &Mutex<Option<Instant>>) -> bool {
    const PAUSE: Duration = Duration::from_secs(60);
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let is_time = said.is_none_or(|last| last.elapsed() > PAUSE);
    if is_time {
        *said = Some(Instant::now());
    }
    is_time
}

async fn serve_connection(connection: Connection, handler: Handler) {
    let Some(peer) = peer_of(&connection) else {
        connection.close(VarInt::from_u32(1), b"certificate names no host");
        return;
    };
    loop {
        let (send, recv) = tokio::select! {
            opened = connection.accept_bi() => match opened {
                Ok((send, recv)) => (Some(SendStream::Quic(send)), RecvStream::Quic(recv)),
                Err(_) => return,
            },
            opened = connection.accept_uni() => match opened {
                Ok(recv) => (None, RecvStream::Quic(recv)),
                Err(_) => return,
            },
        };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            match read_preamble(recv).await {
                Ok((kind, recv)) => handler(Incoming { peer, kind, send, recv }).await,
                // Only this stream is refused; its streams are dropped here, which resets them.
                Err(cause) => tracing::warn!(%cause, %peer, "stream refused"),
            }
        });
    }
}

async fn read_preamble(mut recv: RecvStream) -> Result<(StreamKind, RecvStream)> {
    let mut preamble = [0; 6];
    recv.read_exact(&mut preamble).await.map_err(|cause| Error::protocol(format!("stream preamble: {cause}")))?;
    if preamble[..5] != PREAMBLE[..5] {
        return Err(Error::protocol("a stream of another protocol or version"));
    }
    let kind = StreamKind::from_byte(preamble[5]);
    Ok((kind.ok_or_else(|| Error::protocol(format!("unknown stream kind {}", preamble[5])))?, recv))
}

/// The host that the peer's certificate names.
pub(super) fn peer_of(connection: &Connection) -> Option<HostId> {
    let identity = connection.peer_identity()?;
    let certs = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::host_of(certs.first()?)
}

/// Whether a handshake failed since the two offer no version in common.
pub(super) fn is_of_another_release(cause: &ConnectionError) -> bool {
    // The alert "no application protocol" of TLS.
    const NO_PROTOCOL: u8 = 120;
    let code = match cause {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return false,
    };
    code == TransportErrorCode::crypto(NO_PROTOCOL)
}

/// Says what the stream is for.
pub(super) async fn write_preamble(send: &mut SendStream, kind: StreamKind) -> Result<()> {
    let mut preamble = PREAMBLE;
    preamble[5] = kind as u8;
    send.write_all(&preamble).await.map_err(|cause| Error::link("peer", cause))
}
