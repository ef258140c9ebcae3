//! kill -9 under write load, also while the engine opens: every acknowledged durable write is there after the restart,
//! and of every batch all or nothing. `cargo xtask crash` runs more rounds.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use antumbra_engine::{Batch, Durability, PartitionHandle, Write};
use bytes::Bytes;
use common::{PARTITION, block_on, create, open};

const WRITERS: u64 = 16;
const KEYS: u64 = 300;
/// Rounds, unless `ANTUMBRA_KILL_ROUNDS` says otherwise.
const ROUNDS: u64 = 20;
/// Keys that a writer changes together in one batch.
const BATCH_KEYS: u64 = 5;

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

/// Key `index` of a writer's batch.
fn batch_key(writer: u64, index: u64) -> Vec<u8> {
    format!("batch-{writer:02}-{index}").into_bytes()
}

/// Runs only as the child of the test below: writes until it is killed, reports each acknowledged write on stdout.
#[test]
#[ignore = "the child of kill_nine_loses_no_acknowledged_write_and_splits_no_batch"]
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
                    let mut batch = Batch::new();
                    for index in 0..BATCH_KEYS {
                        batch.put(batch_key(writer, index), version.to_string());
                    }
                    block_on(handle.commit(batch, Durability::Durable)).unwrap();
                    std::io::stdout().lock().write_all(format!("batch {writer} {version}\n").as_bytes()).unwrap();
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

/// What the child has acknowledged: the version of each key, and of each writer's batch.
#[derive(Default)]
struct Acked {
    keys: HashMap<u64, u64>,
    batches: HashMap<u64, u64>,
    total: u64,
}

impl Acked {
    /// Takes in a line of the child; true if it was an acknowledgement.
    fn take(&mut self, line: &str) -> bool {
        let mut words = line.split(' ');
        let kind = words.next();
        let (Some(which), Some(version)) = (words.next(), words.next()) else {
            return false;
        };
        let acked = match kind {
            Some("ack") => &mut self.keys,
            Some("batch") => &mut self.batches,
            _ => return false,
        };
        acked.insert(which.parse().unwrap(), version.parse().unwrap());
        self.total += 1;
        true
    }

    fn check(&self, handle: &PartitionHandle, round: u64) {
        for (key, version) in &self.keys {
            let found = block_on(handle.get(key.to_be_bytes().to_vec())).unwrap();
            let found =
                found.unwrap_or_else(|| panic!("round {round}: key {key} is gone, version {version} was acknowledged"));
            let found = version_of(*key, &found);
            assert!(found >= *version, "round {round}: key {key} has version {found}, {version} was acknowledged");
        }
        for writer in 0..WRITERS {
            let found: Vec<Option<Bytes>> =
                (0..BATCH_KEYS).map(|index| block_on(handle.get(batch_key(writer, index))).unwrap()).collect();
            assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "round {round}: half a batch: {found:?}");
            let version: u64 =
                found[0].as_ref().map_or(0, |bytes| std::str::from_utf8(bytes).unwrap().parse().unwrap());
            let acked = self.batches.get(&writer).copied().unwrap_or(0);
            assert!(version >= acked, "round {round}: batch of {writer} has {version}, {acked} was acknowledged");
        }
    }
}

#[test]
fn kill_nine_loses_no_acknowledged_write_and_splits_no_batch() {
    let rounds = std::env::var("ANTUMBRA_KILL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut acked = Acked::default();
    let mut random = fastrand::Rng::with_seed(9);
    let mut loaded = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("ANTUMBRA_KILL_DIR", dir.path())
            .env("ANTUMBRA_KILL_VERSION", (round * 1_000_000 + 1).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Some children are killed while they open what the one before has left.
        let early = round > 0 && random.u8(0..4) == 0;
        if early {
            std::thread::sleep(Duration::from_millis(random.u64(0..120)));
            child.kill().unwrap();
        }
        // The clock starts with the first acknowledgement: how long the start took does not count.
        let mut kill_at = None;
        // The child's acknowledgements up to and behind the kill: the pipe holds what was written before.
        for line in lines.map_while(Result::ok) {
            let wait = Duration::from_millis(random.u64(20..400));
            if acked.take(&line) && Instant::now() >= *kill_at.get_or_insert_with(|| Instant::now() + wait) {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        loaded += u64::from(!early);

        let engine = open(dir.path());
        acked.check(&engine.partition(PARTITION).unwrap(), round);
        block_on(engine.close()).unwrap();
    }
    println!("{rounds} rounds, {loaded} of them under load, {} acknowledged writes, none lost", acked.total);
    assert!(acked.total > loaded * WRITERS, "the load was real: {} writes", acked.total);
}
