//! One life of the shard after another: open, check what was recovered, work, end.

use std::rc::Rc;
use std::time::Duration;

use crate::io::runtime;
use crate::io::sim::{Ended, Faults};
use crate::shard::Shard;
use crate::types::{KeyRange, PartitionId};

use super::client;
use super::damage;
use super::world::{Expected, Presence, World};

/// Virtual time after which a life that has not ended counts as hung.
const PATIENCE: Duration = Duration::from_secs(300);

/// How a life is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Close,
    Kill,
    PowerCut,
}

/// Lives until the operations are done, then one more that checks everything on a good disk.
pub(super) fn live_until_done(world: &Rc<World>) -> Result<(), String> {
    while world.counts.borrow().operations < world.operations_wanted {
        let ending = draw_ending(world);
        let faults = draw_faults(world);
        live(world, ending, faults)?;
        damage::try_damage(world)?;
    }
    live(world, Ending::Close, Faults::default())
}

fn live(world: &Rc<World>, ending: Ending, faults: Faults) -> Result<(), String> {
    world.begin_life();
    world.tell(|| format!("begins, to end by {ending:?}; {faults:?}"));
    if ending != Ending::Close {
        // Half of the interruptions come early: while the shard recovers.
        let operations =
            world.machine.draw(|random| if random.bool() { random.u64(1..80) } else { random.u64(1..4_000) });
        world.machine.interrupt_after(operations);
    }
    *world.machine.faults.borrow_mut() = faults;
    let closes = ending == Ending::Close;
    let ended = world.machine.run(PATIENCE, one_life(Rc::clone(world), closes));
    *world.machine.faults.borrow_mut() = Faults::default();
    world.tell(|| format!("ends after {} disk operations: {ended:?}", world.machine.operations()));
    match ended {
        Ended::Done(()) => {}
        Ended::Interrupted => {}
        Ended::Stuck => {
            world.tell(|| format!("{:#?}, clients: {:?}", world.shard(), world.doing.borrow()));
            world.violate(format!("nothing ended within {PATIENCE:?}: a lost wake-up or a deadlock"));
        }
    }
    match ending {
        Ending::PowerCut => {
            world.counts.borrow_mut().power_cuts += 1;
            world.machine.power_up();
        }
        Ending::Close | Ending::Kill => {
            world.counts.borrow_mut().kills += u64::from(ending == Ending::Kill);
            world.machine.kill();
        }
    }
    world.end_life();
    world.machine.heal();
    world.take_violation()
}

fn draw_ending(world: &World) -> Ending {
    world.machine.draw(|random| match random.u8(0..8) {
        0..2 => Ending::Close,
        2..4 => Ending::Kill,
        _ => Ending::PowerCut,
    })
}

/// Most lives are without faults; the others have one kind, rare or frequent.
fn draw_faults(world: &World) -> Faults {
    world.machine.draw(|random| {
        let rate = [3, 30, 300][random.usize(0..3)];
        let mut faults = Faults::default();
        match random.u8(0..16) {
            0 => faults.read_error = rate,
            1 => faults.write_error = rate,
            2 => faults.sync_error = rate,
            3..5 => faults.short_read = rate * 10,
            5 => faults.lost_write = rate,
            6 => faults.misdirected_write = rate,
            7 => faults.full = true,
            _ => {}
        }
        faults
    })
}

/// The whole life, but for what interrupts it.
async fn one_life(world: Rc<World>, closes: bool) {
    let was_full = world.machine.faults.borrow().full;
    // A full disk is a phase of a life and not its whole.
    world.machine.faults.borrow_mut().full = false;
    let shard = match world.open().await {
        Ok(shard) => shard,
        Err(cause) => {
            world.judge("open", &cause);
            return;
        }
    };
    if let Err(what) = check_recovered(&world, &shard).await {
        world.violate(what);
        return;
    }
    if was_full {
        spawn_full_phases(&world);
    }
    let rounds = world.machine.draw(|random| random.u64(1..4));
    for _ in 0..rounds {
        if world.is_over() || create_missing(&world, &shard).await.is_none() {
            break;
        }
        work(&world, &shard).await;
        let drops = world.machine.draw(|random| random.u8(0..12)) == 0;
        if drops && !world.is_over() && drop_one(&world, &shard).await.is_none() {
            break;
        }
    }
    if closes && let Err(cause) = shard.close().await {
        world.judge("close", &cause);
    }
}

/// The disk is full now and then.
fn spawn_full_phases(world: &Rc<World>) {
    let world = Rc::clone(world);
    runtime::spawn_detached(async move {
        loop {
            let wait_ms = world.machine.draw(|random| random.u64(1..2_000));
            runtime::sleep(Duration::from_millis(wait_ms)).await;
            let full = world.machine.faults.borrow().full;
            world.machine.faults.borrow_mut().full = !full;
        }
    });
}

/// Every partition is there and holds a prefix of its history that no acknowledged write is missing from.
pub(super) async fn check_recovered(world: &Rc<World>, shard: &Rc<Shard>) -> Result<(), String> {
    let expected: Vec<(PartitionId, Presence)> =
        world.partitions.borrow().iter().map(|(id, partition)| (*id, partition.presence)).collect();
    for (id, presence) in expected {
        let partition = match (shard.partition(id), presence) {
            (Ok(partition), Presence::Present | Presence::Unknown) => partition,
            (Err(_), Presence::Absent | Presence::Unknown) => {
                world.partitions.borrow_mut().insert(id, Expected::default());
                continue;
            }
            (Ok(_), Presence::Absent) => return Err(format!("partition {id} is there, but it was dropped")),
            (Err(cause), Presence::Present) => return Err(format!("after recovery: {cause}")),
        };
        let last = partition.assigned();
        {
            let mut partitions = world.partitions.borrow_mut();
            let expected = partitions.entry(id).or_default();
            let before = expected.history.last();
            world.tell(|| format!("partition {id} recovered up to {last} of {before}"));
            expected.history.settle(last).map_err(|what| format!("partition {id}: {what}"))?;
            expected.presence = Presence::Present;
            world.counts.borrow_mut().lost_writes += before.0 - last.0;
        }
        // A scan over everything finds what the history holds.
        client::scan(world, &partition, KeyRange::all(), usize::MAX).await?;
    }
    Ok(())
}

/// Creates partitions until there are as many as there should be; `None` when the life is over.
async fn create_missing(world: &Rc<World>, shard: &Rc<Shard>) -> Option<()> {
    for number in 1..=world.shape.partitions {
        let id = PartitionId(number);
        if world.partitions.borrow().get(&id).is_some_and(|partition| partition.presence == Presence::Present) {
            continue;
        }
        let fresh = Expected { presence: Presence::Unknown, ..Expected::default() };
        world.partitions.borrow_mut().insert(id, fresh);
        if let Err(cause) = shard.create_partition(world.spec(id)).await {
            world.judge("create", &cause);
            return None;
        }
        world.partitions.borrow_mut().entry(id).or_default().presence = Presence::Present;
    }
    Some(())
}

/// Drops a partition that nobody uses; `None` when it is open whether it is gone.
async fn drop_one(world: &Rc<World>, shard: &Rc<Shard>) -> Option<()> {
    let id = PartitionId(world.machine.draw(|random| random.u64(1..=world.shape.partitions)));
    world.partitions.borrow_mut().entry(id).or_default().presence = Presence::Unknown;
    match shard.drop_partition(id).await {
        Ok(()) => {
            world.partitions.borrow_mut().insert(id, Expected::default());
            Some(())
        }
        Err(cause) => {
            world.judge("drop", &cause);
            None
        }
    }
}

/// Clients work side by side for a while.
async fn work(world: &Rc<World>, shard: &Rc<Shard>) {
    let clients: Vec<_> = (0..world.shape.clients)
        .map(|number| {
            let operations = world.machine.draw(|random| random.u64(1..120));
            world.machine.spawn(client::run(Rc::clone(world), Rc::clone(shard), number, operations))
        })
        .collect();
    for client in clients {
        client.await;
    }
}
