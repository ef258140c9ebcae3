//! The metrics of a node, made anew with each scrape. `net/docs/metrics.md` says what each means; a test holds the two
//! against each other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::coordinator::RecordState;
use crate::coordinator::embedded::SYSTEM_PARTITION;
use crate::resp::Figures;
use crate::resp::latency::{BUCKETS, LatencyCounts, bound_ns};

use crate::status::{Status, serving};

/// Everything in OpenMetrics text.
pub(super) fn encode(status: &Arc<Status>, figures: &Figures) -> String {
    let mut registry = Registry::with_prefix("antumbra");
    registry.register_collector(Box::new(Scrape { status: Arc::clone(status), figures: figures.clone() }));
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct Scrape {
    status: Arc<Status>,
    figures: Figures,
}

type Labels<'a> = Vec<(&'static str, String)>;

/// Writes families: name, help and unit once, then one value for each set of labels.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn family(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        kind: MetricType,
        mut write: impl FnMut(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write(&mut self.0.encode_descriptor(name, help, unit.as_ref(), kind)?)
    }

    fn gauges(
        &mut self,
        name: (&str, &str, Option<Unit>),
        values: impl IntoIterator<Item = (Labels<'static>, f64)>,
    ) -> fmt::Result {
        let mut values = values.into_iter();
        self.family(name, MetricType::Gauge, |encoder| {
            values.by_ref().try_for_each(|(labels, value)| encoder.encode_family(&labels)?.encode_gauge(&value))
        })
    }

    fn counters(
        &mut self,
        name: (&str, &str, Option<Unit>),
        values: impl IntoIterator<Item = (Labels<'static>, f64)>,
    ) -> fmt::Result {
        let mut values = values.into_iter();
        self.family(name, MetricType::Counter, |encoder| {
            values.by_ref().try_for_each(|(labels, value)| {
                encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
            })
        })
    }

    fn histogram(
        &mut self,
        name: (&str, &str, Option<Unit>),
        counts: &[(&'static str, &LatencyCounts)],
    ) -> fmt::Result {
        self.family(name, MetricType::Histogram, |encoder| {
            for (kind, counts) in counts {
                let last = BUCKETS - 1;
                let bounds = |bucket: usize| if bucket == last { f64::MAX } else { bound_ns(bucket) as f64 / 1e9 };
                let buckets: Vec<(f64, u64)> =
                    counts.buckets.iter().enumerate().map(|(bucket, count)| (bounds(bucket), *count)).collect();
                let labels: Labels<'_> = vec![("kind", (*kind).to_string())];
                encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    counts.sum_ns as f64 / 1e9,
                    counts.count(),
                    &buckets,
                    None,
                )?;
            }
            Ok(())
        })
    }

    fn info(&mut self, name: (&str, &str), labels: &impl EncodeLabelSet) -> fmt::Result {
        self.family((name.0, name.1, None), MetricType::Info, |encoder| encoder.encode_info(labels))
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels<'static> {
    vec![(name, value.to_string())]
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.node(&mut writer)?;
        self.clients(&mut writer)?;
        self.shards(&mut writer)?;
        self.partitions(&mut writer)?;
        self.moves(&mut writer)?;
        self.sinks(&mut writer)
    }
}

impl Scrape {
    fn node(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let (status, engine) = (&*self.status, &self.status.engine);
        let labels: Labels<'_> = vec![("version", status.version.clone()), ("host", status.host.to_string())];
        writer.info(("node", "The release that this node runs, and its number"), &labels)?;
        let one = |value: f64| [(Vec::new(), value)];
        let flag = |is: bool| one(if is { 1.0 } else { 0.0 });
        writer.gauges(
            ("coordinator_reachable", "1 if the coordinator answered, 0 if it did not", None),
            flag(status.coordinator.reachable && status.coordinator_error.is_none()),
        )?;
        let silent =
            if status.coordinator.reachable { 0 } else { status.now_ms.saturating_sub(status.coordinator.since) };
        writer.gauges(
            ("coordinator_silent", "Time for which the coordinator has not answered", Some(Unit::Seconds)),
            one(silent as f64 / 1e3),
        )?;
        let stalls = status.stalls.iter().map(|stall| {
            let stands = status.now_ms.saturating_sub(stall.since);
            (label("subject", &stall.subject), stands as f64 / 1e3)
        });
        writer.gauges(
            ("stalled", "Time without progress of a move or a shard that stands still", Some(Unit::Seconds)),
            stalls,
        )?;
        let lapsed = status.hosts.iter().filter(|host| host.lapsed).count();
        writer.gauges(("hosts_lapsed", "Hosts whose lease has lapsed", None), one(lapsed as f64))?;
        writer.gauges(
            ("leader", "1 if this node decides on moves for all, 0 if it does not", None),
            flag(status.leader == Some(status.host)),
        )?;
        let memory = crate::process::resident_bytes();
        writer.gauges(
            ("process_resident_memory", "Memory that the process holds", Some(Unit::Bytes)),
            one(memory as f64),
        )?;
        let (user, system) = crate::process::cpu_seconds().unwrap_or_default();
        writer.counters(
            ("process_cpu", "Processor time of the process", Some(Unit::Seconds)),
            [(label("mode", "user"), user), (label("mode", "system"), system)],
        )?;
        writer.gauges(("memtable", "Bytes in memtables", Some(Unit::Bytes)), one(engine.memtable_bytes as f64))?;
        writer.counters(
            ("log_batches", "Batches of writes that the logs have put on the device", None),
            one(engine.log_batches as f64),
        )?;
        let cache = &engine.cache;
        writer.gauges(("cache", "Bytes of blocks in the caches", Some(Unit::Bytes)), one(cache.block_bytes as f64))?;
        writer.gauges(
            ("cache_budget", "Bytes that caches and what is charged beside them may take", Some(Unit::Bytes)),
            one(cache.budget_bytes as f64),
        )?;
        writer.counters(
            ("blocks_read", "Blocks that readers had to fetch from the device", None),
            one(cache.blocks_read as f64),
        )
    }

    fn clients(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.figures;
        let one = |value: u64| [(Vec::new(), value as f64)];
        writer.gauges(("connections", "Connections of clients", None), one(figures.clients))?;
        writer.gauges(
            ("client_buffer", "Bytes of clients' buffers that count against the budget", Some(Unit::Bytes)),
            one(figures.client_bytes),
        )?;
        writer.counters(("connections_accepted", "Connections accepted", None), one(figures.accepted))?;
        writer.counters(
            ("connections_refused", "Connections refused, since there were too many", None),
            one(figures.refused_connections),
        )?;
        writer.counters(
            ("tls_handshakes_failed", "Connections that ended before their TLS handshake did", None),
            one(figures.failed_handshakes),
        )?;
        let calls = figures.calls.iter().filter(|(_, calls)| *calls > 0);
        writer.counters(
            ("commands", "Commands received", None),
            calls.map(|(name, calls)| (label("command", name), *calls as f64)),
        )?;
        writer.counters(("errors", "Replies that were errors", None), one(figures.errors))?;
        writer.counters(("forwarded", "Requests served by way of another host", None), one(figures.forwarded))?;
        writer.counters(("moved", "Requests answered MOVED", None), one(figures.moved))?;
        writer.counters(("key_hits", "Reads that found their key", None), one(figures.hits))?;
        writer.counters(("key_misses", "Reads that did not", None), one(figures.misses))?;
        writer.histogram(
            ("request_duration", "Time from a command's turn to its reply, by commands on keys", Some(Unit::Seconds)),
            &[("read", &figures.reads), ("write", &figures.writes)],
        )
    }

    fn shards(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let used = self.status.engine.used.iter().enumerate();
        writer.counters(
            ("shard_cpu", "Processor time of a shard's thread", Some(Unit::Seconds)),
            used.clone().map(|(shard, used)| (label("shard", shard), used.cpu.as_secs_f64())),
        )?;
        writer.counters(
            ("shard_log", "Bytes that a shard's log has written", Some(Unit::Bytes)),
            used.map(|(shard, used)| (label("shard", shard), used.log_bytes as f64)),
        )?;
        let here = self.status.hosts.iter().find(|host| host.host == self.status.host);
        let trends = here.and_then(|host| host.trend.as_ref()).map_or(&[][..], |trend| &trend.shards[..]);
        let loads = trends.iter().enumerate().flat_map(|(shard, trend)| {
            let named = self.status.metrics.iter().zip(trend.metrics);
            named.map(move |(metric, load)| (vec![("shard", shard.to_string()), ("metric", metric.clone())], load))
        });
        writer.gauges(("shard_load", "Load in the last window, as a part of its limit", None), loads)?;
        let each = |figure: fn(&crate::controller::trend::ShardTrend) -> f64| {
            trends.iter().enumerate().map(move |(shard, trend)| (label("shard", shard), figure(trend)))
        };
        writer.gauges(
            ("shard_load_expected", "Highest load expected when a shadow begun now would be ready", None),
            each(|trend| trend.expected),
        )?;
        writer.gauges(
            ("shard_overload_probability", "Probability that it hurts by then", None),
            each(|trend| trend.probability),
        )?;
        writer.gauges(
            ("shard_signal", "1 while relief is wanted, 0 otherwise", None),
            each(|trend| if trend.raised { 1.0 } else { 0.0 }),
        )
    }

    fn partitions(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let engine = &self.status.engine;
        let each = |figure: fn(&antumbra_engine::PartitionStats) -> f64| {
            let of_users = engine.partitions.iter().filter(|known| known.id != SYSTEM_PARTITION);
            of_users.map(move |known| (label("partition", known.id), figure(known)))
        };
        writer.counters(("partition_reads", "Reads", None), each(|known| known.sums.reads as f64))?;
        writer.counters(("partition_writes", "Writes", None), each(|known| known.sums.writes as f64))?;
        writer.counters(
            ("partition_accessed", "Bytes of keys and values read and written", Some(Unit::Bytes)),
            each(|known| known.sums.bytes as f64),
        )?;
        writer.gauges(
            ("partition_tables", "Bytes in tables", Some(Unit::Bytes)),
            each(|known| known.table_bytes as f64),
        )?;
        writer.gauges(
            ("partition_memtables", "Bytes in memtables", Some(Unit::Bytes)),
            each(|known| known.memtable_bytes as f64),
        )?;
        writer.gauges(
            ("partition_resident", "Bytes of tables locked in memory", Some(Unit::Bytes)),
            each(|known| known.resident_bytes as f64),
        )?;
        writer.gauges(("partition_segments", "Segments", None), each(|known| known.segments as f64))?;
        writer.gauges(
            ("partition_segments_missing", "Segments that are still at the owner before", None),
            each(|known| known.missing_segments as f64),
        )?;
        writer.gauges(("partition_epoch", "Ownership generation", None), each(|known| known.epoch.0 as f64))?;
        let states = engine.partitions.iter().filter(|known| known.id != SYSTEM_PARTITION).map(|known| {
            (vec![("partition", known.id.to_string()), ("state", serving(known.serving).to_string())], 1.0)
        });
        writer.gauges(("partition_serving", "1 for the state that the partition is in here", None), states)
    }

    fn sinks(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let mut sinks: BTreeMap<&str, (usize, usize, u64)> = BTreeMap::new();
        for state in &self.status.sinks {
            let (entries, unconfirmed, longest) = sinks.entry(&state.sink).or_default();
            *entries += 1;
            if state.confirmed.is_none() {
                *unconfirmed += 1;
                // An entry that has not been tried yet knows no time.
                let since = if state.since == 0 { self.status.now_ms } else { state.since };
                *longest = (*longest).max(self.status.now_ms.saturating_sub(since));
            }
        }
        let each = |figure: fn(&(usize, usize, u64)) -> f64| {
            sinks.iter().map(move |(sink, figures)| (label("sink", sink), figure(figures))).collect::<Vec<_>>()
        };
        writer.gauges(("sink_entries", "What a server is told: partitions and hosts", None), each(|of| of.0 as f64))?;
        writer
            .gauges(("sink_unconfirmed", "Of these, what it has not been seen to say", None), each(|of| of.1 as f64))?;
        writer.gauges(
            ("sink_unconfirmed_longest", "Time for which the oldest of these has failed", Some(Unit::Seconds)),
            each(|of| of.2 as f64 / 1e3),
        )
    }

    fn moves(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let status = &*self.status;
        let moving = status.partitions.iter().filter(|known| known.record.state != RecordState::Stable).count();
        writer.gauges(
            ("moves_under_way", "Partitions of the cluster that are being moved", None),
            [(Vec::new(), moving as f64)],
        )?;
        let under_way = || status.moves.iter().filter(|known| known.under_way);
        let of = |partition: u64, destination: u32| {
            vec![("partition", partition.to_string()), ("destination", destination.to_string())]
        };
        writer.gauges(
            ("move_held_ratio", "Part of the segments that the shadow holds, of moves that began here", None),
            under_way().map(|known| {
                let (held, all) = (known.progress.held, known.progress.segments.max(1));
                (of(known.partition, known.destination), held as f64 / all as f64)
            }),
        )?;
        writer.counters(
            ("move_sent", "Bytes sent by the move under way that began here", Some(Unit::Bytes)),
            under_way().map(|known| (of(known.partition, known.destination), known.progress.bytes_on_wire as f64)),
        )?;
        writer.gauges(
            ("move_frozen", "Time for which writes were parked by the last move", Some(Unit::Seconds)),
            status.moves.iter().filter_map(|known| {
                let done = known.done.as_ref()?;
                Some((of(known.partition, known.destination), done.frozen_us as f64 / 1e6))
            }),
        )
    }
}
