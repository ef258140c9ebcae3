//! Deadlines.

use bytes::Bytes;

use super::super::reply::Reply;
use super::{Answer, Keys, integer_arg};

pub(crate) fn expire(keys: &mut Keys, args: &[Bytes]) -> Answer {
    set_deadline(keys, args, "expire", 1_000, true)
}

pub(crate) fn pexpire(keys: &mut Keys, args: &[Bytes]) -> Answer {
    set_deadline(keys, args, "pexpire", 1, true)
}

pub(crate) fn expireat(keys: &mut Keys, args: &[Bytes]) -> Answer {
    set_deadline(keys, args, "expireat", 1_000, false)
}

pub(crate) fn pexpireat(keys: &mut Keys, args: &[Bytes]) -> Answer {
    set_deadline(keys, args, "pexpireat", 1, false)
}

/// Under which condition a deadline is set. NX goes with none of the others, GT not with LT.
#[derive(Clone, Copy, Debug, Default)]
struct Only {
    absent: bool,
    present: bool,
    greater: bool,
    less: bool,
}

impl Only {
    fn parse(words: &[Bytes]) -> Result<Only, Reply> {
        let mut only = Only::default();
        for word in words {
            match word.to_ascii_lowercase().as_slice() {
                b"nx" => only.absent = true,
                b"xx" => only.present = true,
                b"gt" => only.greater = true,
                b"lt" => only.less = true,
                other => {
                    let word: String = String::from_utf8_lossy(other).chars().take(128).collect();
                    return Err(Reply::Error(format!("ERR Unsupported option {word}")));
                }
            }
        }
        if only.absent && (only.present || only.greater || only.less) {
            return Err(Reply::error("ERR NX and XX, GT or LT options at the same time are not compatible"));
        }
        if only.greater && only.less {
            return Err(Reply::error("ERR GT and LT options at the same time are not compatible"));
        }
        Ok(only)
    }

    /// No deadline counts as one that never comes.
    fn allows(self, before_ms: u64, after_ms: u64) -> bool {
        let has_deadline = before_ms != 0;
        !(self.absent && has_deadline
            || self.present && !has_deadline
            || self.greater && (!has_deadline || after_ms <= before_ms)
            || self.less && has_deadline && after_ms >= before_ms)
    }
}

fn set_deadline(keys: &mut Keys, args: &[Bytes], command: &str, scale: i64, is_relative: bool) -> Answer {
    let only = Only::parse(&args[3..])?;
    let invalid = || Reply::Error(format!("ERR invalid expire time in '{command}' command"));
    let number = integer_arg(&args[2])?.checked_mul(scale).ok_or_else(invalid)?;
    let base = if is_relative { keys.now_ms as i64 } else { 0 };
    let at_ms = number.checked_add(base).ok_or_else(invalid)?;
    let Some(entry) = keys.find(&args[1]) else {
        return Ok(Reply::Integer(0));
    };
    // A time before the epoch has passed as well as any other.
    let at_ms = at_ms.max(1) as u64;
    if !only.allows(entry.expires_at_ms, at_ms) {
        return Ok(Reply::Integer(0));
    }
    if at_ms != entry.expires_at_ms {
        let value = entry.value()?.clone();
        keys.put(&args[1], value, at_ms);
    }
    Ok(Reply::Integer(1))
}

pub(crate) fn persist(keys: &mut Keys, args: &[Bytes]) -> Answer {
    match keys.find(&args[1]) {
        Some(entry) if entry.expires_at_ms != 0 => {
            let value = entry.value()?.clone();
            keys.put(&args[1], value, 0);
            Ok(Reply::Integer(1))
        }
        _ => Ok(Reply::Integer(0)),
    }
}

pub(crate) fn ttl(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let now_ms = keys.now_ms;
    // Rounded, as Redis does.
    deadline(keys, args, |at_ms| (at_ms.saturating_sub(now_ms) + 500) / 1_000)
}

pub(crate) fn pttl(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let now_ms = keys.now_ms;
    deadline(keys, args, |at_ms| at_ms.saturating_sub(now_ms))
}

pub(crate) fn expiretime(keys: &mut Keys, args: &[Bytes]) -> Answer {
    deadline(keys, args, |at_ms| (at_ms + 500) / 1_000)
}

pub(crate) fn pexpiretime(keys: &mut Keys, args: &[Bytes]) -> Answer {
    deadline(keys, args, |at_ms| at_ms)
}

fn deadline(keys: &mut Keys, args: &[Bytes], told: impl Fn(u64) -> u64) -> Answer {
    Ok(Reply::Integer(match keys.find(&args[1]) {
        None => -2,
        Some(entry) if entry.expires_at_ms == 0 => -1,
        Some(entry) => told(entry.expires_at_ms) as i64,
    }))
}
