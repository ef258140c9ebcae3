//! At which steps processes are to die, and how often.
#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use antumbra_net::failpoint::Failpoint;

use super::{Node, try_ask};

/// How many rounds, and at which place alone if not at all.
pub fn wanted() -> (u64, Option<String>) {
    let rounds = std::env::var("ANTUMBRA_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (rounds, std::env::var("ANTUMBRA_CRASH_PLACE").ok())
}

/// Gives a host an order that is taken if the answer holds `wanted`; a host that is to die of it may do so before it answers.
pub fn order(node: &Node, command: &str, wanted: &str, may_die: bool) {
    let reply = try_ask(node.resp, command, Duration::from_secs(10)).unwrap_or_default();
    assert!(reply.contains(wanted) || (may_die && reply.is_empty()), "{command}: {reply}");
}

/// Every other step of a move, from the `first` on, or what `only` leaves of them. Most of the time of a death is waiting: a
/// test of each half, on hosts of its own, takes half as long.
pub fn every_other_step_of_a_move(first: usize, only: Option<&str>) -> Vec<&'static str> {
    let places = Failpoint::of_a_move().skip(first).step_by(2);
    places.filter(|place| only.is_none_or(|only| only == *place)).collect()
}
