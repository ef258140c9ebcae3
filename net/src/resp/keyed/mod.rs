//! What the commands do to keys: without I/O, on the states that somebody has read, so that the same code serves a
//! command alone, in a transaction, on the shard of the connection, on another one, and on another host.
//!
//! A value is a string of bytes with a deadline or without; there are no other types.

mod expire;
mod number;
mod range;
mod value;

use std::collections::BTreeMap;

use antumbra_engine::Write;
use antumbra_engine::record::RecordView;
use bytes::Bytes;

use super::reply::Reply;
use super::slot;

pub(super) use expire::{expire, expireat, expiretime, persist, pexpire, pexpireat, pexpiretime, pttl, ttl};
pub(super) use number::{decr, decrby, incr, incrby, incrbyfloat};
pub(super) use range::{append, getrange, setrange, strlen};
pub(super) use value::{
    copy, del, exists, get, getdel, getex, getset, mget, mset, msetnx, object, psetex, rename, renamenx, set, setex,
    setnx, type_of,
};
pub(crate) use value::{parse_deadline, parse_set};

/// An error reply of a command; nothing was changed by it.
pub(crate) type Answer = Result<Reply, Reply>;

/// A command on keys: looks at them, changes them, answers.
pub(crate) type Handler = fn(&mut Keys, &[Bytes]) -> Answer;

/// When a value ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// Never.
    #[default]
    None,
    /// At this time, in milliseconds since the Unix epoch.
    At(u64),
    /// This many milliseconds after it was written, by the owner's clock.
    In(u64),
}

impl Deadline {
    /// In milliseconds since the Unix epoch; 0 = never.
    pub fn resolve(self, now_ms: u64) -> u64 {
        match self {
            Deadline::None => 0,
            Deadline::At(at_ms) => at_ms,
            Deadline::In(ms) => now_ms.saturating_add(ms),
        }
    }
}

/// A live key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Bytes of the value.
    pub len: usize,
    /// The value; absent where only its length was asked for.
    pub value: Option<Bytes>,
    /// Deadline in milliseconds since the Unix epoch; 0 = none.
    pub expires_at_ms: u64,
}

impl Entry {
    /// Takes from a record what is needed.
    pub fn of(record: RecordView<'_>, with_value: bool) -> Entry {
        let value = with_value.then(|| Bytes::copy_from_slice(record.value));
        Entry { len: record.value.len(), value, expires_at_ms: record.expires_at_ms }
    }

    /// The value.
    pub fn value(&self) -> Result<&Bytes, Reply> {
        self.value.as_ref().ok_or_else(|| Reply::error("ERR internal: the value was not read"))
    }
}

#[derive(Debug)]
struct State {
    entry: Option<Entry>,
    is_changed: bool,
}

/// The keys of one atomic step, and what its commands have made of them so far.
#[derive(Debug)]
pub(crate) struct Keys {
    /// By routing key.
    states: BTreeMap<Bytes, State>,
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
}

impl Keys {
    /// Keys as they were read, by routing key.
    pub fn new(found: impl IntoIterator<Item = (Bytes, Option<Entry>)>, now_ms: u64) -> Keys {
        let states = found.into_iter().map(|(key, entry)| (key, State { entry, is_changed: false }));
        Keys { states: states.collect(), now_ms }
    }

    /// What a key has.
    pub fn find(&self, key: &[u8]) -> Option<&Entry> {
        self.states.get(slot::routing_key(key).as_slice()).and_then(|state| state.entry.as_ref())
    }

    /// Sets a key.
    pub fn put(&mut self, key: &[u8], value: Bytes, expires_at_ms: u64) {
        // A deadline in the past is a deletion.
        if expires_at_ms != 0 && expires_at_ms <= self.now_ms {
            self.delete(key);
            return;
        }
        let entry = Some(Entry { len: value.len(), value: Some(value), expires_at_ms });
        self.states.insert(slot::routing_key(key).into(), State { entry, is_changed: true });
    }

    /// Deletes a key; false when it was not there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        match self.states.get_mut(slot::routing_key(key).as_slice()) {
            Some(state) if state.entry.is_some() => {
                *state = State { entry: None, is_changed: true };
                true
            }
            _ => false,
        }
    }

    /// What is to be written. A step whose changes cancel out writes them all the same.
    pub fn into_writes(self) -> Result<Vec<Write>, Reply> {
        let mut writes = Vec::new();
        for (key, state) in self.states.into_iter().filter(|(_, state)| state.is_changed) {
            writes.push(match state.entry {
                Some(entry) => Write { value: Some(entry.value()?.clone()), expires_at_ms: entry.expires_at_ms, key },
                None => Write::delete(key),
            });
        }
        Ok(writes)
    }
}

pub(super) fn syntax() -> Reply {
    Reply::error("ERR syntax error")
}

pub(super) fn not_an_integer() -> Reply {
    Reply::error("ERR value is not an integer or out of range")
}

/// A number as Redis takes it: no leading zero, plus sign or space.
pub(crate) fn parse_integer(bytes: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = text == "0" || (digits.starts_with(|first: char| ('1'..='9').contains(&first)));
    if canonical { text.parse().ok() } else { None }
}

pub(super) fn integer_arg(bytes: &[u8]) -> Result<i64, Reply> {
    parse_integer(bytes).ok_or_else(not_an_integer)
}

/// The longest value, worded as Redis does.
pub(super) fn check_len(len: usize) -> Result<(), Reply> {
    if len > antumbra_engine::limits::VALUE_LEN_MAX {
        return Err(Reply::Error(format!(
            "ERR string exceeds maximum allowed size ({} bytes)",
            antumbra_engine::limits::VALUE_LEN_MAX
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
