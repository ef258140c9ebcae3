//! The lines of a dump.
//!
//! ```text
//! {"antumbra_dump":1}                                                   first
//! {"partition":{"id":1,"keyspace":"default","start":{"hex":""},"end":null,"epoch":1,
//!   "segment_target_bytes":4194304,"block_bytes":4096,"zstd":true}}     before its records
//! {"k":"user:1","v":"text","x":1893456000000}                           a record; "x" only with a deadline
//! {"k":{"hex":"00ff"},"v":{"hex":"80"}}                                  bytes that are no UTF-8
//! {"end":{"records":2,"crc32c":"1a2b3c4d"}}                             last; of all bytes before this line
//! ```

use std::io::{BufRead, Write};

use antumbra_engine::types::KeyRange;
use serde::{Deserialize, Serialize};

use crate::CliError;
use crate::show::{hex, unhex};

/// Version of the format.
const VERSION: u32 = 1;
/// Longest line: a key and a value of the largest size, in hexadecimal.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Bytes as JSON: text where they are UTF-8, else hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Hex {
        /// The digits.
        hex: String,
    },
}

impl Data {
    pub fn of(bytes: &[u8]) -> Data {
        match std::str::from_utf8(bytes) {
            Ok(text) => Data::Text(text.to_string()),
            Err(_) => Data::Hex { hex: hex(bytes) },
        }
    }

    pub fn bytes(self) -> Result<Vec<u8>, CliError> {
        match self {
            Data::Text(text) => Ok(text.into_bytes()),
            Data::Hex { hex } => unhex(&hex).ok_or_else(|| "odd or wrong hexadecimal digits".into()),
        }
    }
}

/// A partition as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionLine {
    pub id: u64,
    pub keyspace: String,
    pub start: Data,
    pub end: Option<Data>,
    pub epoch: u64,
    pub segment_target_bytes: u64,
    pub block_bytes: u32,
    /// Whether its tables are compressed; left out when they are not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zstd: bool,
}

impl PartitionLine {
    /// Its key range.
    pub fn range(&self) -> Result<KeyRange, CliError> {
        Ok(KeyRange { start: self.start.clone().bytes()?, end: self.end.clone().map(Data::bytes).transpose()? })
    }
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndLine {
    pub records: u64,
    pub crc32c: String,
}

/// A live record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordLine {
    /// Key.
    pub k: Data,
    /// Value.
    pub v: Data,
    /// Deadline in milliseconds since the Unix epoch; 0, and left out, for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub x: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Any line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Begin { antumbra_dump: u32 },
    Partition { partition: PartitionLine },
    End { end: EndLine },
    Record(RecordLine),
}

/// Writes a dump.
pub struct Writer<W> {
    out: W,
    crc: u32,
    records: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the first line.
    pub fn new(out: W) -> Result<Writer<W>, CliError> {
        let mut writer = Writer { out, crc: 0, records: 0 };
        writer.line(&Line::Begin { antumbra_dump: VERSION })?;
        Ok(writer)
    }

    pub fn partition(&mut self, partition: PartitionLine) -> Result<(), CliError> {
        self.line(&Line::Partition { partition })
    }

    pub fn record(&mut self, record: RecordLine) -> Result<(), CliError> {
        self.records += 1;
        self.line(&Line::Record(record))
    }

    /// Writes the last line; returns the number of records.
    pub fn end(mut self) -> Result<u64, CliError> {
        let end = EndLine { records: self.records, crc32c: format!("{:08x}", self.crc) };
        self.line(&Line::End { end })?;
        self.out.flush()?;
        Ok(self.records)
    }

    fn line(&mut self, line: &Line) -> Result<(), CliError> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.crc = crc32c::crc32c_append(self.crc, &text);
        Ok(self.out.write_all(&text)?)
    }
}

/// Reads a dump line by line and checks that it is whole.
pub struct Reader<R> {
    lines: R,
    number: u64,
    crc: u32,
    records: u64,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    pub fn new(lines: R) -> Result<Reader<R>, CliError> {
        let mut reader = Reader { lines, number: 0, crc: 0, records: 0, ended: false };
        match reader.read()? {
            Some(Line::Begin { antumbra_dump: VERSION }) => Ok(reader),
            Some(Line::Begin { antumbra_dump }) => {
                Err(format!("a dump of version {antumbra_dump}; this program reads version {VERSION}").into())
            }
            _ => Err("line 1: no dump: it has to begin with {\"antumbra_dump\":1}".into()),
        }
    }

    /// The next partition or record; `None` behind the last line, once count and checksum fit.
    pub fn next(&mut self) -> Result<Option<Line>, CliError> {
        if self.ended {
            return Ok(None);
        }
        let crc = self.crc;
        let Some(line) = self.read()? else {
            return Err(format!("line {}: the dump ends early: its last line is missing", self.number + 1).into());
        };
        match &line {
            Line::End { end } => {
                let found = EndLine { records: self.records, crc32c: format!("{crc:08x}") };
                if *end != found {
                    return Err(
                        format!("line {}: {end:?}, but read {found:?}: the dump was changed", self.number).into()
                    );
                }
                self.ended = true;
                return Ok(None);
            }
            Line::Record(_) => self.records += 1,
            Line::Partition { .. } => {}
            Line::Begin { .. } => return Err(format!("line {}: a second beginning", self.number).into()),
        }
        Ok(Some(line))
    }

    /// The line last read, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn read(&mut self) -> Result<Option<Line>, CliError> {
        use std::io::Read;
        let mut text = Vec::new();
        let len = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
        if len == 0 {
            return Ok(None);
        }
        self.number += 1;
        if text.last() != Some(&b'\n') {
            return Err(format!("line {}: cut short, or longer than {LINE_BYTES_MAX} bytes", self.number).into());
        }
        self.crc = crc32c::crc32c_append(self.crc, &text);
        let line = serde_json::from_slice(&text).map_err(|cause| format!("line {}: {cause}", self.number))?;
        Ok(Some(line))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn dump() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        writer
            .partition(PartitionLine {
                id: 1,
                keyspace: "default".into(),
                start: Data::of(b""),
                end: Some(Data::of(&[255])),
                epoch: 2,
                segment_target_bytes: 3,
                block_bytes: 4,
                zstd: true,
            })
            .unwrap();
        writer.record(RecordLine { k: Data::of(b"a"), v: Data::of("é".as_bytes()), x: 0 }).unwrap();
        writer.record(RecordLine { k: Data::of(&[0, 128]), v: Data::of(&[]), x: 9 }).unwrap();
        assert_eq!(writer.end().unwrap(), 2);
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Line>, CliError> {
        let mut reader = Reader::new(bytes)?;
        let mut lines = Vec::new();
        while let Some(line) = reader.next()? {
            lines.push(line);
        }
        Ok(lines)
    }

    #[test]
    fn read_written_dump_returns_it() {
        let bytes = dump();
        let lines = read_all(&bytes).unwrap();
        assert_eq!(lines.len(), 3);
        let Line::Record(record) = lines[2].clone() else { panic!("{lines:?}") };
        assert_eq!((record.k.bytes().unwrap(), record.v.bytes().unwrap(), record.x), (vec![0, 128], vec![], 9));
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("{\"antumbra_dump\":1}\n"));
        assert!(text.contains("{\"k\":\"a\",\"v\":\"é\"}\n"), "{text}");
        assert!(text.contains("{\"k\":{\"hex\":\"0080\"},\"v\":\"\",\"x\":9}\n"), "{text}");
    }

    #[test]
    fn read_dump_cut_anywhere_is_refused() {
        let bytes = dump();
        for len in 0..bytes.len() {
            assert!(read_all(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn read_changed_dump_is_refused() {
        let text = String::from_utf8(dump()).unwrap();
        for (from, to) in [("\"k\":\"a\"", "\"k\":\"b\""), ("dump\":1", "dump\":2"), ("\"records\":2", "\"records\":3")]
        {
            assert!(read_all(text.replacen(from, to, 1).as_bytes()).is_err(), "{from}");
        }
        let without: Vec<&str> = text.lines().filter(|line| !line.contains("\"x\"")).collect();
        assert!(read_all((without.join("\n") + "\n").as_bytes()).is_err(), "a record is missing");
    }

    #[test]
    fn read_newer_version_says_so() {
        let cause = read_all(b"{\"antumbra_dump\":7}\n").unwrap_err().to_string();
        assert!(cause.contains("version 7") && cause.contains("version 1"), "{cause}");
    }
}
