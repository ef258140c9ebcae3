//! The coordinator in etcd: the machine's rules, one key a record, every write in one transaction that compares the
//! revision of each key that it was decided on.
//!
//! ```text
//!  ask ──> queue ──> thread `etcd`   decide    read -> Machine::apply -> compare and write, or again from what is there now
//!                                    presence  the host's lease and its addresses
//!  watching <─────────────────────── follow    the watch: resumed behind the last revision, read anew after a compaction
//!                                    members   one endpoint is asked until it fails
//! ```
//!
//! - `INV-COMPARE`: nothing is written but by a transaction that fails if any key has changed that the decision rests on,
//!   keys that were not there included.
//! - A write without an answer may have been done, or be done later: [`Error::Unknown`](crate::Error::Unknown). Every command but
//!   `Begin` and `Lead` may be asked again, since it finds its attempt done.
//! - No lease and no lock keeps anybody from writing. An attempt's id is the fencing token, and the record's revision the
//!   fence.

mod config;
#[cfg(feature = "etcd")]
mod decide;
#[cfg(feature = "etcd")]
mod follow;
#[cfg(feature = "etcd")]
mod handle;
#[cfg(feature = "etcd")]
mod layout;
#[cfg(feature = "etcd")]
mod members;
#[cfg(feature = "etcd")]
mod presence;

pub use config::EtcdConfig;

#[cfg(feature = "etcd")]
pub use handle::Etcd;

/// Whether this build has a client for etcd: the feature `etcd`.
pub const BUILT_IN: bool = cfg!(feature = "etcd");
