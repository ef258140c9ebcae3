//! An attempt at its target.

use std::collections::BTreeSet;

use antumbra_engine::Serving;
use antumbra_engine::types::{AttemptId, Epoch, ValidationToken};
use antumbra_net::coordinator::RecordState;
use antumbra_net::shadow::plan::PlanEntry;
use antumbra_net::shadow::recovery::Held;
use antumbra_net::shadow::target::Target;

use crate::world::{Body, HOSTS, Host, Mutant, Packet, TargetSide, World, segments};

pub fn deliver(world: &mut World, packet: &Packet, mutant: Mutant) {
    let index = packet.to;
    if let Body::Open { epoch, from } = packet.body {
        return open(world, packet, epoch, from);
    }
    let takes_any = mutant == Mutant::StaleAttempt;
    let host = &mut world.hosts[index];
    let Some(side) = host.target.as_mut().filter(|side| side.attempt == packet.attempt || takes_any) else {
        return;
    };
    let attempt = side.attempt;
    let mut replies = Vec::new();
    let request = |tokens: Vec<ValidationToken>| tokens.into_iter().map(Body::Request);
    match &packet.body {
        Body::Plan(tokens) => {
            let entry = |token: &ValidationToken| PlanEntry { token: *token, score: 0.0, bytes: 1 };
            replies.extend(request(side.machine.handle_plan(tokens.iter().map(entry).collect())));
        }
        Body::Stale(token) => replies.extend(side.machine.handle_stale(*token).map(Body::Request)),
        Body::Segment { segment, records } => {
            if !side.held.insert(*segment) {
                replies.push(Body::Failed);
            } else {
                host.records.extend(records);
                replies.push(Body::Held(*segment));
                replies.extend(request(side.machine.handle_installed(*segment)));
            }
        }
        Body::Seal { last, chain } => {
            let whole = segments().all(|segment| side.held.contains(&segment));
            if host.sealed.is_none() && whole && *chain == side.chain {
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

/// Creates the shadow if the record has the attempt.
fn open(world: &mut World, packet: &Packet, epoch: u64, from: u8) {
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
    (host.held, host.epoch, host.sealed) = (Some(Held::Shadow(attempt)), epoch, None);
    host.serving = Some(Serving::Shadow { attempt });
    host.records.clear();
    host.durable = 0;
    let (machine, held, chain) = (Target::default(), BTreeSet::new(), Vec::new());
    host.target = Some(TargetSide { attempt: packet.attempt, epoch, machine, held, chain, from });
    world.send(1 - index, packet.attempt, Body::Opened);
}

/// Becomes the owner; the history goes on after the seal.
pub fn promote(host: &mut Host, epoch: Epoch) {
    (host.held, host.epoch) = (Some(Held::Owner), epoch.0);
    host.serving = Some(Serving::Owner);
    host.durable = host.sealed.unwrap_or(0);
    host.sealed = None;
}
