//! Compressed data blocks: zstd with a dictionary trained on the table's own first blocks.
//!
//! A block alone is too short for its own statistics; the dictionary carries those of the table, which is one segment's.
//! The first blocks are held back until they make a sample, the dictionary is trained on them, then they and all later
//! blocks are stored as zstd frames. Training takes milliseconds, so a shard does it off its core
//! (`partition::output`). A table too small for a dictionary is compressed without.
//!
//! Checksums are of the stored bytes, so a misdirected or damaged read is found before anything is decompressed.

use std::cell::RefCell;

use zstd::dict::DecoderDictionary;
use zstd::zstd_safe::{self, DCtx};

use crate::error::{Error, Result};

use super::reader::Frame;

/// Fast enough to disappear behind the device; higher levels gain little on blocks of some KiB.
const LEVEL: i32 = 1;
/// Bytes of blocks that a dictionary is trained on.
const SAMPLE_BYTES: usize = 256 << 10;
/// Fewer are not worth a dictionary.
const SAMPLE_BYTES_MIN: usize = 32 << 10;
/// Largest dictionary.
const DICTIONARY_BYTES_MAX: usize = 16 << 10;
/// Tables that zstd derives from a dictionary, about.
const DICTIONARY_OVERHEAD_BYTES: usize = 28 << 10;
/// Largest block after decompression: what an archive may have.
const BLOCK_BYTES_MAX: u64 = 1 << 31;

/// A closed block and its last key.
#[derive(Debug)]
pub(super) struct ClosedBlock {
    pub last_key: Vec<u8>,
    pub bytes: Vec<u8>,
}

/// Blocks held back until there is a dictionary.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    blocks: Vec<ClosedBlock>,
    bytes: usize,
}

/// The backlog compressed, and what compresses the blocks to come.
pub(crate) struct Packed {
    pub(super) blocks: Vec<ClosedBlock>,
    pub(super) packer: Packer,
}

/// Compresses the blocks of one table.
pub(crate) struct Packer {
    dictionary: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packer({} bytes of dictionary)", self.dictionary.len())
    }
}

impl Backlog {
    pub(super) fn push(&mut self, block: ClosedBlock) {
        self.bytes += block.bytes.len();
        self.blocks.push(block);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the sample is large enough.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= SAMPLE_BYTES
    }

    /// Trains a dictionary on the blocks and compresses them. Takes milliseconds.
    ///
    /// Errors: [`Error::Invalid`] when zstd fails.
    pub(crate) fn pack(self) -> Result<Packed> {
        let dictionary = if self.bytes < SAMPLE_BYTES_MIN {
            Vec::new()
        } else {
            let samples: Vec<&[u8]> = self.blocks.iter().map(|block| block.bytes.as_slice()).collect();
            let size = DICTIONARY_BYTES_MAX.min(self.bytes / 8);
            // What cannot be trained on (too few blocks, or nothing alike in them) is compressed without.
            zstd::dict::from_samples(&samples, size).unwrap_or_default()
        };
        let compressor = zstd::bulk::Compressor::with_dictionary(LEVEL, &dictionary).map_err(zstd_failed)?;
        let mut packer = Packer { dictionary, compressor };
        let mut blocks = self.blocks;
        for block in &mut blocks {
            block.bytes = packer.pack(&block.bytes)?;
        }
        Ok(Packed { blocks, packer })
    }
}

impl Packer {
    /// Compresses a block.
    pub(super) fn pack(&mut self, block: &[u8]) -> Result<Vec<u8>> {
        self.compressor.compress(block).map_err(zstd_failed)
    }

    pub(super) fn dictionary(&self) -> &[u8] {
        &self.dictionary
    }
}

fn zstd_failed(cause: std::io::Error) -> Error {
    Error::Invalid { what: format!("a block cannot be compressed: {cause}") }
}

/// Decompresses the blocks of one table.
pub(super) struct Unpacker {
    dictionary: DecoderDictionary<'static>,
    bytes: usize,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unpacker({} bytes)", self.bytes)
    }
}

thread_local! {
    /// One context a thread; it takes some 100 KiB.
    static CONTEXT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

impl Unpacker {
    /// With the dictionary of a table; empty for none.
    pub fn new(dictionary: &[u8]) -> std::result::Result<Unpacker, String> {
        let prepared = DecoderDictionary::try_copy(dictionary).map_err(|cause| format!("dictionary: {cause}"))?;
        let bytes = dictionary.len() + DICTIONARY_OVERHEAD_BYTES;
        Ok(Unpacker { dictionary: prepared, bytes })
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The block in a frame whose checksum was right; an error says what is wrong all the same.
    pub fn unpack(&self, stored: &[u8]) -> std::result::Result<Frame, String> {
        let len = match zstd_safe::get_frame_content_size(stored) {
            Ok(Some(len)) if len <= BLOCK_BYTES_MAX => len as usize,
            other => return Err(format!("a compressed block of unknown length ({other:?})")),
        };
        let mut plain = vec![0; len];
        let unpacked = CONTEXT.with_borrow_mut(|context| {
            if context.is_none() {
                *context = DCtx::try_create();
            }
            let context = context.as_mut().ok_or("no memory to decompress with")?;
            let unpacked = context.decompress_using_ddict(&mut plain[..], stored, self.dictionary.as_ddict());
            unpacked.map_err(|code| zstd_safe::get_error_name(code).to_string())
        })?;
        if unpacked != len {
            return Err(format!("a compressed block of {unpacked} bytes, its frame says {len}"));
        }
        let mut frame = Frame::with_capacity(len);
        frame.extend_from_slice(&plain);
        Ok(frame)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use futures_lite::future::block_on;
    use proptest::prelude::*;

    use crate::config::Compression;
    use crate::record::{Record, RecordKind};
    use crate::table::tests_support::{arbitrary_records, build, build_with};
    use crate::table::{BuiltTable, NoCache, TableOptions, TableReader, verify_image};
    use crate::types::{Hlc, Lsn};

    const ZSTD: TableOptions = TableOptions { block_bytes: 4 << 10, compression: Compression::Zstd };

    /// Records that are alike, enough for a dictionary.
    fn many() -> Vec<Record> {
        let record = |number: u64| Record {
            key: format!("user/{number:06}").into(),
            lsn: Lsn(number + 1),
            hlc: Hlc(number),
            kind: if number.is_multiple_of(17) { RecordKind::Delete } else { RecordKind::Put },
            expires_at_ms: if number.is_multiple_of(3) { 1_000 + number } else { 0 },
            value: match number % 17 {
                0 => bytes::Bytes::new(),
                _ => format!("{{\"name\":\"number {number}\",\"likes\":{}}}", number * number % 10_007).into(),
            },
        };
        (0..12_000).map(record).collect()
    }

    fn check_gets(table: &BuiltTable, records: &[Record], step: usize) {
        let bytes = &table.bytes[..];
        let reader = block_on(TableReader::open(bytes, 0, table.meta.len, Path::new("t"))).unwrap();
        for record in records.iter().step_by(step) {
            let found = block_on(reader.get(record.key.as_ref().into(), record.lsn, &NoCache, 1)).unwrap().unwrap();
            assert_eq!(found.view(), record.view());
        }
    }

    #[test]
    fn table_with_a_dictionary_is_small_and_holds_the_same() {
        let records = many();
        let (plain, packed) = (build(&records, 4 << 10), build_with(&records, ZSTD));
        assert!(packed.bytes.len() * 2 < plain.bytes.len(), "{} of {}", packed.bytes.len(), plain.bytes.len());
        assert_eq!(packed.bytes[packed.bytes.len() - 120], 2, "the footer's version");
        let dictionary = &packed.bytes[packed.bytes.len() - 116..packed.bytes.len() - 112];
        assert_ne!(dictionary, [0; 4], "a dictionary was trained");
        assert_eq!(block_on(verify_image(&packed.bytes)).unwrap().digest, plain.meta.digest);
        check_gets(&packed, &records, 37);
    }

    #[test]
    fn bit_flip_anywhere_in_a_compressed_table_is_refused() {
        let table = build_with(&many(), ZSTD);
        let mut random = fastrand::Rng::with_seed(4);
        // Every part is hit: the blocks at random, the dictionary, filter, index and footer behind them evenly.
        let tail = table.bytes.len() - 60_000;
        let mut places: Vec<usize> = (0..40).map(|_| random.usize(0..tail)).collect();
        places.extend((tail..table.bytes.len()).step_by(911));
        for at in places {
            let mut bytes = table.bytes.clone();
            bytes[at] ^= 1 << random.u8(0..8);
            assert!(block_on(verify_image(&bytes)).is_err(), "byte {at} of {}", bytes.len());
        }
    }

    #[test]
    fn stale_at_is_when_a_quarter_has_expired() {
        let records: Vec<Record> = (0..100_u64)
            .map(|number| Record {
                key: number.to_be_bytes().to_vec().into(),
                lsn: Lsn(number + 1),
                hlc: Hlc(1),
                kind: RecordKind::Put,
                expires_at_ms: if number < 40 { 5_000 - number } else { 0 },
                value: vec![0; 92].into(),
            })
            .collect();
        // The 25th deadline to pass.
        assert_eq!(build(&records, 1_000).meta.stale_at_ms, Some(4_985));
        assert_eq!(build(&records[30..], 1_000).meta.stale_at_ms, None);
    }

    proptest! {
        #[test]
        fn small_table_without_a_dictionary_holds_the_same(records in arbitrary_records(150), block_bytes in 64..800usize) {
            let table = build_with(&records, TableOptions { block_bytes, ..ZSTD });
            prop_assert_eq!(block_on(verify_image(&table.bytes)).unwrap(), table.meta.clone());
            check_gets(&table, &records, 1);
        }

        #[test]
        fn unpack_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let unpacker = super::Unpacker::new(b"").unwrap();
            prop_assert!(unpacker.unpack(&bytes).is_err() || !bytes.is_empty());
        }
    }
}
