//! Starts the executors and opens the shards on them.
//!
//! A shard is a folder; an executor is a thread. A data folder keeps the shards that it has: opened with fewer threads,
//! a thread serves several of them (shard `i` runs on thread `i mod threads`); opened with more, new shards are created
//! empty and take new partitions. Nothing is rewritten, so a crash at any moment leaves the same folders.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use antumbra_predictor::model::Model;
use futures_util::future::join_all;

use crate::config::EngineConfig;
use crate::error::{Error, Result};
use crate::io::runtime::{self, RuntimeHandle, RuntimeOptions};
use crate::io::{callers, fs};
use crate::shard::Shard;
use crate::types::ShardId;

use super::{Directory, Job};

/// Jobs that may wait for a shard; senders wait beyond.
const JOBS_MAX: usize = 4096;

/// The shards of an engine, by number, and the threads that they run on.
#[derive(Default)]
pub(super) struct Started {
    pub shards: Vec<ShardSender>,
    pub threads: Vec<RuntimeHandle<Result<()>>>,
}

impl Started {
    fn add_queue(&mut self, index: usize) -> ShardQueue {
        let (jobs, job_queue) = async_channel::bounded(JOBS_MAX);
        let (unpins, unpin_queue) = async_channel::unbounded();
        self.shards.push(ShardSender { jobs, unpins });
        ShardQueue { id: ShardId(index as u16), jobs: job_queue, unpins: unpin_queue }
    }
}

/// The ways into one shard.
pub(super) struct ShardSender {
    pub jobs: async_channel::Sender<Job>,
    /// Numbers of pins whose owners are gone. Unbounded, because it is fed by `Drop`; a pin takes more memory.
    pub unpins: async_channel::Sender<u64>,
}

/// The other ends.
struct ShardQueue {
    id: ShardId,
    jobs: async_channel::Receiver<Job>,
    unpins: async_channel::Receiver<u64>,
}

/// An executor whose shards are opening.
struct Starting {
    ready: std::sync::mpsc::Receiver<Result<()>>,
    thread: RuntimeHandle<Result<()>>,
}

/// Starts `config.shards` threads and opens every shard of the folder on them. Blocks until all serve.
///
/// Errors: the first failure of a shard; [`Error::Environment`]. What was started has been returned in `started` and
/// ends when its senders are closed.
pub(super) fn start(
    mut config: EngineConfig,
    model: &Arc<Model>,
    directory: &Arc<Directory>,
    started: &mut Started,
) -> Result<()> {
    let threads = config.shards;
    // From here on the configuration speaks of shards: each gets its share of the budget.
    config.shards = count_shards(&config.dir)?.max(threads);
    let config = Arc::new(config);
    let mut queues: Vec<Vec<ShardQueue>> = (0..threads).map(|_| Vec::new()).collect();
    for index in 0..config.shards {
        queues[index % threads].push(started.add_queue(index));
    }
    let mut starting = Vec::new();
    let mut result = Ok(());
    for (thread, queues) in queues.into_iter().enumerate() {
        match start_thread(thread, queues, Arc::clone(&config), Arc::clone(model), Arc::clone(directory)) {
            Ok(begun) => starting.push(begun),
            Err(cause) => {
                result = Err(cause);
                break;
            }
        }
    }
    for Starting { ready, thread } in starting {
        result = result.and(ready.recv().unwrap_or(Err(Error::Closed)));
        started.threads.push(thread);
    }
    result
}

fn start_thread(
    thread: usize,
    queues: Vec<ShardQueue>,
    config: Arc<EngineConfig>,
    model: Arc<Model>,
    directory: Arc<Directory>,
) -> Result<Starting> {
    let (is_ready, ready) = std::sync::mpsc::channel();
    let options = RuntimeOptions {
        name: format!("shard-{thread}"),
        cpu: config.first_cpu.map(|first| first + thread),
        spin: config.spin,
        preempt: config.preempt,
    };
    let thread = runtime::spawn(options, move || async move {
        super::ON_SHARD.set(true);
        let mut shards = Vec::new();
        let mut result = Ok(());
        for queue in queues {
            let dir = shard_dir(&config.dir, queue.id);
            match Shard::open(queue.id, dir, Arc::clone(&config), Arc::clone(&model), Arc::clone(&directory)).await {
                Ok(shard) => shards.push((shard, queue)),
                Err(cause) => {
                    result = Err(cause);
                    break;
                }
            }
        }
        let failed = result.is_err();
        // The opener may have gone.
        let _ = is_ready.send(result);
        if failed {
            // The opener reports the first failure; these shards only have to let go of their folders.
            for (shard, _) in shards {
                let _ = shard.close().await;
            }
            return Ok(());
        }
        let mut ended = join_all(shards.into_iter().map(|(shard, queue)| serve(shard, queue))).await.into_iter();
        ended.find(Result::is_err).unwrap_or(Ok(()))
    })?;
    Ok(Starting { ready, thread })
}

/// Opens every shard of the folder as tasks of the simulated machine that this thread is on.
#[cfg(any(test, feature = "sim"))]
pub(super) async fn start_simulated(
    mut config: EngineConfig,
    model: &Arc<Model>,
    directory: &Arc<Directory>,
    started: &mut Started,
) -> Result<Vec<Rc<Shard>>> {
    config.shards = count_shards(&config.dir)?.max(config.shards);
    let config = Arc::new(config);
    let mut shards = Vec::new();
    for index in 0..config.shards {
        let queue = started.add_queue(index);
        let dir = shard_dir(&config.dir, queue.id);
        let shard = Shard::open(queue.id, dir, Arc::clone(&config), Arc::clone(model), Arc::clone(directory)).await?;
        shards.push(Rc::clone(&shard));
        runtime::spawn_detached(async move {
            if let Err(cause) = serve(shard, queue).await {
                tracing::error!(%cause, "a shard ended with an error");
            }
        });
    }
    Ok(shards)
}

/// Runs what is sent to a shard until the engine closes its queue.
async fn serve(shard: Rc<Shard>, queue: ShardQueue) -> Result<()> {
    let pins = Rc::downgrade(&shard);
    let unpins = queue.unpins;
    runtime::spawn_detached(async move {
        while let Ok(pin) = unpins.recv().await {
            match pins.upgrade() {
                Some(shard) => shard.unpin(pin),
                None => return,
            }
        }
    });
    let jobs = queue.jobs.downgrade();
    callers::interrupt_when(move || jobs.upgrade().is_some_and(|jobs| !jobs.is_empty()));
    while let Ok(job) = queue.jobs.recv().await {
        job(Rc::clone(&shard));
        // Jobs that end at once must not keep the tasks of earlier ones waiting.
        runtime::yield_now().await;
    }
    shard.close().await
}

pub(crate) fn shard_dir(dir: &Path, id: ShardId) -> PathBuf {
    dir.join(format!("shard-{:03}", id.0))
}

/// Number of shards in a data folder.
fn count_shards(dir: &Path) -> Result<usize> {
    let mut found: Vec<usize> =
        fs::list_dir(dir)?.iter().filter_map(|name| name.strip_prefix("shard-")?.parse().ok()).collect();
    found.sort_unstable();
    if let Some(missing) = (0..found.len()).find(|index| found[*index] != *index) {
        let what = format!("{} lacks its folder shard-{missing:03}: restore it before opening", dir.display());
        return Err(Error::Invalid { what });
    }
    Ok(found.len())
}
