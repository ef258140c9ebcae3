//! The watch of the prefix: what changes at etcd is known here at once, without asking.
//!
//! What it shows is the state at one revision, perhaps not the last one: whoever acts on a record reads that record, or
//! compares its revision when it writes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::watch;

use crate::coordinator::ClusterState;

use super::decide;
use super::layout::Layout;
use super::members::{Members, watches};

/// How often the member is asked whether it still follows.
const ASK: Duration = Duration::from_secs(1);
/// A member that says nothing for so long is left for another.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Before a watch is begun again.
const RETRY: Duration = Duration::from_millis(100);

/// What is shown: nothing while no watch runs.
pub(super) type Shown = watch::Sender<Option<Arc<ClusterState>>>;

/// What lies in etcd, as it was read or has been told since.
#[derive(Debug, Default)]
pub(super) struct Picture {
    pub state: ClusterState,
    /// The revision of each key that is there.
    revisions: HashMap<Vec<u8>, i64>,
    /// Whether a watch keeps it as it is.
    is_kept: bool,
}

impl Picture {
    pub fn of(layout: &Layout, kvs: &[KeyValue]) -> Result<Picture, String> {
        let mut picture = Picture::default();
        for kv in kvs {
            picture.take(layout, kv, true)?;
        }
        Ok(picture)
    }

    fn take(&mut self, layout: &Layout, kv: &KeyValue, is_there: bool) -> Result<(), String> {
        // Of what is not understood no revision is known either.
        self.revisions.remove(kv.key());
        layout.take(&mut self.state, kv.key(), is_there.then(|| kv.value()))?;
        if is_there {
            self.revisions.insert(kv.key().to_vec(), kv.mod_revision());
        }
        Ok(())
    }

    /// The revision of a key, 0 if it is not there; nothing if no watch tells of its changes.
    pub fn revision_of(&self, key: &str) -> Option<i64> {
        self.is_kept.then(|| self.revisions.get(key.as_bytes()).copied().unwrap_or(0))
    }
}

/// Why a watch ended.
enum End {
    /// The member was lost: another one goes on behind the last revision.
    Lost(String),
    /// What comes next was thrown away at etcd: everything has to be read.
    Compacted,
}

/// Follows for ever.
pub(super) async fn run(members: &Members, layout: &Layout, latest: &RefCell<Picture>, shown: &Shown) {
    let mut known = None;
    loop {
        let next = match known.take() {
            Some(next) => next,
            None => match decide::list(members, layout).await {
                Ok((picture, revision)) => {
                    latest.replace(picture);
                    revision + 1
                }
                Err(cause) => {
                    tracing::debug!(?cause, "not read");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        let mut follower = Follower { layout, shown, latest, next };
        let end = follower.follow(members).await;
        latest.borrow_mut().is_kept = false;
        shown.send_replace(None);
        match end {
            End::Lost(what) => {
                tracing::debug!(what, revision = follower.next, "the watch was lost; it goes on elsewhere");
                known = Some(follower.next);
                tokio::time::sleep(RETRY).await;
            }
            End::Compacted => tracing::info!("etcd has compacted what was not seen yet; everything is read again"),
        }
    }
}

struct Follower<'a> {
    layout: &'a Layout,
    shown: &'a Shown,
    latest: &'a RefCell<Picture>,
    /// The revision that comes next.
    next: i64,
}

impl Follower<'_> {
    async fn follow(&mut self, members: &Members) -> End {
        let index = members.asked();
        let begin = async |client: Client| {
            let options = WatchOptions::new().with_prefix().with_start_revision(self.next);
            watches(&client).watch(self.layout.all(), Some(options)).await
        };
        let mut stream = match members.ask(begin).await {
            Ok(stream) => stream,
            Err(cause) => return End::Lost(format!("{cause:?}")),
        };
        let end = self.read(&mut stream).await;
        if matches!(end, End::Lost(_)) {
            members.give_up(index);
        }
        end
    }

    async fn read(&mut self, stream: &mut WatchStream) -> End {
        let mut heard = tokio::time::Instant::now();
        loop {
            match tokio::time::timeout(ASK, stream.message()).await {
                Ok(Ok(Some(response))) => {
                    heard = tokio::time::Instant::now();
                    if let Some(end) = self.take(&response) {
                        return end;
                    }
                }
                Ok(Ok(None)) => return End::Lost("etcd ended it".into()),
                Ok(Err(cause)) => return End::Lost(cause.to_string()),
                Err(_) if heard.elapsed() > SILENCE_MAX => return End::Lost(format!("silent for {SILENCE_MAX:?}")),
                // An answer to this says that the connection and the member live, not how far the watch is.
                Err(_) => {
                    if let Err(cause) = stream.request_progress().await {
                        return End::Lost(cause.to_string());
                    }
                }
            }
        }
    }

    /// Takes one response whole: it has all changes of a revision.
    fn take(&mut self, response: &WatchResponse) -> Option<End> {
        if response.compact_revision() > 0 {
            return Some(End::Compacted);
        }
        if response.canceled() {
            return Some(End::Lost(response.cancel_reason().to_string()));
        }
        let mut latest = self.latest.borrow_mut();
        for event in response.events() {
            let Some(kv) = event.kv() else {
                continue;
            };
            if let Err(cause) = latest.take(self.layout, kv, event.event_type() == EventType::Put) {
                tracing::error!(cause, "passed over");
            }
            self.next = self.next.max(kv.mod_revision() + 1);
        }
        if response.created() || !response.events().is_empty() {
            latest.is_kept = true;
            self.shown.send_replace(Some(Arc::new(latest.state.clone())));
        }
        None
    }
}
