//! A device that fails, a file system that is full: the engine says so, and loses nothing that it acknowledged.

use std::time::{Duration, Instant};

use antumbra_engine::blocking::Keyspace;
use antumbra_hw_tests::here;

use super::mount::{Loop, Mounted, Scratch, folder, image, run};
use super::recorder::{Content, Fault, Recorder};
use super::{alone, key, missing, open, value};

const VALUE_BYTES: usize = 200 << 10;
/// More than fits on any of the devices.
const ROWS_MAX: usize = 5_000;

/// Puts rows from `first` on until one fails: how many are acknowledged in all, and the error.
fn put_until_error(rows: &Keyspace, first: usize) -> (usize, String) {
    for number in first..ROWS_MAX {
        if let Err(cause) = rows.put(key(number), value(number, VALUE_BYTES)) {
            return (number, cause.to_string());
        }
    }
    panic!("no put failed");
}

/// Puts that follow fail too, with a reason; what is acknowledged can be read.
fn stays_honest(rows: &Keyspace, acknowledged: usize) {
    let again = rows.put("more", vec![1; VALUE_BYTES]).map(drop).unwrap_err().to_string();
    assert!(again.contains("read-only") || again.contains("no room"), "{again}");
    let seen = missing(rows, acknowledged, VALUE_BYTES);
    assert!(seen.as_ref().is_none_or(|wrong| wrong.contains("error") || wrong.contains("Input/output")), "{seen:?}");
}

#[test]
fn device_errors_are_named_and_lose_nothing() {
    if !here(&["FUSE", "ext4"]) {
        return;
    }
    let _alone = alone();
    let recorder = Recorder::new(192, Content::default());
    run("mkfs.ext4", &["-q", recorder.device()]).unwrap();
    let mounted = Mounted::new("ext4", recorder.device(), "rw,errors=continue");
    let (engine, rows) = open(&mounted.path.join("data")).unwrap();
    for number in 0..40 {
        rows.put(key(number), value(number, VALUE_BYTES)).unwrap();
    }
    recorder.set_fault(Fault::Fails);
    let (acknowledged, error) = put_until_error(&rows, 40);
    println!("{acknowledged} rows, then: {error}");
    assert!(error.contains("read-only") && error.contains("check the device"), "{error}");
    assert!(error.contains("os error 5"), "the cause is named: {error}");
    stays_honest(&rows, acknowledged);
    // Closing may fail too: it has something to say about the log.
    if let Err(cause) = engine.close() {
        println!("closing: {cause}");
    }
    drop(rows);
    mounted.unmount();
    recorder.set_fault(Fault::None);
    let content = recorder.content();
    drop(recorder);

    let recorder = Recorder::new(192, content);
    // 1: errors were mended.
    let checked = std::process::Command::new("e2fsck").args(["-fy", recorder.device()]).output().unwrap();
    assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:?}");
    let mounted = Mounted::new("ext4", recorder.device(), "rw");
    let (engine, rows) = open(&mounted.path.join("data")).unwrap();
    assert_eq!(missing(&rows, acknowledged, VALUE_BYTES), None);
    rows.put("after", "the repair").unwrap();
    engine.close().unwrap();
}

/// Either the log or a flush is the first that finds no room.
#[test]
fn full_file_system_is_named_and_loses_nothing() {
    if !here(&["ext4"]) {
        return;
    }
    let _alone = alone();
    let Scratch { mounted, .. } = &Scratch::new("ext4", 224, &["-m", "0"], "rw");
    let ballast = mounted.path.join("ballast");
    // What a new start needs: two files of the log beside those that it replays, and tables.
    std::fs::write(&ballast, vec![1; 112 << 20]).unwrap();
    let data = mounted.path.join("data");
    let (engine, rows) = open(&data).unwrap();
    let (acknowledged, error) = put_until_error(&rows, 0);
    println!("{acknowledged} rows, then: {error}");
    assert!(acknowledged > 40, "{acknowledged}");
    assert!(error.contains("space") || error.contains("os error 28"), "the cause is named: {error}");
    stays_honest(&rows, acknowledged);
    std::fs::remove_file(&ballast).unwrap();
    if error.contains("no room") {
        // A log that could not go on stays read-only; a flush that failed is tried again.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(cause) = rows.put("again", "without a restart") {
            assert!(Instant::now() < deadline, "{cause}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    if let Err(cause) = engine.close() {
        println!("closing: {cause}");
    }
    drop(rows);
    let (engine, rows) = open(&data).unwrap();
    assert_eq!(missing(&rows, acknowledged, VALUE_BYTES), None);
    rows.put("after", "there is room again").unwrap();
    engine.close().unwrap();
}

/// The same as with the recorder, by the kernel's own means, where it has them.
#[test]
fn device_mapper_errors_are_named_and_lose_nothing() {
    if !here(&["device mapper", "ext4"]) {
        return;
    }
    let _alone = alone();
    let dir = folder();
    let device = Loop::over(&image(dir.path(), 192));
    let name = format!("antumbra-hw-{}", std::process::id());
    let sectors = (192_u64 << 20) / 512;
    run("dmsetup", &["create", &name, "--table", &format!("0 {sectors} linear {} 0", device.device)]).unwrap();
    let swap = |table: &str| {
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", &name]).unwrap();
        run("dmsetup", &["load", &name, "--table", table]).unwrap();
        run("dmsetup", &["resume", &name]).unwrap();
    };
    let mapped = format!("/dev/mapper/{name}");
    run("mkfs.ext4", &["-q", &mapped]).unwrap();
    let mounted = Mounted::new("ext4", &mapped, "rw,errors=continue");
    let (engine, rows) = open(&mounted.path.join("data")).unwrap();
    for number in 0..40 {
        rows.put(key(number), value(number, VALUE_BYTES)).unwrap();
    }
    swap(&format!("0 {sectors} error"));
    let (acknowledged, error) = put_until_error(&rows, 40);
    assert!(error.contains("read-only") && error.contains("os error 5"), "{error}");
    stays_honest(&rows, acknowledged);
    let _ = engine.close();
    drop(rows);
    mounted.unmount();
    swap(&format!("0 {sectors} linear {} 0", device.device));
    let checked = std::process::Command::new("e2fsck").args(["-fy", &mapped]).output().unwrap();
    assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:?}");
    let mounted = Mounted::new("ext4", &mapped, "rw");
    let (engine, rows) = open(&mounted.path.join("data")).unwrap();
    assert_eq!(missing(&rows, acknowledged, VALUE_BYTES), None);
    engine.close().unwrap();
    mounted.unmount();
    run("dmsetup", &["remove", "--retry", &name]).unwrap();
}
