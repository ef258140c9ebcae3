//! What the fuzzer does with the bytes of tables and of records on the wire. Checksums are made right first: what is to
//! be found lies behind them.

use std::path::Path;

use futures_lite::future::block_on;

use crate::memory::AlignedBytes;
use crate::record::Record;
use crate::types::Lsn;

use super::block::VerifiedBlock;
use super::cache::NoCache;
use super::footer::{FOOTER_LEN, Footer};
use super::index::LoadedIndex;
use super::reader::{HashedKey, TableReader};
use super::{decode_records, encode_records, filter, verify_image};

fn aligned(bytes: &[u8]) -> AlignedBytes {
    let mut aligned = AlignedBytes::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    aligned
}

/// A data block.
pub(crate) fn block(data: &[u8]) {
    let Ok(block) = VerifiedBlock::new(aligned(data), crc32c::crc32c(data)) else {
        return;
    };
    for index in 0..block.len() {
        let record = block.record(index);
        assert!(block.seek(record.key) <= index, "seek stops at the key or before");
        let found = block.find(record.key, filter::key_hash(record.key), record.lsn);
        assert_eq!(found, Some(index), "a verified block finds each of its records");
    }
    assert!(block.seek(&[]) == 0);
}

/// The index of a table whose data is as long as the first four bytes say.
pub(crate) fn index(data: &[u8]) {
    let Some((len, bytes)) = data.split_first_chunk::<4>() else {
        return;
    };
    let data_len = u64::from(u32::from_le_bytes(*len));
    let Ok(index) = LoadedIndex::decode(&aligned(bytes), data_len) else {
        return;
    };
    for block in 0..index.len() {
        let entry = index.entry(block);
        assert!(entry.offset + entry.len as u64 <= data_len, "a block lies within the table");
        assert_eq!(index.block_for(index.last_key(block)), block, "a block holds its last key");
    }
}

/// A footer.
pub(crate) fn footer(data: &[u8]) {
    let Some((bytes, len)) = data.split_first_chunk::<FOOTER_LEN>() else {
        return;
    };
    let mut bytes = *bytes;
    let _ = Footer::decode(&bytes, 4096);
    let crc = crc32c::crc32c(&bytes[..FOOTER_LEN - 4]);
    bytes[FOOTER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    let len = len.first_chunk::<4>().map_or(4096, |len| u64::from(u32::from_le_bytes(*len)));
    if let Ok(footer) = Footer::decode(&bytes, len) {
        let again = Footer::decode(&footer.encode(), len);
        assert_eq!(again.map(|footer| footer.encode()), Ok(footer.encode()));
    }
}

/// A whole table: as it is, and with the checksums of footer, index and filter made right.
pub(crate) fn image(data: &[u8]) {
    let _ = block_on(verify_image(data));
    let Some(footer_at) = data.len().checked_sub(FOOTER_LEN) else {
        return;
    };
    let mut bytes = data.to_vec();
    seal_footer(&mut bytes, footer_at);
    if let Ok(footer) = Footer::decode(&bytes[footer_at..], data.len() as u64) {
        for (part, at) in [(footer.index, 28), (footer.filter, 44)] {
            let crc = crc32c::crc32c(&bytes[part.offset as usize..part.offset as usize + part.len as usize]);
            bytes[footer_at + at..footer_at + at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        seal_footer(&mut bytes, footer_at);
    }
    let _ = block_on(verify_image(&bytes));
    let opened = TableReader::open(&bytes[..], 0, bytes.len() as u64, Path::new("<image>"));
    if let Ok(reader) = block_on(opened) {
        for key in [&b""[..], b"k", &bytes[..bytes.len().min(9)]] {
            for read_bytes in [1, 64 << 10] {
                let _ = block_on(reader.get(HashedKey::from(key), Lsn(u64::MAX), &NoCache, read_bytes));
            }
        }
    }
}

fn seal_footer(bytes: &mut [u8], footer_at: usize) {
    let total_len = bytes.len() as u64;
    let footer = &mut bytes[footer_at..];
    footer[96..104].copy_from_slice(&total_len.to_le_bytes());
    let crc = crc32c::crc32c(&footer[..FOOTER_LEN - 4]);
    footer[FOOTER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// A filter.
pub(crate) fn filter(data: &[u8]) {
    if filter::is_valid_len(data.len()) {
        for key in [&b"a"[..], data.get(..7).unwrap_or_default()] {
            let _ = filter::may_contain(data, filter::key_hash(key));
        }
    }
}

/// Records on the wire: as they are, and with length and checksum made right.
pub(crate) fn records(data: &[u8]) {
    const HEADER_LEN: usize = 16;
    let _ = decode_records(data);
    if data.len() < HEADER_LEN {
        return;
    }
    let mut bytes = data.to_vec();
    let len = (data.len() - HEADER_LEN) as u32;
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[HEADER_LEN..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    if let Ok(records) = decode_records(&bytes) {
        let again = encode_records(records.iter().map(Record::view)).and_then(|bytes| decode_records(&bytes));
        assert_eq!(again.ok(), Some(records), "what was decoded survives another round");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use crate::record::RecordKind;
    use crate::table::{TableBuilder, TableOptions};
    use crate::types::Hlc;

    use super::*;

    /// Inputs that are accepted.
    pub(crate) fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let records: Vec<Record> = (0..40_u64)
            .map(|number| Record {
                key: format!("key-{:02}", number / 2).into(),
                lsn: Lsn(100 - number),
                hlc: Hlc(number),
                kind: if number % 7 == 0 { RecordKind::Delete } else { RecordKind::Put },
                expires_at_ms: if number % 5 == 0 { 9 } else { 0 },
                value: if number % 7 == 0 { bytes::Bytes::new() } else { format!("value {number}").into() },
            })
            .collect();
        let mut builder = TableBuilder::new(TableOptions { block_bytes: 300, ..TableOptions::default() });
        records.iter().for_each(|record| builder.add(record.view()).unwrap());
        let table = builder.finish().unwrap().bytes;
        let (data, footer) = table.split_at(table.len() - FOOTER_LEN);
        let parts = Footer::decode(footer, table.len() as u64).unwrap();
        let part = |offset: u64, len: u32| data[offset as usize..offset as usize + len as usize].to_vec();
        let filter = part(parts.filter.offset, parts.filter.len);
        let index = part(parts.index.offset, parts.index.len);
        let loaded = LoadedIndex::decode(&aligned(&index), parts.filter.offset).unwrap();
        let mut sized = (parts.filter.offset as u32).to_le_bytes().to_vec();
        sized.extend_from_slice(&index);
        let mut measured = footer.to_vec();
        measured.extend_from_slice(&(table.len() as u32).to_le_bytes());
        vec![
            ("table-block", "seed", part(0, loaded.entry(0).len as u32)),
            ("table-index", "seed", sized),
            ("table-footer", "seed", measured),
            ("table-filter", "seed", filter),
            ("records", "seed", encode_records(records.iter().map(Record::view)).unwrap()),
            ("table-image", "seed", table),
        ]
    }
}
