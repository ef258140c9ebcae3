//! Damage at rest: on a copy of the disk one bit is flipped, and a shard that opens it may refuse, or report corruption
//! when it reads, but it never returns what was not written.

use std::rc::Rc;
use std::time::Duration;

use crate::io::sim::{Ended, is_table};
use crate::shard::Shard;
use crate::types::PartitionId;

use super::life;
use super::world::{Expected, Presence, World};

const PATIENCE: Duration = Duration::from_secs(300);

/// Which file a bit is flipped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Table,
    /// The log's end may be lost: a damaged last batch looks like a torn one.
    Log,
    /// The last edits may be lost, for the same reason.
    Manifest,
}

impl Target {
    fn includes(self, name: &str) -> bool {
        match self {
            Target::Table => is_table(name),
            Target::Log => name.ends_with(".wal"),
            Target::Manifest => name.starts_with("MANIFEST-") || name == "CURRENT",
        }
    }
}

/// Now and then: damages a copy of the disk, opens it, reads everything; then the disk is as it was.
pub(super) fn try_damage(world: &Rc<World>) -> Result<(), String> {
    let target = world.machine.draw(|random| match random.u8(0..12) {
        0..2 => Some(Target::Table),
        2 => Some(Target::Log),
        3 => Some(Target::Manifest),
        _ => None,
    });
    let Some(target) = target else {
        return Ok(());
    };
    let before = world.machine.copy_disk();
    let partitions = world.partitions.borrow().clone();
    let Some(name) = world.machine.flip_bit(|name| target.includes(name)) else {
        return Ok(());
    };
    world.counts.borrow_mut().damages += 1;
    world.begin_life();
    world.tell(|| format!("a bit of {name} is flipped"));
    let ended = world.machine.run(PATIENCE, read_all(Rc::clone(world), target));
    if matches!(ended, Ended::Stuck) {
        world.violate(format!("a flipped bit in {name}: nothing ended within {PATIENCE:?}"));
    }
    world.machine.kill();
    world.end_life();
    world.machine.forget_damage();
    world.machine.put_disk(&before);
    *world.partitions.borrow_mut() = partitions;
    world.take_violation().map_err(|what| format!("a flipped bit in {name}: {what}"))
}

async fn read_all(world: Rc<World>, target: Target) {
    let shard = match world.open().await {
        Ok(shard) => shard,
        Err(cause) => {
            // The manifest may name files that it had seen removed.
            if target == Target::Table {
                world.judge("open", &cause);
            } else {
                world.counts.borrow_mut().detected += 1;
            }
            return;
        }
    };
    if target == Target::Manifest || target == Target::Log {
        accept_older(&world, &shard, target);
    }
    if let Err(what) = life::check_recovered(&world, &shard).await {
        world.violate(what);
    }
    if let Err(cause) = shard.close().await {
        world.judge("close", &cause);
    }
}

/// The end of the log or the manifest may be gone: what is left has to be a state of before all the same.
fn accept_older(world: &Rc<World>, shard: &Rc<Shard>, target: Target) {
    let ids: Vec<PartitionId> = world.partitions.borrow().keys().copied().collect();
    for id in ids {
        let mut partitions = world.partitions.borrow_mut();
        let Ok(partition) = shard.partition(id) else {
            partitions.insert(id, Expected::default());
            continue;
        };
        let expected = partitions.entry(id).or_default();
        if target == Target::Manifest && partition.assigned() > expected.history.last() {
            // The edit that dropped the partition of this id before was the last one. The model has forgotten it.
            partitions.remove(&id);
            continue;
        }
        expected.presence = Presence::Unknown;
        if let Err(what) = expected.history.cut(partition.assigned()) {
            world.violate(format!("partition {id}: {what}"));
        }
    }
}
