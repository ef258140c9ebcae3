//! Writer of a trace: excerpts, and what `antumbra predict record` exports.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{HEADER, Request};
use crate::error::{Error, Result};

/// zstd level: traces are written once and read often, and this one still writes 2 M requests/s.
const LEVEL: i32 = 9;

/// Writes requests in the trace format. Without [`TraceWriter::finish`] the file is truncated, and readers refuse it.
///
/// # Example
/// ```
/// use antumbra_predictor::trace::{Op, Request, TraceReader, TraceWriter, read_all};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("trace.csv.zst");
/// let mut writer = TraceWriter::create(&path)?;
/// writer.write(&Request { ts_us: 10, op: Op::Get, key: 7, size: 100 })?;
/// writer.finish()?;
/// assert_eq!(read_all(&path)?[0].key, 7);
/// let gets = TraceReader::open(&path)?.filter(|request| request.as_ref().is_ok_and(|request| request.op.as_str() == "get"));
/// assert_eq!(gets.count(), 1);
/// let bytes = TraceWriter::new(Vec::new(), &path)?.finish()?; // not to a file
/// assert!(!bytes.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TraceWriter<W: Write> {
    output: zstd::Encoder<'static, W>,
    path: PathBuf,
    line: u64,
    last_ts_us: u64,
}

impl TraceWriter<File> {
    /// Creates (or replaces) a trace.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|cause| Error::Io { op: "create", path: path.to_owned(), cause })?;
        TraceWriter::new(file, path)
    }
}

impl<W: Write> TraceWriter<W> {
    /// Writes to `output`; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(output: W, path: &Path) -> Result<Self> {
        let begin = || -> io::Result<zstd::Encoder<'static, W>> {
            let mut encoder = zstd::Encoder::new(output, LEVEL)?;
            encoder.include_checksum(true)?;
            writeln!(encoder, "{HEADER}")?;
            Ok(encoder)
        };
        let output = begin().map_err(|cause| Error::Io { op: "write", path: path.to_owned(), cause })?;
        Ok(TraceWriter { output, path: path.to_owned(), line: 1, last_ts_us: 0 })
    }

    /// Appends one request.
    ///
    /// # Errors
    /// [`Error::Trace`] when its time is before that of the last one (nothing is written then), [`Error::Io`].
    pub fn write(&mut self, request: &Request) -> Result<()> {
        if request.ts_us < self.last_ts_us {
            let what = format!("ts_us {} after {}: a trace is sorted by time", request.ts_us, self.last_ts_us);
            return Err(Error::Trace { path: self.path.clone(), line: self.line + 1, what });
        }
        let Request { ts_us, op, key, size } = *request;
        writeln!(self.output, "{ts_us},{},{key},{size}", op.as_str()).map_err(|cause| Error::Io {
            op: "write",
            path: self.path.clone(),
            cause,
        })?;
        self.line += 1;
        self.last_ts_us = ts_us;
        Ok(())
    }

    /// Ends the zstd frame and hands the output back, flushed but not synced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<W> {
        let path = self.path;
        let end = || -> io::Result<W> {
            let mut output = self.output.finish()?;
            output.flush()?;
            Ok(output)
        };
        end().map_err(|cause| Error::Io { op: "write", path, cause })
    }
}
