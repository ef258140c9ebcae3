//! `antumbra ctl` against real nodes.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Node, ask, start_many, start_with, wait_for};
use serde_json::Value;

fn ctl(node: SocketAddr, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antumbra"));
    command.args(["ctl", "--node", &node.to_string()]).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a command prints that has to succeed.
fn well(node: &Node, args: &[&str]) -> String {
    let output = ctl(node.resp, args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    // Progress is for terminals alone.
    assert!(output.stderr.is_empty(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn json(node: &Node, args: &[&str]) -> Value {
    let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&well(node, &all)).unwrap()
}

fn cluster(dir: &Path, nodes: u32) -> Vec<Node> {
    let nodes = start_many(dir, nodes);
    for (partition, slots) in [("1", ["0", "8191"]), ("2", ["8192", "16383"])] {
        assert!(well(&nodes[0], &["create", partition, slots[0], slots[1], "1"]).contains("on host 1"));
    }
    for node in &nodes {
        wait_for(node.resp, "CLUSTER INFO", "cluster_state:ok");
    }
    wait_for(nodes[0].resp, "ANTUMBRA PARTITIONS", "\"partition\":2");
    for key in 0..200 {
        ask(nodes[0].resp, &format!("SET key:{key} value:{key}"));
    }
    nodes
}

#[test]
fn partition_is_moved_by_any_node_verified_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), 2);
    // By the node that does not own it.
    assert!(well(&nodes[1], &["move", "1", "2"]).contains("both sides equal"));
    let status = json(&nodes[1], &["status"]);
    assert_eq!(status["partitions"][0]["owner"], 2);
    assert_eq!(status["hosts"].as_array().unwrap().len(), 2);
    let text = well(&nodes[0], &["status"]);
    assert!(text.contains("policy Manual") && text.contains("stable") && text.contains("8192-16383"), "{text}");
    assert_eq!(json(&nodes[0], &["partitions"])[0]["owner"], 2);
    let report = json(&nodes[0], &["verify", "1"]);
    assert!(report["damage"].as_array().unwrap().is_empty(), "{report}");
    assert!(well(&nodes[0], &["events"]).contains("moved to host 2"));
    let back = json(&nodes[0], &["move", "1", "1", "--order", "key", "--throttle-mb-s", "50", "--early", "90"]);
    assert_eq!(back["done"]["equal"], true);
    assert_eq!(ask(nodes[1].resp, "GET key:7"), "$7\r\nvalue:7\r\n");
}

#[test]
fn partition_is_split_moved_in_part_taken_back_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), 2);
    // By the node that owns nothing.
    assert!(
        well(&nodes[1], &["split", "2", "12000", "--id", "9"])
            .contains("partition 9 on host 1 has slots 12000 to 16383")
    );
    assert!(well(&nodes[1], &["merge", "2", "9"]).contains("partition 2 on host 1 has slots 8192 to 16383"));
    let moved = json(&nodes[1], &["split", "1", "4096", "--id", "5", "--to", "2"]);
    assert_eq!((&moved["partition"], &moved["done"]["equal"]), (&5.into(), &true.into()), "{moved}");
    assert!(well(&nodes[0], &["status"]).contains("4096-8191"));
    let refused = said(&ctl(nodes[0].resp, &["merge", "1", "5"]));
    assert!(refused.contains("host"), "two hosts: {refused}");
    let back = json(&nodes[0], &["rollback", "5"]);
    assert_eq!(back["destination"], 1, "{back}");
    assert!(well(&nodes[0], &["merge", "1", "5"]).contains("has slots 0 to 8191"));
    let refused = ctl(nodes[0].resp, &["rollback", "1"]);
    assert!(!refused.status.success(), "{}", said(&refused));
    for key in 0..200 {
        assert!(ask(nodes[1].resp, &format!("GET key:{key}")).contains(&format!("value:{key}\r\n")), "{key}");
    }
}

/// A destination that stands still holds a move up: that is said, and that it goes on, too.
#[test]
fn move_that_stands_still_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start_with(dir.path(), 2, &["--stall-s", "2"]);
    common::create_partitions(&nodes);
    common::fill_segments(&nodes[0]);
    assert!(ask(nodes[0].resp, "ANTUMBRA MOVE 1 2 THROTTLE 0.5").contains("OK"));
    wait_for(nodes[0].resp, "ANTUMBRA PROGRESS 1", "Copying");
    nodes[1].stand_still(true);
    let events = wait_for(nodes[0].resp, "ANTUMBRA EVENTS", "has made no progress for 2s");
    assert!(events.contains("move of partition 1") && events.contains("it waits for host 2 to"), "{events}");
    let text = well(&nodes[0], &["status"]);
    assert!(text.contains("move of partition 1 STANDS STILL since"), "{text}");
    nodes[1].stand_still(false);
    wait_for(nodes[0].resp, "ANTUMBRA EVENTS", "move of partition 1 goes on; it had stood still for");
    well(&nodes[0], &["abort", "1"]);
}

#[test]
fn manual_move_waits_to_be_switched_and_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), 2);
    well(&nodes[0], &["move", "1", "2", "--manual", "--detach"]);
    wait_for(nodes[0].resp, "ANTUMBRA PROGRESS 1", "Ready");
    well(&nodes[1], &["abort", "1"]);
    wait_for(nodes[0].resp, "ANTUMBRA STATE 1", "Stable");
    assert_eq!(json(&nodes[0], &["partitions"])[0]["owner"], 1);
    well(&nodes[0], &["move", "1", "2", "--manual", "--detach"]);
    wait_for(nodes[0].resp, "ANTUMBRA PROGRESS 1", "Ready");
    well(&nodes[1], &["switch", "1"]);
    wait_for(nodes[0].resp, "ANTUMBRA REPORT 1", "\"equal\":true");
}

#[test]
fn drained_host_owns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), 3);
    wait_for(nodes[0].resp, "ANTUMBRA TRENDS", "\"partition\":2");
    let ended = json(&nodes[2], &["drain", "1"]);
    assert_eq!(ended.as_array().unwrap().len(), 2);
    let status = json(&nodes[0], &["status"]);
    let owners: Vec<u64> =
        status["partitions"].as_array().unwrap().iter().map(|known| known["owner"].as_u64().unwrap()).collect();
    assert!(owners.iter().all(|owner| *owner != 1), "{owners:?}");
    assert!(well(&nodes[1], &["drain", "1"]).contains("owns nothing"));
}

#[test]
fn copy_is_promoted_when_its_owner_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), 2);
    // The second owns it, so that the coordinator's node can lose its owner.
    well(&nodes[0], &["move", "1", "2"]);
    well(&nodes[0], &["shadow", "1", "1"]);
    wait_for(nodes[1].resp, "ANTUMBRA PROGRESS 1", "Ready");
    nodes[1].kill();
    let prospect = json(&nodes[0], &["promote", "1"]);
    assert!(prospect["to_go_on"].as_str().unwrap().contains("FORCE"), "{prospect}");
    well(&nodes[0], &["promote", "1", "--force"]);
    assert_eq!(json(&nodes[0], &["partitions"])[0]["owner"], 1);
    let text = well(&nodes[0], &["status"]);
    assert!(text.contains("diverged from host 2") && text.contains("does not answer"), "{text}");
}

#[test]
fn what_is_wrong_is_named_and_fails() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), 1);
    let fails = |args: &[&str], what: &str| {
        let output = ctl(nodes[0].resp, args);
        let said = said(&output);
        assert!(!output.status.success() && said.contains(what), "{args:?}: {said}");
    };
    fails(&["move", "77", "1"], "no partition 77");
    fails(&["move", "1", "9"], "host 9 is not known");
    fails(&["move", "1", "1"], "belongs to host 1");
    fails(&["abort", "1"], "ended already");
    fails(&["switch", "1"], "ended already");
    fails(&["shadow", "1", "1"], "partition 1 is on host 1 itself");
    fails(&["drain", "1"], "no other host");
    fails(&["move", "1", "2", "--order", "best"], "unknown order");
    let nobody = common::free_tcp();
    let output = ctl(nobody, &["status"]);
    assert!(!output.status.success() && said(&output).contains(&nobody.to_string()), "{}", said(&output));
}

#[test]
fn operator_logs_in_with_a_password_that_others_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let users = write("users", "user default off\nuser boss on >secret ~* +@all\n", 0o600);
    let nodes = start_with(dir.path(), 1, &["--users", &users]);
    let (right, wrong, open) =
        (write("right", "secret\n", 0o600), write("wrong", "guess\n", 0o600), write("open", "secret\n", 0o644));
    let output = ctl(nodes[0].resp, &["status"]);
    assert!(!output.status.success() && said(&output).contains("NOAUTH"), "{}", said(&output));
    for (password, what) in [(&wrong, "WRONGPASS"), (&open, "chmod 600")] {
        let output = ctl(nodes[0].resp, &["status", "--user", "boss", "--password-file", password]);
        assert!(!output.status.success() && said(&output).contains(what), "{}", said(&output));
    }
    well(&nodes[0], &["status", "--user", "boss", "--password-file", &right]);
}

#[test]
fn authority_is_made_and_issues() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let nobody = common::free_tcp();
    let output = ctl(nobody, &["ca", "issue", &path("ca"), "1", &path("certs")]);
    assert!(!output.status.success() && said(&output).contains("ca init"), "{}", said(&output));
    assert!(ctl(nobody, &["ca", "init", &path("ca")]).status.success());
    assert!(ctl(nobody, &["ca", "issue", &path("ca"), "1", &path("certs")]).status.success());
    assert!(dir.path().join("certs/host.der").is_file());
}

#[test]
fn what_prints_ends_without_a_word_when_nobody_reads_on() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antumbra"));
    // More than a pipe holds.
    command.args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.signal(), said(&output)), (Some(libc::SIGPIPE), String::new()));
}
