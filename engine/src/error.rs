//! The one error type of the engine.

use std::path::PathBuf;
use std::sync::Arc;

use crate::types::{AttemptId, Epoch, HostId, PartitionId, SegmentId};

/// What can go wrong in the engine. Cheap to clone, so that one failed batch can answer all its writers.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key is empty or too long.
    #[error("key of {len} bytes: a key has 1 to {max} bytes")]
    KeyLength {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The value is too long.
    #[error("value of {len} bytes: a value has at most {max} bytes")]
    ValueLength {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The batch is too large.
    #[error("batch of {len} bytes: a batch has at most {max} bytes")]
    BatchLength {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The key does not belong to the partition.
    #[error("key outside partition {partition}: route it by the partition table")]
    WrongPartition {
        /// The partition asked.
        partition: PartitionId,
    },
    /// No such partition on this host.
    #[error("partition {partition} is not on this host")]
    UnknownPartition {
        /// The partition asked.
        partition: PartitionId,
    },
    /// The partition is served by another host now.
    #[error("partition {partition} moved to host {owner} in epoch {epoch}")]
    Moved {
        /// The partition asked.
        partition: PartitionId,
        /// Its owner.
        owner: HostId,
        /// The epoch of the owner.
        epoch: Epoch,
    },
    /// The partition is a shadow: it does not serve clients yet.
    #[error("partition {partition} is a shadow of attempt {attempt} and does not serve yet")]
    NotOwner {
        /// The partition asked.
        partition: PartitionId,
        /// The attempt that fills it.
        attempt: AttemptId,
        /// It is the source's equal and will be promoted or discarded in a moment.
        ready: bool,
    },
    /// A frame, token or request of an older epoch or a closed attempt: nothing was changed.
    #[error("partition {partition}: stale {what}")]
    Stale {
        /// The partition asked.
        partition: PartitionId,
        /// What was stale, for the log.
        what: String,
    },
    /// A read needs a segment that this host does not hold yet and cannot fetch: see [`crate::partition`]'s filling. Writes
    /// and other keys are served.
    #[error("segment {segment} of partition {partition} is not on this host yet and cannot be fetched: {what}")]
    OutOfReach {
        /// The partition asked.
        partition: PartitionId,
        /// The segment that is missing.
        segment: SegmentId,
        /// Why, and where it is.
        what: String,
    },
    /// No such segment.
    #[error("partition {partition} has no segment {segment}")]
    UnknownSegment {
        /// The partition asked.
        partition: PartitionId,
        /// The segment asked.
        segment: SegmentId,
    },
    /// The shard's WAL or manifest failed; it accepts no writes until the process is restarted.
    #[error("shard is read-only since its log or manifest failed: {cause}; check the device, then restart")]
    ReadOnly {
        /// The first failure.
        cause: Arc<str>,
    },
    /// The shard's memtables are full and cannot be flushed. Nothing of the write took place; writes pass again as soon as a
    /// flush works, which is tried twice a second.
    #[error("no room for writes: memory is full and cannot be flushed: {cause}; free space on the device, or check it")]
    NoRoom {
        /// Why the last flush failed.
        cause: Arc<str>,
    },
    /// Bytes on disk or from a peer that are not what was written.
    #[error("corruption in {}, offset {offset}: {what}", path.display())]
    Corruption {
        /// The file (or a name in angle brackets for bytes that came over the network).
        path: PathBuf,
        /// Byte offset of the broken structure.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A file of a format that this build does not know: nothing was changed.
    #[error("{} is a {what} of version {found}, this build knows version {known}: open it with the release that wrote it, or a later one", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What kind of file.
        what: &'static str,
        /// Its version.
        found: u8,
        /// The version of this build.
        known: u8,
    },
    /// An I/O operation failed.
    #[error("{op} {}: {cause}", path.display())]
    Io {
        /// The operation.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        cause: Arc<std::io::Error>,
    },
    /// The machine cannot run the engine as configured.
    #[error("cannot start: {what}")]
    Environment {
        /// The likely cause and what to change.
        what: String,
    },
    /// Another process holds the data folder.
    #[error("{} is in use by another process (or its last writes are still on their way); stop it and retry", path.display())]
    Locked {
        /// The data folder.
        path: PathBuf,
    },
    /// The request contradicts the configuration or the present state.
    #[error("invalid request: {what}")]
    Invalid {
        /// What and why.
        what: String,
    },
    /// The queue is full; retry later.
    #[error("overloaded: {what}")]
    Overloaded {
        /// Which queue.
        what: &'static str,
    },
    /// A merge operator refused an operand or a value; nothing was written.
    #[error("merge operator {operator:?}: {what}")]
    Merge {
        /// The operator.
        operator: String,
        /// What it says.
        what: String,
    },
    /// A keyspace names a merge operator that this engine was opened without.
    #[error("merge operator {name:?} is not registered: register it before the engine is opened")]
    UnknownMergeOperator {
        /// The name.
        name: String,
    },
    /// No such keyspace.
    #[error("no keyspace {name:?}: create it first")]
    UnknownKeyspace {
        /// The name.
        name: String,
    },
    /// A batch names keys of several partitions; nothing was written.
    #[error("batch spans partitions of keyspace {keyspace:?}: it is atomic within one partition only")]
    SpansPartitions {
        /// The keyspace.
        keyspace: String,
    },
    /// The engine is closing or closed.
    #[error("engine is closed")]
    Closed,
}

impl Error {
    /// An [`Error::Io`] from the operating system's error.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, cause: std::io::Error) -> Error {
        Error::Io { op, path: path.into(), cause: Arc::new(cause) }
    }

    /// An [`Error::Corruption`].
    pub fn corruption(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Error {
        Error::Corruption { path: path.into(), offset, what: what.into() }
    }
}

/// Result of the engine.
pub type Result<T> = std::result::Result<T, Error>;
