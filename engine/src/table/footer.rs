//! The last 128 bytes of a table.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "ANTBTAB\0"
//!      8     1  version (1; 2 if the data blocks are compressed)
//!      9     1  compression of the data blocks (0 none, 1 zstd)
//!     10     2  zero
//!     12     4  dictionary length; it lies before the filter, padded to 16 bytes (version 2)
//!     16     8  index offset           24  4  index length    28  4  index crc32c
//!     32     8  filter offset          40  4  filter length   44  4  filter crc32c
//!     48     8  records                56  8  tombstones among them
//!     64     8  smallest LSN           72  8  largest LSN
//!     80    16  content digest (xxh3-128 of every record's canonical form, see `chain`)
//!     96     8  total length of the table
//!    104     8  bytes of keys and values
//!    112     8  when a quarter of the bytes has expired, in milliseconds since the Unix epoch; 0 for never
//!    120     4  dictionary crc32c (version 2)
//!    124     4  crc32c of bytes 0..124
//! ```

use crate::types::Lsn;

/// Data blocks and parts start at multiples of this, for the archives' alignment.
pub(super) const PART_ALIGN: usize = 16;

pub(crate) const FOOTER_LEN: usize = 128;
const MAGIC: [u8; 8] = *b"ANTBTAB\0";
/// What a table without compression carries, and one with it.
const VERSION: u8 = 1;
const VERSION_COMPRESSED: u8 = 2;
const COMPRESSION_ZSTD: u8 = 1;

/// Position, length and checksum of a part of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub offset: u64,
    pub len: u32,
    pub crc: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footer {
    pub index: Part,
    pub filter: Part,
    pub records: u64,
    pub tombstones: u64,
    pub min_lsn: Lsn,
    pub max_lsn: Lsn,
    pub digest: u128,
    pub total_len: u64,
    pub raw_bytes: u64,
    /// 0 for never.
    pub stale_at_ms: u64,
    /// Where the data blocks are compressed; its part is empty for none.
    pub dictionary: Option<Part>,
}

impl Footer {
    /// Where the data blocks end.
    pub fn data_len(&self) -> u64 {
        self.dictionary.map_or(self.filter.offset, |dictionary| dictionary.offset)
    }

    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &[VERSION]);
        if let Some(dictionary) = self.dictionary {
            put(8, &[VERSION_COMPRESSED, COMPRESSION_ZSTD]);
            put(12, &dictionary.len.to_le_bytes());
            put(120, &dictionary.crc.to_le_bytes());
        }
        put(112, &self.stale_at_ms.to_le_bytes());
        for (at, part) in [(16, self.index), (32, self.filter)] {
            put(at, &part.offset.to_le_bytes());
            put(at + 8, &part.len.to_le_bytes());
            put(at + 12, &part.crc.to_le_bytes());
        }
        put(48, &self.records.to_le_bytes());
        put(56, &self.tombstones.to_le_bytes());
        put(64, &self.min_lsn.0.to_le_bytes());
        put(72, &self.max_lsn.0.to_le_bytes());
        put(80, &self.digest.to_le_bytes());
        put(96, &self.total_len.to_le_bytes());
        put(104, &self.raw_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The version of a whole footer that another build wrote.
    pub fn foreign_version(bytes: &[u8]) -> Option<u8> {
        let bytes = <&[u8; FOOTER_LEN]>::try_from(bytes).ok()?;
        let crc = u32::from_le_bytes(std::array::from_fn(|index| bytes[124 + index]));
        let known = matches!(bytes[8], VERSION | VERSION_COMPRESSED);
        (bytes[..8] == MAGIC && !known && crc32c::crc32c(&bytes[..124]) == crc).then_some(bytes[8])
    }

    /// The newest version that this build writes and reads.
    pub fn version() -> u8 {
        VERSION_COMPRESSED
    }

    /// The length of the table that ends with this footer; `None` if it is none.
    pub fn len_of_table(bytes: &[u8]) -> Option<u64> {
        if bytes.get(..8)? != MAGIC {
            return None;
        }
        let len = u64::from_le_bytes(std::array::from_fn(|index| bytes[96 + index]));
        Footer::decode(bytes, len).ok().map(|footer| footer.total_len)
    }

    /// Decodes and checks the footer of a table of `table_len` bytes.
    pub fn decode(bytes: &[u8], table_len: u64) -> Result<Footer, String> {
        let Ok(bytes) = <&[u8; FOOTER_LEN]>::try_from(bytes) else {
            return Err(format!("footer of {} bytes", bytes.len()));
        };
        if bytes[..8] != MAGIC {
            return Err("no table footer here (wrong magic)".into());
        }
        if bytes[8] != VERSION && bytes[8] != VERSION_COMPRESSED {
            let what = format!("table version {}, this build reads {VERSION} and {VERSION_COMPRESSED}", bytes[8]);
            return Err(what);
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let small = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let crc = crc32c::crc32c(&bytes[..124]);
        if crc != small(124) {
            return Err(format!("footer checksum {crc:08x}, footer says {:08x}", small(124)));
        }
        let dictionary = match (bytes[8], bytes[9]) {
            (VERSION, 0) => None,
            (VERSION_COMPRESSED, COMPRESSION_ZSTD) => {
                let padded = u64::from(small(12)).next_multiple_of(PART_ALIGN as u64);
                let offset = number(32).checked_sub(padded).ok_or("dictionary before the table's start")?;
                Some(Part { offset, len: small(12), crc: small(120) })
            }
            (version, compression) => return Err(format!("compression {compression} in a table of version {version}")),
        };
        let part = |at: usize| Part { offset: number(at), len: small(at + 8), crc: small(at + 12) };
        let footer = Footer {
            index: part(16),
            filter: part(32),
            records: number(48),
            tombstones: number(56),
            min_lsn: Lsn(number(64)),
            max_lsn: Lsn(number(72)),
            digest: u128::from_le_bytes(std::array::from_fn(|index| bytes[80 + index])),
            total_len: number(96),
            raw_bytes: number(104),
            stale_at_ms: number(112),
            dictionary,
        };
        let filter_end = footer.filter.offset.checked_add(u64::from(footer.filter.len));
        let index_end = footer.index.offset.checked_add(u64::from(footer.index.len));
        let fits = footer.total_len == table_len
            && filter_end == Some(footer.index.offset)
            && index_end.is_some()
            && index_end == table_len.checked_sub(FOOTER_LEN as u64);
        if !fits {
            return Err(format!("footer does not fit a table of {table_len} bytes"));
        }
        Ok(footer)
    }
}
