//! Parts of values.

use bytes::{Bytes, BytesMut};

use super::super::reply::Reply;
use super::{Answer, Keys, check_len, integer_arg};

pub(crate) fn strlen(keys: &mut Keys, args: &[Bytes]) -> Answer {
    Ok(Reply::Integer(keys.find(&args[1]).map_or(0, |entry| entry.len as i64)))
}

pub(crate) fn append(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let (old, expires_at_ms) = match keys.find(&args[1]) {
        Some(entry) => (entry.value()?.clone(), entry.expires_at_ms),
        None => (Bytes::new(), 0),
    };
    let len = old.len() + args[2].len();
    check_len(len)?;
    let mut joined = BytesMut::with_capacity(len);
    joined.extend_from_slice(&old);
    joined.extend_from_slice(&args[2]);
    keys.put(&args[1], joined.freeze(), expires_at_ms);
    Ok(Reply::Integer(len as i64))
}

/// Both ends count, negative places count from the end.
pub(crate) fn getrange(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let (start, end) = (integer_arg(&args[2])?, integer_arg(&args[3])?);
    let Some(entry) = keys.find(&args[1]) else {
        return Ok(Reply::Bulk(Bytes::new()));
    };
    let value = entry.value()?;
    let len = value.len() as i64;
    if start < 0 && end < 0 && start > end {
        return Ok(Reply::Bulk(Bytes::new()));
    }
    let place = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, end) = (place(start), place(end).min(len - 1));
    if start > end || len == 0 {
        return Ok(Reply::Bulk(Bytes::new()));
    }
    Ok(Reply::Bulk(value.slice(start as usize..=end as usize)))
}

pub(crate) fn setrange(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let offset = integer_arg(&args[2])?;
    let offset = usize::try_from(offset).map_err(|_| Reply::error("ERR offset is out of range"))?;
    let (old, expires_at_ms) = match keys.find(&args[1]) {
        Some(entry) => (entry.value()?.clone(), entry.expires_at_ms),
        None => (Bytes::new(), 0),
    };
    let part = &args[3];
    if part.is_empty() {
        return Ok(Reply::Integer(old.len() as i64));
    }
    let end = offset.saturating_add(part.len());
    check_len(end)?;
    let mut value = BytesMut::with_capacity(end.max(old.len()));
    value.extend_from_slice(&old);
    if value.len() < end {
        value.resize(end, 0);
    }
    value[offset..end].copy_from_slice(part);
    let len = value.len();
    keys.put(&args[1], value.freeze(), expires_at_ms);
    Ok(Reply::Integer(len as i64))
}
