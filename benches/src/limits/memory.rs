//! Bandwidth of memory: copies of what no cache holds.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes of a copy.
const COPY_BYTES: usize = 64 << 20;

/// Bytes copied a second, read and written once each: by one core and by all.
pub(super) fn measure(time: Duration) -> Vec<(&'static str, &'static str, f64)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let together = std::thread::scope(|threads| {
        let copying: Vec<_> = (0..cores).map(|_| threads.spawn(|| copied_per_second(time))).collect();
        copying.into_iter().filter_map(|thread| thread.join().ok()).sum::<f64>()
    });
    vec![("copy, one core", "GB/s", copied_per_second(time) / 1e9), ("copy, all cores", "GB/s", together / 1e9)]
}

fn copied_per_second(time: Duration) -> f64 {
    let (from, mut to) = (vec![0x5a_u8; COPY_BYTES], vec![0_u8; COPY_BYTES]);
    let (begin, mut copies) = (Instant::now(), 0);
    while copies == 0 || begin.elapsed() < time {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        copies += 1;
    }
    (copies * COPY_BYTES) as f64 / begin.elapsed().as_secs_f64()
}
