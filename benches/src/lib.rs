//! Measures Antumbra and the stores that a user would pick instead, under one harness.
//!
//! `spec` says what is run, `data`, `zipf` and `chooser` which keys and values, `client` is the loop that is measured,
//! `store` what a store has to offer, `runner` runs phases on one store, `children` gives each store a process of its
//! own, and `report` prints. Stores other than Antumbra need the feature `peers` (RocksDB needs a C++ compiler).
//!
//! - Everything in [`spec::Spec`] is equal for all stores, and so are keys and values, bit by bit.
//! - Every value that is read is checked to be the key's.
//! - Latency is closed-loop: from one operation's end to the next one's, the harness's own work included; the store
//!   `null`, which does nothing, shows how much that is.

pub mod antumbra;
pub mod children;
pub mod chooser;
pub mod client;
pub mod compare;
pub mod data;
pub mod device;
pub mod error;
mod fio;
pub mod limits;
mod local;
pub mod machine;
pub mod null;
pub mod options;
#[cfg(feature = "peers-without-cpp")]
pub mod peers;
pub mod process;
pub mod replay;
pub mod report;
pub mod runner;
pub mod scores;
pub mod spec;
pub mod store;
pub mod zipf;

pub use error::{Error, Result};
use store::Candidate;

/// The stores of this build.
#[must_use]
pub fn candidates() -> Vec<Candidate> {
    #[cfg_attr(not(feature = "peers-without-cpp"), allow(unused_mut, reason = "peers are added"))]
    let mut found = vec![antumbra::ANTUMBRA, null::NULL];
    #[cfg(feature = "peers-without-cpp")]
    found.extend(peers::PEERS);
    found
}
