//! How an embedder opens an engine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{CompactionOrder, EngineConfig, ReadAhead};
use crate::error::Result;
use crate::merge_operator::{MergeOperator, MergeOperators};

use super::Engine;

/// Options of an engine, one method each. What is not set has the default of [`EngineConfig::new`].
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let folder = dir.path();
/// use antumbra_engine::{CompactionOrder, Engine, ReadAhead};
/// use std::time::Duration;
/// let mut builder = Engine::builder(folder)
///     .threads(2)
///     .memory_budget(64 << 20)
///     .wal_file(32 << 20)
///     .pin_from(0)
///     .spin(Duration::ZERO)
///     .residency(true)
///     .read_ahead(ReadAhead::Growing)
///     .compaction_order(CompactionOrder::Slices)
///     .lock_timeout(Duration::from_secs(2))
///     .merge_operator("last", |_: &[u8], _: Option<&[u8]>, operand: &[u8]| Ok(operand.to_vec()));
/// builder.config().window = Duration::from_millis(250); // what has no method of its own
/// let engine = builder.open()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct EngineBuilder {
    config: EngineConfig,
}

impl EngineBuilder {
    pub(super) fn new(dir: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder { config: EngineConfig::new(dir) }
    }

    /// Number of threads. A folder may be opened with another number each time.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> EngineBuilder {
        self.config.shards = threads;
        self
    }

    /// Pins thread `i` to CPU `first_cpu + i`.
    #[must_use]
    pub fn pin_from(mut self, first_cpu: usize) -> EngineBuilder {
        self.config.first_cpu = Some(first_cpu);
        self
    }

    /// How long an idle pinned thread polls before it sleeps: lower latency against a busy core.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> EngineBuilder {
        self.config.spin = spin;
        self
    }

    /// The one memory budget, in bytes: memtables, block cache and everything else that grows with the data.
    #[must_use]
    pub fn memory_budget(mut self, bytes: usize) -> EngineBuilder {
        self.config.memory_budget_bytes = bytes;
        self
    }

    /// Size of one file of the write-ahead log, in bytes: whole blocks of 4,096. The largest batch is a little smaller.
    #[must_use]
    pub fn wal_file(mut self, bytes: u64) -> EngineBuilder {
        self.config.wal_file_bytes = bytes;
        self
    }

    /// Whether segments that the predictor expects to be read most stay in memory whole when the cache is short of it. On by
    /// default.
    #[must_use]
    pub fn residency(mut self, on: bool) -> EngineBuilder {
        self.config.residency = on;
        self
    }

    /// How much a read brings at a time when it has to ask the device.
    #[must_use]
    pub fn read_ahead(mut self, read_ahead: ReadAhead) -> EngineBuilder {
        self.config.read_ahead = read_ahead;
        self
    }

    /// Which of the segments that need compaction comes first.
    #[must_use]
    pub fn compaction_order(mut self, order: CompactionOrder) -> EngineBuilder {
        self.config.compaction_order = order;
        self
    }

    /// How long to wait for another process to let go of the folder.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> EngineBuilder {
        self.config.lock_timeout = timeout;
        self
    }

    /// Makes a merge operator known under `name`, beside the built-in ones.
    #[must_use]
    pub fn merge_operator(mut self, name: impl Into<String>, operator: impl MergeOperator) -> EngineBuilder {
        let mut operators = MergeOperators::clone(&self.config.merge_operators);
        operators.register(name, operator);
        self.config.merge_operators = Arc::new(operators);
        self
    }

    /// The configuration as it stands, for what has no method here.
    pub fn config(&mut self) -> &mut EngineConfig {
        &mut self.config
    }

    /// Opens the engine. Blocks until it serves.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open(self) -> Result<Engine> {
        Engine::open(self.config)
    }
}
