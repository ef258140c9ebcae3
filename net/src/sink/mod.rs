//! Routing sinks: servers of other people that are told where partitions are, for clients that know no epochs.
//!
//! Each sink has a backlog of entries; an entry is published until the server says it back, and looked at again
//! now and then, since a server may forget. Every node that was told of a sink publishes everything: what is there already
//! is left alone.
//!
//! - `INV-HINT`: nothing rests on a sink. A client that is led to a host that owns the partition no more is forwarded or
//!   told `MOVED`; the epoch decides.

mod backlog;
pub mod dns;
pub mod haproxy;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::error::{Error, Result};
use crate::routing::RoutingTable;
use crate::time;

use backlog::{Backlog, Entry};
use dns::{Dns, DnsConfig};
use haproxy::{Haproxy, HaproxyConfig};

/// An entry that takes longer to publish has failed.
const PUBLISH_MAX: Duration = Duration::from_secs(5);

/// What one server is to say about one thing, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// The server.
    pub sink: String,
    /// What it is about: `hosts` or `partition 7`.
    pub target: String,
    /// What it is to say.
    pub wanted: String,
    /// What it has been seen to say, since it was told last.
    pub confirmed: Option<String>,
    /// Since when it has been so: milliseconds since the Unix epoch.
    pub since: u64,
    /// Why it does not say so yet.
    pub last_error: Option<String>,
}

/// The servers to tell.
#[derive(Clone, Debug, Default)]
pub struct SinkConfig {
    /// Name servers.
    pub dns: Vec<DnsConfig>,
    /// Load balancers.
    pub haproxy: Vec<HaproxyConfig>,
}

impl SinkConfig {
    /// Finds what cannot work before anything is told.
    ///
    /// # Errors
    /// [`Error::Refused`] with what to change.
    pub fn check(&self) -> Result<()> {
        self.dns.iter().try_for_each(|dns| Dns::new(dns.clone()).map(drop))
    }
}

type States = Arc<Mutex<Vec<Vec<SinkState>>>>;

/// The running sinks; they end with the last clone.
#[derive(Clone, Debug)]
pub struct Sinks {
    states: States,
    _alive: watch::Sender<()>,
}

/// A server that is told.
trait Sink {
    /// How it is called towards people.
    fn name(&self) -> String;

    /// Whether it leads clients that speak TLS.
    fn tls(&self) -> bool;

    /// Whether it has a place for this.
    fn takes(&self, entry: &Entry) -> bool;

    /// Has the server say `entry`, and sees that it does. Returns what it says; that may be something newer.
    async fn publish(&mut self, entry: &Entry) -> std::result::Result<String, String>;
}

impl Sinks {
    /// Tells the servers what `routing` says, now and whenever it changes.
    ///
    /// # Errors
    /// [`Error::Refused`] when a configuration cannot work, or there is no thread to be had.
    pub fn start(routing: RoutingTable, config: SinkConfig) -> Result<Sinks> {
        let dns = config.dns.into_iter().map(Dns::new).collect::<Result<Vec<Dns>>>()?;
        let haproxy = config.haproxy.into_iter().map(Haproxy::new).collect::<Vec<Haproxy>>();
        let states: States = Arc::new(Mutex::new(vec![Vec::new(); dns.len() + haproxy.len()]));
        let (alive, ended) = watch::channel(());
        let refuse = |cause: std::io::Error| Error::Refused { what: format!("thread sinks: {cause}") };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(refuse)?;
        let inside = Arc::clone(&states);
        let run = async move {
            let mut place = 0..;
            let mut next = || Publisher {
                routing: routing.clone(),
                states: Arc::clone(&inside),
                place: place.next().unwrap_or_default(),
                ended: ended.clone(),
            };
            let mut tasks: Vec<_> = dns.into_iter().map(|sink| tokio::task::spawn_local(next().run(sink))).collect();
            tasks.extend(haproxy.into_iter().map(|sink| tokio::task::spawn_local(next().run(sink))));
            for task in tasks {
                let _ = task.await;
            }
        };
        let run = move || LocalSet::new().block_on(&runtime, run);
        std::thread::Builder::new().name("sinks".into()).spawn(run).map_err(refuse)?;
        Ok(Sinks { states, _alive: alive })
    }

    /// What each server is to say, and what it says.
    #[must_use]
    pub fn states(&self) -> Vec<SinkState> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).concat()
    }
}

/// Keeps one sink in line with the routes.
struct Publisher {
    routing: RoutingTable,
    states: States,
    /// Index of its states.
    place: usize,
    ended: watch::Receiver<()>,
}

impl Publisher {
    async fn run(mut self, mut sink: impl Sink) {
        let mut changes = self.routing.changes();
        let mut backlog = Backlog::new(sink.name(), sink.tls());
        loop {
            changes.borrow_and_update();
            backlog.take(&self.routing.load(), |entry| sink.takes(entry), time::now());
            while let Some(entry) = backlog.due(time::now()) {
                let published = tokio::time::timeout(PUBLISH_MAX, sink.publish(&entry)).await;
                let result = published.unwrap_or_else(|_| Err(format!("no answer within {PUBLISH_MAX:?}")));
                if let Err(cause) = &result {
                    tracing::debug!(sink = sink.name(), ?entry, cause, "not published yet");
                }
                backlog.published(&entry, result, time::now(), time::wall_ms());
                self.show(&backlog);
                // A newer route goes first.
                backlog.take(&self.routing.load(), |entry| sink.takes(entry), time::now());
            }
            self.show(&backlog);
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(backlog.wait(time::now())) => {}
                // Nobody sends: it ends when the last handle is gone.
                _ = self.ended.changed() => return,
            }
        }
    }

    fn show(&self, backlog: &Backlog) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)[self.place] = backlog.states();
    }
}
