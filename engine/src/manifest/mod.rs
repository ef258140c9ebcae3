//! The durable list of a shard's partitions, segments and table files.
//!
//! A manifest file is a snapshot (one group of edits that rebuilds the state) followed by groups of edits. `CURRENT`
//! names the file in force; a new file is installed by writing it whole, then renaming `CURRENT`, then fsync of the
//! folder. A group is durable as a whole or not at all.
//!
//! ```text
//! group:  offset  size  field
//!              0     4  length of the payload
//!              4     4  crc32c of bytes 8..16 (identity) and of the payload
//!              8     7  number of the group in this file, from 0
//!             15     1  version (1)
//!             16     -  payload: rkyv archive of columns, see `codec`
//! ```

mod codec;
mod edit;
mod inspect;
mod log;
mod state;

pub use edit::{ManifestEdit, NewPartition, Role, SegmentDesc, TableRef};
pub use inspect::{ManifestGroup, ManifestReport, current_path, inspect};
#[cfg(any(test, feature = "sim"))]
pub(crate) use log::fuzz;
#[cfg(test)]
pub(crate) use log::tests::fuzz_seed;
pub use log::{ManifestLog, read_current};
pub use state::{ManifestState, PartitionState};
