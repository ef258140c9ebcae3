//! The server of one shard, and what the servers of all shards of a host share.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use antumbra_engine::{Shard, runtime};
use arc_swap::{ArcSwap, ArcSwapOption};
use futures_lite::AsyncWriteExt;
use glommio::net::{TcpListener, TcpStream};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::sink::{SinkState, Sinks};
use crate::status::{self, Status};

use super::acl::Users;
use super::client::{Client, Clients};
use super::command::COMMANDS;
use super::connection::Connection;
use super::latency::{Latency, LatencyCounts};
use super::limits::{Budget, Limits, WRITE_STALL_MAX};
use super::operation::Outcome;
use super::reply::{Reply, code_of};
use super::scan::Cursors;
use super::tls::{HANDSHAKE_MAX, Stream, TlsFiles};

/// For how long a state is shown to those who follow.
const FRESH: Duration = Duration::from_millis(500);

/// Configuration of a host's servers.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// TCP address; every shard listens on it (SO_REUSEPORT).
    pub listen: SocketAddr,
    /// The same for clients that speak TLS.
    pub tls: Option<TlsConfig>,
    /// What clients may take.
    pub limits: Limits,
    /// Who they may be.
    pub users: Users,
    /// Whether FLUSHDB and FLUSHALL delete everything instead of refusing.
    pub allow_flush: bool,
    /// Whether DEBUG SLEEP makes a connection wait.
    pub allow_debug: bool,
}

/// Where clients that speak TLS are served, and what they are shown.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// TCP address; every shard listens on it.
    pub listen: SocketAddr,
    /// The certificates.
    pub files: TlsFiles,
}

impl ServerConfig {
    /// The defaults.
    #[must_use]
    pub fn new(listen: SocketAddr) -> ServerConfig {
        let (limits, users) = (Limits::default(), Users::default());
        ServerConfig { listen, tls: None, limits, users, allow_flush: false, allow_debug: false }
    }
}

/// What the servers of all shards of a host share.
#[derive(Debug)]
pub struct Service {
    pub(super) config: ServerConfig,
    pub(super) users: ArcSwap<Users>,
    /// What new connections with TLS begin with.
    pub(super) tls: ArcSwapOption<rustls::ServerConfig>,
    pub(super) clients: Clients,
    pub(super) began: Instant,
    counters: Mutex<Vec<Arc<Counters>>>,
    status: status::Cache,
    sinks: OnceLock<Sinks>,
    pub(super) log: OnceLock<LogLevel>,
}

/// Sets what the process writes to its log, or says it: for `ANTUMBRA LOGLEVEL`.
pub struct LogLevel(Box<SetLevel>);

type SetLevel = dyn Fn(Option<&str>) -> std::result::Result<String, String> + Send + Sync;

impl LogLevel {
    /// By a function that takes a filter, or none to leave it as it is, and returns the present one.
    pub fn new(set: impl Fn(Option<&str>) -> std::result::Result<String, String> + Send + Sync + 'static) -> LogLevel {
        LogLevel(Box::new(set))
    }

    /// The present filter, `wanted` if that is one.
    pub(super) fn set(&self, wanted: Option<&str>) -> Result<String> {
        (self.0)(wanted).map_err(|what| Error::Refused { what })
    }
}

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogLevel")
    }
}

impl Service {
    /// For [`serve`] on each shard.
    ///
    /// # Errors
    /// When the certificates cannot be used, as [`TlsFiles::load`].
    pub fn new(config: ServerConfig) -> Result<Arc<Service>> {
        let tls = config.tls.as_ref().map(|tls| tls.files.load()).transpose()?;
        Ok(Arc::new(Service {
            users: ArcSwap::from_pointee(config.users.clone()),
            tls: ArcSwapOption::new(tls),
            config,
            clients: Clients::default(),
            began: Instant::now(),
            counters: Mutex::default(),
            status: status::Cache::default(),
            sinks: OnceLock::new(),
            log: OnceLock::new(),
        }))
    }

    /// The sum over the shards of what `read` reads.
    pub(super) fn sum(&self, read: impl Fn(&Counters) -> u64) -> u64 {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.iter().map(|counters| read(counters)).sum()
    }

    /// The state of the cluster as this host knows it; half a second old at most, so that many who follow cost as one.
    ///
    /// # Errors
    /// [`Error::Engine`] when the engine is being closed, [`Error::Link`] when the control plane is.
    pub async fn status(&self, host: &Arc<Host>) -> Result<Arc<Status>> {
        self.status.get(host, self, FRESH).await
    }

    /// The same as it is now: it shows what was asked for before.
    ///
    /// # Errors
    /// As [`Service::status`].
    pub async fn status_now(&self, host: &Arc<Host>) -> Result<Arc<Status>> {
        self.status.get(host, self, Duration::ZERO).await
    }

    /// Has the state show these sinks, and keeps them running.
    pub fn show_sinks(&self, sinks: Sinks) {
        // A host starts its sinks once.
        let _ = self.sinks.set(sinks);
    }

    /// Lets operators set the level of the log.
    pub fn set_log(&self, log: LogLevel) {
        let _ = self.log.set(log);
    }

    /// What the servers are to say that this host tells, and what they say.
    #[must_use]
    pub fn sinks(&self) -> Vec<SinkState> {
        self.sinks.get().map(Sinks::states).unwrap_or_default()
    }

    /// What all servers together have done.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let (mut reads, mut writes) = (LatencyCounts::default(), LatencyCounts::default());
        for counters in self.counters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            counters.reads.add_to(&mut reads);
            counters.writes.add_to(&mut writes);
        }
        let calls = |place: usize| self.sum(|counters| counters.calls[place].get());
        Figures {
            clients: self.clients.len() as u64,
            accepted: self.clients.accepted(),
            refused_connections: self.sum(|counters| counters.refused_connections.get()),
            failed_handshakes: self.sum(|counters| counters.failed_handshakes.get()),
            client_bytes: self.sum(|counters| counters.client_bytes.get()),
            errors: self.sum(|counters| counters.errors.get()),
            forwarded: self.sum(|counters| counters.forwarded.get()),
            moved: self.sum(|counters| counters.moved.get()),
            hits: self.sum(|counters| counters.hits.get()),
            misses: self.sum(|counters| counters.misses.get()),
            calls: COMMANDS.iter().enumerate().map(|(place, spec)| (spec.name, calls(place))).collect(),
            reads,
            writes,
        }
    }

    fn new_counters(&self) -> Arc<Counters> {
        let fresh = Arc::new(Counters::default());
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&fresh));
        fresh
    }
}

/// What a host's servers have done since they began.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Connections now.
    pub clients: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused, since there were too many.
    pub refused_connections: u64,
    /// Connections that ended before their TLS handshake did.
    pub failed_handshakes: u64,
    /// Bytes of clients' buffers now, as far as they count against the budget.
    pub client_bytes: u64,
    /// Replies that were errors.
    pub errors: u64,
    /// Requests served by way of another host.
    pub forwarded: u64,
    /// Requests answered `MOVED`.
    pub moved: u64,
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Calls by command.
    pub calls: Vec<(&'static str, u64)>,
    /// How long commands on keys took that only read.
    pub reads: LatencyCounts,
    /// The same of those that write.
    pub writes: LatencyCounts,
}

/// A number that one shard counts up and all read.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub fn add(&self) {
        self.0.store(self.0.load(Relaxed) + 1, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn set(&self, number: u64) {
        self.0.store(number, Relaxed);
    }
}

/// What the server of a shard has done.
#[derive(Debug)]
pub(crate) struct Counters {
    pub forwarded: Count,
    pub moved: Count,
    pub errors: Count,
    pub refused_connections: Count,
    pub failed_handshakes: Count,
    pub hits: Count,
    pub misses: Count,
    /// Bytes of clients' buffers that count against the budget.
    pub client_bytes: Count,
    /// By the commands' places in the table.
    pub calls: Vec<Count>,
    /// Of commands on keys that only read.
    pub reads: Latency,
    /// Of those that write.
    pub writes: Latency,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            forwarded: Count::default(),
            moved: Count::default(),
            errors: Count::default(),
            refused_connections: Count::default(),
            failed_handshakes: Count::default(),
            hits: Count::default(),
            misses: Count::default(),
            client_bytes: Count::default(),
            calls: COMMANDS.iter().map(|_| Count::default()).collect(),
            reads: Latency::default(),
            writes: Latency::default(),
        }
    }
}

pub(super) struct Server {
    pub host: Arc<Host>,
    pub shard: Rc<Shard>,
    pub service: Arc<Service>,
    pub counters: Arc<Counters>,
    pub cursors: RefCell<Cursors>,
    pub budget: Rc<Budget>,
    accept_failures: Cell<u64>,
}

/// Listens and serves until the shard ends.
///
/// # Errors
/// [`Error::Link`] when the address cannot be had.
pub async fn serve(host: Arc<Host>, shard: Rc<Shard>, service: Arc<Service>) -> Result<()> {
    let listen = service.config.listen;
    let bind = |listen| TcpListener::bind(listen).map_err(|cause| Error::link(listen, cause));
    let (listener, tls) = (bind(listen)?, service.config.tls.as_ref().map(|tls| bind(tls.listen)).transpose()?);
    let server = Rc::new(Server {
        host,
        shard,
        counters: service.new_counters(),
        budget: Budget::new(service.config.limits.client_bytes_max),
        service,
        cursors: RefCell::default(),
        accept_failures: Cell::new(0),
    });
    if let Some(tls) = tls {
        let server = Rc::clone(&server);
        runtime::spawn_detached(async move { server.accept(tls, true).await });
    }
    server.accept(listener, false).await;
    Ok(())
}

impl Server {
    async fn accept(self: Rc<Server>, listener: TcpListener, tls: bool) {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    self.accept_failures.set(0);
                    let server = Rc::clone(&self);
                    runtime::spawn_detached(async move { server.welcome(stream, tls).await });
                }
                Err(cause) => {
                    // Mostly out of descriptors: connections that end give some back. Said once, not a hundred times a second.
                    let failures = self.accept_failures.get();
                    self.accept_failures.set(failures + 1);
                    if failures == 0 {
                        tracing::warn!(%cause, "cannot accept connections; raise the limit of open files");
                    }
                    runtime::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// Shakes hands where that is wanted; `None` if the client did not.
    async fn shake_hands(&self, stream: TcpStream, tls: bool, address: SocketAddr) -> Option<Stream> {
        let Some(config) = self.service.tls.load_full().filter(|_| tls) else {
            return Some(Stream::Plain(stream));
        };
        let late = async {
            runtime::sleep(HANDSHAKE_MAX).await;
            Err(std::io::ErrorKind::TimedOut.into())
        };
        match futures_lite::future::or(Stream::accept(stream, config), late).await {
            Ok(stream) => Some(stream),
            Err(cause) => {
                self.counters.failed_handshakes.add();
                tracing::debug!(%cause, %address, "TLS handshake");
                None
            }
        }
    }

    async fn welcome(self: Rc<Server>, mut stream: TcpStream, tls: bool) {
        let config = &self.service.config;
        let set_up = || {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(WRITE_STALL_MAX))?;
            stream.set_read_timeout(config.limits.idle)?;
            Ok::<_, glommio::GlommioError<()>>((stream.peer_addr()?, stream.local_addr()?))
        };
        // The client may have gone already.
        let Ok((address, local)) = set_up() else { return };
        if let Err(cause) = runtime::watch(&stream) {
            tracing::debug!(%cause, %address, "requests may wait for background work");
        }
        let user = self.service.users.load().unnamed();
        let name = user.as_ref().map_or(String::new(), |user| user.name.clone());
        let Some(client) = self.service.clients.enter(address, local, name, config.limits.connections_max) else {
            self.counters.refused_connections.add();
            let _ = stream.write_all(b"-ERR max number of clients reached\r\n").await;
            let _ = stream.close().await;
            return;
        };
        let leave = Leave { service: &self.service, client: &client };
        let Some(stream) = self.shake_hands(stream, tls, address).await else { return };
        let mut connection = Connection::new(&self, stream, Arc::clone(&client), user);
        if let Err(cause) = connection.run().await {
            tracing::debug!(%cause, %address, "connection");
        }
        connection.close().await;
        drop(leave);
    }

    /// The reply to an operation that did not come to its end.
    pub fn failure(&self, slot: u16, result: Result<Outcome>, tls: bool) -> Reply {
        match result {
            Ok(Outcome::Moved(owner)) => {
                self.counters.moved.add();
                match self.host.routing.load().addresses(owner) {
                    Some(addresses) => Reply::Error(format!("MOVED {slot} {}", addresses.for_clients(tls))),
                    None => Reply::Error(format!("CLUSTERDOWN host {owner} is not known")),
                }
            }
            Ok(other) => Reply::Error(format!("ERR unexpected outcome {other:?}")),
            // It brings its own word: CLUSTERDOWN, TRYAGAIN, CROSSSLOT.
            Err(Error::Refused { what }) if has_code(&what) => Reply::Error(what),
            Err(cause) => Reply::Error(format!("{} {cause}", code_of(&cause).unwrap_or("ERR"))),
        }
    }
}

fn has_code(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or_default();
    word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// Takes the client off the list, however its task ends.
struct Leave<'a> {
    service: &'a Service,
    client: &'a Client,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.service.clients.leave(self.client);
    }
}
