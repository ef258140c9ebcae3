//! A small share of what `cargo xtask sim --cluster` runs.

use std::rc::Rc;
use std::time::Duration;

use antumbra_engine::EngineConfig;
use antumbra_engine::sim::Node;
use antumbra_engine::types::PartitionId;
use bytes::Bytes;

use crate::resp::operation::{Operation, Outcome, apply_when_promoted};

use super::*;

#[test]
fn some_seeds_hold_the_rules() {
    let mut sum = Report::default();
    for seed in 0..40 {
        match run_seed(seed, &Options::default()).0 {
            Ok(report) => sum.add(&report),
            Err(failure) => panic!("{failure}; replay it with `cargo xtask sim --cluster --seed {seed}`"),
        }
    }
    assert!(sum.commits > 20 && sum.aborts > 20 && sum.kills > 10 && sum.cuts > 10, "{sum:?}");
    assert!(sum.promotions > 2 && sum.conflicts > 0 && sum.resumed > 0, "{sum:?}");
    assert!(sum.splits > 5 && sum.merges > 2, "{sum:?}");
    assert!(sum.roll_backs > 5 && sum.segments_on_base > 5, "{sum:?}");
}

#[test]
fn same_seed_runs_the_same_way() {
    let options = Options { operations: 150, traced: true, ..Options::default() };
    for seed in 100..104 {
        assert_eq!(run_seed(seed, &options), run_seed(seed, &options));
    }
}

/// A defect that the simulation found: the client was told of an error, and not served by the owner.
#[test]
fn forwarded_request_at_host_without_the_partition_is_answered_absent() {
    let node = Node::new(1, 0, 0, None);
    let outcome = Rc::new(RefCell::new(None));
    {
        let _on = node.enter();
        let (opening, outcome) = (node.open_engine(EngineConfig::new("/data")), Rc::clone(&outcome));
        node.spawn(async move {
            let engine = opening.await.unwrap_or_else(|cause| panic!("{cause}"));
            let operation = Operation::Get { key: Bytes::from_static(b"\0\0key") };
            let applied = apply_when_promoted(&engine, PartitionId(7), operation, Duration::ZERO).await;
            *outcome.borrow_mut() = Some(applied);
        });
    }
    while outcome.borrow().is_none() {
        node.turn(node.due().unwrap_or_else(|| panic!("nothing can happen any more")));
    }
    assert!(matches!(outcome.take(), Some(Ok(Outcome::Absent))));
}

/// The seed that finds a planted defect, among the first `seeds`.
fn find(mutant: Mutant, seeds: u64) {
    let options = Options { mutant: Some(mutant), ..Options::default() };
    let found = (0..seeds).find_map(|seed| run_seed(seed, &options).0.err());
    let found = found.unwrap_or_else(|| panic!("{mutant:?} is not found by {seeds} seeds"));
    assert_eq!(run_seed(found.seed, &options).0, Err(found), "a failure replays");
}

#[test]
fn freeze_left_by_a_timer_is_found() {
    find(Mutant::FreezeLeftByTimer, 400);
}

#[test]
fn restart_that_serves_unread_is_found() {
    find(Mutant::ServeUnread, 400);
}

#[test]
fn write_before_the_hand_over_is_found() {
    find(Mutant::WriteBeforeHandOver, 400);
}

#[test]
fn parted_history_that_is_dropped_is_found() {
    find(Mutant::DropParted, 400);
}

#[test]
fn roll_back_that_leaves_something_out_is_found() {
    find(Mutant::DeltaFromNow, 400);
}

#[test]
fn split_that_leaves_something_out_is_found() {
    find(Mutant::ReshapeUnflushed, 400);
}

#[test]
fn upper_half_that_is_dropped_before_it_is_merged_is_found() {
    find(Mutant::DropUnmerged, 400);
}

#[test]
fn endless_read_lease_is_found() {
    find(Mutant::EndlessLease, 400);
}
