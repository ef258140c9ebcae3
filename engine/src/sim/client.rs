//! What a client does, and what each answer has to be.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::config::Durability;
use crate::error::Error;
use crate::io::runtime;
use crate::partition::{Direction, PageLimits, Partition, ScanPage};
use crate::shard::Shard;
use crate::types::{KeyRange, Lsn, PartitionId};

use super::commit;
use super::history::Version;
use super::world::World;

/// One client: some operations, one after another.
pub(super) async fn run(world: Rc<World>, shard: Rc<Shard>, number: u64, operations: u64) {
    // Buffered writes do not wait for the device: bound what may be on its way.
    let mut buffered_bytes = 0;
    for _ in 0..operations {
        if world.is_over() {
            return;
        }
        world.counts.borrow_mut().operations += 1;
        let id = PartitionId(world.machine.draw(|random| random.u64(1..=world.shape.partitions)));
        let Ok(partition) = shard.partition(id) else {
            world.violate(format!("partition {id} is gone"));
            return;
        };
        let choice = world.machine.draw(|random| random.u8(0..100));
        world.doing.borrow_mut().insert(number, format!("choice {choice} on partition {id}"));
        let done = match choice {
            0..40 => write(&world, &partition, &mut buffered_bytes).await,
            40..52 => commit::commit(&world, &partition, &mut buffered_bytes).await,
            52..56 => commit::swap(&world, &partition).await,
            56..78 => get(&world, &partition).await,
            78..82 => snapshot(&world, &partition).await,
            82..90 => {
                let (range, limit) = world.machine.draw(|random| {
                    let (one, other) = (world.key(random), world.key(random));
                    let end = (random.u8(0..4) > 0).then(|| one.clone().max(other.clone()));
                    (KeyRange { start: one.min(other), end }, random.usize(0..30))
                });
                scan(&world, &partition, range, limit).await
            }
            90..95 => {
                partition.freeze_memtable();
                Ok(())
            }
            95..97 => match partition.compact_all().await {
                Err(cause) => {
                    world.judge("compact", &cause);
                    Ok(())
                }
                Ok(()) => Ok(()),
            },
            _ => {
                let wait_us = world.machine.draw(|random| random.u64(0..700_000));
                runtime::sleep(Duration::from_micros(wait_us)).await;
                Ok(())
            }
        };
        if let Err(what) = done {
            world.violate(what);
        }
        world.doing.borrow_mut().remove(&number);
    }
}

/// Polls `operation` and tells `assigned` of the first and last LSN that a poll of it assigns.
pub(super) async fn watch_assigned<T>(
    partition: &Rc<Partition>,
    operation: impl Future<Output = T>,
    mut assigned: impl FnMut(Lsn, Lsn),
) -> T {
    let mut operation = pin!(operation);
    std::future::poll_fn(|context| {
        let before = partition.assigned();
        let polled = operation.as_mut().poll(context);
        if partition.assigned() > before {
            assigned(before.next(), partition.assigned());
        }
        polled
    })
    .await
}

/// A durability for a write of `bytes` bytes: buffered ones do not wait for the device, so that what a client leaves in
/// the log's queue has to be bounded.
pub(super) fn draw_durability(world: &World, buffered_bytes: &mut usize, bytes: usize) -> Durability {
    const BUFFERED_BYTES_MAX: usize = 24 << 10;
    *buffered_bytes += bytes;
    let buffered = *buffered_bytes < BUFFERED_BYTES_MAX && world.machine.draw(|random| random.u8(0..100)) < 40;
    if buffered { Durability::Buffered } else { Durability::Durable }
}

/// What an acknowledged write has to have achieved.
pub(super) fn check_acknowledged(
    world: &World,
    partition: &Partition,
    lsn: Lsn,
    durability: Durability,
    buffered_bytes: &mut usize,
) -> Result<(), String> {
    if partition.visible() < lsn {
        return Err(format!("LSN {lsn} was acknowledged and is not visible"));
    }
    if durability == Durability::Durable {
        *buffered_bytes = 0;
        world.partitions.borrow_mut().entry(partition.id()).or_default().history.acknowledge(lsn);
    }
    Ok(())
}

async fn write(world: &Rc<World>, partition: &Rc<Partition>, buffered_bytes: &mut usize) -> Result<(), String> {
    let request = world.draw_write();
    let bytes = request.key.len() + request.value.as_ref().map_or(0, Bytes::len) + 64;
    let durability = draw_durability(world, buffered_bytes, bytes);
    let id = partition.id();
    let mut noted = Vec::new();
    let result = watch_assigned(partition, partition.write(request.clone(), durability), |first, last| {
        let mut partitions = world.partitions.borrow_mut();
        let history = &mut partitions.entry(id).or_default().history;
        let begun = history.begin(first, last);
        history.put(request.key.clone(), Version::of(&request, first));
        if let Err(what) = begun {
            world.violate(format!("partition {id}: {what}"));
        }
        noted.push((first, last));
    })
    .await;
    match result {
        Ok(written) if noted != [(written.lsn, written.lsn)] => {
            Err(format!("a write got LSN {}, assigned were {noted:?}", written.lsn))
        }
        Ok(written) => check_acknowledged(world, partition, written.lsn, durability, buffered_bytes),
        Err(cause) => {
            world.judge("write", &cause);
            Ok(())
        }
    }
}

async fn get(world: &Rc<World>, partition: &Rc<Partition>) -> Result<(), String> {
    let key = world.machine.draw(|random| world.key(random));
    let visible = partition.visible();
    let found = partition.get(&key).await;
    let now_ms = clock::wall_ms();
    let found = match found {
        Ok(found) => found,
        Err(cause) => {
            world.judge("get", &cause);
            return Ok(());
        }
    };
    let partitions = world.partitions.borrow();
    let expected = partitions.get(&partition.id()).and_then(|expected| expected.history.value(&key, visible, now_ms));
    if found == expected {
        return Ok(());
    }
    let key = String::from_utf8_lossy(&key);
    Err(format!("get {key} at LSN {visible}: {}, expected {}", brief(found.as_ref()), brief(expected.as_ref())))
}

/// Pins a moment, lets time pass, and reads as of then.
async fn snapshot(world: &Rc<World>, partition: &Rc<Partition>) -> Result<(), String> {
    let pin = partition.pin_latest();
    let moment = pin.moment();
    let wait_us = world.machine.draw(|random| random.u64(0..400_000));
    runtime::sleep(Duration::from_micros(wait_us)).await;
    let key = world.machine.draw(|random| world.key(random));
    let found = match partition.get_at(&key, &moment).await {
        Ok(found) => found,
        Err(cause) => {
            world.judge("get_at", &cause);
            return Ok(());
        }
    };
    let direction = if world.machine.draw(|random| random.bool()) { Direction::Forward } else { Direction::Backward };
    let limits = PageLimits { items: world.machine.draw(|random| random.usize(1..20)), bytes: usize::MAX };
    let page = match partition.page(&KeyRange::all(), direction, &moment, limits).await {
        Ok(page) => page,
        Err(cause) => {
            world.judge("page", &cause);
            return Ok(());
        }
    };
    let partitions = world.partitions.borrow();
    let Some(expected) = partitions.get(&partition.id()).map(|expected| &expected.history) else {
        return Ok(());
    };
    let value = expected.value(&key, moment.lsn, moment.wall_ms);
    if found != value {
        let key = String::from_utf8_lossy(&key);
        let (found, value) = (brief(found.as_ref()), brief(value.as_ref()));
        return Err(format!("get_at {key} of LSN {}: {found}, expected {value}", moment.lsn));
    }
    let (mut items, _) = expected.scan(&KeyRange::all(), usize::MAX, moment.lsn, moment.wall_ms);
    if direction == Direction::Backward {
        items.reverse();
    }
    let whole = page.rest.is_none();
    let fits = items.starts_with(&page.items) && (page.items.len() == items.len() || !whole);
    if fits {
        return Ok(());
    }
    let (found, expected) = (ScanPage { items: page.items, next: None }, ScanPage { items, next: None });
    Err(format!("a {direction:?} page, whole: {whole}: {}", difference(&found, &expected, moment.lsn)))
}

pub(super) async fn scan(
    world: &Rc<World>,
    partition: &Rc<Partition>,
    range: KeyRange,
    limit: usize,
) -> Result<(), String> {
    let (visible, now_ms) = (partition.visible(), clock::wall_ms());
    let page = match partition.scan(&range, limit).await {
        Ok(page) => page,
        Err(Error::Closed) if world.machine.is_dark() => return Ok(()),
        Err(cause) => {
            world.judge("scan", &cause);
            return Ok(());
        }
    };
    let partitions = world.partitions.borrow();
    let expected = partitions.get(&partition.id()).map(|found| found.history.scan(&range, limit, visible, now_ms));
    let (items, next) = expected.unwrap_or_default();
    let expected = ScanPage { items, next };
    if page == expected { Ok(()) } else { Err(difference(&page, &expected, visible)) }
}

/// The first place where two pages differ.
fn difference(found: &ScanPage, expected: &ScanPage, visible: Lsn) -> String {
    let index = found.items.iter().zip(&expected.items).take_while(|(found, expected)| found == expected).count();
    let show = |page: &ScanPage| match page.items.get(index) {
        Some(item) => format!("{}={}", String::from_utf8_lossy(&item.key), brief(Some(&item.value))),
        None => format!("the end, next {:?}", page.next),
    };
    format!("scan at LSN {visible}, item {index}: {}, expected {}", show(found), show(expected))
}

/// A value by its number and length.
fn brief(value: Option<&Bytes>) -> String {
    value.map_or_else(
        || "nothing".into(),
        |value| {
            let number = value.iter().take(8).rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
            format!("value {number} of {} bytes", value.len())
        },
    )
}
