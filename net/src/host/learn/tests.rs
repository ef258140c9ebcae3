//! Learning as a host does it: from the windows of a partition that is read.
#![allow(clippy::unwrap_used)]

use antumbra_engine::types::{Epoch, KeyRange, ShardId};
use antumbra_engine::{EngineConfig, PartitionOptions, PartitionSpec};

use super::*;

fn key(number: usize) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// An engine with one partition of some dozen segments, and short windows.
async fn engine(folder: &std::path::Path, base: &Arc<Model>) -> Engine {
    let mut config = EngineConfig::new(folder);
    config.window = Duration::from_millis(20);
    config.model = Some(Arc::clone(base));
    let engine = Engine::open(config).unwrap();
    let options = PartitionOptions { segment_target_bytes: 32 << 10, ..PartitionOptions::default() };
    let (id, range) = (PartitionId(1), KeyRange::all());
    let spec = PartitionSpec { id, keyspace: "test".into(), range, epoch: Epoch(1), options };
    let partition = match engine.partition(id) {
        Ok(known) => known,
        Err(_) => engine.create_partition(ShardId(0), spec).await.unwrap(),
    };
    if partition.stats().await.unwrap().segments < 8 {
        for number in 0..2_000 {
            partition.put(key(number), vec![7u8; 500]).await.unwrap();
        }
        partition.compact().await.unwrap();
    }
    assert!(partition.stats().await.unwrap().segments >= 8);
    engine
}

/// A scan, again and again, until `enough` says so.
async fn scan_until(engine: &Engine, enough: impl Fn() -> bool) {
    let partition = engine.partition(PartitionId(1)).unwrap();
    let began = Instant::now();
    for number in 0.. {
        partition.get(key(number * 3 % 2_000)).await.unwrap();
        if number % 100 == 0 && enough() {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "nothing was learned");
    }
}

/// What is learned goes to the partition; what was kept is gone on from, if it can be.
#[test]
fn host_learns_goes_on_from_kept_weights_and_survives_damaged_ones() {
    let folder = tempfile::tempdir().unwrap();
    let base = Arc::new(Model::random(8, 8, 3));
    let mut config = LearnConfig::new(1, folder.path().join("models"), Arc::clone(&base));
    config.core_share = 1.0;
    let kept = folder.path().join("models/partition-1.safetensors");
    let other = Model::random(8, 8, 4);
    block_on(async {
        let engine = engine(&folder.path().join("data"), &base).await;
        for round in 0..3 {
            match round {
                0 => assert!(!kept.exists()),
                1 => other.save(&kept).unwrap(),
                _ => std::fs::write(&kept, b"no weights").unwrap(),
            }
            let learning = Learning::start(engine.clone(), config.clone()).unwrap();
            let stats = || learning.standings().first().map(|(_, stats)| *stats).unwrap_or_default();
            scan_until(&engine, || stats().chunks > 0).await;
            // going on from kept weights counts as a swap
            assert!(round != 1 || stats().swaps > 0);
        }
        engine.close().await.unwrap();
    });
}

#[test]
fn counts_of_another_structure_are_not_learned() {
    let base = Model::random(4, 8, 1);
    let mut learner = Learner::new(&base, 4, OnlineConfig::default()).unwrap();
    let window = |segments| Observed::Window(vec![antumbra_predictor::SegmentCounts::default(); segments]);
    let split = Observed::Split { index: 3, left_share: 0.5 };
    assert!(learn(&mut learner, vec![window(4), split, window(5), Observed::Merge { index: 0 }, window(4)]).is_some());
    assert!(learn(&mut learner, vec![window(5)]).is_none());
    assert!(learn(&mut learner, vec![Observed::Merge { index: 3 }]).is_none());
    assert!(learn(&mut learner, vec![Observed::Split { index: 4, left_share: 0.5 }]).is_none());
}

/// Windows that an order is judged over, as the copy of a move is.
const HORIZON: usize = 8;

/// Which segment is read in each window, and what share of those reads would have hit what a copy in the order of the GRU
/// had brought by then: half of them in a random order.
struct Contest {
    engine: Engine,
    partition: PartitionHandle,
    /// A key of each segment, so many in a row.
    firsts: Vec<usize>,
    /// The segment of a window.
    next: Box<dyn FnMut(usize) -> usize>,
    windows: u64,
    read: Vec<usize>,
    /// Rank of each segment after each window, 0..1.
    ranks: Vec<Vec<f64>>,
}

impl Contest {
    /// Of a partition that is read in the order that `next` makes of the number of segments.
    async fn new(engine: &Engine, mut next: impl FnMut(usize) -> usize + 'static) -> Contest {
        let partition = engine.partition(PartitionId(1)).unwrap();
        let summaries = summaries(&partition).await;
        let number = |start: &[u8]| std::str::from_utf8(start).unwrap().trim_start_matches("key").parse().unwrap_or(0);
        let firsts: Vec<usize> = summaries.iter().map(|segment| number(&segment.start)).collect();
        let segments = firsts.len();
        let next = Box::new(move |_: usize| next(segments));
        let windows = partition.stats().await.unwrap().windows_closed;
        Contest { engine: engine.clone(), partition, firsts, next, windows, read: Vec::new(), ranks: Vec::new() }
    }

    /// Waits for a window to close, asks for the order that follows from it, and reads one segment in the next.
    async fn window(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.partition.stats().await.unwrap().windows_closed == self.windows {
            assert!(Instant::now() < deadline, "windows are closed");
            thread::sleep(Duration::from_millis(1));
        }
        // The scorers need a moment.
        thread::sleep(Duration::from_millis(2));
        self.windows = self.partition.stats().await.unwrap().windows_closed;
        let scores: Vec<f32> = summaries(&self.partition).await.iter().map(|segment| segment.gru).collect();
        let rank = |own: &f32| {
            let before = scores.iter().filter(|other| *other > own).count();
            let alike = scores.iter().filter(|other| *other == own).count();
            (before as f64 + alike as f64 / 2.0) / scores.len() as f64
        };
        self.ranks.push(scores.iter().map(rank).collect());
        let segment = (self.next)(self.read.len());
        self.read.push(segment);
        for number in 0..20 {
            self.engine.partition(self.partition.id()).unwrap().get(key(self.firsts[segment] + number)).await.unwrap();
        }
    }

    /// The share over the orders of the next `windows` windows.
    async fn share_of(&mut self, windows: usize) -> f64 {
        let first = self.ranks.len();
        for _ in 0..windows + HORIZON {
            self.window().await;
        }
        let hits = |at: usize| {
            let hit = |ahead: &usize| self.ranks[at][self.read[at + ahead]] <= (*ahead as f64 + 0.5) / HORIZON as f64;
            (0..HORIZON).filter(hit).count()
        };
        (first..first + windows).map(hits).sum::<usize>() as f64 / (windows * HORIZON) as f64
    }

    /// Goes on until the learner's record fulfils `enough`.
    async fn until(&mut self, learning: &Learning, enough: impl Fn(OnlineStats) -> bool) {
        let stats = || learning.standings().first().map(|(_, stats)| *stats).unwrap_or_default();
        for _ in 0..5_000 {
            if enough(stats()) {
                return;
            }
            self.window().await;
        }
        panic!("the learner stands at {:?}", stats());
    }
}

async fn summaries(partition: &PartitionHandle) -> Vec<antumbra_engine::partition::SegmentSummary> {
    partition.with(|partition| async move { Ok(partition.segment_summaries()) }).await.unwrap()
}

/// Every segment once a round, in another order each round: what was read lately is what will not be read soon. All that
/// the shipped weights have learned elsewhere is wrong here.
fn rounds() -> impl FnMut(usize) -> usize {
    let mut random = fastrand::Rng::with_seed(1);
    let mut left: Vec<usize> = Vec::new();
    move |segments| {
        if left.is_empty() {
            left.extend(0..segments);
            random.shuffle(&mut left);
        }
        left.pop().unwrap_or_default()
    }
}

/// One segment after the other, round and round.
fn front() -> impl FnMut(usize) -> usize {
    let mut at = 0;
    move |segments| {
        at += 1;
        at % segments
    }
}

/// What a host that learns for one partition has, and where it keeps what it learned.
struct Setting {
    folder: tempfile::TempDir,
    base: Arc<Model>,
    config: LearnConfig,
    kept: PathBuf,
}

impl Setting {
    fn new() -> Setting {
        let folder = tempfile::tempdir().unwrap();
        let base = Arc::new(Model::shipped().unwrap());
        let mut config = LearnConfig::new(1, folder.path().join("models"), Arc::clone(&base));
        config.core_share = 1.0;
        let kept = folder.path().join("models/partition-1.safetensors");
        Setting { folder, base, config, kept }
    }
}

#[test]
fn better_weights_are_swapped_in_serve_the_partition_and_last_over_a_restart() {
    let Setting { folder, base, config, kept } = Setting::new();
    block_on(async {
        let data = folder.path().join("data");
        let engine = engine(&data, &base).await;
        let mut contest = Contest::new(&engine, rounds()).await;
        let shipped = contest.share_of(150).await;
        assert!(shipped < 0.48, "the shipped weights are plainly bad here: {shipped}");
        let learning = Learning::start(engine.clone(), config.clone()).unwrap();
        contest.until(&learning, |stats| stats.swaps >= 3).await;
        let learned = contest.share_of(200).await;
        println!("share of the GRU in the partition: {shipped:.3} shipped, {learned:.3} learned here");
        assert!(learned > shipped + 0.1, "{learned} after the swap, {shipped} before");
        drop(learning);
        assert_ne!(Model::load(&kept).unwrap(), *base);
        drop(contest);
        engine.close().await.unwrap();

        let engine = self::engine(&data, &base).await;
        let learning = Learning::start(engine.clone(), config).unwrap();
        let mut contest = Contest::new(&engine, rounds()).await;
        contest.until(&learning, |stats| stats.swaps >= 1).await;
        let restored = contest.share_of(200).await;
        println!("{restored:.3} after a restart");
        assert!(restored > shipped + 0.1, "{restored} after a restart, {shipped} with the shipped weights");
        drop(learning);
        engine.close().await.unwrap();
    });
}

#[test]
fn worse_weights_are_not_swapped_in_and_kept_ones_that_lose_give_way_to_the_base() {
    let Setting { folder, base, config, kept } = Setting::new();
    block_on(async {
        let engine = engine(&folder.path().join("data"), &base).await;
        let mut contest = Contest::new(&engine, front()).await;
        // Steps so large that what is learned is noise.
        let mut wild = config.clone();
        (wild.online.learning_rate, wild.online.average, wild.online.pull) = (1e3, 1.0, 0.0);
        let learning = Learning::start(engine.clone(), wild).unwrap();
        contest.until(&learning, |stats| stats.resets >= 2).await;
        let [(_, stats)] = learning.standings()[..] else { panic!("one partition") };
        assert_eq!(stats.swaps, 0, "{stats:?}");
        assert!(!kept.exists(), "nothing is kept that was not deployed");
        drop(learning);

        // The shipped model with its sign turned: the best segment last.
        let mut weights = base.weights().clone();
        weights.head_weight.iter_mut().for_each(|weight| *weight = -*weight);
        Model::new(base.hidden(), base.horizon(), weights).unwrap().save(&kept).unwrap();
        let mut slow = config;
        slow.online.learning_rate = 1e-9;
        let learning = Learning::start(engine.clone(), slow).unwrap();
        contest.until(&learning, |stats| stats.swaps >= 1).await;
        let turned = contest.share_of(16).await;
        contest.until(&learning, |stats| stats.swaps >= 2).await;
        let back = contest.share_of(100).await;
        println!("share of the GRU in the partition: {turned:.3} turned, {back:.3} when the base was back");
        assert_eq!(Model::load(&kept).unwrap(), *base);
        assert!(back > turned + 0.1, "{back} with the base, {turned} with what was kept");
        drop(learning);
        engine.close().await.unwrap();
    });
}
