//! A WAL file, piece by piece, for people.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::io::direct::BLOCK_BYTES;
use crate::record::RecordView;
use crate::types::{AttemptId, PartitionId, WalSeq};

use super::files;
use super::format::{self, Entry};

/// One whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalBatch {
    /// Offset in the file.
    pub offset: u64,
    /// Its number.
    pub seq: WalSeq,
    /// Whether it begins an incarnation (an opening of the engine).
    pub incarnation: bool,
    /// Records.
    pub entries: u32,
    /// Length with padding.
    pub bytes: usize,
}

/// What lies between and behind whole batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalRest {
    /// Zeros: never written since the file was prepared.
    Unused {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// No batch of the file's generation: what an earlier life of the file left.
    Recycled {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// A batch of the file's generation that is not whole: torn at the end of the log, damaged before it.
    Unreadable {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
        /// What the first block looks like.
        what: String,
    },
}

/// What a WAL file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalFile {
    /// The file.
    pub path: PathBuf,
    /// Its generation, from its name.
    pub generation: u64,
    /// Its length.
    pub bytes: u64,
    /// Whole batches of its generation.
    pub batches: Vec<WalBatch>,
    /// Everything else, in order.
    pub rest: Vec<WalRest>,
}

/// A record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRecord<'a> {
    /// The batch.
    pub seq: WalSeq,
    /// The partition.
    pub partition: PartitionId,
    /// The attempt that brought it; 0 for a client's.
    pub attempt: AttemptId,
    /// The record.
    pub record: RecordView<'a>,
}

/// Walks a WAL file. `visit` sees the records of every whole batch.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) when the file's name is no generation.
pub fn inspect(path: &Path, bytes: &[u8], mut visit: impl FnMut(WalRecord<'_>)) -> Result<WalFile> {
    let generation = files::generation_of(path)?;
    let mut file = WalFile {
        path: path.to_path_buf(),
        generation,
        bytes: bytes.len() as u64,
        batches: Vec::new(),
        rest: Vec::new(),
    };
    let mut offset = 0;
    while offset < bytes.len() {
        let here = &bytes[offset..];
        offset += match format::decode_batch(here, generation) {
            Some((header, payload)) => {
                match format::decode_entries(header, payload) {
                    Ok(entries) => entries.into_iter().for_each(|entry| visit(record_of(header.seq, entry))),
                    Err(what) => file.unreadable(offset, header.padded_len(), what),
                }
                file.batches.push(WalBatch {
                    offset: offset as u64,
                    seq: header.seq,
                    incarnation: header.incarnation,
                    entries: header.entries,
                    bytes: header.padded_len(),
                });
                header.padded_len()
            }
            None => file.skip(here, offset),
        };
    }
    Ok(file)
}

fn record_of(seq: WalSeq, entry: Entry<'_>) -> WalRecord<'_> {
    WalRecord { seq, partition: entry.partition, attempt: entry.attempt, record: entry.record }
}

impl WalFile {
    /// Notes what begins here and is no batch of ours; returns its length.
    fn skip(&mut self, here: &[u8], offset: usize) -> usize {
        let block = &here[..here.len().min(BLOCK_BYTES)];
        if block.iter().all(|byte| *byte == 0) {
            match self.rest.last_mut() {
                Some(WalRest::Unused { offset: at, bytes }) if *at + *bytes == offset as u64 => {
                    *bytes += block.len() as u64;
                }
                _ => self.rest.push(WalRest::Unused { offset: offset as u64, bytes: block.len() as u64 }),
            }
            return block.len();
        }
        if format::is_ours(here, self.generation) {
            self.unreadable(offset, block.len(), format::describe_broken(here, self.generation));
            return block.len();
        }
        // Blocks right behind a broken batch's first may be its rest.
        let len = format::recycled_len(here, self.generation).map_or(block.len(), |len| len.min(here.len()));
        match self.rest.last_mut() {
            Some(WalRest::Unreadable { offset: at, bytes, .. })
                if *at + *bytes == offset as u64 && len == block.len() =>
            {
                *bytes += len as u64;
            }
            Some(WalRest::Recycled { offset: at, bytes }) if *at + *bytes == offset as u64 => *bytes += len as u64,
            _ => self.rest.push(WalRest::Recycled { offset: offset as u64, bytes: len as u64 }),
        }
        len
    }

    fn unreadable(&mut self, offset: usize, len: usize, what: String) {
        match self.rest.last_mut() {
            Some(WalRest::Unreadable { offset: at, bytes, .. }) if *at + *bytes == offset as u64 => {
                *bytes += len as u64;
            }
            _ => self.rest.push(WalRest::Unreadable { offset: offset as u64, bytes: len as u64, what }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::record::RecordKind;
    use crate::types::{Hlc, Lsn};
    use crate::wal::format::BatchBuilder;

    fn batch(generation: u64, seq: u64, value_len: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        let value = vec![7; value_len];
        let record = RecordView {
            key: b"key",
            lsn: Lsn(seq),
            hlc: Hlc(1),
            kind: RecordKind::Put,
            expires_at_ms: 0,
            value: &value,
        };
        builder.push(Entry { partition: PartitionId(1), attempt: AttemptId(0), record });
        builder.seal(generation, WalSeq(seq)).as_slice().to_vec()
    }

    #[test]
    fn inspect_names_every_piece() {
        let mut bytes = batch(3, 10, 100);
        bytes.extend(batch(3, 11, 5_000));
        let torn_at = bytes.len();
        let mut torn = batch(3, 12, 9_000);
        torn[8_300] ^= 1;
        bytes.extend(&torn);
        let recycled_at = bytes.len();
        bytes.extend(batch(2, 4, 6_000));
        let unused_at = bytes.len();
        bytes.extend(vec![0; 3 * BLOCK_BYTES]);
        let mut seen = Vec::new();
        let file = inspect(Path::new("x/000000000003.wal"), &bytes, |record| seen.push(record.seq.0)).unwrap();
        assert_eq!(seen, [10, 11]);
        assert_eq!(file.batches.iter().map(|batch| batch.seq.0).collect::<Vec<_>>(), [10, 11]);
        let [
            WalRest::Unreadable { offset, bytes: len, what },
            WalRest::Recycled { offset: old, .. },
            WalRest::Unused { offset: end, bytes: free },
        ] = &file.rest[..]
        else {
            panic!("{:?}", file.rest);
        };
        assert_eq!((*offset, *len), (torn_at as u64, (recycled_at - torn_at) as u64));
        assert!(what.contains("checksum"), "{what}");
        assert_eq!((*old, *end, *free), (recycled_at as u64, unused_at as u64, 3 * BLOCK_BYTES as u64));
    }
}
