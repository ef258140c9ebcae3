//! The moves that begin or end here: started, found, paced, and what their two sides leave for each other.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use antumbra_engine::types::{AttemptId, HostId, Lsn, PartitionId};

use super::{Host, lock};
use crate::controller::trend::MoveTrend;
use crate::coordinator;
use crate::error::{Error, Result};
use crate::shadow::drive::{self, MoveHandle, MoveOptions, Pace, TargetInbox};
use crate::shadow::source::State;
use crate::time;

/// A coordinator that is silent for longer is gone: no move is begun. One answer that was lost is no outage.
const OUTAGE: Duration = Duration::from_secs(2);

/// What a source says of itself at regular intervals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// The last LSN it has assigned.
    pub assigned: Lsn,
    /// Whether its acknowledgements wait for the target.
    pub synchronous: bool,
    /// When it said so.
    pub at: Instant,
}

/// One at a time hands out or settles a partition's parted history; given back when dropped.
#[derive(Debug)]
pub(crate) struct Returning {
    partition: PartitionId,
    all: Arc<Mutex<HashSet<PartitionId>>>,
}

impl Drop for Returning {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.partition);
    }
}

impl Host {
    /// Starts to move a partition that this host owns; returns at once.
    ///
    /// # Errors
    /// [`Error::Refused`] when a move of it is under way here, or the coordinator does not answer.
    pub fn start_move(
        self: &Arc<Self>,
        partition: PartitionId,
        destination: HostId,
        options: MoveOptions,
    ) -> Result<MoveHandle> {
        let health = self.coordinator.health();
        let silent = Duration::from_millis(time::wall_ms().saturating_sub(health.since));
        if !health.reachable && silent > OUTAGE {
            let cause = health.last_error.unwrap_or_default();
            return Err(Error::Refused {
                what: format!("nothing is moved while the coordinator does not answer ({cause})"),
            });
        }
        let mut moves = lock(&self.moves);
        if moves.get(&partition).is_some_and(|known| !known.is_finished()) {
            return Err(Error::Refused { what: format!("partition {partition} is being moved") });
        }
        let handle = drive::start(Arc::clone(self), partition, destination, options);
        moves.insert(partition, handle.clone());
        Ok(handle)
    }

    /// Starts to move a partition back to the host that owned it before: of its copy there only what has changed since
    /// is sent. Returns that host.
    ///
    /// # Errors
    /// [`Error::Refused`] when no such copy is kept, or a move is under way here; as the coordinator.
    pub async fn roll_back(self: &Arc<Self>, partition: PartitionId, options: MoveOptions) -> Result<HostId> {
        let record = coordinator::read(self.coordinator.as_ref(), partition.0).await?;
        if record.owner != self.id.0 {
            let what = format!("partition {partition} belongs to host {}: roll it back there", record.owner);
            return Err(Error::Refused { what });
        }
        let Some(former) = record.former else {
            let what = format!(
                "no host keeps a copy of partition {partition} from before: it was not moved here, or more than {} s ago; \
                 ANTUMBRA MOVE {partition} host moves it in full",
                self.roll_back_for.as_secs()
            );
            return Err(Error::Refused { what });
        };
        self.start_move(partition, HostId(former.host), options)?;
        Ok(HostId(former.host))
    }

    /// The last move of a partition that began here.
    #[must_use]
    pub fn find_move(&self, partition: PartitionId) -> Option<MoveHandle> {
        lock(&self.moves).get(&partition).cloned()
    }

    /// The last moves that began here, ascending by partition.
    #[must_use]
    pub fn all_moves(&self) -> Vec<(PartitionId, MoveHandle)> {
        let mut all: Vec<_> = lock(&self.moves).iter().map(|(id, known)| (*id, known.clone())).collect();
        all.sort_by_key(|(id, _)| *id);
        all
    }

    pub(crate) fn move_trends(&self) -> Vec<MoveTrend> {
        self.all_moves()
            .iter()
            .map(|(partition, known)| {
                let (state, under_way) = (known.state(), !known.is_finished());
                MoveTrend {
                    partition: partition.0,
                    destination: known.destination().0,
                    automatic: known.is_automatic(),
                    under_way,
                    is_undecided: under_way
                        && matches!(state, State::Opening | State::Copying | State::Reconnecting | State::Ready),
                    ready: state == State::Ready,
                }
            })
            .collect()
    }

    /// An automatic move has ended well.
    pub(crate) fn note_used(&self, partition: PartitionId) {
        lock(&self.used).push(partition);
    }

    pub(crate) fn take_used(&self) -> Vec<PartitionId> {
        std::mem::take(&mut lock(&self.used))
    }

    pub(crate) fn inbox(&self, attempt: AttemptId) -> Option<TargetInbox> {
        lock(&self.inboxes).get(&attempt).cloned()
    }

    /// The newest attempt that fills a shadow of the partition here.
    pub(crate) fn newest_attempt(&self, partition: PartitionId) -> Option<AttemptId> {
        let inboxes = lock(&self.inboxes);
        inboxes.iter().filter(|(_, inbox)| inbox.partition() == partition).map(|(attempt, _)| *attempt).max()
    }

    pub(crate) fn open_inbox(&self, attempt: AttemptId, inbox: TargetInbox) {
        lock(&self.inboxes).insert(attempt, inbox);
    }

    pub(crate) fn close_inbox(&self, attempt: AttemptId) {
        lock(&self.inboxes).remove(&attempt);
        self.reconcile_wanted.notify_one();
    }

    pub(crate) fn pace(&self, attempt: AttemptId) -> Option<Pace> {
        lock(&self.paces).get(&attempt).cloned()
    }

    pub(crate) fn set_pace(&self, attempt: AttemptId, pace: Option<Pace>) {
        match pace {
            Some(pace) => lock(&self.paces).insert(attempt, pace),
            None => lock(&self.paces).remove(&attempt),
        };
    }

    /// False if the missing segments of the partition are being fetched already.
    pub(crate) fn begin_fetching(&self, partition: PartitionId) -> bool {
        lock(&self.fetching).insert(partition)
    }

    pub(crate) fn end_fetching(&self, partition: PartitionId) {
        lock(&self.fetching).remove(&partition);
        self.reconcile_wanted.notify_one();
    }

    /// `None` if somebody hands out or settles the partition's parted history already.
    pub(crate) fn begin_returning(&self, partition: PartitionId) -> Option<Returning> {
        let is_free = lock(&self.returning).insert(partition);
        is_free.then(|| Returning { partition, all: Arc::clone(&self.returning) })
    }

    /// The source of an attempt has said where it is.
    pub(crate) fn hear(&self, partition: PartitionId, attempt: AttemptId, assigned: Lsn, synchronous: bool) {
        let heard = Heard { assigned, synchronous, at: time::now() };
        lock(&self.heard).insert(partition, (attempt, heard));
    }

    /// What the source of an attempt has said last.
    pub(crate) fn heard(&self, wanted: AttemptId) -> Option<Heard> {
        let all = lock(&self.heard);
        all.values().find(|(attempt, _)| *attempt == wanted).map(|(_, heard)| *heard)
    }
}
