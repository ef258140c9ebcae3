//! Who owns which partition: one record per partition, changed only by compare-and-set.
//!
//! [`machine::Machine`] is the pure state machine over what `record` describes, [`embedded::Embedded`] keeps it durable in the engine's own store and
//! serves it, [`remote::Remote`] asks another node's, [`etcd`] applies it to the keys of an etcd cluster.

pub mod embedded;
pub mod etcd;
mod health;
pub mod machine;
mod record;
pub mod remote;

use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use health::{CoordinatorHealth, CoordinatorKind};
pub use machine::{Answer, Command};
pub use record::{ClusterState, Diverged, Former, HostInfo, Leader, Moving, PartitionRecord, RecordState};

/// A future of the coordinator.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Answer>> + Send + 'a>>;

/// The coordinator's state as a watch shows it, in order but perhaps late; nothing while it cannot be watched.
pub type Watching = tokio::sync::watch::Receiver<Option<Arc<ClusterState>>>;

/// Access to the coordinator. One method asks, so that every implementation takes the same commands in the same words.
pub trait Coordinator: Send + Sync {
    /// Applies a command.
    ///
    /// Errors: [`Error::Conflict`] when the record is not what the command assumes (nothing changed);
    /// [`Error::Unknown`] when the command may or may not have been applied: read the record again.
    fn ask(&self, command: Command) -> Asking<'_>;

    /// What is told without being asked for, where the coordinator does so.
    fn watching(&self) -> Option<Watching> {
        None
    }

    /// Whether it answers.
    fn health(&self) -> CoordinatorHealth;
}

/// What travels back over the wire.
#[derive(Serialize, Deserialize)]
pub(crate) enum Response {
    Answer(Answer),
    Conflict(String),
    Failed(String),
}

impl Response {
    fn into_result(self) -> Result<Answer> {
        match self {
            Response::Answer(answer) => Ok(answer),
            Response::Conflict(what) => Err(Error::Conflict { what }),
            Response::Failed(what) => Err(Error::Unknown { what }),
        }
    }
}

/// The present record of a partition.
///
/// # Errors
/// As [`Coordinator::ask`].
pub async fn read(coordinator: &dyn Coordinator, partition: u64) -> Result<PartitionRecord> {
    record(coordinator.ask(Command::Read { partition }).await?)
}

/// All records and hosts.
///
/// # Errors
/// As [`Coordinator::ask`].
pub async fn list(coordinator: &dyn Coordinator) -> Result<ClusterState> {
    match coordinator.ask(Command::List).await? {
        Answer::State(state) => Ok(state),
        Answer::Record(_) => Err(Error::protocol("a record instead of the list")),
    }
}

/// Applies a command that answers with a record.
///
/// # Errors
/// As [`Coordinator::ask`].
pub async fn change(coordinator: &dyn Coordinator, command: Command) -> Result<PartitionRecord> {
    record(coordinator.ask(command).await?)
}

fn record(answer: Answer) -> Result<PartitionRecord> {
    match answer {
        Answer::Record(record) => Ok(record),
        Answer::State(_) => Err(Error::protocol("the list instead of a record")),
    }
}
