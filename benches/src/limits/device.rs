//! What the device itself can do, measured beside the stores: direct reads and durable writes of one block.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Block of reads and writes.
const BLOCK_BYTES: usize = 4096;
/// Size of the file that is read and written.
const FILE_BYTES: u64 = 256 << 20;
/// Readers that keep the device's queue full.
const READERS: usize = 64;
/// `O_DIRECT` and `O_DSYNC` of Linux on x86-64 and on ARM.
const O_DSYNC: i32 = 0o10000;
#[cfg(target_arch = "aarch64")]
const O_DIRECT: i32 = 0o200000;
#[cfg(not(target_arch = "aarch64"))]
const O_DIRECT: i32 = 0o40000;

/// Figures of the device, by blocking calls from threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Random reads of 4 KiB a second, one at a time.
    pub reads_per_second: f64,
    /// Median latency of those.
    pub read_p50_us: f64,
    /// The same with 64 threads.
    pub reads_per_second_64: f64,
    /// Durable writes of 4 KiB a second, one at a time (O_DIRECT, O_DSYNC, into a file that is zero-filled).
    pub durable_writes_per_second: f64,
    /// Median latency of those.
    pub durable_write_p50_us: f64,
}

/// Measures the device under a folder for about `seconds` each.
///
/// # Errors
/// [`Error::Io`], for instance where the file system does not know O_DIRECT.
pub fn measure(dir: &Path, seconds: f64) -> Result<Limits> {
    let path = dir.join("limits");
    let measured = measure_file(&path, Duration::from_secs_f64(seconds));
    let removed = std::fs::remove_file(&path);
    let limits = measured.map_err(|cause| Error::io(path.display().to_string(), cause))?;
    removed.map_err(|cause| Error::io(path.display().to_string(), cause))?;
    Ok(limits)
}

fn measure_file(path: &Path, time: Duration) -> std::io::Result<Limits> {
    let mut file = File::create(path)?;
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..FILE_BYTES / chunk.len() as u64 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let mut latencies = read_for(path, time, 1)?;
    let reads_per_second = latencies.len() as f64 / time.as_secs_f64();
    let read_p50_us = median_us(&mut latencies);
    let together = std::thread::scope(|threads| {
        let readers: Vec<_> =
            (0..READERS).map(|reader| threads.spawn(move || read_for(path, time, reader as u64))).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().map_err(|_| std::io::Error::other("a reader panicked"))?)
            .map(|latencies| latencies.map(|latencies| latencies.len()))
            .sum::<std::io::Result<usize>>()
    })?;
    let mut latencies = write_for(path, time)?;
    Ok(Limits {
        reads_per_second,
        read_p50_us,
        reads_per_second_64: together as f64 / time.as_secs_f64(),
        durable_writes_per_second: latencies.len() as f64 / time.as_secs_f64(),
        durable_write_p50_us: median_us(&mut latencies),
    })
}

fn read_for(path: &Path, time: Duration, seed: u64) -> std::io::Result<Vec<Duration>> {
    let file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut buffer = Aligned::new();
    repeat_for(time, || {
        let block = random.u64(0..FILE_BYTES / BLOCK_BYTES as u64);
        file.read_exact_at(buffer.block(), block * BLOCK_BYTES as u64)
    })
}

fn write_for(path: &Path, time: Duration) -> std::io::Result<Vec<Duration>> {
    let file = OpenOptions::new().write(true).custom_flags(O_DIRECT | O_DSYNC).open(path)?;
    let mut buffer = Aligned::new();
    let mut block = 0;
    repeat_for(time, || {
        block = (block + 1) % (FILE_BYTES / BLOCK_BYTES as u64);
        file.write_all_at(buffer.block(), block * BLOCK_BYTES as u64)
    })
}

fn repeat_for(time: Duration, mut work: impl FnMut() -> std::io::Result<()>) -> std::io::Result<Vec<Duration>> {
    let begin = Instant::now();
    let mut latencies = Vec::new();
    let mut last = begin;
    while last - begin < time {
        work()?;
        let now = Instant::now();
        latencies.push(now - last);
        last = now;
    }
    Ok(latencies)
}

fn median_us(latencies: &mut [Duration]) -> f64 {
    latencies.sort_unstable();
    latencies.get(latencies.len() / 2).map_or(0.0, |median| median.as_secs_f64() * 1e6)
}

/// A block whose address the device accepts.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Aligned {
        let bytes = vec![0x5a; BLOCK_BYTES * 2];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        Aligned { bytes, start }
    }

    fn block(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK_BYTES]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn measure_gives_positive_figures_and_leaves_no_file() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let limits = super::measure(dir.path(), 0.05).unwrap();
        assert!(limits.reads_per_second > 0.0 && limits.durable_write_p50_us > 0.0, "{limits:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
