//! The stores that a user would pick instead, each configured as its documentation advises for the same budget.

mod fjall;
mod lmdb;
mod redb;
mod rocksdb;

use crate::store::Candidate;

/// All of them.
pub const PEERS: [Candidate; 5] = [rocksdb::DIRECT, rocksdb::PAGE_CACHE, fjall::FJALL, redb::REDB, lmdb::LMDB];

/// A line of a configuration.
fn line(name: &str, value: impl ToString) -> (String, String) {
    (name.to_string(), value.to_string())
}
