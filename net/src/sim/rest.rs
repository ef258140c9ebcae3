//! The beginning and the end of a run: the cluster is set up, and has to come to rest once nothing goes wrong any more.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use antumbra_engine::Serving;
use antumbra_engine::types::PartitionId;

use crate::coordinator::{self, Command, RecordState};
use crate::resp::slot::SLOTS;

use super::world::{Act, COORDINATOR, World};

const START_PATIENCE: Duration = Duration::from_secs(30);
/// Attempts have to have ended by then: the longest link time-out, stalled copies and read leases lie within it.
const REST_PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl World {
    /// Starts the hosts and creates the partitions.
    pub fn set_up(&mut self) -> Result<(), String> {
        (0..self.slots.len()).for_each(|place| self.start(place));
        self.run_until("the start", START_PATIENCE, |world| world.hosts_up().len() == world.slots.len())?;
        let partitions = self.shape.partitions;
        let done = Rc::new(Cell::new(false));
        let owners: Vec<u32> = (0..partitions).map(|_| self.random.u32(1..=self.slots.len() as u32)).collect();
        let slot = &self.slots[COORDINATOR];
        if let Some(host) = slot.host.borrow().clone() {
            let done = Rc::clone(&done);
            let _on = slot.node.enter();
            slot.node.spawn(async move {
                for (index, owner) in owners.into_iter().enumerate() {
                    let width = SLOTS / partitions as u16;
                    let slots = (index as u16 * width, (index as u16 + 1) * width - 1);
                    let command = Command::Create { partition: index as u64 + 1, keyspace: "sim".into(), slots, owner };
                    if host.coordinator.ask(command).await.is_err() {
                        return;
                    }
                }
                done.set(true);
            });
        }
        let served = move |world: &World| {
            let owned = |id| world.slots.iter().any(|slot| slot.node.serving(id) == Some(Serving::Owner));
            let mut hosts = world.slots.iter().map(|slot| slot.host.borrow().clone());
            let routed =
                hosts.all(|host| host.is_some_and(|host| host.routing.load().routes.len() == partitions as usize));
            done.get() && routed && (1..=partitions).map(PartitionId).all(owned)
        };
        self.run_until("the creation of the partitions", START_PATIENCE, served)
    }

    /// L1, and the reads that tell whether anything was lost.
    pub fn come_to_rest(&mut self) -> Result<(), String> {
        self.end_trouble();
        self.after(Duration::ZERO, Act::Look);
        self.run_until("what was under way", REST_PATIENCE, World::is_at_rest)?;
        self.check_moves()?;
        self.clients.begin_last_reads();
        let kept = self.clients.name_kept(self.conflicts());
        for key in (0..self.shape.keys).chain(kept) {
            self.read_last(key);
        }
        self.run_until("a read after everything has healed", REST_PATIENCE, |world| world.clients.are_done())
    }

    /// Every record is stable, its owner serves, nobody else has a copy, no move is under way.
    fn is_at_rest(&self) -> bool {
        self.why_no_rest().is_none()
    }

    fn why_no_rest(&self) -> Option<String> {
        if let Some(place) = self.slots.iter().position(|slot| !slot.is_up || slot.host.borrow().is_none()) {
            return Some(format!("host {} is not up", place + 1));
        }
        let records = self.records.borrow();
        let Some(records) = records.as_ref() else {
            return Some("the records cannot be read".into());
        };
        let merged = records.merged.keys().map(|id| PartitionId(*id));
        for id in merged {
            if let Some(place) = self.slots.iter().position(|slot| slot.node.serving(id).is_some()) {
                return Some(format!("partition {id}, a part of another one by now, is on host {}", place + 1));
            }
        }
        for record in records.records.values() {
            let id = PartitionId(record.partition);
            if record.state != RecordState::Stable || record.diverged.is_some() || record.former.is_some() {
                return Some(format!("{record:?}"));
            }
            for (place, slot) in self.slots.iter().enumerate() {
                let wanted = (place as u32 + 1 == record.owner).then_some(Serving::Owner);
                let found = slot.node.serving(id);
                let is_shaped =
                    slot.node.range(id).is_none_or(|range| range == crate::resp::slot::range_of(record.slots));
                if found != wanted || !is_shaped {
                    let (owner, epoch) = (record.owner, record.epoch);
                    return Some(format!(
                        "partition {id} of host {owner} in epoch {epoch} is {found:?} on host {}",
                        place + 1
                    ));
                }
            }
        }
        None
    }

    /// What keeps the run from going on, for people.
    pub fn stuck(&self) -> String {
        self.why_no_rest().map_or_else(String::new, |why| format!(": {why}"))
    }

    /// The records are read through any host, again and again.
    pub fn look(&mut self) {
        self.after(LOOK_EVERY, Act::Look);
        let slot = &self.slots[COORDINATOR];
        let Some(host) = slot.host.borrow().clone().filter(|_| slot.is_up) else {
            return;
        };
        let records = Rc::clone(&self.records);
        let _on = slot.node.enter();
        slot.node.spawn(async move {
            if let Ok(state) = coordinator::list(host.coordinator.as_ref()).await {
                *records.borrow_mut() = Some(state);
            }
        });
    }

    /// S1: what was compared after the hand-overs is equal.
    fn check_moves(&mut self) -> Result<(), String> {
        for report in self.moves.iter().filter_map(|handle| handle.report()) {
            self.counts.resumed += report.shadow.resumed;
            self.counts.roll_backs += u64::from(report.shadow.segments_on_base > 0);
            self.counts.segments_on_base += report.shadow.segments_on_base;
            if report.verify.segments > 0 && !report.verify.equal {
                return Err(format!("S1: source and target of attempt {} differ after the hand-over", report.attempt));
            }
        }
        if let Some(records) = self.records.borrow().as_ref() {
            for record in records.records.values() {
                let aborted =
                    record.history.iter().filter(|(_, outcome)| outcome.starts_with("aborted")).count() as u64;
                let moved = record.history.iter().filter(|(_, outcome)| outcome.starts_with("moved")).count() as u64;
                self.counts.aborts += aborted;
                self.counts.commits += moved;
            }
        }
        Ok(())
    }
}
