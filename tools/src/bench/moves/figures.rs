//! What is compared of a move, the same for Antumbra and its rivals.

use serde::Serialize;

use super::super::report::model::{Figure, Goal};
use super::{MoveBench, OFF};
use crate::moving::report::{PhaseLatency, Quantiles};

/// One figure of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub group: &'static str,
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub goal: Option<Goal>,
}

const MOVING: &str = "keys that move";
const OTHER: &str = "other keys of the host";
const MOVE: &str = "the move";

fn by(now: u64, before: u64) -> f64 {
    now as f64 / before.max(1) as f64
}

/// All of them.
pub fn rows(run: &MoveBench) -> Vec<Row> {
    let (own, other, report) = (&run.report.latency_us, &run.other_partitions, &run.report);
    let mut rows = Vec::new();
    let mut row = |group, name, value: f64, unit, goal| rows.push(Row { group, name, value, unit, goal });
    // A copy that takes what it can get is held against the link, any other against what requests notice.
    let takes_all = run.set_point == OFF;
    let at_most = |goal| (!takes_all).then_some(Goal::AtMost(goal));
    let read = |phase: &PhaseLatency| phase.read.clone();
    let write = |phase: &PhaseLatency| phase.write.clone();
    type Of<'a> = &'a dyn Fn(&PhaseLatency) -> Quantiles;
    let kinds: [(Of<'_>, [&'static str; 7]); 2] = [
        (
            &read,
            [
                "read p99 before",
                "read p99 during the copy",
                "read max during the copy by the max before",
                "read max during the copy",
                "read p99 at the switchover",
                "read max at the switchover",
                "read p99 after",
            ],
        ),
        (
            &write,
            [
                "write p99 before",
                "write p99 during the copy",
                "write max during the copy by the max before",
                "write max during the copy",
                "write p99 at the switchover",
                "write max at the switchover",
                "write p99 after",
            ],
        ),
    ];
    for (group, of) in [(MOVING, own), (OTHER, other)] {
        for (kind, [before, during, max_by, max, switch, switch_max, after]) in &kinds {
            let (reads, moving) = (before.starts_with("read"), group == MOVING);
            let goal = |for_reads: bool, for_moving: bool, goal| {
                at_most(goal).filter(|_| reads == for_reads && moving == for_moving)
            };
            let [quiet, copy, switchover, later] = [&of.before, &of.during, &of.switchover, &of.after].map(kind);
            row(group, before, quiet.p99 as f64, "us", None);
            row(group, during, by(copy.p99, quiet.p99), "x", goal(true, true, 1.1).or(goal(false, false, 1.1)));
            row(group, max_by, by(copy.max, quiet.max), "x", goal(true, true, 2.0));
            row(group, max, copy.max as f64, "us", None);
            row(group, switch, by(switchover.p99, quiet.p99), "x", goal(true, true, 1.2));
            row(group, switch_max, switchover.max as f64, "us", None);
            row(group, after, by(later.p99, quiet.p99), "x", None);
        }
    }
    row(MOVING, "longest write at the switchover", report.write_pause_us as f64, "us", at_most(2000.0));
    if report.frozen_us > 0 {
        row(MOVING, "writes parked for", report.frozen_us as f64, "us", None);
    }
    row(MOVE, "from the order to its end", run.move_s, "s", None);
    row(MOVE, "rate of the copy", run.copy_mb_s, "MB/s", None);
    if run.quic_limit_mb_s > 0.0 {
        let goal = takes_all.then_some(Goal::AtLeast(0.8));
        row(MOVE, "of what QUIC alone moves", run.copy_mb_s / run.quic_limit_mb_s, "x", goal);
    }
    let failed = report.reads.failed + report.reads.stale + report.writes.failed + report.writes.lost;
    row(MOVE, "requests failed, stale or lost", failed as f64, "", Some(Goal::AtMost(0.0)));
    row(MOVE, "requests that were told MOVED", report.moved as f64, "", None);
    row(MOVE, "CPU of both nodes meanwhile", run.cpu_s, "s", None);
    row(MOVE, "peak memory of both nodes", run.peak_mib, "MiB", None);
    rows.sort_by_key(|row| [MOVING, OTHER, MOVE].iter().position(|group| *group == row.group));
    rows
}

/// The table: medians of the runs, and how far they lie apart.
pub fn print(runs: &[MoveBench]) {
    let one = &runs[0];
    println!(
        "  {}: {} MiB, {:.0} requests/s ({:.0} of a closed loop), {}; {} runs, coordinator {}; {}\n  {}\n",
        one.system,
        one.partition_mib,
        one.rate_ops_s,
        one.capacity_ops_s,
        one.report.trace,
        runs.len(),
        one.coordinator,
        one.report.durability,
        one.report.environment,
    );
    println!("  {:<70} {:>10} {:>10} {:>10}   goal", "", "median", "least", "most");
    for (at, row) in one.figures.iter().enumerate() {
        let values: Vec<f64> = runs.iter().filter_map(|run| run.figures.get(at)).map(|row| row.value).collect();
        let figure = Figure::of(row.group, row.name, row.unit, &values);
        let goal = row.goal.map_or(String::new(), |goal| goal.to_string());
        let name = format!("{}: {}, {}", row.group, row.name, row.unit);
        println!("  {name:<70} {:>10.2} {:>10.2} {:>10.2}   {goal}", figure.median, figure.low, figure.high);
    }
    for failure in runs.iter().flat_map(|run| &run.report.failures).take(5) {
        println!("  failed: {failure}");
    }
}
