//! Data folders looked at, damaged and repaired without an engine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use antumbra_engine::offline::{self, Finding, WalRest};
use antumbra_engine::{Durability, Engine, Error, Write};

use crate::common::{PARTITION, block_on};

fn key(number: u32) -> Vec<u8> {
    format!("key-{number:05}").into_bytes()
}

fn value(number: u32, version: u32) -> Vec<u8> {
    let mut value = format!("{number}/{version}/").into_bytes();
    value.resize(300, b'.');
    value
}

/// A folder whose tables hold 2,000 keys (some overwritten in a slice) and whose log holds 40 more, a batch each.
fn filled(dir: &Path) {
    let engine = crate::common::open(dir);
    let partition = crate::common::create(&engine);
    let put = |number: u32, version: u32, durability| {
        block_on(partition.write(Write::put(key(number), value(number, version)), durability)).unwrap();
    };
    (0..2_000).for_each(|number| put(number, 0, Durability::Buffered));
    block_on(partition.compact()).unwrap();
    (2_000..2_040).for_each(|number| put(number, 0, Durability::Durable));
    block_on(engine.close()).unwrap();
}

fn read_all(engine: &Engine) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let partition = engine.partition(PARTITION).unwrap();
    let mut found = BTreeMap::new();
    let mut start = bytes::Bytes::new();
    loop {
        let page = block_on(partition.export(start, 10_000)).unwrap();
        found.extend(page.records.into_iter().map(|record| (record.key.to_vec(), record.value.to_vec())));
        match page.next {
            Some(next) => start = next,
            None => return found,
        }
    }
}

fn expected(numbers: impl Iterator<Item = u32>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    numbers.map(|number| (key(number), value(number, 0))).collect()
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.to_string_lossy().ends_with(suffix));
    found.sort();
    found
}

fn damage(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Name and content of every file, the lock excepted.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(snapshot(&path));
        } else if path.file_name().unwrap() != "LOCK" {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn inspect_and_verify_sound_folder_agree() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let shard = dir.path().join("shard-000");
    let verified = offline::verify(dir.path(), |_| {}).unwrap();
    assert_eq!((verified.shards, verified.partitions, verified.records), (1, 1, 2_000));
    assert!(verified.wal_records >= 40, "{verified:?}");

    let manifest = offline::inspect_manifest(&shard).unwrap();
    assert_eq!(manifest.damage, None);
    let segments = &manifest.state.partitions[&PARTITION].segments;
    let mut records = 0;
    for table in manifest.state.tables() {
        let file = shard.join(format!("{:012}.tab", table.file.0));
        let tables = offline::inspect_segment(&file).unwrap();
        let report = tables.iter().find(|report| report.offset == table.offset).unwrap();
        assert_eq!((report.meta.len, report.damage.as_ref()), (table.len, None));
        assert_eq!(report.blocks.iter().map(|block| block.records as u64).sum::<u64>(), report.meta.records);
        records += report.meta.records;
    }
    assert!(segments.len() > 4, "{} segments", segments.len());
    assert_eq!(records, verified.records);

    let mut last = Vec::new();
    let logs = offline::inspect_wal(&shard, |_, record| last = record.record.key.to_vec()).unwrap();
    assert_eq!(last, key(2_039));
    assert!(logs.iter().all(|file| !file.rest.iter().any(|rest| matches!(rest, WalRest::Unreadable { .. }))));
    assert!(offline::repair(dir.path(), false, |_| {}).unwrap().findings.is_empty());
}

#[test]
fn verify_and_repair_of_another_folder_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(offline::verify(dir.path(), |_| {}), Err(Error::Invalid { .. })));
    assert!(matches!(offline::repair(dir.path(), true, |_| {}), Err(Error::Invalid { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn repair_open_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = crate::common::open(dir.path());
    crate::common::create(&engine);
    assert!(matches!(offline::repair(dir.path(), true, |_| {}), Err(Error::Locked { .. })));
    block_on(engine.close()).unwrap();
}

#[test]
fn repair_damaged_block_loses_exactly_the_keys_it_names() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let file = files(&dir.path().join("shard-000"), ".tab").swap_remove(1);
    let table = offline::inspect_segment(&file).unwrap().swap_remove(0);
    let block = &table.blocks[1];
    damage(&file, block.offset + 5);
    assert!(matches!(offline::verify(dir.path(), |_| {}), Err(Error::Corruption { path, .. }) if path == file));

    let before = snapshot(dir.path());
    let dry = offline::repair(dir.path(), false, |_| {}).unwrap();
    assert_eq!(snapshot(dir.path()), before, "a dry run changes nothing");
    assert!(!dry.applied && dry.quarantine.is_none());
    let [Finding::Table { path, kept, lost, ranges, is_base, .. }] = &dry.findings[..] else {
        panic!("{:?}", dry.findings);
    };
    assert_eq!((path, *lost, *is_base), (&file, Some(block.records as u64), true));
    assert_eq!(*kept, table.meta.records - block.records as u64);
    let [range] = &ranges[..] else { panic!("{ranges:?}") };
    let (after, through) = (range.after.clone().unwrap(), range.through.clone().unwrap());
    assert_eq!((&after, &through), (&table.blocks[0].last_key, &block.last_key));

    let done = offline::repair(dir.path(), true, |_| {}).unwrap();
    assert_eq!(done.findings, dry.findings, "what was announced is what was done");
    let quarantine = done.quarantine.unwrap();
    assert_eq!(files(&quarantine, ".tab").len(), 1);
    assert_eq!(fs::read(&files(&quarantine, ".tab")[0]).unwrap(), before[&file], "the damaged file is kept whole");
    offline::verify(dir.path(), |_| {}).unwrap();
    let engine = crate::common::open(dir.path());
    let mut all = expected(0..2_040);
    all.retain(|key, _| *key <= after || *key > through);
    assert_eq!(read_all(&engine), all);
    assert_eq!(2_040 - all.len(), block.records);
    block_on(engine.close()).unwrap();
    assert!(offline::repair(dir.path(), false, |_| {}).unwrap().findings.is_empty());
}

#[test]
fn repair_missing_table_opens_without_it() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let file = files(&dir.path().join("shard-000"), ".tab").swap_remove(0);
    let records = offline::inspect_segment(&file).unwrap()[0].meta.records;
    fs::remove_file(&file).unwrap();
    assert!(Engine::open(crate::common::config(dir.path())).is_err());
    let done = offline::repair(dir.path(), true, |_| {}).unwrap();
    assert!(
        matches!(&done.findings[..], [Finding::Table { kept: 0, lost: None, what, .. }] if what.contains("missing")),
        "{:?}",
        done.findings
    );
    let engine = crate::common::open(dir.path());
    assert_eq!(read_all(&engine).len() as u64, 2_040 - records);
    block_on(engine.close()).unwrap();
}

/// The file and the places of the batches of the 40 durable puts.
fn durable_batches(dir: &Path) -> (PathBuf, Vec<u64>) {
    let logs = offline::inspect_wal(&dir.join("shard-000"), |_, _| {}).unwrap();
    let log = logs.iter().max_by_key(|file| file.batches.len()).unwrap();
    let single: Vec<u64> = log
        .batches
        .iter()
        .filter(|batch| batch.entries == 1 && batch.bytes == 4096)
        .map(|batch| batch.offset)
        .collect();
    (log.path.clone(), single[single.len() - 40..].to_vec())
}

#[test]
fn repair_hole_in_the_log_cuts_there_and_counts_what_goes() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (path, batches) = durable_batches(dir.path());
    damage(&path, batches[29] + 70);
    assert!(matches!(Engine::open(crate::common::config(dir.path())), Err(Error::Corruption { .. })));
    assert!(matches!(offline::verify(dir.path(), |_| {}), Err(Error::Corruption { .. })));

    let before = snapshot(dir.path());
    let dry = offline::repair(dir.path(), false, |_| {}).unwrap();
    assert_eq!(snapshot(dir.path()), before, "a dry run changes nothing");
    let [Finding::LogCut { path: cut, offset, batches: whole, records, .. }] = &dry.findings[..] else {
        panic!("{:?}", dry.findings);
    };
    assert_eq!((cut, *offset, *whole), (&path, batches[29], 10));
    let loss = records[&PARTITION];
    assert_eq!((loss.records, loss.first.0, loss.last.0), (10, 2_031, 2_040));

    let done = offline::repair(dir.path(), true, |_| {}).unwrap();
    assert_eq!(fs::read(&files(&done.quarantine.unwrap(), ".wal")[0]).unwrap(), before[&path]);
    let engine = crate::common::open(dir.path());
    assert_eq!(read_all(&engine), expected(0..2_029));
    block_on(engine.close()).unwrap();
    assert!(offline::repair(dir.path(), false, |_| {}).unwrap().findings.is_empty());
}

#[test]
fn repair_torn_tail_is_announced_and_cut() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (path, batches) = durable_batches(dir.path());
    damage(&path, batches[39] + 70);
    let dry = offline::repair(dir.path(), false, |_| {}).unwrap();
    assert_eq!(dry.findings, [Finding::TornTail { path, offset: batches[39], bytes: 4096 }]);
    offline::repair(dir.path(), true, |_| {}).unwrap();
    assert!(offline::repair(dir.path(), false, |_| {}).unwrap().findings.is_empty());
    let engine = crate::common::open(dir.path());
    assert_eq!(read_all(&engine), expected(0..2_039));
    block_on(engine.close()).unwrap();
}

#[test]
fn repair_damaged_manifest_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let shard = dir.path().join("shard-000");
    let manifest = offline::inspect_manifest(&shard).unwrap().path;
    damage(&manifest, 20);
    let before = snapshot(dir.path());
    let done = offline::repair(dir.path(), true, |_| {}).unwrap();
    assert!(matches!(&done.findings[..], [Finding::Beyond { path, .. }] if *path == shard), "{:?}", done.findings);
    assert_eq!(snapshot(dir.path()), before);
    let report = offline::inspect_manifest(&manifest).unwrap();
    assert!(report.groups.is_empty() && report.damage.is_some_and(|(offset, _)| offset == 0));
}

#[test]
fn inspect_what_is_no_such_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.tab");
    fs::write(&file, vec![7; 9_000]).unwrap();
    assert!(matches!(offline::inspect_segment(&file), Err(Error::Corruption { .. })));
    assert!(matches!(offline::inspect_wal(&file, |_, _| {}), Err(Error::Invalid { .. })));
    assert!(matches!(offline::inspect_wal(dir.path(), |_, _| {}), Err(Error::Invalid { .. })));
    assert!(matches!(offline::inspect_manifest(dir.path()), Err(Error::Io { .. })));
}

#[test]
fn scrub_sound_partition_reads_all_and_damage_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let engine = crate::common::open(dir.path());
    let partition = engine.partition(PARTITION).unwrap();
    let sound = block_on(partition.scrub(None)).unwrap();
    assert_eq!((sound.records, sound.damage.len()), (2_000, 0));
    // Behind the engine's back, in a block that may be in its cache.
    let file = files(&dir.path().join("shard-000"), ".tab").swap_remove(0);
    damage(&file, 64);
    let found = block_on(partition.scrub(None)).unwrap();
    assert_eq!((found.tables, found.blocks), (sound.tables, sound.blocks), "reading goes on behind damage");
    assert!(matches!(&found.damage[..], [(_, Error::Corruption { path, .. })] if *path == file), "{:?}", found.damage);
    block_on(engine.close()).unwrap();
}

#[test]
fn scrub_at_a_rate_takes_its_time() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let engine = crate::common::open(dir.path());
    let partition = engine.partition(PARTITION).unwrap();
    let bytes = block_on(partition.scrub(None)).unwrap().bytes;
    let begin = std::time::Instant::now();
    block_on(partition.scrub(Some(bytes * 2))).unwrap();
    assert!(begin.elapsed().as_secs_f64() > 0.4, "{:?} for {bytes} bytes at twice that a second", begin.elapsed());
    block_on(engine.close()).unwrap();
}
