//! When a new owner stands in the record, in DNS and in the load balancer's statistics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::{PARTITIONS, name_of, record_at, statistics};
use crate::yard::ip;

/// Time between two looks at everything.
const LOOK: Duration = Duration::from_millis(20);

/// One epoch of a partition: when it was seen where.
#[derive(Clone, Debug)]
pub struct Seen {
    pub owner: u32,
    /// The owner of the epoch before, if there was one.
    pub before: Option<u32>,
    pub record: Instant,
    pub names: Option<Instant>,
    pub balancer: Option<Instant>,
}

type All = BTreeMap<(u64, u64), Seen>;

pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<All>,
}

impl Watcher {
    pub fn start() -> Watcher {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut all = All::new();
            while !stopped.load(Ordering::Relaxed) {
                look(&mut all);
                std::thread::sleep(LOOK);
            }
            all
        });
        Watcher { stop, thread }
    }

    /// Every epoch that was seen, by partition and epoch.
    pub fn stop(self) -> All {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn look(all: &mut All) {
    let served: BTreeMap<u64, String> = statistics().into_iter().collect();
    for partition in PARTITIONS {
        let record = record_at(2, partition);
        let (Some(owner), Some(epoch)) = (record["owner"].as_u64(), record["epoch"].as_u64()) else { continue };
        let owner = owner as u32;
        let before = all.range((partition, 0)..(partition, epoch)).next_back().map(|(_, seen)| seen.owner);
        let seen = all.entry((partition, epoch)).or_insert_with(|| Seen {
            owner,
            before,
            record: Instant::now(),
            names: None,
            balancer: None,
        });
        let address = ip(owner);
        if seen.names.is_none() && name_of(partition) == (Some(IpAddr::from(address)), format!("epoch={epoch}")) {
            seen.names = Some(Instant::now());
        }
        let is_there = served.get(&partition).is_some_and(|told| told.starts_with(&format!("{address}:")));
        if seen.balancer.is_none() && is_there {
            seen.balancer = Some(Instant::now());
        }
    }
}
