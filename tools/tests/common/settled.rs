//! Waiting until nothing is under way any more.
#![allow(dead_code, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::{Node, ask};

/// Time in which everything has to be settled after the dead process is back.
pub const SETTLE_MAX: Duration = Duration::from_secs(40);

/// The JSON of a reply.
pub fn json(reply: &str) -> serde_json::Value {
    let found = reply.find('{').zip(reply.rfind('}')).map(|(from, to)| &reply[from..=to]);
    serde_json::from_str(found.unwrap_or("null")).unwrap()
}

/// What a node says of its partitions.
pub fn partitions_at(node: &Node) -> Vec<serde_json::Value> {
    let reply = ask(node.resp, "ANTUMBRA PARTITIONS");
    let said = json(&reply);
    said["partitions"].as_array().unwrap_or_else(|| panic!("no list of partitions: {reply}")).clone()
}

/// How a node serves partition 1.
fn serving(node: &Node) -> Option<String> {
    let partitions = partitions_at(node);
    let ours = partitions.iter().find(|partition| partition["partition"] == 1);
    ours.map(|partition| partition["serving"].as_str().unwrap().to_string())
}

/// The node that serves the partition once nothing is under way any more; others have at most a copy for a roll-back.
pub fn settled_owner(nodes: &[Node]) -> usize {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let states: Vec<Option<String>> = nodes.iter().map(serving).collect();
        let record = json(&ask(nodes[0].resp, "ANTUMBRA STATE 1"));
        let is_kept = |host: usize| record["former"]["host"] == host as u64 + 1;
        let settled = states.iter().enumerate().all(|(host, state)| match state.as_deref() {
            None | Some("owner") => true,
            Some(other) => other.starts_with("released") && is_kept(host),
        });
        let owners: Vec<usize> = (0..nodes.len()).filter(|host| states[*host].as_deref() == Some("owner")).collect();
        if record["state"] == "Stable" && settled && owners.len() == 1 {
            return owners[0];
        }
        assert!(Instant::now() < deadline, "not settled: {record}\n{states:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn move_and_wait(nodes: &[Node], from: usize, to: usize) {
    assert!(ask(nodes[from].resp, &format!("ANTUMBRA MOVE 1 {} SETPOINT off", to + 1)).contains("OK"));
    wait_moved(&nodes[from]);
}

/// Waits for the end of the move that has begun at this node; returns its report.
pub fn wait_moved(from: &Node) -> serde_json::Value {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let report = json(&ask(from.resp, "ANTUMBRA REPORT 1"));
        if !report.is_null() {
            assert_eq!(report["verify"]["equal"], true, "{report}");
            return report;
        }
        let progress = ask(from.resp, "ANTUMBRA PROGRESS 1");
        assert!(Instant::now() < deadline && progress.contains("\"failed\":null"), "the next move: {progress}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the process has ended itself at `place`.
pub fn wait_died(node: &mut Node, place: &str) {
    let deadline = Instant::now() + SETTLE_MAX;
    while !node.has_died() {
        assert!(Instant::now() < deadline, "{place}: nobody came past");
        std::thread::sleep(Duration::from_millis(5));
    }
}
