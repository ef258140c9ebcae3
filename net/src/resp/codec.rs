//! Requests: RESP arrays of bulk strings, and inline commands.

use bytes::{Buf, Bytes, BytesMut};

/// Arguments of one command.
pub const ARGS_MAX: usize = 64 << 10;
/// Bytes of one argument: the largest value and a little.
pub const BULK_MAX: usize = (16 << 20) + 4096;
/// Bytes of an inline command, and of a length line.
const INLINE_MAX: usize = 64 << 10;

/// A request that no Redis server would take; the connection is closed after the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRequest(pub String);

/// Takes the next command off the front of `buffer`; `None` when it is not complete yet. An empty command (a blank line)
/// comes as no arguments.
///
/// # Errors
/// [`BadRequest`] worded as Redis does.
pub fn parse(buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, BadRequest> {
    match buffer.first() {
        None => Ok(None),
        Some(b'*') => parse_array(buffer),
        Some(_) => parse_inline(buffer),
    }
}

fn parse_inline(buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, BadRequest> {
    let Some(end) = buffer.iter().take(INLINE_MAX).position(|byte| *byte == b'\n') else {
        if buffer.len() >= INLINE_MAX {
            return Err(BadRequest("Protocol error: too big inline request".into()));
        }
        return Ok(None);
    };
    let line = buffer.split_to(end + 1).freeze();
    let words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    Ok(Some(words.map(|word| line.slice_ref(word)).collect()))
}

/// Finds where each argument lies first, and takes the bytes only when all are there.
fn parse_array(buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, BadRequest> {
    let Some((count, mut at)) = parse_length(buffer, 1)? else {
        return Ok(None);
    };
    if count > ARGS_MAX as i64 {
        return Err(BadRequest("Protocol error: invalid multibulk length".into()));
    }
    let count = count.max(0) as usize;
    let mut places = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        match buffer.get(at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(other) => {
                return Err(BadRequest(format!("Protocol error: expected '$', got '{}'", char::from(*other))));
            }
        }
        let Some((len, start)) = parse_length(buffer, at + 1)? else {
            return Ok(None);
        };
        if len < 0 || len > BULK_MAX as i64 {
            return Err(BadRequest("Protocol error: invalid bulk length".into()));
        }
        let end = start + len as usize;
        match buffer.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => {}
            Some(_) => return Err(BadRequest("Protocol error: bulk string without its end".into())),
        }
        places.push(start..end);
        at = end + 2;
    }
    let bytes = buffer.split_to(at).freeze();
    Ok(Some(places.into_iter().map(|place| bytes.slice(place)).collect()))
}

/// A number and the place behind its line end.
fn parse_length(buffer: &BytesMut, from: usize) -> Result<Option<(i64, usize)>, BadRequest> {
    let rest = &buffer[from.min(buffer.len())..];
    let Some(len) = rest.iter().take(32).position(|byte| *byte == b'\n') else {
        if rest.len() >= 32 {
            return Err(BadRequest("Protocol error: invalid multibulk length".into()));
        }
        return Ok(None);
    };
    let line = rest[..len].strip_suffix(b"\r").unwrap_or(&rest[..len]);
    let number = std::str::from_utf8(line).ok().and_then(|text| text.parse().ok());
    match number {
        Some(number) => Ok(Some((number, from + len + 1))),
        None => Err(BadRequest("Protocol error: invalid multibulk length".into())),
    }
}

/// Encodes a command as clients send it.
#[must_use]
pub fn encode_command(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A reply as a client sees it (RESP2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientReply {
    /// A status.
    Simple(String),
    /// An error.
    Error(String),
    /// A number.
    Integer(i64),
    /// A string, or nothing.
    Bulk(Option<Bytes>),
    /// A list.
    Array(Vec<ClientReply>),
}

/// Lists within lists that a reply may have.
const REPLY_DEPTH_MAX: u32 = 8;

/// Takes the next reply off the front of `buffer`; `None` when it is not complete yet.
///
/// # Errors
/// [`BadRequest`] for anything that is no RESP2 reply.
pub fn parse_reply(buffer: &mut BytesMut) -> Result<Option<ClientReply>, BadRequest> {
    match reply_at(buffer, 0, REPLY_DEPTH_MAX)? {
        Some((reply, end)) => {
            buffer.advance(end);
            Ok(Some(reply))
        }
        None => Ok(None),
    }
}

fn reply_at(buffer: &BytesMut, at: usize, depth: u32) -> Result<Option<(ClientReply, usize)>, BadRequest> {
    let Some(kind) = buffer.get(at) else {
        return Ok(None);
    };
    let Some(len) = buffer[at..].iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    if len == 0 {
        return Err(BadRequest("no reply: an empty line".into()));
    }
    let line = buffer[at + 1..at + len].strip_suffix(b"\r").unwrap_or(&buffer[at + 1..at + len]);
    let text = String::from_utf8_lossy(line).into_owned();
    let number = || text.parse::<i64>().map_err(|_| BadRequest(format!("no number: {text:?}")));
    let behind = at + len + 1;
    Ok(Some(match kind {
        b'+' => (ClientReply::Simple(text), behind),
        b'-' => (ClientReply::Error(text), behind),
        b':' => (ClientReply::Integer(number()?), behind),
        b'$' => match number()? {
            len if len < 0 => (ClientReply::Bulk(None), behind),
            len => {
                if len > BULK_MAX as i64 {
                    return Err(BadRequest(format!("no reply: a string of {len} bytes")));
                }
                let end = behind + len as usize;
                if buffer.len() < end + 2 {
                    return Ok(None);
                }
                (ClientReply::Bulk(Some(Bytes::copy_from_slice(&buffer[behind..end]))), end + 2)
            }
        },
        b'*' if depth == 0 => return Err(BadRequest("no reply: lists nested too deep".into())),
        b'*' => {
            let (mut items, mut next) = (Vec::new(), behind);
            for _ in 0..number()?.max(0) {
                let Some((item, end)) = reply_at(buffer, next, depth - 1)? else {
                    return Ok(None);
                };
                items.push(item);
                next = end;
            }
            (ClientReply::Array(items), next)
        }
        other => return Err(BadRequest(format!("no reply: {:?}", char::from(*other)))),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_reply_hostile_bytes_are_refused() {
        let refused = |bytes: &[u8]| parse_reply(&mut BytesMut::from(bytes)).is_err();
        assert!(refused(b"\n"), "an empty line");
        assert!(refused(b"$9223372036854775807\r\n"), "an absurd length");
        assert!(refused("*1\r\n".repeat(100_000).as_bytes()), "nested without end");
    }

    proptest! {
        #[test]
        fn pipeline_cut_anywhere_parses_to_the_same_commands(
            commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..5), 1..6),
            cut in any::<prop::sample::Index>()
        ) {
            let mut wire = Vec::new();
            for command in &commands {
                let args: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
                wire.extend(encode_command(&args));
            }
            let cut = cut.index(wire.len());
            let mut buffer = BytesMut::from(&wire[..cut]);
            let mut found = Vec::new();
            while let Some(args) = parse(&mut buffer).unwrap() {
                found.push(args);
            }
            buffer.extend_from_slice(&wire[cut..]);
            while let Some(args) = parse(&mut buffer).unwrap() {
                found.push(args);
            }
            prop_assert_eq!(found, commands);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn parse_random_bytes_never_panics(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            for _ in 0..bytes.len() {
                if !matches!(parse(&mut buffer), Ok(Some(_))) {
                    break;
                }
            }
            let _ = parse_reply(&mut BytesMut::from(&bytes[..]));
        }
    }

    #[test]
    fn parse_hostile_lengths_are_refused() {
        for wire in ["*9999999\r\n", "*1\r\n$99999999999\r\n", "*1\r\n$-1\r\n", "*1\r\n:1\r\n", "*x\r\n"] {
            assert!(parse(&mut BytesMut::from(wire)).is_err(), "{wire:?}");
        }
        assert!(parse(&mut BytesMut::from(&vec![b'a'; INLINE_MAX][..])).is_err());
    }

    #[test]
    fn parse_inline_command_splits_words() {
        let found = parse(&mut BytesMut::from("  set  a 1\r\n")).unwrap().unwrap();
        assert_eq!(found, ["set", "a", "1"]);
    }
}
