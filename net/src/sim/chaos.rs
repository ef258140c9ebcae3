//! What goes wrong, and the moves that it happens to.

use std::time::Duration;

use antumbra_engine::Serving;
use antumbra_engine::types::{HostId, PartitionId};
use fastrand::Rng;

use crate::routing::Route;
use crate::shadow::source::Limits;
use crate::shadow::{MoveHandle, MoveOptions, Order, Policy, SetPoint};

use super::client::key_of;
use super::network::Place;
use super::world::{Act, World};
use super::{Passed, logs};

/// Splits end there.
const PARTITIONS_MAX: u64 = 12;

/// Which troubles a run has; drawn once. Many runs have few, so that they get far.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    /// Mean time between two troubles; `None` = none.
    trouble_every: Option<Duration>,
    /// Shares of each kind.
    kills: u32,
    power_cuts: u32,
    cuts: u32,
    pauses: u32,
    slow_disks: u32,
    lost_connections: u32,
    /// Steps of a move in a thousand at which the host dies, or its links are cut, or it stands still.
    pub crash_at_step_per_mille: u32,
    cut_at_step_per_mille: u32,
    pause_at_step_per_mille: u32,
    lose_at_step_per_mille: u32,
    slow_at_step_per_mille: u32,
    /// Commits in a thousand whose source hears of nobody any more before it can be told.
    isolate_at_commit_per_mille: u32,
    /// Moves in a thousand whose target has a slow disk when writes begin to wait for it, and loses power at the
    /// commit.
    power_cut_at_commit_per_mille: u32,
    move_every: Duration,
    /// Standbys are kept, and promoted by force this often, conflicts being settled by this policy.
    pub promote_every: Option<Duration>,
    pub policy: &'static str,
    /// How long copies stay for a roll-back, and how many moves in a thousand are to go back on one.
    pub roll_back_for: Duration,
    roll_back_per_mille: u32,
    /// Partitions are split and merged this often.
    split_every: Option<Duration>,
    merge_every: Option<Duration>,
    /// Longest time between two operations of a client.
    pub think: Duration,
    /// How far monotonic clocks run apart, and wall clocks stand.
    pub rate_ppm: i32,
    pub wall_ms: i64,
    /// The load ends by then, however many operations are left.
    pub load_max: Duration,
}

impl Profile {
    /// Whether nothing goes wrong at all: then no client is ever told of an error.
    pub fn is_calm(&self) -> bool {
        let steps = self.crash_at_step_per_mille
            + self.cut_at_step_per_mille
            + self.pause_at_step_per_mille
            + self.lose_at_step_per_mille
            + self.slow_at_step_per_mille
            + self.isolate_at_commit_per_mille
            + self.power_cut_at_commit_per_mille;
        self.trouble_every.is_none() && steps == 0
    }

    /// `seed` decides what was added to the profile later, so that older seeds have kept the rest.
    pub fn draw(random: &mut Rng, seed: u64) -> Profile {
        let mut added = Rng::with_seed(seed ^ 0x150_1A7E);
        let is_calm = random.u8(0..12) == 0;
        let mut share = || random.u32(0..3) * random.u32(0..4);
        let (kills, power_cuts, cuts) = (share(), share(), share());
        let (pauses, slow_disks, lost_connections) = (share(), share(), share());
        let per_mille = |random: &mut Rng| [0, 0, 20, 60, 150][random.usize(0..5)] * u32::from(!is_calm);
        let every = [None, Some(8_000), Some(3_000), Some(800)][random.usize(0..4)];
        let isolate_at_commit_per_mille = [0, 0, 0, 100, 500][added.usize(0..5)] * u32::from(!is_calm);
        let promote_every = [None, None, Some(2_000), Some(8_000)][added.usize(0..4)].filter(|_| !is_calm);
        let policies = ["lww", "prefer-target", "prefer-source", "reject-and-keep-both"];
        let mut rolled = Rng::with_seed(seed ^ 0x0BAC_4000);
        let roll_back_for = Duration::from_millis([0, 1_000, 5_000, 20_000][rolled.usize(0..4)]);
        let roll_back_per_mille = [0, 300, 700][rolled.usize(0..3)];
        let power_cut_at_commit_per_mille = [0, 0, 0, 100, 400][rolled.usize(0..5)] * u32::from(!is_calm);
        // What is promoted by force keeps its bounds, so that the end can tell its keys.
        let splits = [None, Some(1_500), Some(6_000)][rolled.usize(0..3)].filter(|_| promote_every.is_none());
        let merges = [None, Some(1_500), Some(6_000)][rolled.usize(0..3)].filter(|_| splits.is_some());
        Profile {
            split_every: splits.map(Duration::from_millis),
            merge_every: merges.map(Duration::from_millis),
            roll_back_for,
            roll_back_per_mille,
            trouble_every: every.filter(|_| !is_calm).map(Duration::from_millis),
            kills,
            power_cuts,
            cuts,
            pauses,
            slow_disks,
            lost_connections,
            crash_at_step_per_mille: per_mille(random),
            cut_at_step_per_mille: per_mille(random),
            pause_at_step_per_mille: per_mille(random),
            lose_at_step_per_mille: per_mille(random),
            slow_at_step_per_mille: per_mille(random),
            isolate_at_commit_per_mille,
            power_cut_at_commit_per_mille,
            promote_every: promote_every.map(Duration::from_millis),
            policy: policies[added.usize(0..policies.len())],
            think: Duration::from_millis([20, 200, 800][random.usize(0..3)]),
            move_every: Duration::from_millis([150, 600, 2_000][random.usize(0..3)]),
            rate_ppm: [0, 1_000, 100_000][random.usize(0..3)],
            wall_ms: [0, 300, 60_000][random.usize(0..3)],
            load_max: Duration::from_secs(120),
        }
    }
}

impl World {
    pub fn begin_trouble(&mut self) {
        self.plan_trouble();
        self.after(self.profile.move_every, Act::Move);
        if let Some(every) = self.profile.promote_every {
            self.after(every, Act::Promote);
        }
        if let Some(every) = self.profile.split_every {
            self.after(every, Act::Split);
        }
        if let Some(every) = self.profile.merge_every {
            self.after(every, Act::Merge);
        }
    }

    /// Nothing goes wrong from here on, and what did is put right.
    pub fn end_trouble(&mut self) {
        self.is_troubled = false;
        super::with_seat(|seat| seat.crash_per_mille = 0);
        self.network.mend();
        self.moves.iter().for_each(MoveHandle::give_up);
        for place in 0..self.slots.len() {
            self.set_still(place, false);
            self.slots[place].node.set_disk_slower(0);
        }
        logs::set_place(self.now, "world");
        self.tell(|_| "everything is healed".into());
    }

    fn plan_trouble(&mut self) {
        if let Some(every) = self.profile.trouble_every {
            let ms = self.random.u64(1..every.as_millis() as u64 * 2);
            self.after(Duration::from_millis(ms), Act::Trouble);
        }
    }

    pub fn make_trouble(&mut self) {
        if !self.is_troubled {
            return;
        }
        let profile = self.profile.clone();
        let place = self.random.usize(0..self.slots.len());
        let shares = [
            profile.kills,
            profile.power_cuts,
            profile.cuts,
            profile.pauses,
            profile.slow_disks,
            profile.lost_connections,
        ];
        let mut pick = self.random.u32(0..shares.iter().sum::<u32>().max(1));
        let kind = shares.iter().position(|share| match pick.checked_sub(*share) {
            Some(rest) => {
                pick = rest;
                false
            }
            None => true,
        });
        match kind {
            Some(kind @ 0..2) => {
                let down = self.down_time();
                self.crash(place, kind == 1, down);
            }
            Some(2) => self.cut_links(place),
            Some(3) => self.pause(place),
            Some(4) => self.slow_disk(place),
            Some(_) => self.counts.lost_connections += u64::from(self.network.lose_connection()),
            None => {}
        }
        self.plan_trouble();
    }

    fn down_time(&mut self) -> Duration {
        let ms = match self.random.u8(0..4) {
            0 => self.random.u64(1_000..8_000),
            _ => self.random.u64(5..900),
        };
        Duration::from_millis(ms)
    }

    fn slow_disk(&mut self, place: Place) {
        self.counts.slow_disks += 1;
        let (times, ms) = (self.random.u32(3..60), self.random.u64(20..4_000));
        self.tell(|_| format!("the disk of host {} is {times} times slower", place + 1));
        self.slots[place].node.set_disk_slower(times);
        self.after(Duration::from_millis(ms), Act::DiskRecovers(place));
    }

    /// Cuts the links of a host to another one, or to all of them, in one direction or both.
    fn cut_links(&mut self, place: Place) {
        self.counts.cuts += 1;
        let hosts = self.slots.len();
        let one = (place + self.random.usize(1..hosts)) % hosts;
        let isolated = self.random.u8(0..3) == 0;
        let ms = match self.random.u8(0..3) {
            0 => self.random.u64(3_000..18_000),
            _ => self.random.u64(10..3_000),
        };
        let (there, back) = [(true, false), (false, true), (true, true), (true, true)][self.random.usize(0..4)];
        let others = (0..hosts).filter(|other| *other != place && (isolated || *other == one));
        let ways = others.flat_map(|other| [(place, other, there), (other, place, back)]);
        let ways: Vec<(Place, Place)> = ways.filter(|way| way.2).map(|way| (way.0, way.1)).collect();
        self.tell(|_| format!("links {ways:?} (from 0) are cut for {ms} ms"));
        for (from, to) in ways {
            self.network.set_cut(from, to, true);
            self.after(Duration::from_millis(ms), Act::Mend(from, to));
        }
    }

    pub fn set_still(&mut self, place: Place, still: bool) {
        self.slots[place].stands_still = still;
        self.network.set_still(place, still);
    }

    fn pause(&mut self, place: Place) {
        if !self.slots[place].is_up || self.slots[place].stands_still {
            return;
        }
        self.counts.pauses += 1;
        let ms = self.random.u64(5..4_000);
        self.tell(|_| format!("host {} stands still for {ms} ms", place + 1));
        self.set_still(place, true);
        self.after(Duration::from_millis(ms), Act::Resume(place));
    }

    /// A host has reached a step of a move.
    pub fn pass(&mut self, place: Place, passed: &Passed) {
        self.tell(|_| format!("host {} reaches {}", place + 1, passed.step));
        if passed.died {
            self.counts.crashes_at_steps += 1;
            let (power, down) = (self.random.bool(), self.down_time());
            self.crash(place, power, down);
        }
        if !self.is_troubled {
            return;
        }
        if passed.step == "coordinator:applied" && self.profile.isolate_at_commit_per_mille > 0 {
            self.isolate_source();
        }
        if self.profile.power_cut_at_commit_per_mille > 0 {
            self.trouble_targets(&passed.step);
        }
        if self.random.u32(0..1_000) < self.profile.cut_at_step_per_mille {
            self.cut_links(place);
        }
        if self.random.u32(0..1_000) < self.profile.pause_at_step_per_mille {
            self.pause(place);
        }
        if self.random.u32(0..1_000) < self.profile.slow_at_step_per_mille {
            let other = self.random.usize(0..self.slots.len());
            self.slow_disk(other);
        }
        if self.random.u32(0..1_000) < self.profile.lose_at_step_per_mille {
            self.counts.lost_connections += 1;
            self.tell(|_| format!("the connections of host {} are lost", place + 1));
            let control_alone = self.random.bool();
            self.network.lose_connections_of(place, control_alone);
        }
    }

    /// What a target has acknowledged lies on its device, also if that is slow and the power goes as soon as the commit
    /// is recorded.
    fn trouble_targets(&mut self, step: &str) {
        let (slows, cuts) = (step == "source:set-synchronous", step == "coordinator:applied");
        if !slows && !cuts {
            return;
        }
        let ids = || (1..=self.partitions).map(PartitionId);
        let is_frozen =
            |id: &PartitionId| self.slots.iter().any(|slot| slot.node.serving(*id) == Some(Serving::Frozen));
        let is_target = |slot: &super::world::Slot| {
            let mut filled = ids().filter(|id| matches!(slot.node.serving(*id), Some(Serving::Shadow { .. })));
            slot.is_up && if cuts { filled.any(|id| is_frozen(&id)) } else { filled.next().is_some() }
        };
        let targets: Vec<Place> = (0..self.slots.len()).filter(|place| is_target(&self.slots[*place])).collect();
        for place in targets {
            if slows {
                self.slow_disk(place);
            } else if self.random.u32(0..1_000) < self.profile.power_cut_at_commit_per_mille {
                let down = self.down_time();
                self.crash(place, true, down);
            }
        }
    }

    /// A commit has been recorded: its source, which does not know it yet, loses its connections and hears of nobody.
    fn isolate_source(&mut self) {
        let is_source = |slot: &super::world::Slot| {
            let mut ids = (1..=self.partitions).map(PartitionId);
            slot.is_up && ids.any(|id| slot.node.serving(id) == Some(Serving::Frozen))
        };
        let sources: Vec<Place> = (0..self.slots.len()).filter(|place| is_source(&self.slots[*place])).collect();
        for place in sources {
            if self.random.u32(0..1_000) >= self.profile.isolate_at_commit_per_mille {
                continue;
            }
            self.counts.cuts += 1;
            let ms = self.random.u64(200..3_000);
            self.tell(|_| format!("host {} hears of nobody for {ms} ms, behind a commit", place + 1));
            self.network.lose_connections_of(place, false);
            for other in (0..self.slots.len()).filter(|other| *other != place) {
                for (from, to) in [(place, other), (other, place)] {
                    self.network.set_cut(from, to, true);
                    self.after(Duration::from_millis(ms), Act::Mend(from, to));
                }
            }
        }
    }

    /// Somebody asks a host that serves a partition to move it.
    pub fn ask_for_move(&mut self) {
        if !self.is_troubled {
            return;
        }
        let ms = self.random.u64(1..self.profile.move_every.as_millis() as u64 * 2);
        self.after(Duration::from_millis(ms), Act::Move);
        let partition = PartitionId(self.random.u64(1..=self.partitions));
        let owner =
            self.slots.iter().position(|slot| slot.is_up && slot.node.serving(partition) == Some(Serving::Owner));
        let Some(place) = owner else {
            return;
        };
        let destination = (place + self.random.usize(1..self.slots.len())) % self.slots.len();
        let order = [Order::Auto, Order::Gru, Order::Ewma, Order::Key, Order::Random][self.random.usize(0..5)];
        let limits = Limits { retries_max: self.random.u32(0..3), lag_max: self.shape.lag_max, ..Limits::default() };
        let early = (self.random.u8(0..3) == 0).then(|| self.random.f64());
        let mut options = MoveOptions { order, limits, early, set_point: SetPoint::Off, ..MoveOptions::default() };
        if self.profile.promote_every.is_some() && self.random.bool() {
            (options.policy, options.early) = (Policy::Standby { synchronous: self.random.bool() }, None);
        }
        let destination = self.way_back(partition, place).unwrap_or(destination);
        let slot = &self.slots[place];
        let Some(host) = slot.host.borrow().clone() else {
            return;
        };
        let _on = slot.node.enter();
        if let Ok(handle) = host.start_move(partition, HostId(destination as u32 + 1), options) {
            self.tell(|_| format!("partition {partition} is to move from host {} to {}", place + 1, destination + 1));
            self.counts.moves += 1;
            if options.policy != Policy::Auto {
                let ms = self.random.u64(500..20_000);
                self.after(Duration::from_millis(ms), Act::EndStandby(self.moves.len()));
            }
            self.moves.push(handle);
        }
    }

    /// Somebody asks a host that serves a partition to make two of it, at one of the slots that clients use.
    pub fn split(&mut self) {
        let Some(every) = self.profile.split_every.filter(|_| self.is_troubled && self.partitions < PARTITIONS_MAX)
        else {
            return;
        };
        let ms = self.random.u64(1..every.as_millis() as u64 * 2);
        self.after(Duration::from_millis(ms), Act::Split);
        let key = key_of(self.random.u64(0..self.shape.keys));
        let at = u16::from_be_bytes([key[0], key[1]]);
        let hosts = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_up);
        let mut routes = hosts.filter_map(|(place, slot)| {
            let host = slot.host.borrow().clone()?;
            let route = host.routing.load().route(at)?.clone();
            (route.owner == host.id).then_some((place, host, route.partition))
        });
        let Some((place, host, partition)) = routes.next_back() else {
            return;
        };
        self.partitions += 1;
        let (child, splits) = (PartitionId(self.partitions), std::rc::Rc::clone(&self.splits));
        self.tell(|_| format!("partition {partition} is to be split at slot {at} on host {}", place + 1));
        let slot = &self.slots[place];
        let _on = slot.node.enter();
        slot.node.spawn(async move {
            match host.split(partition, at, Some(child)).await {
                Ok(_) if !antumbra_engine::sim::is_dark() => splits.set(splits.get() + 1),
                Ok(_) => {}
                Err(cause) => tracing::info!(%cause, "not split"),
            }
        });
    }

    /// Somebody asks a host that serves two neighbours to make one of them.
    pub fn merge(&mut self) {
        let Some(every) = self.profile.merge_every.filter(|_| self.is_troubled) else {
            return;
        };
        let ms = self.random.u64(1..every.as_millis() as u64 * 2);
        self.after(Duration::from_millis(ms), Act::Merge);
        let mut pairs = Vec::new();
        for (place, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.is_up) {
            let Some(host) = slot.host.borrow().clone() else { continue };
            let routes = host.routing.load().routes.clone();
            let is_own = |pair: &&[Route]| pair.iter().all(|route| route.owner == host.id);
            pairs.extend(routes.windows(2).filter(is_own).map(|pair| (place, pair[0].partition, pair[1].partition)));
        }
        if pairs.is_empty() {
            return;
        }
        let (place, one, two) = pairs[self.random.usize(0..pairs.len())];
        let (one, two) = if self.random.bool() { (one, two) } else { (two, one) };
        self.tell(|_| format!("partitions {one} and {two} are to become one on host {}", place + 1));
        let merges = std::rc::Rc::clone(&self.merges);
        let slot = &self.slots[place];
        let Some(host) = slot.host.borrow().clone() else { return };
        let _on = slot.node.enter();
        slot.node.spawn(async move {
            match host.merge(one, two).await {
                Ok(_) if !antumbra_engine::sim::is_dark() => merges.set(merges.get() + 1),
                Ok(_) => {}
                Err(cause) => tracing::info!(%cause, "not merged"),
            }
        });
    }

    /// A host that has a copy of the partition left, if it is to go back there.
    fn way_back(&mut self, partition: PartitionId, owner: Place) -> Option<Place> {
        if self.random.u32(0..1_000) >= self.profile.roll_back_per_mille {
            return None;
        }
        let released = Some(Serving::Released { owner: HostId(owner as u32 + 1) });
        self.slots.iter().position(|slot| slot.is_up && slot.node.serving(partition) == released)
    }

    /// A standby is switched to, or is kept no more.
    pub fn end_standby(&mut self, index: usize) {
        match self.random.bool() {
            true => self.moves[index].switch(),
            false => self.moves[index].give_up(),
        }
    }

    /// Somebody makes a standby the owner, whatever its source does meanwhile.
    pub fn promote(&mut self) {
        let Some(every) = self.profile.promote_every.filter(|_| self.is_troubled) else {
            return;
        };
        let ms = self.random.u64(1..every.as_millis() as u64 * 2);
        self.after(Duration::from_millis(ms), Act::Promote);
        let partition = PartitionId(self.random.u64(1..=self.partitions));
        let is_standby = |slot: &super::world::Slot| {
            slot.is_up && matches!(slot.node.serving(partition), Some(Serving::Shadow { .. }))
        };
        let Some(place) = self.slots.iter().position(is_standby) else {
            return;
        };
        let slot = &self.slots[place];
        let Some(host) = slot.host.borrow().clone() else {
            return;
        };
        self.tell(|_| format!("partition {partition} is to be promoted by force at host {}", place + 1));
        self.forced.insert(partition.0);
        let (policy, promotions) = (self.profile.policy, std::rc::Rc::clone(&self.promotions));
        let _on = slot.node.enter();
        slot.node.spawn(async move {
            match host.force_promote(partition, policy).await {
                Ok(_) if !antumbra_engine::sim::is_dark() => promotions.set(promotions.get() + 1),
                Ok(_) => {}
                Err(cause) => tracing::info!(%cause, "not promoted"),
            }
        });
    }
}
