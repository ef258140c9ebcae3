//! Hosts of two releases in one cluster: those that have a version of the protocol in common work together, others are
//! refused with a word. A host stands for another release by the versions that it offers.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Commands;

use common::registers::Registers;
use common::settled::json;
use common::{
    Node, PROGRAM, ask, create_partitions, free_tcp, free_udp, move_partition, start_each, start_program, wait_for,
};

/// A load that goes on through both nodes, whichever of them is there.
struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Load {
    fn start(node: &Node) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url) = (Arc::clone(&stop), format!("redis://{}", node.resp));
        let thread = std::thread::spawn(move || {
            let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                count += 1;
                for key in ["{a}count", "{b}count"] {
                    assert_eq!(connection.incr::<_, _, u64>(key, 1).unwrap(), count, "{key}");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            count
        });
        Load { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn versions(first: &'static str, second: &'static str) -> impl Fn(u32) -> Vec<String> {
    move |host| vec!["--wire-versions".into(), if host == 1 { first } else { second }.into()]
}

#[test]
fn hosts_one_release_apart_move_partitions_and_forward() {
    let dir = tempfile::tempdir().unwrap();
    // The second is of the next release.
    let mut nodes = start_each(dir.path(), 2, versions("1", "2,1"));
    create_partitions(&nodes);
    let load = Load::start(&nodes[0]);
    for (from, to) in [(0, 2), (1, 1), (0, 2)] {
        move_partition(&nodes[from], 1, to);
    }
    assert!(load.stop() > 100);
    // The first follows; it speaks the old version still, as long as anybody may need it.
    nodes[0].set_option("--wire-versions", "2,1");
    nodes[0].restart(None);
    for node in &nodes {
        wait_for(node.resp, "CLUSTER INFO", "cluster_state:ok");
    }
    let began = Instant::now();
    while !ask(nodes[0].resp, "GET {a}count").starts_with('$') || !ask(nodes[0].resp, "GET {b}count").starts_with('$') {
        assert!(began.elapsed() < Duration::from_secs(30), "both partitions are served");
    }
    move_partition(&nodes[1], 1, 1);
}

/// A real program of another commit, by the rule in `net/docs/operating.md`: host by host, drained, stopped, started again
/// on what the older one has left, moved to and away from. The host of the coordinator is the last one.
#[test]
#[ignore = "needs the program of an older commit: cargo xtask test --upgrade COMMIT builds it"]
fn older_program_is_replaced_host_by_host_under_load() {
    let Some(older) = std::env::var_os("ANTUMBRA_OLDER").map(PathBuf::from) else {
        panic!("ANTUMBRA_OLDER has to name the older program; cargo xtask test --upgrade COMMIT builds it");
    };
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = start_program(&older, dir.path(), 3, |_| Vec::new());
    create_partitions(&nodes);
    let registers = Arc::new(Registers::new());
    let writers = registers.start(nodes.iter().map(|node| node.resp).collect());
    for upgraded in [2, 1, 0] {
        let before = registers.acked();
        let refuge = (upgraded + 1) % nodes.len();
        for partition in [1, 2] {
            if owner_of(&nodes, partition) == upgraded {
                move_partition(&nodes[upgraded], partition, refuge as u32 + 1);
            }
        }
        nodes[upgraded].exchange(Path::new(PROGRAM));
        nodes.iter().for_each(|node| drop(wait_for(node.resp, "CLUSTER INFO", "cluster_state:ok")));
        for partition in [1, 2] {
            move_partition(&nodes[owner_of(&nodes, partition)], partition, upgraded as u32 + 1);
        }
        move_partition(&nodes[upgraded], 2, refuge as u32 + 1);
        println!("host {} upgraded; {} writes meanwhile", upgraded + 1, registers.acked() - before);
        assert!(registers.acked() > before + 100, "the load goes on: {:?}", registers.failures());
    }
    registers.stop(writers);
    for partition in [1, 2] {
        registers.check_at(nodes[owner_of(&nodes, partition)].resp);
    }
}

/// Index of the node that the record names.
fn owner_of(nodes: &[Node], partition: u32) -> usize {
    let record = json(&ask(nodes[0].resp, &format!("ANTUMBRA STATE {partition}")));
    record["owner"].as_u64().unwrap() as usize - 1
}

#[test]
fn hosts_two_releases_apart_refuse_each_other_with_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start_each(dir.path(), 1, versions("1", "1"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_antumbra"));
    command.args(["node", "--host", "2", "--wire-versions", "3,2"]);
    command.arg("--dir").arg(dir.path().join("node-2")).arg("--ca").arg(dir.path().join("ca"));
    command.args(["--resp", &free_tcp().to_string(), "--control", &free_udp().to_string()]);
    command.args(["--bulk", &free_udp().to_string(), "--coordinator", &nodes[0].coordinator()]);
    let output = command.stdout(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it cannot take part");
    assert!(said.contains("no version of the protocol between hosts that this release does (3, 2)"), "{said}");
    assert!(ask(nodes[0].resp, "PING").contains("PONG"));
}
