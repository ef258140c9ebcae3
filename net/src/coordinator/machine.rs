//! The coordinator's state as a pure function of the commands it has taken.
//!
//! - `INV-OWNER`: a partition has one owner in each epoch; the epoch rises on commit and on abort.
//! - `INV-FENCE`: a command of a move carries its attempt; a closed attempt changes nothing.

use serde::{Deserialize, Serialize};

use super::record::{ClusterState, Diverged, Former, HostInfo, Leader, Moving, PartitionRecord, RecordState};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Announces a host, or its new addresses.
    Register(HostInfo),
    /// Becomes the leader, or shows that it still is one.
    Lead {
        /// The host.
        host: u32,
        /// The beat that it has seen, 0 before the first; another one is a conflict.
        beat: u64,
    },
    /// Creates a partition; one that exists with the same slots is left as it is.
    Create {
        /// Id.
        partition: u64,
        /// Keyspace.
        keyspace: String,
        /// First and last slot.
        slots: (u16, u16),
        /// First owner.
        owner: u32,
    },
    /// Reads a record.
    Read {
        /// Id.
        partition: u64,
    },
    /// Reads everything.
    List,
    /// Locks the partition for a move; the new attempt is in the answer.
    Begin {
        /// Id.
        partition: u64,
        /// The owner as the caller knows it.
        source: u32,
        /// The host to move to.
        destination: u32,
    },
    /// Makes the destination the owner. The linearization point of a move.
    Commit {
        /// Id.
        partition: u64,
        /// The attempt, as fencing token.
        attempt: u64,
        /// The epoch that the mover knows.
        epoch: u64,
        /// The last LSN that source and destination have.
        lsn: u64,
    },
    /// The copy at the host before is given up: no roll-back on it any more. Changes nothing while the partition is
    /// moved.
    Release {
        /// Id.
        partition: u64,
        /// The attempt that left the copy.
        attempt: u64,
    },
    /// Closes an attempt that was not committed.
    Abort {
        /// Id.
        partition: u64,
        /// The attempt.
        attempt: u64,
        /// For the history.
        reason: String,
    },
    /// Makes two partitions of one: slots from `at` on belong to `child` then, at the same owner.
    Split {
        /// Id.
        partition: u64,
        /// The epoch that the caller knows.
        epoch: u64,
        /// First slot of the child.
        at: u16,
        /// Id of the child; `None` = the next one that is free.
        child: Option<u64>,
    },
    /// Makes one partition of two neighbours with the same owner: the one with the lower slots has those of both.
    Merge {
        /// The lower one.
        partition: u64,
        /// The epoch that the caller knows.
        epoch: u64,
        /// The upper one, which is gone afterwards.
        other: u64,
        /// The epoch of it that the caller knows.
        other_epoch: u64,
    },
    /// Makes the destination of an attempt the owner although its source cannot be asked.
    ForcePromote {
        /// Id.
        partition: u64,
        /// The attempt, as fencing token.
        attempt: u64,
        /// The last LSN that the destination holds.
        lsn: u64,
        /// How conflicts are to be settled when the source returns.
        policy: String,
    },
    /// The owner begins to settle what the returned host has written; asked again, the first answer stands.
    BeginReconcile {
        /// Id.
        partition: u64,
        /// The attempt of the forced promotion.
        attempt: u64,
        /// The owner's last LSN.
        until: u64,
    },
    /// Everything that the returned host has written alone is settled, or given up.
    EndReconcile {
        /// Id.
        partition: u64,
        /// The attempt of the forced promotion.
        attempt: u64,
        /// For the history.
        outcome: String,
    },
    /// Closes an attempt that was committed.
    Complete {
        /// Id.
        partition: u64,
        /// The attempt.
        attempt: u64,
    },
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The record after the command.
    Record(PartitionRecord),
    /// Everything.
    State(ClusterState),
}

/// Moves that a record remembers.
const HISTORY_MAX: usize = 16;

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Its state; durable before an answer leaves.
    pub state: ClusterState,
}

impl Machine {
    /// Applies a command. An error says how the record differs from what the command assumes; nothing has changed then.
    ///
    /// # Errors
    /// The difference, in words.
    pub fn apply(&mut self, command: Command) -> Result<Answer, String> {
        match command {
            Command::Register(info) => {
                self.state.hosts.insert(info.host, info);
                Ok(Answer::State(self.state.clone()))
            }
            Command::Lead { host, beat } => self.lead(host, beat),
            Command::List => Ok(Answer::State(self.state.clone())),
            Command::Read { partition } => Ok(Answer::Record(self.record(partition)?.clone())),
            Command::Create { partition, keyspace, slots, owner } => self.create(partition, keyspace, slots, owner),
            Command::Begin { partition, source, destination } => self.begin(partition, source, destination),
            Command::Commit { partition, attempt, epoch, lsn } => self.commit(partition, attempt, epoch, lsn),
            Command::Release { partition, attempt } => self.release(partition, attempt),
            Command::Abort { partition, attempt, reason } => self.abort(partition, attempt, &reason),
            Command::Complete { partition, attempt } => self.complete(partition, attempt),
            Command::Split { partition, epoch, at, child } => self.split(partition, epoch, at, child),
            Command::Merge { partition, epoch, other, other_epoch } => {
                self.merge((partition, epoch), (other, other_epoch))
            }
            Command::ForcePromote { partition, attempt, lsn, policy } => {
                self.force_promote(partition, attempt, lsn, policy)
            }
            Command::BeginReconcile { partition, attempt, until } => self.begin_reconcile(partition, attempt, until),
            Command::EndReconcile { partition, attempt, outcome } => self.end_reconcile(partition, attempt, &outcome),
        }
    }

    fn lead(&mut self, host: u32, beat: u64) -> Result<Answer, String> {
        let (leader, present) = self.state.leader.as_ref().map_or((0, 0), |leader| (leader.host, leader.beat));
        if present != beat {
            return Err(format!("host {leader} leads (beat {present}, not {beat})"));
        }
        self.state.leader = Some(Leader { host, beat: beat + 1 });
        Ok(Answer::State(self.state.clone()))
    }

    fn record(&mut self, partition: u64) -> Result<&mut PartitionRecord, String> {
        self.state.records.get_mut(&partition).ok_or_else(|| format!("no partition {partition}"))
    }

    fn create(&mut self, partition: u64, keyspace: String, slots: (u16, u16), owner: u32) -> Result<Answer, String> {
        if let Some(found) = self.state.records.get(&partition) {
            let same = found.slots == slots && found.keyspace == keyspace;
            return if same { Ok(Answer::Record(found.clone())) } else { Err(format!("partition {partition} exists")) };
        }
        self.check_new(partition)?;
        if slots.0 > slots.1 || slots.1 >= crate::resp::slot::SLOTS {
            return Err(format!("slots {}-{}: 0 to 16383, ascending", slots.0, slots.1));
        }
        let overlap = |other: &&PartitionRecord| {
            other.keyspace == keyspace && other.slots.0 <= slots.1 && slots.0 <= other.slots.1
        };
        if let Some(other) = self.state.records.values().find(overlap) {
            return Err(format!("slots {}-{} overlap partition {}", slots.0, slots.1, other.partition));
        }
        let record = PartitionRecord {
            partition,
            keyspace,
            slots,
            owner,
            epoch: 1,
            state: RecordState::Stable,
            revision: 1,
            history: Vec::new(),
            diverged: None,
            former: None,
        };
        self.state.records.insert(partition, record.clone());
        Ok(Answer::Record(record))
    }

    /// That it is in this epoch, and nothing is under way with it.
    fn check_settled(&mut self, partition: u64, epoch: u64) -> Result<&mut PartitionRecord, String> {
        let record = self.record(partition)?;
        if record.epoch != epoch {
            return Err(format!("partition {partition} is in epoch {}, not {epoch}", record.epoch));
        }
        if record.state != RecordState::Stable {
            return Err(format!("partition {partition} is being moved, or has a standby"));
        }
        if record.diverged.is_some() {
            return Err(format!("partition {partition} was promoted by force and has to be reconciled first"));
        }
        Ok(record)
    }

    fn check_new(&self, partition: u64) -> Result<(), String> {
        if self.state.records.contains_key(&partition) {
            return Err(format!("partition {partition} exists"));
        }
        match self.state.merged.get(&partition) {
            Some(into) => Err(format!("partition {partition} became a part of {into}: take another id")),
            None => Ok(()),
        }
    }

    /// One change for both records: no slot is ever without a partition, or in two.
    fn split(&mut self, partition: u64, epoch: u64, at: u16, child: Option<u64>) -> Result<Answer, String> {
        let ends_there = self.record(partition)?.slots.1.checked_add(1) == Some(at);
        let keyspace = self.record(partition)?.keyspace.clone();
        let found = self.state.records.values().find(|record| record.slots.0 == at && record.keyspace == keyspace);
        // Asked again after an answer that was lost.
        if let Some(found) = found.filter(|found| ends_there && child.is_none_or(|child| child == found.partition)) {
            return Ok(Answer::Record(found.clone()));
        }
        if let Some(child) = child {
            self.check_new(child)?;
        }
        let ids = self.state.records.keys().chain(self.state.merged.keys());
        let next = ids.max().map_or(1, |last| last.saturating_add(1));
        let child = child.unwrap_or(next);
        let record = self.check_settled(partition, epoch)?;
        let (first, last) = record.slots;
        if at <= first || at > last {
            return Err(format!("partition {partition} has slots {first}-{last}: split it at {}-{last}", first + 1));
        }
        record.slots = (first, at - 1);
        record.epoch += 1;
        record.revision += 1;
        // The copy at the host before is one of both.
        record.former = None;
        remember(record, 0, format!("slots {at}-{last} became partition {child}"));
        let created = PartitionRecord {
            partition: child,
            slots: (at, last),
            revision: 1,
            history: vec![(0, format!("was part of partition {partition}"))],
            ..record.clone()
        };
        self.state.records.insert(child, created.clone());
        Ok(Answer::Record(created))
    }

    /// The other way round.
    fn merge(&mut self, (partition, epoch): (u64, u64), (other, other_epoch): (u64, u64)) -> Result<Answer, String> {
        // Asked again after an answer that was lost.
        if self.state.merged.get(&other) == Some(&partition) {
            return Ok(Answer::Record(self.record(partition)?.clone()));
        }
        let upper = self.check_settled(other, other_epoch)?.clone();
        let record = self.check_settled(partition, epoch)?;
        if record.slots.1.checked_add(1) != Some(upper.slots.0) || record.keyspace != upper.keyspace {
            let ((first, last), (from, to)) = (record.slots, upper.slots);
            return Err(format!(
                "partition {other} (slots {from}-{to}) does not begin where {partition} ({first}-{last}) ends"
            ));
        }
        if record.owner != upper.owner {
            return Err(format!(
                "partition {partition} belongs to host {}, {other} to host {}: move one of them first",
                record.owner, upper.owner
            ));
        }
        record.slots.1 = upper.slots.1;
        record.epoch = epoch.max(other_epoch) + 1;
        record.revision += 1;
        record.former = None;
        remember(record, 0, format!("partition {other} became a part of it"));
        let answer = Answer::Record(record.clone());
        self.state.records.remove(&other);
        self.state.merged.insert(other, partition);
        Ok(answer)
    }

    fn begin(&mut self, partition: u64, source: u32, destination: u32) -> Result<Answer, String> {
        if !self.state.hosts.contains_key(&destination) {
            return Err(format!("host {destination} is not known"));
        }
        let attempt = self.state.attempts + 1;
        let record = self.record(partition)?;
        if record.owner != source || source == destination {
            return Err(format!("partition {partition} belongs to host {}", record.owner));
        }
        if record.state != RecordState::Stable {
            return Err(format!("partition {partition} is being moved"));
        }
        if let Some(Diverged { host, lsn, .. }) = &record.diverged {
            return Err(format!(
                "partition {partition} was promoted by force: host {host} may have writes behind LSN {lsn} that are to be \
                 reconciled first; start it, or give them up with ANTUMBRA ABANDON {partition} FORCE"
            ));
        }
        record.state = RecordState::Moving(Moving { attempt, source, destination });
        record.revision += 1;
        let answer = Answer::Record(record.clone());
        self.state.attempts = attempt;
        Ok(answer)
    }

    fn commit(&mut self, partition: u64, attempt: u64, epoch: u64, lsn: u64) -> Result<Answer, String> {
        let record = self.record(partition)?;
        match record.state.clone() {
            RecordState::Moving(moving) if moving.attempt == attempt && record.epoch == epoch => {
                record.owner = moving.destination;
                record.epoch += 1;
                record.former = Some(Former { host: moving.source, attempt, lsn });
                record.state = RecordState::Committed(moving);
                record.revision += 1;
                Ok(Answer::Record(record.clone()))
            }
            // Asked again after an answer that was lost.
            RecordState::Committed(moving) if moving.attempt == attempt => Ok(Answer::Record(record.clone())),
            _ => Err(format!("attempt {attempt} of partition {partition} is closed (epoch {})", record.epoch)),
        }
    }

    fn abort(&mut self, partition: u64, attempt: u64, reason: &str) -> Result<Answer, String> {
        let record = self.record(partition)?;
        match record.state.clone() {
            RecordState::Moving(moving) if moving.attempt == attempt => {
                record.epoch += 1;
                record.state = RecordState::Stable;
                record.revision += 1;
                remember(record, attempt, format!("aborted: {reason}"));
                Ok(Answer::Record(record.clone()))
            }
            RecordState::Committed(moving) if moving.attempt == attempt => {
                Err(format!("attempt {attempt} of partition {partition} is committed"))
            }
            // Closed before: the answer is the record.
            _ => Ok(Answer::Record(record.clone())),
        }
    }

    fn force_promote(&mut self, partition: u64, attempt: u64, lsn: u64, policy: String) -> Result<Answer, String> {
        let record = self.record(partition)?;
        match record.state.clone() {
            RecordState::Moving(moving) if moving.attempt == attempt => {
                record.owner = moving.destination;
                record.epoch += 1;
                record.state = RecordState::Stable;
                record.revision += 1;
                record.former = None;
                record.diverged = Some(Diverged { host: moving.source, attempt, lsn, policy, until: None });
                remember(record, attempt, format!("host {} promoted by force at LSN {lsn}", moving.destination));
                Ok(Answer::Record(record.clone()))
            }
            // Asked again after an answer that was lost.
            _ if record.diverged.as_ref().is_some_and(|diverged| diverged.attempt == attempt) => {
                Ok(Answer::Record(record.clone()))
            }
            _ => Err(format!("attempt {attempt} of partition {partition} is closed (epoch {})", record.epoch)),
        }
    }

    fn begin_reconcile(&mut self, partition: u64, attempt: u64, until: u64) -> Result<Answer, String> {
        let record = self.record(partition)?;
        match record.diverged.as_mut().filter(|diverged| diverged.attempt == attempt) {
            Some(diverged) => {
                if diverged.until.is_none() {
                    diverged.until = Some(until);
                    record.revision += 1;
                }
                Ok(Answer::Record(record.clone()))
            }
            None => Err(format!("partition {partition} has nothing to reconcile of attempt {attempt}")),
        }
    }

    fn end_reconcile(&mut self, partition: u64, attempt: u64, outcome: &str) -> Result<Answer, String> {
        let record = self.record(partition)?;
        if record.diverged.take_if(|diverged| diverged.attempt == attempt).is_some() {
            record.revision += 1;
            remember(record, attempt, outcome.to_string());
        }
        Ok(Answer::Record(record.clone()))
    }

    fn release(&mut self, partition: u64, attempt: u64) -> Result<Answer, String> {
        let record = self.record(partition)?;
        let is_stable = record.state == RecordState::Stable;
        if is_stable && record.former.take_if(|former| former.attempt == attempt).is_some() {
            record.revision += 1;
        }
        Ok(Answer::Record(record.clone()))
    }

    fn complete(&mut self, partition: u64, attempt: u64) -> Result<Answer, String> {
        let record = self.record(partition)?;
        match record.state.clone() {
            RecordState::Committed(moving) if moving.attempt == attempt => {
                record.state = RecordState::Stable;
                record.revision += 1;
                remember(record, attempt, format!("moved to host {}", moving.destination));
                Ok(Answer::Record(record.clone()))
            }
            _ => Ok(Answer::Record(record.clone())),
        }
    }
}

fn remember(record: &mut PartitionRecord, attempt: u64, outcome: String) {
    record.history.push((attempt, outcome));
    if record.history.len() > HISTORY_MAX {
        record.history.remove(0);
    }
}

#[cfg(test)]
mod tests;
