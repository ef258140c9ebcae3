//! The engine of one host: shards on threads of their own behind a handle that any runtime can use.

mod builder;
mod directory;
mod entries;
mod partition;
mod snapshot;
mod start;

use std::cell::Cell;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use antumbra_predictor::model::Model;
use futures_channel::oneshot;

use crate::clock;
use crate::config::EngineConfig;
use crate::error::{Error, Result};
use crate::governor::device_rate;
use crate::io::lock::DataLock;
use crate::io::runtime::{self, RuntimeHandle};
use crate::io::{fs, probe};
use crate::keyspace::Keyspaces;
use crate::merge_operator::MergeOperators;
use crate::partition::PartitionStats;
use crate::shard::{PartitionSpec, Shard};
use crate::table::CacheStats;
use crate::types::{Epoch, PartitionId, ShardId};

use start::{ShardSender, Started};

pub use builder::EngineBuilder;
pub(crate) use directory::Directory;
pub use entries::PartitionEntries;
pub use partition::PartitionHandle;
pub use snapshot::PartitionSnapshot;
pub(crate) use start::shard_dir;

/// Work sent to a shard's core.
type Job = Box<dyn FnOnce(Rc<Shard>) + Send>;

thread_local! {
    /// Whether this thread runs shards: it must not wait for them to end.
    static ON_SHARD: Cell<bool> = const { Cell::new(false) };
}

/// Counts and sizes of an engine.
#[doc = example!(r#"let stats = engine.stats().await?;
assert_eq!((stats.shards, stats.partitions.len()), (1, 1));"#)]
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Shards.
    pub shards: usize,
    /// Each partition, by shard and id.
    pub partitions: Vec<PartitionStats>,
    /// Segments of all.
    pub segments: usize,
    /// Bytes in tables.
    pub table_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: usize,
    /// What each shard has used.
    pub used: Vec<ShardUse>,
    /// Number of the last batch of each shard's log that is on the device, added up; what two looks differ by is how many
    /// were written in between.
    pub log_batches: u64,
    /// Bytes of the batches that were written since the engine was opened.
    pub log_bytes: u64,
    /// Block caches.
    pub cache: CacheStats,
}

/// What a shard has used since the engine was opened.
#[doc = example!(r#"let before = engine.stats().await?.used[0];
people.put("ada", "1815").await?;
let now = engine.stats().await?.used[0];
assert!(now.log_bytes > before.log_bytes && now.cpu >= before.cpu);"#)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardUse {
    /// Processor time of its thread.
    pub cpu: Duration,
    /// Bytes of the batches that its log has written.
    pub log_bytes: u64,
}

struct Inner {
    shards: Vec<ShardSender>,
    threads: Mutex<Vec<RuntimeHandle<Result<()>>>>,
    directory: Arc<Directory>,
    dir: PathBuf,
    lock: Mutex<Option<DataLock>>,
    keyspaces: Keyspaces,
    merge_operators: Arc<MergeOperators>,
}

/// An open engine. Cheap to clone; usable from any thread and any runtime. The shards end with [`Engine::close`] or when
/// the last clone is dropped; in either case what was acknowledged is on the device.
///
/// # Example
/// ```
/// use antumbra_engine::{Engine, EngineConfig};
/// # let dir = tempfile::tempdir()?;
/// let config = EngineConfig { memory_budget_bytes: 64 << 20, ..EngineConfig::new(dir.path()) };
/// let engine = Engine::open(config)?; // or by Engine::builder(dir.path()) ... .open()
/// # futures_lite::future::block_on(
/// engine.close()
/// # )?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("dir", &self.inner.dir).field("shards", &self.inner.shards.len()).finish()
    }
}

impl Engine {
    /// Opens the data folder, recovers what it holds and starts the shards. Blocks until they serve.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a configuration that cannot work, [`Error::Environment`] when the machine lacks io_uring
    /// or locked memory, [`Error::Locked`] while another process holds the folder (or its last writes are still on
    /// their way), [`Error::Corruption`] with file and offset, [`Error::Io`].
    pub fn open(config: EngineConfig) -> Result<Engine> {
        let merge_operators = Arc::clone(&config.merge_operators);
        config.check()?;
        probe()?;
        fs::create_dir(&config.dir)?;
        let lock = DataLock::acquire(&config.dir, config.lock_timeout)?;
        config.governor.set_rate(device_rate(&config.dir)?);
        let model = match &config.model {
            Some(model) => Arc::clone(model),
            None => Arc::new(Model::shipped().map_err(|cause| Error::Invalid { what: cause.to_string() })?),
        };
        let keyspaces = Keyspaces::read(config.dir.clone())?;
        let (dir, directory) = (config.dir.clone(), Arc::new(Directory::default()));
        let mut started = Started::default();
        let result = start::start(config, &model, &directory, &mut started);
        let Started { shards, threads } = started;
        let (threads, lock) = (Mutex::new(threads), Mutex::new(Some(lock)));
        let inner = Inner { shards, threads, directory, dir, lock, keyspaces, merge_operators };
        // On failure the engine is dropped here, which ends the shards that did start.
        let engine = Engine { inner: Arc::new(inner) };
        result?;
        engine.settle_keyspaces()?;
        Ok(engine)
    }

    /// As [`Engine::open`], as tasks of the simulated machine that this thread is on. Also returns the shards, which
    /// somebody has to take apart when the machine is stopped.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) async fn open_simulated(config: EngineConfig, model: Arc<Model>) -> Result<(Engine, Vec<Rc<Shard>>)> {
        fs::create_dir(&config.dir)?;
        let lock = DataLock::acquire(&config.dir, config.lock_timeout)?;
        let keyspaces = Keyspaces::read(config.dir.clone())?;
        let merge_operators = Arc::clone(&config.merge_operators);
        let (dir, directory) = (config.dir.clone(), Arc::new(Directory::default()));
        let mut started = Started::default();
        let opened = start::start_simulated(config, &model, &directory, &mut started).await;
        let Started { shards, threads } = started;
        let (threads, lock) = (Mutex::new(threads), Mutex::new(Some(lock)));
        let inner = Inner { shards, threads, directory, dir, lock, keyspaces, merge_operators };
        Ok((Engine { inner: Arc::new(inner) }, opened?))
    }

    /// Options for an engine with its data in `dir`.
    pub fn builder(dir: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder::new(dir)
    }

    pub(crate) fn keyspaces(&self) -> &Keyspaces {
        &self.inner.keyspaces
    }

    /// The merge operator of this name.
    ///
    /// # Errors
    /// [`crate::Error::UnknownMergeOperator`].
    #[doc = example!(r#"assert!(engine.merge_operator("add").is_ok());
assert!(engine.merge_operator("nobody's").is_err());"#)]
    pub fn merge_operator(&self, name: &str) -> Result<crate::NamedOperator> {
        self.inner.merge_operators.find(name)
    }

    pub(crate) fn merge_operators(&self) -> &MergeOperators {
        &self.inner.merge_operators
    }

    /// Number of shards: of the folder, or of threads if there are more.
    #[doc = example!(r#"assert_eq!(engine.shards(), 1);"#)]
    #[must_use]
    pub fn shards(&self) -> usize {
        self.inner.shards.len()
    }

    /// The data folder.
    #[doc = example!(r#"assert!(engine.dir().join("LOCK").is_file());"#)]
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Runs code on a shard's core, beside its data, and returns what it returns.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a shard that does not exist, [`Error::Closed`].
    /// Cancel: the code runs to its end all the same.
    #[doc = example!(r#"use antumbra_engine::types::ShardId;
let partitions = engine.on_shard(ShardId(0), |shard| async move { shard.partitions().len() }).await?;
assert_eq!(partitions, 1);"#)]
    pub async fn on_shard<F, Fut, T>(&self, shard: ShardId, work: F) -> Result<T>
    where
        F: FnOnce(Rc<Shard>) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.spawn_on_shard(shard, move |shard| async move {
            // The caller may have gone.
            let _ = answer.send(work(shard).await);
        })
        .await?;
        answered.await.map_err(|_| Error::Closed)
    }

    /// As [`Engine::on_shard`] for requests that mostly end at once: `work` runs beside the data without a task of its own
    /// and answers, or starts a task that does.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        shard: ShardId,
        work: impl FnOnce(Rc<Shard>, oneshot::Sender<T>) + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let jobs = self.inner.shards.get(usize::from(shard.0));
        let jobs = jobs.ok_or_else(|| Error::Invalid { what: format!("shard {shard} does not exist") })?;
        let job: Job = Box::new(move |shard| work(shard, answer));
        jobs.jobs.send(job).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)
    }

    /// Starts a task on a shard's core and returns at once. The task ends with the shard at the latest.
    ///
    /// # Errors
    /// As [`Engine::on_shard`].
    #[doc = example!(r#"use antumbra_engine::types::ShardId;
let (done, waits) = std::sync::mpsc::channel();
engine.spawn_on_shard(ShardId(0), |shard| async move { drop(done.send(shard.id())) }).await?;
assert_eq!(waits.recv().ok(), Some(ShardId(0)));"#)]
    pub async fn spawn_on_shard<F, Fut>(&self, shard: ShardId, work: F) -> Result<()>
    where
        F: FnOnce(Rc<Shard>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let jobs = self.inner.shards.get(usize::from(shard.0));
        let jobs = jobs.ok_or_else(|| Error::Invalid { what: format!("shard {shard} does not exist") })?;
        let job: Job = Box::new(move |shard| runtime::spawn_detached(work(shard)));
        jobs.jobs.send(job).await.map_err(|_| Error::Closed)
    }

    /// Lets go of a pin on a shard. Does not wait.
    fn unpin(&self, shard: ShardId, number: u64) {
        if let Some(shard) = self.inner.shards.get(usize::from(shard.0)) {
            // A closed queue belongs to a shard that is gone, and the pin with it.
            let _ = shard.unpins.try_send(number);
        }
    }

    /// Creates a partition that this host owns, pinned to `shard`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the id is taken, [`Error::Io`].
    #[doc = example!(r#"use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
let id = PartitionId(7);
let spec = PartitionSpec { id, keyspace: String::new(), range: KeyRange::all(), epoch: Epoch(1), options: PartitionOptions::default() };
let partition = engine.create_partition(ShardId(0), spec).await?;
partition.put("key", "value").await?;"#)]
    pub async fn create_partition(&self, shard: ShardId, spec: PartitionSpec) -> Result<PartitionHandle> {
        let id = spec.id;
        self.on_shard(shard, move |shard| async move { shard.create_partition(spec).await.map(drop) }).await??;
        self.partition(id)
    }

    /// Makes one partition of two neighbours that this host owns, without a copy: `id` has the keys of both, on its
    /// shard; `other`, which begins where it ends, is gone, with its snapshots. Writes and reads of both are parked
    /// for as long as a flush takes, and, if they lie on different shards, the opening of the tables of `other`.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`]; [`Error::Invalid`] when they are no neighbours in this order, one of them belongs to
    /// a keyspace, is not owned here, lacks segments or has a shadow attached: nothing has changed; as a flush.
    #[doc = example!(r#"use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
for (id, range) in [(7, KeyRange::from_bounds(.."m")), (8, KeyRange::from_bounds("m"..))] {
    let (keyspace, options) = (String::new(), PartitionOptions::default());
    let spec = PartitionSpec { id: PartitionId(id), keyspace, range, epoch: Epoch(1), options };
    engine.create_partition(ShardId(0), spec).await?;
}
engine.merge_partitions(PartitionId(7), PartitionId(8), Epoch(2)).await?;
assert!(engine.partition(PartitionId(8)).is_err());"#)]
    pub async fn merge_partitions(&self, id: PartitionId, other: PartitionId, epoch: Epoch) -> Result<()> {
        let (low, high) = (self.partition(id)?.shard, self.partition(other)?.shard);
        if low == high {
            return self
                .on_shard(low, move |shard| async move { shard.merge_partitions(id, other, epoch).await })
                .await?;
        }
        let engine = self.clone();
        let give = move |shard: Rc<Shard>| async move { shard.give_partition(&engine, other, (low, id), epoch).await };
        self.on_shard(high, give).await?
    }

    /// The handle of a partition on this host.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`].
    #[doc = example!(r#"let (id, shard) = engine.partitions()[0];
assert_eq!(engine.partition(id)?.shard(), shard);"#)]
    pub fn partition(&self, id: PartitionId) -> Result<PartitionHandle> {
        let shard = self.inner.directory.find(id).ok_or(Error::UnknownPartition { partition: id })?;
        Ok(PartitionHandle { engine: self.clone(), id, shard })
    }

    /// All partitions on this host with their shards, ascending by id.
    #[doc = example!(r#"assert_eq!(engine.partitions().len(), 1);"#)]
    #[must_use]
    pub fn partitions(&self) -> Vec<(PartitionId, ShardId)> {
        self.inner.directory.list()
    }

    /// Counts and sizes of everything on this host.
    ///
    /// # Errors
    /// [`Error::Closed`].
    #[doc = example!(r#"assert!(engine.stats().await?.cache.budget_bytes > 0);"#)]
    pub async fn stats(&self) -> Result<EngineStats> {
        let mut stats = EngineStats { shards: self.shards(), ..EngineStats::default() };
        for index in 0..self.shards() {
            let of_shard = self.on_shard(ShardId(index as u16), |shard| async move {
                let partitions: Vec<PartitionStats> =
                    shard.partitions().iter().map(|partition| partition.stats()).collect();
                let used = ShardUse { cpu: clock::thread_cpu(), log_bytes: shard.wal().written_bytes() };
                (partitions, shard.wal().durable().0, used, shard.cache().stats())
            });
            let (partitions, log_batches, used, cache) = of_shard.await?;
            stats.partitions.extend(partitions);
            stats.log_batches += log_batches;
            stats.log_bytes += used.log_bytes;
            stats.used.push(used);
            stats.cache += cache;
        }
        stats.segments = stats.partitions.iter().map(|partition| partition.segments).sum();
        stats.table_bytes = stats.partitions.iter().map(|partition| partition.table_bytes).sum();
        stats.memtable_bytes = stats.partitions.iter().map(|partition| partition.memtable_bytes).sum();
        Ok(stats)
    }

    /// Ends the shards: everything acknowledged is on the device, the folder is free for the next process.
    ///
    /// # Errors
    /// The first failure of a shard; the others are closed all the same.
    pub async fn close(self) -> Result<()> {
        self.inner.close_queues();
        let inner = Arc::clone(&self.inner);
        off_thread(move || inner.join()).await
    }
}

/// Runs blocking work on a thread of its own.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (done, ended) = oneshot::channel();
    std::thread::spawn(move || {
        // The caller may have gone.
        let _ = done.send(work());
    });
    ended.await.map_err(|_| Error::Closed)?
}

impl Inner {
    fn close_queues(&self) {
        for shard in &self.shards {
            shard.jobs.close();
            shard.unpins.close();
        }
    }

    fn join(&self) -> Result<()> {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        join(threads, lock)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close_queues();
        let threads = std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        let lock = self.lock.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if ON_SHARD.get() {
            // The last handle went in a task of a shard: that shard cannot end before the task does.
            std::thread::spawn(move || report(join(threads, lock)));
        } else {
            report(join(threads, lock));
        }
    }
}

/// Waits for the threads, then lets go of the folder.
fn join(threads: Vec<RuntimeHandle<Result<()>>>, lock: Option<DataLock>) -> Result<()> {
    let mut result = Ok(());
    for thread in threads {
        result = result.and(thread.join().and_then(|ended| ended));
    }
    drop(lock);
    result
}

fn report(ended: Result<()>) {
    if let Err(cause) = ended {
        tracing::error!(%cause, "a shard ended with an error");
    }
}
