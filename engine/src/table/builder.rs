//! Builds a table in memory, record by record.

use crate::chain::RecordDigest;
use crate::config::Compression;
use crate::error::{Error, Result};
use crate::record::{RecordKind, RecordView};
use crate::types::Lsn;

use rkyv::util::AlignedVec;

use super::cache::Warmth;
use super::columns::Columns;
use super::compress::{Backlog, ClosedBlock, Packed, Packer};
use super::filter;
use super::footer::{FOOTER_LEN, Footer, PART_ALIGN, Part};
use super::index::{BlockEntry, Index};

/// A table is stale when one in this many of its bytes has expired.
const STALE_DIVISOR: u64 = 4;

/// How a table is cut into blocks.
#[derive(Clone, Copy, Debug)]
pub struct TableOptions {
    /// Size at which a data block is closed, in bytes.
    pub block_bytes: usize,
    /// Whether and how blocks are compressed.
    pub compression: Compression,
}

impl Default for TableOptions {
    fn default() -> TableOptions {
        TableOptions { block_bytes: 4 << 10, compression: Compression::None }
    }
}

/// What is known of a finished table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMeta {
    /// Bytes of the table.
    pub len: u64,
    /// Records in it.
    pub records: u64,
    /// Tombstones among them.
    pub tombstones: u64,
    /// Smallest LSN.
    pub min_lsn: Lsn,
    /// Largest LSN.
    pub max_lsn: Lsn,
    /// Digest of all records in order (see [`crate::chain`]).
    pub digest: u128,
    /// Bytes of keys and values.
    pub raw_bytes: u64,
    /// When a quarter of them has expired, in milliseconds since the Unix epoch; `None` for never.
    pub stale_at_ms: Option<u64>,
}

/// Memory of a builder that the next one can have.
#[derive(Debug, Default)]
pub(crate) struct BuildBuffers {
    bytes: Vec<u8>,
    hashes: Vec<u64>,
}

impl BuildBuffers {
    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.bytes.capacity() + self.hashes.capacity() * size_of::<u64>()
    }
}

/// A finished table.
#[derive(Debug)]
pub struct BuiltTable {
    /// Its bytes, without those that were taken out before.
    pub bytes: Vec<u8>,
    /// What is known of it.
    pub meta: TableMeta,
    /// Warm blocks that were not taken before.
    pub(crate) collected: Vec<WarmBlock>,
    hashes: Vec<u64>,
}

impl BuiltTable {
    /// Its memory, for the next builder.
    pub(crate) fn buffers(self) -> BuildBuffers {
        BuildBuffers { bytes: self.bytes, hashes: self.hashes }
    }
}

/// Takes records in (key ascending, LSN descending) order.
///
/// Bytes that are complete can be taken out while records are added ([`TableBuilder::take_ready`]), so a table of any size
/// is built in little memory: what stays is the index and eight bytes a key.
#[derive(Debug)]
pub struct TableBuilder {
    options: TableOptions,
    /// The table's bytes from `taken` on.
    bytes: Vec<u8>,
    taken: usize,
    open: Columns,
    index: Index,
    hashes: Vec<u64>,
    last_key: Vec<u8>,
    last_lsn: Lsn,
    digest: RecordDigest,
    footer: Footer,
    packing: Packing,
    /// Records of the open block that are warm, and hot ones among them.
    warm: (u32, u32),
    /// Whether blocks are collected however cold they are.
    collect_all: bool,
    collected: Vec<WarmBlock>,
    /// Deadline and bytes of each record that has one.
    deadlines: Vec<(u64, u64)>,
}

/// A closed block that readers want in memory.
#[derive(Debug)]
pub(crate) struct WarmBlock {
    /// Its place in the table.
    pub block: usize,
    /// Its checksum in the index.
    pub crc: u32,
    pub warmth: Warmth,
    pub archive: AlignedVec,
}

/// What becomes of closed blocks.
#[derive(Debug)]
enum Packing {
    /// Stored as they are.
    Plain,
    /// Held back for a dictionary.
    Sampling(Backlog),
    /// Away to be compressed.
    Training,
    /// Compressed.
    With(Packer),
}

impl TableBuilder {
    /// An empty table.
    #[must_use]
    pub fn new(options: TableOptions) -> TableBuilder {
        TableBuilder::reusing(options, BuildBuffers::default())
    }

    /// An empty table in memory that another was built in.
    pub(crate) fn reusing(options: TableOptions, buffers: BuildBuffers) -> TableBuilder {
        let BuildBuffers { mut bytes, mut hashes } = buffers;
        bytes.clear();
        hashes.clear();
        TableBuilder {
            options,
            bytes,
            taken: 0,
            open: Columns::default(),
            index: Index::default(),
            hashes,
            last_key: Vec::new(),
            last_lsn: Lsn(0),
            digest: RecordDigest::default(),
            footer: Footer { min_lsn: Lsn(u64::MAX), ..Footer::default() },
            packing: match options.compression {
                Compression::None => Packing::Plain,
                Compression::Zstd => Packing::Sampling(Backlog::default()),
            },
            warm: (0, 0),
            collect_all: false,
            collected: Vec::new(),
            deadlines: Vec::new(),
        }
    }

    /// As [`TableBuilder::add`] of a record that is so warm. A block of which half the records are warm is collected for
    /// [`TableBuilder::take_collected`], or every block if `collect_all`, as far as blocks are stored as they are.
    pub(crate) fn add_warm(&mut self, record: RecordView<'_>, warmth: Warmth, collect_all: bool) -> Result<()> {
        self.collect_all = collect_all;
        self.add(record)?;
        self.warm.0 += u32::from(warmth >= Warmth::Warm);
        self.warm.1 += u32::from(warmth >= Warmth::Hot);
        Ok(())
    }

    /// The warm blocks that were closed since.
    pub(crate) fn take_collected(&mut self) -> Vec<WarmBlock> {
        std::mem::take(&mut self.collected)
    }

    /// Whether no record has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.footer.records == 0
    }

    /// Bytes the table would have about now.
    #[must_use]
    pub fn estimated_len(&self) -> usize {
        let held_back = match &self.packing {
            Packing::Sampling(backlog) => backlog.bytes(),
            Packing::Plain | Packing::Training | Packing::With(_) => 0,
        };
        self.taken + self.bytes.len() + self.open.estimated_len() + held_back
    }

    /// The blocks that wait for a dictionary, once they make a sample (or, `at_end`, however few they are). The caller has
    /// them packed, off the core, and gives them back with [`TableBuilder::resume`] before it goes on.
    pub(crate) fn take_backlog(&mut self, at_end: bool) -> Result<Option<Backlog>> {
        if at_end {
            self.close_block()?;
        }
        match &self.packing {
            Packing::Sampling(backlog) if at_end || backlog.is_full() => {}
            _ => return Ok(None),
        }
        match std::mem::replace(&mut self.packing, Packing::Training) {
            Packing::Sampling(backlog) => Ok(Some(backlog)),
            Packing::Plain | Packing::Training | Packing::With(_) => unreachable!("INV-PACK: it was sampling"),
        }
    }

    /// Stores the backlog; later blocks are compressed as they come.
    pub(crate) fn resume(&mut self, packed: Packed) {
        assert!(matches!(self.packing, Packing::Training), "INV-PACK: a backlog is packed once");
        for block in packed.blocks {
            self.store_block(&block.last_key, &block.bytes);
        }
        self.packing = Packing::With(packed.packer);
    }

    /// Takes the first bytes that were not taken yet out, as many whole multiples of `multiple` as are complete, if those
    /// are `at_least` bytes or more.
    pub fn take_ready(&mut self, at_least: usize, multiple: usize, mut take: impl FnMut(&[u8])) -> bool {
        let ready = self.bytes.len() - self.bytes.len() % multiple;
        if ready < at_least.max(1) {
            return false;
        }
        take(&self.bytes[..ready]);
        self.bytes.drain(..ready);
        self.taken += ready;
        true
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it does not come after the one before, or a block cannot be archived.
    pub fn add(&mut self, record: RecordView<'_>) -> Result<()> {
        let same_key = !self.is_empty() && self.last_key == record.key;
        let follows =
            self.is_empty() || record.key > self.last_key.as_slice() || (same_key && record.lsn < self.last_lsn);
        if !follows {
            return Err(Error::Invalid { what: "table records out of order".into() });
        }
        if record.kind == RecordKind::RangeDelete {
            return Err(Error::Invalid { what: "a table holds no range deletion".into() });
        }
        if !same_key {
            if self.open.estimated_len() >= self.options.block_bytes {
                self.close_block()?;
            }
            self.hashes.push(filter::key_hash(record.key));
            self.last_key.clear();
            self.last_key.extend_from_slice(record.key);
        }
        self.last_lsn = record.lsn;
        self.open.push(record);
        self.digest.update(record);
        self.footer.records += 1;
        self.footer.tombstones += u64::from(record.kind == RecordKind::Delete);
        let bytes = (record.key.len() + record.value.len()) as u64;
        self.footer.raw_bytes += bytes;
        if record.expires_at_ms != 0 {
            self.deadlines.push((record.expires_at_ms, bytes));
        }
        self.footer.min_lsn = self.footer.min_lsn.min(record.lsn);
        self.footer.max_lsn = self.footer.max_lsn.max(record.lsn);
        Ok(())
    }

    /// Finishes the table.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty or cannot be archived.
    pub fn finish(mut self) -> Result<BuiltTable> {
        if self.is_empty() {
            return Err(Error::Invalid { what: "a table holds at least one record".into() });
        }
        if let Some(backlog) = self.take_backlog(true)? {
            self.resume(backlog.pack()?);
        }
        if let Packing::With(packer) = &self.packing {
            let dictionary = packer.dictionary().to_vec();
            self.footer.dictionary = Some(self.append(&dictionary));
            self.pad();
        }
        self.footer.stale_at_ms = self.stale_at_ms();
        let filter = filter::build(&self.hashes);
        self.footer.filter = self.append(&filter);
        let index = self.index.encode()?;
        // The filter is a multiple of 32 bytes, so the index follows it aligned.
        self.footer.index = self.append(&index);
        self.footer.digest = self.digest.finish();
        self.footer.total_len = (self.taken + self.bytes.len() + FOOTER_LEN) as u64;
        let footer = self.footer.encode();
        self.bytes.extend_from_slice(&footer);
        let meta = meta_of(&self.footer);
        Ok(BuiltTable { bytes: self.bytes, meta, collected: self.collected, hashes: self.hashes })
    }

    /// Its memory, for the next builder.
    pub(crate) fn into_buffers(self) -> BuildBuffers {
        BuildBuffers { bytes: self.bytes, hashes: self.hashes }
    }

    fn close_block(&mut self) -> Result<()> {
        if self.open.len() == 0 {
            return Ok(());
        }
        let archive = self.open.archive()?;
        let last_key = self.last_key_of_open();
        let warmth = self.warmth_of_open();
        self.open.clear();
        match &mut self.packing {
            Packing::Plain => {
                let (block, crc) = (self.index.len(), self.store_block(&last_key, &archive));
                if warmth > Warmth::Cold {
                    self.collected.push(WarmBlock { block, crc, warmth, archive });
                }
            }
            Packing::Sampling(backlog) => backlog.push(ClosedBlock { last_key, bytes: archive.to_vec() }),
            Packing::With(packer) => {
                let stored = packer.pack(&archive)?;
                self.store_block(&last_key, &stored);
            }
            Packing::Training => unreachable!("INV-PACK: nothing is added while the backlog is away"),
        }
        Ok(())
    }

    /// How warm the block being closed is.
    fn warmth_of_open(&mut self) -> Warmth {
        let (warm, hot) = std::mem::take(&mut self.warm);
        let half = self.open.len().div_ceil(2) as u32;
        if hot >= half {
            Warmth::Hot
        } else if warm >= half || self.collect_all {
            Warmth::Warm
        } else {
            Warmth::Cold
        }
    }

    /// Appends a block; returns its checksum.
    fn store_block(&mut self, last_key: &[u8], stored: &[u8]) -> u32 {
        let part = self.append(stored);
        self.index.push(last_key, BlockEntry { offset: part.offset, len: part.len as usize, crc: part.crc });
        self.pad();
        part.crc
    }

    fn pad(&mut self) {
        let len = (self.taken + self.bytes.len()).next_multiple_of(PART_ALIGN);
        self.bytes.resize(len - self.taken, 0);
    }

    /// The deadline at which a quarter of the bytes has expired; 0 if that never comes.
    fn stale_at_ms(&mut self) -> u64 {
        self.deadlines.sort_unstable();
        let mut expired = 0;
        let stale = self.deadlines.iter().find(|(_, bytes)| {
            expired += bytes;
            expired * STALE_DIVISOR >= self.footer.raw_bytes
        });
        stale.map_or(0, |(deadline, _)| *deadline)
    }

    fn last_key_of_open(&self) -> Vec<u8> {
        let count = self.open.key_ends.len();
        let start = if count < 2 { 0 } else { self.open.key_ends[count - 2] as usize };
        self.open.key_bytes[start..].to_vec()
    }

    fn append(&mut self, part: &[u8]) -> Part {
        let offset = (self.taken + self.bytes.len()) as u64;
        self.bytes.extend_from_slice(part);
        Part { offset, len: part.len() as u32, crc: crc32c::crc32c(part) }
    }
}

pub(super) fn meta_of(footer: &Footer) -> TableMeta {
    TableMeta {
        len: footer.total_len,
        records: footer.records,
        tombstones: footer.tombstones,
        min_lsn: footer.min_lsn,
        max_lsn: footer.max_lsn,
        digest: footer.digest,
        raw_bytes: footer.raw_bytes,
        stale_at_ms: (footer.stale_at_ms != 0).then_some(footer.stale_at_ms),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Record;
    use crate::types::Hlc;

    /// Records in table order: distinct (key, LSN), key ascending, LSN descending.
    pub(crate) fn arbitrary_records(count_max: usize) -> impl Strategy<Value = Vec<Record>> {
        let one = (
            prop::collection::vec(0..4u8, 1..6),
            1..50u64,
            any::<bool>(),
            0..3u64,
            prop::collection::vec(any::<u8>(), 0..80),
        );
        prop::collection::vec(one, 1..count_max).prop_map(|parts| {
            let mut records: Vec<Record> = parts
                .into_iter()
                .map(|(key, lsn, put, expires, value)| Record {
                    key: key.into(),
                    lsn: Lsn(lsn),
                    hlc: Hlc(lsn * 7),
                    kind: if put { RecordKind::Put } else { RecordKind::Delete },
                    expires_at_ms: expires,
                    value: if put { value.into() } else { bytes::Bytes::new() },
                })
                .collect();
            records.sort_by(|a, b| (&a.key, b.lsn).cmp(&(&b.key, a.lsn)));
            records.dedup_by(|a, b| a.key == b.key && a.lsn == b.lsn);
            records
        })
    }

    pub(crate) fn build(records: &[Record], block_bytes: usize) -> BuiltTable {
        build_with(records, TableOptions { block_bytes, compression: Compression::None })
    }

    pub(crate) fn build_with(records: &[Record], options: TableOptions) -> BuiltTable {
        let mut builder = TableBuilder::new(options);
        records.iter().for_each(|record| builder.add(record.view()).unwrap());
        builder.finish().unwrap()
    }

    proptest! {
        #[test]
        fn take_ready_in_pieces_gives_the_same_table(
            records in arbitrary_records(120), block_bytes in 64..600usize, at_least in 1..900usize, multiple in 1..64usize
        ) {
            let whole = build(&records, block_bytes);
            let mut builder = TableBuilder::new(TableOptions { block_bytes, ..TableOptions::default() });
            let mut bytes = Vec::new();
            for record in &records {
                builder.add(record.view()).unwrap();
                builder.take_ready(at_least, multiple, |ready| {
                    assert!(ready.len().is_multiple_of(multiple) && ready.len() >= at_least);
                    bytes.extend_from_slice(ready);
                });
            }
            let built = builder.finish().unwrap();
            bytes.extend_from_slice(&built.bytes);
            prop_assert_eq!(built.meta, whole.meta);
            prop_assert!(bytes == whole.bytes, "cut at other places, the table is another");
        }
    }

    #[test]
    fn add_out_of_order_is_refused() {
        let record = |key: &'static [u8], lsn| RecordView {
            key,
            lsn: Lsn(lsn),
            hlc: Hlc(1),
            kind: RecordKind::Put,
            expires_at_ms: 0,
            value: b"v",
        };
        let mut builder = TableBuilder::new(TableOptions::default());
        builder.add(record(b"b", 5)).unwrap();
        assert!(builder.add(record(b"a", 9)).is_err());
        assert!(builder.add(record(b"b", 5)).is_err());
        builder.add(record(b"b", 4)).unwrap();
    }
}
