//! Whole hosts in one simulation: the engine on simulated disks, the move's machines *and their drivers*, the coordinator
//! and the reconciler as they are, on a simulated network and on clocks of their own. One seed decides everything; a
//! failure names its seed and replays from it.
//!
//! Clients read and write registers through any host while partitions move to and fro; hosts are killed, lose power, stand
//! still, have slow disks; links are cut one way or both; answers are lost; clocks run apart. What is checked:
//!
//! - R1, W2: the history of every key is linearizable, the reads after everything has healed included ([`history`]);
//! - W1: no two hosts own a partition at any step;
//! - S1: the digests after a hand-over are equal;
//! - L1: once failures stop, every attempt ends, one host serves each partition, and no other holds a copy of it;
//! - in partitions that were promoted by force, instead of the first two: what was acknowledged last is there, or in a
//!   report; what both sides wrote is kept where the policy says so ([`parted`]);
//! - assertions hold and nothing panics, also in what nobody waits for.

mod chaos;
mod client;
mod history;
mod logs;
mod network;
mod parted;
mod rest;
#[cfg(test)]
mod tests;
mod world;

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;

use fastrand::Rng;

pub use crate::mutant::Mutant;
pub use network::{Network, PipeReader, PipeWriter, SimulatedPlane};

use world::World;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Operations of the clients.
    pub operations: usize,
    /// A planted defect, to see that it is found.
    pub mutant: Option<Mutant>,
    /// Collect what happens, with the hosts' logs.
    pub traced: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { operations: 400, mutant: None, traced: false }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Operations of the clients.
    pub operations: u64,
    /// Of these, those whose outcome the client does not know.
    pub unknown: u64,
    /// Moves that were asked for, that were committed, that were aborted.
    pub moves: u64,
    /// Commits in the records at the end.
    pub commits: u64,
    /// Aborts in the records at the end.
    pub aborts: u64,
    /// Processes killed.
    pub kills: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Of both, those at a step of a move.
    pub crashes_at_steps: u64,
    /// Links cut, in one direction or both.
    pub cuts: u64,
    /// Processes that stood still for a while.
    pub pauses: u64,
    /// Copies that went on over another link.
    pub resumed: u64,
    /// Moves that were completed on a copy that an earlier one had left, and the segments that did not travel again.
    pub roll_backs: u64,
    /// Those segments.
    pub segments_on_base: u64,
    /// Connections lost.
    pub lost_connections: u64,
    /// Disks that were slow for a while.
    pub slow_disks: u64,
    /// Standbys promoted by force.
    pub promotions: u64,
    /// Partitions split, as far as somebody was told.
    pub splits: u64,
    /// And merged.
    pub merges: u64,
    /// Conflicts in the reports of their reconciliations.
    pub conflicts: u64,
    /// Pieces of streams that arrived.
    pub messages: u64,
    /// Operations of the disks.
    pub disk_operations: u64,
    /// Simulated time, in milliseconds.
    pub virtual_ms: u64,
    /// Hash over every step: equal for equal runs.
    pub trace: u64,
}

impl Report {
    /// Adds another run's counts.
    pub fn add(&mut self, other: &Report) {
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.moves += other.moves;
        self.commits += other.commits;
        self.aborts += other.aborts;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.crashes_at_steps += other.crashes_at_steps;
        self.cuts += other.cuts;
        self.pauses += other.pauses;
        self.resumed += other.resumed;
        self.roll_backs += other.roll_backs;
        self.segments_on_base += other.segments_on_base;
        self.lost_connections += other.lost_connections;
        self.slow_disks += other.slow_disks;
        self.promotions += other.promotions;
        self.splits += other.splits;
        self.merges += other.merges;
        self.conflicts += other.conflicts;
        self.messages += other.messages;
        self.disk_operations += other.disk_operations;
        self.virtual_ms += other.virtual_ms;
        self.trace = self.trace.rotate_left(1) ^ other.trace;
    }
}

/// A run that found something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed that replays it.
    pub seed: u64,
    /// What was violated.
    pub what: String,
    /// Hash over every step until then.
    pub trace: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}: {} (trace {:016x})", self.seed, self.what, self.trace)
    }
}

/// Does one run on the calling thread. The second value is what happened, if that was asked for.
pub fn run_seed(seed: u64, options: &Options) -> (Result<Report, Failure>, Vec<String>) {
    let log = logs::Log::begin(options.traced);
    SEAT.set(Some(Seat { mutant: options.mutant, random: Rng::with_seed(seed ^ 0x5EA7), ..Seat::default() }));
    let mut world = World::new(seed, options);
    let ended = log.within(|| std::panic::catch_unwind(AssertUnwindSafe(|| world.run())));
    let result = ended.unwrap_or_else(|panic| Err(panic_message(&*panic)));
    let report = world.report();
    log.within(|| drop(world));
    SEAT.set(None);
    let result = result.map(|()| report).map_err(|what| Failure { seed, what, trace: report.trace });
    (result, log.end())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_else(|| "without a message".into()))
}

/// What the hosts of this thread's run ask the simulation for.
#[derive(Default)]
struct Seat {
    mutant: Option<Mutant>,
    random: Rng,
    /// Passages of a step of a move in a thousand at which the host dies.
    crash_per_mille: u32,
    passed: Vec<Passed>,
}

/// A step of a move was reached.
struct Passed {
    step: String,
    died: bool,
}

thread_local! {
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

fn with_seat<T>(with: impl FnOnce(&mut Seat) -> T) -> Option<T> {
    SEAT.with_borrow_mut(|seat| seat.as_mut().map(with))
}

/// Whether the hosts of this run have the defect.
pub(crate) fn has(mutant: Mutant) -> bool {
    with_seat(|seat| seat.mutant == Some(mutant)).unwrap_or(false)
}

/// A host reaches a step at which it may die.
pub(crate) fn passed(step: &str) {
    with_seat(|seat| {
        let died = seat.random.u32(0..1_000) < seat.crash_per_mille;
        seat.passed.push(Passed { step: step.into(), died });
        if died {
            antumbra_engine::sim::darken();
        }
    });
}
