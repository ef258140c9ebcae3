//! kill -9 under batches: each is there whole or not at all.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use antumbra_engine::types::KeyRange;
use antumbra_engine::{Batch, Durability};
use bytes::Bytes;

use crate::common::{PARTITION, block_on, create, open};

const GROUPS: u64 = 12;
const KEYS: u64 = 40;
const ROUNDS: u64 = 8;

fn key(group: u64, number: u64) -> Bytes {
    Bytes::from(format!("{group:02}/{number:03}"))
}

/// Every batch writes a whole group anew: all its keys in even versions, every other key in odd ones, behind a range
/// deletion of the group.
fn batch(group: u64, version: u64) -> Batch {
    let mut batch = Batch::new();
    batch.delete_range(KeyRange { start: key(group, 0).to_vec(), end: Some(key(group, 999).to_vec()) });
    for number in (0..KEYS).filter(|number| version.is_multiple_of(2) || number % 2 == 1) {
        batch.put(key(group, number), format!("{version}:{}", "x".repeat((number * 53 % 700) as usize)));
    }
    batch
}

#[test]
#[ignore = "the child of kill_nine_leaves_every_batch_whole_or_absent"]
fn child() {
    let Ok(dir) = std::env::var("ANTUMBRA_ATOMIC_DIR") else {
        return;
    };
    let first: u64 = std::env::var("ANTUMBRA_ATOMIC_VERSION").unwrap().parse().unwrap();
    let engine = open(dir.as_ref());
    let handle = engine.partition(PARTITION).unwrap_or_else(|_| create(&engine));
    std::thread::scope(|scope| {
        for group in 0..GROUPS {
            let handle = handle.clone();
            scope.spawn(move || {
                for version in first.. {
                    let durability = if version.is_multiple_of(3) { Durability::Buffered } else { Durability::Durable };
                    block_on(handle.commit(batch(group, version), durability)).unwrap();
                    if durability == Durability::Durable {
                        let line = format!("ack {group} {version}\n");
                        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn kill_nine_leaves_every_batch_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked = [0_u64; GROUPS as usize];
    let mut random = fastrand::Rng::with_seed(3);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "atomic::child", "--ignored", "--nocapture"])
            .env("ANTUMBRA_ATOMIC_DIR", dir.path())
            .env("ANTUMBRA_ATOMIC_VERSION", (round * 1_000_000 + 1).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut kill_at = None;
        while let Some(Ok(line)) = lines.next() {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ack", group, version] = words[..] {
                acked[group.parse::<usize>().unwrap()] = version.parse().unwrap();
                let deadline =
                    *kill_at.get_or_insert_with(|| Instant::now() + Duration::from_millis(random.u64(100..500)));
                if Instant::now() >= deadline {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let engine = open(dir.path());
        let handle = engine.partition(PARTITION).unwrap();
        for group in 0..GROUPS {
            let range = KeyRange { start: key(group, 0).to_vec(), end: Some(key(group, 999).to_vec()) };
            let page = block_on(handle.scan(range, usize::MAX)).unwrap();
            let version = page.items.first().map_or(0, |item| {
                let text = String::from_utf8_lossy(&item.value).into_owned();
                text.split(':').next().unwrap().parse().unwrap()
            });
            assert!(version >= acked[group as usize], "round {round}, group {group}: {version} after {acked:?}");
            let mut expected = 0;
            if version > 0 {
                expected = if version.is_multiple_of(2) { KEYS } else { KEYS / 2 };
            }
            assert_eq!(page.items.len() as u64, expected, "round {round}, group {group}, version {version}");
            let prefix = format!("{version}:");
            assert!(page.items.iter().all(|item| item.value.starts_with(prefix.as_bytes())), "one version a group");
        }
        block_on(engine.close()).unwrap();
    }
    assert!(acked.iter().all(|version| *version > 0), "every group was written: {acked:?}");
}
