//! The load: loading the keys, then an open loop whose latency counts from the intended time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use antumbra_net::resp::codec::ClientReply;
use tokio::sync::mpsc;

use crate::CliError;
use crate::client::Client;

use super::model::Model;
use super::workload::{Ramp, Step, Workload};

/// Connections to each node. Replies of a connection come in the order of its requests, so that a read behind a write waits for
/// the device: a request takes a connection that nobody waits on while there is one, as clients with a pool do.
const CONNECTIONS: usize = 64;
/// Requests outstanding at most: an open loop that is not bounded would take all memory when a node stands still.
const OUTSTANDING_MAX: usize = 20_000;
/// Times that a request follows MOVED.
const MOVES_MAX: u32 = 20;

/// One finished request.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Intended time, in microseconds of the wall clock since the Unix epoch.
    pub at_us: u64,
    /// From the intended time to the answer.
    pub latency_us: u64,
    pub write: bool,
    pub rank: u32,
}

/// Connections to all nodes, and which one serves the partition.
pub struct Route {
    pools: Vec<Vec<Client>>,
    addresses: Vec<std::net::SocketAddr>,
    owner: AtomicUsize,
}

impl Route {
    /// Connects to the nodes; the first one owns the partition. The connections follow MOVED.
    pub async fn connect(addresses: &[std::net::SocketAddr]) -> Result<Route, CliError> {
        let mut pools = Vec::new();
        for address in addresses {
            let mut pool = Vec::new();
            for _ in 0..CONNECTIONS {
                let client = Client::connect(*address).await?;
                client.command("READONLY").await?;
                pool.push(client);
            }
            pools.push(pool);
        }
        Ok(Route { pools, addresses: addresses.to_vec(), owner: AtomicUsize::new(0) })
    }

    /// A connection to the owner: the first one that nobody waits on, or the one with the fewest who do.
    fn pick(&self) -> &Client {
        let pool = &self.pools[self.owner.load(Ordering::Relaxed)];
        let mut best = &pool[0];
        for client in pool {
            if client.outstanding() == 0 {
                return client;
            }
            if client.outstanding() < best.outstanding() {
                best = client;
            }
        }
        best
    }

    /// Sends a command to the owner, following MOVED.
    pub async fn call(&self, args: &[&[u8]], moved: impl Fn()) -> Result<ClientReply, CliError> {
        for _ in 0..MOVES_MAX {
            match self.pick().call(args).await? {
                ClientReply::Error(what) if what.starts_with("MOVED ") => {
                    moved();
                    let address: Option<std::net::SocketAddr> =
                        what.rsplit(' ').next().and_then(|text| text.parse().ok());
                    let owner = address.and_then(|address| self.addresses.iter().position(|known| *known == address));
                    self.owner.store(owner.ok_or_else(|| format!("unknown node in '{what}'"))?, Ordering::Relaxed);
                }
                reply => return Ok(reply),
            }
        }
        Err("MOVED again and again".into())
    }
}

/// Writes version 0 of every key.
pub async fn load_keys(
    route: &Arc<Route>,
    workload: &Workload,
    progress: &indicatif::ProgressBar,
) -> Result<(), CliError> {
    let (space, keys) = (workload.space, workload.keys());
    const BATCH: u32 = 256;
    const WORKERS: u32 = 8;
    let workers = (0..WORKERS).map(|worker| {
        let (route, progress) = (Arc::clone(route), progress.clone());
        tokio::spawn(async move {
            for first in (worker * BATCH..keys).step_by((WORKERS * BATCH) as usize) {
                let ranks = first..(first + BATCH).min(keys);
                let pairs: Vec<(Vec<u8>, Vec<u8>)> =
                    ranks.clone().map(|rank| (space.key(rank), space.value(rank, 0))).collect();
                let mut args: Vec<&[u8]> = vec![b"MSET"];
                args.extend(pairs.iter().flat_map(|(key, value)| [key.as_slice(), value.as_slice()]));
                match route.call(&args, || {}).await? {
                    ClientReply::Simple(_) => progress.inc(ranks.len() as u64),
                    other => return Err(format!("MSET: {other:?}").into()),
                }
            }
            Ok::<(), CliError>(())
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await??;
    }
    Ok(())
}

/// Runs the open loop for `seconds` or until it is stopped; every finished request becomes a sample.
pub async fn run(
    route: Arc<Route>,
    workload: Arc<Workload>,
    model: Arc<Model>,
    ramp: Ramp,
    seconds: f64,
    stop: Arc<AtomicBool>,
) -> Vec<Sample> {
    let (samples, mut finished) = mpsc::unbounded_channel();
    let collected = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(sample) = finished.recv().await {
            all.push(sample);
        }
        all
    });
    let start = Instant::now();
    let start_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let total = ramp.due(seconds) as u64;
    let slots = Arc::new(tokio::sync::Semaphore::new(OUTSTANDING_MAX));
    let mut schedule = start_schedule(ramp, total, start, stop);
    while let Some((index, intended)) = schedule.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            break;
        };
        let (route, model, samples) = (Arc::clone(&route), Arc::clone(&model), samples.clone());
        let (workload, step) = (Arc::clone(&workload), workload.step(index));
        tokio::spawn(async move {
            let write = request(&route, &model, &workload, step).await;
            let latency = start.elapsed().saturating_sub(intended);
            let _ = samples.send(Sample {
                at_us: start_us + intended.as_micros() as u64,
                latency_us: latency.as_micros() as u64,
                write,
                rank: step.rank,
            });
            drop(slot);
        });
    }
    drop(samples);
    collected.await.unwrap_or_default()
}

/// Tells, on a thread of its own, which request is due: the runtime's timers have a resolution of a millisecond.
fn start_schedule(
    ramp: Ramp,
    total: u64,
    start: Instant,
    stop: Arc<AtomicBool>,
) -> mpsc::UnboundedReceiver<(u64, Duration)> {
    let (due, schedule) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for index in 0..total {
            let intended = Duration::from_secs_f64(ramp.time_of(index));
            std::thread::sleep(intended.saturating_sub(start.elapsed()));
            if stop.load(Ordering::Relaxed) || due.send((index, intended)).is_err() {
                return;
            }
        }
    });
    schedule
}

/// One request against the model. A key whose last write is outstanding is not written; if none is left to write, it
/// becomes a read. Returns whether it wrote.
pub async fn request(route: &Route, model: &Model, workload: &Workload, step: Step) -> bool {
    let (counts, space) = (&model.counts, workload.space);
    let add = |counter: &std::sync::atomic::AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let ranks =
        if step.write { step.rank..step.rank.saturating_add(workload.batch).min(workload.keys()) } else { 0..0 };
    let writes: Vec<(u32, u32)> = ranks.filter_map(|rank| Some((rank, model.begin_write(rank)?))).collect();
    if !writes.is_empty() {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> =
            writes.iter().map(|(rank, version)| (space.key(*rank), space.value(*rank, *version))).collect();
        let mut args: Vec<&[u8]> = vec![if workload.batch == 1 { b"SET" } else { b"MSET" }];
        args.extend(pairs.iter().flat_map(|(key, value)| [key.as_slice(), value.as_slice()]));
        let reply = route.call(&args, || add(&counts.moved)).await;
        let acked = matches!(&reply, Ok(ClientReply::Simple(text)) if text == "OK");
        if !acked {
            counts.note_failure(format!("SET: {reply:?}"));
        }
        for (rank, version) in writes {
            add(&counts.writes);
            add(if acked { &counts.writes_acked } else { &counts.writes_failed });
            model.end_write(rank, version, acked);
        }
        return true;
    }
    let key = space.key(step.rank);
    add(&counts.reads);
    let floor = model.begin_read(step.rank);
    match route.call(&[b"GET", &key], || add(&counts.moved)).await {
        Ok(ClientReply::Bulk(Some(value))) => match space.version(step.rank, &value) {
            Some(version) if model.end_read(step.rank, floor, version) => {}
            _ => add(&counts.reads_stale),
        },
        // Every key was loaded: an answer without a value is as wrong as an old one.
        Ok(ClientReply::Bulk(None)) => add(&counts.reads_stale),
        other => {
            counts.note_failure(format!("GET: {other:?}"));
            add(&counts.reads_failed);
        }
    }
    false
}

/// Reads every key once and counts acknowledged writes that are not there.
pub async fn count_lost(route: &Arc<Route>, model: &Arc<Model>, workload: &Workload) -> Result<u64, CliError> {
    let (space, keys) = (workload.space, workload.keys());
    const BATCH: u32 = 200;
    let mut lost = 0;
    for first in (0..keys).step_by(BATCH as usize) {
        let ranks = first..(first + BATCH).min(keys);
        let names: Vec<Vec<u8>> = ranks.clone().map(|rank| space.key(rank)).collect();
        let mut args: Vec<&[u8]> = vec![b"MGET"];
        args.extend(names.iter().map(Vec::as_slice));
        let ClientReply::Array(values) = route.call(&args, || {}).await? else {
            return Err("MGET: no list".into());
        };
        for (rank, value) in ranks.zip(values) {
            let found = match value {
                ClientReply::Bulk(Some(value)) => space.version(rank, &value),
                _ => None,
            };
            lost += u64::from(model.is_lost(rank, found));
        }
    }
    Ok(lost)
}
