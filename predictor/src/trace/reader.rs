//! Streaming reader of a trace.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{HEADER, LINE_BYTES_MAX, Op, REQUESTS_MAX, Request};
use crate::error::{Error, Result};

/// log2 of the largest zstd window that is accepted: bounds the decompressor's memory at 128 MiB.
const WINDOW_LOG_MAX: u32 = 27;

/// Iterator over the requests of a trace; after the first error it ends.
///
/// Cost: one buffered line, the decompressor's window (at most 128 MiB), no allocation a request.
///
/// # Example
/// ```
/// use antumbra_predictor::trace::TraceReader;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("trace.csv.zst");
/// # antumbra_predictor::trace::TraceWriter::create(&path)?.finish()?;
/// for request in TraceReader::open(&path)? {
///     println!("{:?}", request?.key);
/// }
/// assert_eq!(TraceReader::new(&std::fs::read(&path)?[..], &path)?.count(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TraceReader<R: Read> {
    input: BufReader<zstd::Decoder<'static, BufReader<R>>>,
    path: PathBuf,
    text: Vec<u8>,
    line: u64,
    last_ts_us: u64,
    ended: bool,
}

impl TraceReader<File> {
    /// Opens a trace and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened, [`Error::Trace`] when it is no zstd stream or on a wrong header.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|cause| Error::Io { op: "open", path: path.to_owned(), cause })?;
        TraceReader::new(file, path)
    }
}

impl<R: Read> TraceReader<R> {
    /// Reads from `input`; `path` names it in errors.
    ///
    /// # Errors
    /// As [`TraceReader::open`].
    pub fn new(input: R, path: &Path) -> Result<Self> {
        let io_error = |cause| Error::Io { op: "read", path: path.to_owned(), cause };
        let mut decoder = zstd::Decoder::new(input).map_err(io_error)?;
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(io_error)?;
        let mut reader = TraceReader {
            input: BufReader::new(decoder),
            path: path.to_owned(),
            text: Vec::with_capacity(LINE_BYTES_MAX),
            line: 0,
            last_ts_us: 0,
            ended: false,
        };
        if !reader.read_line()? {
            return Err(reader.error("empty, without even a header".into()));
        }
        if reader.text != HEADER.as_bytes() {
            let shown = String::from_utf8_lossy(&reader.text).into_owned();
            return Err(reader.error(format!("header is '{}', not '{HEADER}'", shown.escape_debug())));
        }
        Ok(reader)
    }

    /// Reads the next line into `self.text`, without its line end; false at the end of the stream.
    fn read_line(&mut self) -> Result<bool> {
        self.text.clear();
        let read = Read::take(&mut self.input, LINE_BYTES_MAX as u64).read_until(b'\n', &mut self.text);
        let len = match read {
            Ok(len) => len,
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                self.line += 1;
                return Err(self.error("zstd stream ends in the middle: the file was cut short".into()));
            }
            // What zstd says of its own input; the device's errors have kinds of their own.
            Err(cause) if cause.kind() == io::ErrorKind::Other => {
                self.line += 1;
                return Err(self.error(format!("zstd stream cannot be read: {cause}")));
            }
            Err(cause) => return Err(Error::Io { op: "read", path: self.path.clone(), cause }),
        };
        if len == 0 {
            return Ok(false);
        }
        self.line += 1;
        if self.text.last() == Some(&b'\n') {
            self.text.pop();
            if self.text.last() == Some(&b'\r') {
                self.text.pop();
            }
        } else if len == LINE_BYTES_MAX {
            return Err(self.error(format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        Ok(true)
    }

    fn parse(&self) -> Result<Request> {
        let text = std::str::from_utf8(&self.text).map_err(|_| self.error("not UTF-8".into()))?;
        let mut fields = text.split(',');
        let mut count = 0;
        let mut next = || {
            count += 1;
            fields.next().ok_or(count - 1)
        };
        let missing =
            |found: usize| self.error(format!("has {found} field{}, not 4", if found == 1 { "" } else { "s" }));
        let ts_us = next().map_err(missing)?;
        let op = next().map_err(missing)?;
        let key = next().map_err(missing)?;
        let size = next().map_err(missing)?;
        if fields.next().is_some() {
            return Err(self.error("has more than 4 fields".into()));
        }
        let ts_us = self.number("ts_us", ts_us)?;
        let op = match op {
            "get" => Op::Get,
            "put" => Op::Put,
            other => return Err(self.error(format!("unknown op '{}': get or put", other.escape_debug()))),
        };
        if ts_us < self.last_ts_us {
            return Err(self.error(format!("ts_us {ts_us} after {}: a trace is sorted by time", self.last_ts_us)));
        }
        Ok(Request { ts_us, op, key: self.number("key", key)?, size: self.number("size", size)? })
    }

    fn number<T: FromStr>(&self, name: &str, text: &str) -> Result<T> {
        // from_str alone would accept a leading '+'
        let parsed = if text.starts_with(|c: char| c.is_ascii_digit()) { text.parse().ok() } else { None };
        parsed.ok_or_else(|| {
            self.error(format!("{name} '{}' is not a number of {} bits", text.escape_debug(), 8 * size_of::<T>()))
        })
    }

    fn error(&self, what: String) -> Error {
        Error::Trace { path: self.path.clone(), line: self.line.max(1), what }
    }
}

impl<R: Read> Iterator for TraceReader<R> {
    type Item = Result<Request>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let request = match self.read_line() {
            Ok(true) => self.parse(),
            Ok(false) => {
                self.ended = true;
                return None;
            }
            Err(error) => Err(error),
        };
        match &request {
            Ok(request) => self.last_ts_us = request.ts_us,
            Err(_) => self.ended = true,
        }
        Some(request)
    }
}

/// Reads a whole trace into memory, 24 bytes a request.
///
/// # Errors
/// As [`TraceReader`]; [`Error::Trace`] beyond [`REQUESTS_MAX`] requests.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("trace.csv.zst");
/// # antumbra_predictor::trace::TraceWriter::create(&path)?.finish()?;
/// assert!(antumbra_predictor::trace::read_all(&path)?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_all(path: &Path) -> Result<Vec<Request>> {
    read_up_to(path, REQUESTS_MAX)
}

pub(super) fn read_up_to(path: &Path, requests_max: usize) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    let mut reader = TraceReader::open(path)?;
    while let Some(request) = reader.next() {
        if requests.len() == requests_max {
            return Err(reader.error(format!("more than {requests_max} requests: cut an excerpt first")));
        }
        requests.push(request?);
    }
    Ok(requests)
}
