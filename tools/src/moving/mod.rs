//! What `demo` and `bench move` share: two nodes as processes, an open-loop load checked against a model, and the report of a
//! move under it.

pub mod cluster;
pub mod fill;
pub mod load;
pub mod model;
pub mod plot;
pub mod report;
pub mod workload;

/// What figures were measured on.
pub fn environment() -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_start_matches(['\t', ':', ' ']));
    serde_json::json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": cpu,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "version": env!("CARGO_PKG_VERSION"),
        "network": "loopback, both nodes and the load on one machine",
    })
}
