//! An attempt at its target.

use antumbra_engine::Serving;
use antumbra_engine::types::{AttemptId, Epoch, SegmentId, ValidationToken};
use antumbra_net::coordinator::{Command, RecordState};
use antumbra_net::shadow::plan::PlanEntry;
use antumbra_net::shadow::recovery::Held;
use antumbra_net::shadow::target::Target;

use crate::world::{
    Body, Copies, HOSTS, Host, KEYS, Mutant, PARTITION, Packet, TargetSide, World, segment_of, segments,
};

pub fn deliver(world: &mut World, packet: &Packet, mutant: Mutant) {
    let index = packet.to;
    if let Body::Open { epoch, from, base } = packet.body {
        return open(world, packet, (epoch, from, base), mutant);
    }
    let trusts_any = mutant == Mutant::StaleAttempt;
    let takes_any = trusts_any && matches!(packet.body, Body::Segment { .. });
    let host = &mut world.hosts[index];
    let Some(side) = host.target.as_mut().filter(|side| side.attempt == packet.attempt || takes_any) else {
        return;
    };
    let attempt = side.attempt;
    let mut replies = Vec::new();
    let base = side.base.clone();
    let ask = |token: ValidationToken| match &base {
        Some(base) => Body::RequestOnBase(token, Host::newest_at(base, token.segment, u8::MAX)),
        None => Body::Request(token),
    };
    let request = |tokens: Vec<ValidationToken>| tokens.into_iter().map(ask);
    match &packet.body {
        Body::Plan(tokens) => {
            let entry = |token: &ValidationToken| PlanEntry { token: *token, score: 0.0, bytes: 1 };
            replies.extend(request(side.machine.handle_plan(tokens.iter().map(entry).collect())));
        }
        Body::Resume => {
            side.machine.handle_resumed();
            let held = segments().filter(|segment| !host.missing.contains(segment)).collect();
            replies.push(Body::Resumed { last: side.last(), held });
        }
        Body::Stale(token) => replies.extend(side.machine.handle_stale(*token).map(ask)),
        Body::Segment { segment, records, on_base } => {
            let is_missing = host.missing.remove(segment);
            if !is_missing && mutant != Mutant::ServeBase {
                // A second copy is ignored.
                return;
            }
            let below = side.base.as_ref().filter(|_| *on_base);
            let mut copy = below.map(|base| Host::newest_at(base, *segment, u8::MAX)).unwrap_or_default();
            copy.extend(records);
            if is_missing {
                host.records.extend(&copy);
                side.copies.insert(*segment, copy);
            }
            replies.push(Body::Held(*segment));
            replies.extend(request(side.machine.handle_installed(*segment)));
            host.note_whole();
        }
        Body::Seal { last, chain, copies, early } => {
            let known = side.copies.iter().all(|(segment, copy)| copies.get(segment) == Some(copy));
            let whole = host.missing.is_empty() || *early;
            if host.sealed.is_none() && whole && *chain == side.chain && (known || trusts_any) {
                side.machine.handle_ready();
                host.sealed = Some(*last);
                replies.push(Body::SealOk);
            } else {
                replies.push(Body::Failed);
            }
        }
        Body::Promote { epoch } => {
            let epoch = Epoch(*epoch);
            if host.serving == Some(Serving::Shadow { attempt: AttemptId(attempt) }) && host.sealed.is_some() {
                side.machine.handle_promoted();
                promote(host, epoch);
                replies.push(Body::Promoted);
            }
        }
        Body::Complete => host.target = None,
        _ => {}
    }
    for body in replies {
        world.send(1 - index, attempt, body);
    }
}

impl TargetSide {
    /// The last LSN that the mirror has brought.
    pub fn last(&self) -> u8 {
        self.chain.last().map_or(self.from, |(lsn, _)| *lsn)
    }
}

/// Creates the shadow if the record has the attempt.
fn open(world: &mut World, packet: &Packet, (epoch, from, base): (u64, u8, Option<u8>), mutant: Mutant) {
    let index = packet.to;
    let record = world.record();
    let recorded = matches!(&record.state, RecordState::Moving(moving)
        if moving.attempt == packet.attempt && moving.destination == HOSTS[index].0);
    let host = &world.hosts[index];
    // While another driver or the reconciler has the partition, the claim is waited for.
    let claimed = !host.is_unclaimed() || host.verdict.is_some();
    if claimed {
        if host.target.as_ref().is_none_or(|side| side.attempt != packet.attempt) {
            world.wire.insert(packet.clone());
        }
        return;
    }
    if !recorded || record.epoch != epoch || record.owner != HOSTS[1 - index].0 {
        world.send(1 - index, packet.attempt, Body::Failed);
        return;
    }
    let attempt = AttemptId(packet.attempt);
    let host = &mut world.hosts[index];
    // A copy of just that moment, or none.
    let is_copy = host.held == Some(Held::Released) && base == Some(host.last());
    let base = is_copy.then(|| std::mem::take(&mut host.records));
    (host.held, host.epoch, host.sealed) = (Some(Held::Shadow(attempt)), epoch, None);
    host.serving = Some(Serving::Shadow { attempt });
    host.records.clear();
    host.durable = 0;
    host.missing = segments().collect();
    if mutant == Mutant::ServeBase
        && let Some(base) = &base
    {
        host.records.clone_from(base);
        host.missing.clear();
    }
    let (machine, chain, copies) = (Target::default(), Vec::new(), Copies::new());
    host.target =
        Some(TargetSide { attempt: packet.attempt, epoch, machine, chain, copies, from, base, stopped: false });
    world.send(1 - index, packet.attempt, Body::Opened);
}

/// Becomes the owner; the history goes on after the seal.
pub fn promote(host: &mut Host, epoch: Epoch) {
    let held = if host.missing.is_empty() { Held::Owner } else { Held::Partly };
    (host.held, host.epoch) = (Some(held), epoch.0);
    host.serving = Some(Serving::Owner);
    host.durable = host.sealed.unwrap_or(0);
    host.sealed = None;
}

/// Somebody has the standby promoted by force: it takes nothing more, and the coordinator is asked.
pub fn force(world: &mut World, index: usize, mutant: Mutant) {
    let Some((last, Some(Held::Shadow(attempt)))) = world.hosts[index].whole_at().zip(Some(world.hosts[index].held))
    else {
        return;
    };
    let host = &mut world.hosts[index];
    host.note_whole();
    if let Some(side) = host.target.as_mut() {
        side.stopped = mutant != Mutant::MirrorGoesOn;
    }
    let policy = String::from("lww");
    world.ask(index, Command::ForcePromote { partition: PARTITION, attempt: attempt.0, lsn: u64::from(last), policy });
}

/// What `from` has written alone behind `lsn` is settled at the owner, durably: the later version of each key stays.
pub fn settle(world: &mut World, from: usize, lsn: u8) {
    for key in 0..KEYS {
        let old = &world.hosts[from];
        let behind = old.records.range(lsn + 1..).filter(|(_, (found, _))| usize::from(*found) == key);
        let returned = behind.map(|(_, (_, version))| *version).next_back().unwrap_or(0);
        let owner = &mut world.hosts[1 - from];
        if returned > owner.version(key, u8::MAX) {
            let next = owner.last() + 1;
            owner.records.insert(next, (key as u8, returned));
        }
        owner.durable = owner.last();
    }
}

/// The owner fetches a segment that an early switchover left at the host before it.
pub fn fetch(world: &mut World, index: usize, segment: SegmentId) {
    let from = &world.hosts[1 - index];
    let of_segment = from.records.iter().filter(|(_, (key, _))| segment_of(usize::from(*key)) == segment);
    let newest = of_segment.map(|(lsn, value)| (*lsn, *value)).next_back();
    let host = &mut world.hosts[index];
    host.records.extend(newest);
    host.missing.remove(&segment);
    if host.missing.is_empty() {
        host.held = Some(Held::Owner);
    }
    if let Some(attempt) = host.target.as_ref().map(|side| side.attempt) {
        world.send(1 - index, attempt, Body::Held(segment));
    }
}
