//! Tables that are loaded as a whole, to stay in memory.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::memory::LockedMap;
use crate::table::block::CheckedBlock;

/// Where a table's data blocks lie.
#[derive(Debug)]
pub(crate) struct TablePlace {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) len: usize,
    /// Start, length and checksum of each.
    pub(super) blocks: Vec<(usize, usize, u32)>,
}

/// A table's data blocks, locked in memory and checked.
#[derive(Debug)]
pub(crate) struct LoadedTable {
    pub(super) map: Arc<LockedMap>,
    pub(super) checked: Vec<CheckedBlock>,
}

impl TablePlace {
    /// Bytes that the table takes in memory when it is loaded.
    pub fn bytes(&self) -> usize {
        self.len.next_multiple_of(4096)
    }

    /// Maps and locks the blocks and checks each where it will be read. Blocks; not for a shard's core.
    ///
    /// Errors: [`Error::Io`] when the memory cannot be locked, [`Error::Corruption`].
    pub fn load(&self) -> Result<LoadedTable> {
        let map = LockedMap::new(&self.path, self.offset, self.len);
        let map = map.map_err(|cause| Error::io("lock in memory", &self.path, cause))?;
        let check = |(start, len, crc): &(usize, usize, u32)| {
            let corrupt = |what: String| Error::corruption(&self.path, self.offset + *start as u64, what);
            let bytes = map.bytes().get(*start..*start + *len);
            let bytes = bytes.ok_or_else(|| corrupt("block behind the end of the table".into()))?;
            CheckedBlock::new(bytes, *crc).map_err(corrupt)
        };
        let checked = self.blocks.iter().map(check).collect::<Result<Vec<CheckedBlock>>>()?;
        Ok(LoadedTable { map: Arc::new(map), checked })
    }
}
