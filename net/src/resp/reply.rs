//! Replies in RESP2 and RESP3.

use bytes::Bytes;

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A status.
    Simple(&'static str),
    /// An error, with its word.
    Error(String),
    /// A number.
    Integer(i64),
    /// A string.
    Bulk(Bytes),
    /// Nothing.
    Nil,
    /// A list.
    Array(Vec<Reply>),
    /// Pairs; a flat list in RESP2.
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    /// A string.
    pub fn text(text: impl Into<String>) -> Reply {
        Reply::Bulk(Bytes::from(text.into()))
    }

    /// Appends the reply's bytes.
    pub fn write(&self, out: &mut Vec<u8>, version: u8) {
        match self {
            Reply::Simple(text) => line(out, b'+', text),
            // A line end in the text would end the reply.
            Reply::Error(text) => line(out, b'-', &text.replace(['\r', '\n'], " ")),
            Reply::Integer(number) => line(out, b':', &number.to_string()),
            Reply::Bulk(bytes) => {
                line(out, b'$', &bytes.len().to_string());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Reply::Nil if version >= 3 => out.extend_from_slice(b"_\r\n"),
            Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
            Reply::Array(items) => {
                line(out, b'*', &items.len().to_string());
                items.iter().for_each(|item| item.write(out, version));
            }
            Reply::Map(pairs) => {
                if version >= 3 {
                    line(out, b'%', &pairs.len().to_string());
                } else {
                    line(out, b'*', &(pairs.len() * 2).to_string());
                }
                for (key, value) in pairs {
                    key.write(out, version);
                    value.write(out, version);
                }
            }
        }
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_in_both_versions() {
        let reply = Reply::Map(vec![(Reply::text("a"), Reply::Nil), (Reply::text("b"), Reply::Integer(-1))]);
        let bytes = |version| {
            let mut out = Vec::new();
            reply.write(&mut out, version);
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(bytes(2), "*4\r\n$1\r\na\r\n$-1\r\n$1\r\nb\r\n:-1\r\n");
        assert_eq!(bytes(3), "%2\r\n$1\r\na\r\n_\r\n$1\r\nb\r\n:-1\r\n");
        let mut out = Vec::new();
        Reply::Error("ERR a\r\nb".into()).write(&mut out, 2);
        assert_eq!(out, b"-ERR a  b\r\n");
    }
}
