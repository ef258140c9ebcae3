//! Whether the coordinator answers.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::time;

/// Where the records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CoordinatorKind {
    /// In this node's engine.
    Embedded,
    /// In another node's.
    Remote,
    /// In etcd.
    Etcd,
}

/// What a host knows of its way to the coordinator. While it is unreachable, owners serve as before, and nothing new is
/// started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorHealth {
    /// Where it is.
    pub kind: CoordinatorKind,
    /// Whether the last request was answered, by whichever member.
    pub reachable: bool,
    /// Since when that is so: milliseconds since the Unix epoch.
    pub since: u64,
    /// What went wrong last, also at a member while others answered.
    pub last_error: Option<String>,
}

/// The place where it is written down. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    inner: Arc<Mutex<CoordinatorHealth>>,
}

impl Pulse {
    pub fn new(kind: CoordinatorKind) -> Pulse {
        let health = CoordinatorHealth { kind, reachable: true, since: time::wall_ms(), last_error: None };
        Pulse { inner: Arc::new(Mutex::new(health)) }
    }

    /// It answered.
    pub fn answered(&self) {
        self.change(true);
    }

    /// Nobody answered.
    pub fn silent(&self, what: &str) {
        self.complain(what);
        self.change(false);
    }

    /// A member failed.
    pub fn complain(&self, what: &str) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).last_error = Some(what.into());
    }

    pub fn health(&self) -> CoordinatorHealth {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, reachable: bool) {
        let mut health = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if health.reachable == reachable {
            return;
        }
        (health.reachable, health.since) = (reachable, time::wall_ms());
        if reachable {
            tracing::info!(kind = ?health.kind, "the coordinator answers again");
        } else {
            let cause = health.last_error.as_deref().unwrap_or_default();
            tracing::warn!(
                kind = ?health.kind,
                cause,
                "the coordinator does not answer; owners serve on, nothing is started"
            );
        }
    }
}
