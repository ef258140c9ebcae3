//! The demo and the benchmark of a move, short, as a newcomer would run them.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each of these tests loads the whole machine: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn demo_moves_a_partition_and_everything_holds() {
    let _alone = alone();
    let out = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_antumbra"))
        .args(["demo", "--seconds", "16", "--rate", "500", "--throttle-mb-s", "0", "--json", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success(), "{text}{}", String::from_utf8_lossy(&status.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("report.json")).unwrap()).unwrap();
    for zero in ["/reads/failed", "/reads/stale", "/writes/failed", "/writes/lost"] {
        assert_eq!(report.pointer(zero).unwrap(), 0, "{zero}");
    }
    assert_eq!(report["verify"]["equal"], true);
    let epoch = |name: &str| report["switchover"][name].as_u64().unwrap();
    assert_eq!(epoch("epoch_after"), epoch("epoch_before") + 1);
    assert!(report["keys"].as_u64().unwrap() >= 200_000);
    for field in [
        "/trace",
        "/order",
        "/latency_us/switchover/write/p999",
        "/write_pause_us",
        "/read_pause_us",
        "/shadow/delta_bytes_on_wire",
        "/shadow/observed_mb_s",
        "/order_quality/auto",
        "/order_quality/oracle",
        "/switchover/steps/0/us",
        "/verify/source_digest",
        "/signal/raised_at_s",
        "/signal/lead_s",
    ] {
        assert!(report.pointer(field).is_some(), "{field}");
    }
    let page = std::fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Passed"));
}

#[test]
fn early_demo_counts_reads_that_waited() {
    let _alone = alone();
    let out = tempfile::tempdir().unwrap();
    let args = ["demo", "--seconds", "12", "--rate", "400", "--throttle-mb-s", "4", "--early", "60", "--json", "--out"];
    let output = Command::new(env!("CARGO_BIN_EXE_antumbra")).args(args).arg(out.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |field: &str| report.pointer(field).unwrap().as_u64().unwrap();
    assert!(number("/early/missing") > 0, "it was early");
    assert_eq!(number("/early/missing"), number("/switchover/missing"));
    assert!(number("/early/reads_waited") <= number("/early/reads"));
    assert_eq!(report["verify"]["equal"], true);
}

#[test]
fn bench_move_prints_what_the_goals_are_about() {
    let _alone = alone();
    let args = ["bench", "move", "--mib", "16", "--rate", "400", "--before-s", "2", "--after-s", "1", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_antumbra")).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    for field in [
        "/other_partitions/before/write/p99",
        "/other_partitions/during/read/max",
        "/copy_mb_s",
        "/quic_limit_mb_s",
        "/latency_us/switchover/write/p999",
        "/write_pause_us",
        "/shadow/delta_bytes_raw",
    ] {
        assert!(report.pointer(field).is_some_and(|value| value.is_number()), "{field}");
    }
    // Writes onto segments that the target did not hold yet, and onto such that it did.
    for field in ["/shadow/elided_records", "/shadow/mirrored_records"] {
        assert!(report.pointer(field).and_then(serde_json::Value::as_u64) > Some(0), "{field}: {report}");
    }
    assert_eq!((&report["coordinator"], &report["passed"]), (&"embedded".into(), &true.into()));
}
