//! The engine beside what fio gets out of the same device: random reads at depth 64, durable group commit, a lone durable
//! put; and what an engine uses that nobody asks anything.
//!
//! Engine and fio take turns. fio reads the engine's own table files, and writes into a zero-filled file beside the log, with
//! the block size and the depth that the engine's log was seen to use.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use antumbra_engine::{Durability, Engine, EngineConfig, Partition, PartitionOptions, Write, runtime};
use bytes::Bytes;
use clap::Args;
use futures_channel::oneshot;
use futures_lite::future::block_on;
use serde::Serialize;

use crate::compare::Place;
use crate::error::{Error, Result};
use crate::fio::{FioJob, fio};
use crate::local::{LOAD_MEMORY_BYTES, PARTITION, VALUE_BYTES, failed, fill, median, on_shard, spread};
use crate::process::Usage;

/// Reads and writes that are under way at a time.
const DEPTH: usize = 64;
/// Batches of the engine's log that may be on their way to the device at a time.
const LOG_DEPTH: usize = 2;
/// Size of the file that fio writes, as large as one of the log's.
const LOG_BYTES: u64 = 64 << 20;
const LOG_NAME: &str = "fio-log";
/// The least that an engine takes: nearly nothing of the data fits.
const MEMORY_BYTES: usize = 16 << 20;
/// Memory of the engine whose log is measured: what is put in a round is less than its memtables hold.
const LOG_MEMORY_BYTES: usize = 2 << 30;

/// Options of a run.
#[derive(Args, Clone, Debug)]
pub struct DeviceOptions {
    /// Data that is read, in MiB.
    #[arg(long, default_value_t = 512)]
    pub mib: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// How often each is made; engine and fio take turns.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Pin the engine's shard to this CPU.
    #[arg(long)]
    pub cpu: Option<usize>,
    /// How long the idle shard polls before it sleeps, in microseconds.
    #[arg(long, default_value_t = 0, requires = "cpu")]
    pub spin_us: u64,
    /// Folder for the data, emptied before and after; its device is what is measured.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// One figure of the engine, fio's beside it, and what they are to each other; medians of the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// What was measured.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The engine's.
    pub engine: f64,
    /// fio's.
    pub fio: f64,
    /// Engine by fio, median of the rounds' own ratios.
    pub ratio: f64,
    /// Smallest and largest of those.
    pub spread: [f64; 2],
    /// Each round, the engine's and fio's.
    pub rounds: Vec<[f64; 2]>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// Engine against fio.
    pub pairs: Vec<Pair>,
    /// Bytes that the engine read from the device for each get.
    pub bytes_per_get: f64,
    /// Bytes of a batch of the log with 64 clients, as fio wrote them too.
    pub batch_bytes: u64,
    /// Durable puts a second with 64 clients.
    pub puts_per_second: f64,
    /// Share of one core that the idle engine used, in per cent.
    pub idle_percent: f64,
}

/// Runs it; `progress` is told what comes next.
///
/// # Errors
/// [`Error::Refused`] without fio, [`Error::Store`], [`Error::Io`].
pub fn run(options: &DeviceOptions, mut progress: impl FnMut(String)) -> Result<DeviceReport> {
    let place = Place::new(options.dir.as_deref())?;
    run_in(place.path(), options, &mut progress)
}

fn run_in(dir: &Path, options: &DeviceOptions, progress: &mut impl FnMut(String)) -> Result<DeviceReport> {
    let time = Duration::from_secs_f64(options.seconds);
    let keys = (options.mib << 20) / (VALUE_BYTES as u64 + 24);
    progress(format!("loading {keys} keys"));
    let blocks_of_4_kib = PartitionOptions { block_bytes: 4096, ..PartitionOptions::default() };
    fill(open(dir, LOAD_MEMORY_BYTES, options)?, blocks_of_4_kib, keys, key)?;
    let (mut reads, mut commits, mut lone) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bytes_per_get, mut batch_bytes, mut puts_per_second) = (0.0, 0, 0.0);

    let engine = open(dir, MEMORY_BYTES, options)?;
    let partition = engine.partition(PARTITION).map_err(failed)?;
    let shard = dir.join("data/shard-000");
    for round in 1..=options.rounds {
        progress(format!("round {round} of {}: random reads", options.rounds));
        let before = Usage::now();
        let gets = on_shard(&partition, async move |at| get_for(at, keys, time).await)?;
        bytes_per_get = Usage::now().since(before).read_bytes as f64 / gets as f64;
        // Listed anew: maintenance may have replaced some.
        let files = tables_in(&shard)?;
        let fio = fio(&shard, &files, &["--rw=randread", "--bs=4k", &format!("--iodepth={DEPTH}")], options.seconds)?;
        reads.push([gets as f64 / options.seconds, fio.read.iops]);
    }
    drop(partition);
    block_on(engine.close()).map_err(failed)?;

    let engine = open(dir, LOG_MEMORY_BYTES, options)?;
    let partition = engine.partition(PARTITION).map_err(failed)?;
    let log = dir.join(LOG_NAME);
    std::fs::write(&log, vec![0; LOG_BYTES as usize]).map_err(|cause| Error::io(log.display().to_string(), cause))?;
    let logged = || block_on(engine.stats()).map(|stats| (stats.log_batches, stats.log_bytes)).map_err(failed);
    for round in 1..=options.rounds {
        progress(format!("round {round} of {}: group commit", options.rounds));
        let (batches_before, bytes_before) = logged()?;
        let puts = on_shard(&partition, async move |at| put_for(at, keys, time).await)?;
        let (batches, bytes) = logged()?;
        let batches = batches - batches_before;
        batch_bytes = ((bytes - bytes_before) / batches.max(1)).next_multiple_of(4096);
        puts_per_second = puts as f64 / options.seconds;
        let (block, depth) = (format!("--bs={batch_bytes}"), format!("--iodepth={LOG_DEPTH}"));
        let written = fio_log(dir, &[&block, &depth], options.seconds)?;
        commits.push([batches as f64 / options.seconds, written.write.iops]);

        progress(format!("round {round} of {}: a lone durable put", options.rounds));
        let p50_us = on_shard(&partition, async move |at| lone_put_p50_us(at, time).await)?;
        let written = fio_log(dir, &["--bs=4k", "--iodepth=1"], options.seconds)?;
        lone.push([p50_us, written.write.lat_ns.percentile.p50 / 1e3]);
    }
    progress("an idle engine".into());
    std::thread::sleep(time);
    let (before, begin) = (Usage::now(), Instant::now());
    std::thread::sleep(time * 5);
    let idle_percent = Usage::now().since(before).cpu_seconds / begin.elapsed().as_secs_f64() * 100.0;
    drop(partition);
    block_on(engine.close()).map_err(failed)?;
    Ok(DeviceReport {
        pairs: vec![
            pair("random reads, depth 64", "reads/s", reads),
            pair("group commit, 64 clients", "batches/s", commits),
            pair("lone durable put, p50", "us", lone),
        ],
        bytes_per_get,
        batch_bytes,
        puts_per_second,
        idle_percent,
    })
}

impl std::fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<26} {:>10} {:>10} {:>10}  ratio (spread)", "", "unit", "engine", "fio")?;
        for Pair { name, unit, engine, fio, ratio, spread: [low, high], .. } in &self.pairs {
            writeln!(f, "{name:<26} {unit:>10} {engine:>10.0} {fio:>10.0}  {ratio:.2} ({low:.2} to {high:.2})")?;
        }
        writeln!(f, "bytes read for a get       {:>10.0}", self.bytes_per_get)?;
        writeln!(f, "bytes of a log batch       {:>10}", self.batch_bytes)?;
        writeln!(f, "durable puts a second      {:>10.0}", self.puts_per_second)?;
        writeln!(f, "idle engine, % of a core   {:>10.2}", self.idle_percent)
    }
}

fn pair(name: &'static str, unit: &'static str, rounds: Vec<[f64; 2]>) -> Pair {
    let ratios: Vec<f64> = rounds.iter().map(|[engine, fio]| engine / fio).collect();
    Pair {
        name,
        unit,
        engine: median(rounds.iter().map(|[engine, _]| *engine)),
        fio: median(rounds.iter().map(|[_, fio]| *fio)),
        spread: spread(&ratios),
        ratio: median(ratios),
        rounds,
    }
}

fn key(number: u64) -> Bytes {
    Bytes::copy_from_slice(
        &[[0; 8], number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), number.to_be_bytes()].concat(),
    )
}

fn open(dir: &Path, memory_bytes: usize, options: &DeviceOptions) -> Result<Engine> {
    let mut config = EngineConfig::new(dir.join("data"));
    config.first_cpu = options.cpu;
    config.spin = Duration::from_micros(options.spin_us);
    config.memory_budget_bytes = memory_bytes;
    config.residency = false;
    Engine::open(config).map_err(failed)
}

/// Runs `DEPTH` tasks that repeat `step`, which is told a number of its own, for `time`; returns how many steps were made.
async fn loops<F: Future<Output = antumbra_engine::Result<()>>>(
    time: Duration,
    step: impl Fn(u64) -> F + Clone + 'static,
) -> antumbra_engine::Result<u64> {
    let begin = Instant::now();
    let mut counts = Vec::new();
    for seed in 0..DEPTH as u64 {
        let step = step.clone();
        let (done, count) = oneshot::channel();
        runtime::spawn_detached(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut steps = Ok(0);
            while let Ok(made) = steps
                && begin.elapsed() < time
            {
                steps = step(random.u64(..)).await.map(|()| made + 1);
            }
            // Whoever asked waits for all of them, or has failed.
            let _ = done.send(steps);
        });
        counts.push(count);
    }
    let mut steps = 0;
    for count in counts {
        steps += count.await.unwrap_or_else(|_| panic!("a task ended without its count"))?;
    }
    Ok(steps)
}

async fn get_for(partition: Rc<Partition>, keys: u64, time: Duration) -> antumbra_engine::Result<u64> {
    loops(time, move |number| {
        let partition = Rc::clone(&partition);
        async move {
            let found = partition.get_with(&key(number % keys), |value| value.is_some()).await?;
            assert!(found, "every key was loaded");
            Ok(())
        }
    })
    .await
}

async fn put_for(partition: Rc<Partition>, keys: u64, time: Duration) -> antumbra_engine::Result<u64> {
    loops(time, move |number| {
        let partition = Rc::clone(&partition);
        async move {
            let write = Write::put(key(number % keys), vec![1; VALUE_BYTES]);
            partition.write(write, Durability::Durable).await.map(drop)
        }
    })
    .await
}

async fn lone_put_p50_us(partition: Rc<Partition>, time: Duration) -> antumbra_engine::Result<f64> {
    let mut latencies = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let started = Instant::now();
        partition.write(Write::put(key(7), vec![1; VALUE_BYTES]), Durability::Durable).await?;
        latencies.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(latencies))
}

/// The names of a folder's tables as fio takes them, which is no more than so many.
fn tables_in(shard: &Path) -> Result<String> {
    const FILES_MAX: usize = 200;
    let entries = std::fs::read_dir(shard).map_err(|cause| Error::io(shard.display().to_string(), cause))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let tables = names.filter(|name| name.ends_with(".tab")).take(FILES_MAX);
    Ok(tables.collect::<Vec<_>>().join(":"))
}

/// Durable writes, as the log makes them.
fn fio_log(dir: &Path, arguments: &[&str], seconds: f64) -> Result<FioJob> {
    let mut all = vec!["--rw=write", "--sync=dsync"];
    all.extend(arguments);
    fio(dir, LOG_NAME, &all, seconds)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn run_measures_every_pair_or_says_that_fio_is_missing() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let options = DeviceOptions {
            mib: 4,
            seconds: 0.2,
            rounds: 1,
            cpu: None,
            spin_us: 0,
            dir: Some(dir.path().to_path_buf()),
            json: false,
        };
        match run(&options, |_| {}) {
            Ok(report) => {
                assert!(report.pairs.iter().all(|pair| pair.engine > 0.0 && pair.fio > 0.0), "{report:?}");
                assert!(report.batch_bytes >= 4096 && report.to_string().contains("group commit"));
            }
            Err(Error::Refused { what }) => {
                assert!(what.contains("fio") && Command::new("fio").output().is_err(), "{what}")
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }
}
