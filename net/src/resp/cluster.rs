//! What `CLUSTER` tells of the cluster.

use antumbra_engine::types::HostId;

use crate::routing::Topology;

use super::reply::Reply;
use super::slot;

pub(crate) fn node_id(host: HostId) -> String {
    format!("{:040x}", host.0)
}

pub(crate) fn slots(topology: &Topology) -> Reply {
    let rows = topology.routes.iter().filter_map(|route| {
        let address = topology.addresses(route.owner)?.resp;
        let node = Reply::Array(vec![
            Reply::text(address.ip().to_string()),
            Reply::Integer(i64::from(address.port())),
            Reply::text(node_id(route.owner)),
        ]);
        Some(Reply::Array(vec![
            Reply::Integer(i64::from(route.slots.0)),
            Reply::Integer(i64::from(route.slots.1)),
            node,
        ]))
    });
    Reply::Array(rows.collect())
}

pub(crate) fn shards(topology: &Topology) -> Reply {
    let text = |key: &str, value: String| (Reply::text(key), Reply::text(value));
    let shards = topology.hosts.iter().map(|(host, addresses)| {
        let slots = topology.routes.iter().filter(|route| route.owner == *host);
        let slots = slots.flat_map(|route| [route.slots.0, route.slots.1]).map(|slot| Reply::Integer(i64::from(slot)));
        let node = Reply::Map(vec![
            text("id", node_id(*host)),
            (Reply::text("port"), Reply::Integer(i64::from(addresses.resp.port()))),
            text("ip", addresses.resp.ip().to_string()),
            text("endpoint", addresses.resp.ip().to_string()),
            text("role", "master".into()),
            (Reply::text("replication-offset"), Reply::Integer(0)),
            text("health", "online".into()),
        ]);
        Reply::Map(vec![
            (Reply::text("slots"), Reply::Array(slots.collect())),
            (Reply::text("nodes"), Reply::Array(vec![node])),
        ])
    });
    Reply::Array(shards.collect())
}

pub(crate) fn nodes(topology: &Topology, myself: HostId) -> String {
    let mut text = String::new();
    for (host, addresses) in &topology.hosts {
        let flags = if *host == myself { "myself,master" } else { "master" };
        let epoch =
            topology.routes.iter().filter(|route| route.owner == *host).map(|route| route.epoch.0).max().unwrap_or(0);
        let resp = addresses.resp;
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

pub(crate) fn info(topology: &Topology) -> String {
    let slots: u32 = topology.routes.iter().map(|route| u32::from(route.slots.1 - route.slots.0) + 1).sum();
    let state = if slots == u32::from(slot::SLOTS) { "ok" } else { "fail" };
    format!(
        "cluster_enabled:1\r\ncluster_state:{state}\r\ncluster_slots_assigned:{slots}\r\ncluster_slots_ok:{slots}\r\n\
         cluster_known_nodes:{}\r\ncluster_size:{}\r\n",
        topology.hosts.len(),
        topology.hosts.len()
    )
}
