//! Links, hosts, etcd and clocks fail, one after the other, under load and while a partition is moved about: what was
//! acknowledged is there, no version goes back, and everything goes on by itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use antumbra_net::resp::slot::slot_of;

use crate::cluster::{Cluster, HOSTS, ask, await_that, create, owners_of, record, resp};
use crate::common::registers::{Registers, Use};
use crate::yard;

/// Partitions 1 to 3 stay on hosts 1 to 3; this one is moved from host to host without a pause.
const ROVER: u64 = 4;
/// Longer than a host's lease, which is 10 s.
const BEYOND_LEASE: Duration = Duration::from_secs(13);
/// Within this time of the end of a failure, everything is served again.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// The same for the next moves, which copy something.
const MOVED_MAX: Duration = Duration::from_secs(35);
/// The same for a move that was under way, however it ends.
const MOVE_MAX: Duration = Duration::from_secs(50);
/// Each partition's share of the slots.
const SLOTS: u16 = 4096;
/// Megabytes per second of the rover's moves, and its data in values of a kilobyte: a move takes about a second.
const ROVER_MB_S: u64 = 8;
const ROVER_VALUES: u64 = 2000;

/// Something that fails for a while, and which hosts are part of it: the partitions of the others notice nothing.
struct Failure<'a> {
    name: &'a str,
    hosts: &'a [u32],
    /// Whether moves notice nothing either.
    moves_go_on: bool,
    happens: &'a mut dyn FnMut(),
}

#[test]
fn failures_lose_nothing_and_pass_without_a_hand() {
    if !yard::enter("fails::failures_lose_nothing_and_pass_without_a_hand") {
        return;
    }
    let Some(mut cluster) = Cluster::start(&[]) else { return };
    create(&[(1, 0, 4095, 1), (2, 4096, 8191, 2), (3, 8192, 12287, 3), (ROVER, 12288, 16383, 1)]);
    fill_rover();
    let is_known = |host: u32| ask(if host == 1 { 2 } else { 1 }, "ANTUMBRA STATUS").contains(&lapsed(host));

    ride(&mut Failure {
        name: "host 2's link cut for 2 s",
        hosts: &[2],
        moves_go_on: false,
        happens: &mut || {
            yard::link(2, false);
            sleep(Duration::from_secs(2));
            yard::link(2, true);
        },
    });
    ride(&mut Failure {
        name: "host 3's link cut beyond its lease",
        hosts: &[3],
        moves_go_on: false,
        happens: &mut || {
            yard::link(3, false);
            sleep(BEYOND_LEASE);
            assert!(is_known(3), "its lease has lapsed");
            yard::link(3, true);
        },
    });
    ride(&mut Failure {
        name: "hosts 1 and 3 apart for 5 s",
        hosts: &[],
        moves_go_on: false,
        happens: &mut || {
            yard::part(1, 3, true);
            sleep(Duration::from_secs(5));
            yard::part(1, 3, false);
        },
    });
    ride(&mut Failure {
        name: "host 1 stopped beyond its lease",
        hosts: &[1],
        moves_go_on: false,
        happens: &mut || {
            cluster.stand_still(1, true);
            sleep(BEYOND_LEASE);
            assert!(is_known(1), "its lease has lapsed");
            cluster.stand_still(1, false);
        },
    });
    ride(&mut Failure {
        name: "etcd killed, back in 4 s",
        hosts: &[],
        moves_go_on: false,
        happens: &mut || {
            cluster.kill_etcd();
            sleep(Duration::from_secs(4));
            cluster.start_etcd();
        },
    });
    if cluster.has_clocks() {
        ride(&mut Failure {
            name: "host 2's clock 10 s ahead, host 3's 10 s behind, and back",
            hosts: &[],
            moves_go_on: true,
            happens: &mut || {
                set_clocks(&cluster, [0, 10, -10]);
                sleep(Duration::from_secs(3));
                set_clocks(&cluster, [0, 0, 0]);
            },
        });
    } else {
        println!("SKIPPED: there is no faketime to shift a clock with; cargo xtask setup fetches it");
    }
    cluster.assert_alive("in the end");
}

/// How a host without a lease is shown.
fn lapsed(host: u32) -> String {
    format!("\"host\":{host},\"lapsed\":true")
}

fn set_clocks(cluster: &Cluster, seconds: [i32; 3]) {
    let wall = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let clock = |host: u32| ask(host, "TIME").lines().nth(2).and_then(|line| line.parse::<i64>().ok()).unwrap_or(0);
    for (host, seconds) in HOSTS.iter().zip(seconds) {
        cluster.set_clock(*host, seconds);
        await_that(&format!("host {host}'s clock is {seconds} s off"), || {
            (clock(*host) - wall() - i64::from(seconds)).abs() <= 1
        });
    }
}

/// A hash tag whose keys lie in a partition.
fn tag(partition: u64, name: &str) -> String {
    let tags = (0..).map(|number| format!("{{{name}-{number}}}"));
    let first = (partition as u16 - 1) * SLOTS;
    tags.into_iter().find(|tag| (first..first + SLOTS).contains(&slot_of(tag.as_bytes()))).unwrap()
}

fn fill_rover() {
    let client = redis::Client::open(format!("redis://{}", resp(1))).unwrap();
    let mut connection = client.get_connection().unwrap();
    let tag = tag(ROVER, "fill");
    let mut random = fastrand::Rng::with_seed(5);
    for first in (0..ROVER_VALUES).step_by(100) {
        let mut pipe = redis::pipe();
        for number in first..first + 100 {
            let value: String = std::iter::repeat_with(|| random.alphanumeric()).take(1000).collect();
            pipe.set(format!("{tag}{number}"), value).ignore();
        }
        pipe.query::<()>(&mut connection).unwrap();
    }
}

/// One failure: load on each partition before, while and after it lasts.
fn ride(failure: &mut Failure<'_>) {
    let name = failure.name;
    let loads: Vec<Load> = (1..=ROVER).map(|partition| Load::start(partition, failure)).collect();
    let rover = Rover::start();
    await_that("every load runs", || loads.iter().all(|load| load.registers.acked() > 50));
    await_that("the rover moves", || rover.moves() > 0);
    let before: Vec<u64> = loads.iter().map(|load| load.registers.acked()).collect();
    let began = Instant::now();
    (failure.happens)();
    let (ended, lasted) = (Instant::now(), began.elapsed());
    let while_it_lasted: Vec<u64> =
        loads.iter().zip(&before).map(|(load, acked)| load.registers.acked() - acked).collect();
    println!("{name}: lasted {lasted:.1?}; writes meanwhile, by partition: {while_it_lasted:?}");
    for (load, acked) in loads.iter().zip(&while_it_lasted) {
        assert!(!load.is_steady || *acked > 100, "{name}: partition {} went on: {acked} writes", load.partition);
    }
    let (acked, moves) = (loads.iter().map(|load| load.registers.acked()).collect::<Vec<u64>>(), rover.moves());
    await_that(&format!("{name}: every partition is written again"), || {
        loads.iter().zip(&acked).all(|(load, acked)| load.registers.acked() > acked + 50)
    });
    let written = ended.elapsed();
    let began = Instant::now();
    while rover.moves() < moves + 2 {
        assert!(began.elapsed() < MOVED_MAX, "{name}: partitions do not move again: {}", rover.refused());
        sleep(Duration::from_millis(50));
    }
    let moved = ended.elapsed();
    let failed_moves = rover.stop();
    await_that(&format!("{name}: all is at rest, with one owner each"), || (1..=ROVER).all(is_at_rest));
    for load in loads {
        load.stop(name);
    }
    println!("{name}: written again after {written:.1?}, two moves after {moved:.1?}; {failed_moves} moves given up");
    assert!(written < RECOVERY_MAX && moved < MOVED_MAX, "{name}: too long");
    assert!(!failure.moves_go_on || failed_moves == 0, "{name}: moves fail");
}

fn is_at_rest(partition: u64) -> bool {
    let record = record(partition);
    record["state"] == "Stable"
        && owners_of(partition).iter().map(|owner| u64::from(*owner)).eq(record["owner"].as_u64())
}

/// Writers and readers of one partition.
struct Load {
    partition: u64,
    registers: Arc<Registers>,
    threads: Vec<JoinHandle<()>>,
    /// Whether none of its requests may fail.
    is_steady: bool,
}

impl Load {
    fn start(partition: u64, failure: &Failure<'_>) -> Load {
        let nodes = |taken: &dyn Fn(&u32) -> bool| -> Vec<SocketAddr> {
            HOSTS.iter().filter(|host| taken(host)).map(|host| resp(*host)).collect()
        };
        let is_hit = |host: &u32| failure.hosts.contains(host);
        let is_steady = if partition == ROVER { failure.moves_go_on } else { !is_hit(&(partition as u32)) };
        // A client of a host that is out of reach cannot but fail; where hosts do not reach each other, only the owner serves.
        let nodes = match partition == ROVER || !is_steady {
            true => nodes(&|_| true),
            false if failure.hosts.is_empty() && !failure.moves_go_on => nodes(&|host| u64::from(*host) == partition),
            false => nodes(&|host| !is_hit(host)),
        };
        let prefix = tag(partition, failure.name);
        let how = Use { prefix: &prefix, writers: 2, pause: Duration::from_millis(2) };
        let registers = Arc::new(Registers::used(how));
        let threads = registers.start(nodes);
        Load { partition, registers, threads, is_steady }
    }

    fn stop(self, name: &str) {
        self.registers.stop(self.threads);
        self.registers.check_reads(name);
        let owner = record(self.partition)["owner"].as_u64().unwrap() as u32;
        self.registers.check_at(resp(owner));
        assert!(
            !self.is_steady || self.registers.failures().is_empty(),
            "{name}: partition {} had nothing to do with it: {:?}",
            self.partition,
            self.registers.failures()
        );
    }
}

/// Moves a partition from host to host.
struct Rover {
    shared: Arc<Roving>,
    thread: JoinHandle<u64>,
}

#[derive(Default)]
struct Roving {
    moves: AtomicU64,
    /// What was said the last time that a move was not begun.
    refused: Mutex<String>,
    stop: AtomicBool,
}

impl Rover {
    fn start() -> Rover {
        let shared = Arc::<Roving>::default();
        let inside = Arc::clone(&shared);
        Rover { shared, thread: std::thread::spawn(move || rove(&inside)) }
    }

    fn moves(&self) -> u64 {
        self.shared.moves.load(Ordering::Relaxed)
    }

    fn refused(&self) -> String {
        self.shared.refused.lock().unwrap().clone()
    }

    /// The number of moves that were begun and given up.
    fn stop(self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn rove(shared: &Roving) -> u64 {
    let mut failed = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50));
        let Some(owner) = record(ROVER)["owner"].as_u64() else { continue };
        let to = owner % HOSTS.len() as u64 + 1;
        let words = format!("ANTUMBRA MOVE {ROVER} {to} THROTTLE {ROVER_MB_S} SETPOINT off");
        let said = ask(owner as u32, &words);
        if !said.contains("OK") {
            *shared.refused.lock().unwrap() = format!("{words} by host {owner}: {said}");
            continue;
        }
        let arrived = || {
            let record = record(ROVER);
            record["owner"] == to && record["state"] == "Stable"
        };
        let began = Instant::now();
        let gave_up = || ask(owner as u32, &format!("ANTUMBRA PROGRESS {ROVER}")).contains("\"failed\":\"");
        loop {
            if arrived() {
                shared.moves.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if gave_up() && !arrived() {
                failed += 1;
                break;
            }
            assert!(began.elapsed() < MOVE_MAX, "a move neither arrives nor is given up: {}", record(ROVER));
            sleep(Duration::from_millis(50));
        }
    }
    failed
}
