//! Against real etcd: the suite, and what goes wrong with members, links, answers, secrets.

mod cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use antumbra_engine::types::{HostId, PartitionId};
use antumbra_net::Error;
use antumbra_net::coordinator::etcd::{Etcd, EtcdConfig};
use antumbra_net::coordinator::{self, Command, Coordinator, RecordState};
use antumbra_net::host::CoordinatorAt;
use antumbra_net::secret::Secret;
use antumbra_net::shadow::MoveOptions;
use etcd_client::Client;

use super::coordinators::{attempt_of, change, create, info, keeps_the_rules, register, start_host};
use super::daemon::until;
use cluster::{Cluster, set_mode, write_certs};

fn open(config: &EtcdConfig) -> Arc<Etcd> {
    Arc::new(Etcd::open(config.clone()).unwrap())
}

/// What the watch shows now.
fn shown(etcd: &Etcd) -> Option<Arc<coordinator::ClusterState>> {
    etcd.watching().unwrap().borrow().clone()
}

/// Waits for the watch to show a record as it is.
async fn await_shown(etcd: &Arc<Etcd>, partition: u64) {
    let record = until_known(etcd.as_ref(), partition, Command::Read { partition }).await;
    let watcher = Arc::clone(etcd);
    let is_shown = move || shown(&watcher).is_some_and(|state| state.records.get(&partition) == Some(&record));
    tokio::task::spawn_blocking(move || until("the watch shows the record", is_shown)).await.unwrap();
}

#[tokio::test]
async fn etcd_coordinator_keeps_the_rules() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    keeps_the_rules([open(&cluster.config()), open(&cluster.config())]).await;
}

#[tokio::test]
async fn lost_answer_of_a_commit_is_found_out_and_of_a_begin_is_unknown() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    let (relay, config) = cluster.relayed();
    let (one, other) = (open(&config), open(&cluster.config()));
    register(other.as_ref()).await;
    let partition = create(one.as_ref()).await;

    relay.mute_at("\"Moving\"");
    let lost = change(one.as_ref(), Command::Begin { partition, source: 1, destination: 2 }).await;
    assert!(relay.is_mute() && matches!(lost, Err(Error::Unknown { .. })), "{lost:?}");
    let begun = coordinator::read(other.as_ref(), partition).await.unwrap();
    let attempt = attempt_of(&begun);
    assert_eq!((begun.revision, attempt), (2, 1), "it took place, once");
    // Nothing gets through: that shows.
    assert!(matches!(coordinator::read(one.as_ref(), partition).await, Err(Error::Unknown { .. })));
    let health = one.health();
    assert!(!health.reachable && health.last_error.is_some(), "{health:?}");

    relay.mend();
    coordinator::read(one.as_ref(), partition).await.unwrap();
    assert!(one.health().reachable);
    relay.mute_at("\"Committed\"");
    let asker = Arc::clone(&one);
    let commit = Command::Commit { partition, attempt, epoch: 1, lsn: 9 };
    let asked = tokio::spawn(async move { change(asker.as_ref(), commit).await });
    wait_for("the commit is on its way", || relay.is_mute()).await;
    relay.mend();
    let committed = asked.await.unwrap().unwrap();
    assert_eq!((committed.owner, committed.epoch, committed.revision), (2, 2, 3), "asked again, done once");
    assert_eq!(coordinator::read(other.as_ref(), partition).await.unwrap(), committed);
}

#[tokio::test]
async fn lease_of_a_host_that_is_gone_lapses_and_comes_back_with_it() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    let (relay, config) = cluster.relayed();
    let (one, other) = (open(&config), open(&cluster.config()));
    one.ask(Command::Register(info(1))).await.unwrap();
    let watcher = Arc::clone(&other);
    let knows = move |wanted: bool| {
        until("the host's lease", || shown(&watcher).is_some_and(|state| state.hosts.contains_key(&1) == wanted));
    };
    let knows = Arc::new(knows);
    let wait = |wanted: bool| {
        let knows = Arc::clone(&knows);
        tokio::task::spawn_blocking(move || knows(wanted))
    };
    wait(true).await.unwrap();
    // Longer than the lease: it is kept alive.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(coordinator::list(other.as_ref()).await.unwrap().hosts.contains_key(&1));
    relay.cut();
    wait(false).await.unwrap();
    assert!(!one.health().reachable);
    other.ask(Command::Register(info(2))).await.unwrap();
    let partition = create(other.as_ref()).await;
    let begin = Command::Begin { partition, source: 1, destination: 1 };
    assert!(
        matches!(change(other.as_ref(), begin).await, Err(Error::Conflict { .. })),
        "nothing moves to a host that is gone"
    );
    relay.mend();
    wait(true).await.unwrap();
    assert!(one.health().reachable);
    drop(one);
    wait(false).await.unwrap();
}

#[tokio::test]
async fn watch_goes_on_behind_a_lost_link_and_behind_a_compaction() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    let (relay, config) = cluster.relayed();
    let (one, other) = (open(&config), open(&cluster.config()));
    register(other.as_ref()).await;
    let partition = create(other.as_ref()).await;
    let write = async |times: u64| {
        for _ in 0..times {
            let begin = Command::Begin { partition, source: 1, destination: 2 };
            let attempt = attempt_of(&change(other.as_ref(), begin).await.unwrap());
            let abort = Command::Abort { partition, attempt, reason: "test".into() };
            change(other.as_ref(), abort).await.unwrap();
        }
    };
    await_shown(&one, partition).await;
    write(5).await;
    let began = Instant::now();
    await_shown(&one, partition).await;
    assert!(began.elapsed() < Duration::from_secs(1), "the watch is late: {:?}", began.elapsed());

    relay.cut();
    write(5).await;
    let unseen = Arc::clone(&one);
    tokio::task::spawn_blocking(move || until("the watch is lost", || shown(&unseen).is_none())).await.unwrap();
    relay.mend();
    await_shown(&one, partition).await;

    relay.cut();
    write(5).await;
    let mut client = cluster.client().await;
    let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    relay.mend();
    await_shown(&one, partition).await;
    write(1).await;
    await_shown(&one, partition).await;
}

#[tokio::test]
async fn dead_and_stopped_members_are_left_for_others() {
    let Some(mut cluster) = Cluster::start(3, None) else { return };
    let mut config = cluster.config();
    // Both hosts are announced by one handle here, which would bring back the last one only.
    config.lease = Duration::from_secs(60);
    let one = open(&config);
    register(one.as_ref()).await;
    let partition = create(one.as_ref()).await;
    let turn = async || {
        let record = until_known(one.as_ref(), partition, Command::Read { partition }).await;
        let (source, destination) = (record.owner, 3 - record.owner);
        let attempt = attempt_of(&until_begun(one.as_ref(), partition, source, destination).await);
        let commit = Command::Commit { partition, attempt, epoch: record.epoch, lsn: 9 };
        let committed = until_known(one.as_ref(), partition, commit).await;
        assert_eq!((committed.owner, committed.epoch), (destination, record.epoch + 1));
        let complete = Command::Complete { partition, attempt };
        assert_eq!(until_known(one.as_ref(), partition, complete).await.state, RecordState::Stable);
    };
    turn().await;

    // The one that is asked dies.
    cluster.kill(0);
    turn().await;
    cluster.restart(0);

    // The leader stands still: what is asked takes until the others have chosen another one.
    let leader = cluster.leader().await;
    cluster.members[leader].daemon.as_ref().unwrap().stand_still(true);
    let began = Instant::now();
    turn().await;
    println!("a turn of three changes with a leader that stands still: {:?}", began.elapsed());
    await_shown(&one, partition).await;
    cluster.members[leader].daemon.as_ref().unwrap().stand_still(false);
    turn().await;

    // No majority: nothing is started, and it shows.
    cluster.kill(1);
    cluster.kill(2);
    let begin = Command::Begin { partition, source: 1, destination: 2 };
    let refused = change(one.as_ref(), begin).await;
    assert!(matches!(refused, Err(Error::Unknown { .. })), "{refused:?}");
    let health = one.health();
    assert!(!health.reachable && health.last_error.is_some(), "{health:?}");
    cluster.restart(1);
    turn().await;
    assert!(one.health().reachable);
    await_shown(&one, partition).await;
}

/// Begins a move, however often the answer is lost.
async fn until_begun(
    one: &dyn Coordinator,
    partition: u64,
    source: u32,
    destination: u32,
) -> coordinator::PartitionRecord {
    let began = Instant::now();
    loop {
        match change(one, Command::Begin { partition, source, destination }).await {
            Ok(record) => return record,
            Err(cause) => assert!(began.elapsed() < Duration::from_secs(30), "{cause}"),
        }
        // It may have begun without a word.
        if let Ok(record) = coordinator::read(one, partition).await
            && matches!(record.state, RecordState::Moving(_))
        {
            return record;
        }
    }
}

async fn until_known(one: &dyn Coordinator, partition: u64, command: Command) -> coordinator::PartitionRecord {
    let began = Instant::now();
    loop {
        match change(one, command.clone()).await {
            Ok(record) => return record,
            Err(Error::Conflict { what }) => panic!("{partition}: {what}"),
            Err(cause) => assert!(began.elapsed() < Duration::from_secs(30), "{cause}"),
        }
    }
}

#[tokio::test]
async fn member_of_another_cluster_and_foreign_format_are_refused() {
    let (Some(mut ours), Some(theirs)) = (Cluster::start(1, None), Cluster::start(1, None)) else { return };
    let mut config = ours.config();
    config.endpoints.extend(theirs.config().endpoints);
    // The first that answers is the cluster: that has to be ours, however slow it is.
    let stand_still = |still| theirs.members[0].daemon.as_ref().unwrap().stand_still(still);
    stand_still(true);
    let one = open(&config);
    register(one.as_ref()).await;
    let partition = create(one.as_ref()).await;
    stand_still(false);
    ours.kill(0);
    let refused = coordinator::read(one.as_ref(), partition).await;
    assert!(matches!(refused, Err(Error::Unknown { .. })), "the other cluster must not answer: {refused:?}");
    let mut client = theirs.client().await;
    assert!(client.get("/antumbra/format", None).await.unwrap().kvs().is_empty(), "nor be written to");

    client.put("/antumbra/format", "2", None).await.unwrap();
    let other = open(&theirs.config());
    let refused = coordinator::list(other.as_ref()).await.unwrap_err().to_string();
    assert!(refused.contains("format 2"), "{refused}");
}

#[tokio::test]
async fn second_cluster_under_a_prefix_is_refused() {
    let Some(etcd) = Cluster::start(1, None) else { return };
    let of = |authority: &str| EtcdConfig { cluster: Some(authority.into()), ..etcd.config() };
    // Whoever comes first has the prefix, and opening it is coming.
    let one = open(&of("authority-a"));
    register(one.as_ref()).await;
    let two = open(&of("authority-b"));
    let refused = coordinator::list(two.as_ref()).await.unwrap_err().to_string();
    assert!(refused.contains("/antumbra/cluster names authority authority-a"), "{refused}");
    assert!(refused.contains("--etcd-prefix"), "{refused}");
    assert!(!two.health().reachable && coordinator::list(one.as_ref()).await.is_ok());
    let apart = open(&EtcdConfig { prefix: "/second".into(), ..of("authority-b") });
    assert!(coordinator::list(apart.as_ref()).await.unwrap().hosts.is_empty());
}

#[tokio::test]
async fn tls_and_passwords_are_checked_both_ways() {
    let certs = tempfile::tempdir().unwrap();
    write_certs(certs.path(), "etcd", "ca");
    write_certs(certs.path(), "host", "ca");
    write_certs(certs.path(), "stranger", "other-ca");
    let Some(cluster) = Cluster::start(1, Some(certs.path())) else { return };
    let mut config = cluster.config();
    config.endpoints = vec![format!("https://{}", cluster.members[0].client)];
    let file = |name: &str| Some(certs.path().join(name));
    (config.ca, config.cert, config.key) = (file("ca.pem"), file("host.pem"), file("host.key"));
    register(open(&config).as_ref()).await;

    let refused = async |config: EtcdConfig| coordinator::list(open(&config).as_ref()).await.unwrap_err().to_string();
    let mut wrong = config.clone();
    wrong.ca = file("other-ca.pem");
    let what = refused(wrong).await;
    assert!(what.contains("certificate") || what.contains("UnknownIssuer"), "{what}");
    let mut wrong = config.clone();
    (wrong.cert, wrong.key) = (file("stranger.pem"), file("stranger.key"));
    println!("a stranger's certificate: {}", refused(wrong).await);
    let mut wrong = config.clone();
    std::fs::copy(certs.path().join("host.key"), certs.path().join("open.key")).unwrap();
    set_mode(&certs.path().join("open.key"), 0o644);
    wrong.key = file("open.key");
    let what = refused(wrong).await;
    assert!(what.contains("chmod 600"), "{what}");

    // Rights: the user may touch the prefix alone.
    let tls = etcd_client::TlsOptions::new()
        .ca_certificate(etcd_client::Certificate::from_pem(std::fs::read(certs.path().join("ca.pem")).unwrap()))
        .identity(etcd_client::Identity::from_pem(
            std::fs::read(certs.path().join("host.pem")).unwrap(),
            std::fs::read(certs.path().join("host.key")).unwrap(),
        ));
    let options = etcd_client::ConnectOptions::new().with_tls(tls);
    let mut root = Client::connect(&config.endpoints, Some(options)).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_add("root", "toor", None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("antumbra").await.unwrap();
    let whole = etcd_client::Permission::read_write("/antumbra/").with_prefix();
    root.role_grant_permission("antumbra", whole).await.unwrap();
    root.user_add("node", "hunter2", None).await.unwrap();
    root.user_grant_role("node", "antumbra").await.unwrap();
    root.auth_enable().await.unwrap();

    let mut known = config.clone();
    known.user = Some(("node".into(), Secret::new("hunter2")));
    let one = open(&known);
    register(one.as_ref()).await;
    let partition = create(one.as_ref()).await;
    await_shown(&one, partition).await;
    let mut wrong = config.clone();
    wrong.user = Some(("node".into(), Secret::new("hunter3")));
    let what = refused(wrong).await;
    assert!(what.contains("authentication failed") && !what.contains("hunter3"), "{what}");
    let mut wrong = known.clone();
    wrong.prefix = "/elsewhere".into();
    let what = refused(wrong).await;
    assert!(what.contains("permission denied"), "{what}");
}

/// Two hosts: a partition is created and moved, each hears of it at once; without etcd both serve on and nothing begins.
#[tokio::test]
async fn hosts_follow_at_once_and_serve_on_without_etcd() {
    let Some(mut cluster) = Cluster::start(1, None) else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = || CoordinatorAt::Etcd(Box::new(cluster.config()));
    let first = start_host(dir.path(), 1, at()).await;
    let second = start_host(dir.path(), 2, at()).await;
    let (partition, id) = (7, PartitionId(7));
    let create = Command::Create { partition, keyspace: "default".into(), slots: (0, 16383), owner: 1 };
    change(second.coordinator.as_ref(), create).await.unwrap();
    let began = Instant::now();
    wait_for("the first host creates its partition", || first.engine.partition(id).is_ok()).await;
    println!("created {:?} after the record", began.elapsed());
    let handle = first.engine.partition(id).unwrap();
    handle.put("\0\0key", "1").await.unwrap();

    cluster.kill(0);
    let handles = first.engine.partition(id).unwrap();
    for round in 0..20 {
        handles.put("\0\0key", format!("{round}")).await.unwrap();
        assert_eq!(handles.get("\0\0key").await.unwrap().unwrap(), format!("{round}"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let is_gone = || !first.coordinator.health().reachable && !second.coordinator.health().reachable;
    wait_for("the outage shows", is_gone).await;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let refused = first.start_move(id, HostId(2), MoveOptions::default());
    assert!(matches!(&refused, Err(Error::Refused { what }) if what.contains("does not answer")), "{refused:?}");

    cluster.restart(0);
    wait_for("both answer again", || first.coordinator.health().reachable && second.coordinator.health().reachable)
        .await;
    let moved = first.start_move(id, HostId(2), MoveOptions::default()).unwrap();
    wait_for("the move ends", || moved.is_finished()).await;
    assert_eq!(moved.progress().failed, None);
    println!("the partition was frozen for {} us", moved.report().unwrap().frozen_us);
    let record = coordinator::read(first.coordinator.as_ref(), partition).await.unwrap();
    assert_eq!(record.owner, 2);
    let began = Instant::now();
    for host in [&first, &second] {
        wait_for("the route", || host.routing.load().route(0).map(|route| route.owner) == Some(HostId(2))).await;
    }
    println!("routes {:?} after the commit was read", began.elapsed());
    assert_eq!(second.engine.partition(id).unwrap().get("\0\0key").await.unwrap().unwrap(), "19");
    for host in [first, second] {
        let engine = host.engine.clone();
        drop(host);
        engine.close().await.unwrap();
    }
}

async fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "not within half a minute: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
