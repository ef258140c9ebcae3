//! The durable list of keyspaces: the file `KEYSPACES` of a data folder, replaced whole by rename.
//!
//! The partitions of a keyspace lie on several shards, whose manifests know nothing of each other; this file is what
//! makes a keyspace exist or not. It is created after its partitions and removed before them, and start-up drops the
//! partitions of no keyspace, so a crash in between leaves nothing half.
//!
//! ```text
//! offset  size  field (little-endian)
//!      0     8  magic "ANTBKEYS"
//!      8     1  version (1)
//!      9     3  zero
//!     12     4  length of the payload
//!     16     4  crc32c of bytes 0..16 and of the payload
//!     20     -  payload: next number (u32), count (u32), then for each keyspace:
//!                 number (u32), name (string), partitioning (u8: 0 single, 1 hash, 2 range),
//!                 partitions (u32), for range the split keys (strings, one fewer than partitions),
//!                 merge operator (string, empty for none)
//!               string: length (u32), bytes
//! ```
//!
//! Partition `i` of keyspace `n` has the id `2^63 + n * 2^16 + i`; ids below 2^63 are the callers' own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::io::fs;
use crate::types::PartitionId;

use super::options::{PARTITIONS_MAX, Partitioning};

const MAGIC: [u8; 8] = *b"ANTBKEYS";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 20;
const FILE: &str = "KEYSPACES";
/// Set in the ids of partitions that belong to keyspaces.
const MANAGED: u64 = 1 << 63;

/// A keyspace as the file knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Never reused.
    pub number: u32,
    pub partitioning: Partitioning,
    pub merge_operator: Option<String>,
}

impl Entry {
    /// Id of a partition.
    pub fn partition(&self, index: usize) -> PartitionId {
        PartitionId(MANAGED | u64::from(self.number) << 16 | index as u64)
    }

    /// Ids of all partitions, in order.
    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> {
        (0..self.partitioning.partitions()).map(|index| self.partition(index))
    }
}

/// Whether a partition belongs to a keyspace of this file.
pub(crate) fn is_managed(partition: PartitionId) -> bool {
    partition.0 & MANAGED != 0
}

/// All keyspaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalogue {
    pub next_number: u32,
    pub keyspaces: BTreeMap<String, Entry>,
}

impl Catalogue {
    /// Path of the file in a data folder.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Reads the catalogue of `dir`; an absent file is an empty one.
    ///
    /// Errors: [`Error::Corruption`] naming file and offset, [`Error::Io`].
    pub fn read(dir: &Path) -> Result<Catalogue> {
        let path = Catalogue::path(dir);
        match fs::read_if_present(&path)? {
            Some(bytes) => Catalogue::decode(&bytes).map_err(|(offset, what)| Error::corruption(path, offset, what)),
            None => Ok(Catalogue::default()),
        }
    }

    /// Replaces the catalogue of `dir`, durably. Blocking.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::write_file_atomic(&Catalogue::path(dir), &self.encode())
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        let number = |payload: &mut Vec<u8>, number: usize| payload.extend_from_slice(&(number as u32).to_le_bytes());
        number(&mut payload, self.next_number as usize);
        number(&mut payload, self.keyspaces.len());
        for (name, entry) in &self.keyspaces {
            number(&mut payload, entry.number as usize);
            number(&mut payload, name.len());
            payload.extend_from_slice(name.as_bytes());
            let (kind, splits): (u8, &[Bytes]) = match &entry.partitioning {
                Partitioning::Single => (0, &[]),
                Partitioning::Hash { .. } => (1, &[]),
                Partitioning::Range { splits } => (2, splits),
            };
            payload.push(kind);
            number(&mut payload, entry.partitioning.partitions());
            for split in splits {
                number(&mut payload, split.len());
                payload.extend_from_slice(split);
            }
            let operator = entry.merge_operator.as_deref().unwrap_or_default();
            number(&mut payload, operator.len());
            payload.extend_from_slice(operator.as_bytes());
        }
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &payload);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&payload);
        bytes
    }

    /// Decodes a file; an error says where and what is wrong.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Catalogue, (u64, String)> {
        let Some((header, payload)) = bytes.split_at_checked(HEADER_LEN) else {
            return Err((0, format!("{} bytes are fewer than a header", bytes.len())));
        };
        if header[..8] != MAGIC {
            return Err((0, "no list of keyspaces (wrong magic)".into()));
        }
        if header[8] != VERSION {
            return Err((8, format!("version {}, this build reads {VERSION}", header[8])));
        }
        let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if field(12) as usize != payload.len() {
            return Err((12, format!("payload of {} bytes, header says {}", payload.len(), field(12))));
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..16]), payload);
        if crc != field(16) {
            return Err((16, format!("checksum {crc:08x}, header says {:08x}", field(16))));
        }
        let mut reader = Reader { rest: payload };
        let catalogue = reader.catalogue();
        let offset = (bytes.len() - reader.rest.len()) as u64;
        catalogue.map_err(|what| (offset, what))
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> std::result::Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or("ends early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> std::result::Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&mut self) -> std::result::Result<&'a [u8], String> {
        let len = self.number()? as usize;
        self.take(len)
    }

    fn text(&mut self) -> std::result::Result<String, String> {
        String::from_utf8(self.string()?.to_vec()).map_err(|_| "a name is not UTF-8".into())
    }

    fn catalogue(&mut self) -> std::result::Result<Catalogue, String> {
        let next_number = self.number()?;
        let count = self.number()?;
        let mut keyspaces = BTreeMap::new();
        for _ in 0..count {
            let (name, entry) = self.entry()?;
            if entry.number >= next_number {
                return Err(format!("keyspace {name:?} has number {}, the next is {next_number}", entry.number));
            }
            if keyspaces.insert(name.clone(), entry).is_some() {
                return Err(format!("keyspace {name:?} twice"));
            }
        }
        if !self.rest.is_empty() {
            return Err("longer than its keyspaces".into());
        }
        Ok(Catalogue { next_number, keyspaces })
    }

    fn entry(&mut self) -> std::result::Result<(String, Entry), String> {
        let number = self.number()?;
        let name = self.text()?;
        let kind = self.take(1)?[0];
        let partitions = self.number()? as usize;
        if partitions == 0 || partitions > PARTITIONS_MAX {
            return Err(format!("keyspace {name:?} of {partitions} partitions"));
        }
        let partitioning = match kind {
            0 if partitions == 1 => Partitioning::Single,
            1 => Partitioning::Hash { partitions: partitions as u16 },
            2 => {
                let splits = (1..partitions).map(|_| self.string().map(Bytes::copy_from_slice));
                let splits: Vec<Bytes> = splits.collect::<std::result::Result<_, String>>()?;
                if !splits.is_sorted_by(|a, b| a < b) {
                    return Err(format!("split keys of keyspace {name:?} do not rise"));
                }
                Partitioning::Range { splits }
            }
            _ => return Err(format!("keyspace {name:?}: unknown partitioning {kind}")),
        };
        let operator = self.text()?;
        let merge_operator = (!operator.is_empty()).then_some(operator);
        Ok((name, Entry { number, partitioning, merge_operator }))
    }
}

/// What the fuzzer does with bytes: as they are, and as the payload behind a right header.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = Catalogue::decode(data);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), data);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(data);
    if let Ok(catalogue) = Catalogue::decode(&bytes) {
        assert_eq!(Catalogue::decode(&catalogue.encode()), Ok(catalogue), "what was decoded survives another round");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Catalogue {
        let entry = |number, partitioning, operator: Option<&str>| Entry {
            number,
            partitioning,
            merge_operator: operator.map(Into::into),
        };
        let splits = vec![Bytes::from_static(b"f"), Bytes::from_static(b"t")];
        Catalogue {
            next_number: 9,
            keyspaces: BTreeMap::from([
                ("users".to_string(), entry(0, Partitioning::Single, None)),
                ("counts".to_string(), entry(3, Partitioning::Hash { partitions: 8 }, Some("add"))),
                ("names".to_string(), entry(8, Partitioning::Range { splits }, None)),
            ]),
        }
    }

    #[test]
    fn decode_encoded_catalogue_returns_it() {
        assert_eq!(Catalogue::decode(&example().encode()).unwrap(), example());
        assert_eq!(Catalogue::decode(&Catalogue::default().encode()).unwrap(), Catalogue::default());
    }

    #[test]
    fn encode_known_catalogue_gives_golden_bytes() {
        let entry = Entry { number: 2, partitioning: Partitioning::Single, merge_operator: None };
        let catalogue = Catalogue { next_number: 3, keyspaces: BTreeMap::from([("k".to_string(), entry)]) };
        let bytes = catalogue.encode();
        assert_eq!(&bytes[..16], b"ANTBKEYS\x01\0\0\0\x1a\0\0\0");
        let payload = [3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, b'k', 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(&bytes[20..], payload);
    }

    #[test]
    fn decode_newer_version_is_refused_by_name() {
        let mut bytes = example().encode();
        bytes[8] = 2;
        let (offset, what) = Catalogue::decode(&bytes).unwrap_err();
        assert_eq!((offset, what.as_str()), (8, "version 2, this build reads 1"));
    }

    proptest! {
        #[test]
        fn decode_bit_flip_is_refused(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = example().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Catalogue::decode(&bytes).is_err());
        }

        #[test]
        fn decode_payload_of_random_bytes_never_panics(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader { rest: &payload };
            let _ = reader.catalogue();
            prop_assert!(Catalogue::decode(&payload).is_err());
        }
    }
}
