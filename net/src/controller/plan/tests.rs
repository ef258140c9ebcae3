#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn shard(level: f64, expected: f64, raised: bool) -> ShardTrend {
    let mut metrics = [0.0; METRICS.len()];
    metrics[0] = level;
    ShardTrend {
        metrics,
        level,
        expected,
        probability: if raised { 0.9 } else { 0.1 },
        raised,
        worth: raised,
        crossing_windows: if raised { 10.0 } else { 40.0 },
        lead_windows: 40.0,
    }
}

fn partition(id: u64, load: f64, bytes: u64) -> PartitionTrend {
    let mut loads = [0.0; METRICS.len()];
    loads[0] = load;
    PartitionTrend { partition: id, shard: 0, load: loads, bytes, at_rest: true, cut: None }
}

fn host(id: u32, shard: ShardTrend, partitions: Vec<PartitionTrend>) -> (u32, HostTrend) {
    (id, HostTrend { host: id, window_ms: 1000, windows: 100, shards: vec![shard], partitions, moves: Vec::new() })
}

fn under_way(partition: u64, destination: u32, ready: bool) -> MoveTrend {
    MoveTrend { partition, destination, automatic: true, under_way: true, is_undecided: true, ready }
}

fn actions(hosts: &BTreeMap<u32, HostTrend>) -> Vec<Action> {
    plan(hosts, &Settings::default(), |_| false).decisions.into_iter().map(|decision| decision.action).collect()
}

#[test]
fn smallest_partition_that_suffices_goes_to_the_emptiest_host() {
    let busy = vec![partition(1, 0.5, 100), partition(2, 0.2, 10), partition(3, 0.1, 1)];
    let hosts = BTreeMap::from([
        host(1, shard(0.8, 1.04, true), busy),
        host(2, shard(0.3, 0.3, false), Vec::new()),
        host(3, shard(0.2, 0.2, false), Vec::new()),
    ]);
    // 3 alone leaves 0.91: not enough; 2 leaves 0.78
    assert_eq!(actions(&hosts), [Action::Start { partition: 2, source: 1, destination: 3, cut: None }]);
}

#[test]
fn quiet_hosts_are_left_alone() {
    let hosts = BTreeMap::from([
        host(1, shard(0.8, 0.9, false), vec![partition(1, 0.8, 1)]),
        host(2, shard(0.0, 0.0, false), Vec::new()),
    ]);
    assert_eq!(plan(&hosts, &Settings::default(), |_| false), Plan::default());
}

#[test]
fn signal_that_fades_casts_nothing() {
    let fading = ShardTrend { worth: false, ..shard(0.9, 1.1, true) };
    let hosts = BTreeMap::from([
        host(1, fading, vec![partition(1, 0.4, 5), partition(2, 0.5, 7)]),
        host(2, shard(0.1, 0.1, false), Vec::new()),
    ]);
    assert_eq!(plan(&hosts, &Settings::default(), |_| false), Plan::default());
}

#[test]
fn load_is_not_pushed_around() {
    // the whole load would only hurt elsewhere
    let mut hosts = BTreeMap::from([
        host(1, shard(0.9, 1.2, true), vec![partition(1, 0.9, 1)]),
        host(2, shard(0.1, 0.1, false), Vec::new()),
    ]);
    let stuck = plan(&hosts, &Settings::default(), |_| false);
    assert!(stuck.decisions.is_empty() && stuck.stuck[0].1.contains("no host has room"), "{stuck:?}");
    // and a host that is about to hurt takes nothing
    hosts.insert(1, host(1, shard(0.9, 1.2, true), vec![partition(1, 0.2, 1), partition(3, 0.7, 1)]).1);
    hosts.insert(2, host(2, shard(0.3, 0.3, true), Vec::new()).1);
    assert!(actions(&hosts).is_empty());
}

#[test]
fn partition_too_large_to_go_whole_is_cut() {
    let cut = |share| Some(Cut { slot: 8192, share });
    let large = |share| PartitionTrend { cut: cut(share), ..partition(1, 0.9, 100) };
    let hosts = |share| {
        BTreeMap::from([
            host(1, shard(0.9, 1.2, true), vec![large(share)]),
            host(2, shard(0.05, 0.05, false), Vec::new()),
        ])
    };
    let upper_half = Action::Start { partition: 1, source: 1, destination: 2, cut: Some(8192) };
    assert_eq!(actions(&hosts(0.5)), [upper_half]);
    assert!(actions(&hosts(0.9)).is_empty(), "nearly all of it does not fit either");
    // Whole ones that suffice go first.
    let mut two = hosts(0.5);
    two.insert(
        1,
        host(
            1,
            shard(0.9, 1.2, true),
            vec![PartitionTrend { load: [0.45, 0.0, 0.0, 0.0], ..large(0.5) }, partition(3, 0.45, 5)],
        )
        .1,
    );
    assert_eq!(actions(&two), [Action::Start { partition: 3, source: 1, destination: 2, cut: None }]);
}

#[test]
fn signal_is_answered_once() {
    let mut hosts = BTreeMap::from([
        host(1, shard(0.9, 1.1, true), vec![partition(1, 0.4, 5), partition(2, 0.5, 7)]),
        host(2, shard(0.1, 0.1, false), Vec::new()),
        host(3, shard(0.1, 0.1, false), Vec::new()),
    ]);
    let [Action::Start { partition, destination, .. }] = actions(&hosts)[..] else { panic!() };
    assert_eq!(partition, 1);
    hosts.get_mut(&1).unwrap().moves.push(under_way(partition, destination, false));
    assert!(actions(&hosts).is_empty());
}

#[test]
fn ready_shadow_is_switched_to_when_it_is_due_and_dropped_when_the_load_turns() {
    let moving = |shard, ready| {
        let mut hosts = BTreeMap::from([
            host(1, shard, vec![partition(1, 0.4, 5), partition(2, 0.5, 7)]),
            host(2, ShardTrend { raised: false, ..shard }, Vec::new()),
        ]);
        hosts.get_mut(&1).unwrap().moves.push(under_way(1, 2, ready));
        actions(&hosts)
    };
    assert!(moving(shard(0.9, 1.1, true), true).is_empty(), "ready, not needed yet");
    assert!(moving(shard(0.98, 1.1, true), false).is_empty(), "needed, not ready yet");
    assert_eq!(moving(shard(0.98, 1.1, true), true), [Action::Switch { partition: 1, source: 1 }]);
    let soon = ShardTrend { crossing_windows: 1.0, ..shard(0.9, 1.1, true) };
    assert_eq!(moving(soon, true), [Action::Switch { partition: 1, source: 1 }]);
    assert_eq!(moving(shard(0.5, 0.5, false), true), [Action::GiveUp { partition: 1, source: 1 }]);
}

#[test]
fn resting_partitions_stay() {
    let hosts = BTreeMap::from([
        host(1, shard(0.9, 1.1, true), vec![partition(1, 0.4, 5), partition(2, 0.45, 7)]),
        host(2, shard(0.1, 0.1, false), Vec::new()),
    ]);
    let settings = Settings::default();
    let resting = plan(&hosts, &settings, |id| id == 1);
    assert_eq!(resting.decisions[0].action, Action::Start { partition: 2, source: 1, destination: 2, cut: None });
    let all = plan(&hosts, &settings, |_| true);
    assert!(all.decisions.is_empty() && all.stuck[0].1.contains("a moment ago"), "{all:?}");
}

fn arbitrary_host(id: u32) -> impl Strategy<Value = (u32, HostTrend)> {
    let loads = prop::collection::vec((0.0..0.6f64, 1..1_000_000u64, any::<bool>()), 0..5);
    (loads, 0.8..1.6f64, any::<bool>()).prop_map(move |(loads, growth, raised)| {
        let level: f64 = loads.iter().map(|(load, ..)| load).sum();
        let partitions = loads
            .iter()
            .enumerate()
            .map(|(index, (load, bytes, at_rest))| PartitionTrend {
                at_rest: *at_rest,
                cut: (bytes % 2 == 0).then_some(Cut { slot: 9, share: 0.5 }),
                ..partition(u64::from(id) * 10 + index as u64, *load, *bytes)
            })
            .collect();
        host(id, shard(level, level * growth, raised), partitions)
    })
}

proptest! {
    #[test]
    fn no_plan_breaks_its_promises(hosts in (1..5u32).prop_flat_map(|count| {
        (1..=count).map(arbitrary_host).collect::<Vec<_>>()
    })) {
        let hosts: BTreeMap<u32, HostTrend> = hosts.into_iter().collect();
        let settings = Settings::default();
        let plan = plan(&hosts, &settings, |id| id % 3 == 0);
        let mut taken: BTreeMap<u32, f64> = BTreeMap::new();
        let mut parts: BTreeMap<u32, usize> = BTreeMap::new();
        for decision in &plan.decisions {
            let Action::Start { partition, source, destination, cut } = decision.action else {
                panic!("nothing is under way: {decision:?}");
            };
            let moved = hosts[&source].partitions.iter().find(|known| known.partition == partition).unwrap();
            prop_assert!(source != destination && moved.at_rest && partition % 3 != 0);
            prop_assert!(hosts[&source].shards[0].raised && !hosts[&destination].shards[0].raised);
            let share = if cut.is_some() { 0.5 } else { 1.0 };
            *taken.entry(destination).or_default() += moved.load[0] * share * hosts[&source].shards[0].growth();
            for host in [source, destination] {
                *parts.entry(host).or_default() += 1;
            }
        }
        for (host, load) in taken {
            let shard = &hosts[&host].shards[0];
            prop_assert!(shard.level * shard.growth() + load <= settings.settle + 1e-9);
        }
        prop_assert!(parts.values().all(|moves| *moves <= settings.moves_per_host));
    }
}
