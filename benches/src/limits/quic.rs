//! QUIC over the loopback by quinn alone, with its own settings, each end on a thread of its own: what the planes between
//! hosts can be held against.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Endpoint, ServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::error::{Error, Result};
use crate::local::median;

const NAME: &str = "bench.antumbra";
/// Bytes of a write.
const CHUNK_BYTES: usize = 256 << 10;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::client(format!("quinn: {cause}"))
}

/// Bandwidth of one stream, and the time of a round trip on another, each for about `time`.
pub(super) fn measure(time: Duration) -> Result<Vec<(&'static str, &'static str, f64)>> {
    let (server, client) = configurations()?;
    let (tell, address) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        runtime()?.block_on(async {
            let endpoint = Endpoint::server(server, LOOPBACK).map_err(failed)?;
            // Whoever asked waits for it, or has failed.
            let _ = tell.send(endpoint.local_addr().map_err(failed)?);
            serve(&endpoint).await
        })
    });
    let asked = address.recv().map_err(failed).and_then(|address| {
        runtime()?.block_on(async {
            let mut endpoint = Endpoint::client(LOOPBACK).map_err(failed)?;
            endpoint.set_default_client_config(client);
            ask(&endpoint, address, time).await
        })
    });
    let served = serving.join().map_err(|_| failed("the server panicked"))?;
    let (bytes_per_second, p50_us) = (served?, asked?);
    Ok(vec![("one stream", "MB/s", bytes_per_second / 1e6), ("round trip of one byte, p50", "us", p50_us)])
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

fn configurations() -> Result<(ServerConfig, ClientConfig)> {
    let own = rcgen::generate_simple_self_signed(vec![NAME.to_string()]).map_err(failed)?;
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let server = ServerConfig::with_single_cert(vec![own.cert.der().clone()], key.into()).map_err(failed)?;
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).map_err(failed)?;
    let client = ClientConfig::with_root_certificates(Arc::new(roots)).map_err(failed)?;
    Ok((server, client))
}

/// Takes one stream to its end, then echoes another; bytes a second of the first.
async fn serve(endpoint: &Endpoint) -> Result<f64> {
    let incoming = endpoint.accept().await.ok_or_else(|| failed("nobody came"))?;
    let connection = incoming.await.map_err(failed)?;
    let mut stream = connection.accept_uni().await.map_err(failed)?;
    let (begin, mut bytes) = (Instant::now(), 0_usize);
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.map_err(failed)? {
        bytes += chunk.bytes.len();
    }
    let seconds = begin.elapsed().as_secs_f64();
    let (mut send, mut receive) = connection.accept_bi().await.map_err(failed)?;
    let mut byte = [0];
    while receive.read_exact(&mut byte).await.is_ok() {
        send.write_all(&byte).await.map_err(failed)?;
    }
    connection.closed().await;
    Ok(bytes as f64 / seconds)
}

async fn ask(endpoint: &Endpoint, address: SocketAddr, time: Duration) -> Result<f64> {
    let connection = endpoint.connect(address, NAME).map_err(failed)?.await.map_err(failed)?;
    let mut stream = connection.open_uni().await.map_err(failed)?;
    let (chunk, begin) = (vec![0x5a; CHUNK_BYTES], Instant::now());
    while begin.elapsed() < time {
        stream.write_all(&chunk).await.map_err(failed)?;
    }
    stream.finish().map_err(failed)?;
    stream.stopped().await.map_err(failed)?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(failed)?;
    let (begin, mut trips) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        let (mut byte, sent) = ([1], Instant::now());
        send.write_all(&byte).await.map_err(failed)?;
        receive.read_exact(&mut byte).await.map_err(failed)?;
        trips.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    connection.close(0_u32.into(), b"measured");
    endpoint.wait_idle().await;
    Ok(median(trips))
}
