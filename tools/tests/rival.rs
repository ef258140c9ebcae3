//! `antumbra bench move --rival` against a server that only speaks the commands: real ones are not there on every machine.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(rival: &str, loses: &str) -> Output {
    let fake = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_rival.py");
    Command::new(env!("CARGO_BIN_EXE_antumbra"))
        .args(["bench", "move", "--mib", "1", "--rate", "300", "--before-s", "1", "--after-s", "1", "--json"])
        .args(["--rival", rival, "--rival-bin", fake])
        .env("FAKE_RIVAL_LOSES", loses)
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

fn value(report: &Value, group: &str, name: &str) -> f64 {
    let figures = report["figures"].as_array().unwrap();
    let found = figures.iter().find(|figure| figure["group"] == group && figure["name"] == name);
    found.unwrap_or_else(|| panic!("{group}, {name}"))["value"].as_f64().unwrap()
}

#[test]
fn rivals_are_measured_by_the_same_figures() {
    for rival in ["valkey", "redis"] {
        let report = report(&bench(rival, "0"));
        assert_eq!(report["system"], format!("{rival} 0.0.1"));
        assert!(value(&report, "the move", "requests that were told MOVED") > 0.0, "{rival}");
        assert_eq!(
            value(&report, "the move", "requests failed, stale or lost"),
            0.0,
            "{rival}: {}",
            report["failures"]
        );
        let seconds = value(&report, "the move", "from the order to its end");
        assert!((0.3..5.0).contains(&seconds), "{rival}: {seconds}");
        assert!(value(&report, "keys that move", "read p99 before") > 0.0);
        assert!(value(&report, "other keys of the host", "write p99 before") > 0.0);
        assert!(value(&report, "the move", "peak memory of both nodes") > 1.0);
        for phase in ["before", "during", "switchover", "after"] {
            let count = |kind: &str| report["latency_us"][phase][kind]["count"].as_u64().unwrap();
            assert!(count("read") + count("write") > 0, "{rival}: nothing {phase}");
        }
    }
}

#[test]
fn what_a_rival_loses_is_counted() {
    let report = report(&bench("valkey", "1"));
    let lost = value(&report, "the move", "requests failed, stale or lost");
    assert!(report["writes"]["lost"].as_u64().unwrap() > 10 && lost > 10.0, "{}, {lost}", report["writes"]);
}

#[test]
fn missing_rival_is_named_with_what_to_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_antumbra"))
        .args(["bench", "move", "--rival", "valkey", "--rival-bin", "/no/such/valkey-server"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("/no/such/valkey-server") && said.contains("--rival-bin"),
        "{said}"
    );
}
