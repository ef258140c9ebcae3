//! `INFO` and `CONFIG GET`: what tools read.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use antumbra_engine::types::PartitionId;
use antumbra_engine::{EngineStats, Serving};
use bytes::Bytes;

use super::codec::BULK_MAX;
use super::command::{COMMANDS, help, unknown_subcommand};
use super::connection::Connection;
use super::glob::matches_glob;
use super::reply::Reply;
use crate::process::{cpu_seconds, resident_bytes};

/// The release of Redis whose commands clients may expect; what is missing is in `net/docs/resp.md`.
pub(super) const REDIS_VERSION: &str = "7.4.0";

const SECTIONS: &[&str] = &[
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cpu",
    "commandstats",
    "cluster",
    "keyspace",
    "partitions",
];
/// Not told without being asked for.
const ASKED_FOR: &[&str] = &["commandstats"];

impl Connection<'_> {
    pub(super) async fn info(&self, wanted: &[Bytes]) -> Reply {
        let wanted: Vec<String> =
            wanted.iter().map(|word| String::from_utf8_lossy(word).to_ascii_lowercase()).collect();
        let is_wanted = |section: &str| {
            let all = wanted.iter().any(|word| word == "all" || word == "everything");
            let default = wanted.is_empty() || wanted.iter().any(|word| word == "default");
            all || (default && !ASKED_FOR.contains(&section)) || wanted.iter().any(|word| word == section)
        };
        let stats = self.server.host.engine.stats().await.unwrap_or_default();
        let mut text = String::new();
        for section in SECTIONS.iter().filter(|section| is_wanted(section)) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let (first, rest) = section.split_at(1);
            let _ = write!(text, "# {}{rest}\r\n", first.to_ascii_uppercase());
            for (name, value) in self.section(section, &stats) {
                let _ = write!(text, "{name}:{value}\r\n");
            }
        }
        Reply::Verbatim(text)
    }

    fn section(&self, section: &str, stats: &EngineStats) -> Vec<(String, String)> {
        let (server, service) = (self.server, &self.server.service);
        let mut rows = Vec::new();
        let mut row = |name: &str, value: &dyn std::fmt::Display| rows.push((name.to_string(), value.to_string()));
        match section {
            "server" => {
                let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
                row("redis_version", &REDIS_VERSION);
                row("antumbra_version", &env!("CARGO_PKG_VERSION"));
                row("redis_mode", &"cluster");
                row("os", &format!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
                row("arch_bits", &usize::BITS);
                row("process_id", &std::process::id());
                row("tcp_port", &service.config.listen.port());
                row("server_time_usec", &now_us);
                row("uptime_in_seconds", &service.began.elapsed().as_secs());
                row("uptime_in_days", &(service.began.elapsed().as_secs() / 86_400));
                row("host", &server.host.id);
                row("shard", &server.shard.id());
                row("shards", &stats.shards);
            }
            "clients" => {
                row("connected_clients", &service.clients.len());
                row("maxclients", &service.config.limits.connections_max);
                row("blocked_clients", &0);
                row("client_buffer_bytes", &service.sum(|counters| counters.client_bytes.get()));
            }
            "memory" => {
                row("used_memory", &resident_bytes());
                row("used_memory_rss", &resident_bytes());
                row("used_memory_memtables", &stats.memtable_bytes);
                row("maxmemory", &0);
                row("maxmemory_policy", &"noeviction");
            }
            "persistence" => {
                row("loading", &0);
                row("aof_enabled", &1);
                row("rdb_bgsave_in_progress", &0);
                row("aof_rewrite_in_progress", &0);
                row("table_bytes", &stats.table_bytes);
            }
            "stats" => {
                row("total_connections_received", &service.clients.accepted());
                row("rejected_connections", &service.sum(|counters| counters.refused_connections.get()));
                let calls = |counters: &super::server::Counters| counters.calls.iter().map(|calls| calls.get()).sum();
                row("total_commands_processed", &service.sum(calls));
                row("total_error_replies", &service.sum(|counters| counters.errors.get()));
                row("keyspace_hits", &service.sum(|counters| counters.hits.get()));
                row("keyspace_misses", &service.sum(|counters| counters.misses.get()));
                row("evicted_keys", &0);
                row("forwarded", &service.sum(|counters| counters.forwarded.get()));
                row("moved", &service.sum(|counters| counters.moved.get()));
            }
            "replication" => {
                row("role", &"master");
                row("connected_slaves", &0);
                row("master_repl_offset", &0);
            }
            "cpu" => {
                if let Some((user, system)) = cpu_seconds() {
                    row("used_cpu_sys", &format!("{system:.2}"));
                    row("used_cpu_user", &format!("{user:.2}"));
                }
            }
            "commandstats" => {
                for (place, spec) in COMMANDS.iter().enumerate() {
                    let calls = service.sum(|counters| counters.calls[place].get());
                    if calls > 0 {
                        row(&format!("cmdstat_{}", spec.name), &format!("calls={calls}"));
                    }
                }
            }
            "cluster" => row("cluster_enabled", &1),
            "partitions" => {
                for partition in stats.partitions.iter().filter(|partition| self.is_of_clients(partition.id)) {
                    let serving: Serving = partition.serving;
                    let text = format!(
                        "epoch={},serving={serving:?},segments={},table_bytes={},memtable_bytes={},last_lsn={}",
                        partition.epoch,
                        partition.segments,
                        partition.table_bytes,
                        partition.memtable_bytes,
                        partition.visible
                    );
                    row(&format!("partition{}", partition.id), &text);
                }
            }
            // How many keys there are takes a walk: see DBSIZE.
            _ => {}
        }
        rows
    }

    /// Whether clients have keys in a partition.
    fn is_of_clients(&self, id: PartitionId) -> bool {
        id != crate::coordinator::embedded::SYSTEM_PARTITION
    }

    /// `CONFIG`.
    pub(super) fn config(&self, args: &[Bytes]) -> Reply {
        match args[1].to_ascii_lowercase().as_slice() {
            b"get" if args.len() > 2 => {
                let is_wanted = |name: &str| {
                    args[2..].iter().any(|pattern| matches_glob(&pattern.to_ascii_lowercase(), name.as_bytes()))
                };
                let rows = self.configuration().into_iter().filter(|(name, _)| is_wanted(name));
                Reply::Map(rows.map(|(name, value)| (Reply::text(name), Reply::text(value))).collect())
            }
            b"set" | b"rewrite" => {
                Reply::error("ERR the configuration is fixed while the node runs: start it again with other options")
            }
            b"help" => help("CONFIG", &["GET pattern ..."]),
            _ => unknown_subcommand("CONFIG", args),
        }
    }

    fn configuration(&self) -> Vec<(&'static str, String)> {
        let config = &self.server.service.config;
        let idle = config.limits.idle.map_or(0, |idle| idle.as_secs());
        let text = |text: &str| text.to_string();
        vec![
            ("appendonly", text("yes")),
            ("appendfsync", text("always")),
            ("bind", config.listen.ip().to_string()),
            ("cluster-enabled", text("yes")),
            ("databases", text("1")),
            ("maxclients", config.limits.connections_max.to_string()),
            ("maxmemory", text("0")),
            ("maxmemory-clients", config.limits.client_bytes_max.to_string()),
            ("maxmemory-policy", text("noeviction")),
            ("port", config.listen.port().to_string()),
            ("proto-max-bulk-len", BULK_MAX.to_string()),
            ("save", String::new()),
            ("timeout", idle.to_string()),
        ]
    }
}
