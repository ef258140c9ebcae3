//! The last 128 bytes of a table.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "ANTBTAB\0"
//!      8     1  version (1)
//!      9     7  zero
//!     16     8  index offset           24  4  index length    28  4  index crc32c
//!     32     8  filter offset          40  4  filter length   44  4  filter crc32c
//!     48     8  records                56  8  tombstones among them
//!     64     8  smallest LSN           72  8  largest LSN
//!     80    16  content digest (xxh3-128 of every record's canonical form, see `chain`)
//!     96     8  total length of the table
//!    104     8  bytes of keys and values
//!    112    12  zero
//!    124     4  crc32c of bytes 0..124
//! ```

use crate::types::Lsn;

pub(crate) const FOOTER_LEN: usize = 128;
const MAGIC: [u8; 8] = *b"ANTBTAB\0";
const VERSION: u8 = 1;

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
}

impl Footer {
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &[VERSION]);
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

    /// Decodes and checks the footer of a table of `table_len` bytes.
    pub fn decode(bytes: &[u8], table_len: u64) -> Result<Footer, String> {
        let Ok(bytes) = <&[u8; FOOTER_LEN]>::try_from(bytes) else {
            return Err(format!("footer of {} bytes", bytes.len()));
        };
        if bytes[..8] != MAGIC {
            return Err("no table footer here (wrong magic)".into());
        }
        if bytes[8] != VERSION {
            return Err(format!("table version {}, this build reads {VERSION}", bytes[8]));
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let small = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let crc = crc32c::crc32c(&bytes[..124]);
        if crc != small(124) {
            return Err(format!("footer checksum {crc:08x}, footer says {:08x}", small(124)));
        }
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
        };
        let filter_end = footer.filter.offset.checked_add(u64::from(footer.filter.len));
        let index_end = footer.index.offset.checked_add(u64::from(footer.index.len));
        let fits = footer.total_len == table_len
            && filter_end == Some(footer.index.offset)
            && index_end == Some(table_len - FOOTER_LEN as u64);
        if !fits {
            return Err(format!("footer does not fit a table of {table_len} bytes"));
        }
        Ok(footer)
    }
}
