//! The stores that a user would pick instead, each configured as its documentation advises for the same budget.

mod fjall;
mod lmdb;
mod redb;
#[cfg(feature = "peers")]
mod rocksdb;

use crate::store::Candidate;

/// Those of this build.
pub const PEERS: &[Candidate] = &[
    #[cfg(feature = "peers")]
    rocksdb::DIRECT,
    #[cfg(feature = "peers")]
    rocksdb::PAGE_CACHE,
    fjall::FJALL,
    redb::REDB,
    lmdb::LMDB,
];

/// A line of a configuration.
fn line(name: &str, value: impl ToString) -> (String, String) {
    (name.to_string(), value.to_string())
}
