//! Immutable sorted tables: a slice of a run file, the base of a segment, or the image of a segment on the wire.
//!
//! A table lies at (file, offset, length); offsets are multiples of 4096. All numbers are little-endian.
//!
//! ```text
//! +-------------------------------+  0
//! | data block 0  (rkyv archive)  |  each padded to 16 bytes; crc32c kept in the index, the parent
//! | data block 1                  |
//! | ...                           |
//! | dictionary                    |  only where blocks are compressed (see `compress`), padded; crc32c in the footer
//! +-------------------------------+  filter_offset
//! | split-block Bloom filter      |  see `filter`; crc32c kept in the footer
//! +-------------------------------+  index_offset
//! | index (rkyv archive)          |  last key, offset, length and crc32c of each data block; crc32c in the footer
//! +-------------------------------+  total_len - 128
//! | footer                        |  see `footer`; carries its own crc32c
//! +-------------------------------+  total_len
//! ```
//!
//! Records are ordered by (key ascending, LSN descending); versions of one key never straddle two blocks.
//! The checksum of a block lives in its parent, so a read that returns another block's bytes is caught.

mod batch;
mod block;
mod builder;
mod cache;
mod columns;
mod compress;
mod directory;
mod filter;
mod footer;
mod frames;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod fuzz;
mod index;
mod iter;
mod reader;
mod salvage;

pub use batch::{decode_records, encode_records};
pub use block::{BlockRecord, VerifiedBlock};
pub(crate) use builder::{BuildBuffers, WarmBlock};
pub use builder::{BuiltTable, TableBuilder, TableMeta, TableOptions};
pub(crate) use cache::PreparedBlock;
pub use cache::{BlockCache, BlockSlots, CacheStats, Charge, NoCache, ShardBlockCache, Warmth};
pub(crate) use footer::FOOTER_LEN;
pub use iter::{Purpose, TableIter};
pub use reader::{BlockSource, Frame, HashedKey, Lookup, TableReader, verify_image};
pub(crate) use reader::{LoadedTable, TablePlace};
pub use salvage::{LostKeys, Salvaged, find_footers, footer_meta, salvage};

#[cfg(test)]
pub(crate) use builder::tests as tests_support;
