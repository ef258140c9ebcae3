//! Replies in RESP2 and RESP3.

use std::borrow::Cow;

use antumbra_engine::Error as EngineError;
use bytes::Bytes;

use crate::error::Error;

use super::codec::ClientReply;

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A status.
    Simple(Cow<'static, str>),
    /// An error, with its word.
    Error(String),
    /// A number.
    Integer(i64),
    /// A string.
    Bulk(Bytes),
    /// Text for people; a string in RESP2.
    Verbatim(String),
    /// Nothing.
    Nil,
    /// No list.
    NilArray,
    /// A list.
    Array(Vec<Reply>),
    /// A list whose order means nothing.
    Set(Vec<Reply>),
    /// Pairs; a flat list in RESP2.
    Map(Vec<(Reply, Reply)>),
}

/// The word by which clients know an error, where there is one.
pub(super) fn code_of(cause: &Error) -> Option<&'static str> {
    match cause {
        Error::Engine(EngineError::OutOfReach { .. }) => Some("TRYAGAIN"),
        Error::Engine(EngineError::ReadOnly { .. }) => Some("READONLY"),
        Error::Engine(EngineError::NoRoom { .. }) => Some("MISCONF"),
        _ => None,
    }
}

impl Reply {
    /// `OK`.
    pub const OK: Reply = Reply::Simple(Cow::Borrowed("OK"));

    /// A status.
    #[must_use]
    pub fn status(text: &'static str) -> Reply {
        Reply::Simple(Cow::Borrowed(text))
    }

    /// A string.
    pub fn text(text: impl Into<String>) -> Reply {
        Reply::Bulk(Bytes::from(text.into()))
    }

    /// An error.
    pub fn error(text: impl Into<String>) -> Reply {
        Reply::Error(text.into())
    }

    /// Whether it is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// Bytes of the strings in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Reply::Bulk(bytes) => bytes.len(),
            Reply::Verbatim(text) | Reply::Error(text) => text.len(),
            Reply::Array(items) | Reply::Set(items) => items.iter().map(Reply::bytes).sum(),
            Reply::Map(pairs) => pairs.iter().map(|(key, value)| key.bytes() + value.bytes()).sum(),
            Reply::Simple(_) | Reply::Integer(_) | Reply::Nil | Reply::NilArray => 0,
        }
    }

    /// Appends the reply's bytes.
    pub fn write(&self, out: &mut Vec<u8>, version: u8) {
        match self {
            Reply::Array(items) | Reply::Set(items) => {
                self.write_head(out, version);
                items.iter().for_each(|item| item.write(out, version));
            }
            Reply::Map(pairs) => {
                self.write_head(out, version);
                for (key, value) in pairs {
                    key.write(out, version);
                    value.write(out, version);
                }
            }
            Reply::Bulk(bytes) => {
                self.write_head(out, version);
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            _ => self.write_head(out, version),
        }
    }

    /// Appends what stands before the items of a list, before the bytes of a string, or all of a smaller reply.
    pub(crate) fn write_head(&self, out: &mut Vec<u8>, version: u8) {
        match self {
            Reply::Simple(text) => line(out, b'+', text.as_bytes()),
            // A line end in the text would end the reply.
            Reply::Error(text) => line(out, b'-', text.replace(['\r', '\n'], " ").as_bytes()),
            Reply::Integer(number) => number_line(out, b':', *number),
            Reply::Bulk(bytes) => number_line(out, b'$', bytes.len() as i64),
            Reply::Verbatim(text) if version >= 3 => {
                number_line(out, b'=', text.len() as i64 + 4);
                out.extend_from_slice(b"txt:");
                out.extend_from_slice(text.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Reply::Verbatim(text) => {
                number_line(out, b'$', text.len() as i64);
                out.extend_from_slice(text.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Reply::Nil | Reply::NilArray if version >= 3 => out.extend_from_slice(b"_\r\n"),
            Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
            Reply::NilArray => out.extend_from_slice(b"*-1\r\n"),
            Reply::Array(items) => number_line(out, b'*', items.len() as i64),
            Reply::Set(items) => number_line(out, if version >= 3 { b'~' } else { b'*' }, items.len() as i64),
            Reply::Map(pairs) if version >= 3 => number_line(out, b'%', pairs.len() as i64),
            Reply::Map(pairs) => number_line(out, b'*', pairs.len() as i64 * 2),
        }
    }
}

impl From<ClientReply> for Reply {
    fn from(reply: ClientReply) -> Reply {
        match reply {
            ClientReply::Simple(text) => Reply::Simple(Cow::Owned(text)),
            ClientReply::Error(text) => Reply::Error(text),
            ClientReply::Integer(number) => Reply::Integer(number),
            ClientReply::Bulk(bytes) => bytes.map_or(Reply::Nil, Reply::Bulk),
            ClientReply::Array(items) => Reply::Array(items.into_iter().map(Reply::from).collect()),
        }
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

fn number_line(out: &mut Vec<u8>, kind: u8, number: i64) {
    use std::io::Write;
    out.push(kind);
    // Writing to a vector does not fail.
    let _ = write!(out, "{number}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_in_both_versions() {
        let reply = Reply::Map(vec![
            (Reply::text("a"), Reply::Nil),
            (Reply::text("b"), Reply::Set(vec![Reply::Integer(-1), Reply::Verbatim("c".into())])),
        ]);
        let bytes = |version| {
            let mut out = Vec::new();
            reply.write(&mut out, version);
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(bytes(2), "*4\r\n$1\r\na\r\n$-1\r\n$1\r\nb\r\n*2\r\n:-1\r\n$1\r\nc\r\n");
        assert_eq!(bytes(3), "%2\r\n$1\r\na\r\n_\r\n$1\r\nb\r\n~2\r\n:-1\r\n=5\r\ntxt:c\r\n");
        let mut out = Vec::new();
        Reply::Error("ERR a\r\nb".into()).write(&mut out, 2);
        assert_eq!(out, b"-ERR a  b\r\n");
    }
}
