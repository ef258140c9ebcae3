//! A small share of what `cargo xtask sim` runs, and the seeds of what it has found.
#![allow(clippy::unwrap_used)]

use super::*;

fn run_all(seeds: std::ops::Range<u64>, options: &Options) -> Report {
    let mut sum = Report::default();
    for seed in seeds {
        match run_seed(seed, options) {
            Ok(report) => sum.add(&report),
            Err(failure) => panic!("{failure}; replay it with `cargo xtask sim --seed {seed}`"),
        }
    }
    sum
}

#[test]
fn twenty_seeds_with_crashes_and_faults_hold_the_model() {
    let sum = run_all(0..20, &Options::default());
    assert!(sum.operations >= 20 * 2_000);
    assert!(sum.power_cuts > 50 && sum.kills > 20 && sum.errors > 20 && sum.detected > 5, "{sum:?}");
}

#[test]
fn same_seed_runs_the_same_way() {
    let options = Options { operations: 500, ..Options::default() };
    for seed in 100..104 {
        assert_eq!(run_seed(seed, &options).unwrap(), run_seed(seed, &options).unwrap());
    }
}

/// The seed that finds a planted defect, among the first `seeds`.
fn find(bug: Bug, seeds: u64) -> u64 {
    let options = Options { bug: Some(bug), ..Options::default() };
    let found = (0..seeds).find_map(|seed| run_seed(seed, &options).err());
    let found = found.unwrap_or_else(|| panic!("{bug:?} is not found by {seeds} seeds"));
    assert_eq!(run_seed(found.seed, &options).unwrap_err(), found, "a failure replays");
    found.seed
}

#[test]
fn dropped_wal_sync_is_found() {
    find(Bug::DropWalSync, 20);
}

#[test]
fn skipped_checksum_is_found() {
    find(Bug::SkipChecksum, 60);
}

#[test]
fn reordered_manifest_edit_is_found() {
    find(Bug::ReorderManifest, 60);
}
