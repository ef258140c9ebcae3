//! The figures of the crate's README on the recorded traces, evaluated anew; the guard among them.
//!
//! Skipped where the traces do not lie beside the repository. Not run in a build with libtorch, whose tests are the same.

use std::path::{Path, PathBuf};

use antumbra_predictor::eval::{EvalConfig, Requests, evaluate};
use antumbra_predictor::trace;

/// Points of the oracle by which a figure may differ from the table: it has one digit, and processors differ in the last bits.
const TOLERANCE: f64 = 0.3;
/// Points that `auto` may be below the best rule of a trace: the goal.
const GUARD: f64 = 1.0;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces").join(format!("{name}.csv.zst"))
}

/// Header and cells of each row of the README's table of traces, the trace and its mapping first.
fn table() -> (Vec<String>, Vec<Vec<String>>) {
    let readme = include_str!("../../README.md");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let mut lines = readme.lines().skip_while(|line| !line.starts_with("| trace/mapping |"));
    let header = cells(lines.next().expect("the table"));
    (header, lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect())
}

/// Evaluates some of the table's traces; those that are not there are named.
fn check(part: usize, parts: usize) {
    let (header, rows) = table();
    assert_eq!(rows.len(), 11, "each of the traces has its row");
    for row in rows.iter().skip(part).step_by(parts) {
        let (name, mapping) = row[0].split_once('/').expect("trace/mapping");
        if !file(name).exists() {
            println!("SKIPPED: no trace {name} beside the repository (shared/traces)");
            continue;
        }
        let requests = trace::read_all(&file(name)).expect("a trace");
        let config = EvalConfig::new(mapping.parse().expect("a mapping"));
        let report = evaluate(&Requests { trace: name.into(), requests }, &config).expect("a report");
        let above = report.auto_above_best_rule().expect("auto and rules");
        assert!(above >= -GUARD, "{name}: auto is {above:+.2} points from the best rule");
        for (column, told) in header.iter().zip(row).skip(1) {
            let found = match column.as_str() {
                "classic" => report.classic.pct_of_oracle,
                "auto less best rule" => above,
                gap if gap.starts_with("gap") => continue,
                scorer => report.scorers[scorer].pct_of_oracle,
            };
            let told: f64 = told.parse().expect("a number");
            assert!((found - told).abs() <= TOLERANCE, "{name}, {column}: {found:.2}, the README says {told}");
        }
    }
}

// Four tests, so that they run side by side.
#[test]
fn readme_figures_and_guard_hold_first_part() {
    check(0, 4);
}

#[test]
fn readme_figures_and_guard_hold_second_part() {
    check(1, 4);
}

#[test]
fn readme_figures_and_guard_hold_third_part() {
    check(2, 4);
}

#[test]
fn readme_figures_and_guard_hold_fourth_part() {
    check(3, 4);
}
