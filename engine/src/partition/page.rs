//! Pages of a range, in either direction, as of one moment.
//!
//! A stream of a range is a row of pages. Each is found anew by its bounds, so nothing is held on the shard between two
//! pages but the pin of the moment.
//!
//! Backwards there is no second kind of iterator. The page's first key is estimated, near enough to its end that no
//! source holds much more than a page in between; then the stretch is read forwards and turned round. Any estimate gives
//! a right answer, so it may ignore versions and deletions.

use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::Bytes;

use crate::error::Result;
use crate::io::runtime;
use crate::memtable::Memtable;
use crate::merge::Retain;
use crate::types::KeyRange;

use super::Partition;
use super::layout::Segment;
use super::read::{KeyValue, ReadView};
use super::snapshots::Moment;

/// Records of one source that a backward page reads over at most, when many in a row are deleted.
const BACK_RECORDS_MAX: usize = 4096;

/// Which way a range is walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Ascending by key.
    #[default]
    Forward,
    /// Descending by key.
    Backward,
}

/// How much a page takes. Whichever is reached first ends it; a page of a range that holds anything holds one item at
/// least. A backward page may take a few times as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Items.
    pub items: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

/// Part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order asked for.
    pub items: Vec<KeyValue>,
    /// What is left of the range; `None` at its end.
    pub rest: Option<KeyRange>,
}

impl Partition {
    /// The next page of `range` as of a pinned moment.
    ///
    /// Errors: [`crate::Error::Moved`], [`crate::Error::NotOwner`], [`crate::Error::Corruption`], [`crate::Error::Io`].
    /// Cancel: no effect.
    /// Cost: the blocks that the page lies in; two allocations an item.
    pub async fn page(
        &self,
        range: &KeyRange,
        direction: Direction,
        moment: &Moment,
        limits: PageLimits,
    ) -> Result<Page> {
        self.wait_readable().await?;
        let (start, end) = self.clamp(range);
        if end.as_ref().is_some_and(|end| start >= *end) {
            return Ok(Page::default());
        }
        let (mut start, mut end) = (start, end);
        loop {
            let (from, to) = self.held_stretch(&start, end.as_ref(), direction).await?;
            let view = self.view_at(moment.lsn);
            let (left, right) = (from.clone(), to.clone());
            let mut page = match direction {
                Direction::Forward => self.page_forward(&view, left, right, moment, limits).await?,
                Direction::Backward => self.page_backward(&view, left, right, moment, limits).await?,
            };
            // What is left of the range reaches beyond the stretch.
            let rest = match (direction, page.rest.take()) {
                (Direction::Forward, Some(rest)) => Some((Bytes::from(rest.start), end.clone())),
                (Direction::Forward, None) => to.filter(|to| Some(to) != end.as_ref()).map(|to| (to, end.clone())),
                (Direction::Backward, Some(rest)) => Some((start.clone(), rest.end.map(Bytes::from))),
                (Direction::Backward, None) => (from != start).then(|| (start.clone(), Some(from))),
            };
            let Some((rest_start, rest_end)) = rest else {
                return Ok(page);
            };
            (start, end) = (rest_start, rest_end);
            if !page.items.is_empty() {
                page.rest = Some(KeyRange { start: start.to_vec(), end: end.map(|end| end.to_vec()) });
                return Ok(page);
            }
        }
    }

    async fn page_forward(
        &self,
        view: &ReadView,
        start: Bytes,
        end: Option<Bytes>,
        moment: &Moment,
        limits: PageLimits,
    ) -> Result<Page> {
        let mut page = Page::default();
        let mut bytes = 0;
        let retain = Retain::visible_at(moment.lsn, moment.wall_ms);
        let mut records = self.iterate(view, start, end.clone(), retain);
        let _ends_early = records
            .visit(&mut |key, value| {
                if page.items.len() >= limits.items.max(1) || bytes >= limits.bytes {
                    page.rest = Some(KeyRange { start: key.to_vec(), end: end.as_ref().map(|end| end.to_vec()) });
                    return ControlFlow::Break(());
                }
                bytes += key.len() + value.len();
                page.items.push(KeyValue { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value) });
                ControlFlow::Continue(())
            })
            .await?;
        Ok(page)
    }

    async fn page_backward(
        &self,
        view: &ReadView,
        start: Bytes,
        mut end: Option<Bytes>,
        moment: &Moment,
        limits: PageLimits,
    ) -> Result<Page> {
        let mut want = limits.items.clamp(1, BACK_RECORDS_MAX);
        loop {
            let from = stretch_start(view, end.as_ref(), want, limits.bytes).max(start.clone());
            let mut items = Vec::new();
            let retain = Retain::visible_at(moment.lsn, moment.wall_ms);
            let mut records = self.iterate(view, from.clone(), end, retain);
            while records.advance().await? {
                let record = records.current();
                items.push(KeyValue {
                    key: Bytes::copy_from_slice(record.key),
                    value: Bytes::copy_from_slice(record.value),
                });
            }
            let rest = (from > start).then(|| KeyRange { start: start.to_vec(), end: Some(from.to_vec()) });
            if !items.is_empty() || rest.is_none() {
                items.reverse();
                return Ok(Page { items, rest });
            }
            // Everything here was deleted: look further back.
            end = Some(from);
            want = (want * 2).min(BACK_RECORDS_MAX);
            runtime::yield_now().await;
        }
    }
}

/// A key below `end`, in the segment that the keys below `end` lie in, such that no source has many more than `records`
/// records or `bytes` bytes from it up to `end`.
fn stretch_start(view: &ReadView, end: Option<&Bytes>, records: usize, bytes: usize) -> Bytes {
    let segment = last_segment(view, end);
    let in_tables = segment.tables().filter_map(|table| table.key_before(end.map(Bytes::as_ref), records, bytes));
    let in_memtables = view.memtables.iter().filter_map(|table: &Rc<Memtable>| {
        let per_record = (table.bytes() / table.records().max(1)).max(1);
        table.key_before(end.map(Bytes::as_ref), records.min(bytes / per_record).max(1))
    });
    let nearest = in_tables.chain(in_memtables).max();
    nearest.map_or_else(|| segment.start.clone(), |key| key.max(segment.start.clone()))
}

/// The segment that holds the largest keys below `end`.
fn last_segment<'a>(view: &'a ReadView, end: Option<&Bytes>) -> &'a Segment {
    &view.layout.segments[view.layout.last_below(end)]
}
