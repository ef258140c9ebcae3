//! What `demo` and `bench move` share: two nodes as processes, an open-loop load checked against a model, and the report of a
//! move under it.

pub mod cluster;
pub mod cpus;
pub mod fill;
pub mod load;
pub mod model;
pub mod plot;
pub mod report;
pub mod workload;

/// What figures were measured on, with the nodes on these CPUs.
pub fn environment(cpus: [cpus::Cpus; 2]) -> serde_json::Value {
    let host = antumbra_engine::doctor::HostFacts::read();
    serde_json::json!({
        "kernel": host.kernel,
        "cpu": host.cpu,
        "cpus": host.cpus_allowed,
        "nodes": if cpus.iter().all(cpus::Cpus::are_own) { "each on its half of the CPUs, the load on all" } else { "all on the same CPUs" },
        "version": env!("CARGO_PKG_VERSION"),
        "network": "loopback, both nodes and the load on one machine",
    })
}
