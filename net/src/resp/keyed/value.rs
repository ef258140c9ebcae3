//! Whole values: read, set, deleted, renamed.

use bytes::Bytes;

use super::super::reply::Reply;
use super::{Answer, Deadline, Entry, Keys, check_len, parse_integer, syntax};

/// Longest string that Redis stores beside its header.
const EMBEDDED_LEN_MAX: usize = 44;

fn bulk_of(entry: Option<&Entry>) -> Answer {
    entry.map_or(Ok(Reply::Nil), |entry| entry.value().cloned().map(Reply::Bulk))
}

pub(crate) fn get(keys: &mut Keys, args: &[Bytes]) -> Answer {
    bulk_of(keys.find(&args[1]))
}

pub(crate) fn mget(keys: &mut Keys, args: &[Bytes]) -> Answer {
    Ok(Reply::Array(args[1..].iter().map(|key| bulk_of(keys.find(key))).collect::<Result<_, _>>()?))
}

pub(crate) fn exists(keys: &mut Keys, args: &[Bytes]) -> Answer {
    Ok(Reply::Integer(args[1..].iter().filter(|key| keys.find(key).is_some()).count() as i64))
}

pub(crate) fn del(keys: &mut Keys, args: &[Bytes]) -> Answer {
    Ok(Reply::Integer(args[1..].iter().filter(|key| keys.delete(key)).count() as i64))
}

pub(crate) fn type_of(keys: &mut Keys, args: &[Bytes]) -> Answer {
    Ok(Reply::status(if keys.find(&args[1]).is_some() { "string" } else { "none" }))
}

/// When SET writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    Always,
    IfAbsent,
    IfPresent,
}

/// The options of SET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetOptions {
    only: Only,
    returns_old: bool,
    keeps_deadline: bool,
    /// When the value ends.
    pub deadline: Deadline,
}

impl SetOptions {
    /// Whether nothing has to be read.
    pub fn is_blind(&self) -> bool {
        self.only == Only::Always && !self.returns_old && !self.keeps_deadline
    }
}

/// The options behind `SET key value`.
pub(crate) fn parse_set(args: &[Bytes]) -> Result<SetOptions, Reply> {
    let mut options =
        SetOptions { only: Only::Always, returns_old: false, keeps_deadline: false, deadline: Deadline::None };
    let mut rest = args[3..].iter();
    while let Some(word) = rest.next() {
        match word.to_ascii_lowercase().as_slice() {
            b"nx" if options.only != Only::IfPresent => options.only = Only::IfAbsent,
            b"xx" if options.only != Only::IfAbsent => options.only = Only::IfPresent,
            b"get" => options.returns_old = true,
            b"keepttl" if options.deadline == Deadline::None => options.keeps_deadline = true,
            unit @ (b"ex" | b"px" | b"exat" | b"pxat")
                if options.deadline == Deadline::None && !options.keeps_deadline =>
            {
                options.deadline = parse_deadline(unit, rest.next().ok_or_else(syntax)?, "set")?;
            }
            _ => return Err(syntax()),
        }
    }
    Ok(options)
}

/// `EX 10` and the like.
pub(crate) fn parse_deadline(unit: &[u8], number: &Bytes, command: &str) -> Result<Deadline, Reply> {
    let invalid = || Reply::Error(format!("ERR invalid expire time in '{command}' command"));
    let number = super::integer_arg(number)?;
    let number = u64::try_from(number).ok().filter(|number| *number > 0).ok_or_else(invalid)?;
    let scale = if matches!(unit, b"ex" | b"exat") { 1_000 } else { 1 };
    let ms = number.checked_mul(scale).filter(|ms| *ms <= i64::MAX as u64 / 2).ok_or_else(invalid)?;
    Ok(if matches!(unit, b"exat" | b"pxat") { Deadline::At(ms) } else { Deadline::In(ms) })
}

pub(crate) fn set(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let options = parse_set(args)?;
    check_len(args[2].len())?;
    let old = keys.find(&args[1]).cloned();
    let writes = match options.only {
        Only::Always => true,
        Only::IfAbsent => old.is_none(),
        Only::IfPresent => old.is_some(),
    };
    if writes {
        let kept = old.as_ref().filter(|_| options.keeps_deadline).map(|old| old.expires_at_ms);
        let expires_at_ms = kept.unwrap_or_else(|| options.deadline.resolve(keys.now_ms));
        keys.put(&args[1], args[2].clone(), expires_at_ms);
    }
    match (options.returns_old, writes) {
        (true, _) => bulk_of(old.as_ref()),
        (false, true) => Ok(Reply::OK),
        (false, false) => Ok(Reply::Nil),
    }
}

pub(crate) fn setnx(keys: &mut Keys, args: &[Bytes]) -> Answer {
    check_len(args[2].len())?;
    let is_absent = keys.find(&args[1]).is_none();
    if is_absent {
        keys.put(&args[1], args[2].clone(), 0);
    }
    Ok(Reply::Integer(i64::from(is_absent)))
}

pub(crate) fn setex(keys: &mut Keys, args: &[Bytes]) -> Answer {
    set_with_deadline(keys, args, b"ex", "setex")
}

pub(crate) fn psetex(keys: &mut Keys, args: &[Bytes]) -> Answer {
    set_with_deadline(keys, args, b"px", "psetex")
}

fn set_with_deadline(keys: &mut Keys, args: &[Bytes], unit: &[u8], command: &str) -> Answer {
    let deadline = parse_deadline(unit, &args[2], command)?;
    check_len(args[3].len())?;
    keys.put(&args[1], args[3].clone(), deadline.resolve(keys.now_ms));
    Ok(Reply::OK)
}

pub(crate) fn getset(keys: &mut Keys, args: &[Bytes]) -> Answer {
    check_len(args[2].len())?;
    let old = bulk_of(keys.find(&args[1]))?;
    keys.put(&args[1], args[2].clone(), 0);
    Ok(old)
}

pub(crate) fn getdel(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let old = bulk_of(keys.find(&args[1]))?;
    keys.delete(&args[1]);
    Ok(old)
}

pub(crate) fn getex(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let deadline = match &args[2..] {
        [] => None,
        [word] if word.eq_ignore_ascii_case(b"persist") => Some(Deadline::None),
        [unit, number] => match unit.to_ascii_lowercase().as_slice() {
            unit @ (b"ex" | b"px" | b"exat" | b"pxat") => Some(parse_deadline(unit, number, "getex")?),
            _ => return Err(syntax()),
        },
        _ => return Err(syntax()),
    };
    let Some(entry) = keys.find(&args[1]) else {
        return Ok(Reply::Nil);
    };
    let (value, before) = (entry.value()?.clone(), entry.expires_at_ms);
    if let Some(deadline) = deadline {
        let after = deadline.resolve(keys.now_ms);
        if after != before {
            keys.put(&args[1], value.clone(), after);
        }
    }
    Ok(Reply::Bulk(value))
}

pub(crate) fn mset(keys: &mut Keys, args: &[Bytes]) -> Answer {
    set_pairs(keys, args, "mset", false)?;
    Ok(Reply::OK)
}

pub(crate) fn msetnx(keys: &mut Keys, args: &[Bytes]) -> Answer {
    Ok(Reply::Integer(i64::from(set_pairs(keys, args, "msetnx", true)?)))
}

fn set_pairs(keys: &mut Keys, args: &[Bytes], command: &str, only_absent: bool) -> Result<bool, Reply> {
    let pairs = args[1..].chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(Reply::Error(format!("ERR wrong number of arguments for '{command}' command")));
    }
    for pair in pairs.clone() {
        check_len(pair[1].len())?;
    }
    if only_absent && pairs.clone().any(|pair| keys.find(&pair[0]).is_some()) {
        return Ok(false);
    }
    pairs.for_each(|pair| keys.put(&pair[0], pair[1].clone(), 0));
    Ok(true)
}

pub(crate) fn rename(keys: &mut Keys, args: &[Bytes]) -> Answer {
    move_value(keys, &args[1], &args[2])?;
    Ok(Reply::OK)
}

pub(crate) fn renamenx(keys: &mut Keys, args: &[Bytes]) -> Answer {
    if keys.find(&args[1]).is_none() {
        return Err(no_such_key());
    }
    if keys.find(&args[2]).is_some() {
        return Ok(Reply::Integer(0));
    }
    move_value(keys, &args[1], &args[2])?;
    Ok(Reply::Integer(1))
}

fn no_such_key() -> Reply {
    Reply::error("ERR no such key")
}

fn move_value(keys: &mut Keys, from: &Bytes, to: &Bytes) -> Result<(), Reply> {
    let entry = keys.find(from).cloned().ok_or_else(no_such_key)?;
    if from != to {
        keys.put(to, entry.value()?.clone(), entry.expires_at_ms);
        keys.delete(from);
    }
    Ok(())
}

pub(crate) fn copy(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let mut replaces = false;
    let mut rest = args[3..].iter();
    while let Some(word) = rest.next() {
        match word.to_ascii_lowercase().as_slice() {
            b"replace" => replaces = true,
            b"db" => match rest.next().and_then(|number| parse_integer(number)) {
                Some(0) => {}
                Some(_) => return Err(Reply::error("ERR DB index is out of range")),
                None => return Err(syntax()),
            },
            _ => return Err(syntax()),
        }
    }
    if args[1] == args[2] {
        return Err(Reply::error("ERR source and destination objects are the same"));
    }
    let Some(entry) = keys.find(&args[1]).cloned() else {
        return Ok(Reply::Integer(0));
    };
    if keys.find(&args[2]).is_some() && !replaces {
        return Ok(Reply::Integer(0));
    }
    keys.put(&args[2], entry.value()?.clone(), entry.expires_at_ms);
    Ok(Reply::Integer(1))
}

/// `OBJECT subcommand key`.
pub(crate) fn object(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let entry = keys.find(&args[2]);
    let found = |reply: fn(&Entry) -> Answer| entry.map_or(Ok(Reply::Nil), reply);
    match args[1].to_ascii_lowercase().as_slice() {
        b"encoding" => found(|entry| {
            let encoding = match entry.value()? {
                value if value.len() <= 20 && parse_integer(value).is_some() => "int",
                value if value.len() <= EMBEDDED_LEN_MAX => "embstr",
                _ => "raw",
            };
            Ok(Reply::text(encoding))
        }),
        b"refcount" => found(|_| Ok(Reply::Integer(1))),
        b"idletime" => found(|_| Ok(Reply::Integer(0))),
        b"freq" => Err(Reply::error(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching \
             between policies at runtime LRU and LFU data will take some time to adjust.",
        )),
        other => Err(Reply::Error(format!(
            "ERR unknown subcommand '{}'. Try OBJECT HELP.",
            String::from_utf8_lossy(other).chars().take(128).collect::<String>()
        ))),
    }
}
