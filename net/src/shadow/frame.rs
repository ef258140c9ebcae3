//! Frames: a fixed header, then an rkyv payload that is always checked.
//!
//! ```text
//! offset  size  field                  all numbers little-endian
//!      0     4  magic "ANTB"
//!      4     1  version (1)
//!      5     1  kind
//!      6     2  zero
//!      8     4  length of the payload
//!     12     4  crc32c of bytes 0..12, 16..40 and of the payload
//!     16     8  attempt
//!     24     8  partition
//!     32     8  epoch
//!     40     -  payload: archive of columns
//! ```

use antumbra_engine::types::{AttemptId, Epoch, PartitionId};
use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use crate::error::{Error, Result};

/// Bytes of a header.
pub const HEADER_LEN: usize = 40;
/// Largest payload, in bytes: a record of the largest size fits a mirror frame.
pub const PAYLOAD_MAX: usize = 20 << 20;
const MAGIC: [u8; 4] = *b"ANTB";
const VERSION: u8 = 1;

/// What a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameContext {
    /// The attempt.
    pub attempt: AttemptId,
    /// The partition.
    pub partition: PartitionId,
    /// The epoch in which the attempt began.
    pub epoch: Epoch,
}

/// Columns that every message is made of; the archive's root. The field order is the format.
#[derive(Archive, Serialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Numbers, as the message says.
    pub numbers: Vec<u64>,
    /// End of each byte string in `bytes`.
    pub ends: Vec<u32>,
    /// Byte strings, one after another.
    pub bytes: Vec<u8>,
}

impl Columns {
    /// Columns of these numbers.
    #[must_use]
    pub fn of(numbers: impl Into<Vec<u64>>) -> Columns {
        Columns { numbers: numbers.into(), ..Columns::default() }
    }

    /// Appends a byte string.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    /// The byte string at `index`.
    ///
    /// # Errors
    /// [`Error::Protocol`] when there is none.
    pub fn bytes_at(&self, index: usize) -> Result<&[u8]> {
        let start = if index == 0 { 0 } else { *self.ends.get(index - 1).ok_or_else(short)? as usize };
        let end = *self.ends.get(index).ok_or_else(short)? as usize;
        self.bytes.get(start..end).ok_or_else(short)
    }

    /// The text at `index`.
    ///
    /// # Errors
    /// [`Error::Protocol`] when there is none.
    pub fn text_at(&self, index: usize) -> Result<String> {
        Ok(String::from_utf8_lossy(self.bytes_at(index)?).into_owned())
    }

    /// The number at `index`.
    ///
    /// # Errors
    /// [`Error::Protocol`] when there is none.
    pub fn number(&self, index: usize) -> Result<u64> {
        self.numbers.get(index).copied().ok_or_else(short)
    }
}

fn short() -> Error {
    Error::protocol("a message is cut short")
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message kind.
    pub kind: u8,
    /// Bytes of payload that follow.
    pub payload_len: usize,
    /// What it belongs to.
    pub context: FrameContext,
    crc: u32,
}

/// Encodes a frame.
///
/// # Errors
/// [`Error::Protocol`] when it is larger than [`PAYLOAD_MAX`].
pub fn encode(kind: u8, context: FrameContext, columns: &Columns) -> Result<Vec<u8>> {
    let payload = rkyv::to_bytes::<rancor::Error>(columns).map_err(|cause| Error::protocol(cause.to_string()))?;
    if payload.len() > PAYLOAD_MAX {
        return Err(Error::protocol(format!("frame of {} bytes, at most {PAYLOAD_MAX}", payload.len())));
    }
    Ok(around(kind, context, &payload))
}

/// A payload with the header in front of it.
pub(super) fn around(kind: u8, context: FrameContext, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, kind, 0, 0]);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for number in [context.attempt.0, context.partition.0, context.epoch.0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let crc = checksum(&bytes, payload);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A wide number as two of a column, the low half first.
pub(super) fn split(wide: u128) -> [u64; 2] {
    [wide as u64, (wide >> 64) as u64]
}

/// The other way round.
pub(super) fn join(low: u64, high: u64) -> u128 {
    u128::from(low) | (u128::from(high) << 64)
}

/// Decodes a header; says how much payload to read.
///
/// # Errors
/// [`Error::Protocol`].
pub fn decode_header(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
    if bytes[..4] != MAGIC {
        return Err(Error::protocol("no frame of ours"));
    }
    if bytes[4] != VERSION {
        return Err(Error::protocol(format!("frame version {}, this build speaks {VERSION}", bytes[4])));
    }
    let payload_len = short_at(bytes, 8) as usize;
    if payload_len > PAYLOAD_MAX {
        return Err(Error::protocol(format!("frame of {payload_len} bytes, at most {PAYLOAD_MAX}")));
    }
    let context = FrameContext {
        attempt: AttemptId(long_at(bytes, 16)),
        partition: PartitionId(long_at(bytes, 24)),
        epoch: Epoch(long_at(bytes, 32)),
    };
    Ok(Header { kind: bytes[5], payload_len, context, crc: short_at(bytes, 12) })
}

/// Checks and decodes a payload.
///
/// # Errors
/// [`Error::Protocol`].
pub fn decode_payload(header_bytes: &[u8; HEADER_LEN], header: Header, payload: &[u8]) -> Result<Columns> {
    let mut unsigned = *header_bytes;
    unsigned[12..16].fill(0);
    if checksum(&unsigned, payload) != header.crc {
        return Err(Error::protocol("frame checksum"));
    }
    let mut aligned = AlignedVec::<16>::with_capacity(payload.len());
    aligned.extend_from_slice(payload);
    let columns = rkyv::access::<ArchivedColumns, rancor::Error>(&aligned)
        .map_err(|cause| Error::protocol(format!("payload: {cause}")))?;
    Ok(Columns {
        numbers: columns.numbers.iter().map(|number| number.to_native()).collect(),
        ends: columns.ends.iter().map(|end| end.to_native()).collect(),
        bytes: columns.bytes.to_vec(),
    })
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..HEADER_LEN]);
    crc32c::crc32c_append(crc, payload)
}

fn short_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn long_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTEXT: FrameContext = FrameContext { attempt: AttemptId(1), partition: PartitionId(2), epoch: Epoch(3) };

    fn decode(bytes: &[u8]) -> Result<Columns> {
        let mut header_bytes = [0; HEADER_LEN];
        header_bytes.copy_from_slice(bytes.get(..HEADER_LEN).ok_or_else(short)?);
        let header = decode_header(&header_bytes)?;
        let payload = bytes.get(HEADER_LEN..HEADER_LEN + header.payload_len).ok_or_else(short)?;
        decode_payload(&header_bytes, header, payload)
    }

    proptest! {
        #[test]
        fn decode_encoded_frame_returns_its_columns(numbers: Vec<u64>, strings: Vec<Vec<u8>>) {
            let mut columns = Columns::of(numbers);
            strings.iter().for_each(|bytes| columns.push_bytes(bytes));
            let bytes = encode(7, CONTEXT, &columns).unwrap();
            let decoded = decode(&bytes).unwrap();
            prop_assert_eq!(&decoded, &columns);
            for (index, bytes) in strings.iter().enumerate() {
                prop_assert_eq!(decoded.bytes_at(index).unwrap(), bytes.as_slice());
            }
            prop_assert!(decoded.bytes_at(strings.len()).is_err());
        }

        #[test]
        fn decode_bit_flip_is_refused(numbers: Vec<u64>, at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = encode(7, CONTEXT, &Columns::of(numbers)).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn decode_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}
