//! Recorded requests: zstd-compressed CSV, one request a line.
//!
//! ```text
//! ts_us,op,key,size        header, exactly this
//! 0,put,5366593,512        u64 microseconds (or request index), get|put, u64 key, u32 bytes
//! 242639,put,5366593,512   timestamps never fall
//! ```
//!
//! The reader trusts nothing: a line has at most [`LINE_BYTES_MAX`] bytes, the decompressor at most a 128 MiB window,
//! and a stream that ends inside a zstd frame is an error, not the end of the trace.

mod reader;
mod writer;

pub use reader::{TraceReader, read_all};
pub use writer::TraceWriter;

/// First line of every trace.
pub const HEADER: &str = "ts_us,op,key,size";
/// Longest line that the reader accepts, in bytes, newline included. The longest valid one has 58.
pub const LINE_BYTES_MAX: usize = 128;
/// Most requests that [`read_all`] holds in memory (24 bytes each).
pub const REQUESTS_MAX: usize = 200_000_000;

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A read.
    Get,
    /// A write.
    Put,
}

impl Op {
    /// Its name in a trace.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Get => "get",
            Op::Put => "put",
        }
    }
}

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Microseconds since the start, or the request's index where the source has no time.
    pub ts_us: u64,
    /// What it did.
    pub op: Op,
    /// The key, as a number whose order is the key order.
    pub key: u64,
    /// Bytes read or written.
    pub size: u32,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Error;
    use proptest::prelude::*;
    use std::io::Write;
    use std::path::Path;

    fn compress(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 3).unwrap()
    }

    fn parse(bytes: &[u8]) -> crate::Result<Vec<Request>> {
        TraceReader::new(bytes, Path::new("t.csv.zst"))?.collect()
    }

    fn message_of(text: &str) -> String {
        parse(&compress(text.as_bytes())).unwrap_err().to_string()
    }

    #[test]
    fn reader_each_kind_of_error_names_file_and_line() {
        assert_eq!(message_of("a,b\n"), "trace t.csv.zst, line 1: header is 'a,b', not 'ts_us,op,key,size'");
        assert!(message_of("").contains("line 1: empty"));
        let with = |line: &str| message_of(&format!("{HEADER}\n1,get,1,1\n{line}\n"));
        assert!(with("x,get,1,1").contains("line 3: ts_us 'x' is not a number"));
        assert!(with("1,del,1,1").contains("line 3: unknown op 'del'"));
        assert!(with("1,get,-1,1").contains("key '-1'"));
        assert!(with("1,get,1,4294967296").contains("size '4294967296'"));
        assert!(with("1,get,1").contains("has 3 fields"));
        assert!(with("1,get,1,1,1").contains("more than 4 fields"));
        assert!(with("0,get,1,1").contains("ts_us 0 after 1"));
        assert!(with("").contains("has 1 field"));
        assert!(with(&"9".repeat(4096)).contains("longer than"));
        let bytes = [HEADER.as_bytes(), b"\n\xff,get,1,1\n"].concat();
        assert!(parse(&compress(&bytes)).unwrap_err().to_string().contains("not UTF-8"));
    }

    #[test]
    fn reader_after_an_error_ends() {
        let bytes = compress(format!("{HEADER}\nx,get,1,1\n2,get,1,1\n").as_bytes());
        let mut reader = TraceReader::new(bytes.as_slice(), Path::new("t")).unwrap();
        assert!(reader.next().unwrap().is_err());
        assert!(reader.next().is_none());
    }

    #[test]
    fn reader_last_line_without_newline_is_read() {
        let got = parse(&compress(format!("{HEADER}\r\n7,put,8,9").as_bytes())).unwrap();
        assert_eq!(got, vec![Request { ts_us: 7, op: Op::Put, key: 8, size: 9 }]);
    }

    #[test]
    fn reader_truncated_at_any_byte_is_refused() {
        let whole = {
            let mut writer = TraceWriter::new(Vec::new(), Path::new("t")).unwrap();
            for index in 0..500u64 {
                let request = Request { ts_us: index, op: Op::Get, key: index * 7919 % 1000, size: 512 };
                writer.write(&request).unwrap();
            }
            writer.finish().unwrap()
        };
        assert_eq!(parse(&whole).unwrap().len(), 500);
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "{len} of {} bytes were accepted", whole.len());
        }
    }

    #[test]
    fn reader_flipped_bits_are_refused() {
        // the writer asks zstd for a content checksum, so that no flip passes unseen
        let mut writer = TraceWriter::new(Vec::new(), Path::new("t")).unwrap();
        for index in 0..100u64 {
            writer.write(&Request { ts_us: index, op: Op::Put, key: index * index, size: 1 }).unwrap();
        }
        let whole = writer.finish().unwrap();
        let good = parse(&whole).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // a few bits of a zstd frame header carry no meaning (unused and reserved ones): the content decides
            if let Ok(got) = parse(&bytes) {
                assert_eq!(got, good, "bit {bit} changed the content unseen");
            }
        }
    }

    #[test]
    fn reader_absurd_sizes_are_refused_by_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.csv.zst");
        let mut writer = TraceWriter::create(&path).unwrap();
        for index in 0..5 {
            writer.write(&Request { ts_us: index, op: Op::Get, key: 1, size: 1 }).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(reader::read_up_to(&path, 5).unwrap().len(), 5);
        let error = reader::read_up_to(&path, 3).unwrap_err().to_string();
        assert!(error.contains("long.csv.zst, line 5: more than 3 requests"), "{error}");
        // the frame header's window byte: 1 GiB of memory is asked for
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[4] & 0b0010_0000, 0, "a frame with a window byte");
        bytes[5] = 20 << 3;
        let error = parse(&bytes).unwrap_err().to_string();
        assert!(error.contains("t.csv.zst, line 1: zstd stream cannot be read: "), "{error}");
        assert!(parse(b"ts_us,op,key,size\n0,get,1,1\n").unwrap_err().to_string().contains("line 1: zstd stream"));
    }

    #[test]
    fn read_all_missing_file_names_it() {
        let error = read_all(Path::new("no/such.csv.zst")).unwrap_err();
        assert!(matches!(error, Error::Io { op: "open", .. }));
        assert!(error.to_string().contains("no/such.csv.zst"));
    }

    #[test]
    fn writer_falling_time_is_refused() {
        let mut writer = TraceWriter::new(Vec::new(), Path::new("t")).unwrap();
        writer.write(&Request { ts_us: 5, op: Op::Get, key: 0, size: 0 }).unwrap();
        assert!(writer.write(&Request { ts_us: 4, op: Op::Get, key: 0, size: 0 }).is_err());
    }

    proptest! {
        #[test]
        fn codec_roundtrip(raw in prop::collection::vec((any::<u32>(), any::<bool>(), any::<u64>(), any::<u32>()), 0..200)) {
            let mut ts_us = 0;
            let requests: Vec<Request> = raw
                .into_iter()
                .map(|(step, put, key, size)| {
                    ts_us += u64::from(step);
                    Request { ts_us, op: if put { Op::Put } else { Op::Get }, key, size }
                })
                .collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.csv.zst");
            let mut writer = TraceWriter::create(&path).unwrap();
            for request in &requests {
                writer.write(request).unwrap();
            }
            writer.finish().unwrap().flush().unwrap();
            prop_assert_eq!(read_all(&path).unwrap(), requests);
        }

        #[test]
        fn reader_random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&compress(&bytes));
            let _ = parse(&compress(&[HEADER.as_bytes(), b"\n", &bytes].concat()));
        }
    }
}
