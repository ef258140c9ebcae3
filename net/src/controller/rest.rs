//! Which partitions are left alone for now: moved a moment ago, or tried in vain. No I/O and no clock.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::trend::HostTrend;

/// A partition is left alone for so many windows after a move of it has ended well.
const MOVED_WINDOWS: u32 = 60;
/// After one that failed it is so many, doubled with each failure in a row up to the second.
const FAILED_WINDOWS: (u32, u32) = (10, 320);

/// What the leader remembers of its moves.
#[derive(Debug)]
pub(super) struct Rests {
    window: Duration,
    /// Partitions that are left alone until then, and how often in a row their moves have failed.
    until: HashMap<u64, (Instant, u32)>,
    /// Automatic moves that were under way when they were last looked at, and their owners.
    moving: HashMap<u64, u32>,
}

impl Rests {
    pub fn new(window: Duration) -> Rests {
        Rests { window, until: HashMap::new(), moving: HashMap::new() }
    }

    /// Whether a partition is left alone.
    pub fn rests(&self, partition: u64, now: Instant) -> bool {
        self.until.get(&partition).is_some_and(|(until, _)| *until > now)
    }

    /// A move has begun.
    pub fn began(&mut self, partition: u64, owner: u32) {
        self.moving.insert(partition, owner);
    }

    /// A move could not be begun, switched or given up.
    pub fn failed(&mut self, partition: u64, now: Instant) {
        self.rest(partition, false, now);
    }

    /// Lets partitions rest whose moves have ended since the last look.
    pub fn settle(&mut self, hosts: &BTreeMap<u32, HostTrend>, now: Instant) {
        let find = |partition: u64, owner: u32| {
            let trend = hosts.get(&owner)?;
            trend.moves.iter().find(|moving| moving.partition == partition).map(|moving| moving.under_way)
        };
        let ended: Vec<(u64, u32)> = self
            .moving
            .iter()
            .filter(|(partition, owner)| find(**partition, **owner) == Some(false))
            .map(|(partition, owner)| (*partition, *owner))
            .collect();
        for (partition, owner) in ended {
            self.moving.remove(&partition);
            let still_there = hosts
                .get(&owner)
                .is_some_and(|trend| trend.partitions.iter().any(|known| known.partition == partition));
            self.rest(partition, !still_there, now);
        }
    }

    fn rest(&mut self, partition: u64, moved: bool, now: Instant) {
        let failures = match (moved, self.until.get(&partition)) {
            (true, _) => 0,
            (false, known) => known.map_or(0, |(_, failures)| *failures) + 1,
        };
        let windows = match failures {
            0 => MOVED_WINDOWS,
            failed => (FAILED_WINDOWS.0 << (failed - 1).min(8)).min(FAILED_WINDOWS.1),
        };
        self.until.insert(partition, (now + self.window * windows, failures));
    }
}
