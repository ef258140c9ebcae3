//! From a move to its attempts: what the coordinator is asked before the driver runs and after it has failed.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::{AttemptId, Epoch, HostId, PartitionId};

use crate::coordinator::{self, Command, PartitionRecord, RecordState};
use crate::error::{Error, Result};
use crate::host::{self, Host};
use crate::shadow::accounts::MoveReport;
use crate::shadow::frame::FrameContext;
use crate::time;

use super::sending::{Driver, RETRY};
use super::{MoveHandle, MoveOptions, Policy};

/// Attempts of a move whose target is not reached.
const OPEN_TRIES: u32 = 3;
/// Requests to begin whose answers were lost, after which a move is given up.
const BEGIN_TRIES: u32 = 50;
/// A standby that was lost is begun again after this time, at first and at last.
const STANDBY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Runs a move; a standby that is lost is begun again until it is told to end, has been switched to, or this host is no
/// longer the owner. On an error the source serves as before.
pub(super) async fn run(
    host: &Arc<Host>,
    partition: PartitionId,
    destination: HostId,
    options: MoveOptions,
    handle: &MoveHandle,
) -> Result<MoveReport> {
    let mut pause = STANDBY_PAUSE.0;
    loop {
        let began = time::now();
        let cause = match run_once(host, partition, destination, options, handle).await {
            Err(cause) if matches!(options.policy, Policy::Standby { .. }) && !handle.is_told_to_end() => cause,
            ended => return ended,
        };
        // It may have been promoted by force, or the partition moved: a later owner here decides anew.
        let record = coordinator::read(host.coordinator.as_ref(), partition.0).await;
        let is_owner = record.map_or(true, |record| record.owner == host.id.0);
        if matches!(cause, Error::Conflict { .. }) || !is_owner {
            return Err(cause);
        }
        if time::since(began) > STANDBY_PAUSE.1 {
            pause = STANDBY_PAUSE.0;
        }
        tracing::warn!(%cause, %partition, %destination, "the standby was lost; begun again in {pause:?}");
        if handle.told_to_end_within(pause).await {
            return Err(cause);
        }
        pause = (pause * 2).min(STANDBY_PAUSE.1);
    }
}

async fn run_once(
    host: &Arc<Host>,
    partition: PartitionId,
    destination: HostId,
    options: MoveOptions,
    handle: &MoveHandle,
) -> Result<MoveReport> {
    // From here on the reconciler leaves the partition to this move.
    let _claim = host.claims.claim(partition).await;
    let mut tried = 1;
    loop {
        match attempt(host, partition, destination, options, handle).await {
            // The connection was one to an earlier life of the peer: that shows with its first use.
            Err(Failure { cause, lost_at_opening: true }) if tried < OPEN_TRIES => {
                tracing::info!(%cause, %partition, "the target was not reached; another attempt");
                tried += 1;
            }
            Err(failure) => return Err(failure.cause),
            Ok(report) => return Ok(report),
        }
    }
}

/// Why an attempt ended.
struct Failure {
    cause: Error,
    /// The link was lost before the target answered.
    lost_at_opening: bool,
}

impl From<Error> for Failure {
    fn from(cause: Error) -> Failure {
        Failure { cause, lost_at_opening: false }
    }
}

async fn attempt(
    host: &Arc<Host>,
    partition: PartitionId,
    destination: HostId,
    options: MoveOptions,
    handle: &MoveHandle,
) -> std::result::Result<MoveReport, Failure> {
    let record = begin_until_known(host, partition, destination).await?;
    let RecordState::Moving(moving) = &record.state else {
        return Err(Error::protocol("the coordinator began no move").into());
    };
    let context = FrameContext { attempt: AttemptId(moving.attempt), partition, epoch: Epoch(record.epoch) };
    host.failpoint.pass("source:begun");
    let mut driver = match Driver::open(host, context, &record, destination, options, handle).await {
        Ok(driver) => driver,
        Err(cause) => {
            abort_until_known(host, context, &cause.to_string()).await;
            let lost_at_opening = matches!(cause, Error::Link { .. });
            return Err(Failure { cause, lost_at_opening });
        }
    };
    let ended = driver.run().await;
    ended.map_err(|cause| Failure { cause, lost_at_opening: driver.lost && !driver.opened })
}

/// Locks the partition. When the answer is lost the record tells: an attempt of this host's partition that has this
/// destination and that nobody drives can only be the one asked for. Should a request that was given up arrive after
/// all, the reconciler aborts what it begins.
async fn begin_until_known(host: &Host, partition: PartitionId, destination: HostId) -> Result<PartitionRecord> {
    let command = Command::Begin { partition: partition.0, source: host.id.0, destination: destination.0 };
    let begun = |record: &PartitionRecord| {
        let ours = matches!(&record.state, RecordState::Moving(moving) if moving.destination == destination.0);
        ours && record.owner == host.id.0
    };
    let mut asked = 0;
    loop {
        let unknown = match coordinator::change(host.coordinator.as_ref(), command.clone()).await {
            Err(cause @ (Error::Unknown { .. } | Error::Link { .. })) => cause,
            known => return known,
        };
        match coordinator::read(host.coordinator.as_ref(), partition.0).await {
            Ok(record) if begun(&record) => return Ok(record),
            _ if asked == BEGIN_TRIES => return Err(unknown),
            _ => {}
        }
        asked += 1;
        time::sleep(RETRY).await;
    }
}

/// Closes the attempt at the coordinator, however long that takes, then serves again.
pub(super) async fn abort_until_known(host: &Host, context: FrameContext, reason: &str) {
    let command =
        Command::Abort { partition: context.partition.0, attempt: context.attempt.0, reason: reason.to_string() };
    loop {
        match coordinator::change(host.coordinator.as_ref(), command.clone()).await {
            Ok(record) => {
                host.routing.update_record(&record);
                return serve_again(host, context, &record).await;
            }
            // Committed, which nothing here asked for: the reconciler goes by the record.
            Err(Error::Conflict { what }) => return tracing::error!(what, "the attempt is not this host's to abort"),
            Err(cause) => tracing::warn!(%cause, "the abort is not known yet; writes may be waiting"),
        }
        time::sleep(RETRY).await;
    }
}

/// Serves what the record of the closed attempt gives this host.
async fn serve_again(host: &Host, context: FrameContext, record: &PartitionRecord) {
    let (attempt, epoch) = (context.attempt, Epoch(record.epoch));
    let Ok(partition) = host.engine.partition(context.partition) else {
        return;
    };
    let served = if record.owner == host.id.0 {
        partition.with(move |partition| async move { partition.thaw(attempt, epoch).await }).await
    } else {
        host::release(host, &partition, record).await
    };
    if let Err(cause) = served {
        tracing::error!(%cause, "the epoch of the closed attempt is not durable");
    }
}
