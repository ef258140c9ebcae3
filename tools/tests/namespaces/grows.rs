//! A hot spot that grows is answered by itself, while everybody goes on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use antumbra_net::resp::slot::slot_of;
use redis::Commands;

use crate::cluster::{Cluster, HOSTS, ask, await_owners, await_that, create, owners_of, resp, statistics};
use crate::common::settled::json;
use crate::load::{Clients, cluster_client, version};
use crate::routes::Watcher;
use crate::yard;

/// A shard counts as overloaded at this part of the requests that the hot spot's clients got answered just before, beside all
/// others, when nothing held them back: those that wait between two requests come to less, and the machine may begin to do
/// something else.
const LIMIT: f64 = 0.25;
/// Fewer a second show nothing: they are measured again, for a while.
const FLOOR: f64 = 100.0;
/// How long they are measured, and how often at most.
const MEASURED: (Duration, u32) = (Duration::from_secs(4), 10);
/// The hot spot's part of the limit at its beginning and at its end, and the time between them.
const GROWTH: (f64, f64, Duration) = (0.15, 1.1, Duration::from_secs(28));
/// Clients that get less than this part of their last rate answered do not show what the cluster does at the limit: they try once
/// more with one that is this part of what they came to.
const REACHED: f64 = 0.95;
const LOWERED: f64 = 0.8;
const TRIES: u32 = 3;
const CLIENTS: usize = 3;
const KEYS: usize = 3000;
/// Behind the commit, everybody who asks is to be led to the new owner.
const TOLD_MAX: Duration = Duration::from_secs(1);
/// The last slot of partition 1, which is all that host 1 has.
const HOT_LAST: u16 = 5460;

#[test]
fn hot_spot_is_moved_away_ahead_without_a_failed_request() {
    if !yard::enter("grows::hot_spot_is_moved_away_ahead_without_a_failed_request") {
        return;
    }
    let Some(mut cluster) = Cluster::start(&[]) else { return };
    create(&[(1, 0, HOT_LAST, 1), (2, HOT_LAST + 1, 10922, 2), (3, 10923, 16383, 3)]);
    let is_told = |served: &(u64, String)| *served == (1, resp(1).to_string());
    await_that("the load balancer is told", || statistics().iter().any(is_told));
    let watcher = Watcher::start();
    // Turns of their own: whoever counts begins with keys that nobody has counted.
    let capacity = (0..MEASURED.1).map(|again| capacity(TRIES + 1 + again)).find(|found| *found >= FLOOR);
    let capacity = capacity.expect("a cluster that works answers more, whatever else the machine does");
    println!("three clients got {capacity:.0} requests a second answered beside all others");
    let mut limit = capacity * LIMIT;
    let moved = (1..=TRIES).find_map(|turn| match attempt(&mut cluster, turn, limit) {
        Ok(moved) => Some(moved),
        Err(rate) => {
            println!("nothing was moved: the clients came to {rate:.0} requests a second, the limit was {limit:.0}");
            limit = rate * LOWERED;
            None
        }
    });
    let (clients, took) =
        moved.expect("the machine has as much for the clients as it has just had, once in a few times");
    // The rate goes on as it is.
    await_that("the load is shared", || HOSTS.iter().all(|host| level(*host) < 0.9));
    std::thread::sleep(Duration::from_secs(2));
    let account = std::sync::Arc::clone(&clients.account);
    let acked = clients.stop();
    let all = watcher.stop();
    cluster.assert_alive("behind the hot spot");
    println!("{}", events());

    assert_eq!(account.failed(), Vec::<String>::new());
    let done = account.done.load(Ordering::Relaxed);
    let mut connection = cluster_client();
    for (key, last) in &acked {
        let value: Option<String> = connection.get(key).unwrap();
        assert_eq!(version(value.as_deref()), *last, "{key}: not what was acknowledged last");
    }
    assert!(acked.len() > 100 && done as f64 > 5.0 * limit, "{} keys written, {done} requests", acked.len());
    println!("{done} requests, none failed; {} keys as they were acknowledged last; moved {took:.1?} in", acked.len());

    let moves = all.iter().filter(|(_, seen)| seen.before.is_some_and(|before| before != seen.owner));
    let mut lags = Vec::new();
    for ((partition, epoch), seen) in moves {
        let lag = |seen_there: Option<Instant>| {
            seen_there.unwrap_or_else(Instant::now).saturating_duration_since(seen.record)
        };
        println!(
            "partition {partition}, epoch {epoch}, on host {}: in DNS {:.0?}, in HAProxy {:.0?} behind the record",
            seen.owner,
            lag(seen.names),
            lag(seen.balancer)
        );
        lags.push(lag(seen.names).max(lag(seen.balancer)));
    }
    assert!(!lags.is_empty() && lags.iter().all(|lag| *lag < TOLD_MAX), "{lags:?}: {all:#?}");
}

/// Gives the hosts their limit, and lets the hot spot grow until it is moved, after how long is returned. The clients that were
/// moved go on.
///
/// Errors: the requests a second that the clients came to, where those were too few.
fn attempt(cluster: &mut Cluster, turn: u32, limit: f64) -> Result<(Clients, Duration), f64> {
    if turn > 1 {
        // Without a limit: what was begun with the last one is brought to an end.
        cluster.restart(&[]);
        bring_home();
    }
    let limit_option = limit.to_string();
    cluster.restart(&["--policy", "auto", "--limit-requests", &limit_option, "--limit-core", "10"]);
    await_owners(&[(1, 1), (2, 2), (3, 3)]);

    let clients = start_all(turn, 0);
    let began = Instant::now();
    let (from, to, time) = GROWTH;
    let mut at_full_rate = None;
    let mut looks = 0;
    while looks % 10 != 0 || !events().contains("moved to host") {
        let at = (began.elapsed().as_secs_f64() / time.as_secs_f64()).min(1.0);
        clients.account.rate.store((limit * (from + (to - from) * at)) as u64, Ordering::Relaxed);
        let hot = clients.account.hot.load(Ordering::Relaxed) as f64;
        if at >= 1.0 && at_full_rate.is_none() {
            at_full_rate = Some(hot);
        }
        if began.elapsed() > 3 * time {
            let rate = (hot - at_full_rate.unwrap_or(hot)) / (2 * time).as_secs_f64();
            assert!(
                rate < limit * to * REACHED,
                "nothing was moved, although clients got {rate:.0} requests a second answered, {limit:.0} is the limit:\n{}",
                events()
            );
            let account = std::sync::Arc::clone(&clients.account);
            clients.stop();
            assert_eq!(account.failed(), Vec::<String>::new());
            return Err(rate);
        }
        std::thread::sleep(Duration::from_millis(50));
        looks += 1;
    }
    Ok((clients, began.elapsed()))
}

/// Partition 1 is host 1's, also where it was moved when nobody looked any more.
fn bring_home() {
    await_that("partition 1 is served by one host", || owners_of(1).len() == 1);
    let owner = owners_of(1)[0];
    if owner != 1 {
        let said = ask(owner, "ANTUMBRA MOVE 1 1 SETPOINT off");
        assert!(said.contains("OK"), "back to host 1: {said}");
    }
    await_owners(&[(1, 1), (2, 2), (3, 3)]);
}

/// Requests per second that the hot spot's clients get answered when nothing holds them back.
fn capacity(turn: u32) -> f64 {
    let clients = start_all(turn, u64::from(u32::MAX));
    let account = std::sync::Arc::clone(&clients.account);
    // Their first requests learn where slots are.
    await_that("the clients have begun", || account.hot.load(Ordering::Relaxed) > 30);
    let (before, began) = (account.hot.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(MEASURED.0);
    let done = account.hot.load(Ordering::Relaxed) - before;
    let capacity = done as f64 / began.elapsed().as_secs_f64();
    clients.stop();
    assert_eq!(account.failed(), Vec::<String>::new());
    capacity
}

/// Clients of the hot spot, each with its part of the keys, at `rate` together, and one of each other kind.
fn start_all(turn: u32, rate: u64) -> Clients {
    let mut clients = Clients::default();
    clients.account.rate.store(rate, Ordering::Relaxed);
    let keys = (0..).map(|number| format!("hot-{turn}:{number}")).filter(|key| slot_of(key.as_bytes()) <= HOT_LAST);
    let keys: Vec<String> = keys.take(KEYS).collect();
    for client in 0..CLIENTS {
        clients.hot(keys.iter().skip(client).step_by(CLIENTS).cloned().collect(), CLIENTS as u64);
    }
    clients.plain(1, turn);
    clients.balanced(turn);
    clients.redis_cli();
    clients.redis_benchmark();
    clients
}

/// The highest load of a host, as a part of the limit.
fn level(host: u32) -> f64 {
    let trend = json(&ask(host, "ANTUMBRA TRENDS"));
    let shards = trend["shards"].as_array().into_iter().flatten();
    shards.filter_map(|shard| shard["level"].as_f64()).fold(0.0, f64::max)
}

/// What has happened, as the hosts tell it.
fn events() -> String {
    let of = |host: &u32| {
        let said = ask(*host, "ANTUMBRA EVENTS 0 1000");
        let all = said.find('[').zip(said.rfind(']')).map_or("[]", |(from, to)| &said[from..=to]);
        let all: Vec<serde_json::Value> = serde_json::from_str(all).unwrap_or_default();
        let line = |event: &serde_json::Value| format!("host {host}: {}\n", event["text"].as_str().unwrap_or_default());
        all.iter().map(line).collect::<String>()
    };
    HOSTS.iter().map(of).collect()
}
