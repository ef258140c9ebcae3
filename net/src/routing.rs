//! Which host serves which slot, as this host knows it. Readers never wait.

use std::net::SocketAddr;
use std::sync::Arc;

use antumbra_engine::types::{Epoch, HostId, PartitionId};
use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::coordinator::{ClusterState, HostInfo, PartitionRecord};

/// One partition's route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The partition.
    pub partition: PartitionId,
    /// First and last slot.
    pub slots: (u16, u16),
    /// The owner.
    pub owner: HostId,
    /// In which epoch.
    pub epoch: Epoch,
}

/// Addresses of a host.
///
/// # Example
/// ```
/// use antumbra_net::routing::Addresses;
/// let at = |port: u16| std::net::SocketAddr::from(([10, 0, 0, 1], port));
/// let host = Addresses { control: at(7379), bulk: at(7380), resp: at(6379), resp_tls: Some(at(6390)) };
/// assert_eq!((host.for_clients(true), host.for_clients(false)), (at(6390), at(6379)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Control plane.
    pub control: SocketAddr,
    /// Bulk plane.
    pub bulk: SocketAddr,
    /// RESP.
    pub resp: SocketAddr,
    /// RESP with TLS.
    pub resp_tls: Option<SocketAddr>,
}

impl Addresses {
    /// Where clients find it: with TLS, if they speak that and it does, too.
    #[must_use]
    pub fn for_clients(&self, tls: bool) -> SocketAddr {
        self.resp_tls.filter(|_| tls).unwrap_or(self.resp)
    }
}

/// An immutable picture of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Ascending by slots; not every slot need be served.
    pub routes: Vec<Route>,
    /// Ascending by host.
    pub hosts: Vec<(HostId, Addresses)>,
    /// Partitions that have become a part of another one, with the one that has their keys now; ascending.
    pub merged: Vec<(PartitionId, PartitionId)>,
}

impl Topology {
    /// The route of a slot.
    #[must_use]
    pub fn route(&self, slot: u16) -> Option<&Route> {
        let index = self.routes.partition_point(|route| route.slots.1 < slot);
        self.routes.get(index).filter(|route| route.slots.0 <= slot)
    }

    /// The addresses of a host.
    #[must_use]
    pub fn addresses(&self, host: HostId) -> Option<&Addresses> {
        self.hosts.iter().find(|(other, _)| *other == host).map(|(_, addresses)| addresses)
    }
}

/// The table. Clones share it.
///
/// # Example
/// ```
/// use antumbra_net::resp::slot::slot_of;
/// use antumbra_net::routing::RoutingTable;
/// let table = RoutingTable::default();
/// let changes = table.changes(); // to be woken by
/// let routes = table.load(); // of one moment, without a lock
/// assert!(routes.route(slot_of(b"key")).is_none(), "nobody owns anything yet");
/// assert!(routes.addresses(antumbra_engine::types::HostId(1)).is_none());
/// # drop(changes);
///
/// // What the coordinator says, all of it or one record of a partition.
/// use antumbra_net::coordinator::{ClusterState, PartitionRecord, RecordState};
/// table.update_record(&PartitionRecord {
///     partition: 1,
///     keyspace: String::new(),
///     slots: (0, 16_383),
///     owner: 2,
///     epoch: 1,
///     state: RecordState::Stable,
///     revision: 1,
///     history: Vec::new(),
///     diverged: None,
///     former: None,
/// });
/// assert_eq!(table.load().route(7).expect("served").owner.0, 2);
/// table.update(&ClusterState::default());
/// ```
#[derive(Clone, Debug, Default)]
pub struct RoutingTable {
    current: Arc<ArcSwap<Topology>>,
    changes: watch::Sender<()>,
}

impl RoutingTable {
    /// The present picture.
    #[must_use]
    pub fn load(&self) -> Arc<Topology> {
        self.current.load_full()
    }

    /// Tells of each change from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Takes everything the coordinator knows.
    pub fn update(&self, state: &ClusterState) {
        self.change(|next| {
            for record in state.records.values() {
                merge_record(next, record);
            }
            next.routes.retain(|route| !state.merged.contains_key(&route.partition.0));
            next.routes.sort_by_key(|route| route.slots);
            // None is ever taken back, so a state with fewer of them is an older one.
            if state.merged.len() > next.merged.len() {
                let all = state.merged.keys().filter_map(|from| Some((*from, state.merged_into(*from)?)));
                next.merged = all.map(|(from, into)| (PartitionId(from), PartitionId(into))).collect();
            }
            for info in state.hosts.values() {
                merge_host(next, info);
            }
        });
    }

    /// Takes one record; an older epoch than the known one changes nothing. Nor do other slots: behind a split or a merge
    /// they are taken with those of the other half alone, so that each slot has a route.
    pub fn update_record(&self, record: &PartitionRecord) {
        self.change(|next| {
            let known = next.routes.iter().find(|known| known.partition.0 == record.partition);
            if known.is_none_or(|known| known.slots == record.slots) {
                merge_record(next, record);
            }
        });
    }

    fn change(&self, merge: impl Fn(&mut Topology)) {
        let before = self.current.rcu(|topology| {
            let mut next = Topology::clone(topology);
            merge(&mut next);
            next
        });
        if *before != *self.load() {
            self.changes.send_replace(());
        }
    }
}

fn merge_record(topology: &mut Topology, record: &PartitionRecord) {
    let route = Route {
        partition: PartitionId(record.partition),
        slots: record.slots,
        owner: HostId(record.owner),
        epoch: Epoch(record.epoch),
    };
    match topology.routes.iter_mut().find(|known| known.partition == route.partition) {
        Some(known) if known.epoch < route.epoch => *known = route,
        Some(_) => {}
        None => {
            topology.routes.push(route);
            topology.routes.sort_by_key(|route| route.slots);
        }
    }
}

fn merge_host(topology: &mut Topology, info: &HostInfo) {
    let parsed = (info.control.parse(), info.bulk.parse(), info.resp.parse());
    let (Ok(control), Ok(bulk), Ok(resp)) = parsed else {
        tracing::warn!(?info, "a host without usable addresses");
        return;
    };
    let resp_tls = info.resp_tls.as_ref().and_then(|address| address.parse().ok());
    let addresses = Addresses { control, bulk, resp, resp_tls };
    let host = HostId(info.host);
    topology.hosts.retain(|(other, _)| *other != host);
    topology.hosts.push((host, addresses));
    topology.hosts.sort_by_key(|(host, _)| *host);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::coordinator::RecordState;

    fn record(epoch: u64, owner: u32) -> PartitionRecord {
        PartitionRecord {
            partition: 1,
            keyspace: "default".into(),
            slots: (10, 20),
            owner,
            epoch,
            state: RecordState::Stable,
            revision: epoch,
            history: Vec::new(),
            diverged: None,
            former: None,
        }
    }

    fn of(partition: u64, slots: (u16, u16), epoch: u64) -> PartitionRecord {
        PartitionRecord { partition, slots, ..record(epoch, 1) }
    }

    fn state(records: Vec<PartitionRecord>, merged: &[(u64, u64)]) -> ClusterState {
        ClusterState {
            records: records.into_iter().map(|record| (record.partition, record)).collect(),
            merged: merged.iter().copied().collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn each_slot_has_a_route_at_every_moment_of_a_split_and_a_merge() {
        let table = RoutingTable::default();
        let all_routed = |table: &RoutingTable| (10..=20).all(|slot| table.load().route(slot).is_some());
        let route = |slot| table.load().route(slot).map(|route| route.partition.0);
        table.update(&state(vec![of(1, (10, 20), 1)], &[]));
        // The parent's record alone would leave the child's slots without a route.
        table.update_record(&of(1, (10, 14), 2));
        assert!(all_routed(&table) && route(17) == Some(1));
        table.update_record(&of(2, (15, 20), 2));
        assert!(all_routed(&table));
        table.update(&state(vec![of(1, (10, 14), 2), of(2, (15, 20), 2)], &[]));
        assert!(all_routed(&table));
        assert_eq!((route(14), route(15)), (Some(1), Some(2)));
        // The same of a merge, and what was read before it comes late.
        table.update_record(&of(1, (10, 20), 3));
        assert_eq!((route(14), route(15)), (Some(1), Some(2)));
        let merged = state(vec![of(1, (10, 20), 3)], &[(2, 1)]);
        table.update(&merged);
        assert_eq!((table.load().routes.len(), route(15)), (1, Some(1)));
        assert_eq!(table.load().merged, [(PartitionId(2), PartitionId(1))]);
        table.update_record(&of(2, (15, 20), 2));
        assert_eq!(route(15), Some(1));
        table.update(&merged);
        assert_eq!(table.load().routes.len(), 1);
    }

    proptest! {
        #[test]
        fn update_in_any_order_keeps_the_highest_epoch(epochs in prop::collection::vec(1..50u64, 1..20)) {
            let table = RoutingTable::default();
            for epoch in &epochs {
                table.update_record(&record(*epoch, *epoch as u32));
            }
            let highest = epochs.iter().max().copied().unwrap_or(0);
            let topology = table.load();
            prop_assert_eq!(topology.route(15).map(|route| route.owner), Some(HostId(highest as u32)));
            prop_assert_eq!(topology.route(21), None);
            prop_assert_eq!(topology.route(9), None);
        }
    }
}
