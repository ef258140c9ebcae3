//! The life of a scan.

use std::ops::{ControlFlow, Range};

use bytes::{Bytes, BytesMut};

use crate::clock;
use crate::config::ReadAhead;
use crate::error::Result;
use crate::merge::{MergeIter, Retain};
use crate::record::RecordView;
use crate::table::Purpose;
use crate::types::KeyRange;

use super::Partition;
use super::compact::READ_BYTES_MIN;
use super::layout::Segment;
use super::page::Direction;
use super::read::{KeyValue, ReadView};
use super::snapshots::Moment;

/// Rows and bytes of a page that memory is taken for at its first row.
const EXPECTED_ROWS_MAX: usize = 1024;
const EXPECTED_BYTES_MAX: usize = 256 << 10;

/// Sources that background work reads at a time, about: a base, some slices.
const BACKGROUND_SOURCES: usize = 4;

/// One page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Ascending by key.
    pub items: Vec<KeyValue>,
    /// Where the next page begins; `None` at the end of the range.
    pub next: Option<Bytes>,
}

impl Partition {
    /// As [`Partition::scan`], without the values.
    ///
    /// Errors, cancel: as [`Partition::scan`].
    /// Cost: as [`Partition::scan`]; values are read with their blocks and not copied.
    pub async fn scan_keys(&self, range: &KeyRange, limit: usize) -> Result<ScanPage> {
        self.scan_page(range, limit, false).await
    }

    /// Up to `limit` live keys of `range` in ascending order, all of one moment.
    ///
    /// Errors: as [`Partition::get`].
    /// Cancel: a scan that is dropped has no effect.
    /// Cost: the page's keys and values share one piece of memory, which lives as long as the last of them.
    pub async fn scan(&self, range: &KeyRange, limit: usize) -> Result<ScanPage> {
        self.scan_page(range, limit, true).await
    }

    async fn scan_page(&self, range: &KeyRange, limit: usize, with_values: bool) -> Result<ScanPage> {
        self.wait_readable().await?;
        let (mut start, end) = self.clamp(range);
        loop {
            let (_, to) = self.held_stretch(&start, end.as_ref(), Direction::Forward).await?;
            let mut page = self.scan_held(start, to.clone(), limit, with_values).await?;
            // What lies behind the stretch is left of the range too.
            if page.next.is_none() {
                page.next = to.filter(|to| Some(to) != end.as_ref());
            }
            match page.next.take_if(|_| page.items.is_empty() && limit > 0) {
                Some(next) => start = next,
                None => return Ok(page),
            }
        }
    }

    async fn scan_held(&self, start: Bytes, end: Option<Bytes>, limit: usize, with_values: bool) -> Result<ScanPage> {
        let view = self.view_latest();
        let now_ms = clock::wall_ms();
        let mut page = ScanPage::default();
        let from = start.clone();
        let mut iter = self.iterate(&view, start, end, Retain::visible_at(view.pin.lsn(), now_ms));
        let mut bytes = BytesMut::new();
        let mut ends = Vec::new();
        let _ends_early = iter
            .visit(&mut |key, value| {
                let value = if with_values { value } else { &[] };
                if ends.is_empty() {
                    // Records of a range are mostly alike.
                    let expected = (key.len() + value.len()).saturating_mul(limit.min(EXPECTED_ROWS_MAX));
                    bytes.reserve(expected.min(EXPECTED_BYTES_MAX));
                    ends.reserve(limit.min(EXPECTED_ROWS_MAX));
                }
                if ends.len() == limit {
                    page.next = Some(Bytes::copy_from_slice(key));
                    return ControlFlow::Break(());
                }
                bytes.extend_from_slice(key);
                let key_end = bytes.len();
                bytes.extend_from_slice(value);
                ends.push((key_end, bytes.len()));
                ControlFlow::Continue(())
            })
            .await?;
        self.count_scan(&view, iter.touched(), &from, bytes.len());
        let bytes = bytes.freeze();
        let mut start = 0;
        page.items.reserve_exact(ends.len());
        for (key_end, end) in ends {
            page.items.push(KeyValue { key: bytes.slice(start..key_end), value: bytes.slice(key_end..end) });
            start = end;
        }
        Ok(page)
    }

    /// Hands the live keys of `range`, ascending and all of one moment, with their values to `visit` where they lie, until
    /// it breaks off or the range ends.
    ///
    /// Errors: as [`Partition::get`]; what was visited until then was right.
    /// Cost: as [`Partition::scan`] without its copies.
    pub async fn scan_with(
        &self,
        range: &KeyRange,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        self.wait_readable().await?;
        let (mut start, end) = self.clamp(range);
        let pin = self.pin_latest();
        let Moment { lsn, wall_ms } = pin.moment();
        loop {
            let (_, to) = self.held_stretch(&start, end.as_ref(), Direction::Forward).await?;
            let (view, retain) = (self.view_at(lsn), Retain::visible_at(lsn, wall_ms));
            let mut bytes = 0;
            let mut counted = |key: &[u8], value: &[u8]| {
                bytes += key.len() + value.len();
                visit(key, value)
            };
            let mut iter = self.iterate(&view, start.clone(), to.clone(), retain);
            let visited = iter.visit(&mut counted).await?;
            self.count_scan(&view, iter.touched(), &start, bytes);
            match to.filter(|to| Some(to) != end.as_ref()) {
                Some(next) if visited.is_continue() => start = next,
                _ => return Ok(()),
            }
        }
    }

    /// Counts a range read from `start` on as a read of each segment that it touched.
    fn count_scan(&self, view: &ReadView, touched: Range<usize>, start: &[u8], bytes: usize) {
        self.count_fill_read();
        let share = (bytes / touched.len().max(1)) as u64;
        let layout = self.layout.borrow();
        let mut access = self.access.borrow_mut();
        let mut worn = false;
        for segment in &view.layout.segments[touched] {
            let from = start.max(&segment.start);
            access.record_read(layout.locate(from), from, share);
            worn |= segment.note_range_read();
        }
        if worn {
            self.shard.request_maintenance();
        }
    }

    /// Iterates `[start, end)` of a view.
    pub(super) fn iterate<'a>(
        &self,
        view: &'a ReadView,
        start: Bytes,
        end: Option<Bytes>,
        retain: Retain,
    ) -> ViewIter<'a> {
        ViewIter::new(view, start, end, retain, Walk::Serve(self.shard.read_ahead()))
    }

    /// As [`Partition::iterate`], for work that nobody waits for: the cache stays as readers left it.
    pub(super) fn iterate_in_background<'a>(
        &self,
        view: &'a ReadView,
        start: Bytes,
        end: Option<Bytes>,
        retain: Retain,
    ) -> ViewIter<'a> {
        let read_bytes = (self.shard.read_ahead_bytes() / BACKGROUND_SOURCES).max(READ_BYTES_MIN);
        ViewIter::new(view, start, end, retain, Walk::Maintain { read_bytes })
    }
}

/// Who walks.
#[derive(Clone, Copy)]
enum Walk {
    Serve(ReadAhead),
    Maintain { read_bytes: usize },
}

impl Walk {
    /// What it is in this segment.
    fn purpose(self, segment: &Segment) -> Purpose {
        match self {
            Walk::Serve(read_ahead) => Purpose::Serve { first_bytes: segment.expected.read_bytes(read_ahead) },
            Walk::Maintain { read_bytes } => Purpose::Maintain { read_bytes },
        }
    }
}

/// Walks a view segment by segment, so that a short walk opens no more tables than it reads.
pub(super) struct ViewIter<'a> {
    view: &'a ReadView,
    end: Option<Bytes>,
    retain: Retain,
    walk: Walk,
    first: usize,
    /// The segment that comes next.
    next: usize,
    open: MergeIter,
}

impl<'a> ViewIter<'a> {
    fn new(view: &'a ReadView, start: Bytes, end: Option<Bytes>, retain: Retain, walk: Walk) -> ViewIter<'a> {
        let first = view.layout.locate(&start);
        let purpose = walk.purpose(&view.layout.segments[first]);
        let open = view.merge(first, start, end.as_ref(), retain.clone(), purpose);
        ViewIter { view, end, retain, walk, first, next: first + 1, open }
    }

    /// The segments that it has opened.
    fn touched(&self) -> Range<usize> {
        self.first..self.next
    }

    /// Moves to the next kept record; false at the end.
    pub async fn advance(&mut self) -> Result<bool> {
        loop {
            if self.open.advance().await? {
                return Ok(true);
            }
            if !self.open_next() {
                return Ok(false);
            }
        }
    }

    /// Opens the next segment; false if none is left.
    fn open_next(&mut self) -> bool {
        match self.view.layout.segments.get(self.next) {
            Some(segment) if self.end.as_ref().is_none_or(|end| segment.start < *end) => {
                let start = segment.start.clone();
                let purpose = self.walk.purpose(segment);
                self.open = self.view.merge(self.next, start, self.end.as_ref(), self.retain.clone(), purpose);
                self.next += 1;
                true
            }
            _ => false,
        }
    }

    /// See [`MergeIter::visit`].
    pub async fn visit(&mut self, visit: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        while self.open.visit(visit).await?.is_continue() {
            if !self.open_next() {
                return Ok(ControlFlow::Continue(()));
            }
        }
        Ok(ControlFlow::Break(()))
    }

    /// The record it stands on.
    pub fn current(&self) -> RecordView<'_> {
        self.open.current()
    }
}
