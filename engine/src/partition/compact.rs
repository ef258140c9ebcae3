//! Compaction: the base and the slices of one segment become a new base, cut where it has outgrown the target.
//!
//! The unit of work is one segment, so the time until the next foreground request stays short. Segments next to each
//! other that have become small are merged. While the layout is pinned (a shadow is attached, or a digest runs)
//! segments keep their bounds and are only rewritten.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use crate::clock;
use crate::erasure::{self, Erasure};
use crate::error::Result;
use crate::governor::IoClass;
use crate::manifest::{ManifestEdit, SegmentDesc};
use crate::merge::{MergeIter, Part, Retain, Source};
use crate::shard::files::Table;
use crate::table::Purpose;
use crate::types::{KeyRange, Lsn, SegmentId};

use super::expected::Urgency;
use super::layout::{Layout, Segment};
use super::output::TableFileWriter;
use super::{Partition, Serving};

/// Slices of a segment at which it is compacted.
pub(crate) const SLICES_MAX: usize = 6;
/// Range deletions of a segment at which it is compacted: each costs every read of the segment a comparison.
const ERASURES_MAX: usize = 16;
/// Slices of a segment at which its compaction is as urgent as a flush: reads and space suffer more than other I/O.
pub(super) const SLICES_URGENT: usize = 2 * SLICES_MAX;
/// Bytes of one read of a source at least, however many there are.
pub(super) const READ_BYTES_MIN: usize = 32 << 10;
/// Records written between two looks at the pace, and for a memtable that waits.
pub(super) const LOOK_RECORDS: u64 = 64;
/// A segment above `target * SPLIT_FACTOR` is cut.
const SPLIT_FACTOR: u64 = 2;
/// Neighbours that together stay below `target / MERGE_DIVISOR` become one.
const MERGE_DIVISOR: u64 = 4;

/// A piece of the new base.
struct Piece {
    /// First key; for the first piece the segment's own start.
    start: Bytes,
    table: Option<Rc<Table>>,
    /// Range deletions that a snapshot still needs.
    erasures: Vec<Erasure>,
}

/// What a segment was given while its compaction took place.
struct Flushed {
    /// Newest first. Where the segment is cut, each piece has them all: tables may reach further (`INV-SPLIT`).
    slices: Vec<Rc<Table>>,
    erasures: Vec<Erasure>,
}

/// Keeps the layout's bounds as they are while it lives.
#[derive(Debug)]
pub(crate) struct LayoutPin {
    pins: Rc<Cell<u32>>,
}

impl Drop for LayoutPin {
    fn drop(&mut self) {
        self.pins.set(self.pins.get() - 1);
    }
}

impl Partition {
    /// Keeps every segment's bounds until the pin is dropped.
    pub(crate) async fn pin_layout(&self) -> LayoutPin {
        // A compaction under way may still split: wait it out.
        let _guard = self.maintenance.lock().await;
        self.pin_layout_now()
    }

    /// As [`Partition::pin_layout`], of a partition that no maintenance works on.
    pub(super) fn pin_layout_now(&self) -> LayoutPin {
        self.layout_pins.set(self.layout_pins.get() + 1);
        LayoutPin { pins: Rc::clone(&self.layout_pins) }
    }

    /// Whether a segment has so many slices that flushes should wait for its compaction.
    pub(crate) fn is_in_debt(&self) -> bool {
        self.layout.borrow().segments.iter().any(|segment| segment.slices.len() >= SLICES_URGENT)
    }

    /// Compactions that are due behind a flush on average, if it gives every segment a slice.
    pub(super) fn compactions_for_flush(&self) -> usize {
        self.layout.borrow().segments.len().div_ceil(SLICES_MAX)
    }

    /// Compactions that are due for what has been flushed.
    pub(crate) fn owed_compactions(&self) -> usize {
        self.owed_compactions.get()
    }

    /// Bytes of all tables, about.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.table_bytes.get()
    }

    /// Bytes that the compactions which are due rewrite, about.
    pub(crate) fn owed_bytes(&self) -> f64 {
        self.owed_compactions.get() as f64 * self.mean_segment_bytes()
    }

    fn mean_segment_bytes(&self) -> f64 {
        self.table_bytes.get() as f64 / self.layout.borrow().segments.len() as f64
    }

    /// To be called when tables have come or gone.
    pub(super) fn count_table_bytes(&self) {
        self.table_bytes.set(self.layout.borrow().segments.iter().map(|segment| segment.bytes()).sum());
    }

    /// Compacts the segment that needs it most; false if none does.
    pub(crate) async fn compact_next(&self) -> Result<bool> {
        let compacted = match self.lock_maintenance().await {
            Some(_guard) => self.compact_next_locked().await,
            None => Ok(false),
        };
        // Nobody is to wait for what does not come (`INV-PACE-ENDS`).
        self.owed_compactions.update(|owed| if matches!(compacted, Ok(true)) { owed.saturating_sub(1) } else { 0 });
        self.count_table_bytes();
        // A compaction that failed has not told its end.
        self.shard.note_compacted(0.0);
        compacted
    }

    async fn compact_next_locked(&self) -> Result<bool> {
        let layout = self.layout();
        // Those that somebody still needs would come out of the compaction again.
        let oldest = self.oldest_reader();
        let erased =
            |segment: &Segment| segment.erasures.iter().filter(|erasure| erasure.lsn <= oldest).count() >= ERASURES_MAX;
        let horizon_ms = self.snapshots.expiry_horizon_ms(clock::wall_ms());
        let stale = |segment: &Segment| {
            segment.tables().any(|table| table.is_stale(horizon_ms) && table.location.max_lsn <= oldest)
        };
        let needs = |segment: &&Rc<Segment>| {
            let sliced = segment.slices.len() >= SLICES_MAX || (!segment.slices.is_empty() && segment.is_worn());
            sliced || self.is_oversized(segment) || erased(segment) || stale(segment)
        };
        let order = self.shard.compaction_order();
        let urgency = |segment: &&Rc<Segment>| Urgency::new(order, segment);
        let candidate = layout.segments.iter().filter(needs).max_by_key(urgency);
        if let Some(segment) = candidate {
            self.compact_run(&layout, segment.id, 1).await?;
            return Ok(true);
        }
        if let Some(index) = self.small_neighbours(&layout) {
            self.compact_run(&layout, layout.segments[index].id, 2).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Flushes and compacts until every segment is one base table of its proper size.
    ///
    /// # Errors
    /// As the I/O below; what has been installed until then stays.
    pub async fn compact_all(&self) -> Result<()> {
        self.freeze_memtable();
        while self.flush_oldest().await? {}
        loop {
            let Some(guard) = self.lock_maintenance().await else {
                return Ok(());
            };
            let layout = self.layout();
            let oldest = self.oldest_reader();
            let dirty = |segment: &&Rc<Segment>| {
                let erased = segment.erasures.iter().any(|erasure| erasure.lsn <= oldest);
                !segment.slices.is_empty() || self.is_oversized(segment) || erased
            };
            let Some(segment) = layout.segments.iter().find(dirty) else {
                return Ok(());
            };
            self.compact_run(&layout, segment.id, 1).await?;
            drop(guard);
        }
    }

    /// Range deletions up to here may end in a compaction.
    fn oldest_reader(&self) -> Lsn {
        match self.serving() {
            _ if self.lacks_any() => Lsn(0),
            Serving::Shadow { .. } => Lsn(0),
            Serving::Owner | Serving::Frozen | Serving::Suspended | Serving::Released { .. } => {
                let visible = self.progress.borrow().visible();
                let oldest = self.snapshots.lsns().first().map_or(visible, |oldest| visible.min(*oldest));
                self.kept_since().map_or(oldest, |since| oldest.min(since))
            }
        }
    }

    /// Flushes, then rewrites every segment that `range` touches, so that what was overwritten, deleted or has expired
    /// there gives its space back, unless a snapshot needs it.
    ///
    /// # Errors
    /// As [`Partition::compact_all`].
    pub async fn compact_range(&self, range: &KeyRange) -> Result<()> {
        self.freeze_memtable();
        while self.flush_oldest().await? {}
        let touched = |segment: &Segment| !segment.tables_empty() && segment.range().overlaps(range);
        let wanted: Vec<SegmentId> =
            self.layout().segments.iter().filter(|segment| touched(segment)).map(|segment| segment.id).collect();
        for segment in wanted {
            // One that was split or merged meanwhile has been rewritten by that.
            let Some(_guard) = self.lock_maintenance().await else {
                return Ok(());
            };
            let layout = self.layout();
            self.compact_run(&layout, segment, 1).await?;
        }
        Ok(())
    }

    /// Segments keep their bounds while somebody pins them, and in a shadow and a copy that was handed over: those of
    /// both hosts are to be the same for a roll-back.
    fn keeps_bounds(&self) -> bool {
        self.layout_pins.get() > 0 || matches!(self.serving(), Serving::Released { .. } | Serving::Shadow { .. })
    }

    fn is_oversized(&self, segment: &Segment) -> bool {
        !self.keeps_bounds() && !segment.cut && segment.bytes() > self.options.segment_target_bytes * SPLIT_FACTOR
    }

    fn small_neighbours(&self, layout: &Layout) -> Option<usize> {
        if self.keeps_bounds() {
            return None;
        }
        let limit = self.options.segment_target_bytes / MERGE_DIVISOR;
        layout.segments.windows(2).position(|pair| pair[0].bytes() + pair[1].bytes() < limit)
    }

    /// Rewrites `count` neighbouring segments from `first` on.
    async fn compact_run(&self, layout: &Rc<Layout>, first: SegmentId, count: usize) -> Result<()> {
        let Some(index) = layout.index_of(first) else {
            return Ok(());
        };
        let run = &layout.segments[index..index + count];
        // What is merged is small, and never cut: the size at which a piece is cut counts its open block before
        // compression, so that small neighbours could be merged and cut again for ever.
        let may_cut = count == 1 && !self.keeps_bounds();
        let pieces = self.write_pieces(run, may_cut).await?;
        let flushed = self.flushed_onto(index, run);
        let replacement: Vec<Rc<Segment>> = self.segments_of(run, &pieces, &flushed, may_cut);
        let add: Vec<SegmentDesc> = replacement.iter().map(|segment| segment.desc()).collect();
        let mut edits: Vec<ManifestEdit> = ManifestEdit::erasures_of(self.id, &add).collect();
        let remove = run.iter().map(|segment| segment.id).collect();
        edits.insert(0, ManifestEdit::ReplaceSegments { partition: self.id, remove, add });
        self.shard.log_edits(edits).await?;
        flushed.slices.iter().for_each(|slice| slice.share(replacement.len()));
        self.install(index, run, replacement);
        self.shard.note_compacted(0.0);
        for table in run.iter().flat_map(|segment| segment.tables()).filter(|table| table.is_retired()) {
            table.forget_blocks().await;
        }
        Ok(())
    }

    /// Merges the run into new base tables; each goes into a file of its own.
    async fn write_pieces(&self, run: &[Rc<Segment>], may_cut: bool) -> Result<Vec<Piece>> {
        let (start, end) = (run[0].start.clone(), run[run.len() - 1].end.clone());
        // What is read ahead is memory: all sources together have one share of it.
        let share = self.shard.read_ahead_bytes();
        let purpose = |sources: usize| Purpose::Maintain { read_bytes: (share / sources.max(1)).max(READ_BYTES_MIN) };
        let sources = table_sources(run.iter(), purpose);
        let (snapshots, visible) = (self.snapshots.lsns(), self.progress.borrow().visible());
        let retain = match self.serving() {
            // Older records may still come, with the mirror or with a missing segment: they must find the tombstone.
            _ if self.lacks_any() => Retain::needed(&snapshots, visible),
            Serving::Shadow { .. } => Retain::needed(&snapshots, visible),
            Serving::Owner | Serving::Frozen | Serving::Suspended | Serving::Released { .. } => {
                let horizon_ms = self.snapshots.expiry_horizon_ms(clock::wall_ms());
                Retain::needed_at_bottom(&snapshots, visible, horizon_ms).remembering_since(self.kept_since())
            }
        };
        let urgent = run.iter().any(|segment| segment.slices.len() >= SLICES_URGENT);
        let class = if urgent { IoClass::Flush } else { IoClass::Compaction };
        let erasures: Vec<Erasure> = run.iter().flat_map(|segment| segment.erasures.iter().cloned()).collect();
        let mut left = erasures.clone();
        retain.keep_erasures(&mut left);
        let mut records = MergeIter::new(sources, retain).erased_by(erasures);
        let mut pieces = vec![Piece { start, table: None, erasures: Vec::new() }];
        let mut writer: Option<TableFileWriter> = None;
        let mut last_key = Bytes::new();
        let total: u64 = run.iter().flat_map(|segment| segment.tables()).map(|table| table.meta().records).sum();
        let mut done: u64 = 0;
        while records.advance().await? {
            let record = records.current();
            let grown =
                writer.as_ref().is_some_and(|open| open.table_bytes() as u64 >= self.options.segment_target_bytes);
            if may_cut && grown && record.key != last_key.as_ref() {
                self.end_piece(writer.take(), &mut pieces).await?;
                let start = Bytes::copy_from_slice(record.key);
                pieces.push(Piece { start, table: None, erasures: Vec::new() });
            }
            if writer.is_none() {
                writer = Some(TableFileWriter::create(&self.shard, self.options, class).await?);
            }
            if let Some(open) = writer.as_mut() {
                if record.key != last_key.as_ref() {
                    last_key = Bytes::copy_from_slice(record.key);
                }
                open.add(record, records.current_warmth()).await?;
            }
            done += 1;
            // What flushes leave on neighbours that become one could not be told apart.
            if done.is_multiple_of(LOOK_RECORDS) && run.len() == 1 {
                self.shard.note_compacted(self.mean_segment_bytes() * done as f64 / total as f64);
                self.shard.flush_meanwhile(self).await;
            }
        }
        self.end_piece(writer, &mut pieces).await?;
        for index in 0..pieces.len() {
            let piece_end = pieces.get(index + 1).map(|next| next.start.clone()).or(end.clone());
            let piece = &mut pieces[index];
            piece.erasures = erasure::clip_all(&left, &piece.start, piece_end.as_ref(), Lsn(0), Lsn(u64::MAX));
        }
        Ok(pieces)
    }

    async fn end_piece(&self, writer: Option<TableFileWriter>, pieces: &mut [Piece]) -> Result<()> {
        if let (Some(mut writer), Some(piece)) = (writer, pieces.last_mut())
            && let Some(written) = writer.end_table().await?
        {
            let file = writer.finish().await?;
            piece.table = Some(written.open(&self.shard, &file).await?);
        }
        Ok(())
    }

    /// What was flushed onto a segment while it was compacted: its new slices, newest first, and range deletions.
    fn flushed_onto(&self, index: usize, run: &[Rc<Segment>]) -> Flushed {
        let layout = self.layout();
        let (before, now) = (&run[0], &layout.segments[index]);
        assert_eq!(before.id, now.id, "INV-MAINT: only flushes take place beside a compaction");
        Flushed {
            slices: now.slices[..now.slices.len() - before.slices.len()].to_vec(),
            erasures: now.erasures[before.erasures.len()..].to_vec(),
        }
    }

    /// One segment per piece. A run that stays one segment keeps its id, so that tokens and scores stay meaningful.
    fn segments_of(&self, run: &[Rc<Segment>], pieces: &[Piece], flushed: &Flushed, cut: bool) -> Vec<Rc<Segment>> {
        let keeps_bounds = run.len() == 1 && pieces.len() == 1;
        pieces
            .iter()
            .enumerate()
            .map(|(position, piece)| {
                let end = match pieces.get(position + 1) {
                    Some(next) => Some(next.start.clone()),
                    None => run[run.len() - 1].end.clone(),
                };
                let mut erasures = piece.erasures.clone();
                erasures.extend(erasure::clip_all(
                    &flushed.erasures,
                    &piece.start,
                    end.as_ref(),
                    Lsn(0),
                    Lsn(u64::MAX),
                ));
                Rc::new(Segment {
                    id: if keeps_bounds { run[0].id } else { self.allocate_segment() },
                    start: piece.start.clone(),
                    end,
                    base: piece.table.clone(),
                    slices: flushed.slices.clone(),
                    erasures: erasures.into(),
                    version: Cell::new(Lsn(0)),
                    cut,
                    detours: Cell::new(0),
                    expected: run[0].expected.inherited(),
                })
            })
            .collect()
    }

    /// Installs the replacement in one step and divides or adds the history.
    fn install(&self, index: usize, run: &[Rc<Segment>], replacement: Vec<Rc<Segment>>) {
        {
            let mut access = self.access.borrow_mut();
            for _ in 1..run.len() {
                access.merge(index);
            }
            let pieces = replacement.len();
            for cut in 0..pieces - 1 {
                // Equal shares: of what is left, one part in as many as there are pieces to come.
                access.split(index + cut, 1.0 / (pieces - cut) as f32);
            }
        }
        // Writes since this compaction began have raised the versions.
        let current = self.layout();
        let replaced = &current.segments[index..index + run.len()];
        let version = replaced.iter().map(|segment| segment.version.get()).max().unwrap_or_default();
        replacement.iter().for_each(|segment| segment.version.set(version));
        *self.layout.borrow_mut() = current.replaced(index, run.len(), replacement);
        run.iter().flat_map(|segment| segment.tables()).for_each(|table| table.retire());
    }
}

/// The tables of neighbouring segments as sources, read for the purpose that `purpose` gives for so many sources. What the
/// n-th tables of neighbours have of their segments does not overlap, so one source walks them one after another.
fn table_sources<'a>(
    segments: impl Iterator<Item = &'a Rc<Segment>>,
    purpose: impl FnOnce(usize) -> Purpose,
) -> Vec<Source> {
    let mut levels: Vec<Vec<Part>> = Vec::new();
    for segment in segments {
        for (level, table) in segment.tables().enumerate() {
            if level == levels.len() {
                levels.push(Vec::new());
            }
            levels[level].push(Part {
                table: Rc::clone(table),
                start: segment.start.clone(),
                end: segment.end.clone(),
            });
        }
    }
    let purpose = purpose(levels.len());
    levels.into_iter().map(|parts| Source::tables(parts, purpose)).collect()
}
