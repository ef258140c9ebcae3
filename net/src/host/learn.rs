//! Online learning on a host: a thread of the idle class learns from the windows of the busiest partitions and gives
//! their scorers new weights.
//!
//! ```text
//! shard's core                         thread "learn", scheduling class idle
//! counts of closed windows   -------->  one Learner a partition (antumbra_predictor::online)
//! Partition::set_model       <--------  weights that have hit more lately; kept in a file as well
//! ```
//!
//! - INV-L1: the thread works at most [`LearnConfig::core_share`] of the time, however many windows come; windows that
//!   it is too late for are dropped by the partition, and the learner begins anew from what it has deployed.
//! - INV-L2: a partition is given weights only after they were judged against those it has and those it began with
//!   (INV-O1, INV-O3 of the learner). Beyond that the guard on the shard does not follow a scorer that loses.
//! - INV-L3: memory: 48 MiB of windows a learner at most, [`LearnConfig::partitions`] learners.
//!
//! A partition that has left the host is forgotten; its file stays, and is gone on from when it comes back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use antumbra_engine::partition::Observed;
use antumbra_engine::types::PartitionId;
use antumbra_engine::{Engine, PartitionHandle};
use antumbra_predictor::model::Model;
use antumbra_predictor::online::{Learner, OnlineConfig, OnlineStats};
use futures_lite::future::block_on;

use super::lock;
use crate::error::{Error, Result};
use crate::transport;

/// How often windows are fetched.
const ROUND: Duration = Duration::from_millis(100);
/// How often the busiest partitions are looked for while there is a place.
const CHOOSE: Duration = Duration::from_secs(5);

/// Settings of a [`Learning`].
#[derive(Clone, Debug)]
pub struct LearnConfig {
    /// Partitions that are learned from at a time, at most.
    pub partitions: usize,
    /// Part of one core that learning may take, above 0, at most 1.
    pub core_share: f64,
    /// Where the weights are kept, one file a partition; created when missing.
    pub folder: PathBuf,
    /// The weights that the engine began with.
    pub base: Arc<Model>,
    /// Settings of the learners.
    pub online: OnlineConfig,
}

impl LearnConfig {
    /// The usual settings: 5 % of a core.
    #[must_use]
    pub fn new(partitions: usize, folder: PathBuf, base: Arc<Model>) -> LearnConfig {
        LearnConfig { partitions, core_share: 0.05, folder, base, online: OnlineConfig::default() }
    }
}

type Standings = Arc<Mutex<BTreeMap<PartitionId, OnlineStats>>>;

/// A thread that learns, until it is dropped.
#[derive(Debug)]
pub struct Learning {
    stop: Arc<AtomicBool>,
    standings: Standings,
    thread: Option<JoinHandle<()>>,
}

impl Learning {
    /// Starts to learn from the partitions of `engine`.
    ///
    /// # Errors
    /// [`Error::Refused`] when a setting is out of its range, the folder cannot be made or the thread not be started.
    pub fn start(engine: Engine, config: LearnConfig) -> Result<Learning> {
        let refused = |what: String| Error::Refused { what };
        if !(config.core_share > 0.0 && config.core_share <= 1.0) {
            return Err(refused(format!("core_share = {}: above 0, at most 1", config.core_share)));
        }
        Learner::new(&config.base, 1, config.online).map_err(|cause| refused(format!("learning: {cause}")))?;
        let folder = config.folder.display();
        std::fs::create_dir_all(&config.folder).map_err(|cause| refused(format!("create {folder}: {cause}")))?;
        let (stop, standings) = (Arc::new(AtomicBool::new(false)), Standings::default());
        let school =
            School { engine, config, pupils: BTreeMap::new(), standings: Arc::clone(&standings), chosen: None };
        let thread = thread::Builder::new().name("learn".to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || school.run(&stop)
        });
        let thread = thread.map_err(|cause| refused(format!("start the thread \"learn\": {cause}")))?;
        Ok(Learning { stop, standings, thread: Some(thread) })
    }

    /// What was learned so far, by partition.
    #[must_use]
    pub fn standings(&self) -> Vec<(PartitionId, OnlineStats)> {
        lock(&self.standings).iter().map(|(id, stats)| (*id, *stats)).collect()
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // a panic there has been printed, and harms nobody else
            let _ = thread.join();
        }
    }
}

/// All that the thread works with.
struct School {
    engine: Engine,
    config: LearnConfig,
    pupils: BTreeMap<PartitionId, Learner>,
    standings: Standings,
    /// When the busiest partitions were last looked for.
    chosen: Option<Instant>,
}

impl School {
    fn run(mut self, stop: &AtomicBool) {
        if let Err(what) = transport::enter_idle_class() {
            tracing::warn!(what, "learning runs in the normal scheduling class");
        }
        while !stop.load(Ordering::Acquire) {
            let busy = block_on(self.round(stop));
            let rest = busy.mul_f64(1.0 / self.config.core_share - 1.0).max(ROUND);
            let until = Instant::now() + rest;
            while !stop.load(Ordering::Acquire) && Instant::now() < until {
                thread::park_timeout(until.saturating_duration_since(Instant::now()));
            }
        }
        block_on(self.dismiss());
    }

    /// Fetches and learns what has come; the time that learning took.
    async fn round(&mut self, stop: &AtomicBool) -> Duration {
        let mut busy = Duration::ZERO;
        if let Err(cause) = self.choose().await {
            tracing::debug!(%cause, "no partitions to learn from");
        }
        for id in self.pupils.keys().copied().collect::<Vec<_>>() {
            if stop.load(Ordering::Acquire) {
                break;
            }
            if let Err(cause) = self.teach(id, &mut busy).await {
                tracing::debug!(%id, %cause, "a partition is not learned from any more");
                self.pupils.remove(&id);
                lock(&self.standings).remove(&id);
            }
        }
        busy
    }

    /// Gives free places to the busiest partitions.
    async fn choose(&mut self) -> Result<()> {
        let is_time = self.chosen.is_none_or(|chosen| chosen.elapsed() >= CHOOSE);
        if !is_time || self.pupils.len() >= self.config.partitions {
            return Ok(());
        }
        self.chosen = Some(Instant::now());
        let mut candidates = self.engine.stats().await?.partitions;
        // with one segment there is nothing to order
        candidates.retain(|stats| {
            stats.segments > 1 && stats.totals.reads + stats.totals.writes > 0 && !self.pupils.contains_key(&stats.id)
        });
        candidates.sort_by_key(|stats| std::cmp::Reverse(stats.totals.reads + stats.totals.writes));
        let places = self.config.partitions - self.pupils.len();
        for stats in candidates.into_iter().take(places) {
            let learner = self.enrol(&self.engine.partition(stats.id)?).await?;
            self.pupils.insert(stats.id, learner);
        }
        Ok(())
    }

    fn file(&self, id: PartitionId) -> PathBuf {
        self.config.folder.join(format!("partition-{}.safetensors", id.0))
    }

    /// A learner that begins now, with the weights that were kept.
    async fn enrol(&self, partition: &PartitionHandle) -> Result<Learner> {
        let segments = partition.with(|partition| async move { Ok(partition.start_observing()) }).await?;
        let (file, base, online) = (self.file(partition.id()), &self.config.base, self.config.online);
        if file.exists() {
            match Learner::restore(&file, base, segments, online) {
                Ok(learner) => {
                    self.deploy(partition, learner.deployed()).await?;
                    return Ok(learner);
                }
                Err(cause) => tracing::warn!(%cause, "kept weights cannot be used: learning begins with the base"),
            }
        }
        Learner::new(base, segments, online).map_err(|cause| Error::Refused { what: format!("learning: {cause}") })
    }

    async fn deploy(&self, partition: &PartitionHandle, model: &Model) -> Result<()> {
        let model = Arc::new(model.clone());
        let deploy = |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            partition.set_model(model);
            Ok(())
        };
        Ok(partition.with(deploy).await?)
    }

    /// One partition learns what has come since the last round.
    async fn teach(&mut self, id: PartitionId, busy: &mut Duration) -> Result<()> {
        let partition = self.engine.partition(id)?;
        let observed = partition.with(|partition| async move { Ok(partition.take_observed()) }).await?;
        let Some(learner) = self.pupils.get_mut(&id) else { return Ok(()) };
        let began = Instant::now();
        let weights = observed.and_then(|observed| learn(learner, observed));
        *busy += began.elapsed();
        let Some(weights) = weights else {
            // too late, or out of step: the learner begins anew
            let learner = self.enrol(&partition).await?;
            self.pupils.insert(id, learner);
            return Ok(());
        };
        lock(&self.standings).insert(id, learner.stats());
        if let Some(model) = weights {
            if let Err(cause) = model.save(&self.file(id)) {
                tracing::warn!(%cause, "learned weights are not kept");
            }
            tracing::info!(%id, "the GRU goes on with weights learned here");
            self.deploy(&partition, &model).await?;
        }
        Ok(())
    }

    /// Lets the partitions stop to collect.
    async fn dismiss(&self) {
        for id in self.pupils.keys() {
            if let Ok(partition) = self.engine.partition(*id) {
                let stop = |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                    partition.stop_observing();
                    Ok(())
                };
                // an engine that is closed collects nothing any more
                let _ = partition.with(stop).await;
            }
        }
    }
}

/// Learns the entries in their order: the weights to deploy now, if any; none when the counts are not those of the
/// learner's structure.
fn learn(learner: &mut Learner, observed: Vec<Observed>) -> Option<Option<Model>> {
    let mut weights = None;
    for entry in observed {
        match entry {
            Observed::Window(counts) if counts.len() != learner.segments() => return None,
            Observed::Window(counts) => weights = learner.observe(&counts).or(weights),
            Observed::Split { index, .. } if index >= learner.segments() => return None,
            Observed::Split { index, left_share } => learner.split(index, left_share),
            Observed::Merge { index } if index + 1 >= learner.segments() => return None,
            Observed::Merge { index } => learner.merge(index),
        }
    }
    Some(weights)
}

#[cfg(test)]
mod tests;
