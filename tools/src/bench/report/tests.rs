use serde_json::json;

use super::figures::Reader;
use super::*;

fn kept() -> Suite {
    serde_json::from_str(include_str!("kept.json")).unwrap()
}

#[test]
fn page_of_a_kept_report_names_every_part_and_every_miss() {
    let suite = kept();
    let page = html::page(&suite).unwrap();
    for part in &suite.parts {
        assert!(
            page.contains(&format!("<h2 id=\"{}\">{}</h2>", part.name, crate::page::escape(&part.title))),
            "{}",
            part.name
        );
    }
    for text in [
        "2 met, 1 missed",
        "<td class=missed>MISSED by 150 %",
        "<td class=met>met by 12 %",
        "5,200,000",
        "thread &#39;main&#39; panicked at &lt;here&gt;",
        "left out: criterion&#39;s program was not given",
        "not measured: fio: not found",
        "(rw,&lt;quoted&gt;)",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(text), "{text} in {page}");
    }
    // Stores and the move's latency are drawn, and a goal that is missed stands above those that are met.
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.find("MISSED").unwrap() < page.find(">met by").unwrap());
    assert!(!page.contains("src=") && !page.contains("<script"), "one file, nothing loaded");
}

#[test]
fn csv_has_a_line_a_figure_and_json_comes_back() {
    let suite = kept();
    let table = csv::table(&suite);
    let figures: usize = suite.parts.iter().map(|part| part.figures.len()).sum();
    assert_eq!(table.lines().count(), 1 + figures);
    assert!(
        table.contains("ycsb,C,antumbra by the best peer,x,1.68,1.5,1.8,3,>= 1.5,met by 12 %,best: lmdb"),
        "{table}"
    );
    let again: Suite = serde_json::from_str(&serde_json::to_string(&suite).unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&suite).unwrap());
    assert!(suite.failed());
}

#[test]
fn markdown_has_stores_side_by_side_and_a_line_a_figure_of_the_rest() {
    let mut suite = kept();
    let ycsb = suite.parts.iter_mut().find(|part| part.name == "ycsb").unwrap();
    let tail = model::Figure::of("C", "lmdb", model::unit::TAIL, &[3.5]);
    ycsb.figures.extend([tail, model::Figure::of("A|B", "antumbra", model::unit::OPERATIONS, &[1_000.0])]);
    let page = markdown::page(&suite);
    for line in [
        "| thousand a second (p99.9 in us) | antumbra | lmdb | antumbra by the best peer | p99.9 by the best peer's |",
        "| C | **5,200** | 3,100 (3.50) | 1.68 (1.50 to 1.80); >= 1.5 | 2.50 (2.00 to 3.00); <= 1: **missed** |",
        "| A\\|B | **1.00** |  |  |  |",
        "| loopback TCP: one connection | 3,120 (2,900 to 3,300) | MB/s |  |",
        "| copy: requests failed, stale or lost | 0 |  | <= 0 |",
    ] {
        assert!(page.lines().any(|shown| shown == line), "{line}\nis not in\n{page}");
    }
}

fn result(store: &str, phase: serde_json::Value, round: u32, ops: f64, p999: f64) -> Value {
    let latency = json!({ "count": 1, "mean_us": 1.0, "p50_us": 1.0, "p99_us": 1.0, "p999_us": p999, "max_us": 9.0 });
    json!({
        "store": store, "phase": phase, "round": round, "clients": 2, "class": "buffered", "seconds": 2.0, "ops_per_second": ops,
        "rows": 3000, "latency": latency, "kinds": {}, "cpu_us_per_op": 1.0, "written_bytes": 0, "read_bytes": 0,
        "resident_bytes": 1048576, "disk_bytes": 0,
    })
}

#[test]
fn stores_are_compared_round_by_round_with_the_best_of_each() {
    let c = || json!({ "ycsb": "C" });
    let raw = json!({
        "machine": { "kernel": "6", "cpu": "x", "cores": 2, "memory_mib": 1, "file_system": "ext4", "device": "vda" },
        "limits": null,
        "spec": { "keys": 1000, "value_bytes": 256, "seconds": 2.0, "warmup_seconds": 0.0, "threads": 2, "put_clients": 0,
                  "memory_bytes": 1048576, "distribution": null, "class": "buffered", "access": "shard", "shards": 2,
                  "first_cpu": null, "spin_us": 0, "scan_rows_max": 100, "seed": 1 },
        "stores": { "lmdb": [["map", "1 GiB"]] },
        "phases": [
            result("antumbra", c(), 0, 300.0, 10.0), result("lmdb", c(), 0, 100.0, 5.0), result("redb", c(), 0, 200.0, 20.0),
            result("antumbra", c(), 1, 100.0, 10.0), result("lmdb", c(), 1, 250.0, 5.0), result("redb", c(), 1, 50.0, 1.0),
            result("antumbra", "readsequential".into(), 0, 1.0, 1.0),
        ],
    });
    let (figures, facts) = Reader::Stores.read(&raw).unwrap();
    let named = |group: &str, name: &str, unit: &str| {
        let same = |figure: &&model::Figure| {
            (figure.group.as_str(), figure.name.as_str(), figure.unit.as_str()) == (group, name, unit)
        };
        figures.iter().find(same).unwrap_or_else(|| panic!("{group}, {name}, {unit} in {figures:?}"))
    };
    // 300 by 200 in the first round, 100 by 250 in the second.
    let ratio = named("C", "antumbra by the best peer", "x");
    assert_eq!((ratio.low, ratio.high, ratio.rounds), (0.4, 1.5, 2));
    assert_eq!(ratio.note, "best: lmdb");
    let tail = named("C", "p99.9 by the best peer's", "x");
    assert_eq!((tail.low, tail.high), (2.0, 10.0));
    assert_eq!(named("read in key order", "antumbra", "rows/s").median, 1500.0);
    assert!(
        figures.iter().all(|figure| figure.group != "read in key order" || figure.goal.is_none()),
        "no peer, no goal"
    );
    assert!(facts.iter().any(|(name, value)| name == "lmdb" && value == "map: 1 GiB"));
}

#[test]
fn a_part_that_fails_says_why_and_another_one_is_measured() {
    let work = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let task = Task { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()], criterion: false };
        let limit = Duration::from_secs(20);
        let job = Job { name: "limits", title: "t", about: "a", reader: Reader::Limits, task: Ok(task), limit };
        part(job, work.path(), &ProgressBar::hidden())
    };
    let error = |part: &Part| match &part.outcome {
        Outcome::Failed { error } => error.clone(),
        other => panic!("{other:?}"),
    };
    assert!(error(&run("echo no device >&2; exit 1")).contains("no device"));
    assert!(error(&run("echo nonsense")).contains("no JSON"));
    assert!(error(&run("echo '{}'")).contains("missing field"));
    let sound = r#"echo '{"ceilings":[{"group":"g","name":"n","unit":"u","rounds":[1.0,3.0,2.0]}],"missing":[]}'"#;
    let measured = run(sound);
    assert_eq!((measured.outcome.clone(), measured.figures[0].median), (Outcome::Done, 2.0));
    // What was measured before it failed is kept.
    let half = run(&format!("{sound}; echo lost a write >&2; exit 1"));
    assert!(error(&half).contains("lost a write") && half.figures.len() == 1);
}

#[test]
fn moves_and_pieces_become_figures_with_their_goals() {
    let row = |value: f64| json!([{ "group": "copy", "name": "of what QUIC alone moves", "value": value, "unit": "x", "goal": { "at_least": 0.8 } }]);
    let raw =
        json!({ "runs": [{ "figures": row(0.5), "trace": "zipf" }, { "figures": row(0.9) }, { "figures": row(0.7) }] });
    let (figures, facts) = Reader::Move.read(&raw).unwrap();
    assert_eq!((figures[0].median, figures[0].verdict().as_str()), (0.7, "MISSED by 13 %"));
    assert_eq!(facts[0], ("load".to_string(), "zipf".to_string()));
    let one = |name: &str, throughput: Value| json!({ "name": name, "throughput": throughput, "low_ns": 90.0, "median_ns": 100.0, "high_ns": 110.0 });
    let raw = json!({ "benchmarks": [
        one("hot/crc32c of 4 KiB", json!({ "Bytes": 4096 })), one("hot/scan", json!({ "Elements": 100 })),
        one("predictor, 1024 segments/longest slice of auto", json!({ "Elements": 1024 })),
    ] });
    let (figures, _) = Reader::Criterion.read(&raw).unwrap();
    assert_eq!((figures[0].median, figures[0].unit.as_str()), (40.96, "GB/s"));
    assert!(figures[0].low < figures[0].median && figures[0].median < figures[0].high);
    assert_eq!((figures[1].median, figures[1].unit.as_str()), (1.0, "ns"));
    assert_eq!((figures[2].median, figures[2].met()), (0.1, Some(true)));
}
