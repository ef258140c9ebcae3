//! Every example runs. What they claim they assert themselves.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../examples/backups.rs"]
mod backups;
#[path = "../examples/blocking.rs"]
mod blocking;
#[path = "../examples/compression.rs"]
mod compression;
#[path = "../examples/counters.rs"]
mod counters;
#[path = "../examples/hello.rs"]
mod hello;
#[path = "../examples/leader.rs"]
mod leader;
#[path = "../examples/on_shard.rs"]
mod on_shard;
#[path = "../examples/ranges.rs"]
mod ranges;
#[path = "../examples/retention.rs"]
mod retention;
#[path = "../examples/sessions.rs"]
mod sessions;
#[path = "../examples/snapshots.rs"]
mod snapshots;
#[path = "../examples/transfer.rs"]
mod transfer;

/// Runs an example in a folder of its own.
fn check(run: fn(&std::path::Path) -> Result<(), Box<dyn std::error::Error>>) {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path()).unwrap();
}

#[test]
fn backups_example_runs() {
    check(backups::run);
}

#[test]
fn blocking_example_runs() {
    check(blocking::run);
}

#[test]
fn compression_example_runs() {
    check(compression::run);
}

#[test]
fn counters_example_runs() {
    check(counters::run);
}

#[test]
fn hello_example_runs() {
    check(hello::run);
}

#[test]
fn leader_example_runs() {
    check(leader::run);
}

#[test]
fn on_shard_example_runs() {
    check(on_shard::run);
}

#[test]
fn ranges_example_runs() {
    check(ranges::run);
}

#[test]
fn retention_example_runs() {
    check(retention::run);
}

#[test]
fn sessions_example_runs() {
    check(sessions::run);
}

#[test]
fn snapshots_example_runs() {
    check(snapshots::run);
}

#[test]
fn transfer_example_runs() {
    check(transfer::run);
}
