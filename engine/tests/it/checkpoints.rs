//! Checkpoints and backups of a running engine, restored and compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use antumbra_engine::checkpoint::{list_backups, remove_backup, restore, restore_backup};
use antumbra_engine::types::KeyRange;
use antumbra_engine::{Durability, Engine, Error, Keyspace, KeyspaceOptions, PartitionOptions};
use bytes::Bytes;

use crate::common::block_on;

type Model = BTreeMap<Bytes, Bytes>;

fn open(dir: &Path) -> Engine {
    Engine::builder(dir).threads(2).memory_budget(32 << 20).wal_file(32 << 20).open().unwrap()
}

fn options() -> KeyspaceOptions {
    let small =
        PartitionOptions { segment_target_bytes: 64 << 10, block_bytes: 4 << 10, ..PartitionOptions::default() };
    KeyspaceOptions::new().hash(3).partition(small)
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:05}"))
}

fn contents(keyspace: &Keyspace) -> Model {
    block_on(keyspace.iter().collect()).unwrap().into_iter().map(|entry| (entry.key, entry.value)).collect()
}

fn write_some(keyspace: &Keyspace, model: &mut Model, random: &mut fastrand::Rng, count: usize) {
    for _ in 0..count {
        let number = random.u64(0..2_000);
        let key = key(number);
        if random.u8(0..20) == 0 {
            let end = self::key(number + random.u64(0..20));
            block_on(keyspace.delete_range(key.clone()..end.clone())).unwrap();
            model.retain(|held, _| *held < key || *held >= end);
        } else {
            let value = Bytes::from(vec![random.u8(..); random.usize(0..800)]);
            block_on(keyspace.put(key.clone(), value.clone())).unwrap();
            model.insert(key, value);
        }
    }
}

#[test]
fn checkpoints_and_backups_restore_what_the_engine_held() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let engine = open(&at("data"));
    let keyspace = block_on(engine.create_keyspace("ks", options())).unwrap().with_durability(Durability::Buffered);
    let mut random = fastrand::Rng::with_seed(11);
    let (mut model, mut states) = (Model::new(), Vec::new());
    let mut copied = Vec::new();
    for round in 0..4 {
        write_some(&keyspace, &mut model, &mut random, if round == 0 { 4_000 } else { 150 });
        if [0, 2].contains(&round) {
            block_on(keyspace.compact_range::<&[u8]>(..)).unwrap();
        }
        block_on(engine.checkpoint(at(&format!("checkpoint-{round}")))).unwrap();
        let report = block_on(engine.backup(at("repository"))).unwrap();
        assert_eq!(report.number, round + 1);
        copied.push(report.bytes_copied);
        states.push(model.clone());
    }
    assert!(copied[1] < copied[0] / 2, "the second backup copies what is new: {copied:?}");
    assert!(matches!(block_on(engine.checkpoint(at("checkpoint-0"))), Err(Error::Invalid { .. })));
    drop(keyspace);
    block_on(engine.close()).unwrap();
    assert!(!at("data").join("backup.partial").exists());

    for (round, state) in states.iter().enumerate() {
        let (checkpoint, restored) = (at(&format!("checkpoint-{round}")), at(&format!("restored-{round}")));
        let verified = restore(&checkpoint, &restored).unwrap();
        assert!(verified.records > 0);
        restore_backup(at("repository"), round as u64 + 1, at(&format!("from-backup-{round}"))).unwrap();
        // The checkpoint itself is a data folder too.
        for folder in [restored, at(&format!("from-backup-{round}")), checkpoint] {
            let engine = open(&folder);
            let keyspace = engine.keyspace("ks").unwrap().with_durability(Durability::Buffered);
            assert!(contents(&keyspace) == *state, "{}", folder.display());
            // Its history goes on, and the others are not touched.
            block_on(keyspace.put("more", "v")).unwrap();
            block_on(keyspace.compact_range::<&[u8]>(..)).unwrap();
            drop(keyspace);
            block_on(engine.close()).unwrap();
        }
    }
    let engine = open(&at("data"));
    assert!(contents(&engine.keyspace("ks").unwrap()) == states[3], "the source has not changed");
}

#[test]
fn checkpoint_under_batches_holds_each_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    let keyspace = block_on(engine.create_keyspace("ks", KeyspaceOptions::new())).unwrap();
    let keyspace = keyspace.with_durability(Durability::Buffered);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut version = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                version += 1;
                let mut batch = keyspace.batch();
                batch.delete_range(KeyRange::all());
                for number in 0..50 {
                    batch.put(key(number), format!("{version}:{}", "x".repeat(500)));
                }
                block_on(keyspace.commit(batch)).unwrap();
            }
            version
        });
        for round in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(60));
            block_on(engine.checkpoint(dir.path().join(format!("checkpoint-{round}")))).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 50, "the load was real");
    });
    let mut last = 0;
    for round in 0..5 {
        let engine = open(&dir.path().join(format!("checkpoint-{round}")));
        let found = contents(&engine.keyspace("ks").unwrap());
        assert_eq!(found.len(), 50);
        let version =
            |value: &Bytes| -> u64 { std::str::from_utf8(value).unwrap().split(':').next().unwrap().parse().unwrap() };
        let first = version(&found[&key(0)]);
        assert!(found.values().all(|value| version(value) == first), "one batch");
        assert!(first >= last, "checkpoints do not go back");
        last = first;
    }
}

#[test]
fn remove_backup_keeps_what_others_need_and_damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("repository");
    let engine = open(&dir.path().join("data"));
    let keyspace = block_on(engine.create_keyspace("ks", options())).unwrap().with_durability(Durability::Buffered);
    let mut random = fastrand::Rng::with_seed(12);
    let mut model = Model::new();
    write_some(&keyspace, &mut model, &mut random, 2_000);
    block_on(engine.backup(&repository)).unwrap();
    write_some(&keyspace, &mut model, &mut random, 100);
    block_on(keyspace.compact_range::<&[u8]>(..)).unwrap();
    block_on(engine.backup(&repository)).unwrap();
    let tables = || std::fs::read_dir(repository.join("tables")).unwrap().count() as u64;
    let infos = list_backups(&repository).unwrap();
    assert_eq!(infos.iter().map(|info| info.number).collect::<Vec<_>>(), [1, 2]);
    remove_backup(&repository, 1).unwrap();
    assert_eq!(tables(), infos[1].files);
    restore_backup(&repository, 2, dir.path().join("restored")).unwrap();
    assert!(restore_backup(&repository, 1, dir.path().join("gone")).is_err());

    let table = std::fs::read_dir(repository.join("tables")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    assert!(matches!(restore_backup(&repository, 2, dir.path().join("damaged")), Err(Error::Corruption { .. })));
    assert!(!dir.path().join("damaged").exists(), "nothing takes the folder's name");
    let list = repository.join("backups/000002.bak");
    let mut bytes = std::fs::read(&list).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&list, bytes).unwrap();
    match list_backups(&repository) {
        Err(Error::Corruption { path, .. }) => assert_eq!(path, list),
        other => panic!("expected corruption, got {other:?}"),
    }
}
