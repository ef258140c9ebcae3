//! Every kind of coordinator keeps the same rules: one suite, three set-ups.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use antumbra_engine::types::{HostId, ShardId};
use antumbra_engine::{Engine, EngineConfig, PartitionOptions};
use antumbra_net::Error;
use antumbra_net::coordinator::embedded::Embedded;
use antumbra_net::coordinator::machine::Machine;
use antumbra_net::coordinator::remote::Remote;
use antumbra_net::coordinator::{self, Answer, Command, Coordinator, HostInfo, PartitionRecord, RecordState};
use antumbra_net::failpoint::Failpoint;
use antumbra_net::host::{CoordinatorAt, Host, HostConfig, HostSettings, Reports};
use antumbra_net::tls::{Authority, Identity};
use antumbra_net::transport::{Plane, PlaneConfig, SchedulingClass, WireVersions};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Handle;

use super::daemon::until;

/// Coordinators that share one state, as two hosts see it.
pub type Pair = [Arc<dyn Coordinator>; 2];

#[tokio::test]
async fn embedded_coordinator_keeps_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(EngineConfig::new(dir.path())).unwrap();
    let embedded = Arc::new(Embedded::open(&engine, Failpoint::default()).await.unwrap());
    keeps_the_rules([embedded.clone(), embedded]).await;
    engine.close().await.unwrap();
}

#[tokio::test]
async fn remote_coordinator_keeps_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let host = start_host(dir.path(), 1, CoordinatorAt::Here).await;
    let (_, identity) = identity(dir.path(), 2);
    let listen = "127.0.0.1:0".parse().unwrap();
    let class = SchedulingClass::Normal;
    let config = PlaneConfig {
        name: "asks",
        listen,
        identity,
        class,
        versions: WireVersions::default(),
        window_bytes: 256 << 10,
    };
    let plane = Plane::start(config, Arc::new(|_| Box::pin(async {}))).unwrap();
    let remote = Arc::new(Remote::new(plane.handle(), host.control.local_addr(), HostId(1)));
    keeps_the_rules([remote, Arc::clone(&host.coordinator)]).await;
    let engine = host.engine.clone();
    drop(host);
    engine.close().await.unwrap();
}

/// Certificates of a host, by an authority in `dir`.
fn identity(dir: &std::path::Path, id: u32) -> (HostId, Identity) {
    let certs = dir.join(format!("certs-{id}"));
    Authority::open_or_create(&dir.join("ca")).unwrap().issue(HostId(id), &certs).unwrap();
    (HostId(id), Identity::load(&certs).unwrap())
}

/// A host on free ports, without a server for clients.
pub async fn start_host(dir: &std::path::Path, id: u32, coordinator: CoordinatorAt) -> Arc<Host> {
    let mut config = EngineConfig::new(dir.join(format!("data-{id}")));
    config.host = HostId(id);
    let engine = Engine::open(config).unwrap();
    let free = "127.0.0.1:0".parse().unwrap();
    let config = HostConfig {
        identity: identity(dir, id).1,
        versions: WireVersions::default(),
        control: free,
        bulk: free,
        settings: HostSettings {
            resp: format!("127.0.0.1:{}", 6000 + id).parse().unwrap(),
            resp_tls: None,
            coordinator,
            options: PartitionOptions::default(),
            failpoint: Failpoint::default(),
            reports: Reports::Folder(dir.join(format!("reports-{id}"))),
            events: None,
            controller: None,
            roll_back_for: Duration::from_secs(60),
            stall: Some(Duration::from_secs(2)),
        },
    };
    Host::start(engine, config).await.unwrap()
}

#[tokio::test]
async fn shard_that_stands_still_is_reported_with_what_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let host = start_host(dir.path(), 1, CoordinatorAt::Here).await;
    let stands = |_| async { std::thread::sleep(Duration::from_secs(5)) };
    host.engine.spawn_on_shard(ShardId(0), stands).await.unwrap();
    let told = |text: &str| host.events.since(0, 100).iter().any(|event| event.text.contains(text));
    until("it is told", || told("shard 0 has made no progress for 2s: it waits for its thread (asleep"));
    assert_eq!(host.stalls().iter().map(|stall| stall.subject.as_str()).collect::<Vec<_>>(), ["shard 0"]);
    until("its end, too", || told("shard 0 goes on; it had stood still for"));
    until("nothing stands still", || host.stalls().is_empty());
}

/// The whole suite.
pub async fn keeps_the_rules(pair: Pair) {
    let one = pair[0].as_ref();
    register(one).await;
    one_move_commits_once(&pair).await;
    abort_and_force_close_an_attempt(one).await;
    layouts_do_not_overlap(&pair).await;
    one_of_many_begins(&pair).await;
    partitions_are_split_and_merged_once(&pair).await;
    attempts_are_given_out_once(&pair).await;
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || agrees_with_the_machine(&pair, &runtime)).await.unwrap();
}

/// Partitions that no other test has.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub async fn register(one: &dyn Coordinator) {
    for host in 1..=2 {
        let info = info(host);
        let Answer::State(state) = one.ask(Command::Register(info.clone())).await.unwrap() else { unreachable!() };
        assert_eq!(state.hosts.get(&host), Some(&info));
    }
}

pub fn info(host: u32) -> HostInfo {
    let port = |kind: u32| format!("127.0.0.1:{}", 10_000 + 10 * host + kind);
    HostInfo { host, control: port(1), bulk: port(2), resp: port(3), resp_tls: None }
}

/// Creates a partition of host 1 in a keyspace of its own.
pub async fn create(one: &dyn Coordinator) -> u64 {
    let partition = fresh();
    let keyspace = format!("keyspace-{partition}");
    let record = change(one, Command::Create { partition, keyspace, slots: (0, 99), owner: 1 }).await.unwrap();
    assert_eq!((record.owner, record.epoch, &record.state), (1, 1, &RecordState::Stable));
    partition
}

pub async fn change(one: &dyn Coordinator, command: Command) -> antumbra_net::Result<PartitionRecord> {
    coordinator::change(one, command).await
}

fn is_conflict<T: std::fmt::Debug>(result: &antumbra_net::Result<T>) -> bool {
    matches!(result, Err(Error::Conflict { .. }))
}

pub fn attempt_of(record: &PartitionRecord) -> u64 {
    match &record.state {
        RecordState::Moving(moving) | RecordState::Committed(moving) => moving.attempt,
        RecordState::Stable => panic!("no attempt is open: {record:?}"),
    }
}

async fn one_move_commits_once(pair: &Pair) {
    let (one, other) = (pair[0].as_ref(), pair[1].as_ref());
    let partition = create(one).await;
    let to = |destination| Command::Begin { partition, source: 1, destination };
    assert!(is_conflict(&change(one, to(77)).await), "a host that nobody knows");
    let begun = change(one, to(2)).await.unwrap();
    let attempt = attempt_of(&begun);
    assert!(is_conflict(&change(other, to(2)).await), "it is being moved");
    let commit = |epoch| Command::Commit { partition, attempt, epoch, lsn: 9 };
    assert!(is_conflict(&change(other, commit(7)).await), "a wrong epoch");
    assert_eq!(coordinator::read(other, partition).await.unwrap(), begun, "refusals change nothing");
    let committed = change(one, commit(1)).await.unwrap();
    assert_eq!((committed.owner, committed.epoch), (2, 2));
    assert_eq!(coordinator::read(other, partition).await.unwrap(), committed);
    assert_eq!(change(other, commit(1)).await.unwrap(), committed, "asked twice, done once");
    assert!(is_conflict(&change(other, Command::Abort { partition, attempt, reason: "late".into() }).await));
    let done = change(other, Command::Complete { partition, attempt }).await.unwrap();
    assert_eq!((&done.state, done.history.len()), (&RecordState::Stable, 1));
    assert!(is_conflict(&change(one, commit(2)).await), "a closed attempt");
    assert_eq!(coordinator::read(one, partition).await.unwrap(), done);
    assert_eq!(coordinator::list(other).await.unwrap().records.get(&partition), Some(&done));
}

async fn abort_and_force_close_an_attempt(one: &dyn Coordinator) {
    let partition = create(one).await;
    let begin = |source, destination| Command::Begin { partition, source, destination };
    let attempt = attempt_of(&change(one, begin(1, 2)).await.unwrap());
    let aborted = change(one, Command::Abort { partition, attempt, reason: "test".into() }).await.unwrap();
    assert_eq!((aborted.owner, aborted.epoch, &aborted.state), (1, 2, &RecordState::Stable));
    assert!(is_conflict(&change(one, Command::Commit { partition, attempt, epoch: 1, lsn: 9 }).await));
    let attempt = attempt_of(&change(one, begin(1, 2)).await.unwrap());
    let force = Command::ForcePromote { partition, attempt, lsn: 9, policy: "lww".into() };
    let forced = change(one, force.clone()).await.unwrap();
    assert_eq!((forced.owner, forced.epoch), (2, 3));
    assert_eq!(change(one, force).await.unwrap(), forced, "asked twice, done once");
    assert!(is_conflict(&change(one, begin(2, 1)).await), "not before it is reconciled");
    change(one, Command::BeginReconcile { partition, attempt, until: 20 }).await.unwrap();
    let ended = Command::EndReconcile { partition, attempt, outcome: "test".into() };
    assert_eq!(change(one, ended).await.unwrap().diverged, None);
    change(one, begin(2, 1)).await.unwrap();
}

/// Whoever is first makes the partition; what would overlap is refused, however close they come.
async fn layouts_do_not_overlap(pair: &Pair) {
    for round in 0..8 {
        let (keyspace, ids) = (format!("layout-{}-{round}", fresh()), [fresh(), fresh()]);
        let make = |index: usize, slots: (u16, u16)| {
            let (one, partition) = (Arc::clone(&pair[index]), ids[index]);
            let command = Command::Create { partition, keyspace: keyspace.clone(), slots, owner: 1 };
            async move { change(one.as_ref(), command).await }
        };
        let made = futures_lite::future::zip(make(0, (0, 500)), make(1, (400, 900))).await;
        let (won, lost) = if made.0.is_ok() { (made.0, made.1) } else { (made.1, made.0) };
        assert!(won.is_ok() && is_conflict(&lost), "{won:?} {lost:?}");
    }
    let partition = create(pair[0].as_ref()).await;
    let again = Command::Create { partition, keyspace: format!("keyspace-{partition}"), slots: (0, 99), owner: 2 };
    assert_eq!(change(pair[1].as_ref(), again).await.unwrap().owner, 1, "one that exists is left as it is");
    let other = Command::Create { partition, keyspace: "other".into(), slots: (0, 99), owner: 1 };
    assert!(is_conflict(&change(pair[1].as_ref(), other).await));
}

async fn one_of_many_begins(pair: &Pair) {
    let partition = create(pair[0].as_ref()).await;
    let tasks = (0..8).map(|index: usize| {
        let one = Arc::clone(&pair[index % 2]);
        tokio::spawn(async move { change(one.as_ref(), Command::Begin { partition, source: 1, destination: 2 }).await })
    });
    let mut begun = 0;
    for task in tasks.collect::<Vec<_>>() {
        let result = task.await.unwrap();
        assert!(result.is_ok() || is_conflict(&result), "{result:?}");
        begun += usize::from(result.is_ok());
    }
    assert_eq!(begun, 1);
}

/// Both hosts ask at once; what is split or merged is so for both, and asking again changes nothing.
async fn partitions_are_split_and_merged_once(pair: &Pair) {
    let partition = create(pair[0].as_ref()).await;
    let splits = [30, 60].map(|at| Command::Split { partition, epoch: 1, at, child: Some(fresh()) });
    let ask = |index: usize| change(pair[index].as_ref(), splits[index].clone());
    let made = futures_lite::future::zip(ask(0), ask(1)).await;
    let (won, lost, command) = if made.0.is_ok() { (made.0, made.1, &splits[0]) } else { (made.1, made.0, &splits[1]) };
    assert!(is_conflict(&lost), "{lost:?}");
    let child = won.unwrap();
    assert_eq!(change(pair[1].as_ref(), command.clone()).await.unwrap(), child, "asked twice, done once");
    let (other, at) = (child.partition, child.slots.0);
    let state = coordinator::list(pair[1].as_ref()).await.unwrap();
    assert_eq!((state.records[&partition].slots, state.records[&other].slots), ((0, at - 1), (at, 99)));
    let merge = Command::Merge { partition, epoch: 2, other, other_epoch: 2 };
    let merged = change(pair[1].as_ref(), merge.clone()).await.unwrap();
    assert_eq!((merged.slots, merged.epoch), ((0, 99), 3));
    assert_eq!(change(pair[0].as_ref(), merge).await.unwrap(), merged, "asked twice, done once");
    assert!(is_conflict(&change(pair[0].as_ref(), Command::Read { partition: other }).await));
    for one in pair {
        let state = coordinator::list(one.as_ref()).await.unwrap();
        assert_eq!((state.records.get(&other), state.merged.get(&other)), (None, Some(&partition)));
    }
    let again = Command::Split { partition, epoch: 3, at, child: Some(other) };
    assert!(is_conflict(&change(pair[0].as_ref(), again).await), "its id is not given again");
}

/// Moves of different partitions, begun from two hosts at the same time.
async fn attempts_are_given_out_once(pair: &Pair) {
    let before = coordinator::list(pair[0].as_ref()).await.unwrap().attempts;
    let tasks = (0..4).map(|index: usize| {
        let one = Arc::clone(&pair[index % 2]);
        tokio::spawn(async move {
            let (partition, mut attempts) = (create(one.as_ref()).await, Vec::new());
            for _ in 0..5 {
                let begin = Command::Begin { partition, source: 1, destination: 2 };
                let attempt = attempt_of(&change(one.as_ref(), begin).await.unwrap());
                attempts.push(attempt);
                let abort = Command::Abort { partition, attempt, reason: String::new() };
                change(one.as_ref(), abort).await.unwrap();
            }
            attempts
        })
    });
    let mut attempts = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        attempts.extend(task.await.unwrap());
    }
    attempts.sort_unstable();
    assert_eq!(attempts, (before + 1..=before + 20).collect::<Vec<_>>());
}

/// What is done in one step of a random history; attempts and epochs are meant from the present ones back.
#[derive(Clone, Debug)]
enum Step {
    Begin { source: u32, destination: u32 },
    Commit { back: u64, epoch_back: u64 },
    Abort { back: u64 },
    Complete { back: u64 },
    Release { back: u64 },
    Split { at: u16, epoch_back: u64 },
    Merge { epoch_back: u64 },
    Force { back: u64, lsn: u64 },
    BeginReconcile { back: u64, until: u64 },
    EndReconcile { back: u64 },
    Lead { host: u32, beat_back: u64 },
    Read,
    List,
}

fn step() -> impl Strategy<Value = Step> {
    let back = || prop_oneof![5 => Just(0u64), 1 => 1..3u64];
    prop_oneof![
        4 => (1..3u32, 1..4u32).prop_map(|(source, destination)| Step::Begin { source, destination }),
        3 => (back(), back()).prop_map(|(back, epoch_back)| Step::Commit { back, epoch_back }),
        1 => back().prop_map(|back| Step::Abort { back }),
        2 => back().prop_map(|back| Step::Complete { back }),
        1 => back().prop_map(|back| Step::Release { back }),
        1 => (0..12u16, back()).prop_map(|(at, epoch_back)| Step::Split { at, epoch_back }),
        1 => back().prop_map(|epoch_back| Step::Merge { epoch_back }),
        1 => (back(), 0..9u64).prop_map(|(back, lsn)| Step::Force { back, lsn }),
        1 => (back(), 0..9u64).prop_map(|(back, until)| Step::BeginReconcile { back, until }),
        1 => back().prop_map(|back| Step::EndReconcile { back }),
        2 => (1..3u32, back()).prop_map(|(host, beat_back)| Step::Lead { host, beat_back }),
        1 => Just(Step::Read),
        1 => Just(Step::List),
    ]
}

impl Step {
    fn command(&self, machine: &Machine, partition: u64) -> Command {
        let attempt = |back: u64| machine.state.attempts.saturating_sub(back);
        let epoch = machine.state.records.get(&partition).map_or(0, |record| record.epoch);
        match *self {
            Step::Begin { source, destination } => Command::Begin { partition, source, destination },
            Step::Commit { back, epoch_back } => {
                Command::Commit { partition, attempt: attempt(back), epoch: epoch.saturating_sub(epoch_back), lsn: 9 }
            }
            Step::Abort { back } => Command::Abort { partition, attempt: attempt(back), reason: "step".into() },
            Step::Complete { back } => Command::Complete { partition, attempt: attempt(back) },
            Step::Release { back } => Command::Release { partition, attempt: attempt(back) },
            Step::Split { at, epoch_back } => {
                Command::Split { partition, epoch: epoch.saturating_sub(epoch_back), at, child: Some(fresh()) }
            }
            Step::Merge { epoch_back } => {
                let records = || machine.state.records.values();
                let known = records().find(|record| record.partition == partition);
                let next = known.and_then(|known| {
                    records().find(|next| next.keyspace == known.keyspace && next.slots.0 == known.slots.1 + 1)
                });
                let (other, other_epoch) = next.map_or((partition, epoch), |next| (next.partition, next.epoch));
                Command::Merge { partition, epoch: epoch.saturating_sub(epoch_back), other, other_epoch }
            }
            Step::Force { back, lsn } => {
                Command::ForcePromote { partition, attempt: attempt(back), lsn, policy: "lww".into() }
            }
            Step::BeginReconcile { back, until } => {
                Command::BeginReconcile { partition, attempt: attempt(back), until }
            }
            Step::EndReconcile { back } => {
                Command::EndReconcile { partition, attempt: attempt(back), outcome: "step".into() }
            }
            Step::Lead { host, beat_back } => {
                let beat = machine.state.leader.as_ref().map_or(0, |leader| leader.beat);
                Command::Lead { host, beat: beat.saturating_sub(beat_back) }
            }
            Step::Read => Command::Read { partition },
            Step::List => Command::List,
        }
    }
}

/// Random histories get the same answers, word for word, as the machine alone gives, through whichever host they come.
fn agrees_with_the_machine(pair: &Pair, runtime: &Handle) {
    let ask = |index: usize, command: Command| runtime.block_on(pair[index].ask(command));
    let histories = prop::collection::vec((step(), 0..2usize, 0..2usize), 1..25);
    let mut runner = TestRunner::new(Config { cases: 16, failure_persistence: None, ..Config::default() });
    let run = |history: Vec<(Step, usize, usize)>| {
        let Ok(Answer::State(state)) = ask(0, Command::List) else { panic!("no list") };
        let (mut machine, partitions) = (Machine { state }, [fresh(), fresh()]);
        for partition in partitions {
            let keyspace = format!("history-{partition}");
            let create = Command::Create { partition, keyspace, slots: (0, 9), owner: 1 };
            prop_assert_eq!(ask(1, create.clone()).unwrap(), machine.apply(create).unwrap());
        }
        for (step, which, through) in history {
            let command = step.command(&machine, partitions[which]);
            match (machine.apply(command.clone()), ask(through, command.clone())) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs, "{:?}", command),
                (Err(ours), Err(Error::Conflict { what })) => prop_assert_eq!(ours, what, "{:?}", command),
                (ours, theirs) => prop_assert!(false, "{:?}: {:?}, but {:?}", command, ours, theirs),
            }
        }
        Ok(())
    };
    runner.run(&histories, run).unwrap();
}
