//! Unchanged Redis clients, through a move.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

fn has_redis_tools() -> bool {
    has("redis-cli") && has("redis-benchmark")
}

/// What redis-cli prints.
fn redis_cli(options: &[&str], command: &[&str]) -> String {
    let output = Command::new("redis-cli").args(options).args(command).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

#[test]
fn redis_cli_and_benchmark_run_through_a_move() {
    if !has_redis_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let port = nodes[0].resp.port().to_string();
    let cli = |args: &[&str]| redis_cli(&["-c", "-p", &port], args);
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
    assert_eq!(ask(nodes[0].resp, &commands.join("\r\n")).matches("+OK").count(), 500);
    let client = redis::Client::open(format!("redis://{}", nodes[0].resp)).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut found: Vec<String> =
        redis::Commands::scan_match::<_, String>(&mut connection, "scan-*").unwrap().map(Result::unwrap).collect();
    found.sort();
    let mut expected = keys;
    expected.sort();
    assert_eq!(found, expected);
    assert!(ask(nodes[0].resp, "DBSIZE").contains(":500"));
    assert!(ask(nodes[0].resp, "FLUSHALL").contains("ERR FLUSHDB is off"));
    let all = ask(nodes[0].resp, "KEYS scan-1?\r\nRANDOMKEY\r\nCLUSTER COUNTKEYSINSLOT 12182");
    assert!(all.starts_with("*10\r\n") && all.matches("scan-").count() == 11 && all.contains(":0"), "{all}");
}

/// A cursor means the same to every host, and a walk goes on in a partition that has moved away.
#[test]
fn scan_goes_on_through_a_move_with_the_same_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let keys: BTreeSet<String> = (0..400).map(|number| format!("key-{number}")).collect();
    let many: BTreeSet<String> = (0..200).map(|number| format!("{{tag}}-{number:03}")).collect();
    let commands: Vec<String> = keys.iter().chain(&many).map(|key| format!("SET {key} v")).collect();
    assert_eq!(ask(nodes[0].resp, &commands.join("\r\n")).matches("+OK").count(), 600);
    let mut connection = plain(&nodes[0]);
    let mut elsewhere = plain(&nodes[1]);
    let (mut cursor, mut found, mut moved) = (0_u64, BTreeSet::new(), false);
    loop {
        // Half of the pages are asked at each host once the partition is at the other one.
        let asked = if moved && found.len() % 2 == 0 { &mut elsewhere } else { &mut connection };
        let (next, page): (u64, Vec<String>) = redis::cmd("SCAN").arg(cursor).arg("COUNT").arg(7).query(asked).unwrap();
        found.extend(page);
        if !moved && found.len() > 150 {
            moved = true;
            move_partition(&nodes[0], 1, 2);
        }
        cursor = next;
        if cursor == 0 && moved {
            break;
        }
    }
    let missing: Vec<&String> = keys.iter().chain(&many).filter(|key| !found.contains(*key)).collect();
    // What lies in the partition that was being walked is found whoever is asked; the other one stayed.
    let in_second = |key: &&&String| antumbra_net::resp::slot::slot_of(key.as_bytes()) >= 8192;
    let missing: Vec<_> = missing.iter().filter(|key| !in_second(key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn plain(node: &common::Node) -> redis::Connection {
    redis::Client::open(format!("redis://{}", node.resp)).unwrap().get_connection().unwrap()
}

/// A plain client (forwarded) and a cluster client (redirected) count together while the counter moves.
#[test]
fn increments_and_transactions_through_moves_count_each_once() {
    const CLIENTS: usize = 3;
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for client in 0..CLIENTS {
        let (stopped, urls) = (Arc::clone(&stop), nodes.iter().map(|node| format!("redis://{}", node.resp)));
        let urls: Vec<String> = urls.collect();
        threads.push(std::thread::spawn(move || {
            let (mut increments, mut transactions, mut conflicts) = (0_u64, 0_u64, 0_u64);
            let mut plain = redis::Client::open(urls[client % 2].as_str()).unwrap().get_connection().unwrap();
            let cluster = redis::cluster::ClusterClient::new(urls).unwrap();
            let mut cluster = cluster.get_connection().unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let _: i64 = redis::cmd("INCR").arg("counter").query(&mut plain).unwrap();
                let _: i64 = redis::cmd("INCRBY").arg("counter").arg(1).query(&mut cluster).unwrap();
                increments += 2;
                // Read, add outside, write if nobody else did.
                let () = redis::cmd("WATCH").arg("{t}read").query(&mut plain).unwrap();
                let before: Option<u64> = redis::cmd("GET").arg("{t}read").query(&mut plain).unwrap();
                let () = redis::cmd("MULTI").query(&mut plain).unwrap();
                let () = redis::cmd("SET").arg("{t}read").arg(before.unwrap_or(0) + 1).query(&mut plain).unwrap();
                let () = redis::cmd("INCR").arg("{t}beside").query(&mut plain).unwrap();
                match redis::cmd("EXEC").query::<Option<(String, u64)>>(&mut plain).unwrap() {
                    Some((_, beside)) => {
                        assert_eq!(beside, before.unwrap_or(0) + 1, "both change together");
                        transactions += 1;
                    }
                    None => conflicts += 1,
                }
            }
            (increments, transactions, conflicts)
        }));
    }
    for to in [2, 1, 2] {
        std::thread::sleep(Duration::from_millis(200));
        let from = &nodes[2 - to as usize];
        move_partition(from, 1, to);
        move_partition(from, 2, to);
    }
    stop.store(true, Ordering::Relaxed);
    let sums = threads.into_iter().map(|thread| thread.join().unwrap());
    let (increments, transactions, conflicts) =
        sums.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    println!("{increments} increments, {transactions} transactions, {conflicts} conflicts, 6 moves");
    let mut connection = plain(&nodes[0]);
    let mut read = |key: &str| redis::cmd("GET").arg(key).query::<u64>(&mut connection).unwrap();
    assert_eq!(read("counter"), increments);
    assert_eq!((read("{t}read"), read("{t}beside")), (transactions, transactions));
    assert!(transactions > 10 && increments > 20);
}

/// What each command answers while its partition is elsewhere: forwarded for a plain client, MOVED for one that follows.
#[test]
fn commands_after_a_move_are_forwarded_or_redirected() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    assert!(ask(nodes[0].resp, "SET {k}a 1\r\nSET {k}b text PXAT 4000000000000").contains("+OK"));
    let watched = "WATCH {k}a";
    let mut watching = plain(&nodes[0]);
    let () = redis::cmd("WATCH").arg("{k}a").query(&mut watching).unwrap();
    move_partition(&nodes[0], 1, 2);
    move_partition(&nodes[0], 2, 2);
    for (command, reply) in [
        ("GET {k}a", "$1\r\n1\r\n"),
        ("INCRBY {k}a 4", ":5\r\n"),
        ("MGET {k}a {k}b {k}c", "*3\r\n$1\r\n5\r\n$4\r\ntext\r\n$-1\r\n"),
        ("MSET {k}c 1 {k}d 2", "+OK\r\n"),
        ("SET {k}c 3 XX GET", "$1\r\n1\r\n"),
        ("EXPIRETIME {k}b", ":4000000000\r\n"),
        ("APPEND {k}b ual", ":7\r\n"),
        ("RENAME {k}b {k}e", "+OK\r\n"),
        ("DEL {k}c {k}d {k}nothing", ":2\r\n"),
        ("TYPE {k}e", "+string\r\n"),
        ("INCR {k}e", "-ERR value is not an integer or out of range\r\n"),
        (watched, "+OK\r\n"),
        ("DBSIZE", ":0\r\n"),
    ] {
        assert_eq!(ask(nodes[0].resp, command), reply, "{command}");
        let followed = ask(nodes[0].resp, &format!("READONLY\r\n{command}"));
        assert!(command == "DBSIZE" || followed.starts_with("+OK\r\n-MOVED "), "{command}: {followed}");
    }
    // The version that was seen before the move is known after it: it has changed since.
    let () = redis::cmd("MULTI").query(&mut watching).unwrap();
    let () = redis::cmd("SET").arg("{k}a").arg(9).query(&mut watching).unwrap();
    assert_eq!(redis::cmd("EXEC").query::<Option<Vec<String>>>(&mut watching).unwrap(), None);
    let () = redis::cmd("WATCH").arg("{k}a").query(&mut watching).unwrap();
    let () = redis::cmd("MULTI").query(&mut watching).unwrap();
    let () = redis::cmd("SET").arg("{k}a").arg(9).query(&mut watching).unwrap();
    let done: Option<Vec<String>> = redis::cmd("EXEC").query(&mut watching).unwrap();
    assert_eq!(done, Some(vec!["OK".to_string()]));
    // Keys of two slots go together only in a transaction, and only within a partition.
    assert!(ask(nodes[0].resp, "MGET a b").starts_with("-CROSSSLOT "));
    let (low, high) = ("MULTI\r\nSET bar 1\r\nSET hello 2\r\nEXEC", "MULTI\r\nSET bar 1\r\nSET foo 2\r\nEXEC");
    assert!(ask(nodes[0].resp, low).contains("*2\r\n+OK\r\n+OK\r\n"), "slots 5061 and 866");
    let refused = ask(nodes[0].resp, high);
    assert!(refused.contains("-CROSSSLOT "), "slots 5061 and 12182: {refused}");
    assert!(ask(nodes[0].resp, "GET foo").starts_with("$-1"), "nothing of it was done");
}

#[test]
fn transactions_follow_the_rules_of_redis() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let ask = |commands: &str| common::ask(nodes[0].resp, commands);
    assert_eq!(
        ask("MULTI\r\nSET a 1\r\nINCR a\r\nPING\r\nGET a\r\nEXEC"),
        "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*4\r\n+OK\r\n:2\r\n+PONG\r\n$1\r\n2\r\n"
    );
    assert!(
        ask("MULTI\r\nNOTHING\r\nSET a 5\r\nEXEC\r\nGET a")
            .ends_with("-EXECABORT Transaction discarded because of previous errors.\r\n$1\r\n2\r\n")
    );
    assert!(ask("MULTI\r\nSCAN 0\r\nEXEC").contains("-EXECABORT"));
    assert!(ask("EXEC").starts_with("-ERR EXEC without MULTI") && ask("DISCARD").starts_with("-ERR DISCARD without"));
    assert!(ask("MULTI\r\nMULTI").contains("-ERR MULTI calls can not be nested"));
    assert!(ask("MULTI\r\nWATCH a").contains("-ERR WATCH inside MULTI is not allowed"));
    assert!(ask("MULTI\r\nSET a 7\r\nDISCARD\r\nGET a").ends_with("+OK\r\n$1\r\n2\r\n"));
    // An error of one command does not undo the others.
    assert!(ask("MULTI\r\nSET t text\r\nINCR t\r\nEXEC").contains("*2\r\n+OK\r\n-ERR value is not an integer"));
    assert!(
        ask("WATCH a\r\nSET a 8\r\nMULTI\r\nSET a 9\r\nEXEC\r\nGET a").contains("*-1\r\n$1\r\n8"),
        "own writes count"
    );
    assert!(ask("WATCH a\r\nUNWATCH\r\nSET a 8\r\nMULTI\r\nSET a 9\r\nEXEC").contains("*1\r\n+OK"));
    assert!(ask("WATCH none\r\nSET none 1\r\nMULTI\r\nEXEC").contains("*-1"), "a key that came into being");
    assert!(ask("MULTI\r\nEXEC").contains("*0\r\n"));
}

#[test]
fn tools_find_what_they_ask_for() {
    if !has_redis_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path());
    create_partitions(&nodes);
    let port = nodes[0].resp.port().to_string();
    let cli = |args: &[&str]| redis_cli(&["-p", &port], args);
    let benchmark = Command::new("redis-benchmark")
        .args(["-p", &port, "-t", "ping,set,get,incr,mset", "-n", "5000", "-c", "10", "-P", "16", "-q"])
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&benchmark.stdout), String::from_utf8_lossy(&benchmark.stderr));
    assert!(benchmark.status.success() && !text.to_lowercase().contains("error"), "{text}");
    assert!(["PING_INLINE", "SET", "GET", "INCR", "MSET"].iter().all(|name| text.contains(name)), "{text}");
    assert_eq!(cli(&["get", "counter:{tag}:__rand_int__"]).parse::<u64>().unwrap_or(5_000), 5_000);
    let count: usize = cli(&["command", "count"]).parse().unwrap();
    assert_eq!(cli(&["command", "list"]).lines().count(), count);
    assert_eq!(cli(&["command", "getkeys", "mset", "a", "1", "b", "2"]), "a\nb");
    for version in ["-2", "-3"] {
        assert!(cli(&[version, "cluster", "info"]).contains("cluster_state:ok"));
        assert_eq!(cli(&[version, "cluster", "nodes"]).lines().count(), 2);
        assert!(cli(&[version, "cluster", "shards"]).contains("16383"));
        assert!(cli(&[version, "cluster", "slots"]).contains(&port));
        assert_eq!(cli(&[version, "cluster", "keyslot", "foo"]), "(integer) 12182".trim_start_matches("(integer) "));
        assert_eq!(cli(&[version, "cluster", "countkeysinslot", "12182"]), "0");
        assert!(cli(&[version, "info", "server"]).contains("redis_version:"));
        assert!(cli(&[version, "info", "everything"]).contains("cmdstat_get:calls="));
        assert!(cli(&[version, "config", "get", "max*"]).contains("maxclients"));
        assert!(cli(&[version, "client", "list"]).contains("cmd=client"));
    }
    assert_eq!(cli(&["set", "foo", "bar"]), "OK");
    assert_eq!(cli(&["cluster", "getkeysinslot", "12182", "10"]), "foo");
    assert!(cli(&["--scan", "--pattern", "fo*"]).lines().any(|line| line == "foo"));
    assert_eq!(cli(&["wait", "0", "0"]), "0");
    assert!(cli(&["nosuch", "a"]).contains("ERR unknown command 'nosuch', with args beginning with: 'a'"));
    assert!(cli(&["debug", "sleep", "0"]).contains("DEBUG command not allowed"));
    let silent = "CLIENT REPLY SKIP\r\nPING\r\nECHO a\r\nCLIENT REPLY OFF\r\nPING\r\nCLIENT REPLY ON\r\nPING";
    assert_eq!(ask(nodes[0].resp, silent), "$1\r\na\r\n+OK\r\n+PONG\r\n");
    let third = redis::Client::open(format!("redis://{}/?protocol=resp3", nodes[0].resp)).unwrap();
    let mut third = third.get_connection().unwrap();
    let values: Vec<Option<String>> = redis::cmd("MGET").arg("foo").arg("{foo}2").query(&mut third).unwrap();
    assert_eq!(values, [Some("bar".to_string()), None]);
    let config: std::collections::HashMap<String, String> =
        redis::cmd("CONFIG").arg("GET").arg("databases").query(&mut third).unwrap();
    assert_eq!(config["databases"], "1");
    let mut connection = plain(&nodes[0]);
    let id: u64 = redis::cmd("CLIENT").arg("ID").query(&mut connection).unwrap();
    assert_eq!(cli(&["client", "kill", "id", &id.to_string()]), "1");
    assert!(redis::cmd("PING").query::<String>(&mut connection).is_err(), "it was ended");
}
