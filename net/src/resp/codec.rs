//! Requests: RESP arrays of bulk strings, and inline commands.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// Arguments of one command.
pub const ARGS_MAX: usize = 64 << 10;
/// Bytes of one argument: the largest value and a little.
pub const BULK_MAX: usize = (16 << 20) + 4096;
/// Bytes of one command.
pub const COMMAND_BYTES_MAX: usize = 64 << 20;
/// Bytes of an inline command.
const INLINE_MAX: usize = 64 << 10;
/// Bytes of a length line.
const LENGTH_MAX: usize = 32;
/// Arguments and their bytes before a client has said who it is.
const UNKNOWN_ARGS_MAX: usize = 10;
const UNKNOWN_BULK_MAX: usize = 16 << 10;

/// A request that no Redis server would take; the connection is closed after the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRequest(pub String);

impl BadRequest {
    fn new(what: impl Into<String>) -> BadRequest {
        BadRequest(format!("Protocol error: {}", what.into()))
    }
}

/// Takes commands off the front of a buffer, and remembers how far it has come: bytes that trickle in are looked at once.
///
/// # Example
/// ```
/// use antumbra_net::resp::codec::{Decoder, encode_command};
/// use bytes::BytesMut;
/// let mut decoder = Decoder::default();
/// let mut buffer = BytesMut::from(&encode_command(&[b"GET", b"key"])[..12]);
/// assert!(decoder.decode(&mut buffer)?.is_none(), "the rest has not come yet");
/// buffer.extend_from_slice(&encode_command(&[b"GET", b"key"])[12..]);
/// assert_eq!(decoder.decode(&mut buffer)?.expect("whole"), ["GET", "key"]);
/// # Ok::<(), antumbra_net::resp::codec::BadRequest>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    /// Arguments that are to come; `None` before the head of a command.
    left: Option<usize>,
    /// Where the arguments lie that are there.
    places: Vec<Range<usize>>,
    /// Up to where the buffer has been understood.
    at: usize,
    /// The next argument's length, behind which `at` stands.
    bulk: Option<usize>,
    /// Bytes of an inline command that hold no line end.
    scanned: usize,
    /// The client may be anybody: short commands only.
    pub is_unknown: bool,
}

impl Decoder {
    /// The next command; `None` when it is not complete yet. An empty command (a blank line) comes as no arguments.
    ///
    /// # Errors
    /// [`BadRequest`] worded as Redis does; nothing more can be read then.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, BadRequest> {
        if self.left.is_none() {
            match buffer.first() {
                None => return Ok(None),
                Some(b'*') => {}
                Some(_) => return self.decode_inline(buffer),
            }
            let Some((count, at)) = parse_length(buffer, 1, "invalid multibulk length")? else {
                return Ok(None);
            };
            if count > ARGS_MAX as i64 {
                return Err(BadRequest::new("invalid multibulk length"));
            }
            if self.is_unknown && count > UNKNOWN_ARGS_MAX as i64 {
                return Err(BadRequest::new("unauthenticated multibulk length"));
            }
            (self.left, self.at) = (Some(count.max(0) as usize), at);
        }
        while self.left.is_some_and(|left| left > 0) {
            if !self.decode_bulk(buffer)? {
                return Ok(None);
            }
            self.left = self.left.map(|left| left - 1);
        }
        let bytes = buffer.split_to(self.at).freeze();
        let args = self.places.drain(..).map(|place| bytes.slice(place)).collect();
        (self.left, self.at) = (None, 0);
        // A command with very many arguments does not keep its list.
        self.places.shrink_to(64);
        Ok(Some(args))
    }

    /// False when more has to come.
    fn decode_bulk(&mut self, buffer: &BytesMut) -> Result<bool, BadRequest> {
        let len = match self.bulk {
            Some(len) => len,
            None => {
                match buffer.get(self.at) {
                    None => return Ok(false),
                    Some(b'$') => {}
                    Some(other) => {
                        return Err(BadRequest::new(format!("expected '$', got '{}'", other.escape_ascii())));
                    }
                }
                let Some((len, start)) = parse_length(buffer, self.at + 1, "invalid bulk length")? else {
                    return Ok(false);
                };
                let len = usize::try_from(len).ok().filter(|len| *len <= BULK_MAX);
                let len = len.ok_or_else(|| BadRequest::new("invalid bulk length"))?;
                if self.is_unknown && len > UNKNOWN_BULK_MAX {
                    return Err(BadRequest::new("unauthenticated bulk length"));
                }
                if start + len > COMMAND_BYTES_MAX {
                    return Err(BadRequest::new(format!("command of more than {COMMAND_BYTES_MAX} bytes")));
                }
                (self.bulk, self.at) = (Some(len), start);
                len
            }
        };
        let end = self.at + len;
        match buffer.get(end..end + 2) {
            None => Ok(false),
            Some(b"\r\n") => {
                self.places.push(self.at..end);
                (self.at, self.bulk) = (end + 2, None);
                Ok(true)
            }
            Some(_) => Err(BadRequest::new("bulk string without its end")),
        }
    }

    fn decode_inline(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, BadRequest> {
        let Some(end) = buffer[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = buffer.len();
            if buffer.len() >= INLINE_MAX {
                return Err(BadRequest::new("too big inline request"));
            }
            return Ok(None);
        };
        let end = self.scanned + end;
        self.scanned = 0;
        if end >= INLINE_MAX {
            return Err(BadRequest::new("too big inline request"));
        }
        let line = buffer.split_to(end + 1).freeze();
        split_words(&line[..end]).map(Some).ok_or_else(|| BadRequest::new("unbalanced quotes in request"))
    }
}

/// The words of an inline command; in double quotes a backslash escapes, in single quotes only the quote.
fn split_words(line: &[u8]) -> Option<Vec<Bytes>> {
    let mut words = Vec::new();
    let mut rest = line.iter().copied().peekable();
    loop {
        while rest.next_if(u8::is_ascii_whitespace).is_some() {}
        let Some(first) = rest.peek().copied() else {
            return Some(words);
        };
        let mut word = Vec::new();
        if first == b'"' || first == b'\'' {
            rest.next();
            loop {
                match rest.next()? {
                    byte if byte == first => break,
                    b'\\' if first == b'"' => word.push(unescape(&mut rest)?),
                    b'\\' if rest.peek() == Some(&b'\'') => word.extend(rest.next()),
                    byte => word.push(byte),
                }
            }
            // A closing quote ends the word.
            if rest.peek().is_some_and(|byte| !byte.is_ascii_whitespace()) {
                return None;
            }
        } else {
            while let Some(byte) = rest.next_if(|byte| !byte.is_ascii_whitespace()) {
                word.push(byte);
            }
        }
        words.push(Bytes::from(word));
    }
}

fn unescape(rest: &mut impl Iterator<Item = u8>) -> Option<u8> {
    Some(match rest.next()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        b'x' => {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            (digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8
        }
        other => other,
    })
}

/// A number and the place behind its line end.
fn parse_length(buffer: &BytesMut, from: usize, bad: &str) -> Result<Option<(i64, usize)>, BadRequest> {
    let rest = &buffer[from.min(buffer.len())..];
    let Some(len) = rest.iter().take(LENGTH_MAX).position(|byte| *byte == b'\n') else {
        return if rest.len() >= LENGTH_MAX { Err(BadRequest::new(bad)) } else { Ok(None) };
    };
    let line = rest[..len].strip_suffix(b"\r").unwrap_or(&rest[..len]);
    let number = std::str::from_utf8(line).ok().and_then(|text| text.parse().ok());
    match number {
        Some(number) => Ok(Some((number, from + len + 1))),
        None => Err(BadRequest::new(bad)),
    }
}

/// Encodes a command as clients send it.
///
/// # Example
/// ```
/// use antumbra_net::resp::codec::encode_command;
/// assert_eq!(encode_command(&[b"PING"]), b"*1\r\n$4\r\nPING\r\n");
/// ```
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
///
/// # Example
/// ```
/// use antumbra_net::resp::codec::{ClientReply, parse_reply};
/// let mut buffer = bytes::BytesMut::from("+OK\r\n");
/// assert!(matches!(parse_reply(&mut buffer)?, Some(ClientReply::Simple(text)) if text == "OK"));
/// # Ok::<(), antumbra_net::resp::codec::BadRequest>(())
/// ```
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

    /// All commands of some bytes that come in these pieces, and what ended them.
    fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<Bytes>>, Option<BadRequest>) {
        let (mut decoder, mut buffer, mut found) = (Decoder::default(), BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(args)) => found.push(args),
                    Ok(None) => break,
                    Err(bad) => return (found, Some(bad)),
                }
            }
        }
        (found, None)
    }

    proptest! {
        #[test]
        fn pipeline_cut_anywhere_decodes_to_the_same_commands(
            commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..5), 1..6),
            piece in 1..40_usize
        ) {
            let mut wire = Vec::new();
            for command in &commands {
                let args: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
                wire.extend(encode_command(&args));
            }
            let (found, bad) = decode_pieces(wire.chunks(piece));
            prop_assert_eq!(bad, None);
            prop_assert_eq!(found, commands);
        }

        #[test]
        fn decode_random_bytes_cut_anywhere_ends_the_same_way(bytes: Vec<u8>, piece in 1..9_usize) {
            let whole = decode_pieces([bytes.as_slice()]);
            prop_assert_eq!(decode_pieces(bytes.chunks(piece)), whole);
            let _ = parse_reply(&mut BytesMut::from(&bytes[..]));
        }
    }

    fn decode_all(bytes: &[u8]) -> (Vec<Vec<Bytes>>, Option<BadRequest>) {
        decode_pieces([bytes])
    }

    #[test]
    fn decode_hostile_lengths_are_refused() {
        for wire in ["*9999999\r\n", "*1\r\n$99999999999\r\n", "*1\r\n$-1\r\n", "*1\r\n:1\r\n", "*x\r\n"] {
            assert!(decode_all(wire.as_bytes()).1.is_some(), "{wire:?}");
        }
        assert!(decode_all(&vec![b'a'; INLINE_MAX]).1.is_some());
        let many = format!("*6\r\n{}", format!("${}\r\n{}\r\n", 12 << 20, "v".repeat(12 << 20)).repeat(6));
        assert!(decode_all(many.as_bytes()).1.is_some_and(|bad| bad.0.contains("command of more")));
    }

    #[test]
    fn decode_before_a_password_takes_short_commands_only() {
        let mut decoder = Decoder { is_unknown: true, ..Decoder::default() };
        let mut decode = |wire: &str| decoder.decode(&mut BytesMut::from(wire));
        assert!(decode("*2\r\n$4\r\nauth\r\n$1\r\nx\r\n").is_ok_and(|args| args.is_some()));
        assert_eq!(decode("*11\r\n"), Err(BadRequest::new("unauthenticated multibulk length")));
        assert_eq!(decode("*1\r\n$20000\r\n"), Err(BadRequest::new("unauthenticated bulk length")));
    }

    #[test]
    fn decode_inline_command_splits_words() {
        let (found, bad) = decode_all(b"  set  a 1\r\n\r\nset \"a \\x41\\n\" 'it\\'s'\n");
        assert_eq!(bad, None);
        assert_eq!(found, [vec!["set", "a", "1"], vec![], vec!["set", "a A\n", "it's"]]);
        for wire in ["get \"a\n", "get \"a\"b\n", "get \"\\xq\"\n", "get '\n"] {
            assert_eq!(
                decode_all(wire.as_bytes()).1,
                Some(BadRequest::new("unbalanced quotes in request")),
                "{wire:?}"
            );
        }
    }
}
