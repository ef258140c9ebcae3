//! What a host sees coming: each window its shards' loads are measured, and a [`Watch`] forecasts each shard's.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use antumbra_engine::partition::{SegmentSummary, Totals};
use antumbra_engine::types::PartitionId;
use antumbra_engine::{EngineStats, PartitionStats, Serving, ShardUse};
use antumbra_predictor::signal::{SignalEvent, Watch, WatchConfig};
use serde::{Deserialize, Serialize};

use crate::coordinator::embedded::SYSTEM_PARTITION;
use crate::error::{Error, Result};
use crate::resp::slot::slot_at;

/// What is measured of a shard, each over its limit: its core, its requests, the bytes of its log, the bytes it stores.
pub const METRICS: [&str; 4] = ["core", "requests", "log", "space"];

/// A write is so many times the work of a read, where a core's time is shared out to partitions.
const WRITE_WORK: f64 = 2.0;
/// Share of one window in a partition's load.
const LOAD_ALPHA: f64 = 0.2;
/// A copy is never expected to be over sooner, in windows.
const COPY_WINDOWS_MIN: f64 = 5.0;
/// The lead time follows the expected copy when that has changed by more than this part.
const LEAD_CHANGE: f64 = 0.25;

/// Values at which it hurts. Without a limit a metric counts as nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Share of its core (0..1) that a shard may use.
    pub core: f64,
    /// Requests per second of a shard.
    pub requests_s: Option<f64>,
    /// Bytes per second of a shard's log.
    pub log_bytes_s: Option<f64>,
    /// Bytes that the host stores; each shard has its part.
    pub data_bytes: Option<f64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { core: 0.8, requests_s: None, log_bytes_s: None, data_bytes: None }
    }
}

/// A shard's load. Loads are parts of the limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardTrend {
    /// The last window's, as [`METRICS`].
    pub metrics: [f64; METRICS.len()],
    /// The highest of them, smoothed.
    pub level: f64,
    /// What it is expected to be when a shadow begun now would be ready.
    pub expected: f64,
    /// How probable it is that it hurts by then.
    pub probability: f64,
    /// Whether relief is wanted: a shadow that has been cast is kept.
    pub raised: bool,
    /// Whether it is worth casting one now.
    pub worth: bool,
    /// Windows until it is expected to hurt, at most the lead time.
    pub crossing_windows: f64,
    /// Windows that the forecast looks ahead.
    pub lead_windows: f64,
}

impl ShardTrend {
    /// What the load is expected to be multiplied by within the lead time.
    #[must_use]
    pub fn growth(&self) -> f64 {
        if self.level > 0.0 { (self.expected / self.level).clamp(0.0, 10.0) } else { 1.0 }
    }

    /// The name of the highest metric.
    #[must_use]
    pub fn leading_metric(&self) -> &'static str {
        let highest = (0..METRICS.len()).max_by(|a, b| self.metrics[*a].total_cmp(&self.metrics[*b]));
        METRICS[highest.unwrap_or(0)]
    }
}

/// A partition that the host owns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionTrend {
    /// Id.
    pub partition: u64,
    /// Its shard.
    pub shard: u16,
    /// Its part of the shard's load, smoothed, as [`METRICS`].
    pub load: [f64; METRICS.len()],
    /// Bytes to copy.
    pub bytes: u64,
    /// Whether it is whole, served here, and not being moved.
    pub at_rest: bool,
    /// Where it could be cut in two, while its shard wants relief.
    pub cut: Option<Cut>,
}

/// A place that halves a partition's expected load, as far as its segments allow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// The first slot of the upper part.
    pub slot: u16,
    /// The upper part's share of the expected accesses (0..1).
    pub share: f64,
}

impl Cut {
    /// Between two segments, by what the predictor expects of them; in the middle of the slots where there is only one, or
    /// nothing is expected. `None` for a single slot.
    #[must_use]
    pub fn of(slots: (u16, u16), segments: &[SegmentSummary]) -> Option<Cut> {
        let all: f64 = segments.iter().map(|segment| f64::from(segment.auto)).sum();
        let mut below = 0.0;
        let mut best: Option<Cut> = None;
        for segment in segments {
            let slot = slot_at(&segment.start);
            let share = 1.0 - below / all;
            let is_nearer = |best: &Cut| (share - 0.5).abs() < (best.share - 0.5).abs();
            if slot > slots.0 && slot <= slots.1 && all > 0.0 && best.as_ref().is_none_or(is_nearer) {
                best = Some(Cut { slot, share });
            }
            below += f64::from(segment.auto);
        }
        let middle = (slots.0 < slots.1).then(|| Cut { slot: slots.0 + (slots.1 - slots.0).div_ceil(2), share: 0.5 });
        best.or(middle)
    }
}

/// The last move of a partition that began on the host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveTrend {
    /// The partition.
    pub partition: u64,
    /// Where to.
    pub destination: u32,
    /// Whether a controller has begun it.
    pub automatic: bool,
    /// Whether it has not ended.
    pub under_way: bool,
    /// Whether it can still be given up.
    pub is_undecided: bool,
    /// Whether its shadow holds what the switchover needs.
    pub ready: bool,
}

/// Everything that a host says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostTrend {
    /// The host.
    pub host: u32,
    /// Length of a window in milliseconds.
    pub window_ms: u64,
    /// Windows seen so far.
    pub windows: u64,
    /// By number.
    pub shards: Vec<ShardTrend>,
    /// Those that it owns, ascending by id.
    pub partitions: Vec<PartitionTrend>,
    /// Ascending by partition.
    pub moves: Vec<MoveTrend>,
}

/// A change of a shard's signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// The shard.
    pub shard: u16,
    /// What has changed.
    pub event: SignalEvent,
}

/// Observes one host.
#[derive(Debug)]
pub(crate) struct Observer {
    host: u32,
    limits: Limits,
    /// Bytes per second that a copy is expected to make.
    copy_bytes_s: f64,
    watches: Vec<Watch<{ METRICS.len() }>>,
    last: Option<(Instant, Vec<ShardUse>)>,
    sums: HashMap<PartitionId, (Totals, [f64; METRICS.len()])>,
    windows: u64,
}

impl Observer {
    pub fn new(host: u32, shards: usize, limits: Limits, copy_bytes_s: f64) -> Result<Observer> {
        let positive = |name: &str, limit: Option<f64>| match limit {
            Some(limit) if !(limit.is_finite() && limit > 0.0) => {
                Err(Error::Refused { what: format!("limit of {name}: {limit}: above 0") })
            }
            _ => Ok(()),
        };
        positive("the core", Some(limits.core))?;
        positive("requests", limits.requests_s)?;
        positive("the log", limits.log_bytes_s)?;
        positive("space", limits.data_bytes)?;
        positive("a copy's rate", Some(copy_bytes_s))?;
        let watch = || Watch::new(WatchConfig::for_copy(COPY_WINDOWS_MIN)).map_err(refused);
        Ok(Observer {
            host,
            limits,
            copy_bytes_s,
            watches: (0..shards).map(|_| watch()).collect::<Result<_>>()?,
            last: None,
            sums: HashMap::new(),
            windows: 0,
        })
    }

    /// The shadow of a partition of this shard was put to use.
    pub fn used(&mut self, shard: u16) {
        if let Some(watch) = self.watches.get_mut(usize::from(shard)) {
            watch.used();
        }
    }

    /// Takes in a window. The first only begins the measurement.
    pub fn observe(
        &mut self,
        stats: &EngineStats,
        shard_of: impl Fn(PartitionId) -> u16,
        moves: Vec<MoveTrend>,
        now: Instant,
    ) -> Result<(HostTrend, Vec<Change>)> {
        let last = self.last.replace((now, stats.used.clone()));
        let Some((began, used)) = last else {
            for partition in &stats.partitions {
                self.sums.insert(partition.id, (partition.sums, [0.0; METRICS.len()]));
            }
            return Ok((HostTrend { host: self.host, ..HostTrend::default() }, Vec::new()));
        };
        let window = now.saturating_duration_since(began).max(Duration::from_millis(1));
        self.windows += 1;
        let owned = |partition: &&PartitionStats| {
            partition.id != SYSTEM_PARTITION && matches!(partition.serving, Serving::Owner | Serving::Frozen)
        };
        let owned: Vec<(&PartitionStats, u16)> =
            stats.partitions.iter().filter(owned).map(|partition| (partition, shard_of(partition.id))).collect();
        let mut shards = Vec::new();
        let mut changes = Vec::new();
        let mut partitions = Vec::new();
        for (index, watch) in self.watches.iter_mut().enumerate() {
            let of_shard = || owned.iter().filter(|(_, shard)| usize::from(*shard) == index).map(|(known, _)| *known);
            let before = used.get(index).copied().unwrap_or_default();
            let now_used = stats.used.get(index).copied().unwrap_or_default();
            let windows: Vec<Window> = of_shard().map(|partition| Window::of(partition, &self.sums)).collect();
            let sum = Window::sum(&windows);
            let limits = self.limits.of_shard(window.as_secs_f64(), stats.shards);
            let metrics = [
                (now_used.cpu.saturating_sub(before.cpu)).as_secs_f64() / window.as_secs_f64() / self.limits.core,
                sum.requests / limits.requests,
                now_used.log_bytes.saturating_sub(before.log_bytes) as f64 / limits.log_bytes,
                sum.bytes / limits.bytes,
            ];
            for (partition, own) in of_shard().zip(&windows) {
                let parts = [
                    metrics[0] * part(own.work, sum.work),
                    metrics[1] * part(own.requests, sum.requests),
                    metrics[2] * part(own.writes, sum.writes),
                    metrics[3] * part(own.bytes, sum.bytes),
                ];
                let entry = self.sums.entry(partition.id).or_insert((partition.sums, parts));
                entry.0 = partition.sums;
                for (smoothed, value) in entry.1.iter_mut().zip(parts) {
                    *smoothed += LOAD_ALPHA.max(1.0 / self.windows as f64) * (value - *smoothed);
                }
                let is_moved = moves.iter().any(|moving| moving.partition == partition.id.0 && moving.under_way);
                partitions.push(PartitionTrend {
                    partition: partition.id.0,
                    shard: index as u16,
                    load: entry.1,
                    bytes: partition.table_bytes + partition.memtable_bytes as u64,
                    cut: None,
                    at_rest: partition.serving == Serving::Owner && partition.missing_segments == 0 && !is_moved,
                });
            }
            let largest = of_shard().map(|partition| partition.table_bytes).max().unwrap_or(0);
            follow_copy(watch, largest as f64 / self.copy_bytes_s / window.as_secs_f64())?;
            if let Some(event) = watch.observe(metrics) {
                changes.push(Change { shard: index as u16, event });
            }
            shards.push(ShardTrend {
                metrics,
                level: watch.highest(),
                expected: watch.expected().max(0.0),
                probability: watch.probability(),
                raised: watch.is_raised(),
                worth: watch.is_raised() && (watch.is_worth_it() || watch.highest() >= 1.0),
                crossing_windows: watch.crossing(),
                lead_windows: watch.config().lead_windows,
            });
        }
        self.sums.retain(|id, _| owned.iter().any(|(partition, _)| partition.id == *id));
        partitions.sort_by_key(|partition| partition.partition);
        let window_ms = window.as_millis() as u64;
        Ok((HostTrend { host: self.host, window_ms, windows: self.windows, shards, partitions, moves }, changes))
    }
}

/// Sets the lead time of a watch by how long the largest copy would take.
fn follow_copy(watch: &mut Watch<{ METRICS.len() }>, copy_windows: f64) -> Result<()> {
    let wanted = WatchConfig::for_copy(copy_windows.clamp(COPY_WINDOWS_MIN, 10_000.0));
    let present = watch.config().lead_windows;
    if (wanted.lead_windows - present).abs() > LEAD_CHANGE * present {
        watch.set_config(wanted).map_err(refused)?;
    }
    Ok(())
}

fn refused(cause: antumbra_predictor::Error) -> Error {
    Error::Refused { what: cause.to_string() }
}

fn part(own: f64, all: f64) -> f64 {
    if all > 0.0 { own / all } else { 0.0 }
}

/// Limits of a shard for one window; infinite where there is none.
struct WindowLimits {
    requests: f64,
    log_bytes: f64,
    bytes: f64,
}

impl Limits {
    fn of_shard(&self, seconds: f64, shards: usize) -> WindowLimits {
        WindowLimits {
            requests: self.requests_s.map_or(f64::INFINITY, |limit| limit * seconds),
            log_bytes: self.log_bytes_s.map_or(f64::INFINITY, |limit| limit * seconds),
            bytes: self.data_bytes.map_or(f64::INFINITY, |limit| limit / shards.max(1) as f64),
        }
    }
}

/// What a partition did in one window.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    requests: f64,
    writes: f64,
    work: f64,
    bytes: f64,
}

impl Window {
    fn of(partition: &PartitionStats, before: &HashMap<PartitionId, (Totals, [f64; METRICS.len()])>) -> Window {
        // One that has just come is measured from now on.
        let last = before.get(&partition.id).map_or(partition.sums, |(sums, _)| *sums);
        let reads = partition.sums.reads.saturating_sub(last.reads) as f64;
        let writes = partition.sums.writes.saturating_sub(last.writes) as f64;
        Window {
            requests: reads + writes,
            writes,
            work: reads + WRITE_WORK * writes,
            bytes: (partition.table_bytes + partition.memtable_bytes as u64) as f64,
        }
    }

    fn sum(windows: &[Window]) -> Window {
        windows.iter().fold(Window::default(), |sum, window| Window {
            requests: sum.requests + window.requests,
            writes: sum.writes + window.writes,
            work: sum.work + window.work,
            bytes: sum.bytes + window.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use antumbra_engine::types::{Lsn, SegmentId, ValidationToken};
    use bytes::Bytes;

    use super::*;

    fn segment(slot: u16, expected: f32) -> SegmentSummary {
        let token = ValidationToken { segment: SegmentId(u64::from(slot)), version: Lsn(0), checksum: 0 };
        SegmentSummary {
            id: SegmentId(u64::from(slot)),
            start: Bytes::from(slot.to_be_bytes().to_vec()),
            bytes: 4096,
            token,
            resident_bytes: 0,
            is_missing: false,
            accesses: 0,
            auto: expected,
            gru: expected,
            ewma: expected,
        }
    }

    #[test]
    fn cut_halves_what_is_expected() {
        let segments = [segment(0, 1.0), segment(100, 1.0), segment(200, 7.0), segment(300, 1.0)];
        let cut = Cut::of((0, 399), &segments);
        assert!(cut.is_some_and(|cut| cut.slot == 200 && (cut.share - 0.8).abs() < 1e-6), "{cut:?}");
        let even = [segment(0, 1.0), segment(100, 1.0), segment(200, 1.0), segment(300, 1.0)];
        assert_eq!(Cut::of((0, 399), &even), Some(Cut { slot: 200, share: 0.5 }));
    }

    #[test]
    fn cut_without_segments_to_go_by_is_in_the_middle() {
        assert_eq!(Cut::of((0, 16_383), &[segment(0, 5.0)]), Some(Cut { slot: 8192, share: 0.5 }));
        assert_eq!(Cut::of((10, 11), &[segment(10, 0.0), segment(11, 0.0)]), Some(Cut { slot: 11, share: 0.5 }));
        assert_eq!(Cut::of((7, 7), &[segment(7, 5.0)]), None);
    }
}
