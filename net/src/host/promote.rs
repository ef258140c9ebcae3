//! Forced promotion: an operator makes a standby the owner because its source is gone.
//!
//! What may be lost is said first. The standby stops taking the mirror *before* the coordinator is asked, so that what the
//! record says it holds is what it holds. The promotion itself is the reconciler's, by the record, as after a lost link.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::Serving;
use antumbra_engine::partition::Standby;
use antumbra_engine::types::{AttemptId, PartitionId};
use serde::Serialize;

use crate::coordinator::{self, Command, PartitionRecord, RecordState};
use crate::error::{Error, Result};
use crate::shadow::conflict;
use crate::time;

use super::Host;

/// Tries of the command whose answers were lost, after which the operator is told.
const TRIES: u32 = 100;
const RETRY: Duration = Duration::from_millis(100);
/// The promotion by the record takes this long at most.
const PROMOTION_MAX: Duration = Duration::from_secs(10);

/// What is known of a standby and of what its promotion may lose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prospect {
    /// The partition.
    pub partition: u64,
    /// The attempt that fills the standby.
    pub attempt: u64,
    /// The present owner.
    pub owner: u32,
    /// The last LSN that is durable here.
    pub mirror_lsn: u64,
    /// Age of the newest record here, by the owner's clock, in milliseconds; null if none has come since the start.
    pub last_record_ms_ago: Option<u64>,
    /// Segments that are not here: it is refused while there are any.
    pub missing_segments: usize,
    /// Whether everything up to `mirror_lsn` is here: it is refused otherwise.
    pub whole: bool,
    /// The last LSN that the owner had assigned when it was last heard; null if it has not been heard since the start.
    pub owner_lsn: Option<u64>,
    /// When that was, in milliseconds before now.
    pub owner_heard_ms_ago: Option<u64>,
    /// Records behind `mirror_lsn` that the owner had written by then.
    pub lag_records: Option<u64>,
    /// Whether the owner acknowledged only what this host had made durable; null if it has not been heard since the start.
    pub synchronous: Option<bool>,
    /// The same in words.
    pub may_be_lost: String,
}

impl Host {
    /// What a forced promotion of the standby here would rest on.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no standby of an open attempt here; as the coordinator.
    pub async fn prospect(&self, id: PartitionId) -> Result<Prospect> {
        let (record, standby) = self.standby_of(id).await?;
        let heard = self.heard(standby.attempt);
        let lag = heard.map(|heard| heard.assigned.0.saturating_sub(standby.last.0));
        let age_ms = standby.newest.map(|newest| time::wall_ms().saturating_sub(newest.wall_ms()));
        let lost = match heard {
            Some(heard) if heard.synchronous => format!(
                "no write that was acknowledged while the mirror was synchronous, which it was when host {} was last heard; what \
                 it acknowledges alone, once it has closed the attempt, it keeps",
                record.owner
            ),
            _ => format!(
                "every write behind LSN {} that only host {} has, until that host returns; where both sides have written a key \
                 by then, the policy decides",
                standby.last, record.owner
            ),
        };
        Ok(Prospect {
            partition: id.0,
            attempt: standby.attempt.0,
            owner: record.owner,
            mirror_lsn: standby.last.0,
            last_record_ms_ago: age_ms,
            missing_segments: standby.missing,
            whole: standby.whole,
            owner_lsn: heard.map(|heard| heard.assigned.0),
            owner_heard_ms_ago: heard.map(|heard| time::since(heard.at).as_millis() as u64),
            lag_records: lag,
            synchronous: heard.map(|heard| heard.synchronous),
            may_be_lost: lost,
        })
    }

    /// Makes the standby here the owner. Returns the record of the promotion, once this host serves.
    ///
    /// # Errors
    /// As [`Host::prospect`]; [`Error::Engine`] while segments are missing; [`Error::Conflict`] when the attempt was closed
    /// meanwhile, so that its owner serves; [`Error::Unknown`] when the coordinator did not answer: its record decides.
    pub async fn force_promote(self: &Arc<Self>, id: PartitionId, policy: &str) -> Result<PartitionRecord> {
        conflict::parse_policy(policy, &self.engine)?;
        let (_, standby) = self.standby_of(id).await?;
        let attempt = standby.attempt;
        let partition = self.engine.partition(id)?;
        let standby = partition.with(move |partition| async move { partition.stop_mirror(attempt).await }).await?;
        self.failpoint.pass("target:forcing");
        let command = Command::ForcePromote {
            partition: id.0,
            attempt: attempt.0,
            lsn: standby.last.0,
            policy: policy.to_string(),
        };
        let recorded = self.ask_until_known(command).await;
        // Whatever the record says now, this attempt is filled no more.
        if let Some(inbox) = self.inbox(attempt) {
            inbox.close();
        }
        let record = recorded?;
        self.failpoint.pass("target:forced");
        tracing::warn!(partition = %id, lsn = %standby.last, policy, "promoted by force");
        self.routing.update_record(&record);
        let began = time::now();
        while time::since(began) < PROMOTION_MAX {
            self.reconcile_wanted.notify_one();
            time::sleep(RETRY).await;
            if self.engine.partition(id)?.stats().await?.serving == Serving::Owner {
                return Ok(record);
            }
        }
        Err(Error::Unknown { what: format!("partition {id} is this host's by the record, but it does not serve yet") })
    }

    /// Gives up what a host has written alone behind a forced promotion: its copy is dropped unread when it returns.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is nothing to be given up; as the coordinator.
    pub async fn abandon(&self, id: PartitionId) -> Result<PartitionRecord> {
        let record = coordinator::read(self.coordinator.as_ref(), id.0).await?;
        let Some(diverged) = record.diverged else {
            return Err(Error::Refused { what: format!("partition {id} has nothing to be reconciled") });
        };
        let outcome = format!("what host {} wrote behind LSN {} was given up", diverged.host, diverged.lsn);
        let command = Command::EndReconcile { partition: id.0, attempt: diverged.attempt, outcome };
        coordinator::change(self.coordinator.as_ref(), command).await
    }

    async fn standby_of(&self, id: PartitionId) -> Result<(PartitionRecord, Standby)> {
        let record = coordinator::read(self.coordinator.as_ref(), id.0).await?;
        let none = |why: &str| Error::Refused {
            what: format!("no standby of partition {id} can be promoted on host {}: {why}", self.id),
        };
        let RecordState::Moving(moving) = &record.state else {
            return Err(none(&format!("no shadow of it is being kept anywhere, it belongs to host {}", record.owner)));
        };
        if moving.destination != self.id.0 {
            return Err(none(&format!("its standby is on host {}; ask there", moving.destination)));
        }
        let partition = self.engine.partition(id).map_err(|_| none("it is not here"))?;
        let standby = partition.with(|partition| async move { partition.standby() }).await?;
        if standby.attempt != AttemptId(moving.attempt) {
            return Err(none("what is here is of an attempt that is over"));
        }
        Ok((record, standby))
    }

    /// The command may be repeated: what took place is told again.
    pub(super) async fn ask_until_known(&self, command: Command) -> Result<PartitionRecord> {
        let mut tried = 1;
        loop {
            match coordinator::change(self.coordinator.as_ref(), command.clone()).await {
                Err(Error::Unknown { .. } | Error::Link { .. }) if tried < TRIES => tried += 1,
                known => return known,
            }
            time::sleep(RETRY).await;
        }
    }
}
