//! The engine of one host: shards on threads of their own behind a handle that any runtime can use.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use antumbra_predictor::model::Model;
use bytes::Bytes;
use futures_channel::oneshot;

use crate::config::{Durability, EngineConfig};
use crate::error::{Error, Result};
use crate::io::lock::DataLock;
use crate::io::runtime::{self, RuntimeHandle, RuntimeOptions};
use crate::io::{fs, probe};
use crate::partition::{Partition, PartitionStats, ScanPage, Write, Written};
use crate::shard::{PartitionSpec, Shard};
use crate::types::{KeyRange, PartitionId, ShardId};

/// Work sent to a shard's core.
type Job = Box<dyn FnOnce(Rc<Shard>) + Send>;
/// Jobs that may wait for a shard; senders wait beyond.
const JOBS_MAX: usize = 4096;

/// Which shard a partition is pinned to.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    shards: RwLock<BTreeMap<PartitionId, ShardId>>,
}

impl Directory {
    pub fn insert(&self, partition: PartitionId, shard: ShardId) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).insert(partition, shard);
    }

    pub fn remove(&self, partition: PartitionId) {
        self.shards.write().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }

    pub fn find(&self, partition: PartitionId) -> Option<ShardId> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&partition).copied()
    }

    fn list(&self) -> Vec<(PartitionId, ShardId)> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.iter().map(|(partition, shard)| (*partition, *shard)).collect()
    }
}

struct Inner {
    shards: Vec<async_channel::Sender<Job>>,
    threads: Mutex<Vec<RuntimeHandle<Result<()>>>>,
    directory: Arc<Directory>,
    dir: PathBuf,
    lock: Mutex<Option<DataLock>>,
}

/// An open engine. Cheap to clone; usable from any thread and any runtime. The shards end with [`Engine::close`] or when
/// the last clone is dropped; in either case what was acknowledged is on the device.
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
        config.check()?;
        probe()?;
        fs::create_dir(&config.dir)?;
        let lock = DataLock::acquire(&config.dir, config.lock_timeout)?;
        check_shards(&config.dir, config.shards)?;
        let model = match &config.model {
            Some(model) => Arc::clone(model),
            None => Arc::new(Model::shipped().map_err(|cause| Error::Invalid { what: cause.to_string() })?),
        };
        let config = Arc::new(config);
        let directory = Arc::new(Directory::default());
        let mut starting = Vec::new();
        for index in 0..config.shards {
            let id = ShardId(index as u16);
            starting.push(start_shard(id, Arc::clone(&config), Arc::clone(&model), Arc::clone(&directory))?);
        }
        let (mut shards, mut threads) = (Vec::new(), Vec::new());
        let mut failure = None;
        for Starting { jobs, ready, thread } in starting {
            match ready.recv() {
                Ok(Ok(())) => {
                    shards.push(jobs);
                    threads.push(thread);
                }
                Ok(Err(cause)) => failure = failure.or(Some(cause)),
                Err(_) => failure = failure.or(Some(Error::Closed)),
            }
        }
        let dir = config.dir.clone();
        let inner = Inner { shards, threads: Mutex::new(threads), directory, dir, lock: Mutex::new(Some(lock)) };
        let engine = Engine { inner: Arc::new(inner) };
        failure.map_or(Ok(engine), Err)
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.inner.shards.len()
    }

    /// The data folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Runs code on a shard's core, beside its data, and returns what it returns.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a shard that does not exist, [`Error::Closed`].
    /// Cancel: the code runs to its end all the same.
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

    /// Starts a task on a shard's core and returns at once. The task ends with the shard at the latest.
    ///
    /// # Errors
    /// As [`Engine::on_shard`].
    pub async fn spawn_on_shard<F, Fut>(&self, shard: ShardId, work: F) -> Result<()>
    where
        F: FnOnce(Rc<Shard>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let jobs = self.inner.shards.get(usize::from(shard.0));
        let jobs = jobs.ok_or_else(|| Error::Invalid { what: format!("shard {shard} does not exist") })?;
        let job: Job = Box::new(move |shard| runtime::spawn_detached(work(shard)));
        jobs.send(job).await.map_err(|_| Error::Closed)
    }

    /// Creates a partition that this host owns, pinned to `shard`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the id is taken, [`Error::Io`].
    pub async fn create_partition(&self, shard: ShardId, spec: PartitionSpec) -> Result<PartitionHandle> {
        let id = spec.id;
        self.on_shard(shard, move |shard| async move { shard.create_partition(spec).await.map(drop) }).await??;
        self.partition(id)
    }

    /// The handle of a partition on this host.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`].
    pub fn partition(&self, id: PartitionId) -> Result<PartitionHandle> {
        let shard = self.inner.directory.find(id).ok_or(Error::UnknownPartition { partition: id })?;
        Ok(PartitionHandle { engine: self.clone(), id, shard })
    }

    /// All partitions on this host with their shards, ascending by id.
    #[must_use]
    pub fn partitions(&self) -> Vec<(PartitionId, ShardId)> {
        self.inner.directory.list()
    }

    /// Ends the shards: everything acknowledged is on the device, the folder is free for the next process.
    ///
    /// # Errors
    /// The first failure of a shard; the others are closed all the same.
    pub async fn close(self) -> Result<()> {
        for jobs in &self.inner.shards {
            jobs.close();
        }
        let (done, ended) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        std::thread::spawn(move || {
            let _ = done.send(inner.join());
        });
        ended.await.map_err(|_| Error::Closed)?
    }
}

impl Inner {
    fn join(&self) -> Result<()> {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut result = Ok(());
        for thread in threads {
            result = result.and(thread.join().and_then(|ended| ended));
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        result
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for jobs in &self.shards {
            jobs.close();
        }
        if let Err(cause) = self.join() {
            tracing::error!(%cause, "a shard ended with an error");
        }
    }
}

/// A shard that is opening.
struct Starting {
    jobs: async_channel::Sender<Job>,
    ready: std::sync::mpsc::Receiver<Result<()>>,
    thread: RuntimeHandle<Result<()>>,
}

fn start_shard(
    id: ShardId,
    config: Arc<EngineConfig>,
    model: Arc<Model>,
    directory: Arc<Directory>,
) -> Result<Starting> {
    let (jobs, queue) = async_channel::bounded::<Job>(JOBS_MAX);
    let (is_ready, ready) = std::sync::mpsc::channel();
    let options = RuntimeOptions {
        name: format!("shard-{}", id.0),
        cpu: config.first_cpu.map(|first| first + usize::from(id.0)),
        spin: config.spin,
        preempt: config.preempt,
    };
    let dir = shard_dir(&config.dir, id);
    let thread = runtime::spawn(options, move || async move {
        let shard = match Shard::open(id, dir, config, model, directory).await {
            Ok(shard) => shard,
            Err(cause) => {
                let _ = is_ready.send(Err(cause));
                return Ok(());
            }
        };
        let _ = is_ready.send(Ok(()));
        while let Ok(job) = queue.recv().await {
            job(Rc::clone(&shard));
        }
        shard.close().await
    })?;
    Ok(Starting { jobs, ready, thread })
}

fn shard_dir(dir: &Path, id: ShardId) -> PathBuf {
    dir.join(format!("shard-{:03}", id.0))
}

/// A folder keeps the number of shards it was created with.
fn check_shards(dir: &Path, shards: usize) -> Result<()> {
    let found = fs::list_dir(dir)?.iter().filter(|name| name.starts_with("shard-")).count();
    if found != 0 && found != shards {
        let what =
            format!("{} holds {found} shards, the configuration says {shards}: open it with {found}", dir.display());
        return Err(Error::Invalid { what });
    }
    Ok(())
}

/// A partition behind its shard's queue: one hop to the shard's core and back per call.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    engine: Engine,
    id: PartitionId,
    shard: ShardId,
}

impl PartitionHandle {
    /// The partition's id.
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The shard it is pinned to.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// See [`Partition::get`].
    ///
    /// # Errors
    /// As [`Partition::get`], [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = key.into();
        self.with(move |partition| async move { partition.get(&key).await }).await
    }

    /// See [`Partition::write`].
    ///
    /// # Errors
    /// As [`Partition::write`], [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn write(&self, write: Write, durability: Durability) -> Result<Written> {
        self.with(move |partition| async move { partition.write(write, durability).await }).await
    }

    /// Sets a key, durably.
    ///
    /// # Errors
    /// As [`PartitionHandle::write`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::put(key, value), Durability::Durable).await
    }

    /// Removes a key, durably.
    ///
    /// # Errors
    /// As [`PartitionHandle::write`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written> {
        self.write(Write::delete(key), Durability::Durable).await
    }

    /// See [`Partition::scan`].
    ///
    /// # Errors
    /// As [`Partition::scan`], [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn scan(&self, range: KeyRange, limit: usize) -> Result<ScanPage> {
        self.with(move |partition| async move { partition.scan(&range, limit).await }).await
    }

    /// Counts and sizes.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn stats(&self) -> Result<PartitionStats> {
        self.with(move |partition| async move { Ok(partition.stats()) }).await
    }

    /// See [`Partition::compact_all`].
    ///
    /// # Errors
    /// As [`Partition::compact_all`], [`Error::UnknownPartition`], [`Error::Closed`].
    pub async fn compact(&self) -> Result<()> {
        self.with(move |partition| async move { partition.compact_all().await }).await
    }

    /// Runs code beside the partition on its shard's core.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`], [`Error::Closed`], whatever the code returns.
    pub async fn with<F, Fut, T>(&self, work: F) -> Result<T>
    where
        F: FnOnce(Rc<Partition>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        let id = self.id;
        self.engine
            .on_shard(self.shard, move |shard| async move {
                let partition = shard.partition(id)?;
                work(partition).await
            })
            .await?
    }
}
