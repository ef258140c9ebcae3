//! The record: what a write leaves behind.

use bytes::Bytes;

use crate::types::{Hlc, Lsn};

/// What a record says of its key. The numbers are part of the formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// The key has this value.
    Put = 1,
    /// The key has no value (tombstone).
    Delete = 2,
    /// No key from this one up to the one in the value has a value (see [`crate::erasure`]).
    RangeDelete = 3,
}

impl TryFrom<u8> for RecordKind {
    type Error = u8;

    fn try_from(byte: u8) -> Result<RecordKind, u8> {
        match byte {
            1 => Ok(RecordKind::Put),
            2 => Ok(RecordKind::Delete),
            3 => Ok(RecordKind::RangeDelete),
            other => Err(other),
        }
    }
}

/// A record that owns its bytes (reference-counted, so that memtable, WAL and mirror share them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Routing key, 1..=32 KiB.
    pub key: Bytes,
    /// Position in the partition's history.
    pub lsn: Lsn,
    /// When it was written, for last-write-wins.
    pub hlc: Hlc,
    /// What the record says.
    pub kind: RecordKind,
    /// Deadline in milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
    /// The value; empty for a tombstone.
    pub value: Bytes,
}

impl Record {
    /// A view of the record.
    #[must_use]
    pub fn view(&self) -> RecordView<'_> {
        RecordView {
            key: &self.key,
            lsn: self.lsn,
            hlc: self.hlc,
            kind: self.kind,
            expires_at_ms: self.expires_at_ms,
            value: &self.value,
        }
    }

    /// Whether a reader at `now_ms` (milliseconds since the Unix epoch) sees a value.
    #[must_use]
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.view().is_live(now_ms)
    }
}

/// A record that borrows its bytes (from a block, a WAL batch or a frame).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Routing key.
    pub key: &'a [u8],
    /// Position in the partition's history.
    pub lsn: Lsn,
    /// When it was written.
    pub hlc: Hlc,
    /// Put or tombstone.
    pub kind: RecordKind,
    /// Deadline in milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
    /// The value; empty for a tombstone.
    pub value: &'a [u8],
}

impl RecordView<'_> {
    /// A copy that owns its bytes. Cost: two allocations.
    #[must_use]
    pub fn to_record(self) -> Record {
        Record {
            key: Bytes::copy_from_slice(self.key),
            lsn: self.lsn,
            hlc: self.hlc,
            kind: self.kind,
            expires_at_ms: self.expires_at_ms,
            value: Bytes::copy_from_slice(self.value),
        }
    }

    /// Whether a reader at `now_ms` sees a value.
    #[must_use]
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.kind == RecordKind::Put && (self.expires_at_ms == 0 || self.expires_at_ms > now_ms)
    }
}
