//! A hot spot that grows is answered by itself, while everybody goes on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use antumbra_net::resp::slot::slot_of;
use redis::Commands;

use crate::cluster::{Cluster, HOSTS, ask, await_that, create, json, resp, statistics};
use crate::load::{Clients, cluster_client, version};
use crate::routes::Watcher;
use crate::yard;

/// Requests per second at which a shard counts as overloaded: less than half of what three clients can send on a machine of two cores
/// that is building something else meanwhile.
const LIMIT: f64 = 400.0;
/// The hot spot's part of that at its beginning and at its end, and the time between them.
const GROWTH: (f64, f64, Duration) = (0.15, 1.1, Duration::from_secs(28));
const CLIENTS: u64 = 3;
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
    let limit = LIMIT.to_string();
    let options = ["--policy", "auto", "--limit-requests", &limit, "--limit-core", "10"];
    let Some(mut cluster) = Cluster::start(&options) else { return };
    create(&[(1, 0, HOT_LAST, 1), (2, HOT_LAST + 1, 10922, 2), (3, 10923, 16383, 3)]);

    let keys = (0..).map(|number| format!("hot:{number}")).filter(|key| slot_of(key.as_bytes()) <= HOT_LAST);
    let keys: Vec<String> = keys.take(KEYS).collect();
    let is_told = |served: &(u64, String)| *served == (1, resp(1).to_string());
    await_that("the load balancer is told", || statistics().iter().any(is_told));
    let watcher = Watcher::start();
    let mut clients = Clients::default();
    for client in 0..CLIENTS as usize {
        clients.hot(keys.iter().skip(client).step_by(CLIENTS as usize).cloned().collect(), CLIENTS);
    }
    clients.plain(1);
    clients.balanced();
    clients.redis_cli();
    clients.redis_benchmark();

    let began = Instant::now();
    let (from, to, time) = GROWTH;
    let moved = || HOSTS.iter().any(|host| ask(*host, "ANTUMBRA EVENTS 0 1000").contains("moved to host"));
    let (mut turn, mut at_full_rate) = (0, None);
    while turn % 10 != 0 || !moved() {
        let at = (began.elapsed().as_secs_f64() / time.as_secs_f64()).min(1.0);
        clients.account.rate.store((LIMIT * (from + (to - from) * at)) as u64, Ordering::Relaxed);
        if began.elapsed() > 3 * time {
            let done = clients.account.done.load(Ordering::Relaxed) as f64;
            let rate = (done - at_full_rate.unwrap_or(done)) / (2 * time).as_secs_f64();
            panic!(
                "nothing was moved; all clients made {rate:.0} requests a second, it takes {LIMIT} of one host:\n{}",
                events()
            );
        }
        if at >= 1.0 && at_full_rate.is_none() {
            at_full_rate = Some(clients.account.done.load(Ordering::Relaxed) as f64);
        }
        std::thread::sleep(Duration::from_millis(50));
        turn += 1;
    }
    let took = began.elapsed();
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
    assert!(acked.len() > 300 && done > 3000, "{} keys written, {done} requests", acked.len());
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
