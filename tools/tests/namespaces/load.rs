//! Unmodified clients that write and read, and keep account: what failed, what is acknowledged.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::cluster::{ClusterClient, ClusterConnection};
use redis::{Commands, RedisResult};

use crate::cluster::{BALANCER, HOSTS, resp, yard};

/// Time between two bursts of the hot spot's clients.
const STEP: Duration = Duration::from_millis(10);
/// A client that is paced asks at least this often.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Bytes of a value of the hot spot.
const VALUE: usize = 256;

/// Last version that was acknowledged, by key.
pub type Acked = BTreeMap<String, u64>;

/// What all clients share.
#[derive(Default)]
pub struct Account {
    /// Requests of the hot spot per second, in all.
    pub rate: AtomicU64,
    /// Requests, in all.
    pub done: AtomicU64,
    /// Those of the hot spot.
    pub hot: AtomicU64,
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Account {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }

    /// Waits so long before the next of a client's requests that all others are few beside the hot spot's: `share` of these come to
    /// one of it, at most one in `least`.
    fn pause(&self, share: f64, least: Duration) {
        let rate = self.rate.load(Ordering::Relaxed).max(1) as f64;
        std::thread::sleep(Duration::from_secs_f64(share / rate).max(least).min(PAUSE_MAX));
    }

    fn fail(&self, what: String) {
        self.failed.lock().unwrap().push(what);
    }

    /// Counts a request; `None` and a note if it has failed.
    fn take<T>(&self, who: &str, result: RedisResult<T>) -> Option<T> {
        self.done.fetch_add(1, Ordering::Relaxed);
        result.map_err(|cause| self.fail(format!("{who}: {cause}"))).ok()
    }
}

/// Clients, each a thread that returns what it has been promised.
#[derive(Default)]
pub struct Clients {
    pub account: Arc<Account>,
    threads: Vec<JoinHandle<Acked>>,
}

impl Clients {
    fn start(&mut self, client: impl FnOnce(&Account) -> Acked + Send + 'static) {
        let account = Arc::clone(&self.account);
        self.threads.push(std::thread::spawn(move || client(&account)));
    }

    /// A cluster client that reads and writes some keys at its part of the rate.
    pub fn hot(&mut self, keys: Vec<String>, part: u64) {
        self.start(move |account| hot(account, &keys, part));
    }

    /// One that knows the old owner only, and nothing of slots.
    pub fn plain(&mut self, host: u32, turn: u32) {
        self.start(move |account| counting(account, &format!("a client of the old address {turn}"), resp(host), false));
    }

    /// One that comes through the load balancer, with a connection for each request.
    pub fn balanced(&mut self, turn: u32) {
        self.start(move |account| counting(account, &format!("a client of HAProxy {turn}"), yard(BALANCER), true));
    }

    pub fn redis_cli(&mut self) {
        self.start(redis_cli);
    }

    pub fn redis_benchmark(&mut self) {
        self.start(|account| {
            while account.goes_on() {
                redis_benchmark(account);
                account.pause(200.0, Duration::from_millis(500));
            }
            Acked::new()
        });
    }

    /// Ends all; what has been acknowledged last.
    pub fn stop(self) -> Acked {
        self.account.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

/// A client of all hosts, as its library makes it.
pub fn cluster_client() -> ClusterConnection {
    let urls = HOSTS.map(|host| format!("redis://{}", resp(host)));
    ClusterClient::new(urls).unwrap().get_connection().unwrap()
}

/// The version that a value says.
pub fn version(value: Option<&str>) -> u64 {
    value.and_then(|value| value.split(' ').next()?.parse().ok()).unwrap_or(0)
}

fn hot(account: &Account, keys: &[String], part: u64) -> Acked {
    let mut connection = cluster_client();
    let (mut acked, mut owed, mut turn, mut last) = (Acked::new(), 0.0, 0, Instant::now());
    while account.goes_on() {
        std::thread::sleep(STEP);
        let now = Instant::now();
        // What a slow moment has left undone is not caught up with: the rate is to grow evenly.
        let step = (now - last).min(5 * STEP);
        owed += account.rate.load(Ordering::Relaxed) as f64 / part as f64 * step.as_secs_f64();
        last = now;
        while owed >= 1.0 && account.goes_on() {
            owed -= 1.0;
            turn += 1;
            account.hot.fetch_add(1, Ordering::Relaxed);
            let key = &keys[turn / 4 * 7 % keys.len()];
            let known = acked.get(key).copied().unwrap_or(0);
            if turn % 4 == 0 {
                let value = format!("{:<VALUE$}", format!("{} ", known + 1));
                if account.take("SET", connection.set::<_, _, ()>(key, value)).is_some() {
                    acked.insert(key.clone(), known + 1);
                }
            } else if let Some(value) = account.take("GET", connection.get::<_, Option<String>>(key)) {
                let found = version(value.as_deref());
                if found != known {
                    account.fail(format!("{key}: version {found} was read behind version {known}"));
                }
            }
        }
    }
    acked
}

fn counting(account: &Account, who: &str, address: SocketAddr, anew: bool) -> Acked {
    let client = redis::Client::open(format!("redis://{address}")).unwrap();
    let mut connection = None;
    let (mut acked, mut turn) = (Acked::new(), 0);
    while account.goes_on() {
        match anew {
            true => account.pause(20.0, Duration::from_millis(50)),
            false => account.pause(10.0, Duration::from_millis(10)),
        }
        if connection.is_none() {
            connection = account.take(who, client.get_connection_with_timeout(Duration::from_secs(5)));
        }
        let Some(at) = connection.as_mut() else { continue };
        turn += 1;
        let key = format!("{who} {}", turn % 20);
        match account.take(who, at.incr::<_, _, u64>(&key, 1)) {
            Some(count) => {
                let before = acked.insert(key.clone(), count).unwrap_or(0);
                if count != before + 1 {
                    account.fail(format!("{key}: {count} behind {before}"));
                }
            }
            None => connection = None,
        }
        if anew {
            connection = None;
        }
    }
    acked
}

fn redis_cli(account: &Account) -> Acked {
    let run = |words: &[&str]| {
        let address = resp(1);
        let place = ["-c", "-h", &address.ip().to_string(), "-p", &address.port().to_string()].map(String::from);
        let output = Command::new("redis-cli").args(place).args(words).output().unwrap();
        account.done.fetch_add(1, Ordering::Relaxed);
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    };
    let (mut acked, mut turn) = (Acked::new(), 0_u64);
    while account.goes_on() {
        account.pause(40.0, Duration::from_millis(150));
        turn += 1;
        let key = format!("cli {}", turn % 30);
        let said = run(&["set", &key, &turn.to_string()]);
        if said == "OK" {
            acked.insert(key.clone(), turn);
        } else {
            account.fail(format!("redis-cli set: {said}"));
        }
        let said = run(&["get", &key]);
        if said != turn.to_string() {
            account.fail(format!("redis-cli get {key}: {said}, not {turn}"));
        }
    }
    acked
}

fn redis_benchmark(account: &Account) {
    let address = resp(2);
    let place = ["-h", &address.ip().to_string(), "-p", &address.port().to_string()].map(String::from);
    let options = ["--cluster", "-t", "set,get", "-n", "30", "-c", "3", "-r", "1000", "-d", "64", "-q"];
    let output = Command::new("redis-benchmark").args(place).args(options).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    account.done.fetch_add(60, Ordering::Relaxed);
    let is_well = output.status.success() && text.contains("SET:") && text.contains("GET:");
    if !is_well || text.to_lowercase().contains("err") || text.contains("MOVED") {
        account.fail(format!("redis-benchmark: {text}"));
    }
}
