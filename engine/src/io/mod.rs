//! The only place that knows glommio's files and executors, with every workaround they need. A change of the runtime
//! costs this folder.

pub(crate) mod direct;
pub(crate) mod fs;
pub(crate) mod lock;
mod probe;
pub mod runtime;
mod watchdog;

pub use probe::probe;
