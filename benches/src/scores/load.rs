//! The loads under which the uses of the scores are measured. Keys are in the order of their numbers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use antumbra_engine::types::KeyRange;
use antumbra_engine::{Durability, Partition, Write, runtime};
use bytes::Bytes;
use futures_util::future::{LocalBoxFuture, try_join_all};
use serde::Serialize;

use crate::local::{VALUE_BYTES, median};
use crate::zipf::Zipf;

/// Rows of a page.
const PAGE_ROWS: usize = 50;
/// Clients that read at random.
const CLIENTS: u64 = 16;
/// Clients that scan.
const SCANNERS: u64 = 4;
/// The hot part of the keys, one in so many.
const HOT_FIFTH: u64 = 5;
const HOT_SCANS: u64 = 20;
/// Steps between two chances for other tasks, if none of them has to wait.
const STEPS: u64 = 16;
/// Updates every millisecond of a load that writes, over all keys.
const UPDATES_A_MS: u64 = 30;

type Done = antumbra_engine::Result<()>;

/// A load; each in closed loops on the shard's core.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// 9 of 10 gets, by 16 clients, in a fifth of the keys; the others anywhere.
    HotFifth,
    /// A front: one client gets every key, in their order.
    Front,
    /// One client reads pages of 50 rows in the order of the keys; 16 get keys at random beside it.
    PagesBesideRandom,
    /// Gets by 16 clients, zipf over keys in their order: the hot rows lie together, cold ones among them.
    HotRows,
    /// 4 clients scan 50 rows in a twentieth of the keys, while keys everywhere are updated.
    ScansUnderWrites,
    /// 16 clients get keys of a twentieth, while keys everywhere are updated.
    GetsUnderWrites,
}

/// What a load measured.
#[derive(Debug, Default)]
pub(super) struct Samples {
    nanos: Vec<u32>,
    operations: u64,
    beside: u64,
    elapsed: Duration,
    /// Where the front is.
    pub front: u64,
}

/// Figures of one round, or medians of some.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Operations a second of the clients that the load is about.
    pub ops_per_second: f64,
    /// Their latency.
    pub p50_us: f64,
    /// The same.
    pub p99_us: f64,
    /// Operations a second of the clients beside them.
    pub beside_per_second: f64,
    /// Read from the device.
    pub read_mb_per_second: f64,
    /// Tables beside the segments' compacted ones at the end.
    pub slices: f64,
}

impl Figures {
    pub(super) fn median(rounds: &[Figures]) -> Figures {
        let of = |field: fn(&Figures) -> f64| median(rounds.iter().map(field));
        Figures {
            ops_per_second: of(|round| round.ops_per_second),
            p50_us: of(|round| round.p50_us),
            p99_us: of(|round| round.p99_us),
            beside_per_second: of(|round| round.beside_per_second),
            read_mb_per_second: of(|round| round.read_mb_per_second),
            slices: of(|round| round.slices),
        }
    }
}

impl Samples {
    pub fn figures(&mut self, read_bytes: u64, slices: usize) -> Figures {
        self.nanos.sort_unstable();
        let at = |share: f64| {
            let index = (self.nanos.len() as f64 * share) as usize;
            f64::from(self.nanos.get(index).copied().unwrap_or_default()) / 1e3
        };
        let seconds = self.elapsed.as_secs_f64();
        Figures {
            ops_per_second: self.operations as f64 / seconds,
            p50_us: at(0.5),
            p99_us: at(0.99),
            beside_per_second: self.beside as f64 / seconds,
            read_mb_per_second: read_bytes as f64 / seconds / 1e6,
            slices: slices as f64,
        }
    }
}

/// What the clients of one run share.
struct Run {
    at: Rc<Partition>,
    keys: u64,
    begin: Instant,
    time: Duration,
    samples: RefCell<Samples>,
    front: Cell<u64>,
}

impl Load {
    pub fn name(self) -> &'static str {
        match self {
            Load::HotFifth => "gets, 90 % in a fifth",
            Load::Front => "gets in key order",
            Load::PagesBesideRandom => "pages in order + gets",
            Load::HotRows => "gets, zipf in key order",
            Load::ScansUnderWrites => "hot scans + updates",
            Load::GetsUnderWrites => "hot gets + updates",
        }
    }

    /// Whether it leaves other tables behind than it found.
    pub fn writes(self) -> bool {
        matches!(self, Load::ScansUnderWrites | Load::GetsUnderWrites)
    }

    /// Runs it for `time` on the shard, the front beginning at `front`.
    pub async fn run(
        self,
        at: Rc<Partition>,
        keys: u64,
        front: u64,
        time: Duration,
    ) -> antumbra_engine::Result<Samples> {
        let (begin, samples) = (Instant::now(), RefCell::default());
        let run = Run { at, keys, begin, time, samples, front: Cell::new(front) };
        let (each, hot) = (|part: u64| (keys / part).max(1), keys / 3);
        let zipf = Zipf::new(keys, 0.99);
        let clients: Vec<LocalBoxFuture<'_, Done>> = match self {
            Load::HotFifth => run.clients(CLIENTS, |random| {
                let is_hot = random.u8(0..10) < 9;
                if is_hot { (hot + random.u64(0..each(HOT_FIFTH))) % keys } else { random.u64(0..keys) }
            }),
            Load::HotRows => run.clients(CLIENTS, |random| zipf.sample(random)),
            Load::Front => vec![Box::pin(run.timed(0, async |_: &mut fastrand::Rng| run.get(run.next(1)).await))],
            Load::PagesBesideRandom => {
                let pages = run.timed(0, async |_: &mut fastrand::Rng| run.page(run.next(PAGE_ROWS as u64)).await);
                let others = (1..=CLIENTS).map(|seed| -> LocalBoxFuture<'_, Done> { Box::pin(run.beside(seed)) });
                std::iter::once::<LocalBoxFuture<'_, Done>>(Box::pin(pages)).chain(others).collect()
            }
            Load::ScansUnderWrites => {
                let scan = |seed: u64| -> LocalBoxFuture<'_, Done> {
                    let run = &run;
                    Box::pin(run.timed(seed, async move |random: &mut fastrand::Rng| {
                        run.page((hot + random.u64(0..each(HOT_SCANS))) % keys).await
                    }))
                };
                let writer: LocalBoxFuture<'_, Done> = Box::pin(run.update());
                (1..=SCANNERS).map(scan).chain([writer]).collect()
            }
            Load::GetsUnderWrites => {
                let mut clients = run.clients(CLIENTS, |random| (hot + random.u64(0..each(HOT_SCANS))) % keys);
                clients.push(Box::pin(run.update()));
                clients
            }
        };
        try_join_all(clients).await?;
        let mut samples = run.samples.into_inner();
        (samples.elapsed, samples.front) = (run.begin.elapsed(), run.front.get());
        Ok(samples)
    }
}

impl Run {
    fn is_over(&self) -> bool {
        self.begin.elapsed() >= self.time
    }

    /// Moves the front; returns where it was.
    fn next(&self, rows: u64) -> u64 {
        self.front.replace((self.front.get() + rows) % self.keys)
    }

    async fn get(&self, number: u64) -> Done {
        let found = self.at.get_with(&key(number), |value| value.is_some()).await?;
        assert!(found, "every key was loaded");
        Ok(())
    }

    async fn page(&self, number: u64) -> Done {
        let range = KeyRange { start: key(number).to_vec(), end: None };
        let page = self.at.scan(&range, PAGE_ROWS).await?;
        let rows = PAGE_ROWS.min((self.keys - number) as usize);
        assert!(page.items.len() == rows, "every key was loaded");
        Ok(())
    }

    /// Clients that get the keys of the numbers drawn.
    fn clients<'a>(
        &'a self,
        count: u64,
        pick: impl Fn(&mut fastrand::Rng) -> u64 + Clone + 'a,
    ) -> Vec<LocalBoxFuture<'a, Done>> {
        let client = |seed| -> LocalBoxFuture<'a, Done> {
            let pick = pick.clone();
            Box::pin(self.timed(seed, async move |random: &mut fastrand::Rng| self.get(pick(random)).await))
        };
        (1..=count).map(client).collect()
    }

    /// Repeats a step that is measured.
    async fn timed(&self, seed: u64, step: impl AsyncFn(&mut fastrand::Rng) -> Done) -> Done {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut steps = 0_u64;
        while !self.is_over() {
            let began = Instant::now();
            step(&mut random).await?;
            {
                let mut samples = self.samples.borrow_mut();
                samples.operations += 1;
                samples.nanos.push(began.elapsed().as_nanos() as u32);
            }
            steps += 1;
            if steps.is_multiple_of(STEPS) {
                runtime::yield_now().await;
            }
        }
        Ok(())
    }

    /// Gets keys at random, which are counted alone.
    async fn beside(&self, seed: u64) -> Done {
        let mut random = fastrand::Rng::with_seed(seed);
        while !self.is_over() {
            self.get(random.u64(0..self.keys)).await?;
            self.samples.borrow_mut().beside += 1;
        }
        Ok(())
    }

    /// Updates keys at random, at the pace of the load.
    async fn update(&self) -> Done {
        let mut random = fastrand::Rng::with_seed(9);
        let mut written = 0;
        while !self.is_over() {
            let due = self.begin.elapsed().as_millis() as u64 * UPDATES_A_MS;
            while written < due && !self.is_over() {
                let write = Write::put(key(random.u64(0..self.keys)), vec![written as u8; VALUE_BYTES]);
                self.at.write(write, Durability::Buffered).await?;
                written += 1;
                self.samples.borrow_mut().beside += 1;
                if written.is_multiple_of(STEPS) {
                    runtime::yield_now().await;
                }
            }
            runtime::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// 24 bytes, which order as their numbers do.
pub(super) fn key(number: u64) -> Bytes {
    Bytes::from(format!("row-{number:020}"))
}
