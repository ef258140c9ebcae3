//! Clients: each asks one host after another for one operation at a time, and notes when it began and ended.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use antumbra_engine::types::ShardId;
use bytes::Bytes;

use crate::error::Error;
use crate::resp::keyed::Deadline;
use crate::resp::operation::{Operation as KeyOperation, Outcome};
use crate::resp::{execute, slot};
use crate::shadow::conflict::Conflict;

use super::history::{self, NOTHING, Operation, Value};
use super::network::Place;
use super::world::{Act, World};

/// Keys of clients have smaller numbers.
pub(super) const KEPT: u64 = 1 << 32;
/// A client that has waited for this long turns to something else.
const PATIENCE: Duration = Duration::from_secs(7);

/// What a client is told.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Read(Option<Bytes>),
    Written,
    /// An error, or a connection that was lost: a write may have taken place or may still do so.
    Failed(String),
}

/// An operation under way.
#[derive(Clone, Debug)]
struct Asked {
    client: usize,
    key: u64,
    operation: Operation,
    place: Place,
    life: u64,
}

pub(super) struct Clients {
    count: usize,
    wanted: usize,
    begun: usize,
    /// Shared by all clients: one moment after another.
    clock: u64,
    next_value: Value,
    open: BTreeMap<u64, Asked>,
    next_operation: u64,
    pub histories: BTreeMap<u64, Vec<Operation>>,
    /// What hosts have answered in this turn.
    answers: Rc<RefCell<Vec<(u64, Answer)>>>,
    /// Keys under which conflicts are kept, numbered from [`KEPT`] on.
    pub kept: Vec<Conflict>,
    /// Everything has healed: each key is read once more, however often it takes. A host may still know a connection to an
    /// earlier life of another one, which shows with its first use.
    last_reads: bool,
}

impl Clients {
    pub fn new(count: usize, wanted: usize) -> Clients {
        Clients {
            count,
            wanted,
            begun: 0,
            clock: 0,
            next_value: NOTHING,
            open: BTreeMap::new(),
            next_operation: 0,
            histories: BTreeMap::new(),
            answers: Rc::default(),
            kept: Vec::new(),
            last_reads: false,
        }
    }

    pub fn take_answers(&self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut *self.answers.borrow_mut())
    }

    pub fn are_done(&self) -> bool {
        self.begun >= self.wanted && self.open.is_empty()
    }

    /// Numbers for the keys under which versions were kept beside others.
    pub fn name_kept(&mut self, conflicts: Vec<Conflict>) -> std::ops::Range<u64> {
        self.kept = conflicts.into_iter().filter(|conflict| conflict.kept_at.is_some()).collect();
        KEPT..KEPT + self.kept.len() as u64
    }

    fn key_of(&self, number: u64) -> Vec<u8> {
        let kept = number.checked_sub(KEPT).and_then(|index| self.kept[index as usize].kept_at.as_ref());
        kept.map_or_else(|| key_of(number), |key| slot::routing_key(key.as_bytes()))
    }

    pub fn begin_last_reads(&mut self) {
        self.last_reads = true;
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The key of a number, in the first or the second half of the slots: each partition has some.
pub(super) fn key_of(number: u64) -> Vec<u8> {
    slot::routing_key(format!("key{number}").as_bytes())
}

/// Values are their number, padded.
fn number_of(value: Option<&Bytes>) -> Value {
    value.map_or(NOTHING, |value| value.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

impl World {
    pub fn begin_load(&mut self) {
        for client in 0..self.clients.count {
            let us = self.random.u64(0..20_000);
            self.after(Duration::from_micros(us), Act::Ask(client));
        }
    }

    pub fn client_delay(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(20..800))
    }

    /// A client begins its next operation, if there is one.
    pub fn ask(&mut self, client: usize) {
        if self.now > self.profile.load_max {
            self.clients.begun = self.clients.wanted;
        }
        if self.clients.begun >= self.clients.wanted {
            return;
        }
        let up: Vec<Place> = self.hosts_up();
        if up.is_empty() {
            return self.after(Duration::from_millis(5), Act::Ask(client));
        }
        self.clients.begun += 1;
        self.counts.operations += 1;
        let place = up[self.random.usize(0..up.len())];
        let key = self.random.u64(0..self.shape.keys);
        let writes = self.random.bool();
        self.begin_operation(client, key, writes, place);
    }

    pub fn hosts_up(&self) -> Vec<Place> {
        let up = |(_, slot): &(usize, &super::world::Slot)| slot.is_up && slot.host.borrow().is_some();
        self.slots.iter().enumerate().filter(up).map(|(place, _)| place).collect()
    }

    pub fn begin_operation(&mut self, client: usize, key: u64, writes: bool, place: Place) {
        let begin = self.clients.tick();
        let value = if writes {
            self.clients.next_value += 1;
            self.clients.next_value
        } else {
            NOTHING
        };
        self.clients.next_operation += 1;
        let id = self.clients.next_operation;
        let operation = Operation { writes, value, begin, end: None };
        let life = self.slots[place].life;
        self.clients.open.insert(id, Asked { client, key, operation, place, life });
        let delay = self.client_delay();
        self.after(delay, Act::Request(id));
        self.after(PATIENCE, Act::GiveUp(id));
    }

    /// A request is at its host.
    pub fn request(&mut self, id: u64) {
        let Some(asked) = self.clients.open.get(&id).cloned() else {
            return;
        };
        let slot = &self.slots[asked.place];
        let host = slot.host.borrow().clone().filter(|_| slot.is_up && slot.life == asked.life);
        let Some(host) = host else {
            let delay = self.client_delay();
            return self.after(delay, Act::Answer(id, Answer::Failed("connection refused".into())));
        };
        let key = Bytes::from(self.clients.key_of(asked.key));
        let operation = if asked.operation.writes {
            let len = self.random.usize(8..self.shape.value_len_max);
            let mut value = asked.operation.value.to_le_bytes().to_vec();
            value.resize(len, self.random.u8(..));
            KeyOperation::Set { key, value: value.into(), deadline: Deadline::None }
        } else {
            KeyOperation::Get { key }
        };
        let answers = Rc::clone(&self.clients.answers);
        let slot = &self.slots[asked.place];
        let _on = slot.node.enter();
        slot.node.spawn(async move {
            let engine = host.engine.clone();
            let on_shard = engine.on_shard(ShardId(0), move |shard| async move {
                execute::run(&host, &shard, operation, false, || {}).await
            });
            let answer = match on_shard.await.map_err(Error::from).and_then(|outcome| outcome) {
                Ok(Outcome::Value(value)) => Answer::Read(value),
                Ok(Outcome::Written) => Answer::Written,
                Ok(other) => Answer::Failed(format!("{other:?}")),
                Err(cause) => Answer::Failed(cause.to_string()),
            };
            if !antumbra_engine::sim::is_dark() {
                answers.borrow_mut().push((id, answer));
            }
        });
    }

    /// An answer is at its client.
    pub fn answer(&mut self, id: u64, answer: Answer) {
        let Some(asked) = self.clients.open.remove(&id) else {
            return;
        };
        let end = self.clients.tick();
        let Asked { client, key, mut operation, .. } = asked;
        match &answer {
            Answer::Read(value) => {
                operation.value = number_of(value.as_ref());
                operation.end = Some(end);
            }
            Answer::Written => operation.end = Some(end),
            Answer::Failed(what) => {
                self.counts.unknown += 1;
                self.complain(|| format!("a client is told of an error although nothing went wrong: {what}"));
            }
        }
        self.tell(|_| {
            let Operation { writes, value, begin, .. } = operation;
            let verb = if writes { "writes" } else { "reads" };
            let outcome = if let Answer::Failed(what) = &answer { what.as_str() } else { "done" };
            format!("client {client} {verb} key{key} = {value} at host {} [{begin}, {end}]: {outcome}", asked.place + 1)
        });
        self.clients.histories.entry(key).or_default().push(operation);
        if self.clients.last_reads && operation.end.is_none() {
            self.read_last(key);
        }
        self.next_after(client);
    }

    /// Reads a key after everything has healed, through any host.
    pub fn read_last(&mut self, key: u64) {
        let place = self.random.usize(0..self.slots.len());
        self.begin_operation(self.clients.count, key, false, place);
    }

    pub fn give_up(&mut self, id: u64) {
        if let Some(asked) = self.clients.open.remove(&id) {
            self.counts.unknown += 1;
            self.complain(|| "a client waits for too long although nothing goes wrong".into());
            self.tell(|_| format!("client {} waits no longer for key{}", asked.client, asked.key));
            self.clients.histories.entry(asked.key).or_default().push(asked.operation);
            self.next_after(asked.client);
        }
    }

    fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.is_calm {
            self.complaint.get_or_insert_with(what);
        }
    }

    fn next_after(&mut self, client: usize) {
        let us = self.random.u64(0..self.profile.think.as_micros() as u64);
        self.after(Duration::from_micros(us), Act::Ask(client));
    }

    /// The connections to a host are lost.
    pub fn lose_requests(&mut self, place: Place) {
        let lost = self.clients.open.iter().filter(|(_, asked)| asked.place == place);
        let lost: Vec<u64> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            let delay = self.client_delay();
            self.after(delay, Act::Answer(id, Answer::Failed("connection lost".into())));
        }
    }

    pub fn check_histories(&self) -> Result<(), String> {
        let whole = self.clients.histories.iter().filter(|(key, _)| **key < KEPT && !self.is_forced(**key));
        for (key, operations) in whole {
            history::check(operations).map_err(|what| format!("key{key}: {what}"))?;
        }
        Ok(())
    }
}
