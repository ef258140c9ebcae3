//! What lies where in etcd, and what a command reads of it.
//!
//! | key below the prefix | value | lives |
//! |---|---|---|
//! | `format` | `1`, the version of this layout | for ever |
//! | `cluster` | the authority of the Antumbra cluster that this prefix belongs to | for ever |
//! | `attempts` | the last attempt id given out, decimal | for ever |
//! | `leader` | who decides on moves, and its last beat, as JSON | for ever |
//! | `merged/ID` | the id of the partition that this one has become a part of, decimal; it has no record any more | for ever |
//! | `partition/ID` | a [`PartitionRecord`](super::super::PartitionRecord) as JSON | for ever |
//! | `host/ID` | a [`HostInfo`](super::super::HostInfo) as JSON | as long as the host's lease |

use etcd_client::{Compare, CompareOp, GetOptions, GetResponse, KeyValue, TxnOp, TxnOpResponse, TxnResponse};

use crate::coordinator::{ClusterState, Command};

use super::follow::Picture;

/// The version of the layout.
pub(super) const FORMAT: &[u8] = b"1";

/// The keys under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
}

/// What a key is about.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Partition(u64),
    Merged(u64),
    Host(u32),
    Attempts,
    Leader,
    Format,
    Cluster,
}

impl Layout {
    pub fn new(prefix: &str) -> Layout {
        Layout { prefix: prefix.into() }
    }

    /// Where everything begins.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    pub fn format(&self) -> String {
        format!("{}/format", self.prefix)
    }

    pub fn cluster(&self) -> String {
        format!("{}/cluster", self.prefix)
    }

    pub fn host(&self, host: u32) -> String {
        format!("{}/host/{host}", self.prefix)
    }

    fn attempts(&self) -> String {
        format!("{}/attempts", self.prefix)
    }

    fn leader(&self) -> String {
        format!("{}/leader", self.prefix)
    }

    fn partitions(&self) -> String {
        format!("{}/partition/", self.prefix)
    }

    fn all_merged(&self) -> String {
        format!("{}/merged/", self.prefix)
    }

    fn merged(&self, partition: u64) -> String {
        format!("{}/merged/{partition}", self.prefix)
    }

    fn partition(&self, partition: u64) -> String {
        format!("{}/partition/{partition}", self.prefix)
    }

    fn place(&self, key: &str) -> Option<Place> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        match rest.split_once('/') {
            Some(("partition", id)) => id.parse().ok().map(Place::Partition),
            Some(("merged", id)) => id.parse().ok().map(Place::Merged),
            Some(("host", id)) => id.parse().ok().map(Place::Host),
            None if rest == "attempts" => Some(Place::Attempts),
            None if rest == "leader" => Some(Place::Leader),
            None if rest == "format" => Some(Place::Format),
            None if rest == "cluster" => Some(Place::Cluster),
            _ => None,
        }
    }

    /// Takes what a key says now, or that it is gone, into `state`.
    pub fn take(&self, state: &mut ClusterState, key: &[u8], value: Option<&[u8]>) -> Result<(), String> {
        let key = std::str::from_utf8(key).map_err(|_| "a key that is no text".to_string())?;
        let damaged =
            |cause: String| format!("etcd key {key}: {cause}; it was not written by this release of Antumbra");
        match (self.place(key), value) {
            (Some(Place::Partition(id)), Some(value)) => {
                let record: crate::coordinator::PartitionRecord =
                    serde_json::from_slice(value).map_err(|cause| damaged(cause.to_string()))?;
                if record.partition != id {
                    return Err(damaged(format!("it is about partition {}", record.partition)));
                }
                state.records.insert(id, record);
            }
            (Some(Place::Host(id)), Some(value)) => {
                let info: crate::coordinator::HostInfo =
                    serde_json::from_slice(value).map_err(|cause| damaged(cause.to_string()))?;
                if info.host != id {
                    return Err(damaged(format!("it is about host {}", info.host)));
                }
                state.hosts.insert(id, info);
            }
            (Some(Place::Merged(id)), Some(value)) => {
                let text = std::str::from_utf8(value).map_err(|cause| damaged(cause.to_string()))?;
                state.merged.insert(id, text.parse().map_err(|_| damaged("no number".into()))?);
            }
            (Some(Place::Attempts), Some(value)) => {
                let text = std::str::from_utf8(value).map_err(|cause| damaged(cause.to_string()))?;
                state.attempts = text.parse().map_err(|_| damaged("no number".into()))?;
            }
            (Some(Place::Leader), Some(value)) => {
                state.leader = Some(serde_json::from_slice(value).map_err(|cause| damaged(cause.to_string()))?);
            }
            (Some(Place::Host(id)), None) => drop(state.hosts.remove(&id)),
            // Nobody deletes these: somebody has been at work by hand. What is known stays.
            (Some(Place::Partition(id)), None) if state.merged.contains_key(&id) => drop(state.records.remove(&id)),
            (Some(Place::Partition(_) | Place::Merged(_) | Place::Attempts | Place::Leader), None) => {
                tracing::error!(key, "a key of the coordinator was deleted in etcd");
            }
            (Some(Place::Format | Place::Cluster), _) => {}
            (None, _) => tracing::debug!(key, "a key of somebody else under the prefix"),
        }
        Ok(())
    }

    /// Takes every key that was read.
    pub fn take_all(&self, state: &mut ClusterState, kvs: &[KeyValue]) -> Result<(), String> {
        kvs.iter().try_for_each(|kv| self.take(state, kv.key(), Some(kv.value())))
    }
}

/// What a command reads.
#[derive(Debug)]
enum Key {
    One(String),
    /// Every key that begins so, also those that are to come.
    Every(String),
    /// The same for the answer alone: nothing is decided on it, and it may change.
    Shown(String),
}

/// What a command reads, decides on and compares when it writes.
#[derive(Debug)]
pub(super) struct Scope {
    layout: Layout,
    keys: Vec<Key>,
}

/// What was read at one revision.
#[derive(Debug)]
pub(super) struct Seen {
    /// As much of the cluster's state as the command needs.
    pub state: ClusterState,
    /// Nothing of it has changed if these hold.
    pub compares: Vec<Compare>,
}

impl Scope {
    /// `None` for the commands that decide nothing.
    pub fn of(layout: &Layout, command: &Command) -> Option<Scope> {
        let record = |partition: u64| Key::One(layout.partition(partition));
        let keys = match command {
            Command::Register(_) | Command::List => return None,
            // Two partitions that overlap, or have one id, made at the same time: neither reads the other's record.
            Command::Create { .. } | Command::Split { .. } | Command::Merge { .. } => {
                vec![Key::Every(layout.partitions()), Key::Every(layout.all_merged())]
            }
            Command::Lead { .. } => vec![Key::One(layout.leader()), Key::Shown(layout.all())],
            Command::Begin { partition, destination, .. } => {
                vec![record(*partition), Key::One(layout.host(*destination)), Key::One(layout.attempts())]
            }
            Command::Read { partition }
            | Command::Commit { partition, .. }
            | Command::Abort { partition, .. }
            | Command::ForcePromote { partition, .. }
            | Command::BeginReconcile { partition, .. }
            | Command::EndReconcile { partition, .. }
            | Command::Complete { partition, .. }
            | Command::Release { partition, .. } => vec![record(*partition)],
        };
        Some(Scope { layout: layout.clone(), keys })
    }

    /// Reads it, as a part of a transaction.
    pub fn reads(&self) -> Vec<TxnOp> {
        let read = |key: &Key| match key {
            Key::One(key) => TxnOp::get(key.as_str(), None),
            Key::Every(prefix) | Key::Shown(prefix) => {
                TxnOp::get(prefix.as_str(), Some(GetOptions::new().with_prefix()))
            }
        };
        self.keys.iter().map(read).collect()
    }

    /// The same as the watch has shown it last, of a command that is about one record. Nothing if it does not show that, and of a
    /// `Begin`: what must not be asked twice is to find out by a read whether anybody answers.
    pub fn shown(&self, picture: &Picture) -> Option<Seen> {
        let [Key::One(key)] = self.keys.as_slice() else { return None };
        let Some(Place::Partition(id)) = self.layout.place(key) else { return None };
        // The picture keeps what somebody has deleted by hand.
        let revision = picture.revision_of(key).filter(|revision| *revision > 0)?;
        let mut state = ClusterState::default();
        state.records.insert(id, picture.state.records.get(&id)?.clone());
        Some(Seen { state, compares: vec![Compare::mod_revision(key.as_str(), CompareOp::Equal, revision)] })
    }

    /// What those reads found.
    pub fn seen(&self, response: &TxnResponse) -> Result<Seen, String> {
        let revision = response.header().map_or(0, |header| header.revision());
        let mut seen = Seen { state: ClusterState::default(), compares: Vec::new() };
        let answers = response.op_responses();
        if answers.len() != self.keys.len() {
            return Err(format!("etcd answered {} reads of {}", answers.len(), self.keys.len()));
        }
        for (key, answer) in self.keys.iter().zip(&answers) {
            let TxnOpResponse::Get(found) = answer else {
                return Err("etcd did not answer a read".into());
            };
            self.layout.take_all(&mut seen.state, found.kvs())?;
            seen.compares.extend(unchanged(key, found, revision));
        }
        Ok(seen)
    }

    /// Writes what distinguishes `after` from what was seen.
    pub fn writes(&self, seen: &Seen, after: &ClusterState) -> Result<Vec<TxnOp>, String> {
        let mut writes = Vec::new();
        // Before the records: who follows sees a record go whose partition is a part of another one by then.
        for (id, into) in after.merged.iter().filter(|(id, _)| !seen.state.merged.contains_key(id)) {
            writes.push(TxnOp::put(self.layout.merged(*id), into.to_string(), None));
        }
        for id in seen.state.records.keys().filter(|id| !after.records.contains_key(id)) {
            writes.push(TxnOp::delete(self.layout.partition(*id), None));
        }
        for (id, record) in &after.records {
            if seen.state.records.get(id) != Some(record) {
                let value = serde_json::to_vec(record).map_err(|cause| cause.to_string())?;
                writes.push(TxnOp::put(self.layout.partition(*id), value, None));
            }
        }
        if let Some(leader) = after.leader.as_ref().filter(|_| after.leader != seen.state.leader) {
            let value = serde_json::to_vec(leader).map_err(|cause| cause.to_string())?;
            writes.push(TxnOp::put(self.layout.leader(), value, None));
        }
        if after.attempts != seen.state.attempts {
            writes.push(TxnOp::put(self.layout.attempts(), after.attempts.to_string(), None));
        }
        assert_eq!(after.hosts, seen.state.hosts, "INV-OWNER: only a host itself writes where it is");
        Ok(writes)
    }
}

fn unchanged(key: &Key, found: &GetResponse, revision: i64) -> Option<Compare> {
    match key {
        // A key that is not there has revision 0.
        Key::One(key) => {
            let known = found.kvs().first().map_or(0, KeyValue::mod_revision);
            Some(Compare::mod_revision(key.as_str(), CompareOp::Equal, known))
        }
        Key::Every(prefix) => Some(Compare::mod_revision(prefix.as_str(), CompareOp::Less, revision + 1).with_prefix()),
        Key::Shown(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn place_knows_its_own_keys_alone() {
        let layout = Layout::new("/a");
        assert_eq!(layout.place(&layout.partition(7)), Some(Place::Partition(7)));
        assert_eq!(layout.place(&layout.merged(7)), Some(Place::Merged(7)));
        assert_eq!(layout.place(&layout.host(3)), Some(Place::Host(3)));
        assert_eq!(layout.place(&layout.attempts()), Some(Place::Attempts));
        assert_eq!(layout.place(&layout.format()), Some(Place::Format));
        assert_eq!(layout.place(&layout.leader()), Some(Place::Leader));
        for other in ["/ab/partition/7", "/a/partition/x", "/a/partition/1/2", "/a/else", "/b/attempts"] {
            assert_eq!(layout.place(other), None, "{other}");
        }
    }

    #[test]
    fn take_refuses_what_it_does_not_understand() {
        let (layout, mut state) = (Layout::new("/a"), ClusterState::default());
        for (key, value) in [("/a/partition/1", "{}"), ("/a/attempts", "many"), ("/a/host/1", "[]")] {
            let refused = layout.take(&mut state, key.as_bytes(), Some(value.as_bytes())).unwrap_err();
            assert!(refused.contains(key), "{refused}");
        }
        assert_eq!(state, ClusterState::default());
    }

    #[test]
    fn take_of_a_host_that_is_gone_forgets_it() {
        let (layout, mut state) = (Layout::new("/a"), ClusterState::default());
        let info = br#"{"host":1,"control":"c","bulk":"b","resp":"r"}"#;
        layout.take(&mut state, b"/a/host/1", Some(info)).unwrap();
        assert_eq!(state.hosts.len(), 1);
        layout.take(&mut state, b"/a/host/1", None).unwrap();
        assert!(state.hosts.is_empty());
    }
}
