//! What a linearizable store may answer: one register per key, at most one write of a key outstanding.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
struct Register {
    /// Version of the last write issued.
    issued: AtomicU32,
    /// Largest version that was acknowledged or read.
    seen: AtomicU32,
    /// Largest version that was acknowledged.
    acked: AtomicU32,
    busy: AtomicBool,
}

/// Counts of what was found.
#[derive(Debug, Default)]
pub struct Counts {
    pub reads: AtomicU64,
    pub reads_failed: AtomicU64,
    pub reads_stale: AtomicU64,
    pub writes: AtomicU64,
    pub writes_failed: AtomicU64,
    pub writes_acked: AtomicU64,
    pub moved: AtomicU64,
    /// The first failures, in words.
    failures: Mutex<Vec<String>>,
}

/// Failures that are kept in words.
const FAILURES_KEPT: usize = 10;

impl Counts {
    /// Keeps the words of a failure, unless there are enough.
    pub fn note_failure(&self, what: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_KEPT {
            failures.push(what);
        }
    }

    /// The first failures.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The model of all keys.
#[derive(Debug)]
pub struct Model {
    registers: Vec<Register>,
    pub counts: Counts,
}

impl Model {
    /// A model in which every key has version 0, loaded before.
    pub fn new(keys: u32) -> Model {
        Model { registers: (0..keys).map(|_| Register::default()).collect(), counts: Counts::default() }
    }

    /// The version to write; `None` while another write of the key is outstanding.
    pub fn begin_write(&self, rank: u32) -> Option<u32> {
        let register = &self.registers[rank as usize];
        if register.busy.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(register.issued.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The write was acknowledged, or not: then it may or may not have taken place.
    pub fn end_write(&self, rank: u32, version: u32, acked: bool) {
        let register = &self.registers[rank as usize];
        if acked {
            register.acked.fetch_max(version, Ordering::AcqRel);
            register.seen.fetch_max(version, Ordering::AcqRel);
        }
        register.busy.store(false, Ordering::Release);
    }

    /// The version that a read which begins now has to return at least.
    pub fn begin_read(&self, rank: u32) -> u32 {
        self.registers[rank as usize].seen.load(Ordering::Acquire)
    }

    /// Whether `version` was a right answer for a read that began at `floor`.
    pub fn end_read(&self, rank: u32, floor: u32, version: u32) -> bool {
        let register = &self.registers[rank as usize];
        let right = version >= floor && version <= register.issued.load(Ordering::Acquire);
        register.seen.fetch_max(version, Ordering::AcqRel);
        right
    }

    /// Whether the store lost an acknowledged write: its last version is `found`.
    pub fn is_lost(&self, rank: u32, found: Option<u32>) -> bool {
        let register = &self.registers[rank as usize];
        match found {
            Some(version) => {
                version < register.acked.load(Ordering::Acquire) || version > register.issued.load(Ordering::Acquire)
            }
            None => true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_below_an_acknowledged_version_are_stale() {
        let model = Model::new(1);
        let version = model.begin_write(0).unwrap();
        assert_eq!(model.begin_write(0), None, "one write of a key at a time");
        let floor = model.begin_read(0);
        assert!(model.end_read(0, floor, 0), "the write is not acknowledged yet");
        model.end_write(0, version, true);
        let floor = model.begin_read(0);
        assert!(!model.end_read(0, floor, 0));
        assert!(model.end_read(0, floor, 1));
        assert!(!model.end_read(0, floor, 2), "never written");
        assert!(model.is_lost(0, Some(0)) && model.is_lost(0, None) && !model.is_lost(0, Some(1)));
    }

    #[test]
    fn a_version_that_was_read_is_never_taken_back() {
        let model = Model::new(1);
        model.begin_write(0).unwrap();
        assert!(model.end_read(0, 0, 1), "an unacknowledged write may be seen");
        let floor = model.begin_read(0);
        assert!(!model.end_read(0, floor, 0));
    }
}
