//! O_DIRECT on several file systems: the engine works, or says why it does not start.

use antumbra_hw_tests::here;

use super::mount::{Mounted, Scratch};
use super::{alone, key, missing, open, value};

const ROWS: usize = 2_000;
const VALUE_BYTES: usize = 1_000;

/// Opens, writes, closes, opens again and reads; false if the engine refused to open for want of direct I/O.
fn works_on(mounted: &Mounted) -> bool {
    let dir = mounted.path.join("data");
    let (engine, rows) = match open(&dir) {
        Ok(opened) => opened,
        Err(cause) => {
            let text = cause.to_string();
            println!("refused: {text}");
            assert!(text.contains("O_DIRECT") || text.contains("direct"), "the cause is named: {text}");
            assert!(text.contains("data"), "the place is named: {text}");
            return false;
        }
    };
    for number in 0..ROWS {
        rows.put(key(number), value(number, VALUE_BYTES)).unwrap();
    }
    engine.close().unwrap();
    let (engine, rows) = open(&dir).unwrap();
    assert_eq!(missing(&rows, ROWS, VALUE_BYTES), None);
    rows.compact_range::<&str>(..).unwrap();
    assert_eq!(missing(&rows, ROWS, VALUE_BYTES), None, "from tables, not from memory");
    engine.close().unwrap();
    true
}

#[test]
fn engine_works_on_ext4() {
    if !here(&["ext4"]) {
        return;
    }
    let _alone = alone();
    assert!(works_on(&Scratch::new("ext4", 256, &[], "rw").mounted));
}

#[test]
fn engine_works_on_ext4_with_small_blocks() {
    if !here(&["ext4"]) {
        return;
    }
    let _alone = alone();
    assert!(works_on(&Scratch::new("ext4", 256, &["-b", "1024"], "rw").mounted));
}

#[test]
fn engine_works_on_xfs() {
    if !here(&["xfs"]) {
        return;
    }
    let _alone = alone();
    // mkfs.xfs makes nothing smaller than 300 MB.
    assert!(works_on(&Scratch::new("xfs", 512, &[], "rw").mounted));
}

/// tmpfs takes O_DIRECT since Linux 6.6.
#[test]
fn engine_works_on_tmpfs_or_says_why_not() {
    if !here(&["tmpfs", "root"]) {
        return;
    }
    let _alone = alone();
    let works = works_on(&Mounted::new("tmpfs", "tmpfs", "size=256m"));
    println!("tmpfs: {}", if works { "works" } else { "is refused" });
}

#[test]
fn read_only_file_system_is_refused_by_name() {
    if !here(&["ext4"]) {
        return;
    }
    let _alone = alone();
    let scratch = Scratch::new("ext4", 64, &[], "ro");
    let text = open(&scratch.mounted.path.join("data")).map(drop).unwrap_err().to_string();
    assert!(text.contains("Read-only") && text.contains("data"), "{text}");
}
