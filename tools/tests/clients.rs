//! Unchanged Redis clients, through a move.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Stdio};

use redis::TypedCommands;

use common::{ask, create_partitions, move_partition, start};

/// Whether a program is there; says so when it is not.
fn has(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !found {
        println!("SKIPPED: {program} is not installed");
    }
    found
}

#[test]
fn redis_cli_and_benchmark_run_through_a_move() {
    if !has("redis-cli") || !has("redis-benchmark") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let port = nodes[0].resp.port().to_string();
    let cli = |args: &[&str]| {
        let output = Command::new("redis-cli").args(["-c", "-p", &port]).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    };
    assert_eq!(cli(&["set", "foo", "bar"]), "OK");
    assert_eq!(cli(&["set", "other", "value"]), "OK");
    let benchmark = Command::new("redis-benchmark")
        .args(["-p", &port, "-t", "set,get", "-n", "60000", "-c", "20", "-r", "5000", "-d", "64", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    move_partition(&nodes[0], 1, 2);
    move_partition(&nodes[0], 2, 2);
    let output = benchmark.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !text.to_lowercase().contains("error"), "{text}");
    assert!(text.contains("SET") && text.contains("GET"), "{text}");
    assert_eq!(cli(&["get", "foo"]), "bar");
    assert_eq!(cli(&["mget", "{a}1", "{a}2"]), "");
    assert_eq!(cli(&["exists", "other"]), "1");
    assert_eq!(cli(&["del", "other"]), "1");
    assert!(cli(&["cluster", "slots"]).contains(&nodes[1].resp.port().to_string()));
}

#[test]
fn rust_cluster_client_follows_a_move_without_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let urls: Vec<String> = nodes.iter().map(|node| format!("redis://{}", node.resp)).collect();
    let client = redis::cluster::ClusterClient::new(urls).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let mut connection = client.get_connection().unwrap();
        let mut version = 0_u64;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            version += 1;
            for key in 0..20 {
                connection.set(format!("key-{key}"), version).unwrap();
                let found = connection.get(format!("key-{key}")).unwrap().unwrap();
                assert_eq!(found, version.to_string(), "a client reads its own write");
            }
        }
        version
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    move_partition(&nodes[0], 1, 2);
    move_partition(&nodes[0], 2, 2);
    std::thread::sleep(std::time::Duration::from_millis(300));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.join().unwrap() > 3);
    assert!(ask(nodes[1].resp, "INFO").contains("serving=Owner"));
}

#[test]
fn plain_client_of_the_old_owner_is_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    assert!(ask(nodes[0].resp, "SET foo before").contains("+OK"));
    move_partition(&nodes[0], 1, 2);
    move_partition(&nodes[0], 2, 2);
    assert!(ask(nodes[0].resp, "GET foo").contains("before"), "read at the old owner");
    assert!(ask(nodes[0].resp, "SET foo after").contains("+OK"), "written at the old owner");
    assert!(ask(nodes[1].resp, "GET foo").contains("after"));
    assert!(ask(nodes[0].resp, "READONLY\r\nGET foo").contains("MOVED 12182"), "a client that follows is told");
    let back = move_partition(&nodes[1], 2, 1);
    assert!(back.contains("\"epoch_before\":2"), "{back}");
    assert!(ask(nodes[0].resp, "GET foo").contains("after"), "and back again");
}

#[test]
fn scan_returns_every_key_of_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let keys: Vec<String> = (0..500).map(|number| format!("scan-{number}")).collect();
    let commands: Vec<String> = keys.iter().map(|key| format!("SET {key} v")).collect();
    assert_eq!(ask(nodes[0].resp, &commands.join("\r\n")).matches("+OK").count(), 501);
    let client = redis::Client::open(format!("redis://{}", nodes[0].resp)).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut found: Vec<String> =
        redis::Commands::scan_match::<_, String>(&mut connection, "scan-*").unwrap().map(Result::unwrap).collect();
    found.sort();
    let mut expected = keys;
    expected.sort();
    assert_eq!(found, expected);
    assert!(ask(nodes[0].resp, "DBSIZE").contains(":500"));
    assert!(ask(nodes[0].resp, "FLUSHALL").contains("ERR unknown command"));
}
