//! O_DIRECT on several file systems: the engine works, or says why it does not start.

use antumbra_hw_tests::here;

use super::mount::{Loop, Mounted, folder, image, run};
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
    let dir = folder();
    let device = Loop::over(&image(dir.path(), 256));
    run("mkfs.ext4", &["-q", &device.device]).unwrap();
    assert!(works_on(&Mounted::new("ext4", &device.device, "rw")));
}

#[test]
fn engine_works_on_ext4_with_small_blocks() {
    if !here(&["ext4"]) {
        return;
    }
    let _alone = alone();
    let dir = folder();
    let device = Loop::over(&image(dir.path(), 256));
    run("mkfs.ext4", &["-q", "-b", "1024", &device.device]).unwrap();
    assert!(works_on(&Mounted::new("ext4", &device.device, "rw")));
}

#[test]
fn engine_works_on_xfs() {
    if !here(&["xfs"]) {
        return;
    }
    let _alone = alone();
    let dir = folder();
    // mkfs.xfs makes nothing smaller than 300 MB.
    let device = Loop::over(&image(dir.path(), 512));
    run("mkfs.xfs", &["-q", &device.device]).unwrap();
    assert!(works_on(&Mounted::new("xfs", &device.device, "rw")));
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
    let dir = folder();
    let device = Loop::over(&image(dir.path(), 64));
    run("mkfs.ext4", &["-q", &device.device]).unwrap();
    let mounted = Mounted::new("ext4", &device.device, "ro");
    let text = open(&mounted.path.join("data")).map(drop).unwrap_err().to_string();
    assert!(text.contains("Read-only") && text.contains("data"), "{text}");
}
