//! Batches, conditional writes, merges and range deletions.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::error::Error;
use crate::io::runtime;
use crate::merge_operator::MergeOperators;
use crate::partition::{Batch, Commit, Condition, Conflict, Partition, Versioned, Write};
use crate::types::{KeyRange, Lsn};

use super::client::{check_acknowledged, draw_durability, watch_assigned};
use super::history::{History, Version};
use super::world::World;

/// One change of a batch, as the model plays it.
#[derive(Clone, Debug)]
enum Step {
    Write(Write),
    /// Adds to a counter. Counters have keys of their own and no deadlines.
    Add(Bytes, i64),
    Erase(KeyRange),
}

/// A batch of some changes, all of them or nothing.
pub(super) async fn commit(
    world: &Rc<World>,
    partition: &Rc<Partition>,
    buffered_bytes: &mut usize,
) -> Result<(), String> {
    let steps = draw_steps(world);
    let mut batch = Batch::with_operator(MergeOperators::default().find("add").map_err(|cause| cause.to_string())?);
    let mut bytes = 0;
    for step in &steps {
        bytes += 100;
        match step {
            Step::Write(write) => {
                bytes += write.value.as_ref().map_or(0, Bytes::len);
                batch.push(write.clone());
            }
            Step::Add(key, operand) => {
                let added = batch.merge(key.clone(), operand.to_le_bytes().to_vec());
                added.map_err(|cause| cause.to_string())?;
            }
            Step::Erase(range) => {
                bytes += 4_000;
                batch.delete_range(range.clone());
            }
        }
    }
    let durability = draw_durability(world, buffered_bytes, bytes);
    let id = partition.id();
    let result = watch_assigned(partition, partition.commit(batch, durability), |first, last| {
        let mut partitions = world.partitions.borrow_mut();
        let played = play(&mut partitions.entry(id).or_default().history, &steps, first, last);
        if let Err(what) = played {
            world.violate(format!("partition {id}: {what}"));
        }
    })
    .await;
    match result {
        Ok(Commit::Written(written)) => check_acknowledged(world, partition, written.lsn, durability, buffered_bytes),
        Ok(Commit::Conflict(conflict)) => Err(format!("a batch without conditions met {conflict:?}")),
        // A small log does not take every batch.
        Err(Error::BatchLength { .. }) => Ok(()),
        Err(cause) => {
            world.judge("commit", &cause);
            Ok(())
        }
    }
}

fn draw_steps(world: &World) -> Vec<Step> {
    let count = world.machine.draw(|random| random.usize(1..6));
    let mut erases = false;
    let steps = (0..count).map(|_| match world.machine.draw(|random| random.u8(0..8)) {
        0..4 => Step::Write(world.draw_write()),
        4..7 => {
            world.machine.draw(|random| Step::Add(format!("#{}", random.u8(0..10)).into(), random.i64(-1_000..1_000)))
        }
        _ if erases => Step::Write(world.draw_write()),
        _ => {
            erases = true;
            world.machine.draw(|random| {
                let (one, other) = (world.key(random), world.key(random));
                let whole = random.u8(0..20) == 0;
                if whole {
                    return Step::Erase(KeyRange::all());
                }
                Step::Erase(KeyRange { start: one.clone().min(other.clone()), end: Some(one.max(other)) })
            })
        }
    });
    steps.collect()
}

/// Plays the batch that was given the LSNs from `first` to `last`.
fn play(history: &mut History, steps: &[Step], first: Lsn, last: Lsn) -> Result<(), String> {
    history.begin(first, last)?;
    let others = steps.iter().filter(|step| !matches!(step, Step::Erase(_))).count() as u64;
    // A range deletion has a record for each segment that it touches.
    let erasures = (last.0 + 1 - first.0)
        .checked_sub(others)
        .ok_or_else(|| format!("{others} changes were given the LSNs {first} to {last}"))?;
    let mut lsn = first;
    for step in steps {
        match step {
            Step::Write(write) => {
                history.put(write.key.clone(), Version::of(write, lsn));
                lsn = lsn.next();
            }
            Step::Add(key, operand) => {
                let existing = history.value(key, lsn, 0).map_or(0, |value| number(&value));
                let value = Some(Bytes::from((existing + operand).to_le_bytes().to_vec()));
                history.put(key.clone(), Version { lsn, value, expires_at_ms: 0 });
                lsn = lsn.next();
            }
            Step::Erase(range) => {
                history.erase(range, lsn);
                lsn = Lsn(lsn.0 + erasures);
            }
        }
    }
    if lsn == last.next() { Ok(()) } else { Err(format!("a batch without range deletions took up to LSN {last}")) }
}

fn number(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_le_bytes)
}

/// Reads a key, thinks, and writes it if nobody has since.
pub(super) async fn swap(world: &Rc<World>, partition: &Rc<Partition>) -> Result<(), String> {
    let mut write = world.draw_write();
    write.expires_at_ms = 0;
    let seen = match partition.get_versioned(&write.key).await {
        Ok(seen) => seen,
        Err(cause) => {
            world.judge("get_versioned", &cause);
            return Ok(());
        }
    };
    let wait_us = world.machine.draw(|random| random.u64(0..2_000));
    runtime::sleep(Duration::from_micros(wait_us)).await;
    let condition = match &seen {
        None => Condition::Absent,
        Some(seen) if world.machine.draw(|random| random.bool()) => Condition::Version(seen.version),
        Some(seen) => Condition::Value(seen.value.clone()),
    };
    let mut batch = Batch::new();
    batch.push(write.clone()).require(write.key.clone(), condition.clone());
    let durability = draw_durability(world, &mut 0, 0);
    let (begun, begun_ms) = (partition.assigned(), clock::wall_ms());
    let id = partition.id();
    let result = watch_assigned(partition, partition.commit(batch, durability), |first, last| {
        let mut partitions = world.partitions.borrow_mut();
        let history = &mut partitions.entry(id).or_default().history;
        // A deadline may have passed between the look and now: either answer is right then.
        let holds = [begun_ms, clock::wall_ms()].iter().any(|now_ms| match &condition {
            Condition::Absent => history.value(&write.key, Lsn(first.0 - 1), *now_ms).is_none(),
            Condition::Value(value) => history.value(&write.key, Lsn(first.0 - 1), *now_ms).as_ref() == Some(value),
            Condition::Version(version) => {
                history.version(&write.key, Lsn(first.0 - 1)).is_some_and(|found| found.lsn == version.lsn)
            }
            Condition::Present => true,
        });
        let begun = history.begin(first, last);
        history.put(write.key.clone(), Version::of(&write, first));
        if let Err(what) = begun {
            world.violate(format!("partition {id}: {what}"));
        }
        if !holds {
            world.violate(format!("partition {id}: written at LSN {first} although {condition:?} does not hold"));
        }
    })
    .await;
    match result {
        Ok(Commit::Written(written)) => check_acknowledged(world, partition, written.lsn, durability, &mut 0),
        Ok(Commit::Conflict(conflict)) => check_conflict(world, partition, &condition, &conflict, begun),
        Err(cause) => {
            world.judge("swap", &cause);
            Ok(())
        }
    }
}

/// What a conflict reports was the key's state at some moment since `begun`, and the condition does not hold for it.
fn check_conflict(
    world: &World,
    partition: &Partition,
    condition: &Condition,
    conflict: &Conflict,
    begun: Lsn,
) -> Result<(), String> {
    if condition.holds(conflict.found.as_ref()) {
        return Err(format!("{condition:?} holds, and is reported as {conflict:?}"));
    }
    let partitions = world.partitions.borrow();
    let Some(expected) = partitions.get(&partition.id()) else {
        return Ok(());
    };
    let same = |version: Option<&Version>, found: &Option<Versioned>| match (version, found) {
        (None, None) => true,
        (Some(version), None) => version.value.is_none() || version.expires_at_ms != 0,
        (Some(version), Some(found)) => {
            version.lsn == found.version.lsn && version.value.as_ref() == Some(&found.value)
        }
        (None, Some(_)) => false,
    };
    let mut moments = (begun.0..=partition.assigned().0).map(|lsn| expected.history.version(&conflict.key, Lsn(lsn)));
    if moments.any(|version| same(version, &conflict.found)) {
        return Ok(());
    }
    Err(format!("a conflict reports {:?}, which was never the state", conflict.found))
}
