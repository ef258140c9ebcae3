//! The write-ahead log of one shard; its records belong to many partitions.
//!
//! ```text
//! wal/000000000007.wal   a file of fixed size, zero-filled once; the name is its generation
//! +--------------------+ 0
//! | batch, seq 41      | starts on a 4 KiB block, padded with zeros to the next (see `format`)
//! +--------------------+
//! | batch, seq 42      |
//! +--------------------+
//! | older bytes or 0   | a recycled file: its batches carry an older generation and are never read as ours
//! +--------------------+ file size
//! ```
//!
//! - `INV-APPEND`: a block that holds acknowledged records is never written again.
//! - `INV-FLIGHT`: at most two batches are in flight; they become durable in order. So at the end of a log at most one
//!   whole batch can lie behind a torn one, and neither was acknowledged: recovery cuts both. A whole batch further
//!   behind means that something acknowledged is damaged: that is corruption and is reported.
//! - `INV-INCARNATION`: each opening begins a new file whose first batch is marked; sequence numbers jump there past
//!   everything that an earlier life may have used.

mod files;
mod format;
mod group;
mod inspect;
mod recover;
mod writer;

pub(crate) use format::Entry;
#[cfg(any(test, feature = "sim"))]
pub(crate) use format::fuzz as fuzz_batch;
#[cfg(test)]
pub(crate) use format::fuzz_seeds;
pub use inspect::{WalBatch, WalFile, WalRecord, WalRest, inspect};
#[cfg(any(test, feature = "sim"))]
pub(crate) use recover::fuzz as fuzz_recovery;
pub(crate) use recover::{Known, check, recover};
pub(crate) use writer::{Wal, WalEvent};
