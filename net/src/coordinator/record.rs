//! What the cluster agrees on: partitions and their owners, hosts, who leads.

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
    /// RESP with TLS, TCP, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resp_tls: Option<String>,
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
