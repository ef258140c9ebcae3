//! Times the engine's hot paths one by one, on the shard and through the handle.
//!
//! `cargo run --release -p antumbra-engine --example measure -- --dir DIR [--keys N] [--value-bytes N] [--memory-mb N]
//! [--seconds N] [--only NAME]` prints one line a path: operations per second and the latency's quantiles. Absolute
//! figures depend on the machine; compare two builds by interleaved runs.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{
    Durability, Engine, EngineConfig, Partition, PartitionHandle, PartitionOptions, PartitionSpec, Write, runtime,
};
use bytes::Bytes;
use futures_lite::future::block_on;

const PARTITION: PartitionId = PartitionId(1);
/// Operations between two looks at the clock and two chances for other tasks.
const BATCH: usize = 64;
/// Every so many operations one is timed alone.
const SAMPLE_EVERY: usize = 16;

#[derive(Clone)]
struct Options {
    dir: PathBuf,
    keys: u64,
    value_bytes: usize,
    memory_mb: usize,
    seconds: f64,
    only: Option<String>,
}

fn main() {
    let options = parse();
    let mut config = EngineConfig::new(&options.dir);
    config.memory_budget_bytes = options.memory_mb << 20;
    let engine = Engine::open(config).unwrap();
    let fresh = engine.partition(PARTITION).is_err();
    if fresh {
        let spec = PartitionSpec {
            id: PARTITION,
            keyspace: "measure".into(),
            range: KeyRange::all(),
            epoch: Epoch(1),
            options: PartitionOptions::default(),
        };
        block_on(engine.create_partition(ShardId(0), spec)).unwrap();
    }
    let handle = engine.partition(PARTITION).unwrap();
    println!("{} keys of 24 B, values of {} B, {} MiB", options.keys, options.value_bytes, options.memory_mb);
    if fresh {
        on_shard(&handle, &options, "load, buffered", load);
        let begin = Instant::now();
        block_on(handle.compact()).unwrap();
        println!("{:<28} {:.2} s", "compact all", begin.elapsed().as_secs_f64());
    }
    on_shard(&handle, &options, "warm-up", warm_up);
    on_shard(&handle, &options, "get uniform", |p, o, s| gets(p, o, s, Pick::Uniform));
    on_shard(&handle, &options, "get zipf", |p, o, s| gets(p, o, s, Pick::Zipf));
    on_shard(&handle, &options, "get absent", |p, o, s| gets(p, o, s, Pick::Absent));
    on_shard(&handle, &options, "scan of 50", scans);
    on_shard(&handle, &options, "update zipf, buffered", updates);
    on_shard(&handle, &options, "get zipf after updates", |p, o, s| gets(p, o, s, Pick::Zipf));
    on_shard(&handle, &options, "durable put, 1 client", |p, o, s| durable(p, o, s, 1));
    on_shard(&handle, &options, "durable put, 64 clients", |p, o, s| durable(p, o, s, 64));
    through_handle(&handle, &options);
    idle(&options);
    block_on(engine.close()).unwrap();
}

fn parse() -> Options {
    let mut options = Options {
        dir: PathBuf::from("antumbra-measure"),
        keys: 1_000_000,
        value_bytes: 256,
        memory_mb: 1024,
        seconds: 2.0,
        only: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{name} wants a value"));
        match name.as_str() {
            "--dir" => options.dir = value.into(),
            "--keys" => options.keys = value.parse().unwrap(),
            "--value-bytes" => options.value_bytes = value.parse().unwrap(),
            "--memory-mb" => options.memory_mb = value.parse().unwrap(),
            "--seconds" => options.seconds = value.parse().unwrap(),
            "--only" => options.only = Some(value),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

/// Latencies of single operations, in nanoseconds, and how many operations there were.
#[derive(Default)]
struct Samples {
    nanos: Vec<u32>,
    operations: u64,
    elapsed: Duration,
}

impl Samples {
    fn print(mut self, name: &str) {
        self.nanos.sort_unstable();
        let at = |share: f64| {
            let last = self.nanos.len().saturating_sub(1);
            f64::from(*self.nanos.get((last as f64 * share) as usize).unwrap_or(&0)) / 1_000.0
        };
        let rate = self.operations as f64 / self.elapsed.as_secs_f64();
        println!(
            "{name:<28} {rate:>12.0} op/s {:>8.0} ns/op   p50 {:.2} us  p99 {:.2} us  p99.9 {:.2} us  max {:.0} us",
            1e9 / rate,
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
}

fn on_shard<F, Fut>(handle: &PartitionHandle, options: &Options, name: &str, work: F)
where
    F: FnOnce(Rc<Partition>, Options, Samples) -> Fut + Send + 'static,
    Fut: Future<Output = Samples> + 'static,
{
    if options.only.as_ref().is_some_and(|only| !name.contains(only) && name != "warm-up") {
        return;
    }
    let options = options.clone();
    let samples = block_on(handle.with(move |partition| {
        let work = work(partition, options, Samples::default());
        async move { Ok(work.await) }
    }));
    samples.unwrap().print(name);
}

#[derive(Clone, Copy)]
enum Pick {
    Uniform,
    Zipf,
    Absent,
}

/// 24 bytes, in no order by number.
fn key(number: u64) -> [u8; 24] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut key = *b"user----0000000000000000";
    for place in &mut key[8..] {
        *place = DIGITS[(mixed >> 60) as usize];
        mixed <<= 4;
    }
    key
}

/// Numbers drawn beforehand, so that drawing is not timed.
fn picks(options: &Options, pick: Pick) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(7);
    let count = 1 << 20;
    match pick {
        Pick::Uniform => (0..count).map(|_| random.u64(0..options.keys)).collect(),
        Pick::Absent => (0..count).map(|_| options.keys + random.u64(0..options.keys)).collect(),
        Pick::Zipf => {
            let mut sums = Vec::with_capacity(options.keys as usize);
            let mut sum = 0.0;
            for rank in 1..=options.keys {
                sum += (rank as f64).powf(-0.99);
                sums.push(sum);
            }
            (0..count).map(|_| sums.partition_point(|below| *below < random.f64() * sum) as u64).collect()
        }
    }
}

async fn load(partition: Rc<Partition>, options: Options, mut samples: Samples) -> Samples {
    let value = Bytes::from(vec![b'v'; options.value_bytes]);
    let begin = Instant::now();
    for number in 0..options.keys {
        let write = Write::put(Bytes::copy_from_slice(&key(number)), value.clone());
        timed(&mut samples, partition.write(write, Durability::Buffered)).await;
        runtime::yield_now().await;
    }
    samples.elapsed = begin.elapsed();
    samples
}

async fn timed<T>(samples: &mut Samples, work: impl Future<Output = antumbra_engine::Result<T>>) {
    samples.operations += 1;
    if samples.operations.is_multiple_of(SAMPLE_EVERY as u64) {
        let begin = Instant::now();
        work.await.unwrap();
        samples.nanos.push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
    } else {
        work.await.unwrap();
    }
}

async fn warm_up(partition: Rc<Partition>, options: Options, mut samples: Samples) -> Samples {
    let begin = Instant::now();
    for number in 0..options.keys {
        partition.get(&key(number)).await.unwrap();
        samples.operations += 1;
        runtime::yield_now().await;
    }
    samples.elapsed = begin.elapsed();
    samples
}

async fn gets(partition: Rc<Partition>, options: Options, mut samples: Samples, pick: Pick) -> Samples {
    let picks = picks(&options, pick);
    let begin = Instant::now();
    'run: loop {
        for batch in picks.chunks(BATCH) {
            for number in batch {
                let key = key(*number);
                timed(&mut samples, partition.get(&key)).await;
            }
            if begin.elapsed().as_secs_f64() > options.seconds {
                break 'run;
            }
            runtime::yield_now().await;
        }
    }
    samples.elapsed = begin.elapsed();
    samples
}

async fn scans(partition: Rc<Partition>, options: Options, mut samples: Samples) -> Samples {
    let picks = picks(&options, Pick::Zipf);
    let begin = Instant::now();
    for number in picks.iter().cycle() {
        let range = KeyRange { start: key(*number).to_vec(), end: None };
        timed(&mut samples, partition.scan(&range, 50)).await;
        if begin.elapsed().as_secs_f64() > options.seconds {
            break;
        }
        runtime::yield_now().await;
    }
    samples.elapsed = begin.elapsed();
    samples
}

async fn updates(partition: Rc<Partition>, options: Options, mut samples: Samples) -> Samples {
    let picks = picks(&options, Pick::Zipf);
    let value = Bytes::from(vec![b'w'; options.value_bytes]);
    let begin = Instant::now();
    for number in picks.iter().cycle() {
        let write = Write::put(Bytes::copy_from_slice(&key(*number)), value.clone());
        timed(&mut samples, partition.write(write, Durability::Buffered)).await;
        if samples.operations.is_multiple_of(BATCH as u64) {
            if begin.elapsed().as_secs_f64() > options.seconds {
                break;
            }
            runtime::yield_now().await;
        }
    }
    samples.elapsed = begin.elapsed();
    samples
}

async fn durable(partition: Rc<Partition>, options: Options, mut samples: Samples, clients: u64) -> Samples {
    let begin = Instant::now();
    let (results, ended) = async_channel::unbounded();
    for client in 0..clients {
        let (partition, options, results) = (Rc::clone(&partition), options.clone(), results.clone());
        runtime::spawn_detached(async move {
            let mut samples = Samples::default();
            let mut random = fastrand::Rng::with_seed(client);
            let value = Bytes::from(vec![b'd'; options.value_bytes]);
            while begin.elapsed().as_secs_f64() < options.seconds {
                let one = Instant::now();
                let key = Bytes::copy_from_slice(&key(random.u64(0..options.keys)));
                partition.write(Write::put(key, value.clone()), Durability::Durable).await.unwrap();
                samples.nanos.push(one.elapsed().as_nanos() as u32);
                samples.operations += 1;
            }
            results.try_send(samples).unwrap();
        });
    }
    for _ in 0..clients {
        let one = ended.recv().await.unwrap();
        samples.operations += one.operations;
        samples.nanos.extend(one.nanos);
    }
    samples.elapsed = begin.elapsed();
    samples
}

/// One caller on another thread.
fn through_handle(handle: &PartitionHandle, options: &Options) {
    let name = "get zipf through handle";
    if options.only.as_ref().is_some_and(|only| !name.contains(only)) {
        return;
    }
    let picks = picks(options, Pick::Zipf);
    let mut samples = Samples::default();
    let begin = Instant::now();
    for number in picks.iter().cycle() {
        let key = Bytes::copy_from_slice(&key(*number));
        block_on(timed(&mut samples, handle.get(key)));
        if begin.elapsed().as_secs_f64() > options.seconds {
            break;
        }
    }
    samples.elapsed = begin.elapsed();
    samples.print(name);
}

/// Processor time of the process while nobody asks for anything.
fn idle(options: &Options) {
    let name = "idle";
    if options.only.as_ref().is_some_and(|only| !name.contains(only)) {
        return;
    }
    std::thread::sleep(Duration::from_secs(1));
    let (before, begin) = (processor_seconds(), Instant::now());
    std::thread::sleep(Duration::from_secs_f64(options.seconds.max(3.0)));
    let share = (processor_seconds() - before) / begin.elapsed().as_secs_f64();
    println!("{name:<28} {:.2} % of a core", share * 100.0);
}

/// Seconds of processor time that this process has used.
fn processor_seconds() -> f64 {
    let mut nanos = 0_u64;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        nanos += text.split_whitespace().next().and_then(|run| run.parse::<u64>().ok()).unwrap_or(0);
    }
    nanos as f64 / 1e9
}
