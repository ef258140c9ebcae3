//! From recorded requests to segments and windows.
//!
//! Segments hold equal numbers of the trace's distinct keys (to within one), all keys of the trace counted, those seen
//! first in the test part too: a stored data set has its segments before its keys are read. Windows hold equal numbers
//! of requests (to within one).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::trace::{Op, Request};
use crate::window::SegmentCounts;

/// How keys lie in the key order of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mapping {
    /// By their value: block traces.
    Range,
    /// By their first appearance: key-value traces whose keys are created in order.
    Arrival,
    /// By a hash: the control without locality.
    Hash,
}

impl Mapping {
    const ALL: [Mapping; 3] = [Mapping::Range, Mapping::Arrival, Mapping::Hash];

    /// The name in reports and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mapping::Range => "range",
            Mapping::Arrival => "arrival",
            Mapping::Hash => "hash",
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Mapping::ALL.into_iter().find(|mapping| mapping.as_str() == text).ok_or_else(|| Error::UnknownName {
            kind: "mapping",
            given: text.to_owned(),
            known: Mapping::ALL.map(Mapping::as_str).join(", "),
        })
    }
}

/// A trace as the predictor sees it.
#[derive(Clone, Debug)]
pub struct Windowed {
    segments: usize,
    windows: usize,
    /// Counts by window, then segment.
    counts: Vec<SegmentCounts>,
    /// The segment of each request, in time order.
    segment_of: Vec<u32>,
    /// Bytes of each segment.
    bytes: Vec<u64>,
}

impl Windowed {
    /// Maps `requests` to `segments` segments and `windows` windows.
    ///
    /// Cost: one hash map of the distinct keys, 4 bytes a request, 24 bytes a segment and window.
    ///
    /// # Errors
    /// [`Error::Config`] when there are fewer requests than windows, or fewer distinct keys than segments, or when
    /// either is 0.
    pub fn new(requests: &[Request], mapping: Mapping, segments: usize, windows: usize) -> Result<Windowed> {
        let mapped = Mapped::new(requests, mapping, segments)?;
        Windowed::count(requests.iter(), mapped.segment_of, mapped.bytes, windows)
    }

    /// As [`Windowed::new`], without the first request of each key: the segments stay the same, but what may have
    /// created a key counts nowhere, since a key that does not exist cannot be copied ahead.
    ///
    /// # Errors
    /// As [`Windowed::new`], the requests left out not counted.
    pub fn of_known_keys(requests: &[Request], mapping: Mapping, segments: usize, windows: usize) -> Result<Windowed> {
        let Mapped { segment_of, is_first, bytes } = Mapped::new(requests, mapping, segments)?;
        let known = |at: &usize| !is_first[*at];
        let kept = (0..requests.len()).filter(known).map(|at| segment_of[at]).collect();
        Windowed::count((0..requests.len()).filter(known).map(|at| &requests[at]), kept, bytes, windows)
    }

    fn count<'a>(
        requests: impl Iterator<Item = &'a Request>,
        segment_of: Vec<u32>,
        bytes: Vec<u64>,
        windows: usize,
    ) -> Result<Windowed> {
        let (len, segments) = (segment_of.len(), bytes.len());
        if windows == 0 || len < windows {
            let what = format!("{windows} windows: at least 1, at most one a request, of which there are {len}");
            return Err(Error::Config { name: "windows", what });
        }
        let mut counts = vec![SegmentCounts::default(); windows * segments];
        let (mut window, mut end) = (0, request_range(len, windows, 0).end);
        for (at, (request, segment)) in requests.zip(&segment_of).enumerate() {
            if at == end {
                window += 1;
                end = request_range(len, windows, window).end;
            }
            let (reads, writes) = if request.op == Op::Get { (1, 0) } else { (0, 1) };
            counts[window * segments + *segment as usize].add(&SegmentCounts {
                reads,
                writes,
                bytes: u64::from(request.size),
                sequential: 0,
            });
        }
        Ok(Windowed { segments, windows, counts, segment_of, bytes })
    }

    /// Segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Windows.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// Bytes of each segment: the sizes of its keys, each as it was last seen.
    #[must_use]
    pub fn bytes(&self) -> &[u64] {
        &self.bytes
    }

    /// Counts of one window, by segment.
    ///
    /// # Panics
    /// When there is no such window.
    #[must_use]
    pub fn window(&self, window: usize) -> &[SegmentCounts] {
        &self.counts[window * self.segments..(window + 1) * self.segments]
    }

    /// Segments of the requests of `len` windows from `first` on, in time order.
    ///
    /// # Panics
    /// When there are no such windows.
    #[must_use]
    pub fn requests(&self, first: usize, len: usize) -> &[u32] {
        let from = request_range(self.segment_of.len(), self.windows, first).start;
        let to = request_range(self.segment_of.len(), self.windows, first + len - 1).end;
        &self.segment_of[from..to]
    }

    /// The same trace with the key order turned around.
    #[must_use]
    pub fn mirrored(&self) -> Windowed {
        let mut mirrored = self.clone();
        mirrored.counts.chunks_exact_mut(self.segments).for_each(<[SegmentCounts]>::reverse);
        mirrored.bytes.reverse();
        let last = self.segments as u32 - 1;
        mirrored.segment_of.iter_mut().for_each(|segment| *segment = last - *segment);
        mirrored
    }

    /// Accesses of each segment in `len` windows from `first` on.
    #[must_use]
    pub fn accesses(&self, first: usize, len: usize) -> Vec<u64> {
        let mut accesses = vec![0; self.segments];
        for window in first..first + len {
            accesses.iter_mut().zip(self.window(window)).for_each(|(sum, counts)| *sum += counts.accesses());
        }
        accesses
    }
}

fn request_range(requests: usize, windows: usize, window: usize) -> std::ops::Range<usize> {
    requests * window / windows..requests * (window + 1) / windows
}

/// Requests on segments, not yet in windows.
struct Mapped {
    /// The segment of each request.
    segment_of: Vec<u32>,
    /// Whether it is the first of its key.
    is_first: Vec<bool>,
    /// Bytes of each segment.
    bytes: Vec<u64>,
}

impl Mapped {
    fn new(requests: &[Request], mapping: Mapping, segments: usize) -> Result<Mapped> {
        // dense ids in the order of first appearance
        let mut ids = HashMap::new();
        let mut keys = Vec::new();
        let mut sizes = Vec::new();
        let mut segment_of: Vec<u32> = Vec::with_capacity(requests.len());
        let mut is_first = Vec::with_capacity(requests.len());
        for request in requests {
            let keys_before = keys.len();
            let id = *ids.entry(request.key).or_insert_with(|| {
                keys.push(request.key);
                sizes.push(0);
                keys.len() as u32 - 1
            });
            sizes[id as usize] = request.size;
            segment_of.push(id);
            is_first.push(keys.len() > keys_before);
        }
        if segments == 0 || keys.len() < segments {
            let what = format!("{segments} segments: at least 1, at most one a key, of which there are {}", keys.len());
            return Err(Error::Config { name: "segments", what });
        }
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        match mapping {
            Mapping::Arrival => {}
            Mapping::Range => order.sort_unstable_by_key(|id| keys[*id as usize]),
            Mapping::Hash => order.sort_unstable_by_key(|id| mix(keys[*id as usize])),
        }
        let mut segment_of_id = vec![0u32; keys.len()];
        let mut bytes = vec![0; segments];
        for (rank, id) in order.iter().enumerate() {
            let segment = rank * segments / keys.len();
            segment_of_id[*id as usize] = segment as u32;
            bytes[segment] += u64::from(sizes[*id as usize]);
        }
        segment_of.iter_mut().for_each(|id| *id = segment_of_id[*id as usize]);
        Ok(Mapped { segment_of, is_first, bytes })
    }
}

/// A bijection of 64 bits without visible order (the finalizer of splitmix64).
fn mix(key: u64) -> u64 {
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn trace(keys: &[u64]) -> Vec<Request> {
        let request = |(ts_us, key): (usize, &u64)| Request { ts_us: ts_us as u64, op: Op::Get, key: *key, size: 10 };
        keys.iter().enumerate().map(request).collect()
    }

    #[test]
    fn mappings_order_keys_as_named() {
        let requests = trace(&[50, 10, 40, 20, 50, 30]);
        let segments = |mapping| Windowed::new(&requests, mapping, 5, 2).unwrap().segment_of;
        assert_eq!(segments(Mapping::Range), [4, 0, 3, 1, 4, 2]);
        assert_eq!(segments(Mapping::Arrival), [0, 1, 2, 3, 0, 4]);
        let mut hashed = segments(Mapping::Hash);
        assert_eq!(hashed[0], hashed[4]);
        hashed.sort_unstable();
        hashed.dedup();
        assert_eq!(hashed, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn known_keys_leave_out_first_requests_and_keep_segments() {
        let requests = trace(&[50, 10, 40, 50, 20, 40, 50, 30]);
        let known = Windowed::of_known_keys(&requests, Mapping::Range, 5, 3).unwrap();
        assert_eq!(known.segment_of, [4, 3, 4]);
        assert_eq!(known.accesses(0, 3), [0, 0, 0, 1, 2]);
        assert!(Windowed::of_known_keys(&requests, Mapping::Range, 5, 4).is_err());
    }

    #[test]
    fn mirror_turns_segments_around() {
        let windowed = Windowed::new(&trace(&[1, 1, 2, 3, 3, 3]), Mapping::Range, 3, 2).unwrap();
        let mirrored = windowed.mirrored();
        assert_eq!(mirrored.accesses(0, 2), [3, 1, 2]);
        assert_eq!(mirrored.requests(0, 1), [2, 2, 1]);
        assert_eq!(mirrored.mirrored().accesses(0, 2), windowed.accesses(0, 2));
    }

    #[test]
    fn windows_and_segments_are_even() {
        let keys: Vec<u64> = (0..1003).collect();
        let windowed = Windowed::new(&trace(&keys), Mapping::Range, 10, 7).unwrap();
        for window in 0..7 {
            let accesses: u64 = windowed.window(window).iter().map(SegmentCounts::accesses).sum();
            assert!((143..=144).contains(&accesses));
            assert_eq!(windowed.requests(window, 1).len() as u64, accesses);
        }
        assert!(windowed.accesses(0, 7).iter().all(|count| (100..=101).contains(count)));
        assert_eq!(windowed.requests(0, 7).len(), 1003);
    }

    #[test]
    fn too_small_traces_are_refused() {
        let requests = trace(&[1, 1, 2]);
        let error =
            |segments, windows| Windowed::new(&requests, Mapping::Range, segments, windows).unwrap_err().to_string();
        assert!(error(3, 1).contains("3 segments"));
        assert!(error(0, 1).contains("0 segments"));
        assert!(error(1, 4).contains("4 windows"));
        assert!(error(1, 0).contains("0 windows"));
    }
}
