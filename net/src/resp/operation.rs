//! One operation on one key, wherever its partition is.

use std::rc::Rc;
use std::time::Duration;

use antumbra_engine::types::{HostId, PartitionId};
use antumbra_engine::{Durability, Engine, Error as EngineError, Partition, Shard, Write, runtime};
use bytes::Bytes;

use crate::error::{Error, Result};

/// What is to be done with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Read it.
    Get {
        /// Routing key.
        key: Bytes,
    },
    /// Write it.
    Set {
        /// Routing key.
        key: Bytes,
        /// Value.
        value: Bytes,
        /// Deadline in milliseconds since the Unix epoch; 0 = none.
        expires_at_ms: u64,
    },
    /// Delete it.
    Delete {
        /// Routing key.
        key: Bytes,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The value, if there is one.
    Value(Option<Bytes>),
    /// Written.
    Written,
    /// Whether there was something to delete.
    Deleted(bool),
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
    /// The routing key.
    pub fn key(&self) -> &Bytes {
        match self {
            Operation::Get { key } | Operation::Set { key, .. } | Operation::Delete { key } => key,
        }
    }

    /// The slot.
    pub fn slot(&self) -> u16 {
        u16::from_be_bytes([self.key()[0], self.key()[1]])
    }

    async fn apply(self, partition: Rc<Partition>) -> antumbra_engine::Result<Outcome> {
        match self {
            Operation::Get { key } => Ok(Outcome::Value(partition.get(&key).await?)),
            Operation::Set { key, value, expires_at_ms } => {
                let write = Write { key, value: Some(value), expires_at_ms };
                partition.write(write, Durability::Durable).await?;
                Ok(Outcome::Written)
            }
            Operation::Delete { key } => {
                // A key that is not there needs no tombstone.
                if partition.get(&key).await?.is_none() {
                    return Ok(Outcome::Deleted(false));
                }
                partition.write(Write::delete(key), Durability::Durable).await?;
                Ok(Outcome::Deleted(true))
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
        Ok(partition) => operation.apply(partition).await,
        Err(_) => match engine.partition(id) {
            Ok(partition) => partition.with(move |partition| operation.apply(partition)).await,
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
    const PAUSE: Duration = Duration::from_micros(500);
    let partition = match engine.partition(id) {
        Ok(partition) => partition,
        Err(cause) => return outcome(Err(cause)),
    };
    let result = partition
        .with(move |partition| async move {
            let mut waited = Duration::ZERO;
            loop {
                match operation.clone().apply(Rc::clone(&partition)).await {
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
        Err(cause) => Err(Error::Engine(cause)),
    }
}
