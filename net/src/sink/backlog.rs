//! What a sink has still to be told, and when it is tried again. No I/O and no clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use antumbra_engine::types::PartitionId;

use crate::routing::{Route, Topology};

use super::SinkState;

/// Between two tries, doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What is confirmed is looked at again after this time.
const AUDIT: Duration = Duration::from_secs(10);

/// What a sink is to say about one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Where all hosts serve clients.
    Hosts(Vec<(u32, SocketAddr)>),
    /// Where a partition is.
    Partition { partition: u64, epoch: u64, owner: u32, address: SocketAddr },
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Hosts,
    Partition(u64),
}

impl Entry {
    fn target(&self) -> Target {
        match self {
            Entry::Hosts(_) => Target::Hosts,
            Entry::Partition { partition, .. } => Target::Partition(*partition),
        }
    }

    /// In words.
    pub fn wanted(&self) -> String {
        match self {
            Entry::Hosts(hosts) => {
                let words: Vec<String> =
                    hosts.iter().map(|(host, address)| format!("host {host} at {address}")).collect();
                words.join(", ")
            }
            Entry::Partition { epoch, owner, address, .. } => format!("host {owner} at {address}, epoch {epoch}"),
        }
    }
}

/// The entries of one sink.
#[derive(Debug)]
pub(super) struct Backlog {
    sink: String,
    /// Whether it tells the addresses for clients that speak TLS, where a host has one.
    tls: bool,
    items: BTreeMap<Target, Item>,
}

#[derive(Debug)]
struct Item {
    entry: Entry,
    due: Instant,
    pause: Duration,
    confirmed: Option<String>,
    since: u64,
    last_error: Option<String>,
}

impl Backlog {
    pub fn new(sink: String, tls: bool) -> Backlog {
        Backlog { sink, tls, items: BTreeMap::new() }
    }

    /// Takes what the routes say now; what has changed is due.
    pub fn take(&mut self, topology: &Topology, takes: impl Fn(&Entry) -> bool, now: Instant) {
        for entry in entries(topology, self.tls).into_iter().filter(takes) {
            let item = Item { entry, due: now, pause: RETRY.0, confirmed: None, since: 0, last_error: None };
            match self.items.get_mut(&item.entry.target()) {
                Some(known) if known.entry == item.entry => {}
                Some(known) => *known = item,
                None => drop(self.items.insert(item.entry.target(), item)),
            }
        }
    }

    /// What is to be published now.
    pub fn due(&self, now: Instant) -> Option<Entry> {
        let ready = self.items.values().filter(|item| item.due <= now);
        ready.min_by_key(|item| item.due).map(|item| item.entry.clone())
    }

    /// How long nothing is due.
    pub fn wait(&self, now: Instant) -> Duration {
        let next = self.items.values().map(|item| item.due).min();
        next.map_or(AUDIT, |next| next.saturating_duration_since(now))
    }

    /// What came of publishing an entry.
    pub fn published(&mut self, entry: &Entry, result: Result<String, String>, now: Instant, wall_ms: u64) {
        let Some(item) = self.items.get_mut(&entry.target()).filter(|item| item.entry == *entry) else {
            return;
        };
        match result {
            Ok(says) => {
                if item.confirmed.as_ref() != Some(&says) {
                    (item.confirmed, item.since) = (Some(says), wall_ms);
                }
                (item.last_error, item.pause, item.due) = (None, RETRY.0, now + AUDIT);
            }
            Err(cause) => {
                if item.confirmed.take().is_some() || item.last_error.is_none() {
                    item.since = wall_ms;
                }
                (item.last_error, item.due) = (Some(cause), now + item.pause);
                item.pause = (item.pause * 2).min(RETRY.1);
            }
        }
    }

    pub fn states(&self) -> Vec<SinkState> {
        let state = |(target, item): (&Target, &Item)| SinkState {
            sink: self.sink.clone(),
            target: match target {
                Target::Hosts => "hosts".into(),
                Target::Partition(partition) => format!("partition {partition}"),
            },
            wanted: item.entry.wanted(),
            confirmed: item.confirmed.clone(),
            since: item.since,
            last_error: item.last_error.clone(),
        };
        self.items.iter().map(state).collect()
    }
}

/// A partition whose owner's address is not known yet is left out. One that has become a part of another one is where that
/// one is, for clients that know its name; the epoch of the whole is above those of its parts.
fn entries(topology: &Topology, tls: bool) -> Vec<Entry> {
    let hosts: Vec<_> = topology.hosts.iter().map(|(host, addresses)| (host.0, addresses.for_clients(tls))).collect();
    let entry = |partition: PartitionId, route: &Route| {
        let address = topology.addresses(route.owner)?.for_clients(tls);
        let (epoch, owner) = (route.epoch.0, route.owner.0);
        Some(Entry::Partition { partition: partition.0, epoch, owner, address })
    };
    let routed = topology.routes.iter().filter_map(|route| entry(route.partition, route));
    let merged = topology.merged.iter().filter_map(|(from, into)| {
        let route = topology.routes.iter().find(|route| route.partition == *into)?;
        entry(*from, route)
    });
    let partitions: Vec<Entry> = routed.chain(merged).collect();
    let hosts = (!hosts.is_empty()).then_some(Entry::Hosts(hosts));
    hosts.into_iter().chain(partitions).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use antumbra_engine::types::{Epoch, HostId};

    use super::*;
    use crate::routing::Addresses;

    fn topology(epoch: u64, owner: u32) -> Topology {
        let address = |host: u32| SocketAddr::from(([10, 0, 0, host as u8], 6379));
        let addresses =
            |host| Addresses { control: address(host), bulk: address(host), resp: address(host), resp_tls: None };
        let (partition, owner, epoch) = (PartitionId(7), HostId(owner), Epoch(epoch));
        Topology {
            routes: vec![Route { partition, slots: (0, 9), owner, epoch }],
            hosts: vec![(HostId(1), addresses(1)), (HostId(2), addresses(2))],
            merged: Vec::new(),
        }
    }

    fn backlog(now: Instant) -> Backlog {
        let mut backlog = Backlog::new("test".into(), false);
        backlog.take(&topology(1, 1), |entry| matches!(entry, Entry::Partition { .. }), now);
        backlog
    }

    #[test]
    fn failure_is_tried_again_ever_later_and_confirmation_ends_it() {
        let now = Instant::now();
        let mut backlog = backlog(now);
        let (mut at, mut pauses) = (now, Vec::new());
        for _ in 0..8 {
            let entry = backlog.due(at).unwrap();
            backlog.published(&entry, Err("down".into()), at, 1);
            assert_eq!(backlog.due(at), None);
            pauses.push(backlog.wait(at).as_millis());
            at += backlog.wait(at);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backlog.states()[0].last_error.as_deref(), Some("down"));
        let entry = backlog.due(at).unwrap();
        backlog.published(&entry, Ok("host 1".into()), at, 2);
        let state = &backlog.states()[0];
        assert_eq!((state.confirmed.as_deref(), state.last_error.as_deref(), state.since), (Some("host 1"), None, 2));
        assert_eq!(backlog.wait(at), AUDIT);
        assert!(backlog.due(at + AUDIT).is_some(), "looked at again");
    }

    #[test]
    fn newer_route_is_due_at_once_and_late_news_of_the_old_one_is_dropped() {
        let now = Instant::now();
        let mut backlog = backlog(now);
        let old = backlog.due(now).unwrap();
        backlog.published(&old, Ok("old".into()), now, 1);
        backlog.take(&topology(2, 2), |_| true, now);
        let due = backlog.due(now).unwrap();
        backlog.published(&old, Ok("old".into()), now, 2);
        assert!(backlog.states().iter().all(|state| state.confirmed.is_none()));
        assert!(due != old && backlog.due(now).is_some());
        let mut unroutable = topology(3, 9);
        unroutable.hosts.clear();
        backlog.take(&unroutable, |_| true, now);
        assert_eq!(backlog.states()[1].wanted, "host 2 at 10.0.0.2:6379, epoch 2", "an owner without an address");
    }

    #[test]
    fn merged_partition_is_where_the_whole_is() {
        let now = Instant::now();
        let mut backlog = backlog(now);
        let mut after = topology(2, 2);
        after.routes[0].partition = PartitionId(3);
        after.merged = vec![(PartitionId(7), PartitionId(3))];
        backlog.take(&after, |entry| matches!(entry, Entry::Partition { .. }), now);
        let wanted: Vec<_> = backlog.states().into_iter().map(|state| (state.target, state.wanted)).collect();
        let at = "host 2 at 10.0.0.2:6379, epoch 2";
        assert_eq!(wanted, [("partition 3".into(), at.into()), ("partition 7".into(), at.to_string())]);
    }

    #[test]
    fn tls_is_told_where_a_host_speaks_it() {
        let now = Instant::now();
        let mut backlog = Backlog::new("test".into(), true);
        let mut half = topology(1, 1);
        half.hosts[0].1.resp_tls = Some(([10, 0, 0, 1], 6390).into());
        backlog.take(&half, |_| true, now);
        let wanted: Vec<_> = backlog.states().into_iter().map(|state| state.wanted).collect();
        assert_eq!(wanted, ["host 1 at 10.0.0.1:6390, host 2 at 10.0.0.2:6379", "host 1 at 10.0.0.1:6390, epoch 1"]);
    }
}
