//! Edits: the steps in which what a shard holds changes.

use crate::config::Compression;
use crate::erasure::Erasure;
use crate::types::{AttemptId, Epoch, FileId, HostId, KeyRange, Lsn, PartitionId, SegmentId, WalSeq};

/// Who serves a partition, as far as it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This host.
    Owner,
    /// Nobody here: a shadow is being filled.
    Shadow {
        /// The attempt that fills it.
        attempt: AttemptId,
    },
    /// Another host; the data waits to be dropped.
    Released {
        /// The owner.
        owner: HostId,
    },
}

/// Where a table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRef {
    /// The file.
    pub file: FileId,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length, in bytes.
    pub len: u64,
    /// Largest LSN in it.
    pub max_lsn: Lsn,
}

/// A segment and its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentDesc {
    /// Id.
    pub id: SegmentId,
    /// First routing key.
    pub start_key: Vec<u8>,
    /// Base table.
    pub base: Option<TableRef>,
    /// Slices, newest first.
    pub slices: Vec<TableRef>,
    /// Range deletions over the tables. A [`ManifestEdit::ReplaceSegments`] does not carry them: an
    /// [`ManifestEdit::AddErasures`] of the same group does.
    pub erasures: Vec<Erasure>,
}

/// A partition as it is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPartition {
    /// Id.
    pub partition: PartitionId,
    /// Keyspace.
    pub keyspace: String,
    /// Routing keys.
    pub range: KeyRange,
    /// Ownership generation.
    pub epoch: Epoch,
    /// Who serves it.
    pub role: Role,
    /// See `PartitionOptions`.
    pub segment_target_bytes: u64,
    /// See `PartitionOptions`.
    pub block_bytes: u32,
    /// Its segments, ascending by start key; the first starts where the partition does.
    pub segments: Vec<(SegmentId, Vec<u8>)>,
    /// WAL records of this id before this batch belong to an earlier life of the partition.
    pub replay_from: WalSeq,
    /// Where its history stands.
    pub last_lsn: Lsn,
}

/// One change of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestEdit {
    /// A partition appears.
    CreatePartition(NewPartition),
    /// Ownership changed.
    SetRole {
        /// The partition.
        partition: PartitionId,
        /// Who serves it now.
        role: Role,
        /// In which epoch.
        epoch: Epoch,
        /// Where its history stands at least.
        last_lsn: Lsn,
    },
    /// A partition and its data go.
    DropPartition {
        /// The partition.
        partition: PartitionId,
    },
    /// A memtable was flushed.
    AddRun {
        /// The partition.
        partition: PartitionId,
        /// The slices, each on top of its segment.
        slices: Vec<(SegmentId, TableRef)>,
        /// Replay begins at this batch from now on.
        replay_from: WalSeq,
        /// Where its history stands at least.
        last_lsn: Lsn,
    },
    /// Compaction, split, merge or an installed image.
    ReplaceSegments {
        /// The partition.
        partition: PartitionId,
        /// Segments that go; neighbours.
        remove: Vec<SegmentId>,
        /// What takes their place, covering the same keys.
        add: Vec<SegmentDesc>,
    },
    /// Options that a partition was created with, where they are not the defaults of the first version.
    SetOptions {
        /// The partition.
        partition: PartitionId,
        /// How its blocks are stored.
        compression: Compression,
    },
    /// Every record up to an LSN is in tables: replay leaves it out. It comes with the [`ManifestEdit::AddRun`] of a flush.
    /// The batch that replay begins at may hold such records, and a table may have lost them again together with a newer
    /// version or deletion that was in no log.
    Flushed {
        /// The partition.
        partition: PartitionId,
        /// Up to here.
        lsn: Lsn,
    },
    /// Every batch of the log up to here was on the device when the edits beside it were written: a log that ends before it
    /// has lost what was acknowledged. It comes with every group of edits.
    Logged {
        /// Up to this batch; 0 if nothing is known.
        seq: WalSeq,
    },
    /// These segments are not held yet; an attempt is to bring them.
    Missing {
        /// The partition.
        partition: PartitionId,
        /// The attempt.
        attempt: AttemptId,
        /// All that is missing.
        segments: Vec<SegmentId>,
    },
    /// A segment that was missing is held.
    Held {
        /// The partition.
        partition: PartitionId,
        /// The segment.
        segment: SegmentId,
    },
    /// Keys of a segment were deleted by ranges.
    AddErasures {
        /// The partition.
        partition: PartitionId,
        /// The segment; the ranges lie within it.
        segment: SegmentId,
        /// The deletions.
        erasures: Vec<Erasure>,
    },
}

impl ManifestEdit {
    /// The edits that give newly added segments their erasures; to be logged with what adds them.
    pub fn erasures_of<'a>(
        partition: PartitionId,
        segments: impl IntoIterator<Item = &'a SegmentDesc>,
    ) -> impl Iterator<Item = ManifestEdit> {
        let erased = segments.into_iter().filter(|segment| !segment.erasures.is_empty());
        erased.map(move |segment| ManifestEdit::AddErasures {
            partition,
            segment: segment.id,
            erasures: segment.erasures.clone(),
        })
    }
}
