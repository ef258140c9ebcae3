//! Expectation: what a partition's next accesses will be, and when its load will hurt.
//!
//! Reading order: [`window`] (what the data path counts) -> [`features`] (what the model sees) -> [`gru`] and [`model`]
//! (what it computes and from which weights) -> [`scorer`] (the one interface that the engine uses, with the one-line
//! rivals of the GRU beside it) -> [`online`] (learning from the host's own windows, in the background) -> [`signal`] (when
//! to start a shadow). Offline: [`trace`] (recorded requests),
//! [`eval`] (which scorer orders a copy best), `train` (feature `torch`).
//!
//! - INV-P1: nothing here reads a clock, starts a thread or does I/O, except [`trace`] and the load and save functions of
//!   [`model`].
//! - INV-P2: between two changes of the segment structure no scorer allocates.
//! - INV-P3: equal inputs and seeds give equal outputs, bit by bit on one machine.
//! - INV-P4: every score is finite and not negative.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod error;
pub mod eval;
pub mod features;
pub mod gru;
pub mod model;
pub mod online;
pub mod scorer;
pub mod signal;
mod simd;
pub mod trace;
#[cfg(feature = "torch")]
pub mod train;
pub mod window;

pub use error::{Error, Result};
pub use model::Model;
pub use scorer::{Scorer, ScorerKind};
pub use window::{AccessWindows, SegmentCounts};
