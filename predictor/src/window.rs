//! What the data path counts: per segment, in the open window and in the last 64 closed ones.
//!
//! Recording is two or three additions on one cache line: no branch on history, no allocation, no clock. Who owns the
//! partition decides when a window closes (design: every second, adaptive). Counters saturate instead of wrapping.
//!
//! History follows the segment structure: a split divides it, a merge adds it, so that scorers may be rebuilt from it.

/// Closed windows that are kept.
pub const HISTORY_WINDOWS: usize = 64;

/// Accesses of one segment in one window.
///
/// # Example
/// ```
/// use antumbra_predictor::SegmentCounts;
/// let mut counts = SegmentCounts { reads: 2, writes: 1, ..SegmentCounts::default() };
/// counts.add(&SegmentCounts { reads: 3, ..SegmentCounts::default() });
/// assert_eq!(counts.accesses(), 6);
/// ```
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentCounts {
    /// Reads.
    pub reads: u32,
    /// Writes.
    pub writes: u32,
    /// Bytes read and written.
    pub bytes: u64,
    /// Reads that came right after a read of the segment to the left: a scan that moves through the key order.
    pub sequential: u32,
}

impl SegmentCounts {
    /// Reads and writes together.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        u64::from(self.reads) + u64::from(self.writes)
    }

    /// Adds `other`, saturating.
    pub fn add(&mut self, other: &SegmentCounts) {
        self.reads = self.reads.saturating_add(other.reads);
        self.writes = self.writes.saturating_add(other.writes);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.sequential = self.sequential.saturating_add(other.sequential);
    }

    /// Takes `left_share` (0..=1) of the counts out and returns them; what is taken and what stays add up exactly.
    fn split_off_left(&mut self, left_share: f32) -> SegmentCounts {
        let share = f64::from(left_share);
        let part = |count: u64| ((count as f64 * share).round() as u64).min(count);
        let part32 = |count: u32| part(u64::from(count)) as u32;
        let left = SegmentCounts {
            reads: part32(self.reads),
            writes: part32(self.writes),
            bytes: part(self.bytes),
            sequential: part32(self.sequential),
        };
        self.reads -= left.reads;
        self.writes -= left.writes;
        self.bytes -= left.bytes;
        self.sequential -= left.sequential;
        left
    }
}

/// `left_share` as every split uses it: within 0..=1, and one half where the caller's figure is no number.
#[must_use]
pub(crate) fn checked_share(left_share: f32) -> f32 {
    if left_share.is_nan() { 0.5 } else { left_share.clamp(0.0, 1.0) }
}

/// The access counters of one partition, by segment index in key order.
///
/// Cost: `65 * segments * 24` bytes.
///
/// # Example
/// ```
/// use antumbra_predictor::AccessWindows;
/// let mut windows = AccessWindows::new(4);
/// windows.record_read(1, 100);
/// windows.record_write(1, 50);
/// assert_eq!(windows.open()[1].accesses(), 2);
/// assert_eq!(windows.close()[1].bytes, 150);
/// assert_eq!(windows.history(0).expect("one was closed")[1].reads, 1);
/// windows.split(1, 0.5); // segment 1 was cut in two halves
/// assert_eq!(windows.len(), 5);
/// windows.merge(1);
/// assert!(!windows.is_empty() && windows.len() == 4);
/// ```
#[derive(Clone, Debug)]
pub struct AccessWindows {
    open: Vec<SegmentCounts>,
    /// Ring of closed windows, each as long as `open`; `newest` is the one closed last.
    closed: Vec<Vec<SegmentCounts>>,
    newest: usize,
    closed_len: usize,
    last_read: usize,
}

impl AccessWindows {
    /// Counters of `segments` segments, all zero.
    #[must_use]
    pub fn new(segments: usize) -> AccessWindows {
        AccessWindows {
            open: vec![SegmentCounts::default(); segments],
            closed: vec![vec![SegmentCounts::default(); segments]; HISTORY_WINDOWS],
            newest: 0,
            closed_len: 0,
            last_read: usize::MAX,
        }
    }

    /// Segments counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there is no segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Counts a read of `bytes` bytes. An index past the end is not counted.
    ///
    /// Cost: O(1), no allocation.
    #[inline]
    pub fn record_read(&mut self, segment_index: usize, bytes: u64) {
        if let Some(counts) = self.open.get_mut(segment_index) {
            counts.reads = counts.reads.saturating_add(1);
            counts.bytes = counts.bytes.saturating_add(bytes);
            let from_left = self.last_read.wrapping_add(1) == segment_index && segment_index > 0;
            counts.sequential = counts.sequential.saturating_add(u32::from(from_left));
            self.last_read = segment_index;
        }
    }

    /// Counts a write of `bytes` bytes. An index past the end is not counted.
    ///
    /// Cost: O(1), no allocation.
    #[inline]
    pub fn record_write(&mut self, segment_index: usize, bytes: u64) {
        if let Some(counts) = self.open.get_mut(segment_index) {
            counts.writes = counts.writes.saturating_add(1);
            counts.bytes = counts.bytes.saturating_add(bytes);
        }
    }

    /// Closes the open window, opens an empty one and returns the closed one's counts, by segment index.
    ///
    /// Cost: O(segments), no allocation.
    pub fn close(&mut self) -> &[SegmentCounts] {
        self.newest = (self.newest + 1) % HISTORY_WINDOWS;
        self.closed_len = (self.closed_len + 1).min(HISTORY_WINDOWS);
        let closed = &mut self.closed[self.newest];
        std::mem::swap(&mut self.open, closed);
        self.open.fill(SegmentCounts::default());
        closed
    }

    /// Counts of the window closed `age` windows before the last one (0 = the last), or none when it is not kept.
    #[must_use]
    pub fn history(&self, age: usize) -> Option<&[SegmentCounts]> {
        (age < self.closed_len).then(|| {
            let index = (self.newest + HISTORY_WINDOWS - age) % HISTORY_WINDOWS;
            self.closed[index].as_slice()
        })
    }

    /// Counts of the open window.
    #[must_use]
    pub fn open(&self) -> &[SegmentCounts] {
        &self.open
    }

    /// Splits the segment at `index`: it becomes the segments `index` (with `left_share` of each count, 0..=1) and
    /// `index + 1` (with the rest).
    ///
    /// # Panics
    /// When there is no such segment: the caller's structure and the counters would drift apart.
    pub fn split(&mut self, index: usize, left_share: f32) {
        assert!(index < self.len(), "split of segment {index} of {}", self.len());
        let share = checked_share(left_share);
        for window in self.closed.iter_mut().chain([&mut self.open]) {
            let left = window[index].split_off_left(share);
            window.insert(index, left);
        }
        self.last_read = usize::MAX;
    }

    /// Merges the segment at `index` with its right neighbour: their counts are added.
    ///
    /// # Panics
    /// When there is no right neighbour.
    pub fn merge(&mut self, index: usize) {
        assert!(index + 1 < self.len(), "merge of segment {index} of {}", self.len());
        for window in self.closed.iter_mut().chain([&mut self.open]) {
            let right = window.remove(index + 1);
            window[index].add(&right);
        }
        self.last_read = usize::MAX;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn record_counts_reads_writes_and_sequential() {
        let mut windows = AccessWindows::new(3);
        for index in [0, 1, 2, 2, 0, 9] {
            windows.record_read(index, 10);
        }
        windows.record_write(1, 7);
        let closed = windows.close();
        assert_eq!(closed[0], SegmentCounts { reads: 2, writes: 0, bytes: 20, sequential: 0 });
        assert_eq!(closed[1], SegmentCounts { reads: 1, writes: 1, bytes: 17, sequential: 1 });
        assert_eq!(closed[2], SegmentCounts { reads: 2, writes: 0, bytes: 20, sequential: 1 });
        assert!(windows.open().iter().all(|counts| counts.accesses() == 0));
    }

    #[test]
    fn record_saturates() {
        let mut windows = AccessWindows::new(1);
        windows.open[0] = SegmentCounts { reads: u32::MAX, writes: u32::MAX, bytes: u64::MAX - 1, sequential: 0 };
        windows.record_read(0, 5);
        windows.record_write(0, 5);
        assert_eq!(windows.open[0].reads, u32::MAX);
        assert_eq!(windows.open[0].writes, u32::MAX);
        assert_eq!(windows.open[0].bytes, u64::MAX);
    }

    #[test]
    fn history_keeps_the_last_64_windows_newest_first() {
        let mut windows = AccessWindows::new(1);
        assert!(windows.history(0).is_none());
        for window in 0..100u64 {
            windows.record_read(0, window);
            windows.close();
        }
        assert_eq!(windows.history(0).unwrap()[0].bytes, 99);
        assert_eq!(windows.history(63).unwrap()[0].bytes, 36);
        assert!(windows.history(64).is_none());
    }

    #[test]
    fn close_does_not_move_to_other_memory() {
        let mut windows = AccessWindows::new(4);
        let capacity: usize = windows.closed.iter().map(Vec::capacity).sum();
        for _ in 0..1000 {
            windows.close();
        }
        assert_eq!(windows.closed.iter().map(Vec::capacity).sum::<usize>(), capacity);
    }

    #[derive(Clone, Debug)]
    enum Action {
        Read(usize, u64),
        Write(usize, u64),
        Close,
        Split(usize, f32),
        Merge(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            6 => (0..20usize, 0..1000u64).prop_map(|(index, bytes)| Action::Read(index, bytes)),
            6 => (0..20usize, 0..1000u64).prop_map(|(index, bytes)| Action::Write(index, bytes)),
            2 => Just(Action::Close),
            1 => (0..20usize, prop_oneof![0.0f32..=1.0, Just(f32::NAN), Just(2.0)]).prop_map(|(i, s)| Action::Split(i, s)),
            1 => (0..20usize).prop_map(Action::Merge),
        ]
    }

    proptest! {
        #[test]
        fn totals_survive_every_split_and_merge(actions in prop::collection::vec(action(), 0..120)) {
            let mut windows = AccessWindows::new(4);
            let mut totals = vec![(0u64, 0u64)];
            for action in actions {
                match action {
                    Action::Read(index, bytes) | Action::Write(index, bytes) => {
                        if index < windows.len() {
                            let last = totals.last_mut().unwrap();
                            *last = (last.0 + 1, last.1 + bytes);
                        }
                        match action {
                            Action::Read(..) => windows.record_read(index, bytes),
                            _ => windows.record_write(index, bytes),
                        }
                    }
                    Action::Close => {
                        windows.close();
                        totals.push((0, 0));
                    }
                    Action::Split(index, share) => {
                        if index < windows.len() {
                            windows.split(index, share);
                        }
                    }
                    Action::Merge(index) => {
                        if index + 1 < windows.len() {
                            windows.merge(index);
                        }
                    }
                }
                let sum = |counts: &[SegmentCounts]| {
                    counts.iter().fold((0, 0), |sum, c| (sum.0 + c.accesses(), sum.1 + c.bytes))
                };
                prop_assert_eq!(sum(windows.open()), *totals.last().unwrap());
                for (age, total) in totals.iter().rev().skip(1).take(HISTORY_WINDOWS).enumerate() {
                    prop_assert_eq!(sum(windows.history(age).unwrap()), *total);
                }
            }
        }
    }
}
