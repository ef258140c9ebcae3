//! The pieces that run for every request, record, frame or window. `hot` times them, `guard` counts their instructions.
//!
//! Each says what the machine's limits let one expect of it: a core of 3 GHz, 10 GB/s of memory bandwidth, 60 ns to memory.
//! What runs on a shard runs there: its thread does the counting and the timing.
#![allow(clippy::unwrap_used)]
// Each of the two uses its part.
#![allow(dead_code)]

mod wire;

use std::hint::black_box;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use antumbra_engine::record::{Record, RecordKind};
use antumbra_engine::table::{
    HashedKey, NoCache, TableBuilder, TableOptions, TableReader, decode_records, encode_records, verify_image,
};
use antumbra_engine::types::{Epoch, Hlc, KeyRange, Lsn, PartitionId, ShardId};
use antumbra_engine::{Batch, Durability, Engine, Partition, PartitionHandle, PartitionOptions, PartitionSpec, Write};
use antumbra_predictor::Model;
use antumbra_predictor::scorer::{Gru, Scorer, ScorerKind, build};
use antumbra_predictor::window::SegmentCounts;
use bytes::Bytes;
use futures_lite::future::block_on;
use tempfile::TempDir;

use wire::{
    bucket, delta_compress, delta_decompress, frame_decode, frame_encode, resp_parse, rkyv_unchecked, rkyv_validated,
};

/// Where the guard has engines keep their data, so that what is counted finds its tables there: making files takes long under
/// the guard's tool.
pub static KEPT_IN: OnceLock<PathBuf> = OnceLock::new();

/// What an iteration works on, for the rate.
#[derive(Clone, Copy)]
pub enum Work {
    /// So many bytes.
    Bytes(u64),
    /// So many operations, records or segments.
    Elements(u64),
}

/// A piece.
pub struct Piece {
    /// Of one iteration.
    pub work: Work,
    /// Runs it so many times, on the thread where it belongs; how long that took.
    pub run: Box<dyn FnMut(u64) -> Duration>,
    /// Iterations that the guard counts.
    pub counted: u64,
}

/// The guard's tool collects while this is on the stack.
#[inline(never)]
pub fn counted_region(iterations: u64, work: &mut dyn FnMut()) -> Duration {
    let began = Instant::now();
    for _ in 0..iterations {
        work();
    }
    began.elapsed()
}

fn piece(work: Work, counted: u64, mut once: impl FnMut() + 'static) -> Piece {
    Piece { work, counted, run: Box::new(move |iterations| counted_region(iterations, &mut once)) }
}

/// Sets a piece up.
type Make = fn() -> Piece;

/// All pieces by name, each made when it is its turn.
pub const PIECES: &[(&str, Make)] = &[
    ("get, hot row", get_hot_row),
    ("get, cached block", get_cached_block),
    ("get, memtable", get_memtable),
    ("get, absent", get_absent),
    ("put, memory", put_memory),
    ("scan, 100 cached records", scan_cached),
    ("table, build", table_build),
    ("table, verify", table_verify),
    ("records, encode", records_encode),
    ("records, decode", records_decode),
    ("crc32c of 4 KiB", checksum),
    ("delta, compress", delta_compress),
    ("delta, decompress", delta_decompress),
    ("frame, encode", frame_encode),
    ("frame, decode", frame_decode),
    ("resp, parse SET", resp_parse),
    ("token bucket", bucket),
    ("gru pass", gru_pass),
    ("auto pass", auto_pass),
];

/// Pieces that are timed alone: the first two wait for the device, so that their instructions depend on when it answers; the
/// others have no count in instructions.txt yet.
pub const TIMED: &[(&str, Make)] = &[
    ("put, buffered", put_buffered),
    ("group commit, 64 clients", group_commit),
    ("bloom, absent key", bloom),
    ("rkyv, validated access", rkyv_validated),
    ("rkyv, access alone", rkyv_unchecked),
];

// ---- on a shard ---------------------------------------------------------------------------------------------------------

const KEYS: u64 = 20_000;
const VALUE_BYTES: usize = 100;
const BATCH: usize = 1_000;

fn key(number: u64) -> [u8; 12] {
    let mut key = *b"key-00000000";
    // Neighbours in time are none in key order.
    let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    key[4..].copy_from_slice(format!("{scattered:08x}").as_bytes());
    key
}

/// An engine with one shard and one partition of [`KEYS`] records.
struct Stage {
    partition: PartitionHandle,
    _engine: Engine,
    _scratch: Option<TempDir>,
}

impl Stage {
    fn new(in_tables: bool) -> Stage {
        let (scratch, dir) = match KEPT_IN.get() {
            Some(dir) => (None, dir.clone()),
            None => {
                let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
                let dir = scratch.path().to_path_buf();
                (Some(scratch), dir)
            }
        };
        let mut builder = Engine::builder(dir).threads(1).memory_budget(256 << 20);
        // Windows close when nothing is counted.
        builder.config().window = Duration::from_secs(3600);
        if KEPT_IN.get().is_some() {
            // No other thread runs under the guard's tool while a shard sleeps in the kernel; and a shard whose turn is over
            // before it begins takes its work for done.
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            builder = builder.pin_from(std::process::id() as usize % cpus).spin(Duration::from_millis(50));
            builder.config().preempt = Duration::from_secs(1);
        }
        let engine = builder.open().unwrap();
        let spec = PartitionSpec {
            id: PartitionId(1),
            keyspace: "bench".into(),
            range: KeyRange::all(),
            epoch: Epoch(1),
            options: PartitionOptions::default(),
        };
        let kept = engine.partition(spec.id);
        let loaded = in_tables && kept.is_ok();
        let partition = kept.or_else(|_| block_on(engine.create_partition(ShardId(0), spec))).unwrap();
        if !loaded {
            block_on(partition.with(load)).unwrap();
        }
        if in_tables && !loaded {
            block_on(partition.compact()).unwrap();
        }
        Stage { partition, _engine: engine, _scratch: scratch }
    }

    /// A piece whose iterations `step` does on the shard, each told its number. What waits for the device, or lets others run,
    /// is timed; what is counted (`counted` is not 0) must not.
    fn piece<S>(self, work: Work, counted: u64, step: S) -> Piece
    where
        S: AsyncFn(&Partition, u64) -> antumbra_engine::Result<()> + Clone + Send + 'static,
    {
        let mut first = 0;
        let run = move |iterations: u64| {
            let (step, numbers) = (step.clone(), first..first + iterations);
            first += iterations;
            let steps = move |partition: Rc<Partition>| async move {
                if KEPT_IN.get().is_some() {
                    let mut numbers = numbers.into_iter();
                    let mut once = || now(step(&partition, numbers.next().unwrap())).unwrap();
                    return Ok(counted_region(iterations, &mut once));
                }
                let began = Instant::now();
                for number in numbers {
                    step(&partition, number).await?;
                }
                Ok(began.elapsed())
            };
            // All of it is captured: the folder goes with it.
            let stage = &self;
            block_on(stage.partition.with(steps)).unwrap()
        };
        Piece { work, counted, run: Box::new(run) }
    }
}

/// Fills the partition.
async fn load(partition: Rc<Partition>) -> antumbra_engine::Result<()> {
    for first in (0..KEYS).step_by(BATCH) {
        let mut batch = Batch::new();
        for number in first..first + BATCH as u64 {
            batch.put(key(number).to_vec(), vec![number as u8; VALUE_BYTES]);
        }
        partition.commit(batch, Durability::Memory).await?;
    }
    Ok(())
}

/// Brings every block into the cache.
async fn read_all(partition: Rc<Partition>) -> antumbra_engine::Result<()> {
    partition.scan_with(&KeyRange::all(), |_, _| std::ops::ControlFlow::Continue(())).await
}

/// The value of a future that does not wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waits for the device"),
    }
}

async fn get(partition: &Partition, key: &[u8], found: bool) -> antumbra_engine::Result<()> {
    let value = partition.get_with(key, |value| value.map(|value| value.len())).await?;
    assert_eq!(value.is_some(), found);
    Ok(())
}

/// A key that is read again and again: found by its hash alone. Two cache misses, about 150 ns.
fn get_hot_row() -> Piece {
    let stage = Stage::new(true);
    let partition = stage.partition.clone();
    // Twice from its table, then it is kept.
    let warm = |partition: Rc<Partition>| async move {
        for number in 0..3 * 64 {
            partition.get(&key(number % 64)).await?;
        }
        Ok(())
    };
    block_on(partition.with(warm)).unwrap();
    stage.piece(Work::Elements(1), 20_000, async |partition, number| get(partition, &key(number % 64), true).await)
}

/// Keys all over a table whose blocks are cached: directory, filter, block, six misses, about 500 ns.
fn get_cached_block() -> Piece {
    let stage = Stage::new(true);
    let partition = stage.partition.clone();
    block_on(partition.with(read_all)).unwrap();
    stage.piece(Work::Elements(1), 20_000, async |partition, number| {
        get(partition, &key(number * 7919 % KEYS), true).await
    })
}

/// Keys that are in a memtable: a walk down its levels, a miss for each, about 500 ns.
fn get_memtable() -> Piece {
    Stage::new(false).piece(Work::Elements(1), 20_000, async |partition, number| {
        get(partition, &key(number * 7919 % KEYS), true).await
    })
}

/// Keys that are not there: the filter says so, two misses, about 200 ns.
fn get_absent() -> Piece {
    let stage = Stage::new(true);
    // A key in a hundred is read from its block all the same: all of them are cached.
    let partition = stage.partition.clone();
    block_on(partition.with(read_all)).unwrap();
    stage.piece(Work::Elements(1), 20_000, async |partition, number| {
        get(partition, &key(KEYS + number % 1_000_000), false).await
    })
}

/// Updates a key, another one for each number.
async fn put(partition: &Partition, number: u64, durability: Durability) -> antumbra_engine::Result<()> {
    static VALUE: [u8; VALUE_BYTES] = [7; VALUE_BYTES];
    let write = Write::put(key(number * 7919 % KEYS).to_vec(), Bytes::from_static(&VALUE));
    partition.write(write, durability).await.map(drop)
}

/// An update that no log holds: mostly the memtable's, as deep as a lookup there, and a copy of the value: about 700 ns.
/// Where it is timed there are so many that it goes in step with the flushes.
fn put_memory() -> Piece {
    let step = async |partition: &Partition, number| put(partition, number, Durability::Memory).await;
    Stage::new(false).piece(Work::Elements(1), 10_000, step)
}

/// An update that the log takes too, unless it is on the device by then: the memtable's part as above, then the record is encoded
/// into the open batch, a copy of 130 bytes and its share of a checksum, about 50 ns; and the device's time for its share of
/// a batch, which no more than 200 MB/s of log allow: about 700 ns.
fn put_buffered() -> Piece {
    let step = async |partition: &Partition, number| put(partition, number, Durability::Buffered).await;
    Stage::new(false).piece(Work::Elements(1), 0, step)
}

/// Durable puts of 64 clients at once: they share one batch of 8 KiB and one durable write, 100 us; 64 puts in memory, 50 us,
/// which run beside the write of the batch before: about 2 us each.
fn group_commit() -> Piece {
    const CLIENTS: u64 = 64;
    Stage::new(false).piece(Work::Elements(CLIENTS), 0, async |partition, round| {
        let puts = (0..CLIENTS).map(|client| put(partition, round * CLIENTS + client, Durability::Durable));
        futures_util::future::try_join_all(puts).await.map(drop)
    })
}

/// A hundred records in key order out of cached blocks: one lookup, then bandwidth; about 3 us.
fn scan_cached() -> Piece {
    const RECORDS: u64 = 100;
    let stage = Stage::new(true);
    let partition = stage.partition.clone();
    block_on(partition.with(read_all)).unwrap();
    stage.piece(Work::Elements(RECORDS), 300, async |partition, number| {
        let range = KeyRange { start: key(number * 7919 % (KEYS / 2)).to_vec(), end: None };
        let mut seen = 0;
        let visit = |_: &[u8], _: &[u8]| {
            seen += 1;
            if seen < RECORDS { std::ops::ControlFlow::Continue(()) } else { std::ops::ControlFlow::Break(()) }
        };
        partition.scan_with(&range, visit).await
    })
}

// ---- tables and records -------------------------------------------------------------------------------------------------

fn records(count: u64) -> Vec<Record> {
    (0..count)
        .map(|number| Record {
            key: format!("key-{number:08}").into_bytes().into(),
            lsn: Lsn(number + 1),
            hlc: Hlc(number),
            kind: RecordKind::Put,
            expires_at_ms: 0,
            value: vec![b'v'; 256].into(),
        })
        .collect()
}

fn bytes_of(records: &[Record]) -> Work {
    Work::Bytes(records.iter().map(|record| (record.key.len() + record.value.len()) as u64).sum())
}

fn built(records: &[Record]) -> Vec<u8> {
    let mut builder = TableBuilder::new(TableOptions::default());
    records.iter().for_each(|record| builder.add(record.view()).unwrap());
    builder.finish().unwrap().bytes.to_vec()
}

/// A table out of sorted records: copy, hash, checksum: about 1 GB/s.
fn table_build() -> Piece {
    let records = records(1_000);
    piece(bytes_of(&records), 3, move || drop(black_box(built(&records))))
}

/// Every check of a table's image: checksum and order of the keys: about 2 GB/s.
fn table_verify() -> Piece {
    let records = records(1_000);
    let image = built(&records);
    piece(bytes_of(&records), 5, move || {
        black_box(now(verify_image(&image)).unwrap());
    })
}

/// Records as the mirror sends them and an image holds them: bandwidth.
fn records_encode() -> Piece {
    let records = records(1_000);
    piece(bytes_of(&records), 10, move || {
        black_box(encode_records(records.iter().map(Record::view)).unwrap());
    })
}

/// The way back, checked: bandwidth, and an allocation a record.
fn records_decode() -> Piece {
    let records = records(1_000);
    let bytes = encode_records(records.iter().map(Record::view)).unwrap();
    piece(bytes_of(&records), 10, move || drop(black_box(decode_records(&bytes).unwrap())))
}

/// A table's filter alone: the key's hash, then a cache line or two: 20 ns while it stays in the cache.
fn bloom() -> Piece {
    let image: &'static [u8] = built(&records(10_000)).leak();
    let reader = now(TableReader::open(image, 0, image.len() as u64, "piece".as_ref())).unwrap();
    let mut number = 0_u64;
    piece(Work::Elements(1), 20_000, move || {
        number += 1;
        // Between two keys of the table. One in a hundred passes, and its block is not in the cache.
        let mut key = *b"key-0000....x";
        for (digit, power) in key[8..12].iter_mut().zip([1_000, 100, 10, 1]) {
            *digit = b'0' + (number / power % 10) as u8;
        }
        black_box(reader.lookup(HashedKey::from(&key[..]), Lsn(u64::MAX), &NoCache, true));
    })
}

/// The checksum of a block: three instructions in flight, 20 GB/s.
fn checksum() -> Piece {
    let block = vec![0x5a; 4096];
    piece(Work::Bytes(4096), 2_000, move || {
        black_box(crc32c::crc32c(black_box(&block)));
    })
}

// ---- predictor ----------------------------------------------------------------------------------------------------------

const SEGMENTS: usize = 1_024;

fn counts() -> Vec<SegmentCounts> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut counts = || SegmentCounts {
        reads: random.u32(0..50),
        writes: random.u32(0..5),
        bytes: 4_000,
        ..SegmentCounts::default()
    };
    (0..SEGMENTS).map(|_| counts()).collect()
}

/// Features and a step of the GRU for each segment: 3,000 multiplications a segment, about 70 ns.
fn gru_pass() -> Piece {
    let (counts, mut gru) = (counts(), Gru::new(&Model::shipped().unwrap(), SEGMENTS));
    piece(Work::Elements(SEGMENTS as u64), 3, move || gru.observe(&counts))
}

/// The same with all rules and the guard over them, as a shard runs it: about 200 ns a segment.
fn auto_pass() -> Piece {
    let (counts, mut auto) = (counts(), build(ScorerKind::Auto, Some(&Model::shipped().unwrap()), SEGMENTS).unwrap());
    piece(Work::Elements(SEGMENTS as u64), 3, move || auto.observe(&counts))
}
