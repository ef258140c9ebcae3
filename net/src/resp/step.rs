//! Commands that run together on keys of one partition: one command, or a transaction.

use std::cell::Cell;
use std::collections::BTreeMap;

use antumbra_engine::record::RecordView;
use antumbra_engine::{Durability, Partition, Written};
use bytes::Bytes;

use crate::time;

use super::command::{self, Action, Spec};
use super::keyed::{Entry, Keys};
use super::operation::Outcome;
use super::reply::Reply;
use super::slot;

/// Bytes of values that one step reads.
pub(crate) const STEP_READ_BYTES_MAX: usize = 64 << 20;

/// A key as somebody who watches it has seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// The key.
    pub key: Bytes,
    /// The write that left what it has; `None` when it was absent.
    pub seen: Option<Written>,
}

/// The commands of a step, and what must not have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Commands on keys, with their arguments.
    pub calls: Vec<Vec<Bytes>>,
    /// Keys that must be as they were seen.
    pub watched: Vec<Watched>,
}

/// What a step needs to know of a key.
#[derive(Clone, Debug, Default)]
struct Seen {
    entry: Option<Entry>,
    written: Option<Written>,
}

/// A step whose commands are found, and its keys.
struct Plan<'a> {
    calls: Vec<(&'static Spec, &'a [Bytes])>,
    /// Routing keys, and whether the value is needed.
    keys: Vec<(Bytes, bool)>,
    writes: bool,
}

impl Step {
    /// A single command.
    pub fn of(args: Vec<Bytes>) -> Step {
        Step { calls: vec![args], watched: Vec::new() }
    }

    /// Some key of it.
    pub fn first_key(&self) -> Option<&Bytes> {
        let keys = self.calls.iter().filter_map(|args| {
            let (_, spec) = command::by_name(args.first()?)?;
            spec.keys_of(args).next()
        });
        keys.chain(self.watched.iter().map(|watched| &watched.key)).next()
    }

    /// Whether it may change keys.
    pub fn writes(&self) -> bool {
        self.calls.iter().filter_map(|args| command::by_name(args.first()?)).any(|(_, spec)| spec.writes())
    }

    /// Fails for what is no command on keys, or has the wrong number of arguments: it may come from another host.
    fn plan(&self) -> Result<Plan<'_>, Reply> {
        let mut keys: BTreeMap<Bytes, bool> = BTreeMap::new();
        let mut calls = Vec::with_capacity(self.calls.len());
        let mut writes = false;
        for args in &self.calls {
            if args.is_empty() {
                return Err(Reply::error("ERR empty command"));
            }
            let (_, spec) = command::find(args)?;
            let Action::Keyed { with_values, .. } = spec.action else {
                return Err(Reply::Error(format!("ERR '{}' is no command on keys", spec.name)));
            };
            for key in spec.keys_of(args) {
                *keys.entry(slot::routing_key(key).into()).or_default() |= with_values;
            }
            writes |= spec.writes();
            calls.push((spec, args.as_slice()));
        }
        for watched in &self.watched {
            keys.entry(slot::routing_key(&watched.key).into()).or_default();
        }
        Ok(Plan { calls, keys: keys.into_iter().collect(), writes })
    }

    /// Runs it beside its partition: as one atomic write, or as reads of one moment.
    pub async fn apply(&self, partition: &Partition) -> antumbra_engine::Result<Outcome> {
        let plan = match self.plan() {
            Ok(plan) => plan,
            Err(reply) => return Ok(Outcome::Replies(vec![reply])),
        };
        let copied = Cell::new(0);
        let look = |index: usize, record: Option<RecordView<'_>>| {
            if index == 0 {
                // The step is tried again.
                copied.set(0);
            }
            let with_value = plan.keys[index].1;
            let Some(record) = record else { return Seen::default() };
            copied.set(copied.get() + if with_value { record.value.len() } else { 0 });
            let with_value = with_value && copied.get() <= STEP_READ_BYTES_MAX;
            let written = Some(Written { lsn: record.lsn, hlc: record.hlc });
            Seen { entry: Some(Entry::of(record, with_value)), written }
        };
        if plan.writes || !self.watched.is_empty() {
            let keys: Vec<Bytes> = plan.keys.iter().map(|(key, _)| key.clone()).collect();
            let decide = |seen: &[Seen]| {
                let too_much = copied.get() > STEP_READ_BYTES_MAX;
                self.decide(&plan, seen.to_vec(), too_much)
            };
            return partition.read_modify_write(&keys, Durability::Durable, look, decide).await;
        }
        partition.wait_readable().await?;
        let pin = partition.pin_latest();
        let mut seen = Vec::with_capacity(plan.keys.len());
        for (index, (key, _)) in plan.keys.iter().enumerate() {
            seen.push(partition.read_record_at(key, &pin.moment(), |record| look(index, record)).await?);
        }
        Ok(self.decide(&plan, seen, copied.get() > STEP_READ_BYTES_MAX).1)
    }

    /// What is to be written, and the outcome.
    fn decide(&self, plan: &Plan<'_>, seen: Vec<Seen>, too_much: bool) -> (Vec<antumbra_engine::Write>, Outcome) {
        if too_much {
            let what =
                format!("ERR the command reads more than {STEP_READ_BYTES_MAX} bytes of values: ask for fewer keys");
            return (Vec::new(), Outcome::Replies(vec![Reply::Error(what); self.calls.len()]));
        }
        let place = |key: &[u8]| plan.keys.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok();
        let unchanged = self.watched.iter().all(|watched| {
            let found = place(&slot::routing_key(&watched.key)).and_then(|place| seen[place].written);
            found == watched.seen
        });
        if !unchanged {
            return (Vec::new(), Outcome::Conflict);
        }
        let found = plan.keys.iter().zip(seen).map(|((key, _), seen)| (key.clone(), seen.entry));
        let mut keys = Keys::new(found, time::wall_ms());
        let mut replies = Vec::with_capacity(plan.calls.len());
        for (spec, args) in &plan.calls {
            let Action::Keyed { run, .. } = spec.action else { continue };
            replies.push(run(&mut keys, args).unwrap_or_else(|refusal| refusal));
        }
        match keys.into_writes() {
            Ok(writes) => (writes, Outcome::Replies(replies)),
            Err(reply) => (Vec::new(), Outcome::Replies(vec![reply; self.calls.len()])),
        }
    }
}

/// What keys have now, for somebody who watches them.
pub(crate) async fn see(keys: &[Bytes], partition: &Partition) -> antumbra_engine::Result<Vec<Option<Written>>> {
    partition.wait_readable().await?;
    let pin = partition.pin_latest();
    let mut seen = Vec::with_capacity(keys.len());
    for key in keys {
        let written =
            |record: Option<RecordView<'_>>| record.map(|record| Written { lsn: record.lsn, hlc: record.hlc });
        seen.push(partition.read_record_at(&slot::routing_key(key), &pin.moment(), written).await?);
    }
    Ok(seen)
}
