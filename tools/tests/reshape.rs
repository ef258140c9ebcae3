//! Real processes that split partitions under load, move the upper half away and back, and make one of them again; the
//! owner dies at each step.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use antumbra_net::failpoint::Failpoint;

use common::registers::Registers;
use common::settled::{SETTLE_MAX, json, partitions_at, wait_died};
use common::{Node, ask, start_with, wait_for};

const OWNER: usize = 1;

/// Waits until the node serves these partitions, and has no others.
fn wait_served(node: &Node, wanted: &[u64]) {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let partitions = partitions_at(node);
        let served = |id: &u64| {
            let owned =
                |partition: &serde_json::Value| partition["partition"] == *id && partition["serving"] == "owner";
            partitions.iter().any(owned)
        };
        if wanted.iter().all(served) && partitions.len() == wanted.len() {
            return;
        }
        assert!(Instant::now() < deadline, "{wanted:?} are not served: {partitions:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Three nodes with two shards each, the second with the only partition, under load.
fn start_loaded(dir: &Path) -> (Vec<Node>, Arc<Registers>, Vec<JoinHandle<()>>) {
    let nodes = start_with(dir, 3, &["--roll-back-s", "1", "--shards", "2"]);
    assert!(ask(nodes[0].resp, "ANTUMBRA CREATE 1 0 16383 2").contains("\"owner\":2"));
    wait_served(&nodes[OWNER], &[1]);
    let registers = Arc::new(Registers::new());
    let writers = registers.start(nodes.iter().map(|node| node.resp).collect());
    std::thread::sleep(Duration::from_millis(500));
    (nodes, registers, writers)
}

/// Asks the owner, which dies at `place`, if there is one, and comes back. Whatever had not been recorded by then is asked
/// for again.
fn ask_and_die(nodes: &mut [Node], command: &str, place: Option<&str>, (before, after): (&[u64], &[u64])) {
    if place.is_some() {
        nodes[OWNER].restart(place);
        wait_served(&nodes[OWNER], before);
    }
    let asking = (nodes[OWNER].resp, command.to_string());
    let asked = std::thread::spawn(move || std::panic::catch_unwind(|| ask(asking.0, &asking.1)).unwrap_or_default());
    let reply = asked.join().unwrap();
    let Some(place) = place else {
        assert!(reply.contains("\"epoch\":"), "{command}: {reply}");
        return wait_served(&nodes[OWNER], after);
    };
    wait_died(&mut nodes[OWNER], place);
    std::thread::sleep(Duration::from_millis(300));
    nodes[OWNER].restart(None);
    if place.ends_with("ing") {
        // Nothing was recorded.
        wait_served(&nodes[OWNER], before);
        let reply = ask(nodes[OWNER].resp, command);
        assert!(reply.contains("\"epoch\":"), "{command}: {reply}");
    }
    wait_served(&nodes[OWNER], after);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn check_everywhere(nodes: &[Node], registers: &Registers) {
    for node in nodes {
        registers.check_at(node.resp);
    }
}

#[test]
fn splits_and_merges_under_load_with_deaths_at_each_step_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, registers, writers) = start_loaded(dir.path());
    let elsewhere = ask(nodes[0].resp, "ANTUMBRA SPLIT 1 8192 2");
    assert!(elsewhere.contains("split it there"), "{elsewhere}");
    let outside = ask(nodes[OWNER].resp, "ANTUMBRA SPLIT 1 0 2");
    assert!(outside.contains("split it at 1-16383"), "{outside}");

    // The owner lives; then it dies at each step. The parent is halved each time.
    let places = |places: [&'static str; 3]| std::iter::once(None).chain(places.into_iter().map(Some));
    let (mut last, mut served) = (16_383_u64, vec![1]);
    for (index, place) in places(Failpoint::OF_A_SPLIT).enumerate() {
        let (at, child) = (last / 2 + 1, index as u64 + 2);
        let after = [&served[..], &[child]].concat();
        ask_and_die(&mut nodes, &format!("ANTUMBRA SPLIT 1 {at} {child}"), place, (&served, &after));
        registers.check_reads(place.unwrap_or("no death"));
        println!("{:16} slots 0-{} and {at}-: partition {child}", place.unwrap_or("nobody dies"), at - 1);
        (last, served) = (at - 1, after);
    }
    let far = ask(nodes[OWNER].resp, "ANTUMBRA MERGE 1 2");
    assert!(far.contains("does not begin where"), "{far}");
    // And back again, the nearest neighbour first.
    for place in places(Failpoint::OF_A_MERGE) {
        let other = served.pop().unwrap();
        let before = [&served[..], &[other]].concat();
        ask_and_die(&mut nodes, &format!("ANTUMBRA MERGE {other} 1"), place, (&before, &served));
        registers.check_reads(place.unwrap_or("no death"));
        println!("{:16} partition {other} is a part of 1", place.unwrap_or("nobody dies"));
    }
    assert_eq!(served, [1]);
    registers.stop(writers);
    check_everywhere(&nodes, &registers);
}

#[test]
fn upper_half_moves_in_one_command_and_becomes_one_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, registers, writers) = start_loaded(dir.path());
    let nowhere = ask(nodes[OWNER].resp, "ANTUMBRA SPLIT 1 8192 MOVE 9");
    assert!(nowhere.contains("nothing is split"), "{nowhere}");
    let split = json(&ask(nodes[OWNER].resp, "ANTUMBRA SPLIT 1 8192 MOVE 3 ORDER key"));
    assert_eq!((&split["partition"], &split["slots"]), (&2.into(), &serde_json::json!([8192, 16_383])), "{split}");
    let report = wait_for(nodes[OWNER].resp, "ANTUMBRA REPORT 2", "\"equal\"");
    assert!(report.contains("\"equal\":true"), "{report}");
    wait_served(&nodes[2], &[2]);
    let apart = ask(nodes[OWNER].resp, "ANTUMBRA MERGE 1 2");
    assert!(apart.contains("merge it there"), "{apart}");
    registers.check_reads("the halves are on two hosts");

    // On its return it lies on another shard than the lower half.
    wait_served(&nodes[OWNER], &[1]);
    assert!(ask(nodes[2].resp, "ANTUMBRA MOVE 2 2").contains("OK"));
    let report = wait_for(nodes[2].resp, "ANTUMBRA REPORT 2", "\"equal\"");
    assert!(report.contains("\"equal\":true"), "{report}");
    wait_served(&nodes[OWNER], &[1, 2]);
    let partitions = partitions_at(&nodes[OWNER]);
    assert_ne!(partitions[0]["shard"], partitions[1]["shard"], "{partitions:?}");
    // As if the host died when the lower half's shard had taken the tables, and the other one still named them.
    let shard = dir.path().join("node-2/data/shard-000");
    let kept = dir.path().join("kept");
    nodes[OWNER].kill();
    copy_folder(&shard, &kept);
    nodes[OWNER].restart(None);
    wait_served(&nodes[OWNER], &[1, 2]);
    std::thread::sleep(Duration::from_millis(500));
    let merged = json(&ask(nodes[OWNER].resp, "ANTUMBRA MERGE 2 1"));
    assert_eq!((&merged["partition"], &merged["slots"]), (&1.into(), &serde_json::json!([0, 16_383])), "{merged}");
    wait_served(&nodes[OWNER], &[1]);
    wait_served(&nodes[2], &[]);
    nodes[OWNER].kill();
    std::fs::remove_dir_all(&shard).unwrap();
    copy_folder(&kept, &shard);
    nodes[OWNER].restart(None);
    wait_served(&nodes[OWNER], &[1]);
    let again = ask(nodes[OWNER].resp, "ANTUMBRA SPLIT 1 8192 2");
    assert!(again.contains("take another id"), "{again}");
    std::thread::sleep(Duration::from_millis(300));
    registers.stop(writers);
    check_everywhere(&nodes, &registers);
}
