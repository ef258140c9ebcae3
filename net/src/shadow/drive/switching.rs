//! The last steps of a move at the source: commit, hand over, promote, verify, complete.

use std::sync::Arc;

use antumbra_engine::partition::RangeDigest;
use antumbra_engine::runtime;
use antumbra_engine::types::Epoch;

use crate::coordinator::{self, Command, PartitionRecord, RecordState};
use crate::error::{Error, Result};
use crate::shadow::accounts::VerifyReport;
use crate::shadow::message::Message;
use crate::time;

use super::sending::{Driver, RETRY, Signal, mark};

/// Places of the two sides' digests.
pub(super) const OURS: usize = 0;
pub(super) const THEIRS: usize = 1;

impl Driver<'_> {
    /// Asks for the commit until the record is known; only what it says counts.
    pub(super) fn spawn_commit(&self) {
        let (host, context, signal) = (Arc::clone(self.host), self.context, self.signal.clone());
        let command = Command::Commit {
            partition: context.partition.0,
            attempt: context.attempt.0,
            epoch: context.epoch.0,
            lsn: self.sealing.as_ref().map_or(0, |sealing| sealing.seal.final_lsn.0),
        };
        let plane = host.control.clone();
        plane.spawn(async move {
            let outcome = loop {
                match coordinator::change(host.coordinator.as_ref(), command.clone()).await {
                    Ok(record) => break Signal::Committed(record),
                    Err(Error::Conflict { what }) => break Signal::NotCommitted(what),
                    Err(cause) => tracing::warn!(%cause, "the commit is not known yet; writes are waiting"),
                }
                time::sleep(RETRY).await;
            };
            let _ = signal.send(outcome);
        });
    }

    pub(super) fn note_committed(&mut self, record: &PartitionRecord) {
        self.report.switchover.epoch_after = record.epoch;
        self.host.routing.update_record(record);
        self.end_step("commit");
    }

    /// Serves no more. The target is told at once: that the role is on this host's device is not waited for, since a
    /// restart reads the coordinator's record before anything is served.
    pub(super) async fn hand_over(&mut self) {
        let epoch = Epoch(self.report.switchover.epoch_after);
        let owner = self.destination;
        let released = self.partition.with(move |partition| async move {
            partition.release(owner, epoch);
            let log = async move {
                if let Err(cause) = partition.log_release(owner, epoch).await {
                    tracing::error!(%cause, "the hand-over is not durable; a restart reads the coordinator's record");
                }
            };
            runtime::spawn_detached(log);
            Ok(())
        });
        if let Err(cause) = released.await {
            tracing::error!(%cause, "the partition is gone at the hand-over");
        }
        self.end_step("hand over");
    }

    /// Tells the target to serve; true if it is lost. Then it serves once it has read the record by itself.
    pub(super) async fn send_promotion(&mut self) -> bool {
        let epoch = Epoch(self.report.switchover.epoch_after);
        let sent = self.link.send(&Message::Promote(epoch)).await;
        self.lost || sent.is_err()
    }

    pub(super) fn note_promoted(&mut self) {
        if let Some(frozen) = self.frozen {
            self.report.frozen_us = time::since(frozen).as_micros() as u64;
        }
        mark(&mut self.report, "promoted");
        self.end_step("promote");
    }

    /// Reads the record until the target has completed the attempt; the source keeps its copy that long.
    pub(super) fn spawn_await_target(&self) {
        let (host, context, signal) = (Arc::clone(self.host), self.context, self.signal.clone());
        let plane = host.control.clone();
        plane.spawn(async move {
            loop {
                let read = coordinator::read(host.coordinator.as_ref(), context.partition.0).await;
                let open = |record: &PartitionRecord| {
                    matches!(&record.state, RecordState::Committed(moving) if moving.attempt == context.attempt.0)
                };
                let closed = match read {
                    Ok(record) => !open(&record),
                    // No record any more: the attempt was closed, and the partition has become a part of another one since.
                    Err(Error::Conflict { .. }) => true,
                    Err(_) => false,
                };
                if closed {
                    let _ = signal.send(Signal::Completed);
                    return;
                }
                time::sleep(RETRY).await;
            }
        });
    }

    /// Has both sides digest what they held at the hand-over.
    pub(super) async fn spawn_digest(&mut self) -> Result<()> {
        let (starts, attempt) = (self.starts.clone(), self.context.attempt);
        let (partition, signal) = (self.partition.clone(), self.signal.clone());
        let ours = starts.clone();
        self.host.control.spawn(async move {
            let digests =
                partition.with(move |partition| async move { partition.digest_final(attempt, ours).await }).await;
            let _ = signal.send(Signal::Digested(digests.map_err(Error::from)));
        });
        // A target that is lost here is noticed by the listener.
        self.link.send(&Message::Digest(starts)).await.or(Ok(()))
    }

    /// Compares the digests once both are there; false until then.
    pub(super) fn compare_digests(&mut self) -> bool {
        let [Some(ours), Some(theirs)] = &self.digests else {
            return false;
        };
        self.report.verify = compare(ours, theirs);
        if !self.report.verify.equal {
            tracing::error!(partition = %self.context.partition, "source and target differ after the hand-over");
        }
        true
    }

    /// Closes the attempt at the coordinator. The released copy is dropped by the reconciler after a grace time.
    pub(super) async fn complete(&mut self) {
        let _ = self.link.send(&Message::Complete).await;
        self.link.finish();
        let command = Command::Complete { partition: self.context.partition.0, attempt: self.context.attempt.0 };
        loop {
            match coordinator::change(self.host.coordinator.as_ref(), command.clone()).await {
                // A conflict: as in `spawn_await_target`.
                Ok(_) | Err(Error::Conflict { .. }) => break,
                Err(cause) => tracing::warn!(%cause, "the completion is not recorded yet"),
            }
            time::sleep(RETRY).await;
        }
        mark(&mut self.report, "complete");
        self.step = time::now();
        self.host.reconcile_wanted.notify_one();
    }
}

fn compare(ours: &[RangeDigest], theirs: &[RangeDigest]) -> VerifyReport {
    let fold = |digests: &[RangeDigest]| {
        let bytes: Vec<u8> = digests.iter().flat_map(|range| range.digest.to_le_bytes()).collect();
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes))
    };
    VerifyReport {
        segments: ours.len() as u64,
        records: ours.iter().map(|range| range.records).sum(),
        source_digest: fold(ours),
        target_digest: fold(theirs),
        equal: ours == theirs,
    }
}
