//! What `CLUSTER` tells of the cluster.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use antumbra_engine::types::HostId;

use crate::routing::Topology;

use super::reply::Reply;
use super::slot;

pub(crate) const HELP: &[&str] = &[
    "COUNTKEYSINSLOT slot",
    "GETKEYSINSLOT slot count",
    "INFO",
    "KEYSLOT key",
    "LINKS",
    "MYID",
    "MYSHARDID",
    "NODES",
    "REPLICAS node",
    "SHARDS",
    "SLOTS",
];

/// Whether there is a host with this id.
pub(crate) fn is_known(topology: &Topology, id: &[u8]) -> bool {
    topology.hosts.iter().any(|(host, _)| node_id(*host).as_bytes() == id)
}

pub(crate) fn node_id(host: HostId) -> String {
    format!("{:040x}", host.0)
}

/// With `tls`, as for a client that speaks it; so do the others.
pub(crate) fn slots(topology: &Topology, tls: bool) -> Reply {
    let rows = topology.routes.iter().filter_map(|route| {
        let address = topology.addresses(route.owner)?.for_clients(tls);
        let node = Reply::Array(vec![
            Reply::text(address.ip().to_string()),
            Reply::Integer(i64::from(address.port())),
            Reply::text(node_id(route.owner)),
            // No names beside the address.
            Reply::Array(Vec::new()),
        ]);
        Some(Reply::Array(vec![
            Reply::Integer(i64::from(route.slots.0)),
            Reply::Integer(i64::from(route.slots.1)),
            node,
        ]))
    });
    Reply::Array(rows.collect())
}

pub(crate) fn shards(topology: &Topology, tls: bool) -> Reply {
    let text = |key: &str, value: String| (Reply::text(key), Reply::text(value));
    let shards = topology.hosts.iter().map(|(host, addresses)| {
        let slots = topology.routes.iter().filter(|route| route.owner == *host);
        let slots = slots.flat_map(|route| [route.slots.0, route.slots.1]).map(|slot| Reply::Integer(i64::from(slot)));
        let port = |name: &str, address: SocketAddr| (Reply::text(name), Reply::Integer(i64::from(address.port())));
        let address = addresses.for_clients(tls).ip().to_string();
        let mut node = vec![text("id", node_id(*host)), port("port", addresses.resp)];
        node.extend(addresses.resp_tls.map(|address| port("tls-port", address)));
        node.extend([
            text("ip", address.clone()),
            text("endpoint", address),
            text("role", "master".into()),
            (Reply::text("replication-offset"), Reply::Integer(0)),
            text("health", "online".into()),
        ]);
        let node = Reply::Map(node);
        Reply::Map(vec![
            (Reply::text("slots"), Reply::Array(slots.collect())),
            (Reply::text("nodes"), Reply::Array(vec![node])),
        ])
    });
    Reply::Array(shards.collect())
}

pub(crate) fn nodes(topology: &Topology, myself: HostId, tls: bool) -> String {
    let mut text = String::new();
    for (host, addresses) in &topology.hosts {
        let flags = if *host == myself { "myself,master" } else { "master" };
        let epoch =
            topology.routes.iter().filter(|route| route.owner == *host).map(|route| route.epoch.0).max().unwrap_or(0);
        let resp = addresses.for_clients(tls);
        text.push_str(&format!("{} {resp}@{} {flags} - 0 0 {epoch} connected", node_id(*host), resp.port()));
        for route in topology.routes.iter().filter(|route| route.owner == *host) {
            text.push_str(&match route.slots {
                (first, last) if first == last => format!(" {first}"),
                (first, last) => format!(" {first}-{last}"),
            });
        }
        text.push('\n');
    }
    text
}

pub(crate) fn info(topology: &Topology, myself: HostId) -> String {
    let slots: u32 = topology.routes.iter().map(|route| u32::from(route.slots.1 - route.slots.0) + 1).sum();
    let state = if slots == u32::from(slot::SLOTS) { "ok" } else { "fail" };
    let owners: BTreeSet<HostId> = topology.routes.iter().map(|route| route.owner).collect();
    let epoch = topology.routes.iter().map(|route| route.epoch.0).max().unwrap_or(0);
    let own = topology.routes.iter().filter(|route| route.owner == myself);
    let my_epoch = own.map(|route| route.epoch.0).max().unwrap_or(0);
    format!(
        "cluster_enabled:1\r\ncluster_state:{state}\r\ncluster_slots_assigned:{slots}\r\ncluster_slots_ok:{slots}\r\n\
         cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:{}\r\ncluster_size:{}\r\n\
         cluster_current_epoch:{epoch}\r\ncluster_my_epoch:{my_epoch}\r\n",
        topology.hosts.len(),
        owners.len()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use antumbra_engine::types::{Epoch, PartitionId};

    use super::*;
    use crate::routing::{Addresses, Route};

    fn topology() -> Topology {
        let route = |id: u64, slots, owner, epoch| Route {
            partition: PartitionId(id),
            slots,
            owner: HostId(owner),
            epoch: Epoch(epoch),
        };
        let addresses = |port| {
            let at = |port| std::net::SocketAddr::from(([10, 0, 0, 1], port));
            Addresses {
                control: at(port + 1),
                bulk: at(port + 2),
                resp: at(port),
                resp_tls: (port > 10).then(|| at(port + 3)),
            }
        };
        Topology {
            routes: vec![route(1, (0, 99), 1, 3), route(2, (100, 100), 2, 1), route(3, (101, 16_383), 1, 2)],
            hosts: vec![(HostId(1), addresses(10)), (HostId(2), addresses(20)), (HostId(3), addresses(30))],
            merged: Vec::new(),
        }
    }

    #[test]
    fn nodes_and_info_name_owners_slots_and_epochs() {
        let topology = topology();
        let text = nodes(&topology, HostId(2), false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("{} 10.0.0.1:10@10 master - 0 0 3 connected 0-99 101-16383", node_id(HostId(1))));
        assert_eq!(lines[1], format!("{} 10.0.0.1:20@20 myself,master - 0 0 1 connected 100", node_id(HostId(2))));
        assert!(lines[2].ends_with("connected"), "{}", lines[2]);
        let over_tls = nodes(&topology, HostId(2), true);
        let ports: Vec<&str> = over_tls.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
        assert_eq!(ports, ["10.0.0.1:10@10", "10.0.0.1:23@23", "10.0.0.1:33@33"], "host 1 has no TLS");
        let info = info(&topology, HostId(2));
        for line in ["cluster_state:ok", "cluster_size:2", "cluster_known_nodes:3", "cluster_current_epoch:3"] {
            assert!(info.contains(line), "{line}: {info}");
        }
        let mut fewer = topology.clone();
        fewer.routes.pop();
        assert!(super::info(&fewer, HostId(1)).contains("cluster_state:fail"));
    }

    #[test]
    fn slots_and_shards_list_every_range() {
        let topology = topology();
        let Reply::Array(rows) = slots(&topology, false) else { panic!("a list") };
        assert_eq!(rows.len(), 3);
        let Reply::Array(row) = &rows[1] else { panic!("a list") };
        assert_eq!(row[..2], [Reply::Integer(100), Reply::Integer(100)]);
        let Reply::Array(shards) = shards(&topology, false) else { panic!("a list") };
        let Reply::Map(first) = &shards[0] else { panic!("a map") };
        let numbers = [0, 99, 101, 16_383].map(Reply::Integer);
        assert_eq!(first[0], (Reply::text("slots"), Reply::Array(numbers.to_vec())));
        assert!(is_known(&topology, node_id(HostId(3)).as_bytes()) && !is_known(&topology, b"x"));
    }
}
