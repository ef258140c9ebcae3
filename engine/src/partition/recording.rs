//! The sampled request log: what `antumbra predict record` exports as a trace.
//!
//! Off by default; then a request pays one test of a pointer. On, every request of a sampled key is kept until somebody
//! takes it. Keys are sampled, not requests: a sampled key keeps all its requests, so that reuse and scans look as they
//! are, only thinner.
//!
//! - INV-REC: at most [`ENTRIES_MAX`] requests wait; later ones are counted and dropped.

use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock;

use super::Partition;

/// Requests that wait to be taken, at most.
pub const ENTRIES_MAX: usize = 200_000;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRequest {
    /// Microseconds since recording began.
    pub at_us: u64,
    /// Routing key.
    pub key: Bytes,
    /// Whether it wrote.
    pub is_write: bool,
    /// Bytes of key and value.
    pub bytes: u32,
}

/// What was taken from the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedPage {
    /// In the order in which they were served.
    pub requests: Vec<RecordedRequest>,
    /// Requests dropped so far because nobody took them in time.
    pub dropped: u64,
    /// Whether recording is on.
    pub is_on: bool,
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Recording {
    since: Duration,
    /// One key of so many is sampled.
    every: u64,
    requests: Vec<RecordedRequest>,
    dropped: u64,
}

impl Recording {
    fn new(every: u64, since: Duration) -> Recording {
        Recording { since, every: every.max(1), requests: Vec::new(), dropped: 0 }
    }

    pub(crate) fn push(&mut self, key: &[u8], is_write: bool, bytes: u64) {
        if !xxh3_64(key).is_multiple_of(self.every) {
            return;
        }
        if self.requests.len() >= ENTRIES_MAX {
            self.dropped += 1;
            return;
        }
        let at_us = u64::try_from(clock::monotonic().saturating_sub(self.since).as_micros()).unwrap_or(u64::MAX);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.requests.push(RecordedRequest { at_us, key: Bytes::copy_from_slice(key), is_write, bytes });
    }
}

impl Partition {
    /// Starts the request log anew: one key of `every` is sampled (1 = all). What an earlier one held is gone.
    ///
    /// Cost from then on: a hash a request, and a copy of the key for the sampled ones; at most [`ENTRIES_MAX`] of them
    /// in memory.
    pub fn start_recording(&self, every: u64) {
        self.access.borrow_mut().recording = Some(Box::new(Recording::new(every, clock::monotonic())));
    }

    /// Takes up to `limit` requests out of the log, oldest first; empty when nothing is recorded.
    pub fn take_recorded(&self, limit: usize) -> RecordedPage {
        let mut access = self.access.borrow_mut();
        let Some(recording) = &mut access.recording else {
            return RecordedPage::default();
        };
        let limit = limit.min(recording.requests.len());
        let rest = recording.requests.split_off(limit);
        let requests = std::mem::replace(&mut recording.requests, rest);
        RecordedPage { requests, dropped: recording.dropped, is_on: true }
    }

    /// Ends the request log and drops what it holds.
    pub fn stop_recording(&self) {
        self.access.borrow_mut().recording = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_samples_by_key_and_never_grows_beyond_its_bound() {
        let mut recording = Recording::new(4, Duration::ZERO);
        for round in 0..3u64 {
            for number in 0..1000u32 {
                recording.push(&number.to_be_bytes(), round == 1, 10);
            }
        }
        let sampled = recording.requests.len();
        assert!(sampled.is_multiple_of(3) && (150..=350).contains(&(sampled / 3)), "{sampled}");
        assert_eq!(recording.requests.iter().filter(|request| request.is_write).count(), sampled / 3);
        assert!(recording.requests.windows(2).all(|pair| pair[0].at_us <= pair[1].at_us));
        let mut all = Recording::new(0, Duration::ZERO);
        (0..ENTRIES_MAX + 7).for_each(|_| all.push(b"key", false, u64::MAX));
        assert_eq!((all.requests.len(), all.dropped), (ENTRIES_MAX, 7));
        assert_eq!(all.requests[0].bytes, u32::MAX);
    }
}
