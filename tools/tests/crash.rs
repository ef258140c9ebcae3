//! Each step of a move, and a process that dies at it: no acknowledged write is lost, no read goes back in time, the
//! attempt ends by itself, and the next move works.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antumbra_net::failpoint::Failpoint;
use redis::Commands;

use common::deaths::{every_other_step_of_a_move, order, wanted};
use common::registers::{Client, Registers};
use common::settled::{SETTLE_MAX, json, move_and_wait, settled_owner, wait_died};
use common::{Node, ask, fill_segments, start_with, wait_for};

/// One round: the move dies at `place`, its process comes back, everything is as it should be.
fn die_at(place: &str, nodes: &mut [Node], registers: &Registers) {
    let source = settled_owner(nodes);
    let target = if source == 1 { 2 } else { 1 };
    let victim = match place.split(':').next().unwrap() {
        "source" => source,
        "target" => target,
        _ => 0,
    };
    nodes[victim].restart(Some(place));
    assert_eq!(settled_owner(nodes), source, "a restart moves nothing");
    // Steps behind an early switchover are taken only if everything is missing then.
    let early = if place.contains("fetch") { " EARLY 0" } else { "" };
    let command = format!("ANTUMBRA MOVE 1 {} SETPOINT off{early}", target + 1);
    order(&nodes[source], &command, "OK", victim == source);
    wait_died(&mut nodes[victim], place);
    // Long enough for the survivors to notice, and to be wrong about it.
    std::thread::sleep(Duration::from_millis(400));
    nodes[victim].restart(None);
    let owner = settled_owner(nodes);
    registers.check_reads(place);
    move_and_wait(nodes, owner, if owner == 1 { 2 } else { 1 });
}

/// Three nodes; the second has the only partition.
fn three_with_a_partition(dir: &Path) -> Vec<Node> {
    let nodes = start_with(dir, 3, &["--roll-back-s", "1"]);
    assert!(ask(nodes[0].resp, "ANTUMBRA CREATE 1 0 16383 2").contains("\"owner\":2"));
    wait_for(nodes[1].resp, "ANTUMBRA PARTITIONS", "\"partition\":1,");
    nodes
}

/// Kills at every other step.
fn kill_at_every_other_step_of_a_move(first: usize) {
    let (rounds, only) = wanted();
    let places = every_other_step_of_a_move(first, only.as_deref());
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three_with_a_partition(dir.path());
    let registers = Arc::new(Registers::new());
    let writers = registers.start(nodes.iter().map(|node| node.resp).collect());
    std::thread::sleep(Duration::from_millis(500));
    for round in 0..rounds {
        for place in &places {
            let began = Instant::now();
            die_at(place, &mut nodes, &registers);
            println!("round {round}: {place} settled in {:.1} s", began.elapsed().as_secs_f64());
        }
    }
    registers.stop(writers);
    registers.check_at(nodes[settled_owner(&nodes)].resp);
}

#[test]
fn kill_at_odd_steps_of_a_move_loses_nothing() {
    kill_at_every_other_step_of_a_move(0);
}

#[test]
fn kill_at_even_steps_of_a_move_loses_nothing() {
    kill_at_every_other_step_of_a_move(1);
}

/// The target stands still for longer than a link lives. The copy goes on where it was: each segment is sent once.
#[test]
fn copy_whose_link_is_lost_goes_on() {
    const SILENCE: Duration = Duration::from_secs(6);
    let dir = tempfile::tempdir().unwrap();
    let nodes = three_with_a_partition(dir.path());
    let (source, target) = (&nodes[1], &nodes[2]);
    fill_segments(source);
    assert!(ask(source.resp, "ANTUMBRA MOVE 1 3 THROTTLE 1").contains("OK"));
    let held = |progress: &str| number_in(progress, "held").unwrap_or(0);
    let deadline = Instant::now() + SETTLE_MAX;
    while held(&ask(source.resp, "ANTUMBRA PROGRESS 1")) < 5 {
        assert!(Instant::now() < deadline, "the copy does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    target.stand_still(true);
    let since = Instant::now();
    // No write waits for a copy.
    for number in 0..20 {
        set(source.resp, &format!("{number}-{number}"), "new");
    }
    assert!(since.elapsed() < SILENCE / 2, "writes took {:?}", since.elapsed());
    std::thread::sleep(SILENCE.saturating_sub(since.elapsed()));
    target.stand_still(false);

    let reply = wait_for(source.resp, "ANTUMBRA REPORT 1", "\"equal\"");
    let report = json(&reply);
    assert_eq!(report["verify"]["equal"], true, "{report}");
    assert!(report["shadow"]["resumed"].as_u64().unwrap() >= 1, "{report}");
    let sent: Vec<u64> = report["sent"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let once: std::collections::BTreeSet<u64> = sent.iter().copied().collect();
    assert_eq!(once.len(), sent.len(), "a segment was sent twice: {sent:?}");
    println!("{} segments, {} links found again", sent.len(), report["shadow"]["resumed"]);
}

/// A number of a JSON reply.
fn number_in(reply: &str, field: &str) -> Option<u64> {
    let at = reply.find(&format!("\"{field}\":"))? + field.len() + 3;
    let digits: String = reply[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn set(address: SocketAddr, key: &str, value: &str) {
    let reply = ask(address, &format!("SET {key} {value}"));
    assert!(reply.starts_with("+OK"), "SET {key}: {reply}");
}

/// Waits until host 3 has everything that host 2 has acknowledged.
fn wait_mirrored(standby: &Node) {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let prospect = ask(standby.resp, "ANTUMBRA PROMOTE 1");
        let is_near = prospect.contains("\"whole\":true") && prospect.contains("\"lag_records\":0");
        // What the owner said before the last writes does not count.
        if is_near && number_in(&prospect, "owner_heard_ms_ago").is_some_and(|ms| ms < 150) {
            return;
        }
        assert!(Instant::now() < deadline, "the standby does not come: {prospect}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Host 2 stands still, host 3 is promoted by force, both have acknowledged writes of their own, somebody dies at `place`
/// ("" = nobody): in the end each acknowledged write is there or in the report. False if nobody came past `place`: host 2 has
/// handed its late writes on, and there was nothing to reconcile.
fn promote_by_force(place: &str, policy: &str, round: u64, dir: &std::path::Path, nodes: &mut [Node]) -> bool {
    const OLD: usize = 1;
    const NEW: usize = 2;
    let key = |number: u64| format!("r{round}-{number}");
    let owner = settled_owner(nodes);
    if owner != OLD {
        move_and_wait(nodes, owner, OLD);
        settled_owner(nodes);
    }
    let victim = if place.starts_with("source") { OLD } else { NEW };
    if !place.is_empty() {
        nodes[victim].restart(Some(place));
        settled_owner(nodes);
    }
    assert!(ask(nodes[OLD].resp, "ANTUMBRA STANDBY 1 3 ASYNC").contains("OK"));
    (0..20).for_each(|number| set(nodes[OLD].resp, &key(number), "base"));
    wait_for(nodes[NEW].resp, "ANTUMBRA PROMOTE 1", "may_be_lost");
    std::thread::sleep(Duration::from_millis(300));
    wait_mirrored(&nodes[NEW]);
    let refused = ask(nodes[0].resp, "ANTUMBRA PROMOTE 1 FORCE");
    assert!(refused.contains("its standby is on host 3"), "{refused}");

    nodes[OLD].stand_still(true);
    // Taken by the kernel; the process reads them when it goes on, before it learns what has happened.
    let mut late = TcpStream::connect(nodes[OLD].resp).unwrap();
    late.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let commands: String = (0..10).map(|number| format!("SET {} old\r\n", key(number))).collect();
    late.write_all(commands.as_bytes()).unwrap();

    let force = format!("ANTUMBRA PROMOTE 1 FORCE POLICY {policy}");
    let dies = place.starts_with("target:forc");
    let asked = std::thread::spawn({
        let address = nodes[NEW].resp;
        move || std::panic::catch_unwind(|| ask(address, &force)).unwrap_or_default()
    });
    let reply = asked.join().unwrap();
    if dies {
        // Its connections end before the process has.
        wait_died(&mut nodes[NEW], place);
        nodes[NEW].restart(None);
        if place == "target:forcing" {
            // The record is as it was: the standby, which has restarted, is promoted all the same.
            let reply = ask(nodes[NEW].resp, &format!("ANTUMBRA PROMOTE 1 FORCE POLICY {policy}"));
            assert!(reply.contains("\"diverged\":{"), "{reply}");
        }
    } else {
        assert!(reply.contains("\"diverged\":{"), "{reply}");
    }
    wait_for(nodes[NEW].resp, "INFO", "serving=Owner");
    (0..5).chain(10..15).for_each(|number| set(nodes[NEW].resp, &key(number), "new"));

    nodes[OLD].stand_still(false);
    let mut replies = String::new();
    let mut buffer = [0; 4096];
    while replies.matches("\r\n").count() < 10 {
        match late.read(&mut buffer) {
            Ok(len) if len > 0 => replies.push_str(&String::from_utf8_lossy(&buffer[..len])),
            _ => break,
        }
    }
    let acked: Vec<u64> =
        replies.split("\r\n").enumerate().filter(|(_, reply)| *reply == "+OK").map(|(index, _)| index as u64).collect();
    let mut died = true;
    if !place.is_empty() && !dies {
        died = wait_died_or_settled(nodes, victim, place);
        std::thread::sleep(Duration::from_millis(400));
        nodes[victim].restart(None);
    }
    wait_for(nodes[0].resp, "ANTUMBRA STATE 1", "\"diverged\":null");
    assert_eq!(settled_owner(nodes), NEW, "{place}");

    let record = ask(nodes[0].resp, "ANTUMBRA STATE 1");
    let report = std::fs::read_dir(dir.join("node-3/conflicts")).map_or_else(
        |_| String::new(),
        |files| files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect(),
    );
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let line_of = |number: u64| {
        let named = format!("\"key\":\"{}\"", key(number));
        report.lines().filter(|line| line.contains(&named) && line.contains(&hex("old"))).count()
    };
    for number in 0..20 {
        let mut client = Client::new(vec![nodes[NEW].resp], 0);
        let found = client.call(|connection| connection.get::<_, String>(key(number))).expect("the owner answers");
        let both = number < 5 && acked.contains(&number);
        let expected: &[&str] = match number {
            // Executed later than the promoted host's, unless it was executed there: the connection was forwarded.
            0..5 if both && policy == "lww" => &["old"],
            0..5 if both && policy == "prefer-target" => &["new", "old"],
            0..5 => &["new", "old"],
            5..10 if acked.contains(&number) => &["old"],
            5..10 => &["old", "base"],
            10..15 => &["new"],
            _ => &["base"],
        };
        assert!(
            expected.contains(&found.as_str()),
            "{place} {policy} {}: {found}, {acked:?}\n{record}\n{report}",
            key(number)
        );
        if both && found == "new" {
            assert_eq!(line_of(number), 1, "{place} {policy} {}: lost without a word\n{record}\n{report}", key(number));
        }
    }
    println!(
        "{place:20} {policy}: {} of 10 late writes acknowledged, {} conflicts",
        acked.len(),
        report.lines().count()
    );
    died
}

/// Waits until the process has ended itself at `place`; false where both histories are one again without it, of a host that
/// had heard of the promotion before it read its late writes.
fn wait_died_or_settled(nodes: &mut [Node], victim: usize, place: &str) -> bool {
    let deadline = Instant::now() + SETTLE_MAX;
    while !nodes[victim].has_died() {
        let record = json(&ask(nodes[0].resp, "ANTUMBRA STATE 1"));
        if place == "target:reconciling" && record["diverged"].is_null() && !nodes[victim].has_died() {
            let outcome = record["history"].as_array().and_then(|history| history.last()).map(ToString::to_string);
            assert!(
                outcome.is_some_and(|outcome| outcome.contains(": 0 records")),
                "{place}: nobody came past: {record}"
            );
            return false;
        }
        assert!(Instant::now() < deadline, "{place}: nobody came past: {record}");
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn kill_at_every_step_of_a_forced_promotion_loses_nothing_without_a_word() {
    let (rounds, only) = wanted();
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three_with_a_partition(dir.path());
    let refused = ask(nodes[2].resp, "ANTUMBRA PROMOTE 1 FORCE");
    assert!(refused.contains("no standby"), "{refused}");
    let policies = ["lww", "prefer-target", "reject-and-keep-both"];
    let places = std::iter::once("").chain(Failpoint::OF_A_PROMOTION);
    for round in 0..rounds {
        for (index, place) in
            places.clone().enumerate().filter(|(_, place)| only.as_ref().is_none_or(|only| only == place))
        {
            let policy = policies[(index + round as usize) % policies.len()];
            let mut came_past = |again| {
                let round = (round * 10 + index as u64) * 10 + again;
                promote_by_force(place, policy, round, dir.path(), &mut nodes)
            };
            assert!((0..5).any(&mut came_past), "{place}: nobody came past in five promotions");
        }
    }
}
