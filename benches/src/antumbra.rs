//! Antumbra as a store: one partition a shard, each an equal part of the key space.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{
    Durability, Engine, EngineConfig, Partition, PartitionHandle, PartitionOptions, PartitionSpec, Write, runtime,
};
use bytes::Bytes;
use futures_lite::future::block_on;

use crate::chooser::Scope;
use crate::client::{Client, ClientRecord, Plan};
use crate::data::{Key, Seen, part_of, part_start};
use crate::error::{Error, Result};
use crate::spec::{Access, Class, Spec};
use crate::store::{Candidate, Session, Store, begin_soon, build_clients, drive_threads};

/// Name in reports and on the command line.
const NAME: &str = "antumbra";

/// Antumbra.
pub const ANTUMBRA: Candidate = Candidate { name: NAME, open };

/// An open engine.
struct Antumbra {
    engine: Engine,
    partitions: Vec<PartitionHandle>,
    access: Access,
    configuration: Vec<(String, String)>,
}

fn open(dir: &Path, spec: &Spec) -> Result<Box<dyn Store>> {
    let mut config = EngineConfig::new(dir);
    config.shards = spec.shards;
    config.first_cpu = spec.first_cpu;
    config.spin = Duration::from_micros(spec.spin_us);
    config.memory_budget_bytes = spec.memory_bytes;
    let options = PartitionOptions::default();
    let configuration = configuration(&config, options, spec.access);
    let engine = Engine::open(config).map_err(|cause| Error::store(NAME, cause))?;
    let mut partitions = Vec::new();
    for shard in 0..spec.shards {
        partitions.push(partition(&engine, shard, spec.shards, options).map_err(|cause| Error::store(NAME, cause))?);
    }
    Ok(Box::new(Antumbra { engine, partitions, access: spec.access, configuration }))
}

/// The partition of a shard; created when the folder is new.
fn partition(
    engine: &Engine,
    shard: usize,
    shards: usize,
    options: PartitionOptions,
) -> antumbra_engine::Result<PartitionHandle> {
    let id = PartitionId(shard as u64 + 1);
    if let Ok(found) = engine.partition(id) {
        return Ok(found);
    }
    let border = |part: usize| Key::at(part_start(part, shards)).bytes.to_vec();
    let start = if shard == 0 { Vec::new() } else { border(shard) };
    let end = (shard + 1 < shards).then(|| border(shard + 1));
    let range = KeyRange { start, end };
    let spec = PartitionSpec { id, keyspace: "bench".into(), range, epoch: Epoch(1), options };
    block_on(engine.create_partition(ShardId(shard as u16), spec))
}

fn configuration(config: &EngineConfig, options: PartitionOptions, access: Access) -> Vec<(String, String)> {
    let text = |name: &str, value: String| (name.to_string(), value);
    vec![
        text("version", env!("CARGO_PKG_VERSION").into()),
        text("access", format!("{access:?}").to_lowercase()),
        text("shards", config.shards.to_string()),
        text("first CPU", config.first_cpu.map_or("not pinned".into(), |cpu| cpu.to_string())),
        text("spin", format!("{} us", config.spin.as_micros())),
        text("memory budget", format!("{} MiB (memtables and caches)", config.memory_budget_bytes >> 20)),
        text("segment target", format!("{} KiB", options.segment_target_bytes >> 10)),
        text("block", format!("{} KiB", options.block_bytes >> 10)),
        text("device access", "O_DIRECT, no page cache".into()),
        text("durable", "O_DSYNC group commit before the acknowledgement".into()),
        text(
            "buffered",
            "in the log's queue; on the device with the next group commit, about a millisecond later".into(),
        ),
    ]
}

impl Store for Antumbra {
    fn configuration(&self) -> Vec<(String, String)> {
        self.configuration.clone()
    }

    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        match self.access {
            Access::Shard => self.drive_on_shards(plan),
            Access::Handle => drive_threads(plan, || Ok(ByHandle { partitions: self.partitions.clone() })),
        }
    }

    fn settle(&self) -> Result<()> {
        for partition in &self.partitions {
            block_on(partition.compact()).map_err(|cause| Error::store(NAME, cause))?;
        }
        Ok(())
    }

    fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let stats = block_on(self.engine.stats()).map_err(|cause| Error::store(NAME, cause))?;
        let slices = stats.partitions.iter().map(|partition| partition.slices).sum::<usize>();
        let cache = stats.cache;
        let counts = [
            ("segments", stats.segments as u64),
            ("slices", slices as u64),
            ("table KiB", stats.table_bytes >> 10),
            ("memtable KiB", stats.memtable_bytes as u64 >> 10),
            ("cache budget KiB", cache.budget_bytes as u64 >> 10),
            ("cached KiB", cache.block_bytes as u64 >> 10),
            ("charged KiB", cache.charged_bytes as u64 >> 10),
            ("mapped KiB", cache.mapped_bytes as u64 >> 10),
            ("blocks read", cache.blocks_read),
        ];
        Ok(counts.into_iter().map(|(name, count)| (name.to_string(), count)).collect())
    }

    fn close(self: Box<Self>) -> Result<()> {
        drop(self.partitions);
        block_on(self.engine.close()).map_err(|cause| Error::store(NAME, cause))
    }
}

impl Antumbra {
    /// Client `n` runs on shard `n % shards`, beside the keys of that shard.
    fn drive_on_shards(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        let shards = self.partitions.len();
        let scope = |client: usize| {
            let shard = client % shards;
            let stripes = (plan.clients - shard).div_ceil(shards);
            Scope { part: Some((shard, shards)), placing: plan.placing, stripe: client / shards, stripes }
        };
        if plan.clients < shards {
            let what = format!("{} clients cannot reach {shards} shards: use --access handle", plan.clients);
            return Err(Error::refused(what));
        }
        let scopes: Vec<Scope> = (0..plan.clients).map(scope).collect();
        let clients = build_clients(plan, &scopes)?;
        let begin = begin_soon();
        let (done, records) = std::sync::mpsc::channel();
        for (number, client) in clients.into_iter().enumerate() {
            let partition = &self.partitions[number % shards];
            let (id, done) = (partition.id(), done.clone());
            let started = self.engine.spawn_on_shard(partition.shard(), move |shard| async move {
                let record = match shard.partition(id) {
                    Ok(partition) => run_on_shard(client, partition, begin).await,
                    Err(cause) => Err(Error::store(NAME, cause)),
                };
                // The caller waits for as many as it started.
                let _ = done.send(record);
            });
            block_on(started).map_err(|cause| Error::store(NAME, cause))?;
        }
        drop(done);
        let records: Vec<ClientRecord> = records.iter().collect::<Result<_>>()?;
        if records.len() < plan.clients {
            return Err(Error::client("a client on a shard ended without a record"));
        }
        Ok(records)
    }
}

async fn run_on_shard(client: Client, partition: Rc<Partition>, begin: Instant) -> Result<ClientRecord> {
    runtime::sleep(begin.saturating_duration_since(Instant::now())).await;
    client.run(OnShard { partition }, begin).await
}

fn durability(class: Class) -> Durability {
    match class {
        Class::Durable => Durability::Durable,
        Class::Buffered => Durability::Buffered,
    }
}

/// A write that owns its bytes: the engine keeps them.
fn write(key: &Key, value: &[u8]) -> Write {
    Write::put(Bytes::copy_from_slice(&key.bytes), Bytes::copy_from_slice(value))
}

/// Keys from `start` on.
fn range_from(start: &[u8]) -> KeyRange {
    KeyRange { start: start.to_vec(), end: None }
}

/// A client on the core of its keys.
struct OnShard {
    partition: Rc<Partition>,
}

impl Session for OnShard {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        let seen = self.partition.get_with(&key.bytes, |value| value.map(Seen::of)).await;
        seen.map_err(|cause| Error::store(NAME, cause))
    }

    async fn put(&mut self, key: &Key, value: &[u8], class: Class) -> Result<()> {
        let written = self.partition.write(write(key, value), durability(class)).await;
        written.map(drop).map_err(|cause| Error::store(NAME, cause))
    }

    async fn scan(&mut self, start: &Key, rows: usize) -> Result<usize> {
        // A scan that reaches the end of the shard's part is shorter than asked.
        let mut found = 0;
        let visit = |key: &[u8], value: &[u8]| {
            std::hint::black_box((key, Seen::of(value)));
            found += 1;
            if found == rows { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let scanned = self.partition.scan_with(&range_from(&start.bytes), visit).await;
        scanned.map(|()| found).map_err(|cause| Error::store(NAME, cause))
    }

    async fn give_way(&mut self) {
        runtime::yield_now().await;
    }
}

/// A client on a thread of its own.
struct ByHandle {
    partitions: Vec<PartitionHandle>,
}

impl ByHandle {
    fn partition(&self, key: &Key) -> &PartitionHandle {
        &self.partitions[part_of(key.place, self.partitions.len())]
    }
}

impl Session for ByHandle {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        let found = self.partition(key).get(Bytes::copy_from_slice(&key.bytes)).await;
        Ok(found.map_err(|cause| Error::store(NAME, cause))?.map(|value| Seen::of(&value)))
    }

    async fn put(&mut self, key: &Key, value: &[u8], class: Class) -> Result<()> {
        let written = self.partition(key).write(write(key, value), durability(class)).await;
        written.map(drop).map_err(|cause| Error::store(NAME, cause))
    }

    async fn scan(&mut self, start: &Key, rows: usize) -> Result<usize> {
        let mut found = 0;
        for partition in &self.partitions[part_of(start.place, self.partitions.len())..] {
            let page = partition.scan(range_from(&start.bytes), rows - found).await;
            found += page.map_err(|cause| Error::store(NAME, cause))?.items.len();
            if found == rows {
                break;
            }
        }
        Ok(found)
    }
}
