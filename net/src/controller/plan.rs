//! What to do about the trends of all hosts: a pure function of what they say.
//!
//! Loads are parts of the value that hurts. A partition's load counts where it will be when the moves under way have
//! ended, so that no signal is answered twice.

use std::collections::BTreeMap;

use super::trend::{Cut, HostTrend, METRICS, MoveTrend, PartitionTrend, ShardTrend};

/// What the plan keeps to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Load that a host may have with what it takes over, as a part of the limit.
    pub settle: f64,
    /// Load from which on a ready shadow is switched to.
    pub switch_level: f64,
    /// Expected windows to the crossing from which on it is switched to.
    pub switch_windows: f64,
    /// Moves that a host may be part of at a time.
    pub moves_per_host: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { settle: 0.7, switch_level: 0.97, switch_windows: 2.0, moves_per_host: 1 }
    }
}

/// What is to be done, on which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Casts a shadow ahead.
    Start {
        /// The partition.
        partition: u64,
        /// Its owner.
        source: u32,
        /// The host that the shadow falls on.
        destination: u32,
        /// Only slots from this one on: the partition is cut in two first.
        cut: Option<u16>,
    },
    /// Switches to a ready shadow.
    Switch {
        /// The partition.
        partition: u64,
        /// Its owner.
        source: u32,
    },
    /// Drops a shadow that is not needed.
    GiveUp {
        /// The partition.
        partition: u64,
        /// Its owner.
        source: u32,
    },
}

impl Action {
    /// The partition.
    #[must_use]
    pub fn partition(&self) -> u64 {
        match self {
            Action::Start { partition, .. } | Action::Switch { partition, .. } | Action::GiveUp { partition, .. } => {
                *partition
            }
        }
    }

    /// The host that carries it out.
    #[must_use]
    pub fn source(&self) -> u32 {
        match self {
            Action::Start { source, .. } | Action::Switch { source, .. } | Action::GiveUp { source, .. } => *source,
        }
    }
}

/// An action and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub action: Action,
    /// Why, in words and figures.
    pub reason: String,
}

/// What follows from a look at all hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done now.
    pub decisions: Vec<Decision>,
    /// Shards (host, shard) that want relief and cannot have it, with the reason.
    pub stuck: Vec<((u32, u16), String)>,
}

type Load = [f64; METRICS.len()];

fn highest(load: &Load) -> f64 {
    load.iter().copied().fold(0.0, f64::max)
}

/// The expected loads, with the moves under way as if they had ended.
struct Outlook<'a> {
    hosts: &'a BTreeMap<u32, HostTrend>,
    shards: BTreeMap<(u32, u16), Load>,
    moves: BTreeMap<u32, usize>,
}

impl<'a> Outlook<'a> {
    fn new(hosts: &'a BTreeMap<u32, HostTrend>) -> Outlook<'a> {
        let mut outlook = Outlook { hosts, shards: BTreeMap::new(), moves: BTreeMap::new() };
        for trend in hosts.values() {
            for (index, shard) in trend.shards.iter().enumerate() {
                let expected = shard.metrics.map(|metric| metric * shard.growth());
                outlook.shards.insert((trend.host, index as u16), expected);
            }
        }
        for trend in hosts.values() {
            for moving in trend.moves.iter().filter(|moving| moving.under_way) {
                let found = trend.partitions.iter().find(|partition| partition.partition == moving.partition);
                if let Some(partition) = found {
                    outlook.shift(trend.host, partition, None, moving.destination);
                }
            }
        }
        outlook
    }

    fn shard(&self, host: u32, shard: u16) -> Option<&'a ShardTrend> {
        self.hosts.get(&host)?.shards.get(usize::from(shard))
    }

    /// What a partition will load its shard with.
    fn expected(&self, host: u32, partition: &PartitionTrend) -> Load {
        let growth = self.shard(host, partition.shard).map_or(1.0, ShardTrend::growth);
        partition.load.map(|load| load * growth)
    }

    /// The shard that a partition comes to; one that has no id yet is taken to come to the busiest.
    fn landing(&self, partition: u64, cut: Option<Cut>, destination: u32) -> Option<u16> {
        let shards = self.hosts.get(&destination)?.shards.len().max(1);
        if cut.is_none() {
            return Some((partition % shards as u64) as u16);
        }
        let load = |shard: &u16| self.shards.get(&(destination, *shard)).map_or(0.0, highest);
        (0..shards as u16).max_by(|a, b| load(a).total_cmp(&load(b)))
    }

    /// The loads of source and destination after a move of a partition, or of what lies above a cut.
    fn after(
        &self,
        source: u32,
        partition: &PartitionTrend,
        cut: Option<Cut>,
        destination: u32,
    ) -> Option<(Load, Load)> {
        let share = cut.map_or(1.0, |cut| cut.share);
        let load = self.expected(source, partition).map(|load| load * share);
        let landing = self.landing(partition.partition, cut, destination)?;
        let mut from = *self.shards.get(&(source, partition.shard))?;
        let mut to = *self.shards.get(&(destination, landing))?;
        for metric in 0..METRICS.len() {
            from[metric] = (from[metric] - load[metric]).max(0.0);
            to[metric] += load[metric];
        }
        Some((from, to))
    }

    fn shift(&mut self, source: u32, partition: &PartitionTrend, cut: Option<Cut>, destination: u32) {
        *self.moves.entry(source).or_default() += 1;
        *self.moves.entry(destination).or_default() += 1;
        let landing = self.landing(partition.partition, cut, destination);
        if let Some(((from, to), landing)) = self.after(source, partition, cut, destination).zip(landing) {
            self.shards.insert((source, partition.shard), from);
            self.shards.insert((destination, landing), to);
        }
    }

    fn has_room_for_a_move(&self, host: u32, settings: &Settings) -> bool {
        self.moves.get(&host).copied().unwrap_or(0) < settings.moves_per_host
    }
}

/// A partition, or what lies above a cut, that could go to a host, and what that would leave.
struct Candidate<'a> {
    partition: &'a PartitionTrend,
    cut: Option<Cut>,
    destination: u32,
    from: f64,
    to: f64,
}

/// Decides. `rests` says of a partition that it is left alone for now: moved or tried a moment ago, or not at rest for
/// the coordinator.
#[must_use]
pub fn plan(hosts: &BTreeMap<u32, HostTrend>, settings: &Settings, rests: impl Fn(u64) -> bool) -> Plan {
    let mut plan = Plan::default();
    let mut outlook = Outlook::new(hosts);
    for trend in hosts.values() {
        for moving in trend.moves.iter().filter(|moving| moving.automatic && moving.is_undecided) {
            plan.decisions.extend(follow_up(trend, moving, settings));
        }
    }
    let mut raised: Vec<(u32, u16, &ShardTrend)> = hosts
        .values()
        .flat_map(|trend| trend.shards.iter().enumerate().map(|(index, shard)| (trend.host, index as u16, shard)))
        .filter(|(.., shard)| shard.worth)
        .collect();
    // who will hurt first
    raised.sort_by(|a, b| a.2.crossing_windows.total_cmp(&b.2.crossing_windows).then(b.2.level.total_cmp(&a.2.level)));
    for (host, index, shard) in raised {
        let Some(expected) = outlook.shards.get(&(host, index)).map(highest) else {
            continue;
        };
        // a move under way will do
        if expected < settings.settle.max(0.9) {
            continue;
        }
        match relieve(&outlook, host, index, settings, &rests) {
            Ok(best) => {
                let Candidate { partition, cut, destination, from, to } = best;
                let what = cut.map_or_else(String::new, |cut| format!("slots from {} on of ", cut.slot));
                let reason = format!(
                    "shard {index} of host {host} is at {:.2} of its limit ({}), {:.2} expected in {:.0} windows (probability {:.2}); \
                     without {what}partition {} it will be at {from:.2}, host {destination} with it at {to:.2}; {:.1} MB to copy",
                    shard.level,
                    shard.leading_metric(),
                    shard.expected,
                    shard.lead_windows,
                    shard.probability,
                    partition.partition,
                    partition.bytes as f64 * cut.map_or(1.0, |cut| cut.share) / 1e6,
                );
                let slot = cut.map(|cut| cut.slot);
                let action = Action::Start { partition: partition.partition, source: host, destination, cut: slot };
                outlook.shift(host, partition, cut, destination);
                plan.decisions.push(Decision { action, reason });
            }
            Err(reason) => {
                let reason = format!(
                    "shard {index} of host {host} is at {:.2} of its limit ({}), {:.2} expected: {reason}",
                    shard.level,
                    shard.leading_metric(),
                    shard.expected
                );
                plan.stuck.push(((host, index), reason));
            }
        }
    }
    plan
}

/// What becomes of a shadow that the controller has cast.
fn follow_up(trend: &HostTrend, moving: &MoveTrend, settings: &Settings) -> Option<Decision> {
    let (partition, source) = (moving.partition, trend.host);
    let of = trend.partitions.iter().find(|known| known.partition == partition)?;
    let shard = trend.shards.get(usize::from(of.shard))?;
    if !shard.raised {
        let reason = format!("the load of shard {} has turned: {:.2} of the limit", of.shard, shard.level);
        return Some(Decision { action: Action::GiveUp { partition, source }, reason });
    }
    let is_due = shard.level >= settings.switch_level || shard.crossing_windows <= settings.switch_windows;
    (moving.ready && is_due).then(|| Decision {
        action: Action::Switch { partition, source },
        reason: format!(
            "the shadow is ready and shard {} at {:.2} of its limit, to be crossed in {:.0} windows",
            of.shard, shard.level, shard.crossing_windows
        ),
    })
}

/// The cheapest move that relieves a shard; among those that do not do it alone, the one that helps most.
fn relieve<'a>(
    outlook: &Outlook<'a>,
    host: u32,
    shard: u16,
    settings: &Settings,
    rests: impl Fn(u64) -> bool,
) -> Result<Candidate<'a>, String> {
    if !outlook.has_room_for_a_move(host, settings) {
        return Err(format!("host {host} is part of as many moves as it may be"));
    }
    let trend = outlook.hosts.get(&host).ok_or("the host has gone")?;
    let here = || trend.partitions.iter().filter(|partition| partition.shard == shard);
    if here().next().is_none() {
        return Err("no partition is there to be moved".into());
    }
    let mut candidates = Vec::new();
    let mut least = f64::INFINITY;
    for partition in here().filter(|partition| partition.at_rest && !rests(partition.partition)) {
        for other in outlook.hosts.values().filter(|other| other.host != host) {
            for cut in [None].into_iter().chain(partition.cut.map(Some)) {
                let Some((from, to)) = outlook.after(host, partition, cut, other.host) else {
                    continue;
                };
                let (from, to) = (highest(&from), highest(&to));
                let landing = outlook.landing(partition.partition, cut, other.host);
                let is_raised =
                    landing.and_then(|landing| outlook.shard(other.host, landing)).is_some_and(|shard| shard.raised);
                least = least.min(to);
                if to <= settings.settle && !is_raised && outlook.has_room_for_a_move(other.host, settings) {
                    candidates.push(Candidate { partition, cut, destination: other.host, from, to });
                }
            }
        }
    }
    let enough = settings.settle.max(0.9);
    // nothing is cut where a whole partition suffices
    if candidates.iter().any(|candidate| candidate.cut.is_none() && candidate.from < enough) {
        candidates.retain(|candidate| candidate.cut.is_none());
    }
    // bytes decide among those that suffice, the lower load of the destination among equal ones
    let bytes = |candidate: &Candidate<'_>| {
        (candidate.partition.bytes as f64 * candidate.cut.map_or(1.0, |cut| cut.share)) as u64
    };
    let order = |a: &Candidate<'_>, b: &Candidate<'_>| {
        let (a_does, b_does) = (a.from < enough, b.from < enough);
        b_does
            .cmp(&a_does)
            .then(if a_does && b_does { bytes(a).cmp(&bytes(b)) } else { a.from.total_cmp(&b.from) })
            .then(a.to.total_cmp(&b.to))
    };
    candidates.into_iter().min_by(order).ok_or_else(|| {
        if outlook.hosts.len() == 1 {
            "there is no other host".into()
        } else if least.is_finite() {
            format!(
                "no host has room for one of its partitions: the best would be at {least:.2}, more than {:.2}, or is part of a \
                 move",
                settings.settle
            )
        } else {
            "its partitions are being moved, or were a moment ago".into()
        }
    })
}

#[cfg(test)]
mod tests;
