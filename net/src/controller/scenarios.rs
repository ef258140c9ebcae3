//! The controller as it runs, on loads made from seeds: three hosts' observers, the plan and what the leader remembers,
//! with hosts that are figures. A window is a second of time that is only counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use antumbra_engine::partition::Totals;
use antumbra_engine::types::{Epoch, KeyRange, Lsn, PartitionId};
use antumbra_engine::{EngineStats, PartitionStats, Serving, ShardUse};
use antumbra_predictor::signal::SignalEvent;
use antumbra_predictor::signal::scenario::{Scenario, Shape};

use super::plan::{Action, Settings, plan};
use super::rest::Rests;
use super::trend::{HostTrend, Limits, MoveTrend, Observer};

const WINDOW: Duration = Duration::from_secs(1);
/// What hurts: requests and bytes of log per second.
const REQUESTS: f64 = 10_000.0;
const LOG_BYTES: f64 = 50e6;
const CORE: f64 = 0.8;
/// A copy's rate, which is what the controller expects of one without a cap.
const COPY_BYTES: f64 = 100e6;
/// Shares of the load that the partitions of the first host have.
const SHARES: [f64; 4] = [0.3, 0.3, 0.2, 0.2];
/// What the other hosts serve of their own, as a part of the limit.
const OTHERS: f64 = 0.25;
/// Scenarios of a kind, and the seed of the first: none that anything was tuned on.
const SCENARIOS: u64 = 50;
const FIRST_SEED: u64 = 500_000;

/// A partition as it lies on its host.
struct Lying {
    id: u64,
    /// Of the scenario's load; the others' partitions have a load of their own.
    share: f64,
    own: f64,
    bytes: u64,
    sums: Totals,
}

/// A copy under way on its source.
struct Copying {
    partition: u64,
    destination: u32,
    copied: f64,
}

struct Place {
    host: u32,
    observer: Observer,
    lying: Vec<Lying>,
    used: ShardUse,
    copying: Option<Copying>,
    ended: Vec<MoveTrend>,
}

impl Place {
    fn new(host: u32) -> Place {
        let limits = Limits { core: CORE, requests_s: Some(REQUESTS), log_bytes_s: Some(LOG_BYTES), data_bytes: None };
        let observer = Observer::new(host, 1, limits, COPY_BYTES).unwrap();
        Place { host, observer, lying: Vec::new(), used: ShardUse::default(), copying: None, ended: Vec::new() }
    }

    /// A window's load; what the host measures of it. `noise` is measured over true, as requests, bytes and core have it.
    fn serve(&mut self, load: f64, noise: [f64; 3]) -> f64 {
        let mut all = 0.0;
        for partition in &mut self.lying {
            let own = partition.share * load + partition.own;
            all += own;
            let requests = own * noise[0] * REQUESTS;
            partition.sums.reads += (requests * 0.75) as u64;
            partition.sums.writes += (requests * 0.25) as u64;
            self.used.log_bytes += (own * noise[1] * LOG_BYTES) as u64;
        }
        self.used.cpu += Duration::from_secs_f64((all * noise[2] * CORE).min(1.0));
        all
    }

    fn trend(&mut self, now: Instant) -> (HostTrend, bool) {
        let partitions = self.lying.iter().map(|lying| PartitionStats {
            id: PartitionId(lying.id),
            keyspace: String::new(),
            range: KeyRange::all(),
            epoch: Epoch(1),
            serving: Serving::Owner,
            segments: 8,
            slices: 0,
            missing_segments: 0,
            table_bytes: lying.bytes,
            memtable_bytes: 0,
            resident_bytes: 0,
            visible: Lsn(0),
            keeps_since: None,
            keeps_base: None,
            totals: Totals::default(),
            sums: lying.sums,
            windows_closed: 0,
        });
        let stats = EngineStats {
            shards: 1,
            partitions: partitions.collect(),
            used: vec![self.used],
            ..EngineStats::default()
        };
        let under_way = self.copying.as_ref().map(|copying| {
            let bytes = self.lying.iter().find(|lying| lying.id == copying.partition).map_or(0, |lying| lying.bytes);
            MoveTrend {
                partition: copying.partition,
                destination: copying.destination,
                automatic: true,
                under_way: true,
                is_undecided: true,
                ready: copying.copied >= bytes as f64,
            }
        });
        let moves = self.ended.iter().copied().chain(under_way).collect();
        let (trend, changes) = self.observer.observe(&stats, |_| 0, moves, now).unwrap();
        let raised = changes.iter().any(|change| matches!(change.event, SignalEvent::Raised { .. }));
        (trend, raised)
    }

    /// The copy under way has ended.
    fn end(&mut self) -> Copying {
        let copying = self.copying.take().unwrap();
        let (partition, destination) = (copying.partition, copying.destination);
        self.ended.retain(|ended| ended.partition != partition);
        let (automatic, under_way, is_undecided, ready) = (true, false, false, false);
        self.ended.push(MoveTrend { partition, destination, automatic, under_way, is_undecided, ready });
        copying
    }
}

/// What came of one scenario.
#[derive(Debug, Default)]
struct Outcome {
    /// The window of the first signal.
    signalled: Option<usize>,
    /// The window in which the first copy began.
    begun: Option<usize>,
    moves: u64,
    copied: f64,
    wasted: f64,
    /// Windows in which some host was over its limit.
    over: usize,
}

fn run(scenario: &Scenario, seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut places: BTreeMap<u32, Place> = (1..=3).map(|host| (host, Place::new(host))).collect();
    let mut lie = |host: u32, id: u64, share: f64, own: f64| {
        let bytes = random.u64(1_000_000_000..3_000_000_000);
        let lying = Lying { id, share, own, bytes, sums: Totals::default() };
        places.get_mut(&host).unwrap().lying.push(lying);
    };
    for (index, share) in SHARES.iter().enumerate() {
        lie(1, index as u64 + 1, *share, 0.0);
    }
    lie(2, 10, 0.0, OTHERS);
    lie(3, 11, 0.0, OTHERS);
    let (began, mut outcome, mut rests) = (Instant::now(), Outcome::default(), Rests::new(WINDOW));
    for (window, (load, measured)) in scenario.load.iter().zip(&scenario.metrics).enumerate() {
        let now = began + WINDOW * window as u32;
        let noise = [measured.operations, measured.bytes, measured.utilisation].map(|value| value / load);
        let mut hosts = BTreeMap::new();
        let mut over = false;
        for place in places.values_mut() {
            over |= place.serve(*load, noise) >= 1.0;
            if let Some(copying) = &mut place.copying {
                copying.copied += COPY_BYTES;
                outcome.copied += COPY_BYTES;
            }
            let (trend, raised) = place.trend(now);
            if raised && place.host == 1 {
                outcome.signalled = outcome.signalled.or(Some(window));
            }
            if trend.windows > 0 {
                hosts.insert(place.host, trend);
            }
        }
        outcome.over += usize::from(over);
        rests.settle(&hosts, now);
        for decision in plan(&hosts, &Settings::default(), |partition| rests.rests(partition, now)).decisions {
            let place = places.get_mut(&decision.action.source()).unwrap();
            match decision.action {
                Action::Start { partition, source, destination, cut } => {
                    assert!(cut.is_none() && place.copying.is_none(), "{decision:?}");
                    outcome.begun = outcome.begun.or(Some(window));
                    place.copying = Some(Copying { partition, destination, copied: 0.0 });
                    rests.began(partition, source);
                }
                Action::GiveUp { .. } => outcome.wasted += place.end().copied,
                Action::Switch { partition, .. } => {
                    let to = place.end().destination;
                    let index = place.lying.iter().position(|lying| lying.id == partition).unwrap();
                    let moved = place.lying.remove(index);
                    place.observer.used(0);
                    places.get_mut(&to).unwrap().lying.push(moved);
                    outcome.moves += 1;
                }
            }
        }
    }
    outcome
}

fn all(shapes: &[Shape]) -> Vec<(Scenario, Outcome)> {
    let seeds = FIRST_SEED..FIRST_SEED + SCENARIOS;
    let of = |seed: u64| {
        let scenario = Scenario::of_shape(shapes[seed as usize % shapes.len()], seed);
        let outcome = run(&scenario, seed);
        (scenario, outcome)
    };
    seeds.map(of).collect()
}

fn sum(all: &[(Scenario, Outcome)], figure: impl Fn(&Outcome) -> f64) -> f64 {
    all.iter().map(|(_, outcome)| figure(outcome)).sum()
}

#[test]
fn signal_comes_ahead_of_loads_that_grow() {
    let all = all(&[Shape::Ramp, Shape::FlashCrowd, Shape::Diurnal]);
    let lead = |at: Option<usize>, scenario: &Scenario| Some(scenario.crossing()? as i64 - at? as i64);
    let mut leads: Vec<i64> = all.iter().filter_map(|(scenario, outcome)| lead(outcome.signalled, scenario)).collect();
    leads.sort_unstable();
    let ahead = leads.iter().filter(|lead| **lead > 0).count();
    let begun = all.iter().filter(|(scenario, outcome)| lead(outcome.begun, scenario) > Some(0)).count();
    let without: usize =
        all.iter().map(|(scenario, _)| scenario.load.iter().filter(|load| **load >= 1.0).count()).sum();
    println!(
        "{SCENARIOS} growing loads: {ahead} signalled ahead, {begun} with a copy begun ahead; lead {} / {} / {} windows (10th \
         percentile, median, 90th); {:.0} moves, {:.1} GB copied, {:.1} GB of it for nothing; {:.0} windows over the limit, \
         {without} without a controller",
        leads[leads.len() / 10],
        leads[leads.len() / 2],
        leads[leads.len() * 9 / 10],
        sum(&all, |outcome| outcome.moves as f64),
        sum(&all, |outcome| outcome.copied) / 1e9,
        sum(&all, |outcome| outcome.wasted) / 1e9,
        sum(&all, |outcome| outcome.over as f64),
    );
    assert!(all.iter().all(|(scenario, _)| scenario.crossing().is_some()), "each comes to hurt");
    assert!(ahead as u64 * 10 >= SCENARIOS * 9, "{ahead} of {SCENARIOS}");
    assert!(sum(&all, |outcome| outcome.over as f64) < 0.2 * without as f64, "the moves relieve");
}

#[test]
fn loads_that_fade_raise_no_signal() {
    let all = all(&[Shape::Fading]);
    let raised = all.iter().filter(|(_, outcome)| outcome.signalled.is_some()).count();
    let begun = all.iter().filter(|(_, outcome)| outcome.begun.is_some()).count();
    println!(
        "{SCENARIOS} fading loads: {raised} signalled, {begun} with a copy begun; {:.1} GB copied for nothing, {:.0} moves",
        sum(&all, |outcome| outcome.wasted) / 1e9,
        sum(&all, |outcome| outcome.moves as f64)
    );
    assert!(all.iter().all(|(scenario, _)| scenario.crossing().is_none()), "none comes to hurt");
    assert!(raised as u64 * 10 <= SCENARIOS, "{raised} of {SCENARIOS}");
}
