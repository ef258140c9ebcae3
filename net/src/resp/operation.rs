//! One request on the keys of one partition, wherever that is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::{HostId, KeyRange, PartitionId};
use antumbra_engine::{Durability, Engine, Error as EngineError, Partition, Shard, Write, Written, runtime};
use bytes::Bytes;

use crate::error::{Error, Result};
use crate::time;

use super::keyed::Deadline;
use super::reply::Reply;
use super::slot;
use super::step::{self, Step};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Reads a key.
    Get {
        /// Routing key.
        key: Bytes,
    },
    /// Writes a key, whatever it has.
    Set {
        /// Routing key.
        key: Bytes,
        /// Value.
        value: Bytes,
        /// When it ends.
        deadline: Deadline,
    },
    /// Runs commands on keys.
    Step(Arc<Step>),
    /// Tells the versions of keys.
    See {
        /// The keys, at least one.
        keys: Vec<Bytes>,
    },
    /// Lists keys.
    Page {
        /// Routing key to begin with, at least a slot.
        start: Bytes,
        /// Routing key to end before.
        end: Option<Bytes>,
        /// Keys at most.
        limit: usize,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// The value, if there is one.
    Value(Option<Bytes>),
    /// Written.
    Written,
    /// One for each command.
    Replies(Vec<Reply>),
    /// A watched key has changed; nothing was done.
    Conflict,
    /// The versions of keys.
    Versions(Vec<Option<Written>>),
    /// Routing keys, and where the next page begins.
    Keys(Vec<Bytes>, Option<Bytes>),
    /// Another host serves the key.
    Moved(HostId),
    /// The partition here is a shadow.
    Shadow {
        /// It will be promoted or discarded in a moment.
        ready: bool,
    },
    /// The partition is not here.
    Absent,
}

impl Operation {
    /// The slot that says which partition it is for.
    pub fn slot(&self) -> u16 {
        let of = |routing: &Bytes| u16::from_be_bytes([routing[0], routing[1]]);
        match self {
            Operation::Get { key } | Operation::Set { key, .. } | Operation::Page { start: key, .. } => of(key),
            Operation::Step(step) => step.first_key().map_or(0, |key| slot::slot_of(key)),
            Operation::See { keys } => keys.first().map_or(0, |key| slot::slot_of(key)),
        }
    }

    /// Whether it may change keys.
    pub fn writes(&self) -> bool {
        match self {
            Operation::Get { .. } | Operation::See { .. } | Operation::Page { .. } => false,
            Operation::Set { .. } => true,
            Operation::Step(step) => step.writes(),
        }
    }

    /// Runs in the partition that a route leads to; behind a split the route may be the parent's still.
    async fn apply_within(self, partition: Rc<Partition>) -> antumbra_engine::Result<Outcome> {
        if !partition.range().contains(&self.slot().to_be_bytes()) {
            return Err(EngineError::UnknownPartition { partition: partition.id() });
        }
        self.apply(partition).await
    }

    async fn apply(self, partition: Rc<Partition>) -> antumbra_engine::Result<Outcome> {
        match self {
            Operation::Get { key } => Ok(Outcome::Value(partition.get(&key).await?)),
            Operation::Set { key, value, deadline } => {
                let write = Write { key, value: Some(value), expires_at_ms: deadline.resolve(time::wall_ms()) };
                partition.write(write, Durability::Durable).await?;
                Ok(Outcome::Written)
            }
            Operation::Step(step) => step.apply(&partition).await,
            Operation::See { keys } => Ok(Outcome::Versions(step::see(&keys, &partition).await?)),
            Operation::Page { start, end, limit } => {
                let range = KeyRange { start: start.to_vec(), end: end.map(|end| end.to_vec()) };
                let page = partition.scan_keys(&range, limit).await?;
                // Behind a split the rest is another partition's.
                let ended = partition.range().end.as_ref();
                let is_short = ended.is_some_and(|ended| range.end.as_ref().is_none_or(|end| ended < end));
                let rest = ended.filter(|_| is_short).map(|ended| Bytes::copy_from_slice(ended));
                Ok(Outcome::Keys(page.items.into_iter().map(|item| item.key).collect(), page.next.or(rest)))
            }
        }
    }
}

/// Applies an operation to a partition of this host, on the shard that calls or on another one.
pub(crate) async fn apply_here(
    engine: &Engine,
    shard: &Rc<Shard>,
    id: PartitionId,
    operation: Operation,
) -> Result<Outcome> {
    let result = match shard.partition(id) {
        Ok(partition) => operation.apply_within(partition).await,
        Err(_) => match engine.partition(id) {
            Ok(partition) => partition.with(move |partition| operation.apply_within(partition)).await,
            Err(cause) => Err(cause),
        },
    };
    outcome(result)
}

/// As [`apply_here`], from a thread that is no shard; a shadow is waited for up to `patience`, since the host that
/// forwards has handed over already.
pub(crate) async fn apply_when_promoted(
    engine: &Engine,
    id: PartitionId,
    operation: Operation,
    patience: Duration,
) -> Result<Outcome> {
    const PAUSE: Duration = Duration::from_micros(100);
    let partition = match engine.partition(id) {
        Ok(partition) => partition,
        Err(cause) => return outcome(Err(cause)),
    };
    let result = partition
        .with(move |partition| async move {
            let mut waited = Duration::ZERO;
            loop {
                match operation.clone().apply_within(Rc::clone(&partition)).await {
                    Err(EngineError::NotOwner { .. }) if waited < patience => {
                        runtime::sleep(PAUSE).await;
                        waited += PAUSE;
                    }
                    other => return other,
                }
            }
        })
        .await;
    outcome(result)
}

fn outcome(result: antumbra_engine::Result<Outcome>) -> Result<Outcome> {
    match result {
        Ok(outcome) => Ok(outcome),
        Err(EngineError::Moved { owner, .. }) => Ok(Outcome::Moved(owner)),
        Err(EngineError::NotOwner { ready, .. }) => Ok(Outcome::Shadow { ready }),
        Err(EngineError::UnknownPartition { .. }) => Ok(Outcome::Absent),
        // What its first key leads to does not have all of its keys.
        Err(EngineError::WrongPartition { .. }) => Err(Error::Refused { what: CROSS_PARTITION.into() }),
        Err(cause) => Err(Error::Engine(cause)),
    }
}

/// What a client is told whose transaction names keys of several partitions.
pub(crate) const CROSS_PARTITION: &str = "CROSSSLOT Keys in request don't hash to the same slot or partition";
