//! Records on the wire: mirror frames and deltas.
//!
//! ```text
//! offset  size  field
//!      0     1  version (1)
//!      1     3  zero
//!      4     4  number of records
//!      8     4  length of the archive
//!     12     4  crc32c of bytes 0..12 and of the archive
//!     16     -  archive of columns (see `block`)
//! ```

use rkyv::util::AlignedVec;

use crate::error::{Error, Result};
use crate::record::{Record, RecordView};

use super::columns::{Columns, check_columns};

const VERSION: u8 = 1;
const HEADER_LEN: usize = 16;

/// Encodes records in the order given.
///
/// # Errors
/// [`Error::Invalid`] when the columns exceed 2 GiB.
pub fn encode_records<'a>(records: impl IntoIterator<Item = RecordView<'a>>) -> Result<Vec<u8>> {
    let mut columns = Columns::default();
    for record in records {
        columns.push(record);
    }
    let archive = columns.archive()?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + archive.len());
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    bytes.extend_from_slice(&(columns.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(archive.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &archive);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&archive);
    Ok(bytes)
}

/// Decodes what [`encode_records`] made.
///
/// # Errors
/// [`Error::Corruption`] for anything else.
pub fn decode_records(bytes: &[u8]) -> Result<Vec<Record>> {
    let corrupt = |offset: usize, what: String| Err(Error::corruption("<record batch>", offset as u64, what));
    let Some((header, archive)) = bytes.split_at_checked(HEADER_LEN) else {
        return corrupt(0, format!("{} bytes are fewer than a header", bytes.len()));
    };
    if header[0] != VERSION {
        return corrupt(0, format!("version {}, this build reads {VERSION}", header[0]));
    }
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if field(8) as usize != archive.len() {
        return corrupt(8, format!("archive of {} bytes, header says {}", archive.len(), field(8)));
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), archive);
    if crc != field(12) {
        return corrupt(12, format!("checksum {crc:08x}, header says {:08x}", field(12)));
    }
    let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
    aligned.extend_from_slice(archive);
    let columns = match check_columns(&aligned) {
        Ok(columns) => columns,
        Err(what) => return corrupt(HEADER_LEN, what),
    };
    if columns.lsns.len() != field(4) as usize {
        return corrupt(4, format!("{} records, header says {}", columns.lsns.len(), field(4)));
    }
    Ok((0..columns.lsns.len()).map(|index| columns.record(index).to_record()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::table::builder::tests::arbitrary_records;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_encoded_records_returns_them(records in arbitrary_records(60)) {
            let bytes = encode_records(records.iter().map(Record::view)).unwrap();
            prop_assert_eq!(decode_records(&bytes).unwrap(), records);
        }

        #[test]
        fn decode_bit_flip_is_refused(records in arbitrary_records(20), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = encode_records(records.iter().map(Record::view)).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // Bytes 1..4 are padding under the checksum, so they count as well.
            prop_assert!(decode_records(&bytes).is_err());
        }

        #[test]
        fn decode_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_records(&bytes);
        }
    }
}
