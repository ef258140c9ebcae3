//! `antumbra bench report --smoke`: every part works, and page, JSON and CSV agree.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn smoke_report_names_every_part_in_page_json_and_csv() {
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_antumbra"))
        .args(["bench", "report", "--smoke", "--out"])
        .arg(out.path())
        .args(["--dir", env!("CARGO_TARGET_TMPDIR")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    let report: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!((&report["format"], &report["mode"]), (&1.into(), &"smoke".into()));
    let header: Vec<&str> = report["header"].as_array().unwrap().iter().map(|line| line[0].as_str().unwrap()).collect();
    for name in ["kernel", "CPU", "file system", "device write cache", "direct I/O", "rustc", "libraries", "commit"] {
        assert!(header.contains(&name), "{name} in {header:?}");
    }
    let parts = report["parts"].as_array().unwrap();
    let (page, table, tables) = (read("report.html"), read("report.csv"), read("report.md"));
    let mut seen = Vec::new();
    for part in parts {
        let name = part["name"].as_str().unwrap();
        seen.push(name);
        assert!(page.contains(&format!("<h2 id=\"{name}\">")), "{name}");
        let figures = part["figures"].as_array().unwrap();
        match part["outcome"]["state"].as_str().unwrap() {
            "done" => {
                assert!(!figures.is_empty() && !part["raw"].is_null(), "{name}");
                assert!(tables.contains(&format!("\n## {}\n", part["title"].as_str().unwrap())), "{name}");
                assert!(
                    figures.iter().all(|figure| figure["median"].is_number() && figure["unit"].is_string()),
                    "{name}"
                );
                assert_eq!(
                    table.lines().filter(|line| line.starts_with(&format!("{name},"))).count(),
                    figures.len(),
                    "{name}"
                );
            }
            // Criterion's programs and the peers are given by cargo xtask bench.
            "skipped" => assert!(["hot", "pass", "ycsb-4x", "puts", "scores"].contains(&name), "{name}: {part}"),
            other => panic!("{name}: {other}"),
        }
    }
    assert_eq!(
        seen,
        [
            "limits",
            "device",
            "hot",
            "ycsb",
            "ycsb-4x",
            "puts",
            "fills",
            "replay",
            "scores",
            "predictor",
            "pass",
            "move",
            "copy"
        ]
    );
    let figure = |part: &str, group: &str| {
        let part = parts.iter().find(|found| found["name"] == part).unwrap();
        part["figures"].as_array().unwrap().iter().any(|figure| figure["group"] == group)
    };
    for (part, group) in [
        ("limits", "QUIC alone (quinn, loopback)"),
        ("limits", "memory"),
        ("device", "group commit, 64 clients"),
        ("ycsb", "E"),
        ("ycsb", "durable put"),
        ("fills", "fill in key order"),
        ("fills", "read in key order"),
        ("replay", "replay"),
        ("predictor", "gap to the oracle that gru closes"),
        ("move", "other keys of the host"),
        ("copy", "the move"),
    ] {
        assert!(figure(part, group), "{part}: {group}");
    }
    assert!(page.matches("<svg").count() >= 3 && page.contains("</html>"));

    let again = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_antumbra"))
        .args(["bench", "report", "--from"])
        .arg(out.path().join("report.json"))
        .arg("--out")
        .arg(again.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(again.path().join("report.md")).unwrap(), tables);
}

#[test]
fn unknown_part_is_refused_by_name() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_antumbra")).args(["bench", "report", "--only", "yscb"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("yscb") && said.contains("ycsb-4x"), "{said}");
}
