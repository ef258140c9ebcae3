//! What a demo run found, as `report.json` and as a table.

use antumbra_net::shadow::MoveReport;
use antumbra_net::shadow::accounts::{ShadowAccounts, SwitchoverAccounts, VerifyReport};
use antumbra_predictor::eval::{area, order_curve};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::fill::EarlyReport;
use super::load::Sample;
use super::model::Counts;
use super::workload;

/// Reads.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reads {
    pub total: u64,
    pub failed: u64,
    pub stale: u64,
}

/// Writes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Writes {
    pub total: u64,
    pub failed: u64,
    pub acked: u64,
    pub lost: u64,
}

/// Latency in microseconds, from the intended send time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Quantiles {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// Reads and writes of one phase.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PhaseLatency {
    pub read: Quantiles,
    pub write: Quantiles,
}

/// The phases of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    pub before: PhaseLatency,
    pub during: PhaseLatency,
    pub switchover: PhaseLatency,
    pub after: PhaseLatency,
}

/// Area under the curve of each order, 0..1.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OrderQuality {
    pub auto: f64,
    pub gru: f64,
    pub ewma: f64,
    pub key: f64,
    pub oracle: f64,
    /// The order in which segments were in fact sent.
    pub used: f64,
}

/// When the trend was seen.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SignalReport {
    /// Seconds after the load began; `None` if the signal never rose and the move was started by the clock.
    pub raised_at_s: Option<f64>,
    /// Seconds between the signal and the expected crossing of the threshold.
    pub lead_s: Option<f64>,
    /// The threshold, in operations per second.
    pub threshold_ops_s: f64,
}

/// One bin of the time series.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bin {
    /// Seconds after the load began.
    pub at_s: f64,
    pub ops_s: f64,
    pub read_p99_us: u64,
    pub write_p99_us: u64,
    pub p50_us: u64,
}

/// A curve: share of bytes copied, share of reads that were served by them.
pub type Curve = Vec<(f64, f64)>;

/// The report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub trace: String,
    pub order: String,
    pub keys: u64,
    pub durability: String,
    pub environment: serde_json::Value,
    pub reads: Reads,
    pub writes: Writes,
    /// Requests that were told MOVED and followed it.
    pub moved: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    pub latency_us: Latency,
    /// Longest time that a write (a read) waited which overlaps the switchover.
    pub write_pause_us: u64,
    pub read_pause_us: u64,
    /// For how long the source parked writes.
    pub frozen_us: u64,
    pub shadow: ShadowAccounts,
    pub order_quality: OrderQuality,
    pub switchover: SwitchoverAccounts,
    pub verify: VerifyReport,
    pub signal: SignalReport,
    /// Only after `--early`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early: Option<EarlyReport>,
    /// Seconds after the load began at which each phase began.
    pub marks: Vec<(String, f64)>,
    pub series: Vec<Bin>,
    pub curves: Vec<(String, Curve)>,
    /// Everything that was checked holds.
    pub passed: bool,
}

const BIN_US: u64 = 100_000;

impl Report {
    /// Fills in what the samples and the move's own report say. `start_us` is when the load began.
    pub fn fill(&mut self, samples: &[Sample], moved: MoveReport, counts: &Counts, lost: u64, start_us: u64) {
        self.fill_load(samples, &moved, counts, lost, start_us);
        let (copy, _, promoted) = marks_us(&moved);
        self.judge_orders(samples, &moved, copy, promoted);
        self.frozen_us = moved.frozen_us;
        self.shadow = moved.shadow;
        self.switchover = moved.switchover;
        self.verify = moved.verify;
        let sound = self.reads.failed + self.reads.stale + self.writes.failed + self.writes.lost == 0;
        let epoch = self.switchover.epoch_after == self.switchover.epoch_before + 1;
        self.passed = sound && epoch && self.verify.equal;
    }

    /// The part of it that needs no more of the move than when its phases began.
    pub fn fill_load(&mut self, samples: &[Sample], moved: &MoveReport, counts: &Counts, lost: u64, start_us: u64) {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        self.reads =
            Reads { total: load(&counts.reads), failed: load(&counts.reads_failed), stale: load(&counts.reads_stale) };
        self.writes = Writes {
            total: load(&counts.writes),
            failed: load(&counts.writes_failed),
            acked: load(&counts.writes_acked),
            lost,
        };
        self.moved = load(&counts.moved);
        self.failures = counts.failures();
        let (_, frozen, promoted) = marks_us(moved);
        self.latency_us = latency(samples, moved);
        let pause = |write: bool| {
            let overlaps = |sample: &&Sample| {
                sample.write == write && sample.at_us < promoted && sample.at_us + sample.latency_us > frozen
            };
            samples.iter().filter(overlaps).map(|sample| sample.latency_us).max().unwrap_or(0)
        };
        (self.write_pause_us, self.read_pause_us) = (pause(true), pause(false));
        self.series = series(samples, start_us);
        self.marks = moved
            .marks_ms
            .iter()
            .map(|(name, ms)| (name.clone(), (*ms as f64 * 1000.0 - start_us as f64) / 1e6))
            .collect();
    }

    /// How early each order would have brought the segments that were read while the shadow was filled.
    fn judge_orders(&mut self, samples: &[Sample], moved: &MoveReport, copy: u64, promoted: u64) {
        let starts: Vec<u32> =
            moved.segments.iter().map(|segment| workload::rank_of(&segment.start).unwrap_or(0)).collect();
        let bytes: Vec<u64> = moved.segments.iter().map(|segment| segment.bytes).collect();
        let mut reads = vec![0_u64; starts.len()];
        for sample in samples.iter().filter(|sample| !sample.write && (copy..promoted).contains(&sample.at_us)) {
            let segment = starts.partition_point(|start| *start <= sample.rank).saturating_sub(1);
            if let Some(count) = reads.get_mut(segment) {
                *count += 1;
            }
        }
        let by = |score: &dyn Fn(usize) -> f64| {
            let mut order: Vec<usize> = (0..starts.len()).collect();
            order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
            order
        };
        let per_byte = |value: f64, index: usize| value / bytes[index].max(1) as f64;
        let sent = moved.sent.iter().filter_map(|id| moved.segments.iter().position(|segment| segment.segment == *id));
        let orders = [
            ("used", sent.collect::<Vec<usize>>()),
            ("auto", by(&|index| per_byte(f64::from(moved.segments[index].auto), index))),
            ("gru", by(&|index| per_byte(f64::from(moved.segments[index].gru), index))),
            ("ewma", by(&|index| per_byte(f64::from(moved.segments[index].ewma), index))),
            ("key", (0..starts.len()).collect()),
            ("oracle", by(&|index| per_byte(reads[index] as f64, index))),
        ];
        for (name, order) in orders {
            let curve = order_curve(&order, &bytes, &reads);
            let quality = area(&curve);
            match name {
                "used" => self.order_quality.used = quality,
                "auto" => self.order_quality.auto = quality,
                "gru" => self.order_quality.gru = quality,
                "ewma" => self.order_quality.ewma = quality,
                "key" => self.order_quality.key = quality,
                _ => self.order_quality.oracle = quality,
            }
            self.curves.push((name.to_string(), curve));
        }
    }

    /// The table that a run prints.
    pub fn print(&self) {
        let phase = |name: &str, of: &PhaseLatency| {
            for (kind, quantiles) in [("read", &of.read), ("write", &of.write)] {
                println!(
                    "  {name:<11} {kind:<6} {:>9} {:>9} {:>9} {:>9} {:>9}",
                    quantiles.count, quantiles.p50, quantiles.p99, quantiles.p999, quantiles.max
                );
            }
        };
        println!(
            "\n  {:<11} {:<6} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "latency, us", "", "count", "p50", "p99", "p99.9", "max"
        );
        phase("before", &self.latency_us.before);
        phase("during", &self.latency_us.during);
        phase("switchover", &self.latency_us.switchover);
        phase("after", &self.latency_us.after);
        println!("\n  reads     {} ({} failed, {} stale)", self.reads.total, self.reads.failed, self.reads.stale);
        let writes = &self.writes;
        println!(
            "  writes    {} ({} acknowledged, {} failed, {} lost)",
            writes.total, writes.acked, writes.failed, writes.lost
        );
        for failure in &self.failures {
            println!("  failed    {failure}");
        }
        println!(
            "  pause     writes {} us, reads {} us; parked for {} us",
            self.write_pause_us, self.read_pause_us, self.frozen_us
        );
        let shadow = &self.shadow;
        println!(
            "  shadow    {} segments, {:.1} MB ({:.1} MB on the wire) in {:.2} s = {:.2} MB/s (cap {:.2}), {} deltas, {} token retries, {} links found again",
            shadow.segments,
            shadow.bytes_copied as f64 / 1e6,
            shadow.bytes_on_wire as f64 / 1e6,
            shadow.seconds,
            shadow.observed_mb_s,
            shadow.throttle_mb_s,
            shadow.deltas,
            shadow.token_retries,
            shadow.resumed
        );
        let foreground = &shadow.foreground;
        println!(
            "  requests  waited (p99, us) {:?}, were to wait {:?} (source, target); the rate was held by them for {:.1} s, by the \
             cap for {:.1} s, by neither for {:.1} s",
            foreground.p99_us,
            foreground.set_point_us,
            foreground.limited_by_foreground_s,
            foreground.limited_by_cap_s,
            foreground.limited_by_supply_s
        );
        let quality = &self.order_quality;
        println!(
            "  order     {}: {:.3} as sent; auto {:.3}, gru {:.3}, ewma {:.3}, key {:.3}, oracle {:.3} (area, 1 = best)",
            self.order, quality.used, quality.auto, quality.gru, quality.ewma, quality.key, quality.oracle
        );
        let steps: Vec<String> =
            self.switchover.steps.iter().map(|step| format!("{} {}", step.name, step.us)).collect();
        println!(
            "  switch    epoch {} -> {}; us: {}",
            self.switchover.epoch_before,
            self.switchover.epoch_after,
            steps.join(", ")
        );
        if let Some(early) = &self.early {
            let shares: Vec<String> = early.local_share.iter().map(|share| format!("{:.1}", share * 100.0)).collect();
            println!(
                "  early     at {} % of the expected accesses, {} segments missing; fetched in {:.2} s; {} of {} reads waited; \
                 local by second, %: {}",
                early.threshold_percent,
                early.missing,
                early.seconds,
                early.reads_waited,
                early.reads,
                shares.join(" ")
            );
        }
        println!(
            "  verify    {} segments, {} records, equal: {}",
            self.verify.segments, self.verify.records, self.verify.equal
        );
        match (self.signal.raised_at_s, self.signal.lead_s) {
            (Some(at), Some(lead)) => {
                println!("  signal    raised at {at:.1} s, {lead:.1} s before the expected crossing")
            }
            _ => println!("  signal    not raised: the move was started by the clock"),
        }
        println!(
            "\n  {}",
            if self.passed { "PASSED: nothing lost, nothing stale, both sides agree" } else { "FAILED" }
        );
    }
}

/// When the copy began, when writes stood still, and when the target served; microseconds of the wall clock.
fn marks_us(moved: &MoveReport) -> (u64, u64, u64) {
    let mark =
        |name: &str| moved.marks_ms.iter().find(|(found, _)| found == name).map_or(u64::MAX, |(_, ms)| ms * 1000);
    (mark("copy"), mark("frozen"), mark("promoted").saturating_add(1000))
}

/// Latency by the phases of a move.
pub fn latency(samples: &[Sample], moved: &MoveReport) -> Latency {
    let (copy, frozen, promoted) = marks_us(moved);
    let quantiles = |from: u64, to: u64, write: bool| {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 120_000_000, 3).ok();
        for sample in samples.iter().filter(|sample| sample.write == write) {
            // A request belongs to the switchover if it was under way during it.
            let end = sample.at_us + sample.latency_us;
            let switching = sample.at_us < promoted && end > frozen;
            let inside = if from == frozen { switching } else { !switching && (from..to).contains(&sample.at_us) };
            if inside && let Some(histogram) = histogram.as_mut() {
                histogram.saturating_record(sample.latency_us.max(1));
            }
        }
        histogram.map_or_else(Quantiles::default, |histogram| Quantiles {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        })
    };
    let phase = |from, to| PhaseLatency { read: quantiles(from, to, false), write: quantiles(from, to, true) };
    Latency {
        before: phase(0, copy),
        during: phase(copy, frozen),
        switchover: phase(frozen, promoted),
        after: phase(promoted, u64::MAX),
    }
}

fn series(samples: &[Sample], start_us: u64) -> Vec<Bin> {
    let mut bins: Vec<(Vec<u64>, Vec<u64>)> = Vec::new();
    for sample in samples {
        let index = (sample.at_us.saturating_sub(start_us) / BIN_US) as usize;
        if bins.len() <= index {
            bins.resize_with(index + 1, Default::default);
        }
        let (reads, writes) = &mut bins[index];
        if sample.write { writes.push(sample.latency_us) } else { reads.push(sample.latency_us) }
    }
    let quantile = |values: &mut Vec<u64>, quantile: f64| {
        values.sort_unstable();
        values
            .get(((values.len() as f64 * quantile) as usize).min(values.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    };
    bins.into_iter()
        .enumerate()
        .map(|(index, (mut reads, mut writes))| {
            let mut all: Vec<u64> = reads.iter().chain(&writes).copied().collect();
            Bin {
                at_s: index as f64 * BIN_US as f64 / 1e6,
                ops_s: all.len() as f64 * 1e6 / BIN_US as f64,
                read_p99_us: quantile(&mut reads, 0.99),
                write_p99_us: quantile(&mut writes, 0.99),
                p50_us: quantile(&mut all, 0.5),
            }
        })
        .collect()
}
