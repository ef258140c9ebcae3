//! The simulator: a whole shard on a simulated machine, under load, through crashes and faults, checked against a model.
//!
//! One seed decides everything: sizes, operations, their timing, the order of tasks, what fails and when the power goes.
//! [`run_seed`] does one run and is deterministic; a failure names its seed and replays from it. What is checked:
//!
//! - every get and scan returns exactly what the history holds at the LSN that was visible when it began;
//! - a durable write is visible when it is acknowledged, LSNs are assigned without a gap;
//! - a conditional write takes place only where its condition holds, and a conflict reports what the key had;
//! - a pinned moment stays readable whatever is written, flushed and compacted meanwhile;
//! - after a crash a partition holds exactly a prefix of its history which no acknowledged write is missing from, and of
//!   a batch everything or nothing;
//! - damage at rest is reported as corruption and never read as data;
//! - an error is only answered when a fault was injected, and nothing hangs.

mod client;
mod commit;
mod damage;
mod history;
mod life;
mod node;
mod sweep;
mod world;

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use antumbra_predictor::model::Model;

pub use crate::io::Bug;
pub use node::{Node, OnNode, Sleep, darken, is_dark, now, spawn, wall_ms};
pub use sweep::{report_hunt, run_seeds};
use world::World;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Operations of the clients; a run ends with the first life that reaches them.
    pub operations: u64,
    /// A planted defect, to see that it is found.
    pub bug: Option<Bug>,
    /// Tell on stderr what happens.
    pub verbose: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { operations: 2_000, bug: None, verbose: false }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Operations of the clients.
    pub operations: u64,
    /// Times that the shard was opened.
    pub lives: u64,
    /// Lives that ended in a power cut.
    pub power_cuts: u64,
    /// Lives that were killed.
    pub kills: u64,
    /// Operations that were answered with an injected error.
    pub errors: u64,
    /// Bits flipped at rest, and writes lost or misdirected.
    pub damages: u64,
    /// Damages that were reported as corruption; the others hit nothing that is read.
    pub detected: u64,
    /// Acknowledged or unacknowledged writes that a crash took back (none of them acknowledged as durable).
    pub lost_writes: u64,
    /// Disk operations.
    pub disk_operations: u64,
    /// Hash over every step: equal for equal runs.
    pub trace: u64,
}

impl Report {
    /// Adds another run's counts.
    pub fn add(&mut self, other: &Report) {
        self.operations += other.operations;
        self.lives += other.lives;
        self.power_cuts += other.power_cuts;
        self.kills += other.kills;
        self.errors += other.errors;
        self.damages += other.damages;
        self.detected += other.detected;
        self.lost_writes += other.lost_writes;
        self.disk_operations += other.disk_operations;
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
    /// Lives until then.
    pub lives: u64,
    /// Hash over every step until then.
    pub trace: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}, life {}: {} (trace {:016x})", self.seed, self.lives, self.what, self.trace)
    }
}

/// Does one run on the calling thread.
///
/// # Errors
/// What the run found: a violation, a hang, a panic of the engine.
pub fn run_seed(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    let world = World::new(seed, options);
    let _entered = world.machine.enter();
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| life::live_until_done(&world)));
    let result = ended.unwrap_or_else(|panic| Err(panic_message(&*panic)));
    let report = world.report();
    world.end();
    result.map(|()| report).map_err(|what| Box::new(Failure { seed, what, lives: report.lives, trace: report.trace }))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_else(|| "without a message".into()))
}

/// The shipped model, decoded once a process.
fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let decode = || Arc::new(Model::shipped().unwrap_or_else(|cause| panic!("the shipped model: {cause}")));
    Arc::clone(MODEL.get_or_init(decode))
}
