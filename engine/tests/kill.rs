//! kill -9 under write load: every acknowledged durable write is there after the restart.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use antumbra_engine::{Durability, Write};
use bytes::Bytes;
use common::{PARTITION, block_on, create, open};

const WRITERS: u64 = 16;
const KEYS: u64 = 300;
const ROUNDS: u64 = 20;

/// The value of a key at a version: checkable, and large enough that memtables are flushed during the test.
fn value(key: u64, version: u64) -> Bytes {
    let mut value = format!("{key}:{version}:").into_bytes();
    value.resize(value.len() + (key * 37 % 3_000) as usize, b'x');
    Bytes::from(value)
}

fn version_of(key: u64, bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut parts = text.split(':');
    assert_eq!(parts.next().unwrap(), key.to_string());
    let version = parts.next().unwrap().parse().unwrap();
    assert_eq!(bytes, value(key, version), "the whole value is there");
    version
}

/// Runs only as the child of the test below: writes until it is killed, reports each acknowledged write on stdout.
#[test]
#[ignore = "the child of kill_nine_twenty_times_loses_no_acknowledged_write"]
fn child() {
    let Ok(dir) = std::env::var("ANTUMBRA_KILL_DIR") else {
        return;
    };
    let first: u64 = std::env::var("ANTUMBRA_KILL_VERSION").unwrap().parse().unwrap();
    let engine = open(dir.as_ref());
    let handle = engine.partition(PARTITION).unwrap_or_else(|_| create(&engine));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let handle = handle.clone();
            scope.spawn(move || {
                for version in first.. {
                    for key in (writer..KEYS).step_by(WRITERS as usize) {
                        let write = Write::put(key.to_be_bytes().to_vec(), value(key, version));
                        block_on(handle.write(write, Durability::Durable)).unwrap();
                        let line = format!("ack {key} {version}\n");
                        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn kill_nine_twenty_times_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: HashMap<u64, u64> = HashMap::new();
    let mut random = fastrand::Rng::with_seed(9);
    let mut total = 0_u64;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("ANTUMBRA_KILL_DIR", dir.path())
            .env("ANTUMBRA_KILL_VERSION", (round * 1_000_000 + 1).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The clock starts with the first acknowledgement: how long the start took does not count.
        let mut kill_at = None;
        // The child's acknowledgements up to and behind the kill: the pipe holds what was written before.
        while let Some(Ok(line)) = lines.next() {
            let mut words = line.split(' ');
            if words.next() == Some("ack")
                && let (Some(key), Some(version)) = (words.next(), words.next())
            {
                acked.insert(key.parse().unwrap(), version.parse().unwrap());
                total += 1;
                let wait = Duration::from_millis(random.u64(50..400));
                if Instant::now() >= *kill_at.get_or_insert_with(|| Instant::now() + wait) {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();

        let engine = open(dir.path());
        let handle = engine.partition(PARTITION).unwrap();
        for (key, version) in &acked {
            let found = block_on(handle.get(key.to_be_bytes().to_vec())).unwrap();
            let found =
                found.unwrap_or_else(|| panic!("round {round}: key {key} is gone, version {version} was acknowledged"));
            let found = version_of(*key, &found);
            assert!(found >= *version, "round {round}: key {key} has version {found}, {version} was acknowledged");
        }
        block_on(engine.close()).unwrap();
    }
    assert!(total > ROUNDS * WRITERS, "the load was real: {total} writes");
}
