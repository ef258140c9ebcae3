//! The coordinator's state as a pure function of the commands it has taken.
//!
//! - `INV-OWNER`: a partition has one owner in each epoch; the epoch rises on commit and on abort.
//! - `INV-FENCE`: a command of a move carries its attempt; a closed attempt changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A move under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Moving {
    /// Attempt id; rises with each move and serves as fencing token.
    pub attempt: u64,
    /// The host that owned the partition when the attempt began.
    pub source: u32,
    /// The host that the shadow lies on.
    pub destination: u32,
}

/// Whether a move is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RecordState {
    /// The owner serves.
    Stable,
    /// The owner serves while a shadow is filled.
    Moving(Moving),
    /// The destination owns it; the move's last steps are under way.
    Committed(Moving),
}

/// A forced promotion that has not been reconciled: the host that owned the partition before may have written alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Diverged {
    /// That host. It is not trusted with the partition until the reconciliation.
    pub host: u32,
    /// The attempt whose standby was promoted; the fencing token of the reconciliation.
    pub attempt: u64,
    /// The last LSN that both have.
    pub lsn: u64,
    /// How conflicts are settled, in words.
    pub policy: String,
    /// The owner's last LSN when the reconciliation began; later writes stand above what is returned.
    pub until: Option<u64>,
}

/// A copy that a move has left at the host that owned the partition before: what a roll-back begins from. The owner
/// forgets nothing of what has changed since, and that host keeps the copy, for as long as the record names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Former {
    /// That host.
    pub host: u32,
    /// The attempt that moved the partition away from it.
    pub attempt: u64,
    /// The last LSN that both have.
    pub lsn: u64,
}

/// What the cluster agrees on for one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Partition id.
    pub partition: u64,
    /// Keyspace.
    pub keyspace: String,
    /// First and last slot.
    pub slots: (u16, u16),
    /// Owner.
    pub owner: u32,
    /// Ownership generation.
    pub epoch: u64,
    /// Move state.
    pub state: RecordState,
    /// Rises with every change of this record.
    pub revision: u64,
    /// The last moves: attempt, outcome.
    pub history: Vec<(u64, String)>,
    /// A forced promotion that has not been reconciled. The partition is not moved until then.
    #[serde(default)]
    pub diverged: Option<Diverged>,
    /// What a roll-back may begin from.
    #[serde(default)]
    pub former: Option<Former>,
}

/// How to reach a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostInfo {
    /// The host.
    pub host: u32,
    /// Control plane, UDP.
    pub control: String,
    /// Bulk plane, UDP.
    pub bulk: String,
    /// RESP, TCP.
    pub resp: String,
}

/// Who decides on moves for all hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Leader {
    /// The host.
    pub host: u32,
    /// Rises each time it shows that it lives. Who has seen no rise for some time takes over; nothing but the economy of
    /// decisions hangs on there being one leader, since each move is fenced by its own attempt.
    pub beat: u64,
}

/// Everything the coordinator knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterState {
    /// By partition.
    pub records: BTreeMap<u64, PartitionRecord>,
    /// By host.
    pub hosts: BTreeMap<u32, HostInfo>,
    /// Last attempt id given out.
    pub attempts: u64,
    /// Who decides on moves, once somebody does.
    #[serde(default)]
    pub leader: Option<Leader>,
    /// Partitions that have become a part of another one, by that one. No partition gets their ids again: a host that was
    /// away may have a copy of one still.
    #[serde(default)]
    pub merged: BTreeMap<u64, u64>,
}

impl ClusterState {
    /// The partition that has the keys of a merged one now; `None` if it is no merged one.
    #[must_use]
    pub fn merged_into(&self, partition: u64) -> Option<u64> {
        let mut into = *self.merged.get(&partition)?;
        // Each merge names a partition that was there, so that no way leads back.
        while let Some(next) = self.merged.get(&into) {
            into = *next;
        }
        Some(into)
    }
}

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
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine() -> Machine {
        let mut machine = Machine::default();
        for host in 1..=2 {
            let info = HostInfo { host, control: String::new(), bulk: String::new(), resp: String::new() };
            machine.apply(Command::Register(info)).unwrap();
        }
        let create = Command::Create { partition: 1, keyspace: "default".into(), slots: (0, 99), owner: 1 };
        machine.apply(create).unwrap();
        machine
    }

    fn record(answer: Result<Answer, String>) -> PartitionRecord {
        match answer.unwrap() {
            Answer::Record(record) => record,
            Answer::State(_) => unreachable!(),
        }
    }

    #[test]
    fn commit_moves_ownership_once_and_raises_epoch() {
        let mut machine = machine();
        record(machine.apply(Command::Begin { partition: 1, source: 1, destination: 2 }));
        let commit = Command::Commit { partition: 1, attempt: 1, epoch: 1, lsn: 9 };
        let committed = record(machine.apply(commit.clone()));
        assert_eq!((committed.owner, committed.epoch), (2, 2));
        assert_eq!(record(machine.apply(commit)), committed, "asked twice, done once");
        assert!(machine.apply(Command::Abort { partition: 1, attempt: 1, reason: String::new() }).is_err());
        assert_eq!(record(machine.apply(Command::Complete { partition: 1, attempt: 1 })).state, RecordState::Stable);
    }

    #[test]
    fn abort_closes_the_attempt_and_raises_epoch() {
        let mut machine = machine();
        record(machine.apply(Command::Begin { partition: 1, source: 1, destination: 2 }));
        let aborted = record(machine.apply(Command::Abort { partition: 1, attempt: 1, reason: "test".into() }));
        assert_eq!((aborted.owner, aborted.epoch), (1, 2));
        assert!(machine.apply(Command::Commit { partition: 1, attempt: 1, epoch: 1, lsn: 9 }).is_err());
    }

    #[test]
    fn former_copy_stands_until_it_is_released_or_the_partition_moves_on() {
        let mut machine = machine();
        let move_to = |machine: &mut Machine, attempt, source, destination, lsn| {
            record(machine.apply(Command::Begin { partition: 1, source, destination }));
            let release = machine.apply(Command::Release { partition: 1, attempt: attempt - 1 });
            let kept = record(release).former;
            record(machine.apply(Command::Commit { partition: 1, attempt, epoch: attempt, lsn }));
            record(machine.apply(Command::Complete { partition: 1, attempt }));
            kept
        };
        assert_eq!(move_to(&mut machine, 1, 1, 2, 9), None);
        let former = |host, attempt, lsn| Some(Former { host, attempt, lsn });
        assert_eq!(move_to(&mut machine, 2, 2, 1, 20), former(1, 1, 9), "not released while a roll-back may use it");
        let release = |attempt| Command::Release { partition: 1, attempt };
        assert_eq!(record(machine.apply(release(1))).former, former(2, 2, 20), "of an earlier move");
        let released = record(machine.apply(release(2)));
        assert_eq!(released.former, None);
        assert_eq!(record(machine.apply(release(2))), released, "asked twice, done once");
    }

    #[test]
    fn forced_promotion_closes_the_attempt_and_stands_until_reconciled() {
        let mut machine = machine();
        record(machine.apply(Command::Begin { partition: 1, source: 1, destination: 2 }));
        let force = |attempt| Command::ForcePromote { partition: 1, attempt, lsn: 7, policy: "lww".into() };
        assert!(machine.apply(force(2)).is_err(), "no such attempt");
        let forced = record(machine.apply(force(1)));
        assert_eq!((forced.owner, forced.epoch, &forced.state), (2, 2, &RecordState::Stable));
        assert_eq!(record(machine.apply(force(1))), forced, "asked twice, done once");
        assert!(machine.apply(Command::Commit { partition: 1, attempt: 1, epoch: 1, lsn: 9 }).is_err());
        let aborted = machine.apply(Command::Abort { partition: 1, attempt: 1, reason: String::new() });
        assert_eq!(record(aborted), forced, "the old owner reads that it is one no more");
        assert!(machine.apply(Command::Begin { partition: 1, source: 2, destination: 1 }).is_err(), "not moved on");
        let begin = |until| Command::BeginReconcile { partition: 1, attempt: 1, until };
        let until = |record: PartitionRecord| record.diverged.and_then(|diverged| diverged.until);
        assert_eq!(until(record(machine.apply(begin(20)))), Some(20));
        assert_eq!(until(record(machine.apply(begin(30)))), Some(20), "the first stands");
        let end = |attempt| Command::EndReconcile { partition: 1, attempt, outcome: "reconciled".into() };
        assert!(record(machine.apply(end(9))).diverged.is_some());
        assert!(record(machine.apply(end(1))).diverged.is_none());
        record(machine.apply(Command::Begin { partition: 1, source: 2, destination: 1 }));
    }

    #[test]
    fn record_of_an_earlier_release_has_not_diverged() {
        let stored = r#"{"partition":1,"keyspace":"k","slots":[0,9],"owner":1,"epoch":1,"state":"Stable","revision":1,"history":[]}"#;
        let read = serde_json::from_str::<PartitionRecord>(stored).unwrap();
        assert_eq!((read.diverged, read.former), (None, None));
    }

    fn split(partition: u64, epoch: u64, at: u16, child: impl Into<Option<u64>>) -> Command {
        Command::Split { partition, epoch, at, child: child.into() }
    }

    fn merge(partition: u64, epoch: u64, other: u64, other_epoch: u64) -> Command {
        Command::Merge { partition, epoch, other, other_epoch }
    }

    fn slots(machine: &Machine) -> Vec<(u16, u16)> {
        let mut slots: Vec<(u16, u16)> = machine.state.records.values().map(|record| record.slots).collect();
        slots.sort_unstable();
        slots
    }

    #[test]
    fn split_gives_each_slot_to_one_of_both() {
        let mut machine = machine();
        for refused in [split(1, 1, 0, 2), split(1, 1, 100, 2), split(1, 2, 50, 2), split(1, 1, 50, 1)] {
            assert!(machine.apply(refused.clone()).is_err(), "{refused:?}");
        }
        let child = record(machine.apply(split(1, 1, 50, 2)));
        let parent = machine.state.records[&1].clone();
        assert_eq!((parent.slots, child.slots), ((0, 49), (50, 99)));
        assert_eq!((parent.epoch, child.epoch, child.owner, &child.state), (2, 2, 1, &RecordState::Stable));
        for again in [split(1, 1, 50, 2), split(1, 1, 50, None)] {
            assert_eq!(record(machine.apply(again)), child, "asked twice, done once");
        }
        assert!(machine.apply(split(1, 2, 20, 2)).is_err(), "that id is taken");
        record(machine.apply(Command::Begin { partition: 2, source: 1, destination: 2 }));
        assert!(machine.apply(split(2, 2, 70, 3)).is_err(), "it is being moved");
        assert_eq!(record(machine.apply(split(1, 2, 20, None))).partition, 3, "the next free id");
        assert_eq!(slots(&machine), [(0, 19), (20, 49), (50, 99)]);
    }

    #[test]
    fn merge_gives_both_slots_to_the_lower_one_and_its_id_to_nobody() {
        let mut machine = machine();
        record(machine.apply(split(1, 1, 50, 2)));
        record(machine.apply(split(2, 2, 70, 3)));
        for refused in [merge(1, 2, 3, 3), merge(2, 3, 1, 2), merge(1, 1, 2, 3), merge(1, 2, 2, 2), merge(1, 2, 4, 1)] {
            assert!(machine.apply(refused.clone()).is_err(), "{refused:?}");
        }
        record(machine.apply(Command::Begin { partition: 3, source: 1, destination: 2 }));
        assert!(machine.apply(merge(2, 3, 3, 3)).is_err(), "it is being moved");
        record(machine.apply(Command::Commit { partition: 3, attempt: 1, epoch: 3, lsn: 9 }));
        record(machine.apply(Command::Complete { partition: 3, attempt: 1 }));
        let elsewhere = machine.apply(merge(2, 3, 3, 4)).unwrap_err();
        assert!(elsewhere.contains("move one of them first"), "{elsewhere}");
        let merged = record(machine.apply(merge(1, 2, 2, 3)));
        assert_eq!((merged.slots, merged.epoch, merged.owner), ((0, 69), 4, 1));
        assert_eq!(record(machine.apply(merge(1, 2, 2, 3))), merged, "asked twice, done once");
        assert_eq!(slots(&machine), [(0, 69), (70, 99)]);
        assert!(machine.apply(split(1, 4, 20, 2)).is_err(), "its id is not given again");
        assert_eq!(record(machine.apply(split(1, 4, 20, None))).partition, 4);
        assert_eq!((machine.state.merged_into(2), machine.state.merged_into(3)), (Some(1), None));
    }

    proptest! {
        /// Whatever is split and merged: each slot has one partition, epochs only rise.
        #[test]
        fn slots_are_covered_once(commands in prop::collection::vec((any::<bool>(), 0..8usize, 0..100u16), 1..60)) {
            let mut machine = machine();
            for (splits, which, at) in commands {
                let known: Vec<PartitionRecord> = machine.state.records.values().cloned().collect();
                let one = &known[which % known.len()];
                let command = match known.iter().find(|other| other.slots.0 == one.slots.1 + 1) {
                    Some(other) if !splits => merge(one.partition, one.epoch, other.partition, other.epoch),
                    _ => split(one.partition, one.epoch, at, None),
                };
                let before = machine.clone();
                match machine.apply(command) {
                    Ok(_) => {
                        let raised = machine.state.records[&one.partition].epoch;
                        prop_assert!(raised > one.epoch || machine == before);
                    }
                    Err(_) => prop_assert_eq!(&machine, &before, "a refusal changes nothing"),
                }
                let slots = slots(&machine);
                prop_assert_eq!((slots[0].0, slots[slots.len() - 1].1), (0, 99));
                prop_assert!(slots.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{:?}", slots);
                prop_assert!(machine.state.merged.keys().all(|id| !machine.state.records.contains_key(id)));
            }
        }
    }

    #[test]
    fn leadership_goes_to_who_saw_the_last_beat() {
        let mut machine = machine();
        assert!(machine.apply(Command::Lead { host: 1, beat: 0 }).is_ok());
        assert!(machine.apply(Command::Lead { host: 2, beat: 0 }).is_err(), "host 1 was first");
        assert!(machine.apply(Command::Lead { host: 1, beat: 1 }).is_ok());
        assert!(machine.apply(Command::Lead { host: 2, beat: 2 }).is_ok(), "host 1 was silent");
        assert!(machine.apply(Command::Lead { host: 1, beat: 2 }).is_err(), "it wakes up and is none any more");
        assert_eq!(machine.state.leader, Some(Leader { host: 2, beat: 3 }));
    }

    #[test]
    fn create_overlapping_slots_is_refused() {
        let create = Command::Create { partition: 2, keyspace: "default".into(), slots: (99, 200), owner: 1 };
        assert!(machine().apply(create).is_err());
    }

    fn arbitrary_command() -> impl Strategy<Value = Command> {
        let (attempt, epoch) = (0..6u64, 0..6u64);
        prop_oneof![
            (1..3u32, 1..3u32).prop_map(|(source, destination)| Command::Begin { partition: 1, source, destination }),
            (attempt.clone(), epoch).prop_map(|(attempt, epoch)| Command::Commit {
                partition: 1,
                attempt,
                epoch,
                lsn: epoch
            }),
            attempt.clone().prop_map(|attempt| Command::Release { partition: 1, attempt }),
            attempt.clone().prop_map(|attempt| Command::Abort { partition: 1, attempt, reason: String::new() }),
            attempt.clone().prop_map(|attempt| Command::Complete { partition: 1, attempt }),
            (attempt.clone(), 0..6u64).prop_map(|(attempt, lsn)| Command::ForcePromote {
                partition: 1,
                attempt,
                lsn,
                policy: String::new()
            }),
            (attempt.clone(), 0..6u64).prop_map(|(attempt, until)| Command::BeginReconcile {
                partition: 1,
                attempt,
                until
            }),
            attempt.prop_map(|attempt| Command::EndReconcile { partition: 1, attempt, outcome: String::new() }),
        ]
    }

    proptest! {
        #[test]
        fn owner_changes_only_with_the_epoch(commands in prop::collection::vec(arbitrary_command(), 1..60)) {
            let mut machine = machine();
            let mut before = machine.state.records[&1].clone();
            for command in commands {
                let refused = machine.apply(command).is_err();
                let after = machine.state.records[&1].clone();
                prop_assert!(after.epoch >= before.epoch && after.epoch <= before.epoch + 1);
                prop_assert!(after.owner == before.owner || after.epoch == before.epoch + 1);
                prop_assert!(!refused || after == before);
                let open = after.state != RecordState::Stable;
                prop_assert!(!open || after.diverged.is_none(), "a partition that has diverged is not moved");
                let former = after.former.as_ref().map(|former| former.host);
                prop_assert!(former != Some(after.owner), "the owner has more than a copy");
                before = after;
            }
        }
    }
}
