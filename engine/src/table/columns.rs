//! Records as columns: what archives of blocks and of record batches hold.

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use crate::error::{Error, Result};
use crate::record::{RecordKind, RecordView};
use crate::types::{Hlc, Lsn};

/// Columns of records; the archive's root. The field order is the format.
#[derive(Archive, Serialize, Debug, Default)]
pub(crate) struct Columns {
    /// Keys, one after another.
    pub key_bytes: Vec<u8>,
    /// End of each key in `key_bytes`.
    pub key_ends: Vec<u32>,
    /// Values, one after another.
    pub value_bytes: Vec<u8>,
    /// End of each value in `value_bytes`.
    pub value_ends: Vec<u32>,
    /// LSN of each record.
    pub lsns: Vec<u64>,
    /// Timestamp of each record.
    pub hlcs: Vec<u64>,
    /// Deadlines in milliseconds; empty when no record of the block has one.
    pub expiries: Vec<u64>,
    /// [`RecordKind`] of each record.
    pub kinds: Vec<u8>,
}

impl Columns {
    pub fn len(&self) -> usize {
        self.lsns.len()
    }

    pub fn push(&mut self, record: RecordView<'_>) {
        self.key_bytes.extend_from_slice(record.key);
        self.key_ends.push(self.key_bytes.len() as u32);
        self.value_bytes.extend_from_slice(record.value);
        self.value_ends.push(self.value_bytes.len() as u32);
        if record.expires_at_ms != 0 && self.expiries.is_empty() {
            self.expiries.resize(self.lsns.len(), 0);
        }
        if record.expires_at_ms != 0 || !self.expiries.is_empty() {
            self.expiries.push(record.expires_at_ms);
        }
        self.lsns.push(record.lsn.0);
        self.hlcs.push(record.hlc.0);
        self.kinds.push(record.kind as u8);
    }

    pub fn clear(&mut self) {
        self.key_bytes.clear();
        self.key_ends.clear();
        self.value_bytes.clear();
        self.value_ends.clear();
        self.lsns.clear();
        self.hlcs.clear();
        self.expiries.clear();
        self.kinds.clear();
    }

    /// Bytes the archive will have, but for its fixed part.
    pub fn estimated_len(&self) -> usize {
        self.key_bytes.len() + self.value_bytes.len() + self.len() * 25 + self.expiries.len() * 8 + 64
    }

    pub fn archive(&self) -> Result<AlignedVec> {
        rkyv::to_bytes::<rancor::Error>(self)
            .map_err(|cause| Error::Invalid { what: format!("records do not fit an archive: {cause}") })
    }
}

/// Checks an archive's structure and meaning: ends rise and end where the bytes do, columns are equally long, kinds
/// exist, no key is empty.
pub(crate) fn check_columns(bytes: &[u8]) -> std::result::Result<&ArchivedColumns, String> {
    let columns = rkyv::access::<ArchivedColumns, rancor::Error>(bytes).map_err(|cause| cause.to_string())?;
    let count = columns.lsns.len();
    let lengths = [columns.key_ends.len(), columns.value_ends.len(), columns.hlcs.len(), columns.kinds.len()];
    if lengths.iter().any(|len| *len != count) || !(columns.expiries.is_empty() || columns.expiries.len() == count) {
        return Err(format!("columns of unequal length: {count} LSNs against {lengths:?}"));
    }
    let rises = |ends: &[rkyv::rend::u32_le], total: usize, step_min: u32| {
        let mut previous = 0;
        ends.iter().all(|end| {
            let step = end.to_native().checked_sub(previous);
            previous = end.to_native();
            step.is_some_and(|step| step >= step_min)
        }) && previous as usize == total
    };
    if !rises(&columns.key_ends, columns.key_bytes.len(), 1) {
        return Err("key ends do not rise to the length of the key bytes".into());
    }
    if !rises(&columns.value_ends, columns.value_bytes.len(), 0) {
        return Err("value ends do not rise to the length of the value bytes".into());
    }
    if let Some(kind) = columns.kinds.iter().find(|kind| RecordKind::try_from(**kind).is_err()) {
        return Err(format!("unknown record kind {kind}"));
    }
    Ok(columns)
}

impl ArchivedColumns {
    pub(crate) fn key(&self, index: usize) -> &[u8] {
        slice_of(&self.key_bytes, &self.key_ends, index)
    }

    pub(crate) fn record(&self, index: usize) -> RecordView<'_> {
        RecordView {
            key: self.key(index),
            lsn: Lsn(self.lsns[index].to_native()),
            hlc: Hlc(self.hlcs[index].to_native()),
            kind: kind_of(self.kinds[index]),
            expires_at_ms: self.expiries.get(index).map_or(0, |expiry| expiry.to_native()),
            value: slice_of(&self.value_bytes, &self.value_ends, index),
        }
    }
}

/// The kind of a record of columns that were checked.
fn kind_of(byte: u8) -> RecordKind {
    RecordKind::try_from(byte).unwrap_or_else(|byte| unreachable!("INV-BLOCK: kind {byte} in a checked block"))
}

fn slice_of<'a>(bytes: &'a [u8], ends: &[rkyv::rend::u32_le], index: usize) -> &'a [u8] {
    let start = if index == 0 { 0 } else { ends[index - 1].to_native() as usize };
    &bytes[start..ends[index].to_native() as usize]
}
