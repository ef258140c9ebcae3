//! Real processes that move a partition there and back again, under load: only what has changed since travels, and
//! whoever dies at whichever step, no acknowledged write is lost and no read goes back in time.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Commands;

use common::deaths::{every_other_step_of_a_move, order, wanted};
use common::registers::Registers;
use common::settled::{SETTLE_MAX, move_and_wait, partitions_at, settled_owner, wait_died, wait_moved};
use common::{Node, ask, fill_segments, start_with, wait_for};

const OLD: usize = 1;
const NEW: usize = 2;

/// Three nodes; the second has the only partition, with 4 MB in some 60 segments.
fn three_with_data(dir: &Path, roll_back_s: &str) -> Vec<Node> {
    let nodes = start_with(dir, 3, &["--roll-back-s", roll_back_s]);
    assert!(ask(nodes[0].resp, "ANTUMBRA CREATE 1 0 16383 2").contains("\"owner\":2"));
    wait_for(nodes[OLD].resp, "ANTUMBRA PARTITIONS", "\"partition\":1,");
    fill_segments(&nodes[OLD]);
    nodes
}

fn bytes_on_wire(report: &serde_json::Value) -> u64 {
    report["shadow"]["bytes_on_wire"].as_u64().unwrap()
}

fn roll_back(from: &Node) -> serde_json::Value {
    let reply = ask(from.resp, "ANTUMBRA ROLLBACK 1");
    assert!(reply.contains("\"to\":"), "{reply}");
    wait_moved(from)
}

#[test]
fn roll_back_under_load_carries_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three_with_data(dir.path(), "600");
    let refused = ask(nodes[OLD].resp, "ANTUMBRA ROLLBACK 1");
    assert!(refused.contains("ANTUMBRA MOVE 1 host moves it in full"), "{refused}");
    let registers = Arc::new(Registers::new());
    let writers = registers.start(nodes.iter().map(|node| node.resp).collect());
    std::thread::sleep(Duration::from_millis(300));
    assert!(ask(nodes[OLD].resp, "ANTUMBRA MOVE 1 3").contains("OK"));
    let there = wait_moved(&nodes[OLD]);
    assert_eq!(settled_owner(&nodes), NEW);
    let refused = ask(nodes[OLD].resp, "ANTUMBRA ROLLBACK 1");
    assert!(refused.contains("roll it back there"), "{refused}");
    let acked = registers.acked();
    while registers.acked() < acked + 500 {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Also what is gone has to travel.
    let client = redis::Client::open(format!("redis://{}", nodes[NEW].resp)).unwrap();
    let mut connection = client.get_connection().unwrap();
    (0..50).for_each(|number| connection.del::<_, ()>(format!("3-{number}")).unwrap());

    let back = roll_back(&nodes[NEW]);
    assert_eq!(settled_owner(&nodes), OLD);
    let shadow = &back["shadow"];
    assert_eq!(shadow["segments_on_base"], shadow["segments"], "{shadow}");
    println!(
        "there: {} bytes on the wire; back: {}, {} segments and {} bytes stayed; {}",
        bytes_on_wire(&there),
        bytes_on_wire(&back),
        shadow["segments_on_base"],
        shadow["bytes_on_base"],
        shadow["base"]
    );
    assert!(bytes_on_wire(&back) * 10 < bytes_on_wire(&there), "{shadow}");
    // And there again: the copy that the roll-back has left is a base as well.
    let again = roll_back(&nodes[OLD]);
    assert!(again["shadow"]["segments_on_base"].as_u64() > Some(0), "{}", again["shadow"]);
    registers.stop(writers);
    let owner = &nodes[settled_owner(&nodes)];
    registers.check_at(owner.resp);
    let mut connection = redis::Client::open(format!("redis://{}", owner.resp)).unwrap().get_connection().unwrap();
    for number in 0..100 {
        let is_there: bool = connection.exists(format!("3-{number}")).unwrap();
        assert_eq!(is_there, number >= 50, "3-{number}");
    }
}

/// The old owner has lost its copy: the roll-back is a full move, and the report says so.
#[test]
fn roll_back_without_a_copy_is_a_full_move_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three_with_data(dir.path(), "600");
    move_and_wait(&nodes, OLD, NEW);
    settled_owner(&nodes);
    nodes[OLD].kill();
    std::fs::remove_dir_all(dir.path().join("node-2/data")).unwrap();
    nodes[OLD].restart(None);
    let back = roll_back(&nodes[NEW]);
    let base = back["shadow"]["base"].as_str().unwrap();
    assert!(base.starts_with("none, a full move: "), "{base}");
    assert_eq!(back["shadow"]["segments_on_base"], 0);
    assert_eq!(settled_owner(&nodes), OLD);
    println!("{base}");
}

/// After the grace time the copy is gone, on both hosts' disks and in the record.
#[test]
fn copy_goes_after_the_grace_time() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three_with_data(dir.path(), "2");
    move_and_wait(&nodes, OLD, NEW);
    assert!(ask(nodes[0].resp, "ANTUMBRA STATE 1").contains("\"former\":{"));
    wait_for(nodes[0].resp, "ANTUMBRA STATE 1", "\"former\":null");
    let deadline = Instant::now() + SETTLE_MAX;
    // Without a pause: it goes while the host lists what it has.
    while !partitions_at(&nodes[OLD]).is_empty() {
        assert!(Instant::now() < deadline, "the copy does not go");
    }
    let refused = ask(nodes[NEW].resp, "ANTUMBRA ROLLBACK 1");
    assert!(refused.contains("no host keeps a copy"), "{refused}");
}

/// One round: there, then back with a death at `place`. Returns whether something of the old copy was of use.
fn die_at(place: &str, nodes: &mut [Node], registers: &Registers) -> bool {
    let source = settled_owner(nodes);
    let target = if source == OLD { NEW } else { OLD };
    // The way there: the present owner becomes the one that is rolled back to.
    move_and_wait(nodes, source, target);
    let (back_from, back_to) = (target, source);
    let victim = match place.split(':').next().unwrap() {
        "source" => back_from,
        "target" => back_to,
        _ => 0,
    };
    settled_owner(nodes);
    let began = Instant::now();
    nodes[victim].restart(Some(place));
    // A host that starts waits ten seconds for what it cannot settle; a copy that is kept is settled.
    assert!(began.elapsed() < Duration::from_secs(8), "{place}: a start of {:?}", began.elapsed());
    assert_eq!(settled_owner(nodes), back_from, "a restart moves nothing");
    let early = if place.contains("fetch") { " EARLY 0" } else { "" };
    order(&nodes[back_from], &format!("ANTUMBRA ROLLBACK 1{early}"), "\"to\":", victim == back_from);
    wait_died(&mut nodes[victim], place);
    std::thread::sleep(Duration::from_millis(400));
    nodes[victim].restart(None);
    let owner = settled_owner(nodes);
    registers.check_reads(place);
    if owner == back_to {
        return true;
    }
    // What is left at the old owner, if anything, is a base once more.
    roll_back(&nodes[owner])["shadow"]["segments_on_base"].as_u64() > Some(0)
}

/// Kills at every other step.
fn kill_at_every_other_step_of_a_roll_back(first: usize) {
    let (rounds, only) = wanted();
    let places = every_other_step_of_a_move(first, only.as_deref());
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three_with_data(dir.path(), "600");
    let registers = Arc::new(Registers::new());
    let writers = registers.start(nodes.iter().map(|node| node.resp).collect());
    std::thread::sleep(Duration::from_millis(500));
    let (mut tried, mut useful) = (0, 0);
    for round in 0..rounds {
        for place in &places {
            let began = Instant::now();
            let is_useful = die_at(place, &mut nodes, &registers);
            (tried, useful) = (tried + 1, useful + u32::from(is_useful));
            println!(
                "round {round}: {place} settled in {:.1} s, base of use: {is_useful}",
                began.elapsed().as_secs_f64()
            );
        }
    }
    registers.stop(writers);
    registers.check_at(nodes[settled_owner(&nodes)].resp);
    println!("{useful} of {tried} deaths left or used a base");
    assert!(only.is_some() || useful > 1, "the base was of use in {useful} of {tried} rounds");
}

#[test]
fn kill_at_odd_steps_of_a_roll_back_loses_nothing() {
    kill_at_every_other_step_of_a_roll_back(0);
}

#[test]
fn kill_at_even_steps_of_a_roll_back_loses_nothing() {
    kill_at_every_other_step_of_a_roll_back(1);
}
