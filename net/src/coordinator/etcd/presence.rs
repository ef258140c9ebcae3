//! This host's lease: as long as it is kept alive, the others find the host's addresses.
//!
//! The lease is no right to serve. A host that stood still for longer than its lease goes on serving what it owns, since
//! nobody takes a partition from it but by a transaction on its record, which it reads before it acts.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::coordinator::{ClusterState, HostInfo};

use super::decide::{self, ANSWER_MAX};
use super::layout::Layout;
use super::members::{Failure, Members};

/// A host that ends takes its lease with it, if etcd answers within this time.
const FAREWELL_MAX: Duration = Duration::from_millis(500);
/// Tries to keep the lease before it would lapse.
const BEATS: u32 = 5;

#[derive(Debug)]
pub(super) struct Presence {
    ttl: Duration,
    lease: Cell<Option<i64>>,
    /// Where this host is, once it has said so.
    info: RefCell<Option<HostInfo>>,
}

impl Presence {
    pub fn new(ttl: Duration) -> Presence {
        Presence { ttl, lease: Cell::new(None), info: RefCell::new(None) }
    }

    /// Tells where this host is.
    pub async fn register(&self, members: &Members, layout: &Layout, info: HostInfo) -> Result<ClusterState, Failure> {
        let state = members.persist(ANSWER_MAX, async || self.announce(members, layout, &info).await).await?;
        *self.info.borrow_mut() = Some(info);
        Ok(state)
    }

    async fn announce(&self, members: &Members, layout: &Layout, info: &HostInfo) -> Result<ClusterState, Failure> {
        let lease = match self.lease.get() {
            Some(lease) => lease,
            None => {
                let ttl = self.ttl.as_secs() as i64;
                let granted = members.ask(async |client| client.lease_client().grant(ttl, None).await).await?;
                self.lease.set(Some(granted.id()));
                granted.id()
            }
        };
        match decide::register(members, layout, info, lease).await {
            Err(Failure::NoLease) => {
                self.lease.set(None);
                Err(Failure::Silent("etcd has forgotten this host's lease; a new one is taken".into()))
            }
            result => result,
        }
    }

    /// Keeps the lease alive for ever, and takes a new one when it has lapsed.
    pub async fn keep(&self, members: &Members, layout: &Layout) {
        loop {
            tokio::time::sleep(self.ttl / BEATS).await;
            let Some(info) = self.info.borrow().clone() else {
                continue;
            };
            let beat = async || match self.lease.get() {
                Some(lease) => {
                    members.ask(async |client| client.lease_client().keep_alive(lease).await).await.map(drop)
                }
                None => Err(Failure::NoLease),
            };
            match members.persist(self.ttl / BEATS, beat).await {
                Err(Failure::NoLease) => {
                    tracing::warn!(host = info.host, "etcd had forgotten this host; it is announced again");
                    self.lease.set(None);
                    let _ = members.persist(ANSWER_MAX, async || self.announce(members, layout, &info).await).await;
                }
                Err(cause) => tracing::debug!(?cause, "the lease was not renewed"),
                Ok(()) => {}
            }
        }
    }

    /// Ends the lease, so that the others need not wait for it to lapse.
    pub async fn leave(&self, members: &Members) {
        if let Some(lease) = self.lease.take() {
            let revoke = members.ask(async |client| client.lease_client().revoke(lease).await);
            let _ = tokio::time::timeout(FAREWELL_MAX, revoke).await;
        }
    }
}
