//! What the predictor's scores decide beside the order of a move ([`super::transfer`]) and what stays in memory
//! ([`crate::residency`]): how much a read brings at a time, and which segment is compacted first.
//!
//! After each window every segment is told how much more it is expected to be accessed, for each of its bytes, than its
//! partition as a whole, and whether that is more than before. Readers and maintenance look at that alone: no lock, no
//! lookup, and no cost where both switches are off ([`ReadAhead`], [`CompactionOrder`]).
//!
//! Reads are wide only where accesses are *coming*: a front that moves through the keys wants the blocks behind each block,
//! while gets in a hot segment want any of them. Wide reads wherever many accesses were expected made gets in a hot fifth of
//! data that does not fit 2.6 times slower.

use std::cell::Cell;
use std::rc::Rc;

use antumbra_predictor::scorer::ScorerKind;

use crate::config::{CompactionOrder, ReadAhead};
use crate::io::runtime;
use crate::shard::files::Table;

use super::compact::SLICES_URGENT;
use super::layout::{Layout, Segment};
use super::{Hotness, Partition};

/// From here on a segment is read widely; that of residency, for the same reason: scores tremble.
const WIDE_FACTOR: f32 = 2.0;
/// Accesses come where so many times more are expected than a moving average would.
const COMES_FACTOR: f32 = 1.5;
/// Bytes of a wide read. The blocks are verified in one go by whoever reads: eight of the usual size take 30 us.
const WIDE_BYTES: usize = 64 << 10;
/// Segments that are looked at between two chances for other tasks.
const SLICE_SEGMENTS: usize = 256;

/// What is expected of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// How much more than its partition it is expected to be accessed, for each of its bytes: 1 is the mean, and what it is
    /// before a window has closed.
    concentration: Cell<f32>,
    /// Whether that is far more than it was accessed in the last windows.
    comes: Cell<bool>,
    /// The share of its accesses in the last window that hot rows did not answer.
    of_tables: Cell<f32>,
    /// Reads that hot rows have answered in the open window.
    row_reads: Cell<u32>,
}

impl Default for Expected {
    fn default() -> Expected {
        let (concentration, comes) = (Cell::new(1.0), Cell::new(false));
        Expected { concentration, comes, of_tables: Cell::new(1.0), row_reads: Cell::new(0) }
    }
}

impl Expected {
    /// Takes in what the scores make of it: accesses for each byte, by those of the whole; accesses, and as many as there
    /// would be if all went on as it was.
    fn note(&self, concentration: f64, expected: f32, lately: f32) {
        // No bytes, or no accesses at all: nothing to choose by.
        self.concentration.set(if concentration.is_finite() { concentration as f32 } else { 1.0 });
        self.comes.set(expected >= COMES_FACTOR * lately);
    }

    /// Of what comes of the segment by compaction: a part of its keys, or more than those, is expected to be accessed alike.
    pub fn inherited(&self) -> Expected {
        Expected { row_reads: Cell::new(0), ..self.clone() }
    }

    /// Counts a read that a hot row has answered.
    pub fn count_row_read(&self) {
        self.row_reads.update(|reads| reads.saturating_add(1));
    }

    /// Takes in the accesses of the window that hot rows were counted in; one without any says nothing.
    fn note_answered(&self, accesses: u64) {
        let by_rows = self.row_reads.take();
        if accesses > 0 {
            self.of_tables.set(1.0 - (by_rows as f32 / accesses as f32).min(1.0));
        }
    }

    /// Bytes that a read brings at least, if it has to ask the device.
    pub fn read_bytes(&self, read_ahead: ReadAhead) -> usize {
        match read_ahead {
            ReadAhead::Expected if self.comes.get() && self.concentration.get() >= WIDE_FACTOR => WIDE_BYTES,
            ReadAhead::Wide => WIDE_BYTES,
            ReadAhead::Growing | ReadAhead::Expected => 1,
        }
    }
}

/// How much a segment needs compaction; the greatest comes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Urgency {
    /// Slices, where they have become so many that flushes wait for it: no expectation delays that.
    overdue: usize,
    /// Tables that expected accesses would have to look into no more, for each byte that is rewritten; bits of a number
    /// that is not negative, which order as it does.
    gain: u32,
    slices: usize,
    bytes: u64,
}

impl Urgency {
    pub fn new(order: CompactionOrder, segment: &Segment) -> Urgency {
        Urgency::of(order, segment.slices.len(), segment.bytes(), segment.expected.concentration.get())
    }

    fn of(order: CompactionOrder, slices: usize, bytes: u64, expected: f32) -> Urgency {
        match order {
            CompactionOrder::Slices => Urgency { overdue: 0, gain: 0, slices, bytes },
            CompactionOrder::Expected => {
                let overdue = if slices >= SLICES_URGENT { slices } else { 0 };
                Urgency { overdue, gain: (expected * slices as f32).to_bits(), slices, bytes }
            }
        }
    }
}

impl Partition {
    /// Tells every segment how much of the window just closed its tables answered. At once: what is read from here on belongs
    /// to the next.
    pub(super) fn note_answered(&self) {
        let (access, layout) = (self.access.borrow(), self.layout.borrow());
        let closed = access.windows.history(0).unwrap_or_default();
        for (segment, counts) in layout.segments.iter().zip(closed) {
            segment.expected.note_answered(counts.accesses());
        }
    }

    /// The segments with what the predictor expects of them, less what hot rows are expected to answer.
    pub(crate) fn hotness(&self) -> Vec<Hotness> {
        let access = self.access.borrow();
        let scores = access.scores(ScorerKind::Auto);
        let layout = self.layout.borrow();
        // A segment that is written to will be compacted soon: nothing of it is loaded, what was loaded may stay.
        let wanted = |segment: &Segment, table: &&Rc<Table>| segment.slices.is_empty() || table.is_resident();
        let hot = |(segment, score): (&Rc<Segment>, &f32)| Hotness {
            score: *score * segment.expected.of_tables.get(),
            bytes: segment.bytes() as usize,
            tables: segment.tables().filter(|table| wanted(segment, table)).cloned().collect(),
        };
        // Compressed blocks are of use only unpacked: those stay the cache's.
        let in_place = |(segment, _): &(&Rc<Segment>, &f32)| segment.tables().all(|table| table.is_readable_in_place());
        layout.segments.iter().zip(scores).filter(in_place).map(hot).filter(|hot| !hot.tables.is_empty()).collect()
    }

    /// Tells every segment what the scores of the window just closed make of it, if anybody wants to know. A layout that
    /// changes meanwhile ends it: the next window comes soon.
    pub(super) async fn note_expected(&self) {
        let in_use = self.shard.read_ahead() == ReadAhead::Expected
            || self.shard.compaction_order() == CompactionOrder::Expected;
        if !in_use {
            return;
        }
        let layout = self.layout();
        let (mut accesses, mut bytes) = (0.0, 0);
        let slices = || (0..layout.segments.len()).step_by(SLICE_SEGMENTS);
        for first in slices() {
            let summed = self.each_expected(&layout, first, |segment, score, _| {
                accesses += f64::from(score);
                bytes += segment.bytes();
            });
            if !summed {
                return;
            }
            runtime::yield_now().await;
        }
        let mean = accesses / bytes as f64;
        for first in slices() {
            let told = self.each_expected(&layout, first, |segment, score, lately| {
                segment.expected.note(f64::from(score) / segment.bytes() as f64 / mean, score, lately);
            });
            if !told {
                return;
            }
            runtime::yield_now().await;
        }
    }

    /// Hands some segments to `each`, with their scores by the guard and by the moving average; false if the layout is
    /// another by now.
    fn each_expected(&self, layout: &Rc<Layout>, first: usize, mut each: impl FnMut(&Segment, f32, f32)) -> bool {
        if !Rc::ptr_eq(layout, &self.layout.borrow()) {
            return false;
        }
        let access = self.access.borrow();
        let scores = access.scores(ScorerKind::Auto).iter().zip(access.scores(ScorerKind::Ewma));
        let some = layout.segments.iter().zip(scores).skip(first).take(SLICE_SEGMENTS);
        some.for_each(|(segment, (score, lately))| each(segment, score.max(0.0), *lately));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hot_rows_answered_is_not_expected_of_tables() {
        let expected = Expected::default();
        assert_eq!(expected.of_tables.get(), 1.0);
        let window = |by_rows: usize, accesses| {
            (0..by_rows).for_each(|_| expected.count_row_read());
            expected.note_answered(accesses);
            expected.of_tables.get()
        };
        assert_eq!(window(75, 100), 0.25);
        assert_eq!(window(0, 0), 0.25, "a window without accesses says nothing");
        assert_eq!(window(120, 100), 0.0);
        assert_eq!(window(0, 100), 1.0);
        expected.count_row_read();
        assert_eq!(expected.inherited().row_reads.get(), 0);
    }

    #[test]
    fn reads_are_wide_everywhere_or_where_many_come_or_nowhere() {
        // Concentration, expected, lately.
        let cases = [(0.0, 0.0, 0.0), (1.9, 50.0, 1.0), (2.0, 50.0, 1.0), (9.0, 50.0, 49.0), (f64::NAN, 0.0, 0.0)];
        let of = |read_ahead| {
            cases.map(|(concentration, expected, lately)| {
                let noted = Expected::default();
                noted.note(concentration, expected, lately);
                noted.read_bytes(read_ahead)
            })
        };
        assert_eq!(of(ReadAhead::Growing), [1; 5]);
        assert_eq!(of(ReadAhead::Expected), [1, 1, WIDE_BYTES, 1, 1], "hot all along is no reason");
        assert_eq!(of(ReadAhead::Wide), [WIDE_BYTES; 5]);
        assert_eq!(Expected::default().read_bytes(ReadAhead::Expected), 1, "nothing is known yet");
    }

    #[test]
    fn the_expected_order_changes_which_segment_is_compacted_first() {
        // Slices, bytes, expectation.
        let segments = [(4, 100, 5.0), (6, 100, 0.5), (5, 900, 0.0), (7, 100, 0.4)];
        let first = |order, segments: &[(usize, u64, f32)]| {
            let urgency = |index: &usize| {
                let (slices, bytes, expected) = segments[*index];
                Urgency::of(order, slices, bytes, expected)
            };
            (0..segments.len()).max_by_key(urgency)
        };
        assert_eq!(first(CompactionOrder::Slices, &segments), Some(3));
        assert_eq!(first(CompactionOrder::Expected, &segments), Some(0));
        assert_eq!(first(CompactionOrder::Expected, &segments[1..]), Some(0), "6 slices at 0.5 before 7 at 0.4");
        let with_debt = [segments[0], (SLICES_URGENT, 1, 0.0)];
        assert_eq!(first(CompactionOrder::Expected, &with_debt), Some(1), "what flushes wait for goes first");
        let alike = [(4, 100, 1.0), (4, 200, 1.0), (5, 50, 1.0)];
        assert_eq!(first(CompactionOrder::Expected, &alike), first(CompactionOrder::Slices, &alike));
    }
}
