//! Connections of one shard.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::{Shard, runtime};
use futures_lite::AsyncWriteExt;
use glommio::net::TcpListener;

use crate::error::{Error, Result};
use crate::host::Host;

use super::connection::Connection;
use super::operation::Outcome;
use super::reply::Reply;
use super::scan::Cursors;

/// Configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// TCP address; every shard listens on it (SO_REUSEPORT).
    pub listen: SocketAddr,
    /// Connections of one shard; more are refused.
    pub connections_max: usize,
}

/// What a server has done.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) connections: Cell<usize>,
    pub(super) accepted: Cell<u64>,
    pub(super) commands: Cell<u64>,
    pub(super) forwarded: Cell<u64>,
    pub(super) moved: Cell<u64>,
    pub(super) errors: Cell<u64>,
}

pub(super) fn add(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

pub(super) struct Server {
    pub host: Arc<Host>,
    pub shard: Rc<Shard>,
    pub counters: Counters,
    pub cursors: RefCell<Cursors>,
}

/// Listens and serves until the shard ends.
///
/// # Errors
/// [`Error::Link`] when the address cannot be had.
pub async fn serve(host: Arc<Host>, shard: Rc<Shard>, config: ServerConfig) -> Result<()> {
    let listener = TcpListener::bind(config.listen).map_err(|cause| Error::link(config.listen, cause))?;
    let server = Rc::new(Server { host, shard, counters: Counters::default(), cursors: RefCell::default() });
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(cause) => {
                tracing::warn!(%cause, "accept");
                runtime::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let server = Rc::clone(&server);
        let full = server.counters.connections.get() >= config.connections_max;
        runtime::spawn_detached(async move {
            let open = &server.counters.connections;
            open.set(open.get() + 1);
            add(&server.counters.accepted);
            let mut connection = Connection::new(&server, stream);
            if full {
                let _ = connection.stream.write_all(b"-ERR max number of clients reached\r\n").await;
            } else if let Err(cause) = connection.run().await {
                tracing::debug!(%cause, "connection");
            }
            let _ = connection.stream.close().await;
            let open = &server.counters.connections;
            open.set(open.get() - 1);
        });
    }
}

impl Server {
    /// The reply to an operation that did not come to its end.
    pub fn failure(&self, slot: u16, result: Result<Outcome>) -> Reply {
        match result {
            Ok(Outcome::Moved(owner)) => {
                add(&self.counters.moved);
                match self.host.routing.load().addresses(owner) {
                    Some(addresses) => Reply::Error(format!("MOVED {slot} {}", addresses.resp)),
                    None => Reply::Error(format!("CLUSTERDOWN host {owner} is not known")),
                }
            }
            Ok(other) => Reply::Error(format!("ERR unexpected outcome {other:?}")),
            Err(Error::Refused { what }) if what.starts_with("CLUSTERDOWN") || what.starts_with("TRYAGAIN") => {
                Reply::Error(what)
            }
            Err(Error::Engine(cause @ antumbra_engine::Error::OutOfReach { .. })) => {
                Reply::Error(format!("TRYAGAIN {cause}"))
            }
            Err(Error::Engine(cause @ antumbra_engine::Error::ReadOnly { .. })) => {
                Reply::Error(format!("READONLY {cause}"))
            }
            Err(cause) => Reply::Error(format!("ERR {cause}")),
        }
    }
}
