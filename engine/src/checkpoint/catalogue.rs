//! One backup's list of files. Numbers are little-endian.
//!
//! ```text
//! backups/000001.bak
//! offset  size  field
//!      0     8  magic "ANTBBACK"
//!      8     1  version (1)
//!      9     3  zero
//!     12     4  length of the payload
//!     16     4  crc32c of bytes 0..16 and of the payload
//!     20     -  payload: when it was taken (u64, milliseconds since the Unix epoch),
//!                 number of small files (u32), for each: path (string), content (string),
//!                 number of tables (u32), for each: path (string), name in `tables/` (string), length (u64)
//!               string: length (u32), bytes; paths are relative to the data folder
//! ```

/// What a backup holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackupCatalogue {
    pub taken_ms: u64,
    /// Manifests and the list of keyspaces, whole.
    pub small: Vec<(String, Vec<u8>)>,
    pub tables: Vec<StoredTable>,
}

/// A table file in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTable {
    /// Where it goes in a data folder.
    pub path: String,
    /// Its name in the repository.
    pub name: String,
    pub len: u64,
}

const MAGIC: [u8; 8] = *b"ANTBBACK";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 20;

impl BackupCatalogue {
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = self.taken_ms.to_le_bytes().to_vec();
        payload.extend_from_slice(&(self.small.len() as u32).to_le_bytes());
        for (path, content) in &self.small {
            put_string(&mut payload, path.as_bytes());
            put_string(&mut payload, content);
        }
        payload.extend_from_slice(&(self.tables.len() as u32).to_le_bytes());
        for table in &self.tables {
            put_string(&mut payload, table.path.as_bytes());
            put_string(&mut payload, table.name.as_bytes());
            payload.extend_from_slice(&table.len.to_le_bytes());
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

    /// Decodes a file; an error says where and what is wrong. A path that leads out of the folder is wrong.
    pub fn decode(bytes: &[u8]) -> Result<BackupCatalogue, (u64, String)> {
        let Some((header, payload)) = bytes.split_at_checked(HEADER_LEN) else {
            return Err((0, format!("{} bytes are fewer than a header", bytes.len())));
        };
        if header[..8] != MAGIC {
            return Err((0, "no backup's list (wrong magic)".into()));
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
        catalogue.map_err(|what| ((bytes.len() - reader.rest.len()) as u64, what))
    }
}

fn put_string(payload: &mut Vec<u8>, string: &[u8]) {
    payload.extend_from_slice(&(string.len() as u32).to_le_bytes());
    payload.extend_from_slice(string);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or("ends early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn small(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut field = [0; 8];
        field.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(field))
    }

    fn string(&mut self) -> Result<&'a [u8], String> {
        let len = self.small()? as usize;
        self.take(len)
    }

    /// A relative path of plain names.
    fn path(&mut self) -> Result<String, String> {
        let path = String::from_utf8(self.string()?.to_vec()).map_err(|_| "a path is not UTF-8")?;
        let plain = |name: &str| !name.is_empty() && name != "." && name != "..";
        if path.split('/').all(plain) { Ok(path) } else { Err(format!("path {path:?} leads out of the folder")) }
    }

    fn catalogue(&mut self) -> Result<BackupCatalogue, String> {
        let taken_ms = self.number()?;
        let (mut small, mut tables) = (Vec::new(), Vec::new());
        for _ in 0..self.small()? {
            small.push((self.path()?, self.string()?.to_vec()));
        }
        for _ in 0..self.small()? {
            tables.push(StoredTable { path: self.path()?, name: self.path()?, len: self.number()? });
        }
        if !self.rest.is_empty() {
            return Err("longer than its files".into());
        }
        Ok(BackupCatalogue { taken_ms, small, tables })
    }
}

/// What the fuzzer does with bytes: as they are, and as the payload behind a right header.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = BackupCatalogue::decode(data);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), data);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(data);
    if let Ok(catalogue) = BackupCatalogue::decode(&bytes) {
        assert_eq!(
            BackupCatalogue::decode(&catalogue.encode()),
            Ok(catalogue),
            "what was decoded survives another round"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> BackupCatalogue {
        let table = |path: &str, name: &str, len| StoredTable { path: path.into(), name: name.into(), len };
        BackupCatalogue {
            taken_ms: 77,
            small: vec![("KEYSPACES".into(), vec![1, 2, 3]), ("shard-000/CURRENT".into(), b"MANIFEST-000001".to_vec())],
            tables: vec![table("shard-000/000000000001.tab", "00ff", 4096), table("shard-001/a.tab", "ab", 1)],
        }
    }

    #[test]
    fn decode_encoded_catalogue_returns_it() {
        assert_eq!(BackupCatalogue::decode(&example().encode()).unwrap(), example());
    }

    #[test]
    fn encode_empty_catalogue_gives_golden_bytes() {
        let bytes = BackupCatalogue { taken_ms: 5, ..BackupCatalogue::default() }.encode();
        assert_eq!(&bytes[..16], b"ANTBBACK\x01\0\0\0\x10\0\0\0");
        assert_eq!(&bytes[20..], [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn decode_path_out_of_the_folder_is_refused() {
        for path in ["../x", "/etc/passwd", "a/../../b", ""] {
            let bytes = BackupCatalogue { small: vec![(path.into(), Vec::new())], ..example() }.encode();
            let (_, what) = BackupCatalogue::decode(&bytes).unwrap_err();
            assert!(what.contains("leads out"), "{what}");
        }
    }

    proptest! {
        #[test]
        fn decode_bit_flip_is_refused(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = example().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(BackupCatalogue::decode(&bytes).is_err());
        }

        #[test]
        fn decode_payload_of_random_bytes_never_panics(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Reader { rest: &payload }.catalogue();
        }
    }
}
