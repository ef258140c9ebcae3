//! MULTI and WATCH: commands that run together, on keys of one partition.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::command::{Action, Local, Spec};
use super::connection::Connection;
use super::limits::{Budget, Charge};
use super::operation::{Operation, Outcome};
use super::reply::Reply;
use super::slot;
use super::step::{Step, Watched};

/// Commands of a transaction, and bytes of their arguments: an atomic batch is no larger.
const COMMANDS_MAX: usize = 16_384;
const BYTES_MAX: usize = 64 << 20;
/// Keys that a connection watches.
const WATCHED_MAX: usize = 16_384;
/// What a queued argument costs beside its bytes.
const ARGUMENT_BYTES: usize = 64;

/// What a connection has queued and watches.
pub(super) struct Transaction {
    is_open: bool,
    /// Something could not be queued: EXEC will refuse.
    is_broken: bool,
    queued: Vec<(&'static Spec, Vec<Bytes>)>,
    bytes: usize,
    watched: Vec<Watched>,
    charge: Charge,
}

impl Transaction {
    pub fn new(budget: &std::rc::Rc<Budget>) -> Transaction {
        Transaction {
            is_open: false,
            is_broken: false,
            queued: Vec::new(),
            bytes: 0,
            watched: Vec::new(),
            charge: Charge::nothing(budget),
        }
    }

    /// Whether a command is queued instead of run.
    pub fn takes(&self, spec: &Spec) -> bool {
        use Local::{Discard, Exec, Multi, Quit, Reset, Watch};
        let ends = matches!(spec.action, Action::Local(Discard | Exec | Multi | Quit | Reset | Watch));
        self.is_open && !ends
    }

    /// A command was refused: EXEC will refuse, too.
    pub fn break_off(&mut self) {
        self.is_broken |= self.is_open;
    }

    /// Queues a command. What it was read with is not kept in memory: its arguments are copied.
    pub fn queue(&mut self, spec: &'static Spec, args: &[Bytes]) -> Result<(), Reply> {
        let queued = self.try_queue(spec, args);
        self.is_broken |= queued.is_err();
        queued
    }

    fn try_queue(&mut self, spec: &'static Spec, args: &[Bytes]) -> Result<(), Reply> {
        if spec.has("no_multi") {
            return Err(Reply::error("ERR Command not allowed inside a transaction"));
        }
        let bytes = self.bytes + args.iter().map(|arg| arg.len() + ARGUMENT_BYTES).sum::<usize>();
        if self.queued.len() >= COMMANDS_MAX || bytes > BYTES_MAX {
            return Err(Reply::Error(format!(
                "ERR a transaction has at most {COMMANDS_MAX} commands and {BYTES_MAX} bytes"
            )));
        }
        self.charge.resize(bytes).map_err(|_| Reply::error("ERR no room for the transaction beside other clients"))?;
        self.bytes = bytes;
        self.queued.push((spec, args.iter().map(|arg| Bytes::copy_from_slice(arg)).collect()));
        Ok(())
    }

    fn forget_commands(&mut self) {
        (self.is_open, self.is_broken, self.bytes) = (false, false, 0);
        self.queued = Vec::new();
        // Less always fits.
        let _ = self.charge.resize(0);
    }

    /// Begins anew, as after RESET.
    pub fn forget(&mut self) {
        self.forget_commands();
        self.watched = Vec::new();
    }
}

impl Connection<'_> {
    pub(super) fn multi(&mut self) -> Reply {
        if self.transaction.is_open {
            return Reply::error("ERR MULTI calls can not be nested");
        }
        self.transaction.is_open = true;
        self.show_transaction();
        Reply::OK
    }

    pub(super) fn discard(&mut self) -> Reply {
        if !self.transaction.is_open {
            return Reply::error("ERR DISCARD without MULTI");
        }
        self.transaction.forget();
        self.show_transaction();
        Reply::OK
    }

    pub(super) fn unwatch(&mut self) -> Reply {
        self.transaction.watched = Vec::new();
        self.show_transaction();
        Reply::OK
    }

    /// Remembers the versions that keys have now. They survive a move: source and target hold the same history.
    pub(super) async fn watch(&mut self, keys: &[Bytes]) -> Reply {
        if self.transaction.is_open {
            return Reply::error("ERR WATCH inside MULTI is not allowed");
        }
        let known = &self.transaction.watched;
        let is_new = |key: &&Bytes| known.iter().all(|watched| watched.key != **key);
        let mut keys: Vec<Bytes> = keys.iter().filter(is_new).map(|key| Bytes::copy_from_slice(key)).collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Reply::OK;
        }
        if known.len() + keys.len() > WATCHED_MAX {
            return Reply::Error(format!("ERR a connection watches at most {WATCHED_MAX} keys"));
        }
        let slot = slot::slot_of(&keys[0]);
        match self.run_operation(Operation::See { keys: keys.clone() }).await {
            Ok(Outcome::Versions(versions)) if versions.len() == keys.len() => {
                let watched = keys.into_iter().zip(versions).map(|(key, seen)| Watched { key, seen });
                self.transaction.watched.extend(watched);
                self.show_transaction();
                Reply::OK
            }
            other => self.failure(slot, other),
        }
    }

    /// Runs what is queued: commands on keys in one atomic step, the others behind it.
    pub(super) async fn exec(&mut self) -> Reply {
        if !self.transaction.is_open {
            return Reply::error("ERR EXEC without MULTI");
        }
        let queued = std::mem::take(&mut self.transaction.queued);
        let watched = std::mem::take(&mut self.transaction.watched);
        let is_broken = self.transaction.is_broken;
        self.transaction.is_open = false;
        self.show_transaction();
        let reply = if is_broken {
            Reply::error("EXECABORT Transaction discarded because of previous errors.")
        } else {
            self.run_all(queued, watched).await
        };
        self.transaction.forget_commands();
        reply
    }

    async fn run_all(&mut self, queued: Vec<(&'static Spec, Vec<Bytes>)>, watched: Vec<Watched>) -> Reply {
        let is_keyed = |spec: &Spec| matches!(spec.action, Action::Keyed { .. });
        let calls: Vec<Vec<Bytes>> =
            queued.iter().filter(|(spec, _)| is_keyed(spec)).map(|(_, args)| args.clone()).collect();
        let mut replies = Vec::new();
        if !calls.is_empty() || !watched.is_empty() {
            let count = calls.len();
            let operation = Operation::Step(Arc::new(Step { calls, watched }));
            let (slot, writes) = (operation.slot(), operation.writes());
            match self.run_operation(operation).await {
                Ok(Outcome::Replies(found)) if found.len() == count => replies = found,
                Ok(Outcome::Conflict) => return Reply::NilArray,
                other => return self.failure(slot, other),
            }
            if writes {
                self.written_slot = Some(slot);
            }
        }
        let mut keyed = replies.into_iter();
        let mut answers = Vec::with_capacity(queued.len());
        for (spec, args) in &queued {
            answers.push(match spec.action {
                Action::Keyed { .. } => keyed.next().unwrap_or(Reply::Nil),
                Action::Local(local) => Box::pin(self.serve_local(local, args)).await,
            });
        }
        Reply::Array(answers)
    }

    fn show_transaction(&self) {
        let Transaction { is_open, queued, watched, .. } = &self.transaction;
        self.client.queued.store(if *is_open { queued.len() as i64 } else { -1 }, Relaxed);
        self.client.watched.store(watched.len(), Relaxed);
    }
}
