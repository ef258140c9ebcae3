//! One plane: thread, runtime, endpoint, connections.

use std::collections::HashMap;
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use antumbra_engine::types::HostId;
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, TransportConfig, VarInt};
use quinn_proto::RandomConnectionIdGenerator;

use crate::error::{Error, Result};
use crate::tls::{self, Identity};

use super::accept::{accept, is_of_another_release, peer_of, write_preamble};
use super::class;
use super::stream::{RecvStream, SendStream};
use super::version::WireVersions;

/// A peer that is silent for this long is lost.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The same between threads of the idle class, which a busy machine may keep waiting.
pub(crate) const IDLE_TIMEOUT_BULK: Duration = Duration::from_secs(8);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const CONNECTION_ID_LEN: usize = 8;
/// Threads beside a plane's own.
const ASIDE_THREADS: usize = 2;
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What a stream is for. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// Control of one move, both ways.
    Control = 1,
    /// The mirror of one partition, source to target.
    Mirror = 2,
    /// One segment, source to target.
    Bulk = 3,
    /// One coordinator call.
    Coordinator = 4,
    /// One forwarded request.
    Forward = 5,
    /// One segment, asked for by the new owner.
    Fetch = 6,
    /// Bytes that only measure the link.
    Probe = 7,
    /// What a host wrote alone behind a forced promotion, old owner to new one.
    Return = 8,
    /// One request of the leader: trends, and what it has decided.
    Steer = 9,
}

impl StreamKind {
    pub(super) fn from_byte(byte: u8) -> Option<StreamKind> {
        use StreamKind::{Bulk, Control, Coordinator, Fetch, Forward, Mirror, Probe, Return, Steer};
        [Control, Mirror, Bulk, Coordinator, Forward, Fetch, Probe, Return, Steer]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// How the kernel schedules a plane's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulingClass {
    /// Like everything else.
    Normal,
    /// Only what others leave.
    Idle,
}

/// Configuration of a plane.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    /// Thread name.
    pub name: &'static str,
    /// UDP address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificates.
    pub identity: Identity,
    /// Scheduling class of the thread.
    pub class: SchedulingClass,
    /// Versions of the protocol that are offered.
    pub versions: WireVersions,
    /// Bytes in flight that a stream (and a connection) may have, at either end.
    pub window_bytes: u32,
}

/// A stream that a peer opened.
#[derive(Debug)]
pub struct Incoming {
    /// The authenticated peer.
    pub peer: HostId,
    /// What it is for.
    pub kind: StreamKind,
    /// Way back; `None` for a unidirectional stream.
    pub send: Option<SendStream>,
    /// The bytes behind the preamble.
    pub recv: RecvStream,
}

/// Takes streams that peers open; runs on the plane's thread.
pub type Handler = Arc<dyn Fn(Incoming) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A running plane. Dropping it ends the thread.
#[derive(Debug)]
pub struct Plane {
    handle: PlaneHandle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Opens streams and starts tasks on a plane from anywhere.
#[derive(Clone, Debug)]
pub struct PlaneHandle {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Quic(QuicHandle),
    #[cfg(feature = "sim")]
    Simulated(crate::sim::SimulatedPlane),
}

#[derive(Clone, Debug)]
struct QuicHandle {
    runtime: tokio::runtime::Handle,
    endpoint: Endpoint,
    local: SocketAddr,
    transport: Arc<TransportConfig>,
    versions: WireVersions,
    /// What new connections to others begin with.
    client: Arc<Mutex<quinn::ClientConfig>>,
    links: Arc<Mutex<Links>>,
}

type Links = HashMap<(SocketAddr, HostId), Arc<tokio::sync::Mutex<Link>>>;

/// The way to one peer. Locked while a connection is made, so that two never are: the one that nobody keeps would be closed
/// with its streams. Nobody who wants to go elsewhere waits for it.
#[derive(Debug, Default)]
struct Link {
    connection: Option<Connection>,
    /// When the last try failed, and why.
    failed: Option<(Instant, Error)>,
}

impl Plane {
    /// Starts the thread and the endpoint.
    ///
    /// # Errors
    /// [`Error::Link`] when the address cannot be had, [`Error::Tls`].
    pub fn start(config: PlaneConfig, handler: Handler) -> Result<Plane> {
        let name = config.name;
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let body = move || {
            let idle = (config.class == SchedulingClass::Idle).then(class::IdleThreads::default);
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().max_blocking_threads(ASIDE_THREADS);
            if let Some(threads) = idle.clone() {
                let leaving = threads.clone();
                builder.on_thread_start(move || threads.enter_or_warn()).on_thread_stop(move || leaving.leave());
            }
            let runtime = builder.build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(cause) => return drop(ready.send(Err(Error::link(config.listen, cause)))),
            };
            let watchdog = idle.as_ref().map(|threads| {
                threads.enter_or_warn();
                class::Watchdog::start(config.name, threads.clone())
            });
            runtime.block_on(async {
                match open_endpoint(&config) {
                    Ok(quic) => {
                        let endpoint = quic.endpoint.clone();
                        let _ = ready.send(Ok(PlaneHandle { way: Way::Quic(quic) }));
                        tokio::select! {
                            () = accept(endpoint.clone(), handler) => {}
                            _ = stopped => {}
                        }
                        endpoint.close(VarInt::from_u32(0), b"closing");
                        let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
                    }
                    Err(cause) => drop(ready.send(Err(cause))),
                }
            });
            // Its last threads end with the runtime, and are watched until then.
            drop(runtime);
            drop(watchdog);
        };
        let spawned = std::thread::Builder::new().name(name.to_string()).spawn(body);
        let thread = spawned.map_err(|cause| Error::link(name, cause))?;
        let handle = is_ready.recv().map_err(|_| Error::link(name, "the thread died"))??;
        Ok(Plane { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// The handle.
    #[must_use]
    pub fn handle(&self) -> PlaneHandle {
        self.handle.clone()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        // A task of the plane itself may be the last one that holds it.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// Runs what keeps a core busy for milliseconds on another thread of the plane's scheduling class: on a plane, whose own
/// thread has packets to answer meanwhile, or on a simulated host.
///
/// # Errors
/// [`Error::Protocol`] when `work` panicked or the plane is closing.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    #[cfg(feature = "sim")]
    if antumbra_engine::sim::now().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|cause| Error::protocol(format!("work beside a plane: {cause}")))
}

fn open_endpoint(config: &PlaneConfig) -> Result<QuicHandle> {
    let mut transport = TransportConfig::default();
    let idle = match config.class {
        SchedulingClass::Normal => IDLE_TIMEOUT,
        SchedulingClass::Idle => IDLE_TIMEOUT_BULK,
    };
    let idle = quinn::IdleTimeout::try_from(idle).map_err(|cause| Error::link(config.name, cause))?;
    transport
        .stream_receive_window(VarInt::from_u32(config.window_bytes))
        .receive_window(VarInt::from_u32(config.window_bytes.saturating_mul(4)))
        .send_window(u64::from(config.window_bytes) * 4)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_uni_streams(VarInt::from_u32(256))
        .max_concurrent_bidi_streams(VarInt::from_u32(1024));
    let transport = Arc::new(transport);
    let (server, client) = with_identity(&config.identity, &config.versions, &transport)?;
    let socket = UdpSocket::bind(config.listen).map_err(|cause| Error::link(config.listen, cause))?;
    let local = socket.local_addr().map_err(|cause| Error::link(config.listen, cause))?;
    let mut endpoint_config = EndpointConfig::new(Arc::new(config.identity.reset_key()));
    // The default's ids carry a signature of this process; packets for an earlier one would be dropped without a reset.
    endpoint_config.cid_generator(|| Box::new(RandomConnectionIdGenerator::new(CONNECTION_ID_LEN)));
    let endpoint = Endpoint::new(endpoint_config, Some(server), socket, Arc::new(quinn::TokioRuntime));
    Ok(QuicHandle {
        runtime: tokio::runtime::Handle::current(),
        endpoint: endpoint.map_err(|cause| Error::link(config.listen, cause))?,
        local,
        transport,
        versions: config.versions.clone(),
        client: Arc::new(Mutex::new(client)),
        links: Arc::default(),
    })
}

fn with_identity(
    identity: &Identity,
    versions: &WireVersions,
    transport: &Arc<TransportConfig>,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig)> {
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(identity.server_config(versions)?));
    server.transport_config(Arc::clone(transport));
    let mut client = quinn::ClientConfig::new(Arc::new(identity.client_config(versions)?));
    client.transport_config(Arc::clone(transport));
    Ok((server, client))
}

impl PlaneHandle {
    /// A plane on a simulated network.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(plane: crate::sim::SimulatedPlane) -> PlaneHandle {
        PlaneHandle { way: Way::Simulated(plane) }
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        match &self.way {
            Way::Quic(quic) => quic.local,
            #[cfg(feature = "sim")]
            Way::Simulated(plane) => plane.local_addr(),
        }
    }

    /// Connections that are made from now on show this certificate; those that are there go on with theirs.
    ///
    /// # Errors
    /// [`Error::Tls`]; nothing has changed then.
    pub(crate) fn renew(&self, identity: &Identity) -> Result<()> {
        match &self.way {
            Way::Quic(quic) => {
                let (server, client) = with_identity(identity, &quic.versions, &quic.transport)?;
                quic.endpoint.set_server_config(Some(server));
                *quic.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
                Ok(())
            }
            #[cfg(feature = "sim")]
            Way::Simulated(_) => Ok(()),
        }
    }

    /// The certificate that a peer shows when it is connected to anew.
    #[cfg(test)]
    pub(super) async fn shown_by(&self, peer: SocketAddr, host: HostId) -> Result<Vec<u8>> {
        let mut fresh = match &self.way {
            Way::Quic(quic) => quic.clone(),
            #[cfg(feature = "sim")]
            Way::Simulated(_) => return Ok(Vec::new()),
        };
        fresh.links = Arc::default();
        let shown = fresh.connect(peer, host).await?.peer_identity();
        let shown = shown.and_then(|shown| shown.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
        Ok(shown.map_or_else(Vec::new, |certs| certs[0].to_vec()))
    }

    /// Starts a task on the plane's thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.way {
            Way::Quic(quic) => drop(quic.runtime.spawn(task)),
            #[cfg(feature = "sim")]
            Way::Simulated(_) => antumbra_engine::sim::spawn(task),
        }
    }

    /// Opens a stream with a way back.
    ///
    /// # Errors
    /// [`Error::Link`], [`Error::WrongHost`].
    pub async fn open_bi(&self, peer: SocketAddr, host: HostId, kind: StreamKind) -> Result<(SendStream, RecvStream)> {
        match &self.way {
            Way::Quic(quic) => {
                let connection = quic.connect(peer, host).await?;
                let (send, recv) = connection.open_bi().await.map_err(|cause| Error::link(peer, cause))?;
                let mut send = SendStream::Quic(send);
                write_preamble(&mut send, kind).await?;
                Ok((send, RecvStream::Quic(recv)))
            }
            #[cfg(feature = "sim")]
            Way::Simulated(plane) => plane.open_bi(peer, host, kind).await,
        }
    }

    /// Opens a stream without one.
    ///
    /// # Errors
    /// [`Error::Link`], [`Error::WrongHost`].
    pub async fn open_uni(&self, peer: SocketAddr, host: HostId, kind: StreamKind) -> Result<SendStream> {
        match &self.way {
            Way::Quic(quic) => {
                let connection = quic.connect(peer, host).await?;
                let send = connection.open_uni().await.map_err(|cause| Error::link(peer, cause))?;
                let mut send = SendStream::Quic(send);
                write_preamble(&mut send, kind).await?;
                Ok(send)
            }
            #[cfg(feature = "sim")]
            Way::Simulated(plane) => plane.open_uni(peer, host, kind).await,
        }
    }
}

impl QuicHandle {
    fn explain(&self, peer: SocketAddr, cause: &ConnectionError) -> Error {
        if !is_of_another_release(cause) {
            return Error::link(peer, cause);
        }
        let ours = &self.versions;
        let what = format!(
            "it speaks no version of the protocol between hosts that this release does ({ours}): hosts may be one release \
             apart, so take it to a release in between first"
        );
        Error::link(peer, what)
    }

    /// The connection to a peer; a new one when there is none or the last was lost.
    async fn connect(&self, peer: SocketAddr, host: HostId) -> Result<Connection> {
        let asked = Instant::now();
        let link = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(links.entry((peer, host)).or_default())
        };
        let mut link = link.lock().await;
        if let Some(connection) = link.connection.as_ref().filter(|known| known.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        // All who wait for a peer that is gone learn it by one try.
        if let Some((_, cause)) = link.failed.as_ref().filter(|(at, _)| *at > asked) {
            return Err(cause.clone());
        }
        let made = self.make(peer, host).await;
        match &made {
            Ok(connection) => *link = Link { connection: Some(connection.clone()), failed: None },
            Err(cause) => link.failed = Some((Instant::now(), cause.clone())),
        }
        made
    }

    async fn make(&self, peer: SocketAddr, host: HostId) -> Result<Connection> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let connecting = self.endpoint.connect_with(client, peer, &tls::server_name(host));
        let connecting = connecting.map_err(|cause| Error::link(peer, cause))?;
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let connection = connected
            .map_err(|_| Error::link(peer, "no answer within 3 s"))?
            .map_err(|cause| self.explain(peer, &cause))?;
        match peer_of(&connection) {
            Some(found) if found != host => Err(Error::WrongHost { found, expected: host }),
            _ => Ok(connection),
        }
    }
}
