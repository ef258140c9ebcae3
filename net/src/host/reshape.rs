//! A partition becomes two, or two become one: first in the coordinator's records, which is when it is decided, then in
//! the engine of their owner.
//!
//! Between the two the owner serves what it has; requests that name what is not there yet wait. The reconciler does the
//! second step, also after a restart, before anything is served (`net/docs/splitting.md`).
//!
//! `INV-RESHAPE`: nobody asks for a change of a partition whose last one the engine has not carried out, so that what is
//! here differs from the records by one step at most.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::{Epoch, KeyRange, PartitionId};
use antumbra_engine::{PartitionStats, Serving, Shard};

use crate::coordinator::embedded::SYSTEM_PARTITION;
use crate::coordinator::{self, ClusterState, Command, PartitionRecord};
use crate::error::{Error, Result};
use crate::events::Topic;
use crate::mutant::{Mutant, planted};
use crate::resp::slot;
use crate::time;

use super::Host;

const RETRY: Duration = Duration::from_millis(20);
/// The engine of this host takes this long at most.
const RESHAPE_MAX: Duration = Duration::from_secs(10);

/// What the records have made of a partition that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The same.
    AsRecorded,
    /// A part of it is another partition's.
    Wider,
    /// It has another one's keys too.
    Narrower,
}

impl Shape {
    pub fn of(stats: &PartitionStats, record: &PartitionRecord) -> Shape {
        let recorded = slot::range_of(record.slots);
        let end = |range: &KeyRange| range.end.clone().map_or((1, Vec::new()), |end| (0, end));
        match end(&stats.range).cmp(&end(&recorded)) {
            std::cmp::Ordering::Equal => Shape::AsRecorded,
            std::cmp::Ordering::Greater => Shape::Wider,
            std::cmp::Ordering::Less => Shape::Narrower,
        }
    }
}

impl Host {
    /// Splits a partition that this host owns: slots from `at` on belong to the new partition `child`, or to one with the
    /// next free id. Returns its record, once it is served.
    ///
    /// # Errors
    /// [`Error::Refused`] when another host owns it; as the coordinator; [`Error::Unknown`] when it is recorded and not
    /// served yet: the reconciler goes on.
    pub async fn split(
        self: &Arc<Self>,
        id: PartitionId,
        at: u16,
        child: Option<PartitionId>,
    ) -> Result<PartitionRecord> {
        let record = self.check_reshapable(id, "split it").await?;
        if child == Some(SYSTEM_PARTITION) {
            let what = format!("partition {SYSTEM_PARTITION} is the coordinator's own: take another id");
            return Err(Error::Refused { what });
        }
        self.failpoint.pass("owner:splitting");
        let command = Command::Split { partition: id.0, epoch: record.epoch, at, child: child.map(|child| child.0) };
        let child = self.ask_until_known(command).await?;
        self.failpoint.pass("owner:split");
        self.wait_reshaped(PartitionId(child.partition)).await
    }

    /// Makes one partition of two neighbours that this host owns; the one with the lower slots stays. Returns its record,
    /// once it is served.
    ///
    /// # Errors
    /// [`Error::Refused`] when another host owns one of them; as the coordinator; [`Error::Unknown`] as for a split.
    pub async fn merge(self: &Arc<Self>, one: PartitionId, two: PartitionId) -> Result<PartitionRecord> {
        let (one, two) = (self.check_reshapable(one, "merge it").await?, self.check_reshapable(two, "merge it").await?);
        let (low, high) = if one.slots <= two.slots { (one, two) } else { (two, one) };
        self.failpoint.pass("owner:merging");
        let command = Command::Merge {
            partition: low.partition,
            epoch: low.epoch,
            other: high.partition,
            other_epoch: high.epoch,
        };
        let merged = self.ask_until_known(command).await?;
        self.failpoint.pass("owner:merge");
        self.wait_reshaped(PartitionId(merged.partition)).await
    }

    /// The record of a partition that this host owns and has just as recorded.
    async fn check_reshapable(&self, id: PartitionId, what: &str) -> Result<PartitionRecord> {
        let record = coordinator::read(self.coordinator.as_ref(), id.0).await?;
        if record.owner != self.id.0 {
            let what = format!("partition {id} belongs to host {}: {what} there", record.owner);
            return Err(Error::Refused { what });
        }
        // Behind the record: what is as recorded here has no step to go, and the epoch tells of each later one.
        let partition = self.engine.partition(id)?;
        match Shape::of(&partition.stats().await?, &record) {
            Shape::AsRecorded => Ok(record),
            Shape::Wider => Err(Error::Refused { what: format!("partition {id} is just being split") }),
            Shape::Narrower => Err(Error::Refused { what: format!("partition {id} is just being merged") }),
        }
    }

    /// Waits until the engine has this partition as it is recorded.
    async fn wait_reshaped(&self, id: PartitionId) -> Result<PartitionRecord> {
        let began = time::now();
        while time::since(began) < RESHAPE_MAX {
            self.reconcile_wanted.notify_one();
            let record = coordinator::read(self.coordinator.as_ref(), id.0).await?;
            if let Ok(partition) = self.engine.partition(id)
                && let Ok(stats) = partition.stats().await
                && stats.serving == Serving::Owner
                && Shape::of(&stats, &record) == Shape::AsRecorded
            {
                return Ok(record);
            }
            time::sleep(RETRY).await;
        }
        Err(Error::Unknown {
            what: format!("partition {id} is recorded, but host {} does not serve it yet; it goes on", self.id),
        })
    }
}

/// Does in the engine what the records have done: one step of it.
pub(super) async fn reshape_as_recorded(host: &Host, id: PartitionId, shape: Shape) -> Result<()> {
    let state = coordinator::list(host.coordinator.as_ref()).await?;
    // Each slot has its route before a partition is gone.
    host.routing.update(&state);
    let Some(record) = state.records.get(&id.0) else {
        return Err(Error::protocol(format!("partition {id} has no record any more")));
    };
    match shape {
        Shape::AsRecorded => Ok(()),
        Shape::Wider => split_as_recorded(host, record, &state).await,
        Shape::Narrower => merge_as_recorded(host, record, &state).await,
    }
}

async fn split_as_recorded(host: &Host, parent: &PartitionRecord, state: &ClusterState) -> Result<()> {
    let (id, at) = (PartitionId(parent.partition), parent.slots.1.saturating_add(1));
    let is_child = |record: &&PartitionRecord| record.slots.0 == at && record.keyspace == parent.keyspace;
    let child = state.records.values().find(is_child);
    let child = child.ok_or_else(|| Error::protocol(format!("no partition begins at slot {at}, where {id} ends")))?;
    let (child, epoch, shard) = (PartitionId(child.partition), Epoch(parent.epoch), host.engine.partition(id)?.shard());
    let from = slot::range_of((at, at)).start;
    tracing::info!(partition = %id, %child, at, "split");
    host.events.note(Topic::Move, Some(id), format!("slots from {at} on become partition {child}"));
    let split = move |shard: std::rc::Rc<Shard>| async move { shard.split_partition(id, &from, child, epoch).await };
    host.engine.on_shard(shard, split).await??;
    host.failpoint.pass("owner:divided");
    Ok(())
}

async fn merge_as_recorded(host: &Host, record: &PartitionRecord, state: &ClusterState) -> Result<()> {
    let (id, epoch) = (PartitionId(record.partition), Epoch(record.epoch));
    let low = host.engine.partition(id)?;
    let behind = low.stats().await?.range.end;
    for other in state.merged.keys().map(|other| PartitionId(*other)) {
        let Ok(high) = host.engine.partition(other) else { continue };
        if state.merged_into(other.0) != Some(id.0) || Some(&high.stats().await?.range.start) != behind.as_ref() {
            continue;
        }
        let Some(_claim) = host.claims.try_claim(other) else { return Ok(()) };
        tracing::info!(partition = %id, %other, "merged");
        host.events.note(Topic::Move, Some(id), format!("partition {other} becomes a part of it"));
        host.engine.merge_partitions(id, other, epoch).await?;
        host.failpoint.pass("owner:joined");
        return Ok(());
    }
    Err(Error::protocol(format!(
        "partition {id} has become larger, and what it has become so by is not on host {}",
        host.id
    )))
}

/// Whether a copy here of a partition that has become a part of another one is of no use any more: the owner has its keys
/// in that other one. Its owner's is of use until the engine has made one of the two.
pub(super) async fn is_leftover(host: &Host, stats: &PartitionStats, state: &ClusterState) -> Result<bool> {
    let into = state.merged_into(stats.id.0).and_then(|into| state.records.get(&into));
    let Some(record) = into else {
        return Err(Error::protocol(format!("partition {} has no record", stats.id)));
    };
    if planted(Mutant::DropUnmerged) {
        return Ok(true);
    }
    if record.owner != host.id.0 || !matches!(stats.serving, Serving::Owner | Serving::Suspended) {
        return Ok(true);
    }
    match host.engine.partition(PartitionId(record.partition)) {
        Ok(low) => Ok(Shape::of(&low.stats().await?, record) != Shape::Narrower),
        Err(_) => Ok(false),
    }
}
