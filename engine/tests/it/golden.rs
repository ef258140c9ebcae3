//! Files of each format version, as they were written then: this build reads them, and refuses newer ones in words.
//!
//! `cargo test -p antumbra-engine --test it golden::write_golden -- --ignored` writes them anew into `tests/golden/new`;
//! a file that exists is never replaced: a format that changes gets a new version and a new file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use antumbra_engine::record::{Record, RecordKind};
use antumbra_engine::table::{decode_records, encode_records};
use antumbra_engine::types::{Hlc, KeyRange, Lsn};
use antumbra_engine::{Durability, Engine, Error, KeyspaceOptions, Write, offline};

use crate::common::{PARTITION, block_on};

const KEYS: u32 = 60;
const DEADLINE_MS: u64 = 4_000_000_000_000;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A copy of the newest golden data folder, to be opened or damaged.
fn folder() -> tempfile::TempDir {
    copy_of("folder-v2")
}

fn copy_of(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden(name), dir.path());
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn value(number: u32) -> Vec<u8> {
    format!("value of {number} ").repeat(12).into_bytes()
}

/// What the golden folder's own partition holds.
fn expected() -> BTreeMap<Vec<u8>, (Vec<u8>, u64)> {
    let mut all: BTreeMap<Vec<u8>, (Vec<u8>, u64)> =
        (0..KEYS).map(|number| (format!("key-{number:03}").into_bytes(), (value(number), 0))).collect();
    all.remove(&b"key-007"[..]);
    (20..25).for_each(|number| drop(all.remove(format!("key-{number:03}").as_bytes())));
    all.insert(b"mortal".to_vec(), (b"soon".to_vec(), DEADLINE_MS));
    all
}

/// Writes the golden folder: tables with a tombstone and a deadline, a range deletion in the log, a keyspace.
fn write_folder(dir: &Path) {
    let engine = crate::common::open(dir);
    let partition = crate::common::create(&engine);
    let put = |write: Write| block_on(partition.write(write, Durability::Durable)).unwrap();
    for number in 0..KEYS {
        put(Write::put(format!("key-{number:03}"), value(number)));
    }
    put(Write { expires_at_ms: DEADLINE_MS, ..Write::put("mortal", "soon") });
    block_on(partition.compact()).unwrap();
    block_on(partition.delete("key-007")).unwrap();
    let erased = KeyRange { start: b"key-020".to_vec(), end: Some(b"key-025".to_vec()) };
    block_on(partition.delete_range(erased, Durability::Durable)).unwrap();
    let keyspace = block_on(engine.create_keyspace("golden", KeyspaceOptions::new().hash(2))).unwrap();
    for number in 0..10 {
        block_on(keyspace.put(format!("k{number}"), format!("v{number}"))).unwrap();
    }
    block_on(engine.close()).unwrap();
}

fn records() -> Vec<Record> {
    let record = |number: u64, kind, value: &'static [u8]| Record {
        key: format!("key-{number}").into_bytes().into(),
        lsn: Lsn(number),
        hlc: Hlc(number << 16),
        kind,
        expires_at_ms: if number == 2 { DEADLINE_MS } else { 0 },
        value: value.into(),
    };
    vec![record(1, RecordKind::Put, b"one"), record(2, RecordKind::Put, b""), record(3, RecordKind::Delete, b"")]
}

#[test]
#[ignore = "writes new golden files"]
fn write_golden() {
    let out = golden("new");
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path());
    copy(dir.path(), &out.join("folder"));
    // A log is mostly zeros: what is behind its last batch need not be kept.
    let shard = out.join("folder/shard-000");
    for file in offline::inspect_wal(&shard, |_, _| {}).unwrap() {
        let end = file.batches.last().map_or(0, |batch| batch.offset + batch.bytes as u64);
        fs::OpenOptions::new().write(true).open(&file.path).unwrap().set_len(end).unwrap();
    }
    let _ = fs::remove_file(out.join("folder/LOCK"));
    let bytes = encode_records(records().iter().map(Record::view)).unwrap();
    fs::write(out.join("records.bin"), bytes).unwrap();
}

/// Version 2 has a log whose marks say what they follow, and a manifest that knows how far the log was.
#[test]
fn open_folder_of_each_version_reads_everything() {
    for name in ["folder-v1", "folder-v2"] {
        open_reads_everything(&copy_of(name));
    }
}

fn open_reads_everything(dir: &tempfile::TempDir) {
    offline::verify(dir.path(), |_| {}).unwrap();
    let engine = crate::common::open(dir.path());
    let page = block_on(engine.partition(PARTITION).unwrap().export("", 1 << 20)).unwrap();
    let found: BTreeMap<Vec<u8>, (Vec<u8>, u64)> = page
        .records
        .into_iter()
        .map(|record| (record.key.to_vec(), (record.value.to_vec(), record.expires_at_ms)))
        .collect();
    assert_eq!(found, expected());
    let keyspace = engine.keyspace("golden").unwrap();
    for number in 0..10 {
        let found = block_on(keyspace.get(format!("k{number}"))).unwrap().unwrap();
        assert_eq!(found, format!("v{number}"));
    }
    block_on(engine.close()).unwrap();
}

#[test]
fn decode_records_of_version_1_returns_them() {
    assert_eq!(decode_records(&fs::read(golden("records-v1.bin")).unwrap()).unwrap(), records());
}

/// Changes the version at `at` and makes the checksum right again, as a later build would have written it.
fn set_version(bytes: &mut [u8], at: usize, checksum_at: usize, covered: &[std::ops::Range<usize>]) {
    bytes[at] = 9;
    let crc = covered.iter().fold(0, |crc, range| crc32c::crc32c_append(crc, &bytes[range.clone()]));
    bytes[checksum_at..checksum_at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn refused(dir: &Path, wanted: &'static str, newest: u8) {
    let before = fs::read_dir(dir.join("shard-000")).unwrap().count();
    match Engine::open(crate::common::config(dir)) {
        Err(Error::Version { what, found, known, .. }) => assert_eq!((what, found, known), (wanted, 9, newest)),
        other => panic!("{wanted}: {other:?}"),
    }
    let cause = offline::verify(dir, |_| {}).unwrap_err().to_string();
    assert!(cause.contains("version 9") && cause.contains(&format!("version {newest}")), "{cause}");
    assert!(fs::read_dir(dir.join("shard-000")).unwrap().count() >= before, "nothing was removed");
}

#[test]
fn open_newer_log_is_refused() {
    let dir = folder();
    let logs = offline::inspect_wal(&dir.path().join("shard-000"), |_, _| {}).unwrap();
    let log = logs.iter().max_by_key(|file| file.batches.len()).unwrap();
    let mut bytes = fs::read(&log.path).unwrap();
    // The last batch alone: a log that a later build went on with.
    let at = log.batches.last().unwrap().offset as usize;
    let len = u32::from_le_bytes(bytes[at + 24..at + 28].try_into().unwrap()) as usize;
    set_version(&mut bytes[at..], 4, 32, &[0..32, 64..64 + len]);
    fs::write(&log.path, bytes).unwrap();
    refused(dir.path(), "write-ahead log", 2);
}

#[test]
fn open_newer_manifest_is_refused() {
    for last in [false, true] {
        let dir = folder();
        let report = offline::inspect_manifest(&dir.path().join("shard-000")).unwrap();
        let group = if last { report.groups.last() } else { report.groups.first() }.unwrap();
        let mut bytes = fs::read(&report.path).unwrap();
        set_version(&mut bytes[group.offset as usize..], 15, 4, &[8..16, 16..group.len]);
        fs::write(&report.path, bytes).unwrap();
        refused(dir.path(), "manifest", 1);
    }
}

#[test]
fn open_newer_table_is_refused() {
    let dir = folder();
    let shard = dir.path().join("shard-000");
    let state = offline::inspect_manifest(&shard).unwrap().state;
    let table = *state.tables().next().unwrap();
    let path = shard.join(format!("{:012}.tab", table.file.0));
    let mut bytes = fs::read(&path).unwrap();
    let footer = (table.offset + table.len) as usize - 128;
    set_version(&mut bytes[footer..], 8, 124, &[0..64, 64..124]);
    fs::write(&path, bytes).unwrap();
    refused(dir.path(), "table", 2);
}

#[test]
fn newer_records_and_keyspaces_are_refused() {
    let mut bytes = fs::read(golden("records-v1.bin")).unwrap();
    let len = bytes.len();
    set_version(&mut bytes, 0, 12, &[0..12, 16..len]);
    let cause = decode_records(&bytes).unwrap_err().to_string();
    assert!(cause.contains("version 9"), "{cause}");

    let dir = folder();
    let path = dir.path().join("KEYSPACES");
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    set_version(&mut bytes, 8, 16, &[0..16, 20..len]);
    fs::write(&path, bytes).unwrap();
    let cause = Engine::open(crate::common::config(dir.path())).unwrap_err().to_string();
    assert!(cause.contains("version 9") && cause.contains("KEYSPACES"), "{cause}");
}

/// Reads a table by the page `docs/formats.md` alone.
#[test]
fn table_of_version_1_is_laid_out_as_documented() {
    let shard = golden("folder-v1/shard-000");
    let state = offline::inspect_manifest(&shard).unwrap().state;
    let table = state.partitions[&PARTITION].segments.iter().find_map(|segment| segment.base).unwrap();
    let file = fs::read(shard.join(format!("{:012}.tab", table.file.0))).unwrap();
    let table = &file[table.offset as usize..(table.offset + table.len) as usize];
    let small = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let number = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    // A column of an archive with `columns` columns: where its first element lies, and how many there are.
    let column = |archive: &[u8], columns: usize, index: usize| {
        let field = archive.len() - columns * 8 + index * 8;
        let start = (field as i64 + i64::from(small(archive, field) as i32)) as usize;
        (start, small(archive, field + 4) as usize)
    };
    let footer = &table[table.len() - 128..];
    assert_eq!((&footer[..8], footer[8]), (&b"ANTBTAB\0"[..], 1));
    assert_eq!(small(footer, 124), crc32c::crc32c(&footer[..124]));
    let part = |at: usize| &table[number(footer, at) as usize..][..small(footer, at + 8) as usize];
    let (index, filter) = (part(16), part(32));
    assert_eq!((small(footer, 28), small(footer, 44)), (crc32c::crc32c(index), crc32c::crc32c(filter)));

    let ((offsets, blocks), (lens, _), (crcs, _)) = (column(index, 5, 2), column(index, 5, 3), column(index, 5, 4));
    let mut keys = 0;
    for block in 0..blocks {
        let at = number(index, offsets + block * 8) as usize;
        let archive = &table[at..at + small(index, lens + block * 4) as usize];
        assert_eq!(small(index, crcs + block * 4), crc32c::crc32c(archive));
        let ((key_bytes, _), (key_ends, count)) = (column(archive, 8, 0), column(archive, 8, 1));
        let (lsns, kinds) = (column(archive, 8, 4).0, column(archive, 8, 7).0);
        for record in 0..count {
            let start = if record == 0 { 0 } else { small(archive, key_ends + record * 4 - 4) as usize };
            let key = &archive[key_bytes + start..key_bytes + small(archive, key_ends + record * 4) as usize];
            let hash = xxhash_rust::xxh3::xxh3_64(key);
            let filter_block = &filter[(((hash >> 32) * (filter.len() as u64 / 32)) >> 32) as usize * 32..][..32];
            let bit = (hash as u32).wrapping_mul(0x47b6_137b) >> 27;
            assert_ne!(small(filter_block, 0) >> bit & 1, 0, "the filter knows the key");
            assert_eq!((archive[kinds + record], number(archive, lsns + record * 8) > 0), (1, true));
            keys += 1;
            assert!(key.starts_with(b"key-") || key == b"mortal");
        }
    }
    assert_eq!(keys, number(footer, 48));
    assert!(keys > 0);
}
