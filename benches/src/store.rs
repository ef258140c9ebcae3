//! What a store has to offer to be measured.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::chooser::Scope;
use crate::client::{Client, ClientRecord, Plan};
use crate::data::{Key, Seen};
use crate::error::{Error, Result};
use crate::spec::{Class, Spec};

/// One client's way into a store. The futures of stores that block are ready when they return.
pub trait Session {
    /// Reads a key.
    fn get(&mut self, key: &Key) -> impl Future<Output = Result<Option<Seen>>>;

    /// Writes a key; acknowledged as the class says.
    fn put(&mut self, key: &Key, value: &[u8], class: Class) -> impl Future<Output = Result<()>>;

    /// Reads up to `rows` keys and values from `start` on in key order; returns how many.
    fn scan(&mut self, start: &Key, rows: usize) -> impl Future<Output = Result<usize>>;

    /// Called after every operation by clients that share a core with the store.
    fn give_way(&mut self) -> impl Future<Output = ()> {
        std::future::ready(())
    }
}

/// An open store.
pub trait Store {
    /// Its configuration, for the report.
    fn configuration(&self) -> Vec<(String, String)>;

    /// Runs the clients of a plan to their end.
    ///
    /// # Errors
    /// The first failure of a client.
    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>>;

    /// Brings what was written out of memory, so that phases that only read begin alike.
    ///
    /// # Errors
    /// As the store says.
    fn settle(&self) -> Result<()>;

    /// What it counts of itself, by name.
    ///
    /// # Errors
    /// As the store says.
    fn counts(&self) -> Result<BTreeMap<String, u64>> {
        Ok(BTreeMap::new())
    }

    /// Closes it.
    ///
    /// # Errors
    /// As the store says.
    fn close(self: Box<Self>) -> Result<()>;
}

/// A store that can be measured, by name.
#[derive(Clone, Copy)]
pub struct Candidate {
    /// Name on the command line.
    pub name: &'static str,
    /// Opens it in a folder, creating what is missing.
    pub open: fn(&Path, &Spec) -> Result<Box<dyn Store>>,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Time in which all clients reach their start.
const START_GRACE: Duration = Duration::from_millis(20);

/// Builds the clients of a plan, each with its draws; several at a time.
pub(crate) fn build_clients(plan: &Arc<Plan>, scopes: &[Scope]) -> Result<Vec<Client>> {
    std::thread::scope(|threads| {
        let building: Vec<_> = scopes
            .iter()
            .enumerate()
            .map(|(number, scope)| {
                let plan = Arc::clone(plan);
                threads.spawn(move || Client::new(plan, *scope, number))
            })
            .collect();
        building
            .into_iter()
            .map(|client| client.join().map_err(|_| Error::client("building a client panicked")))
            .collect()
    })
}

/// When clients that are about to be started begin.
pub(crate) fn begin_soon() -> Instant {
    Instant::now() + START_GRACE
}

/// Runs every client on a thread of its own with a session of its own.
pub(crate) fn drive_threads<S: Session>(
    plan: &Arc<Plan>,
    session: impl Fn() -> Result<S> + Sync,
) -> Result<Vec<ClientRecord>> {
    let stripes = plan.clients;
    let scopes: Vec<Scope> =
        (0..stripes).map(|stripe| Scope { part: None, placing: plan.placing, stripe, stripes }).collect();
    let clients = build_clients(plan, &scopes)?;
    let begin = begin_soon();
    let session = &session;
    std::thread::scope(|threads| {
        let running: Vec<_> = clients
            .into_iter()
            .map(|client| {
                threads.spawn(move || {
                    let session = session()?;
                    std::thread::sleep(begin.saturating_duration_since(Instant::now()));
                    futures_lite::future::block_on(client.run(session, begin))
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().map_err(|_| Error::client("a client panicked"))?).collect()
    })
}
