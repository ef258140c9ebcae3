//! What an embedder chooses.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use antumbra_predictor::model::Model;

use crate::error::{Error, Result};
use crate::governor::Governor;
use crate::io::direct::BLOCK_BYTES;
use crate::merge_operator::MergeOperators;
use crate::types::HostId;

/// How a write is acknowledged.
///
/// # Example
/// ```
/// use antumbra_engine::Durability;
/// assert_eq!(Durability::default(), Durability::Durable);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// On the device (and, under a synchronous mirror, at the target) before the acknowledgement.
    #[default]
    Durable,
    /// In the WAL's queue; on the device with the next group commit. A crash may lose the last moments.
    Buffered,
    /// In the memtable only, not in the WAL; on the device once the memtable has been flushed, at the latest when the
    /// engine is closed. A crash loses what was not flushed, also where later writes of another level survive: the
    /// history then lacks these records. While a move of the partition is under way the write is logged and mirrored like
    /// a `Buffered` one.
    Memory,
}

/// How data blocks are stored.
///
/// # Example
/// ```
/// use antumbra_engine::{Compression, KeyspaceOptions};
/// let options = KeyspaceOptions::new().compression(Compression::Zstd);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// By zstd, with a dictionary trained for each table: less space and fewer bytes read, for a few microseconds a block
    /// that is not in the cache.
    Zstd,
}

/// How much a read brings at a time when it has to ask the device.
///
/// # Example
/// ```no_run
/// use antumbra_engine::{Engine, ReadAhead};
/// let engine = Engine::builder("data").read_ahead(ReadAhead::Wide).open()?; // keys are read in their order
/// # Ok::<(), antumbra_engine::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadAhead {
    /// A get brings one block; a scan one at first, and more with each read while it goes on.
    #[default]
    Growing,
    /// 64 KiB, gets and scans alike, in segments to which the predictor sees accesses come: more than to others, and more
    /// than there were. That is a front of reads that moves through the keys. Elsewhere as `Growing`.
    Expected,
    /// 64 KiB everywhere: the rival of `Expected`, for loads that read keys in their order and do nothing else.
    Wide,
}

/// Which of the segments that need compaction comes first. One that flushes wait for does in any case.
///
/// # Example
/// ```no_run
/// use antumbra_engine::{CompactionOrder, Engine};
/// let engine = Engine::builder("data").compaction_order(CompactionOrder::Expected).open()?;
/// # Ok::<(), antumbra_engine::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompactionOrder {
    /// The one with the most tables.
    #[default]
    Slices,
    /// The one whose expected accesses, by the predictor, are spared the most tables for each byte that is rewritten.
    Expected,
}

/// Options of one partition; part of its manifest.
///
/// # Example
/// ```
/// use antumbra_engine::{Compression, PartitionOptions};
/// let options = PartitionOptions { compression: Compression::Zstd, ..PartitionOptions::default() };
/// assert_eq!(options.block_bytes, 4 << 10);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionOptions {
    /// Segments are split above twice this size and merged below a quarter of it, in bytes.
    pub segment_target_bytes: u64,
    /// Uncompressed size that a data block is closed at, in bytes: as much is read, checked and kept for a key that is not in
    /// memory. Range reads of large data are faster with more, by little.
    pub block_bytes: u32,
    /// How blocks are stored.
    pub compression: Compression,
}

impl Default for PartitionOptions {
    fn default() -> PartitionOptions {
        PartitionOptions { segment_target_bytes: 4 << 20, block_bytes: 4 << 10, compression: Compression::None }
    }
}

/// Configuration of an engine.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// use antumbra_engine::{Engine, EngineConfig};
/// let config = EngineConfig { shards: 2, memory_budget_bytes: 64 << 20, ..EngineConfig::new(dir.path()) };
/// config.check()?;
/// let engine = Engine::open(config)?;
/// assert_eq!(engine.shards(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Data folder; created when missing.
    pub dir: PathBuf,
    /// This host's id, stamped on nothing but moves.
    pub host: HostId,
    /// Threads. Each serves at least one shard; a folder that has more shards keeps them, several to a thread.
    pub shards: usize,
    /// Pin thread `i` to CPU `first_cpu + i`; `None` leaves placement to the kernel.
    pub first_cpu: Option<usize>,
    /// How long an idle shard polls before it sleeps. Zero suits machines that share their cores.
    pub spin: Duration,
    /// How long the tasks of a queue may run before those of others get their turn, unless something from outside comes
    /// first. A turn costs some 25 us of system calls.
    pub preempt: Duration,
    /// Size of one WAL file, in bytes: whole blocks of 4,096.
    pub wal_file_bytes: u64,
    /// Bytes of memory for everything that grows with the data: memtables, cached and resident blocks, indexes and
    /// filters of open tables, buffers of the log. Divided evenly over the shards. Enforced: writers wait when memtables
    /// reach their share, and cached blocks give way to everything else. The process itself (code, stacks, rings, model)
    /// takes some 10 MiB beside it.
    pub memory_budget_bytes: usize,
    /// Length of an access window.
    pub window: Duration,
    /// Weights of the GRU; `None` takes the model that ships with the predictor.
    pub model: Option<Arc<Model>>,
    /// How long to wait for another process to let go of the folder.
    pub lock_timeout: Duration,
    /// The merge operators that keyspaces may name.
    pub merge_operators: Arc<MergeOperators>,
    /// Whether segments that are expected to be read most are mapped and locked in memory when the cache is short.
    pub residency: bool,
    /// How much a read brings at a time.
    pub read_ahead: ReadAhead,
    /// Which segment is compacted first.
    pub compaction_order: CompactionOrder,
    /// Limits of background I/O; [`crate::Engine::open`] sets its rate to what the device was measured to do.
    pub governor: Arc<Governor>,
}

/// Smallest WAL file: a record of the largest value must fit.
pub const WAL_FILE_BYTES_MIN: u64 = 32 << 20;
/// Smallest memory budget.
pub const MEMORY_BUDGET_BYTES_MIN: usize = 16 << 20;

/// Memory of a shard's budget that is left to the holes of the heap at most.
const HOLES_BYTES_MAX: usize = 6 << 20;
/// Memtables of a shard below which data is rewritten too often.
const MEMTABLE_BYTES_WANTED: usize = 16 << 20;

impl EngineConfig {
    /// The defaults for data in `dir`.
    pub fn new(dir: impl AsRef<Path>) -> EngineConfig {
        EngineConfig {
            dir: dir.as_ref().to_path_buf(),
            host: HostId(1),
            shards: 1,
            first_cpu: None,
            spin: Duration::ZERO,
            preempt: Duration::from_micros(500),
            wal_file_bytes: 64 << 20,
            memory_budget_bytes: 256 << 20,
            window: Duration::from_secs(1),
            model: None,
            lock_timeout: Duration::from_secs(10),
            merge_operators: Arc::default(),
            residency: true,
            read_ahead: ReadAhead::default(),
            compaction_order: CompactionOrder::default(),
            governor: Arc::default(),
        }
    }

    /// Checks the values against each other.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first value that cannot work.
    pub fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::Invalid { what });
        if self.shards == 0 || self.shards > usize::from(u16::MAX) {
            return invalid(format!("shards = {}: an engine has 1 to 65535", self.shards));
        }
        if self.wal_file_bytes < WAL_FILE_BYTES_MIN {
            return invalid(format!("wal_file_bytes = {}: at least {WAL_FILE_BYTES_MIN}", self.wal_file_bytes));
        }
        if !self.wal_file_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return invalid(format!("wal_file_bytes = {}: a multiple of {BLOCK_BYTES}", self.wal_file_bytes));
        }
        if self.memory_budget_bytes < MEMORY_BUDGET_BYTES_MIN {
            return invalid(format!(
                "memory_budget_bytes = {}: at least {MEMORY_BUDGET_BYTES_MIN}",
                self.memory_budget_bytes
            ));
        }
        if self.window < Duration::from_millis(10) {
            return invalid(format!("window = {:?}: at least 10 ms", self.window));
        }
        Ok(())
    }

    /// Bytes that the memtables of one shard may hold: an eighth of its memory, and of little memory up to a quarter, because
    /// how often data is rewritten goes with data over memtables.
    pub(crate) fn memtable_budget_bytes(&self) -> usize {
        let share = self.memory_budget_bytes / self.shards;
        (share / 8).max(MEMTABLE_BYTES_WANTED.min(share / 4))
    }

    /// Bytes at which one partition's memtable is closed, so that the next one fills while it is flushed.
    pub(crate) fn memtable_bytes_max(&self) -> usize {
        self.memtable_budget_bytes() / 2
    }

    /// Bytes at which a batch of the log makes writers wait; three of them fit the share for buffers. A batch is sealed in
    /// one go, so it is never large.
    pub(crate) fn wal_batch_bytes(&self) -> usize {
        (self.memory_budget_bytes / self.shards / 128).min(1 << 20)
    }

    /// Bytes that one compaction may hold of its sources at a time.
    pub(crate) fn read_ahead_bytes(&self) -> usize {
        (self.memory_budget_bytes / self.shards / 64).min(4 << 20)
    }

    /// Bytes that log batches being filled and in flight, and tables being read and written, take of one shard.
    fn buffer_bytes(&self) -> usize {
        self.memory_budget_bytes / self.shards / 16
    }

    /// Bytes of them that are kept to be used again.
    pub(crate) fn idle_buffer_bytes(&self) -> usize {
        self.buffer_bytes().min(4 << 20)
    }

    /// Bytes that blocks, indexes, filters and memtables of one shard may take together: what buffers and the heap's holes
    /// leave. Blocks give way to the rest, so memory that memtables do not use is the cache's.
    pub(crate) fn cache_budget_bytes(&self) -> usize {
        let share = self.memory_budget_bytes / self.shards;
        let buffers = self.buffer_bytes();
        // The heap keeps holes between what lives. They come from the metadata of tables and from buffers under way: with
        // more memory there are not more of either for each shard.
        let holes = (share / 16).min(HOLES_BYTES_MAX);
        share - buffers - holes
    }

    /// Bytes that the hot rows of one shard may take.
    pub(crate) fn rows_budget_bytes(&self) -> usize {
        self.memory_budget_bytes / self.shards / 32
    }

    /// Bytes that resident tables of one shard may take: half of what full memtables leave.
    pub(crate) fn resident_budget_bytes(&self) -> usize {
        (self.cache_budget_bytes() - self.memtable_budget_bytes()) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_log_files_that_cannot_work_are_refused_by_name() {
        let refused = |bytes: u64| {
            let mut config = EngineConfig::new("data");
            config.wal_file_bytes = bytes;
            config.check().err().map(|cause| cause.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(64 << 20), "");
        assert!(refused(1 << 20).contains("wal_file_bytes = 1048576: at least"), "{}", refused(1 << 20));
        assert!(refused((64 << 20) + 1).contains("a multiple of 4096"), "{}", refused((64 << 20) + 1));
    }
}
