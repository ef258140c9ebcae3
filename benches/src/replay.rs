//! Recorded requests, as a store replays them: each key of the trace is a number, in the order of the trace's keys.

use std::path::Path;
use std::sync::Arc;

use antumbra_predictor::trace::{self, Op, Request};

use crate::error::{Error, Result};

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its key.
    pub number: u32,
    /// It overwrites; else it reads.
    pub writes: bool,
}

/// A trace.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Different keys.
    pub keys: u64,
    /// Its requests in their order.
    pub requests: Arc<[Recorded]>,
}

impl Recording {
    /// Reads a trace; 24 bytes of memory a request meanwhile.
    ///
    /// # Errors
    /// [`Error::Refused`] naming the file, also when the trace is empty.
    pub fn read(path: &Path) -> Result<Recording> {
        let refused = |what: String| Error::refused(format!("--trace {}: {what}", path.display()));
        let requests = trace::read_all(path).map_err(|cause| refused(cause.to_string()))?;
        if requests.is_empty() {
            return Err(refused("no request in it".into()));
        }
        Ok(Recording::of(&requests))
    }

    fn of(requests: &[Request]) -> Recording {
        let mut keys: Vec<u64> = requests.iter().map(|request| request.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let recorded = |request: &Request| Recorded {
            number: keys.partition_point(|key| *key < request.key) as u32,
            writes: request.op == Op::Put,
        };
        Recording { keys: keys.len() as u64, requests: requests.iter().map(recorded).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_numbers_in_their_order() {
        let request = |key: u64, op: Op| Request { ts_us: 0, op, key, size: 1 };
        let recording = Recording::of(&[request(900, Op::Get), request(7, Op::Put), request(900, Op::Put)]);
        assert_eq!(recording.keys, 2);
        let expected = [(1, false), (0, true), (1, true)].map(|(number, writes)| Recorded { number, writes });
        assert_eq!(recording.requests.as_ref(), expected);
    }
}
