//! The segments of a partition and the tables each of them reads, as one immutable value.
//!
//! Readers hold the layout that they began with; flush and compaction install a new one in one step. A table file goes
//! when the last layout that names it is gone and the manifest no longer does.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use crate::erasure::{self, Erasure};
use crate::heads::KeyHeads;
use crate::manifest::{SegmentDesc, TableRef};
use crate::shard::files::Table;
use crate::types::{KeyRange, Lsn, SegmentId};

use super::expected::Expected;

/// Bytes that are compacted in the time that a range read needs to open one more table.
const BYTES_PER_DETOUR: u64 = 512;

/// One segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub id: SegmentId,
    /// First routing key.
    pub start: Bytes,
    /// First routing key behind the segment; `None` at the end of the keyspace.
    pub end: Option<Bytes>,
    /// The compacted table under the slices.
    pub base: Option<Rc<Table>>,
    /// What flushes left since, newest first.
    pub slices: Vec<Rc<Table>>,
    /// Range deletions that its tables do not know of yet.
    pub erasures: Rc<[Erasure]>,
    /// LSN of the last write to the segment.
    pub version: Cell<Lsn>,
    /// Compaction had the choice and cut it no finer: a large record stays larger than the target.
    pub cut: bool,
    /// Tables that range reads had to open beside the base since the last compaction.
    pub detours: Cell<u64>,
    /// What the predictor expects of it; see [`super::expected`].
    pub expected: Expected,
}

impl Segment {
    /// The tables, newest first.
    pub fn tables(&self) -> impl Iterator<Item = &Rc<Table>> {
        self.slices.iter().chain(self.base.as_ref())
    }

    /// The tables, newest first, each with whether it is the last.
    pub fn tables_last_marked(&self) -> impl Iterator<Item = (&Rc<Table>, bool)> {
        let last = self.slices.len() + usize::from(self.base.is_some());
        self.tables().enumerate().map(move |(index, table)| (table, index + 1 == last))
    }

    /// Whether it has neither tables nor range deletions.
    pub fn tables_empty(&self) -> bool {
        self.base.is_none() && self.slices.is_empty() && self.erasures.is_empty()
    }

    /// Bytes of all tables; of one that several segments share, an equal part.
    pub fn bytes(&self) -> u64 {
        self.tables().map(|table| table.bytes_per_segment()).sum()
    }

    /// Bytes of tables that are locked in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.tables().filter(|table| table.is_resident()).map(|table| table.location.len).sum()
    }

    /// What the manifest says of it.
    pub fn desc(&self) -> SegmentDesc {
        SegmentDesc {
            id: self.id,
            start_key: self.start.to_vec(),
            base: self.base.as_ref().map(|table| table.location),
            slices: self.slices.iter().map(|table| table.location).collect::<Vec<TableRef>>(),
            erasures: self.erasures.to_vec(),
        }
    }

    /// The same segment with what a flush brought on top.
    pub fn with_flushed(&self, slice: Option<Rc<Table>>, erased: &[Erasure]) -> Segment {
        let slices = slice.into_iter().chain(self.slices.iter().cloned()).collect();
        let erasures =
            if erased.is_empty() { Rc::clone(&self.erasures) } else { [&*self.erasures, erased].concat().into() };
        Segment {
            id: self.id,
            start: self.start.clone(),
            end: self.end.clone(),
            base: self.base.clone(),
            slices,
            erasures,
            version: self.version.clone(),
            cut: false,
            detours: self.detours.clone(),
            expected: self.expected.clone(),
        }
    }

    /// The same segment under another number, in another partition.
    pub fn renumbered(&self, id: SegmentId) -> Segment {
        Segment { id, cut: self.cut, ..self.with_flushed(None, &[]) }
    }

    /// Notes a range read; true if it made compaction worth its cost ([`Segment::is_worn`]).
    pub fn note_range_read(&self) -> bool {
        let was_worn = self.is_worn();
        self.detours.update(|detours| detours + self.slices.len() as u64);
        self.is_worn() && !was_worn
    }

    /// Whether range reads have lost as much time to slices as compaction takes: the bound at which renting has cost as
    /// much as buying, so that the two together never cost more than twice the better one.
    pub fn is_worn(&self) -> bool {
        self.detours.get() > self.bytes() / BYTES_PER_DETOUR
    }

    /// Notes a write at `lsn`.
    pub fn raise_version(&self, lsn: Lsn) {
        self.version.set(self.version.get().max(lsn));
    }

    /// LSN of the newest range deletion at or below `max_lsn` that covers `key`.
    pub fn erased_at(&self, key: &[u8], max_lsn: Lsn) -> Lsn {
        if self.erasures.is_empty() { Lsn(0) } else { erasure::newest_covering(&self.erasures, key, max_lsn) }
    }

    /// The key range.
    pub fn range(&self) -> KeyRange {
        KeyRange { start: self.start.to_vec(), end: self.end.as_ref().map(|end| end.to_vec()) }
    }
}

/// The segments of a partition, ascending by key, without a gap.
#[derive(Debug)]
pub(crate) struct Layout {
    pub segments: Vec<Rc<Segment>>,
    /// Heads of the start keys of all segments but the first, which begins where the partition does.
    starts: KeyHeads,
}

impl Layout {
    /// A layout of these segments.
    pub fn new(segments: Vec<Rc<Segment>>) -> Rc<Layout> {
        assert!(!segments.is_empty(), "INV-LAYOUT: a partition has at least one segment");
        assert!(
            segments.windows(2).all(|pair| pair[0].end.as_ref() == Some(&pair[1].start)),
            "INV-LAYOUT: segments meet without gap or overlap"
        );
        let starts = KeyHeads::new(segments[1..].iter().map(|segment| segment.start.as_ref()));
        Rc::new(Layout { segments, starts })
    }

    /// Index of the segment that holds `key` (a key of the partition).
    pub fn locate(&self, key: &[u8]) -> usize {
        self.starts.count_up_to(key, |index| &self.segments[index + 1].start)
    }

    /// Index of the segment that holds the largest keys below `end`.
    pub fn last_below(&self, end: Option<&Bytes>) -> usize {
        let Some(end) = end else {
            return self.segments.len() - 1;
        };
        let index = self.locate(end);
        if self.segments[index].start == *end { index.saturating_sub(1) } else { index }
    }

    /// Index of segment `id`.
    pub fn index_of(&self, id: SegmentId) -> Option<usize> {
        self.segments.iter().position(|segment| segment.id == id)
    }

    /// The layout in which the segments from `index` on, `count` of them, are replaced.
    pub fn replaced(&self, index: usize, count: usize, with: Vec<Rc<Segment>>) -> Rc<Layout> {
        let mut segments = self.segments.clone();
        segments.splice(index..index + count, with);
        Layout::new(segments)
    }
}
