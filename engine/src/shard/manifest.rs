//! The shard's manifest behind a task lock: edits are written off the core, one group after another.

use std::cell::RefCell;

use crate::error::{Error, Result};
use crate::event::TaskLock;
use crate::io::runtime;
use crate::manifest::{ManifestEdit, ManifestLog};

/// Appends edits durably without blocking the core.
pub(crate) struct ShardManifest {
    /// Away while a write is under way.
    log: RefCell<Option<ManifestLog>>,
    lock: TaskLock,
}

impl ShardManifest {
    pub fn new(log: ManifestLog) -> ShardManifest {
        ShardManifest { log: RefCell::new(Some(log)), lock: TaskLock::default() }
    }

    /// Makes the edits durable together.
    ///
    /// Errors: [`Error::Io`]; the log is latched and every later append fails too.
    /// Cancel: the edits are written all the same.
    pub async fn append(&self, edits: Vec<ManifestEdit>) -> Result<()> {
        let _guard = self.lock.lock().await;
        let Some(mut log) = self.log.borrow_mut().take() else {
            return Err(Error::Closed);
        };
        let (log, result) = runtime::unblock(move || {
            let result = log.append(&edits);
            (log, result)
        })
        .await;
        *self.log.borrow_mut() = Some(log);
        result
    }
}
