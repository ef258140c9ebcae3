//! The commands that work on data folders, as an operator types them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{Durability, Engine, EngineConfig, PartitionOptions, PartitionSpec, Write};
use futures_lite::future::block_on;
use serde_json::Value;

const KEYS: u32 = 3_000;

/// A folder with tables and a log; one key is no text, one has a deadline.
fn filled(dir: &Path) {
    let engine = Engine::open(EngineConfig::new(dir)).unwrap();
    let spec = PartitionSpec {
        id: PartitionId(4),
        keyspace: "tools".into(),
        range: KeyRange::all(),
        epoch: Epoch(3),
        options: PartitionOptions {
            segment_target_bytes: 128 << 10,
            block_bytes: 4 << 10,
            ..PartitionOptions::default()
        },
    };
    let partition = block_on(engine.create_partition(ShardId(0), spec)).unwrap();
    let put = |key: Vec<u8>, value: Vec<u8>, expires_at_ms: u64| {
        let write = Write { expires_at_ms, ..Write::put(key, value) };
        block_on(partition.write(write, Durability::Buffered)).unwrap();
    };
    (0..KEYS).for_each(|number| put(format!("key-{number:05}").into_bytes(), vec![b'v'; 200], 0));
    block_on(partition.compact()).unwrap();
    put(vec![0, 255], vec![128; 10], 0);
    put(b"mortal".to_vec(), b"soon".to_vec(), 4_000_000_000_000);
    block_on(partition.delete("key-00007")).unwrap();
    block_on(engine.close()).unwrap();
}

fn antumbra(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_antumbra")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that has to succeed and parses what it prints.
fn json(args: &[&str]) -> Value {
    let output = antumbra(args);
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|cause| panic!("{args:?}: {cause}: {}", text(&output.stdout)))
}

fn tables(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("shard-000")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "tab"));
    found.sort();
    found
}

#[test]
fn inspect_verify_and_scrub_tell_the_same_of_a_sound_folder() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (folder, shard) = (dir.path().to_str().unwrap(), dir.path().join("shard-000"));
    let shard = shard.to_str().unwrap();
    let verified = json(&["verify", "--dir", folder, "--json"]);
    assert_eq!(verified["records"], KEYS);

    let manifest = json(&["inspect", "manifest", shard, "--edits", "--json"]);
    assert_eq!(manifest["partitions"][0]["partition"], 4);
    assert_eq!(manifest["partitions"][0]["keyspace"], "tools");
    let mut edits = manifest["groups"].as_array().unwrap().iter().flat_map(|group| group["edits"].as_array().unwrap());
    assert!(edits.any(|edit| edit.as_str().unwrap().starts_with("create partition 4")), "{manifest}");

    let records: u64 = tables(dir.path())
        .iter()
        .map(|file| {
            let table = &json(&["inspect", "segment", file.to_str().unwrap(), "--blocks", "--json"])["tables"][0];
            let blocks = table["blocks"].as_array().unwrap();
            assert_eq!(blocks.iter().map(|block| block["records"].as_u64().unwrap()).sum::<u64>(), table["records"]);
            table["records"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(records, u64::from(KEYS));

    let wal = json(&["inspect", "wal", shard, "--records", "--json"]);
    let listed = wal["records"].as_array().unwrap();
    let last = listed.last().unwrap();
    assert_eq!((last["kind"].as_str(), last["key_hex"].as_str()), (Some("delete"), Some("6b65792d3030303037")));
    let out = antumbra(&["inspect", "wal", shard]);
    assert!(text(&out.stdout).contains("generation 1"), "{}", text(&out.stdout));

    let scrubbed = json(&["scrub", "--dir", folder, "--mb-per-second", "0", "--json"]);
    assert_eq!((scrubbed["records"].as_u64(), scrubbed["damage"].as_array().unwrap().len()), (Some(3_000), 0));
}

#[test]
fn damage_is_named_by_each_command_and_repair_mends_it_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let folder = dir.path().to_str().unwrap();
    let file = tables(dir.path()).swap_remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for args in
        [&["verify", "--dir", folder][..], &["inspect", "segment", file.to_str().unwrap()], &["scrub", "--dir", folder]]
    {
        let output = antumbra(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("checksum"), "{args:?}: {said}");
    }
    let dry = antumbra(&["repair", "--dir", folder, "--json"]);
    assert_eq!(dry.status.code(), Some(2));
    let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!((dry["applied"].as_bool(), dry["findings"][0]["kind"].as_str()), (Some(false), Some("table")));
    let lost = dry["findings"][0]["records_lost"].as_u64().unwrap();
    assert!(lost > 0 && lost < 100, "{lost}");
    let said = text(&antumbra(&["repair", "--dir", folder]).stdout);
    assert!(said.contains("nothing was changed") && said.contains(&format!("lost: {lost} records")), "{said}");
    assert!(antumbra(&["repair", "--dir", folder, "--apply"]).status.success());
    assert_eq!(json(&["verify", "--dir", folder, "--json"])["records"], u64::from(KEYS) - lost);
    assert!(dir.path().join("quarantine").is_dir());
}

#[test]
fn dump_and_load_carry_every_live_record_over() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to, again) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("again"));
    filled(&from);
    let first = antumbra(&["dump", "--dir", from.to_str().unwrap()]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let lines = text(&first.stdout);
    assert_eq!(lines.lines().count(), KEYS as usize + 4, "beginning, partition, 3,001 records, end");
    assert!(lines.contains("{\"k\":\"mortal\",\"v\":\"soon\",\"x\":4000000000000}"));
    assert!(lines.contains("{\"k\":{\"hex\":\"00ff\"},"));
    assert!(!lines.contains("key-00007"));
    let file = dir.path().join("dump.jsonl");
    std::fs::write(&file, &first.stdout).unwrap();

    let load = |args: &[&str]| {
        let mut all = vec!["load", "--in", file.to_str().unwrap()];
        all.extend(args);
        antumbra(&all)
    };
    let loaded = load(&["--dir", to.to_str().unwrap(), "--shards", "2"]);
    assert!(loaded.status.success(), "{}", text(&loaded.stderr));
    assert!(text(&loaded.stderr).contains("3001 records"));
    let second = antumbra(&["dump", "--dir", to.to_str().unwrap()]);
    assert_eq!(text(&second.stdout), lines, "a dump of what was loaded is the same dump");

    let refused = load(&["--dir", to.to_str().unwrap()]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("--merge"), "{}", text(&refused.stderr));
    assert!(load(&["--dir", to.to_str().unwrap(), "--merge"]).status.success());

    std::fs::write(&file, &first.stdout[..first.stdout.len() / 2]).unwrap();
    let cut = load(&["--dir", again.to_str().unwrap()]);
    assert!(!cut.status.success() && text(&cut.stderr).contains("cut short"), "{}", text(&cut.stderr));
}

#[test]
fn commands_on_a_folder_that_is_none_say_so_and_make_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    for args in [
        ["verify", "--dir", folder],
        ["repair", "--dir", folder],
        ["scrub", "--dir", folder],
        ["dump", "--dir", folder],
    ] {
        let output = antumbra(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains("no data folder"), "{args:?}: {}", text(&output.stderr));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{args:?}");
    }
}

#[test]
fn bench_ycsb_short_run_reports_every_phase() {
    let dir = tempfile::tempdir().unwrap();
    for access in ["shard", "handle"] {
        let report = json(&[
            "bench",
            "ycsb",
            "--access",
            access,
            "--keys",
            "5000",
            "--seconds",
            "0.2",
            "--warmup",
            "0.1",
            "--workload",
            "A,D,E",
            "--threads",
            "2",
            "--put-clients",
            "4",
            "--memory-mb",
            "64",
            "--json",
            "--dir",
            dir.path().to_str().unwrap(),
        ]);
        let phases = report["phases"].as_array().unwrap();
        // Load, A, D; load, E, durable puts.
        assert_eq!(phases.len(), 6);
        for phase in phases {
            assert!(phase["ops_per_second"].as_f64().unwrap() > 0.0, "{phase}");
            assert!(phase["latency"]["p999_us"].as_f64() >= phase["latency"]["p50_us"].as_f64(), "{phase}");
        }
        assert_eq!(phases[0]["latency"]["count"], 5_000);
        assert!(phases[4]["rows"].as_u64().unwrap() > 0);
        assert!(report["limits"]["durable_writes_per_second"].as_f64().unwrap() > 0.0);
    }
    let peer = antumbra(&["bench", "ycsb", "--engine", "rocksdb"]);
    assert!(!peer.status.success() && text(&peer.stderr).contains("--features peers"), "{}", text(&peer.stderr));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the data is gone");
}
