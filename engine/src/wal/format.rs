//! A batch on disk. All numbers are little-endian.
//!
//! ```text
//! offset  size  field
//!      0     4  magic "AWAL"
//!      4     1  version (2)
//!      5     1  flags: bit 0 = mark, the first batch of an incarnation
//!      6     2  zero
//!      8     8  generation of the file
//!     16     8  sequence number of the batch
//!     24     4  length of the payload
//!     28     4  number of entries
//!     32     4  crc32c of bytes 0..32 and of the payload
//!     36    28  zero
//!     64     -  payload: entries, or a mark's 8 bytes: the last batch before it that counts; then zeros up to the next
//!               4 KiB block
//!
//! entry:
//!      0     8  partition
//!      8     8  attempt (0 unless the record came over a mirror)
//!     16     8  LSN
//!     24     8  timestamp
//!     32     8  deadline in milliseconds, 0 = none
//!     40     4  length of the key
//!     44     4  length of the value
//!     48     1  kind (1 put, 2 delete, 3 range delete: the value is the first key behind the range)
//!     49     7  zero
//!     56     -  key, value
//! ```

use crate::io::direct::{AlignedBuf, BLOCK_BYTES};
use crate::limits::{KEY_LEN_MAX, VALUE_LEN_MAX};
use crate::record::{RecordKind, RecordView};
use crate::types::{AttemptId, Hlc, Lsn, PartitionId, WalSeq};

pub(super) const HEADER_LEN: usize = 64;
const ENTRY_HEADER_LEN: usize = 56;
const MAGIC: [u8; 4] = *b"AWAL";
/// Version 1 had marks without a payload.
const VERSION: u8 = 2;
const VERSIONS: std::ops::RangeInclusive<u8> = 1..=VERSION;
const FLAG_INCARNATION: u8 = 1;
/// Room that a batch begins with at least, and at most whatever the batch before it took.
const CAPACITY_BYTES_MIN: usize = 16 << 10;
const CAPACITY_BYTES_MAX: usize = 2 << 20;

/// One entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub partition: PartitionId,
    /// 0 unless the record came over a mirror.
    pub attempt: AttemptId,
    pub record: RecordView<'a>,
}

/// What a batch's header says, once the batch is known to be whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub seq: WalSeq,
    /// First batch of an incarnation.
    pub incarnation: bool,
    /// A mark's word on the last batch before it that counts; version 1 does not say.
    pub follows: Option<WalSeq>,
    pub payload_len: usize,
    pub entries: u32,
}

impl BatchHeader {
    /// Bytes of the batch with its padding.
    pub fn padded_len(&self) -> usize {
        (HEADER_LEN + self.payload_len).next_multiple_of(BLOCK_BYTES)
    }
}

/// A batch being collected.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    buffer: AlignedBuf,
    entries: u32,
}

impl BatchBuilder {
    pub fn new() -> BatchBuilder {
        BatchBuilder::with_capacity(0)
    }

    /// An empty batch that is expected to take about `bytes`.
    pub fn with_capacity(bytes: usize) -> BatchBuilder {
        let mut buffer = AlignedBuf::with_capacity(bytes.clamp(CAPACITY_BYTES_MIN, CAPACITY_BYTES_MAX));
        buffer.extend_from_slice(&[0; HEADER_LEN]);
        BatchBuilder { buffer, entries: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub fn payload_len(&self) -> usize {
        self.buffer.len() - HEADER_LEN
    }

    pub fn padded_len(&self) -> usize {
        self.buffer.len().next_multiple_of(BLOCK_BYTES)
    }

    pub fn push(&mut self, entry: Entry<'_>) {
        let record = entry.record;
        let mut header = [0_u8; ENTRY_HEADER_LEN];
        let numbers = [entry.partition.0, entry.attempt.0, record.lsn.0, record.hlc.0, record.expires_at_ms];
        for (place, number) in header.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        header[40..44].copy_from_slice(&(record.key.len() as u32).to_le_bytes());
        header[44..48].copy_from_slice(&(record.value.len() as u32).to_le_bytes());
        header[48] = record.kind as u8;
        self.buffer.extend_from_slice(&header);
        self.buffer.extend_from_slice(record.key);
        self.buffer.extend_from_slice(record.value);
        self.entries += 1;
    }

    /// The mark of an incarnation that begins behind batch `follows`.
    pub fn mark(generation: u64, seq: WalSeq, follows: WalSeq) -> AlignedBuf {
        let mut batch = BatchBuilder::new();
        batch.buffer.extend_from_slice(&follows.0.to_le_bytes());
        batch.finish(generation, seq, FLAG_INCARNATION)
    }

    /// Fills in the header and pads.
    pub fn seal(self, generation: u64, seq: WalSeq) -> AlignedBuf {
        self.finish(generation, seq, 0)
    }

    fn finish(mut self, generation: u64, seq: WalSeq, flags: u8) -> AlignedBuf {
        let payload_len = self.payload_len() as u32;
        let (header, payload) = self.buffer.as_mut_slice().split_at_mut(HEADER_LEN);
        header[0..4].copy_from_slice(&MAGIC);
        header[4] = VERSION;
        header[5] = flags;
        header[8..16].copy_from_slice(&generation.to_le_bytes());
        header[16..24].copy_from_slice(&seq.0.to_le_bytes());
        header[24..28].copy_from_slice(&payload_len.to_le_bytes());
        header[28..32].copy_from_slice(&self.entries.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..32]), payload);
        header[32..36].copy_from_slice(&crc.to_le_bytes());
        self.buffer.pad_to(BLOCK_BYTES);
        self.buffer
    }
}

/// Decodes the batch at the start of `bytes`; `None` unless a whole batch of this generation lies there.
pub(super) fn decode_batch(bytes: &[u8], generation: u64) -> Option<(BatchHeader, &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER_LEN)?;
    let known = header[0..4] == MAGIC && VERSIONS.contains(&header[4]) && number(header, 8) == generation;
    if !known {
        return None;
    }
    let payload = rest.get(..short(header, 24) as usize)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..32]), payload);
    if crc != short(header, 32) {
        return None;
    }
    let incarnation = header[5] & FLAG_INCARNATION != 0;
    let (follows, entries) = if incarnation && header[4] > 1 {
        let (follows, entries) = payload.split_at_checked(8)?;
        (Some(WalSeq(number(follows, 0))), entries)
    } else {
        (None, payload)
    };
    let header = BatchHeader {
        seq: WalSeq(number(header, 16)),
        incarnation,
        follows,
        payload_len: payload.len(),
        entries: short(header, 28),
    };
    Some((header, entries))
}

/// The version of a whole batch of this generation that another build wrote: it is neither torn nor an older life's.
pub(super) fn foreign_version(bytes: &[u8], generation: u64) -> Option<u8> {
    let (header, rest) = bytes.split_at_checked(HEADER_LEN)?;
    if header[0..4] != MAGIC || VERSIONS.contains(&header[4]) || number(header, 8) != generation {
        return None;
    }
    let payload = rest.get(..short(header, 24) as usize)?;
    let whole = crc32c::crc32c_append(crc32c::crc32c(&header[..32]), payload) == short(header, 32);
    whole.then_some(header[4])
}

/// The version that this build writes and reads.
pub(super) fn version() -> u8 {
    VERSION
}

/// Length, with padding, of a batch of another generation that begins here, going by its header alone.
pub(super) fn recycled_len(bytes: &[u8], generation: u64) -> Option<usize> {
    let header = bytes.get(..HEADER_LEN)?;
    let recycled = header[0..4] == MAGIC && number(header, 8) < generation;
    recycled.then(|| (HEADER_LEN + short(header, 24) as usize).next_multiple_of(BLOCK_BYTES))
}

/// Whether a batch of this generation begins here, whole or not.
pub(super) fn is_ours(bytes: &[u8], generation: u64) -> bool {
    bytes.get(..HEADER_LEN).is_some_and(|header| header[0..4] == MAGIC && number(header, 8) == generation)
}

/// Why a batch that [`is_ours`] could not be read, in words.
pub(super) fn describe_broken(bytes: &[u8], generation: u64) -> String {
    let (header, rest) = bytes.split_at(HEADER_LEN);
    let seq = number(header, 16);
    if foreign_version(bytes, generation).is_some() {
        return format!("batch {seq} is of version {}, this build knows {VERSION}", header[4]);
    }
    match rest.get(..short(header, 24) as usize) {
        None => format!("batch {seq} is longer than the file"),
        Some(_) => format!("batch {seq} does not match its checksum"),
    }
}

/// The entries of a whole batch; an error says what is wrong with the payload.
pub(super) fn decode_entries(header: BatchHeader, payload: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let mut entries = Vec::new();
    let mut rest = payload;
    while !rest.is_empty() {
        let (entry, after) = decode_entry(rest).map_err(|what| format!("entry {}: {what}", entries.len()))?;
        entries.push(entry);
        rest = after;
    }
    if entries.len() != header.entries as usize {
        return Err(format!("{} entries, the header says {}", entries.len(), header.entries));
    }
    Ok(entries)
}

fn decode_entry(bytes: &[u8]) -> Result<(Entry<'_>, &[u8]), String> {
    let (header, rest) = bytes.split_at_checked(ENTRY_HEADER_LEN).ok_or("cut short")?;
    let (key_len, value_len) = (short(header, 40) as usize, short(header, 44) as usize);
    if key_len == 0 || key_len > KEY_LEN_MAX || value_len > VALUE_LEN_MAX {
        return Err(format!("key of {key_len} and value of {value_len} bytes"));
    }
    let kind = RecordKind::try_from(header[48]).map_err(|kind| format!("unknown kind {kind}"))?;
    let (key, rest) = rest.split_at_checked(key_len).ok_or("key cut short")?;
    let (value, rest) = rest.split_at_checked(value_len).ok_or("value cut short")?;
    let record = RecordView {
        key,
        lsn: Lsn(number(header, 16)),
        hlc: Hlc(number(header, 24)),
        kind,
        expires_at_ms: number(header, 32),
        value,
    };
    Ok((Entry { partition: PartitionId(number(header, 0)), attempt: AttemptId(number(header, 8)), record }, rest))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

fn short(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

/// What the fuzzer does with bytes: as they are, and as the payload of a batch whose checksum is right.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = decode_batch(data, 0);
    let Some((count, payload)) = data.split_first() else {
        return;
    };
    let header = BatchHeader { entries: u32::from(*count), ..BatchHeader::default() };
    let Ok(entries) = decode_entries(header, payload) else {
        return;
    };
    let mut builder = BatchBuilder::new();
    entries.iter().for_each(|entry| builder.push(*entry));
    let sealed = builder.seal(7, WalSeq(1));
    let decoded = decode_batch(sealed.as_slice(), 7);
    let again = decoded.and_then(|(header, payload)| decode_entries(header, payload).ok());
    assert_eq!(again.as_deref(), Some(&entries[..]), "what was decoded survives another round");
}

/// Inputs of the fuzzer that are accepted.
#[cfg(test)]
pub(crate) fn fuzz_seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let record =
        RecordView { key: b"key", lsn: Lsn(5), hlc: Hlc(6), kind: RecordKind::Put, expires_at_ms: 7, value: b"value" };
    let mut builder = BatchBuilder::new();
    for _ in 0..2 {
        builder.push(Entry { partition: PartitionId(1), attempt: AttemptId(2), record });
    }
    let len = HEADER_LEN + builder.payload_len();
    let batch = builder.seal(0, WalSeq(4));
    let mut payload = vec![2];
    payload.extend_from_slice(&batch.as_slice()[HEADER_LEN..len]);
    vec![
        ("wal-batch", "seed-batch", batch.as_slice()[..len].to_vec()),
        ("wal-batch", "seed-payload", payload),
        ("wal-recovery", "seed-nothing", Vec::new()),
        ("wal-recovery", "seed-last-torn", vec![2, 0, 0x70, 9, 1, 0]),
        ("wal-recovery", "seed-hole", vec![0, 0, 0x20, 9, 1, 0]),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Record;
    use crate::table::tests_support::arbitrary_records;

    fn batch(records: &[Record], generation: u64, seq: u64) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for record in records {
            builder.push(Entry { partition: PartitionId(3), attempt: AttemptId(9), record: record.view() });
        }
        builder.seal(generation, WalSeq(seq)).as_slice().to_vec()
    }

    #[test]
    fn seal_known_record_gives_golden_bytes() {
        let mut builder = BatchBuilder::new();
        let record =
            RecordView { key: b"k", lsn: Lsn(5), hlc: Hlc(6), kind: RecordKind::Put, expires_at_ms: 7, value: b"vv" };
        builder.push(Entry { partition: PartitionId(1), attempt: AttemptId(2), record });
        let bytes = builder.seal(3, WalSeq(4));
        assert_eq!(bytes.len(), BLOCK_BYTES);
        let mut expected = vec![b'A', b'W', b'A', b'L', 2, 0, 0, 0];
        for number in [3_u64, 4] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.extend_from_slice(&[59, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&bytes.as_slice()[..32], &expected);
        let mut entry = Vec::new();
        for number in [1_u64, 2, 5, 6, 7] {
            entry.extend_from_slice(&number.to_le_bytes());
        }
        entry.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'k', b'v', b'v']);
        assert_eq!(&bytes.as_slice()[HEADER_LEN..HEADER_LEN + 59], &entry);
        assert!(bytes.as_slice()[HEADER_LEN + 59..].iter().all(|byte| *byte == 0));
    }

    proptest! {
        #[test]
        fn decode_sealed_batch_returns_its_entries(records in arbitrary_records(50)) {
            let bytes = batch(&records, 2, 8);
            let (header, payload) = decode_batch(&bytes, 2).unwrap();
            prop_assert_eq!((header.seq, header.padded_len()), (WalSeq(8), bytes.len()));
            let found: Vec<Record> =
                decode_entries(header, payload).unwrap().iter().map(|entry| entry.record.to_record()).collect();
            prop_assert_eq!(found, records);
            prop_assert!(decode_batch(&bytes, 1).is_none(), "another generation");
        }

        #[test]
        fn decode_bit_flip_in_header_or_payload_is_refused(
            records in arbitrary_records(20), at in any::<prop::sample::Index>(), bit in 0..8u8
        ) {
            let mut bytes = batch(&records, 2, 8);
            let (header, _) = decode_batch(&bytes, 2).unwrap();
            let covered = 36 + header.payload_len;
            let at = at.index(covered);
            let at = if at < 36 { at } else { at - 36 + HEADER_LEN };
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_batch(&bytes, 2).is_none());
        }

        #[test]
        fn decode_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), entries: u32) {
            let _ = decode_batch(&bytes, 0);
            let header = BatchHeader { entries, ..BatchHeader::default() };
            let _ = decode_entries(header, &bytes);
        }
    }
}
