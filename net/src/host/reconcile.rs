//! Brings this host's partitions in line with the coordinator's records, again and again: after a restart, after a lost
//! link, after an answer that never came. What is to be done is [`crate::shadow::recovery`]'s to say; a partition with a
//! driver (see [`super::claims`]) is the driver's.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use antumbra_engine::types::{AttemptId, Epoch, HostId, Lsn, PartitionId};
use antumbra_engine::{PartitionHandle, Serving};
use futures_lite::future::or;

use crate::coordinator::embedded::SYSTEM_PARTITION;
use crate::coordinator::{self, ClusterState, Command, PartitionRecord, RecordState};
use crate::error::{Error, Result};
use crate::mutant::{Mutant, planted};
use crate::shadow::drive;
use crate::shadow::recovery::{Held, PROMOTE_WAIT, Verdict, base_kept_by, diverged_at, is_former, verdict};
use crate::time;

use super::Host;
use super::reshape::{Shape, is_leftover, reshape_as_recorded};

/// How often the records are looked at, and read where the coordinator does not tell of changes.
const PERIOD: Duration = Duration::from_millis(250);
/// A released copy is kept for this long.
const RELEASE_GRACE: Duration = Duration::from_secs(1);

/// What has to have been true for a while before it is acted on.
#[derive(Debug, Default)]
pub(super) struct Reconciler {
    since: HashMap<PartitionId, (Verdict, Instant)>,
    /// Since when this host owns what a former owner still has a copy of, by the attempt that left it.
    kept: HashMap<PartitionId, (AttemptId, Instant)>,
}

/// Looks at every partition until the host is gone.
pub(super) async fn run(host: Weak<Host>, mut reconciler: Reconciler) {
    let mut watching = host.upgrade().and_then(|host| host.coordinator.watching());
    loop {
        let Some(host) = host.upgrade() else {
            return;
        };
        let told = async {
            if let Some(watching) = &mut watching
                && watching.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        let _ = time::timeout(PERIOD, or(host.reconcile_wanted.notified(), told)).await;
        match host.refresh().await {
            Ok(state) => {
                reconciler.pass(&host, &state).await;
            }
            Err(cause) => tracing::debug!(%cause, "the coordinator was not read"),
        }
    }
}

impl Reconciler {
    /// Settles what can be settled now; returns how many partitions of this host nobody can serve yet.
    pub async fn pass(&mut self, host: &Arc<Host>, state: &ClusterState) -> usize {
        let mut unsettled = 0;
        for (id, _) in host.engine.partitions() {
            if id == SYSTEM_PARTITION {
                continue;
            }
            if let Err(cause) = self.end_grace(host, id, state).await {
                tracing::warn!(%cause, partition = %id, "the copy at the host before is not released yet");
            }
            match self.look(host, id, state).await {
                Ok(true) => {}
                Ok(false) => unsettled += 1,
                Err(cause) => {
                    unsettled += 1;
                    tracing::warn!(%cause, partition = %id, "not settled yet");
                }
            }
        }
        unsettled
    }

    /// The copy at the host before is given up once nobody has rolled back for long enough; after a restart that time
    /// begins anew.
    async fn end_grace(&mut self, host: &Host, id: PartitionId, state: &ClusterState) -> Result<()> {
        let record = state.records.get(&id.0).filter(|record| record.owner == host.id.0);
        let Some(former) = record.and_then(|record| record.former.as_ref()) else {
            self.kept.remove(&id);
            return Ok(());
        };
        let attempt = AttemptId(former.attempt);
        let (known, since) = *self.kept.entry(id).or_insert((attempt, time::now()));
        if known != attempt {
            self.kept.insert(id, (attempt, time::now()));
            return Ok(());
        }
        let is_stable = record.is_some_and(|record| record.state == RecordState::Stable);
        if is_stable && time::since(since) >= host.roll_back_for {
            let command = Command::Release { partition: id.0, attempt: attempt.0 };
            coordinator::change(host.coordinator.as_ref(), command).await?;
            host.reconcile_wanted.notify_one();
        }
        Ok(())
    }

    /// Settles one partition; false if it has to be looked at again.
    async fn look(&mut self, host: &Arc<Host>, id: PartitionId, state: &ClusterState) -> Result<bool> {
        let Ok(partition) = host.engine.partition(id) else {
            return Ok(true);
        };
        let stats = partition.stats().await?;
        let as_recorded = state.records.get(&id.0).is_some_and(|record| {
            let kept = parted_at(record) == stats.keeps_since && base_kept_by(host.id, record) == stats.keeps_base;
            let same = record.owner == host.id.0 && record.epoch == stats.epoch.0;
            same && kept && Shape::of(&stats, record) == Shape::AsRecorded && record.state == RecordState::Stable
        });
        if as_recorded && stats.serving == Serving::Owner {
            self.since.remove(&id);
            return Ok(true);
        }
        let Some(_claim) = host.claims.try_claim(id) else {
            close_if_over(host, id, stats.serving, state);
            return Ok(true);
        };
        // Only now, with the claim: nobody else changes what is held, and the record is as new as it has to be.
        let stats = partition.stats().await?;
        let held = match stats.serving {
            Serving::Owner | Serving::Frozen | Serving::Suspended if stats.missing_segments > 0 => Held::Partly,
            Serving::Owner | Serving::Frozen | Serving::Suspended => Held::Owner,
            Serving::Shadow { attempt } => Held::Shadow(attempt),
            Serving::Released { .. } => Held::Released,
        };
        if state.merged.contains_key(&id.0) {
            return drop_merged(host, &partition, &stats).await;
        }
        let record = coordinator::read(host.coordinator.as_ref(), id.0).await?;
        host.routing.update_record(&record);
        let (parted, base) = (parted_at(&record), base_kept_by(host.id, &record));
        if parted != stats.keeps_since || base != stats.keeps_base {
            // Before anything is served, and so before anything that decides a conflict, or that a roll-back has to
            // carry, can be forgotten.
            let keep = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                partition.keep_changes_since(parted);
                partition.keep_base(base);
                Ok(())
            };
            partition.with(keep).await?;
        }
        let mut verdict = verdict(host.id, held, &record);
        if matches!(verdict, Verdict::Return(..)) && planted(Mutant::DropParted) {
            verdict = Verdict::Drop;
        }
        let wait = match verdict {
            Verdict::Promote(..) if planted(Mutant::WriteBeforeHandOver) => Duration::ZERO,
            Verdict::Promote(..) => PROMOTE_WAIT,
            Verdict::Drop => RELEASE_GRACE,
            _ => Duration::ZERO,
        };
        let (known, since) = *self.since.entry(id).or_insert((verdict, time::now()));
        if known != verdict {
            self.since.insert(id, (verdict, time::now()));
        }
        if known != verdict && !wait.is_zero() || time::since(since) < wait {
            // A copy that is only waiting to be dropped keeps nobody waiting.
            return Ok(verdict == Verdict::Drop);
        }
        // Before anything of it is served that is another partition's by now.
        let shape = Shape::of(&stats, &record);
        if matches!(verdict, Verdict::Serve(_)) && shape != Shape::AsRecorded {
            reshape_as_recorded(host, id, shape).await?;
            return Ok(false);
        }
        act(host, &partition, verdict, &record).await
    }
}

/// Drops what is here of a partition that has become a part of another one, unless that is still to be done with it.
async fn drop_merged(
    host: &Host,
    partition: &PartitionHandle,
    stats: &antumbra_engine::PartitionStats,
) -> Result<bool> {
    let (id, shard) = (partition.id(), partition.shard());
    let state = coordinator::list(host.coordinator.as_ref()).await?;
    if !is_leftover(host, stats, &state).await? {
        return Ok(false);
    }
    tracing::info!(partition = %id, "a copy of what is a part of another partition by now is dropped");
    host.engine.on_shard(shard, move |shard| async move { shard.drop_partition(id).await }).await??;
    Ok(true)
}

/// The last LSN that two hosts have of a partition whose history has parted.
fn parted_at(record: &PartitionRecord) -> Option<Lsn> {
    record.diverged.as_ref().map(|diverged| Lsn(diverged.lsn))
}

/// Answers from now on that another host owns the partition, by its record.
pub(crate) async fn release(
    host: &Host,
    partition: &PartitionHandle,
    record: &PartitionRecord,
) -> antumbra_engine::Result<()> {
    let (owner, epoch) = (HostId(record.owner), Epoch(record.epoch));
    let diverged = diverged_at(host.id, record).map(|diverged| Lsn(diverged.lsn));
    let release = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
        match diverged {
            Some(lsn) => partition.hand_over_diverged(owner, epoch, lsn).await,
            None => partition.hand_over(owner, epoch).await,
        }
    };
    partition.with(release).await
}

/// Ends an attempt here whose source died and was aborted since, before the link's time-out does.
fn close_if_over(host: &Host, id: PartitionId, serving: Serving, state: &ClusterState) {
    let Serving::Shadow { attempt } = serving else {
        return;
    };
    let is_open = state.records.get(&id.0).is_some_and(|record| match &record.state {
        RecordState::Moving(moving) | RecordState::Committed(moving) => moving.attempt == attempt.0,
        RecordState::Stable => false,
    });
    // The records may be older than the attempt.
    if !is_open
        && state.attempts >= attempt.0
        && let Some(inbox) = host.inbox(attempt)
    {
        inbox.close();
    }
}

async fn act(
    host: &Arc<Host>,
    partition: &PartitionHandle,
    verdict: Verdict,
    record: &PartitionRecord,
) -> Result<bool> {
    let id = partition.id();
    let shard = partition.shard();
    match verdict {
        Verdict::Serve(epoch) => {
            partition.with(move |partition| async move { partition.resume(epoch).await }).await?;
        }
        Verdict::ServeAndComplete(epoch, attempt) => {
            partition.with(move |partition| async move { partition.resume(epoch).await }).await?;
            complete(host, id, attempt).await?;
        }
        Verdict::Abort(attempt) => {
            let reason = "nobody drives it: its source restarted or never learned that it began".into();
            let command = Command::Abort { partition: id.0, attempt: attempt.0, reason };
            match coordinator::change(host.coordinator.as_ref(), command).await {
                Ok(_) | Err(Error::Conflict { .. }) => return Ok(false),
                Err(cause) => return Err(cause),
            }
        }
        Verdict::Fill(epoch, attempt, source) => {
            partition.with(move |partition| async move { partition.resume(epoch).await }).await?;
            drive::fetch_missing(host, id, attempt, epoch, source, Vec::new());
        }
        Verdict::Release(..) => release(host, partition, record).await?,
        Verdict::Promote(attempt, epoch) => {
            let forced = record.diverged.as_ref().filter(|diverged| diverged.attempt == attempt.0);
            if let Some(lsn) = forced.map(|diverged| Lsn(diverged.lsn)) {
                tracing::warn!(partition = %id, %attempt, %epoch, %lsn, "a standby is promoted by force");
                let promote = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                    partition.promote_forced(attempt, epoch, lsn).await
                };
                partition.with(promote).await?;
                return Ok(true);
            }
            tracing::info!(partition = %id, %attempt, %epoch, "promoted by the coordinator's record");
            partition.with(move |partition| async move { partition.promote_by_record(attempt, epoch).await }).await?;
            // Segments may be missing still: the next look completes the attempt or fetches them.
            return Ok(partition.stats().await?.missing_segments == 0 && complete(host, id, attempt).await.is_ok());
        }
        Verdict::Discard(attempt) => {
            host.engine.on_shard(shard, move |shard| async move { shard.discard_shadow(id, attempt).await }).await??;
        }
        Verdict::Return(owner, attempt) => {
            let lsn = parted_at(record).unwrap_or_default();
            drive::return_changes(host, id, owner, attempt, lsn);
            return Ok(true);
        }
        Verdict::Drop => {
            host.engine.on_shard(shard, move |shard| async move { shard.drop_partition(id).await }).await??;
        }
        // A copy that stays for a roll-back keeps nobody waiting.
        Verdict::Wait => return Ok(record.state == RecordState::Stable && is_former(host.id, record)),
    }
    Ok(true)
}

async fn complete(host: &Host, partition: PartitionId, attempt: AttemptId) -> Result<()> {
    let command = Command::Complete { partition: partition.0, attempt: attempt.0 };
    coordinator::change(host.coordinator.as_ref(), command).await.map(drop)
}
