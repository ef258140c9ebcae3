//! A move at its source: carries out what the machine says.

use antumbra_engine::Serving;
use antumbra_engine::types::{Lsn, SegmentId};
use antumbra_net::coordinator::{Command, PartitionRecord, RecordState};
use antumbra_net::shadow::recovery::Held;
use antumbra_net::shadow::source::{Action, Event, Limits, Source, State};

use crate::world::{Body, HOSTS, Host, PARTITION, Packet, World, segments};

/// The coordinator has answered the begin, or its record has been read.
pub fn begun(world: &mut World, index: usize, record: &PartitionRecord) {
    let destination = HOSTS[1 - index].0;
    let moving = match &record.state {
        RecordState::Moving(moving) if moving.destination == destination && record.owner == HOSTS[index].0 => moving,
        _ => {
            world.hosts[index].source = None;
            return;
        }
    };
    let (attempt, epoch) = (moving.attempt, record.epoch);
    let former = record.former.as_ref().filter(|former| former.host == destination);
    let base = former.map(|former| former.lsn as u8);
    let host = &mut world.hosts[index];
    let from = host.last();
    if let Some(side) = host.source.as_mut() {
        side.attempt = Some(attempt);
        side.epoch = epoch;
        side.base = base;
        side.machine = Source::new(
            segments(),
            Lsn(u64::from(from)),
            Limits { retries_max: 1, lag_max: 1, patience_looks: u32::MAX, late_looks: 0, asynchronous: false },
        );
    }
    if world.budget.forces == 0 {
        handle(world, index, Event::Allowed);
    }
    world.send(1 - index, attempt, Body::Open { epoch, from, base });
}

/// Hands an event to the machine and carries out what follows from it.
pub fn handle(world: &mut World, index: usize, event: Event) {
    let mut events = vec![event];
    while let Some(event) = events.pop() {
        let Some(side) = world.hosts[index].source.as_mut().filter(|side| side.attempt.is_some()) else {
            return;
        };
        for action in side.machine.handle(event) {
            events.extend(carry_out(world, index, action));
        }
    }
    let state = world.hosts[index].source.as_ref().map(|side| side.machine.state());
    if state == Some(State::Complete) && !has_asked_to_complete(world, index) {
        // The target completed the attempt by itself.
        world.hosts[index].source = None;
    }
}

fn has_asked_to_complete(world: &World, index: usize) -> bool {
    world.asks.iter().any(|ask| ask.host == index && matches!(ask.command, Command::Complete { .. }))
}

fn carry_out(world: &mut World, index: usize, action: Action) -> Option<Event> {
    let peer = 1 - index;
    let host = &mut world.hosts[index];
    let last = host.last();
    let epoch_known = host.source.as_ref().map_or(0, |side| side.epoch);
    let attempt = host.source.as_ref().and_then(|side| side.attempt)?;
    match action {
        Action::SendSegment(segment) => {
            let mut records = Host::newest_at(&host.records, segment, u8::MAX);
            let mut on_base = false;
            if let Some(side) = host.source.as_mut() {
                side.covered[key_of(segment)] = true;
                let at_base = side.base.map(|base| (base, Host::newest_at(&host.records, segment, base)));
                let copy = match at_base.filter(|(_, known)| side.offered.get(&segment) == Some(known)) {
                    Some((base, known)) => {
                        on_base = true;
                        records.retain(|lsn, _| *lsn > base);
                        known.into_iter().chain(records.clone()).collect()
                    }
                    None => records.clone(),
                };
                side.copies.insert(segment, copy);
            }
            world.send(peer, attempt, Body::Segment { segment, records, on_base });
            None
        }
        Action::SendStale(token) => {
            world.send(peer, attempt, Body::Stale(token));
            None
        }
        Action::Reconnect => {
            world.send(peer, attempt, Body::Resume);
            None
        }
        Action::SetSynchronous => {
            if let Some(side) = host.source.as_mut() {
                side.mirrored = Some(side.machine.acked().0 as u8);
            }
            None
        }
        Action::Freeze => {
            host.serving = Some(Serving::Frozen);
            host.lease_over = false;
            host.durable = last;
            Some(Event::Frozen(Lsn(u64::from(last))))
        }
        Action::SendSeal => {
            let chain = host.source.as_ref().map(|side| side.chain.clone()).unwrap_or_default();
            let early = host.source.as_ref().is_some_and(|side| side.machine.missing() > 0);
            let copies = host.source.as_ref().map(|side| side.copies.clone()).unwrap_or_default();
            world.send(peer, attempt, Body::Seal { last, chain, copies, early });
            None
        }
        Action::Commit => {
            world.ask(
                index,
                Command::Commit { partition: PARTITION, attempt, epoch: epoch_known, lsn: u64::from(last) },
            );
            None
        }
        Action::HandOver => {
            let owner = HOSTS[peer];
            (host.held, host.epoch) = (Some(Held::Released), epoch_known);
            host.serving = Some(Serving::Released { owner });
            if let Some(side) = host.source.as_mut() {
                side.mirrored = None;
            }
            Some(Event::HandedOver)
        }
        Action::Promote => {
            let lost = host.source.as_ref().is_some_and(|side| side.lost);
            world.send(peer, attempt, Body::Promote { epoch: epoch_known });
            lost.then_some(Event::TargetLost)
        }
        Action::AwaitTarget => None,
        // The comparison of digests decides nothing.
        Action::Digest => Some(Event::Digested),
        Action::Complete => {
            world.send(peer, attempt, Body::Complete);
            world.ask(index, Command::Complete { partition: PARTITION, attempt });
            None
        }
        Action::Abort(_) => {
            world.send(peer, attempt, Body::Failed);
            world.ask(index, Command::Abort { partition: PARTITION, attempt, reason: String::new() });
            None
        }
    }
}

/// The abort has been answered: serve what the record gives.
pub fn aborted(world: &mut World, index: usize, record: Option<&PartitionRecord>) {
    let host = &mut world.hosts[index];
    let aborting = host.source.as_ref().is_some_and(|side| side.machine.state() == State::Aborting);
    if !aborting {
        return;
    }
    if let Some(record) = record {
        if record.owner == HOSTS[index].0 {
            host.resume(antumbra_engine::types::Epoch(record.epoch));
        } else {
            host.serving = Some(Serving::Released { owner: HOSTS[1 - index] });
            host.held = Some(Held::Released);
        }
    }
    host.source = None;
}

/// The link is gone.
pub fn lose(world: &mut World, index: usize) {
    if let Some(side) = world.hosts[index].source.as_mut() {
        side.lost = true;
    }
    handle(world, index, Event::Failed(String::new()));
    handle(world, index, Event::TargetLost);
}

/// The link of a copy is lost: what was on its way here is, too, and some of what was on its way to the target comes late.
pub fn hiccup(world: &mut World, index: usize) {
    let attempt = world.hosts[index].source.as_ref().and_then(|side| side.attempt);
    world.wire.retain(|packet| packet.to != index || Some(packet.attempt) != attempt);
    handle(world, index, Event::TargetLost);
}

pub fn deliver(world: &mut World, packet: &Packet) {
    let index = packet.to;
    let ours = |world: &World| {
        world.hosts[index].source.as_ref().is_some_and(|side| side.attempt == Some(packet.attempt) && !side.lost)
    };
    if packet.body == Body::Failed
        && world.hosts[index].target.as_ref().is_some_and(|side| side.attempt == packet.attempt)
    {
        // The source gave up: the record says what becomes of the shadow.
        world.hosts[index].target = None;
        return;
    }
    if !ours(world) {
        return;
    }
    let host = &world.hosts[index];
    let event = match &packet.body {
        Body::Opened => {
            let plan = segments().map(|segment| host.token(segment)).collect();
            world.send(1 - index, packet.attempt, Body::Plan(plan));
            Event::Opened
        }
        Body::Resumed { last, held } => {
            let plan = segments().map(|segment| host.token(segment)).collect();
            let side = world.hosts[index].source.as_mut().filter(|side| side.machine.state() == State::Reconnecting);
            let Some(side) = side else { return };
            // The target may have taken in more since.
            side.mirror = side.chain.iter().filter(|(lsn, _)| lsn > last).copied().collect();
            world.send(1 - index, packet.attempt, Body::Plan(plan));
            Event::Resumed { held: held.clone() }
        }
        Body::Request(wanted) => Event::Requested { wanted: *wanted, present: host.token(wanted.segment) },
        Body::RequestOnBase(wanted, held) => {
            let present = host.token(wanted.segment);
            if let Some(side) = world.hosts[index].source.as_mut() {
                side.offered.insert(wanted.segment, held.clone());
            }
            Event::Requested { wanted: *wanted, present }
        }
        Body::Held(segment) => Event::Held(*segment),
        Body::Ack(lsn) => {
            let lsn = *lsn;
            let side = world.hosts[index].source.as_mut();
            if let Some(mirrored) = side.and_then(|side| side.mirrored.as_mut()) {
                *mirrored = (*mirrored).max(lsn);
            }
            Event::Acked(Lsn(u64::from(lsn)))
        }
        Body::SealOk => Event::SealOk,
        Body::Promoted => Event::Promoted,
        Body::Failed => Event::Failed(String::new()),
        _ => return,
    };
    handle(world, index, event);
}

/// Whether the mirror stream can carry a record now: both ends are there.
pub fn can_mirror(world: &World, index: usize) -> bool {
    let target = &world.hosts[1 - index];
    world.hosts[index].source.as_ref().is_some_and(|side| {
        !side.mirror.is_empty()
            && !side.lost
            && target.up
            && target.target.as_ref().is_some_and(|target| Some(target.attempt) == side.attempt)
    })
}

/// The target takes in the next record of the stream, durably, and acknowledges it.
pub fn mirror(world: &mut World, index: usize) {
    let Some(side) = world.hosts[index].source.as_mut() else {
        return;
    };
    let (lsn, value) = side.mirror.remove(0);
    let attempt = side.attempt.unwrap_or(0);
    let target = &mut world.hosts[1 - index];
    let Some(side) = target.target.as_mut() else {
        return;
    };
    if side.stopped {
        return;
    }
    if lsn > side.last() {
        side.chain.push((lsn, value));
        target.records.extend(value.map(|value| (lsn, value)));
    }
    target.note_whole();
    world.send(index, attempt, Body::Ack(lsn));
}

fn key_of(segment: SegmentId) -> usize {
    (segment.0 - 1) as usize
}
