//! The comparison, short, as a user would run it.
#![allow(clippy::unwrap_used)]

use std::process::Command;

fn compare(args: &[&str]) -> std::process::Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
    command.args(["--keys", "3000", "--seconds", "0.2", "--warmup", "0.1", "--workload", "C,F", "--put-clients", "4"]);
    command.args(["--memory-mb", "64", "--json", "--dir"]).arg(dir.path()).args(args).output().unwrap()
}

#[test]
fn compare_two_stores_reports_every_phase_of_both() {
    let output = compare(&["--engines", "antumbra,null", "--rounds", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for store in ["antumbra", "null"] {
        assert!(report["stores"][store].is_array());
        let phases = report["phases"].as_array().unwrap().iter().filter(|phase| phase["store"] == store);
        // The load, two workloads and the durable puts in each of two rounds.
        assert_eq!(phases.clone().count(), 8);
        assert!(phases.clone().all(|phase| phase["ops_per_second"].as_f64().unwrap() > 0.0));
    }
}

#[test]
fn compare_unknown_store_says_which_there_are() {
    let output = compare(&["--engines", "antumbra,paper"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("paper") && said.contains("antumbra, null"), "{said}");
}
