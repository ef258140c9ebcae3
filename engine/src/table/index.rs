//! The index of a table: where each data block lies, its last key and its checksum.

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use crate::error::{Error, Result};
use crate::heads::KeyHeads;

/// Columns of the index; the archive's root. The field order is the format.
#[derive(Archive, Serialize, Debug, Default)]
pub(super) struct Index {
    /// Last keys, one after another.
    pub key_bytes: Vec<u8>,
    /// End of each last key.
    pub key_ends: Vec<u32>,
    /// Offset of each block from the table's start.
    pub offsets: Vec<u64>,
    /// Length of each block, in bytes.
    pub lens: Vec<u32>,
    /// crc32c of each block.
    pub crcs: Vec<u32>,
}

/// Where a data block lies and what its bytes must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockEntry {
    pub offset: u64,
    pub len: usize,
    pub crc: u32,
}

impl Index {
    pub fn push(&mut self, last_key: &[u8], entry: BlockEntry) {
        self.key_bytes.extend_from_slice(last_key);
        self.key_ends.push(self.key_bytes.len() as u32);
        self.offsets.push(entry.offset);
        self.lens.push(entry.len as u32);
        self.crcs.push(entry.crc);
    }

    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    pub fn entry(&self, block: usize) -> BlockEntry {
        BlockEntry { offset: self.offsets[block], len: self.lens[block] as usize, crc: self.crcs[block] }
    }

    pub fn last_key(&self, block: usize) -> &[u8] {
        let start = if block == 0 { 0 } else { self.key_ends[block - 1] as usize };
        &self.key_bytes[start..self.key_ends[block] as usize]
    }

    pub fn encode(&self) -> Result<AlignedVec> {
        rkyv::to_bytes::<rancor::Error>(self)
            .map_err(|cause| Error::Invalid { what: format!("index does not fit an archive: {cause}") })
    }

    /// Decodes an index whose data blocks end at `data_len`.
    fn decode(bytes: &[u8], data_len: u64) -> std::result::Result<Index, String> {
        let archived = rkyv::access::<ArchivedIndex, rancor::Error>(bytes).map_err(|cause| cause.to_string())?;
        let index = Index {
            key_bytes: archived.key_bytes.to_vec(),
            key_ends: archived.key_ends.iter().map(|end| end.to_native()).collect(),
            offsets: archived.offsets.iter().map(|offset| offset.to_native()).collect(),
            lens: archived.lens.iter().map(|len| len.to_native()).collect(),
            crcs: archived.crcs.iter().map(|crc| crc.to_native()).collect(),
        };
        let count = index.len();
        if count == 0 || [index.key_ends.len(), index.lens.len(), index.crcs.len()].iter().any(|len| *len != count) {
            return Err("index columns empty or of unequal length".into());
        }
        if !index.key_ends.is_sorted() || index.key_ends[count - 1] as usize != index.key_bytes.len() {
            return Err("index key ends do not rise to the length of the key bytes".into());
        }
        let mut end = 0;
        for block in 0..count {
            let entry = index.entry(block);
            if entry.offset < end {
                return Err(format!("index entry {block} overlaps the one before it"));
            }
            end = entry.offset.checked_add(entry.len as u64).ok_or("index entry out of range")?;
            if block > 0 && index.last_key(block - 1) >= index.last_key(block) {
                return Err(format!("index keys out of order at entry {block}"));
            }
        }
        if end > data_len {
            return Err(format!("index entries end at {end}, data blocks at {data_len}"));
        }
        Ok(index)
    }
}

/// An index in memory, checked, with the heads of its keys.
#[derive(Debug)]
pub(super) struct LoadedIndex {
    columns: Index,
    heads: KeyHeads,
}

impl LoadedIndex {
    /// Decodes an index whose data blocks end at `data_len`.
    pub fn decode(bytes: &[u8], data_len: u64) -> std::result::Result<LoadedIndex, String> {
        let columns = Index::decode(bytes, data_len)?;
        let heads = KeyHeads::new((0..columns.len()).map(|block| columns.last_key(block)));
        Ok(LoadedIndex { columns, heads })
    }

    pub fn len(&self) -> usize {
        self.columns.len()
    }

    pub fn entry(&self, block: usize) -> BlockEntry {
        self.columns.entry(block)
    }

    /// Last key of a block.
    pub fn last_key(&self, block: usize) -> &[u8] {
        self.columns.last_key(block)
    }

    /// The first block that may hold a key at or after `key`; `len()` if none.
    pub fn block_for(&self, key: &[u8]) -> usize {
        self.heads.count_below(key, |block| self.columns.last_key(block))
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.columns.key_bytes.len() + self.columns.len() * (4 + 8 + 4 + 4) + self.heads.bytes()
    }
}
