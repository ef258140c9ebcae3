//! From what a part's command printed to figures, their goals beside them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use antumbra_benches::limits::LimitsReport;
use antumbra_benches::report::Report as Stores;
use antumbra_benches::runner::PhaseResult;
use antumbra_benches::spec::{Phase, Workload};
use antumbra_predictor::scorer::ScorerKind;
use serde::Deserialize;
use serde_json::Value;

use super::model::{Figure, Goal, unit};
use crate::CliError;

/// Figures, and facts beside them.
pub type Read = (Vec<Figure>, Vec<(String, String)>);

/// Which part's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Limits,
    Device,
    Criterion,
    Stores,
    Scores,
    Predictor,
    Move,
}

impl Reader {
    /// Reads what was printed.
    pub fn read(self, raw: &Value) -> Result<Read, CliError> {
        match self {
            Reader::Limits => limits(raw),
            Reader::Device => device(raw),
            Reader::Criterion => criterion(raw),
            Reader::Stores => stores(raw),
            Reader::Scores => scores(raw),
            Reader::Predictor => predictor(raw),
            Reader::Move => moves(raw),
        }
    }
}

fn number(of: &Value, field: &str) -> Result<f64, CliError> {
    of.pointer(field).and_then(Value::as_f64).ok_or_else(|| format!("its JSON has no number at {field}").into())
}

fn text<'a>(of: &'a Value, field: &str) -> Result<&'a str, CliError> {
    of.pointer(field).and_then(Value::as_str).ok_or_else(|| format!("its JSON has no text at {field}").into())
}

fn list<'a>(of: &'a Value, field: &str) -> Result<&'a Vec<Value>, CliError> {
    of.pointer(field).and_then(Value::as_array).ok_or_else(|| format!("its JSON has no list at {field}").into())
}

/// A figure that came with its spread.
fn spread(group: &str, name: &str, unit: &str, [low, median, high]: [f64; 3], rounds: usize) -> Figure {
    Figure { low, median, high, rounds, ..Figure::of(group, name, unit, &[]) }
}

fn limits(raw: &Value) -> Result<Read, CliError> {
    let report = LimitsReport::deserialize(raw)?;
    let figures =
        report.ceilings.iter().map(|limit| Figure::of(&limit.group, &limit.name, &limit.unit, &limit.rounds)).collect();
    let missing = report.missing.into_iter().map(|(group, why)| (group, format!("not measured: {why}"))).collect();
    Ok((figures, missing))
}

fn device(raw: &Value) -> Result<Read, CliError> {
    let mut figures = Vec::new();
    for pair in list(raw, "/pairs")? {
        let (name, unit) = (text(pair, "/name")?, text(pair, "/unit")?);
        let goal = if unit == "us" { Goal::AtMost(1.3) } else { Goal::AtLeast(0.9) };
        let rounds = Vec::<[f64; 2]>::deserialize(&pair["rounds"])?;
        let each = |of: fn(&[f64; 2]) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
        figures.push(Figure::of(name, "engine (io_uring by glommio)", unit, &each(|[engine, _]| *engine)));
        figures.push(Figure::of(name, "fio (io_uring)", unit, &each(|[_, fio]| *fio)));
        figures.push(Figure::of(name, "engine by fio", "x", &each(|[engine, fio]| engine / fio)).goal(goal));
    }
    let idle = number(raw, "/idle_percent")?;
    figures.push(Figure::of("idle engine", "use of a core", "%", &[idle]).goal(Goal::AtMost(1.0)));
    figures.push(Figure::of("durable puts", "64 clients", unit::OPERATIONS, &[number(raw, "/puts_per_second")?]));
    let facts = ["bytes_per_get", "batch_bytes"].map(|name| (name.replace('_', " "), raw[name].to_string()));
    Ok((figures, facts.to_vec()))
}

fn criterion(raw: &Value) -> Result<Read, CliError> {
    const SLICE_US_MAX: f64 = 60.0;
    let mut figures = Vec::new();
    for one in list(raw, "/benchmarks")? {
        let (group, name) = text(one, "/name")?.split_once('/').unwrap_or(("", text(one, "/name")?));
        let ns = [number(one, "/low_ns")?, number(one, "/median_ns")?, number(one, "/high_ns")?];
        let work = |kind: &str| one["throughput"][kind].as_f64().filter(|work| *work > 0.0);
        if name == "longest slice of auto" {
            let longest = spread(group, name, "us", ns.map(|ns| ns / 1e3), 0);
            figures.push(if group.contains("1024") { longest.goal(Goal::AtMost(SLICE_US_MAX)) } else { longest });
        } else if let Some(bytes) = work("Bytes") {
            let [low, median, high] = ns.map(|ns| bytes / ns);
            figures.push(spread(group, name, "GB/s", [high, median, low], 0).note(format!("{bytes:.0} bytes")));
        } else {
            let elements = work("Elements").unwrap_or(1.0);
            let note = if elements > 1.0 { format!("each of {elements:.0}") } else { String::new() };
            figures.push(spread(group, name, "ns", ns.map(|ns| ns / elements), 0).note(note));
        }
    }
    Ok((figures, Vec::new()))
}

/// What Antumbra is to reach by the best peer, in throughput.
fn goal_of(phase: Phase) -> f64 {
    match phase {
        Phase::DurablePut => 2.0,
        Phase::Ycsb(Workload::E) | Phase::ReadSequential => 1.0,
        _ => 1.5,
    }
}

fn rate(result: &PhaseResult) -> f64 {
    // A page is no unit that a reader knows: its rows are.
    if result.phase == Phase::ReadSequential { result.rows as f64 / result.seconds } else { result.ops_per_second }
}

const OWN: &str = "antumbra";

fn stores(raw: &Value) -> Result<Read, CliError> {
    let report = Stores::deserialize(raw)?;
    let mut phases: Vec<Phase> = Vec::new();
    for result in &report.phases {
        if !phases.contains(&result.phase) {
            phases.push(result.phase);
        }
    }
    let figures = phases.into_iter().flat_map(|phase| phase_figures(&report, phase)).collect();
    let mut facts: Vec<(String, String)> =
        report.header().lines().next().map(|line| ("machine".to_string(), line.to_string())).into_iter().collect();
    let spec = &report.spec;
    facts.push(("keys".into(), format!("{} of 24 bytes, values of {} bytes", spec.keys, spec.value_bytes)));
    facts.push(("memory budget".into(), format!("{} MiB for memtables and caches", spec.memory_bytes >> 20)));
    facts
        .push(("clients".into(), format!("{}, in a closed loop; {} for durable puts", spec.threads, spec.put_clients)));
    facts.push(("durability".into(), format!("{:?}, but for durable puts", spec.class).to_lowercase()));
    facts.push(("phase".into(), format!("{} s behind {} s of warm-up", spec.seconds, spec.warmup_seconds)));
    facts.push(("seed".into(), spec.seed.to_string()));
    for (store, lines) in &report.stores {
        let lines: Vec<String> = lines.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        facts.push((store.clone(), lines.join("; ")));
    }
    Ok((figures, facts))
}

fn phase_figures(report: &Stores, phase: Phase) -> Vec<Figure> {
    let mut by_store: BTreeMap<&str, Vec<&PhaseResult>> = BTreeMap::new();
    for result in report.phases.iter().filter(|result| result.phase == phase) {
        by_store.entry(&result.store).or_default().push(result);
    }
    let group = phase.to_string();
    let unit = if phase == Phase::ReadSequential { unit::ROWS } else { unit::OPERATIONS };
    let all = |of: &dyn Fn(&PhaseResult) -> f64, results: &[&PhaseResult]| -> Vec<f64> {
        results.iter().map(|result| of(result)).collect()
    };
    let mut figures = Vec::new();
    for (store, results) in &by_store {
        figures.push(Figure::of(&group, store, unit, &all(&rate, results)));
        figures.push(Figure::of(&group, store, "us p50", &all(&|result| result.latency.p50_us, results)));
        figures.push(Figure::of(&group, store, unit::TAIL, &all(&|result| result.latency.p999_us, results)));
        figures.push(Figure::of(&group, store, "us CPU/op", &all(&|result| result.cpu_us_per_op, results)));
        let resident = all(&|result| result.resident_bytes as f64 / f64::from(1 << 20), results);
        figures.push(Figure::of(&group, store, "MiB resident", &resident));
    }
    let Some(own) = by_store.get(OWN) else { return figures };
    let peers: Vec<&Vec<&PhaseResult>> =
        by_store.iter().filter(|(store, _)| ![OWN, "null"].contains(store)).map(|(_, results)| results).collect();
    // A ratio is of two that took turns in one round.
    let against = |of: &dyn Fn(&PhaseResult) -> f64, best: fn(f64, f64) -> f64| -> Vec<f64> {
        let by = |own: &&PhaseResult| {
            let round = peers.iter().flat_map(|peer| peer.iter().filter(|peer| peer.round == own.round));
            Some(of(own) / round.map(|peer| of(peer)).reduce(best)?)
        };
        own.iter().filter_map(by).collect()
    };
    if peers.is_empty() {
        return figures;
    }
    let best = peers.iter().max_by(|a, b| median_rate(a).total_cmp(&median_rate(b)));
    let best = best.map_or("", |results| results[0].store.as_str());
    let throughput = Figure::of(&group, "antumbra by the best peer", "x", &against(&rate, f64::max));
    figures.push(throughput.goal(Goal::AtLeast(goal_of(phase))).note(format!("best: {best}")));
    if matches!(phase, Phase::Ycsb(_)) {
        let tail = against(&|result| result.latency.p999_us, f64::min);
        figures.push(Figure::of(&group, "p99.9 by the best peer's", "x", &tail).goal(Goal::AtMost(1.0)));
    }
    figures
}

fn median_rate(results: &[&PhaseResult]) -> f64 {
    Figure::of("", "", "", &results.iter().map(|result| rate(result)).collect::<Vec<_>>()).median
}

fn scores(raw: &Value) -> Result<Read, CliError> {
    let mut figures = Vec::new();
    let rounds = raw["rounds"].as_u64().unwrap_or_default() as usize;
    for row in list(raw, "/rows")? {
        let (group, mode) = (format!("{}, {}", text(row, "/use")?, text(row, "/load")?), text(row, "/mode")?);
        figures.push(Figure::of(&group, mode, unit::OPERATIONS, &[number(row, "/ops_per_second")?]));
        if mode != "off" {
            let ratio = [number(row, "/spread/0")?, number(row, "/ratio")?, number(row, "/spread/1")?];
            figures.push(spread(&group, &format!("{mode} by off"), "x", ratio, rounds));
        }
    }
    Ok((figures, Vec::new()))
}

fn predictor(raw: &Value) -> Result<Read, CliError> {
    let own = vec![raw.clone()];
    let traces = raw.get("traces").and_then(Value::as_array).unwrap_or(&own);
    let mut figures = Vec::new();
    let (mut ewma, mut classic) = (Vec::new(), Vec::new());
    for report in traces {
        let group = format!("{}/{}", text(report, "/trace")?, text(report, "/mapping")?);
        let scorers = report["scorers"].as_object().ok_or("its JSON has no scorers")?;
        for (name, scorer) in scorers.iter().filter(|(name, _)| *name != "oracle") {
            let share = [number(scorer, "/ci95/0")?, number(scorer, "/pct_of_oracle")?, number(scorer, "/ci95/1")?];
            figures.push(spread(&group, name, unit::SHARE, share, 0).note("95 % interval"));
        }
        let of = |kind: &ScorerKind| scorers.get(kind.as_str())?["pct_of_oracle"].as_f64();
        let best = ScorerKind::ALL.iter().filter(|kind| kind.is_rule()).filter_map(of).max_by(f64::total_cmp);
        if let (Some(best), Some(auto)) = (best, of(&ScorerKind::Auto)) {
            let above = Figure::of(&group, "auto less the best rule", "points", &[auto - best]);
            figures.push(above.goal(Goal::AtLeast(-1.0)));
        }
        ewma.extend(report["gap_vs_ewma"].as_f64().map(|gap| gap * 100.0));
        classic.extend(report["gap_vs_classic"].as_f64().map(|gap| gap * 100.0));
    }
    for (name, gaps, goal) in [("hindsight EWMA", ewma, 20.0), ("the chosen rule", classic, 15.0)] {
        if gaps.is_empty() {
            continue;
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let all = Figure::of("gap to the oracle that gru closes", &format!("against {name}"), "%", &gaps);
        let note = format!("mean of {} traces; the goal is of all of them", gaps.len());
        figures.push(Figure { median: mean, ..all }.goal(Goal::AtLeast(goal)).note(note));
    }
    Ok((figures, Vec::new()))
}

fn moves(raw: &Value) -> Result<Read, CliError> {
    let own = vec![raw.clone()];
    let runs = raw.get("runs").and_then(Value::as_array).unwrap_or(&own);
    let mut figures: Vec<(Figure, Vec<f64>)> = Vec::new();
    for run in runs {
        for (at, figure) in list(run, "/figures")?.iter().enumerate() {
            let value = number(figure, "/value")?;
            if let Some((_, values)) = figures.get_mut(at) {
                values.push(value);
                continue;
            }
            let goal = Option::<Goal>::deserialize(&figure["goal"])?;
            let named = Figure::of(text(figure, "/group")?, text(figure, "/name")?, text(figure, "/unit")?, &[]);
            figures.push((Figure { goal, ..named }, vec![value]));
        }
    }
    let of = |(named, values): &(Figure, Vec<f64>)| Figure {
        goal: named.goal,
        ..Figure::of(&named.group, &named.name, &named.unit, values)
    };
    let fact = |name: &str, field: &str| {
        let value = runs.first()?.pointer(field)?;
        Some((name.to_string(), value.as_str().map_or_else(|| value.to_string(), str::to_string)))
    };
    let facts = [
        ("load", "/trace"),
        ("durability", "/durability"),
        ("coordinator", "/coordinator"),
        ("partition, MiB", "/partition_mib"),
        ("requests/s", "/rate_ops_s"),
        ("copy order", "/order"),
        ("set-point", "/set_point"),
        ("network", "/environment/network"),
    ];
    Ok((figures.iter().map(of).collect(), facts.iter().filter_map(|(name, field)| fact(name, field)).collect()))
}

/// The trace that comes with the program, where programs can read it.
pub fn bundled_trace(dir: &std::path::Path) -> Result<PathBuf, CliError> {
    let path = dir.join("mooncake_conv.csv.zst");
    std::fs::write(&path, crate::demo::BUNDLED).map_err(|cause| format!("{}: {cause}", path.display()))?;
    Ok(path)
}
