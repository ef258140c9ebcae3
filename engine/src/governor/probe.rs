//! What the device does: measured once per data folder, kept in the folder's file `DEVICE`.
//!
//! ```text
//! antumbra device 1
//! write_bytes_per_second 431234567
//! ```
//!
//! Delete the file to have it measured again (another disk under the same folder).

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::io::fs;

const HEADER: &str = "antumbra device 1";
const FIELD: &str = "write_bytes_per_second ";
/// The probe writes as table files are written.
const CHUNK_BYTES: usize = 256 << 10;
const PROBE_BYTES: u64 = 32 << 20;
const PROBE_TIME_MAX: Duration = Duration::from_millis(150);
const ALIGN_BYTES: usize = 4096;
/// A device is never taken for slower: a probe beside other load says little, and a limit above what the device does is
/// no limit.
const RATE_MIN: u64 = 200 << 20;

/// Bytes per second that the device under `dir` writes durably; measured on the first call.
///
/// Errors: [`Error::Io`]. Cost: the first call writes up to 32 MiB or 150 ms.
pub(crate) fn device_rate(dir: &Path) -> Result<u64> {
    let path = dir.join("DEVICE");
    if let Some(rate) = std::fs::read_to_string(&path).ok().and_then(|text| parse(&text)) {
        return Ok(rate.max(RATE_MIN));
    }
    let rate = measure(&dir.join("DEVICE.probe"))?;
    fs::write_file_atomic(&path, format!("{HEADER}\n{FIELD}{rate}\n").as_bytes())?;
    Ok(rate.max(RATE_MIN))
}

fn parse(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    (lines.next()? == HEADER).then_some(())?;
    lines.next()?.strip_prefix(FIELD)?.parse().ok()
}

fn measure(path: &Path) -> Result<u64> {
    let failed = |cause| Error::io("measure the device with", path, cause);
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(failed)?;
    let buffer = vec![0xA5_u8; CHUNK_BYTES + ALIGN_BYTES];
    let start = buffer.as_ptr().align_offset(ALIGN_BYTES);
    let chunk = &buffer[start..start + CHUNK_BYTES];
    let begin = Instant::now();
    let mut written = 0;
    while written < PROBE_BYTES && begin.elapsed() < PROBE_TIME_MAX {
        file.write_all_at(chunk, written).map_err(failed)?;
        written += CHUNK_BYTES as u64;
    }
    file.sync_data().map_err(failed)?;
    let rate = written as f64 / begin.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn device_rate_is_measured_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = device_rate(dir.path()).unwrap();
        assert!(first >= RATE_MIN);
        assert_eq!(fs::list_dir(dir.path()).unwrap(), ["DEVICE"]);
        std::fs::write(dir.path().join("DEVICE"), format!("{HEADER}\n{FIELD}987654321\n")).unwrap();
        assert_eq!(device_rate(dir.path()).unwrap(), 987_654_321);
        std::fs::write(dir.path().join("DEVICE"), "antumbra device 2\nother\n").unwrap();
        assert!(device_rate(dir.path()).unwrap() >= RATE_MIN, "an unknown version is measured anew");
    }
}
