//! The only place that knows glommio's files and executors, with every workaround they need, and the ring that direct files
//! are read and written by. A change of the runtime costs this folder.
//!
//! Everything that the shard asks of the machine goes through here: direct files, blocking file operations, locks,
//! tasks, timers, and (by `crate::clock`) time. So a second machine fits in: `sim` (feature `sim`, and unit tests) has
//! files, clock and scheduler in memory, driven by a seed, with every fault that a disk and a power supply may have. A
//! thread that has entered a simulated machine uses it; all other threads, and every build without the feature, use the
//! kernel, at no cost: the choice is one enum variant that is not compiled in.

pub(crate) mod bug;
pub(crate) mod callers;
pub(crate) mod direct;
pub(crate) mod fs;
pub(crate) mod lock;
mod probe;
pub(crate) mod ring;
pub mod runtime;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod sim;
mod watchdog;

pub use bug::Bug;
pub(crate) use bug::planted;
pub use probe::probe;
