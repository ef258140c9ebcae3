//! Sustained updates of four times the memory budget: memory stays within the budget, tables do not pile up, reads go on.
//!
//! Eight seconds as a test; `cargo xtask soak --seconds N` runs it as long as asked and prints its figures.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use antumbra_engine::{
    Durability, Engine, EngineConfig, Partition, PartitionHandle, PartitionOptions, PartitionSpec, Result, Write,
    runtime,
};
use bytes::Bytes;
use common::{block_on, spec};

const BUDGET_MIB: usize = 64;
const VALUE_BYTES: usize = 400;
const KEY_BYTES: usize = 16;

/// The memory budget; `ANTUMBRA_SOAK_MIB` says another one.
fn budget_bytes() -> usize {
    static BUDGET: LazyLock<usize> = LazyLock::new(|| {
        let told = std::env::var("ANTUMBRA_SOAK_MIB").ok().and_then(|text| text.parse().ok());
        told.unwrap_or(BUDGET_MIB) << 20
    });
    *BUDGET
}

fn keys() -> u64 {
    (budget_bytes() * 4 / (VALUE_BYTES + KEY_BYTES)) as u64
}

/// Bytes of tables for each byte of keys and values.
const SPACE_MAX: f64 = 1.4;
/// Memory that the process takes beside the budget, however large that is: stacks, rings, model, buffers of reads and
/// table files under way, what the allocator keeps, the test's own samples.
const PROCESS_BYTES: usize = 24 << 20;
const READERS: u64 = 4;
/// Every so many reads one is timed: the samples count as memory too.
const SAMPLE_EVERY: u64 = 32;
/// Time in which background work catches up once the updates have ended.
const SETTLE_MAX: Duration = Duration::from_secs(60);

fn key(number: u64) -> Bytes {
    Bytes::copy_from_slice(&[number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), number.to_be_bytes()].concat())
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn table_bytes(dir: &Path) -> u64 {
    let shard = std::fs::read_dir(dir.join("shard-000")).unwrap();
    let tables = shard.map(|entry| entry.unwrap()).filter(|entry| entry.path().extension().is_some_and(|e| e == "tab"));
    tables.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
}

fn open(dir: &Path) -> (Engine, PartitionHandle) {
    let mut config = EngineConfig::new(dir);
    config.memory_budget_bytes = budget_bytes();
    let engine = Engine::open(config).unwrap();
    let spec = PartitionSpec { options: PartitionOptions::default(), ..spec() };
    let handle = block_on(engine.create_partition(antumbra_engine::types::ShardId(0), spec)).unwrap();
    (engine, handle)
}

/// Updates keys drawn at random, all of them at least once, until told to stop.
async fn update(partition: Rc<Partition>, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(1);
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    while !stop.load(Ordering::Relaxed) {
        let count = written.fetch_add(1, Ordering::Relaxed);
        let number = if count < keys() { count } else { random.u64(0..keys()) };
        partition.write(Write::put(key(number), value.clone()), Durability::Buffered).await?;
        runtime::yield_now().await;
    }
    Ok(())
}

/// Reads until told to stop; returns the latencies in nanoseconds.
async fn read(partition: Rc<Partition>, stop: Arc<AtomicBool>, seed: u64) -> Vec<u32> {
    // Other keys than the writer draws.
    let mut random = fastrand::Rng::with_seed(1_000 + seed);
    let mut nanos = Vec::new();
    for count in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        partition.get_with(&key(random.u64(0..keys())), |value| assert!(value.is_some())).await.unwrap();
        if count.is_multiple_of(SAMPLE_EVERY) {
            nanos.push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        runtime::yield_now().await;
    }
    nanos
}

/// p50 and p99.9 in microseconds of reads during `time`.
fn reads_during(handle: &PartitionHandle, time: Duration) -> (f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut nanos: Vec<u32> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|seed| {
                let stop = Arc::clone(&stop);
                scope.spawn(move || block_on(handle.with(async move |partition| Ok(read(partition, stop, seed).await))))
            })
            .collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().flat_map(|reader| reader.join().unwrap().unwrap()).collect()
    });
    nanos.sort_unstable();
    let at = |share: f64| f64::from(nanos[(nanos.len() as f64 * share) as usize]) / 1_000.0;
    (at(0.5), at(0.999))
}

#[test]
fn sustained_updates_stay_within_memory_and_space() {
    let seconds = std::env::var("ANTUMBRA_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8.0);
    let dir = tempfile::tempdir().unwrap();
    let before = resident_bytes();
    let (engine, handle) = open(dir.path());
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (peak, busy) = std::thread::scope(|scope| {
        let writer = {
            let (stop, written, handle) = (Arc::clone(&stop), Arc::clone(&written), handle.clone());
            scope.spawn(move || block_on(handle.with(async move |at| update(at, stop, written).await)))
        };
        let sampler = {
            let stop = Arc::clone(&stop);
            scope.spawn(move || {
                let mut peak = 0;
                while !stop.load(Ordering::Relaxed) {
                    peak = peak.max(resident_bytes());
                    std::thread::sleep(Duration::from_millis(20));
                }
                peak
            })
        };
        while written.load(Ordering::Relaxed) < keys() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let busy = reads_during(&handle, Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap().unwrap();
        (sampler.join().unwrap(), busy)
    });
    let space = || table_bytes(dir.path()) as f64 / (keys() * (KEY_BYTES + VALUE_BYTES) as u64) as f64;
    let (at_once, settling) = (space(), Instant::now());
    while space() > SPACE_MAX && settling.elapsed() < SETTLE_MAX {
        std::thread::sleep(Duration::from_millis(100));
    }
    let (settled, space) = (settling.elapsed().as_secs_f64(), space());
    let quiet = reads_during(&handle, Duration::from_secs_f64((seconds / 4.0).clamp(1.0, 30.0)));
    let taken = peak - before;
    println!(
        "{} updates of {} keys; memory {:.1} MiB of a budget of {:.1} MiB; tables {at_once:.2} times the data, \
         {space:.2} after {settled:.1} s; \
         get p50/p99.9 {:.1}/{:.0} us under updates, {:.1}/{:.0} us quiet",
        written.load(Ordering::Relaxed),
        keys(),
        taken as f64 / f64::from(1 << 20),
        budget_bytes() as f64 / f64::from(1 << 20),
        busy.0,
        busy.1,
        quiet.0,
        quiet.1,
    );
    assert!(taken <= budget_bytes() + budget_bytes() / 10 + PROCESS_BYTES, "{taken} bytes of memory");
    assert!(space <= SPACE_MAX, "tables take {space:.2} times the data");
    block_on(engine.close()).unwrap();
}
