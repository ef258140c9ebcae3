//! Merging ordered record sources, and which versions survive.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::erasure::Erasure;
use crate::error::Result;
use crate::heads::{Bound, head_of};
use crate::io::runtime;
use crate::memtable::MemtableCursor;
use crate::record::{RecordKind, RecordView};
use crate::shard::files::{Table, TableRecords};
use crate::table::{Purpose, Warmth};
use crate::types::Lsn;

pub(crate) use self::retain::Retain;

mod retain;
#[cfg(test)]
mod tests;

/// One ordered source of a merge: (key ascending, LSN descending).
pub(crate) enum Source {
    Memtable(MemtableCursor),
    /// Tables of neighbouring segments, walked one after another.
    Tables {
        open: Option<TableRecords>,
        waiting: std::vec::IntoIter<Part>,
        purpose: Purpose,
    },
    #[cfg(test)]
    Records(std::vec::IntoIter<crate::record::Record>, Option<crate::record::Record>),
}

/// What a table has within `[start, end)`: behind a split it may reach further (`INV-SPLIT`).
pub(crate) struct Part {
    pub table: Rc<Table>,
    pub start: Bytes,
    pub end: Option<Bytes>,
}

impl Source {
    /// Parts of tables that follow each other in key order.
    pub fn tables(parts: Vec<Part>, purpose: Purpose) -> Source {
        Source::Tables { open: None, waiting: parts.into_iter(), purpose }
    }

    /// One table.
    pub fn table(table: &Table, start: Bytes, end: Option<Bytes>, purpose: Purpose) -> Source {
        Source::Tables { open: Some(table.records(start, end, purpose)), waiting: Vec::new().into_iter(), purpose }
    }

    /// As [`Source::advance`] where that needs no I/O and no new table; `None` if it does, and then nothing happened.
    fn advance_now(&mut self) -> Option<bool> {
        match self {
            Source::Memtable(cursor) => Some(cursor.advance()),
            Source::Tables { open, waiting, .. } => {
                let moved = open.as_mut()?.advance_now()?;
                // What has ended stays so when it is asked again.
                (moved || waiting.len() == 0).then_some(moved)
            }
            #[cfg(test)]
            Source::Records(..) => None,
        }
    }

    async fn advance(&mut self) -> Result<bool> {
        match self {
            Source::Memtable(cursor) => Ok(cursor.advance()),
            Source::Tables { open, waiting, purpose } => loop {
                if let Some(records) = open
                    && records.advance().await?
                {
                    if matches!(purpose, Purpose::Maintain { .. }) {
                        // A block was verified, and records that are left out may follow: nobody else yields for them.
                        runtime::yield_now().await;
                    }
                    return Ok(true);
                }
                match waiting.next() {
                    Some(Part { table, start, end }) => *open = Some(table.records(start, end, *purpose)),
                    None => return Ok(false),
                }
            },
            #[cfg(test)]
            Source::Records(records, current) => {
                *current = records.next();
                Ok(current.is_some())
            }
        }
    }

    fn current(&self) -> RecordView<'_> {
        match self {
            Source::Memtable(cursor) => cursor.current(),
            Source::Tables { open, .. } => match open {
                Some(records) => records.current(),
                None => unreachable!("INV-ITER: current follows a true advance"),
            },
            #[cfg(test)]
            Source::Records(_, current) => match current {
                Some(record) => record.view(),
                None => unreachable!("INV-ITER: current follows a true advance"),
            },
        }
    }
}

impl Source {
    fn current_key(&self) -> &[u8] {
        match self {
            Source::Memtable(cursor) => cursor.current_key(),
            Source::Tables { open: Some(records), .. } => records.current_key(),
            Source::Tables { open: None, .. } => unreachable!("INV-ITER: current follows a true advance"),
            #[cfg(test)]
            Source::Records(..) => self.current().key,
        }
    }
}

/// Merges sources and keeps what [`Retain`] says.
pub(crate) struct MergeIter {
    sources: Vec<Source>,
    /// Sources that stand on a record, each with the head of its key, in the order of these records.
    order: Vec<(u64, usize)>,
    retain: Retain,
    current: Option<usize>,
    started: bool,
    /// The key of the last record seen, and which bounds still want a version of it.
    key: Vec<u8>,
    lsn: Lsn,
    next_bound: usize,
    seen_any: bool,
    /// Range deletions of the sources, and the LSNs of those that cover `key`.
    erasures: Vec<Erasure>,
    covering: Vec<Lsn>,
    /// Bytes that all keys have in common at their start.
    shared: usize,
}

impl MergeIter {
    pub fn new(sources: Vec<Source>, retain: Retain) -> MergeIter {
        MergeIter {
            sources,
            order: Vec::new(),
            retain,
            current: None,
            started: false,
            key: Vec::new(),
            lsn: Lsn(0),
            next_bound: 0,
            seen_any: false,
            erasures: Vec::new(),
            covering: Vec::new(),
            shared: 0,
        }
    }

    /// Says that all keys have their first `shared` bytes in common: they are compared by those behind.
    pub fn sharing(mut self, shared: usize) -> MergeIter {
        self.shared = shared;
        self
    }

    /// Hides what these range deletions hide (`INV-ERASE`).
    pub fn erased_by(mut self, erasures: Vec<Erasure>) -> MergeIter {
        self.erasures = erasures;
        self
    }

    /// Moves to the next kept record; false at the end.
    pub async fn advance(&mut self) -> Result<bool> {
        loop {
            let found = match self.step_now() {
                Some(found) => found,
                None => self.step().await?,
            };
            if !found {
                return Ok(false);
            }
            if self.keeps_current() {
                return Ok(true);
            }
        }
    }

    /// As [`MergeIter::step`] where that needs no I/O; `None` if it does, and then nothing happened.
    fn step_now(&mut self) -> Option<bool> {
        let moved = self.sources[self.current?].advance_now()?;
        Some(self.settle(moved))
    }

    /// The first source of the order has moved, or ended.
    fn settle(&mut self, moved: bool) -> bool {
        if moved {
            self.sift_first();
        } else {
            self.order.remove(0);
        }
        self.current = self.order.first().map(|(_, index)| *index);
        self.current.is_some()
    }

    /// Hands what a reader sees to `visit`, where it lies, until that breaks off or the range ends. Only for a merge that
    /// has not begun, under [`Retain::visible_at`], over memtable cursors that see no more than that.
    pub async fn visit(&mut self, visit: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        loop {
            let found = match self.step_now() {
                Some(found) => found,
                None => self.step().await?,
            };
            if !found {
                return Ok(ControlFlow::Continue(()));
            }
            let flow = self.visit_current(visit).unwrap_or_else(|| {
                if self.keeps_current() {
                    visit(self.current().key, self.current().value)
                } else {
                    ControlFlow::Continue(())
                }
            });
            if flow.is_break() {
                return Ok(flow);
            }
        }
    }

    /// Hands the current record to `visit`, if the reader sees it, and those behind it as long as their block alone says what
    /// comes next. `None`, and nothing happened, where that takes a closer look.
    fn visit_current(&mut self, visit: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Option<ControlFlow<()>> {
        if !self.erasures.is_empty() {
            return None;
        }
        let index = self.current?;
        let (source, next) = match self.order.get(1) {
            None => (&mut self.sources[index], None),
            Some((_, next)) => match self.sources.get_disjoint_mut([index, *next]) {
                Ok([source, next]) => (source, Some(&*next)),
                Err(_) => unreachable!("INV-ITER: a source has one place in the order"),
            },
        };
        if self.seen_any && source.current_key() == self.key.as_slice() {
            return None;
        }
        let flow = match source {
            Source::Memtable(cursor) => {
                let record = cursor.current();
                let is_live = record.kind == RecordKind::Put && record.is_live(self.retain.now_ms);
                if is_live { visit(record.key, record.value) } else { ControlFlow::Continue(()) }
            }
            Source::Tables { open: Some(records), .. } if records.max_lsn() <= self.retain.bounds[0] => {
                let bound = next.map(|next| Bound::new(next.current_key(), self.shared));
                records.visit(bound, self.retain.now_ms, visit)?
            }
            _ => return None,
        };
        // As `keeps_current` leaves it behind a record that the reader sees.
        self.key.clear();
        self.key.extend_from_slice(source.current_key());
        self.seen_any = true;
        self.next_bound = self.retain.bounds.len();
        Some(flow)
    }

    /// The record it stands on.
    pub fn current(&self) -> RecordView<'_> {
        match self.current {
            Some(index) => self.sources[index].current(),
            None => unreachable!("INV-ITER: current follows a true advance"),
        }
    }

    /// How warm that record is: what lies in memory is read from memory, whatever becomes of it.
    pub fn current_warmth(&self) -> Warmth {
        match self.current.map(|index| &self.sources[index]) {
            Some(Source::Memtable(_)) => Warmth::Warm,
            Some(Source::Tables { open: Some(records), .. }) => records.warmth(),
            _ => Warmth::Cold,
        }
    }

    /// Moves to the next record of any source.
    async fn step(&mut self) -> Result<bool> {
        if !self.started {
            self.started = true;
            self.start().await?;
        } else if let Some(index) = self.current {
            let moved = self.sources[index].advance().await?;
            return Ok(self.settle(moved));
        }
        self.current = self.order.first().map(|(_, index)| *index);
        Ok(self.current.is_some())
    }

    /// Moves every source to its first record. Those that have to read for it do so at the same time.
    async fn start(&mut self) -> Result<()> {
        let mut reading = Vec::new();
        for index in 0..self.sources.len() {
            match self.sources[index].advance_now() {
                Some(true) => self.join_order(index),
                Some(false) => {}
                None => reading.push(index),
            }
        }
        let waiting = self.sources.iter_mut().enumerate().filter(|(index, _)| reading.binary_search(index).is_ok());
        let moved = try_join_all(waiting.map(|(_, source)| source.advance())).await?;
        for (index, moved) in reading.into_iter().zip(moved) {
            if moved {
                self.join_order(index);
            }
        }
        Ok(())
    }

    /// Puts a source that stands on its first record where it belongs.
    fn join_order(&mut self, index: usize) {
        self.order.insert(0, (0, index));
        self.sift_first();
    }

    /// Moves the first of `order`, whose record has changed, to where that belongs. Sources are few, and long runs come
    /// from one of them: it mostly stays, and mostly the heads of the keys tell.
    fn sift_first(&mut self) {
        if self.sources.len() == 1 {
            return;
        }
        let index = self.order[0].1;
        let key = self.sources[index].current_key();
        let head = head_of(key, self.shared);
        self.order[0].0 = head;
        let mut at = 0;
        while let Some((next_head, next)) = self.order.get(at + 1).copied() {
            let comes_later = match next_head.cmp(&head) {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal => match self.sources[next].current_key().cmp(key) {
                    Ordering::Less => true,
                    Ordering::Greater => false,
                    Ordering::Equal => self.sources[next].current().lsn > self.sources[index].current().lsn,
                },
            };
            if !comes_later {
                break;
            }
            self.order.swap(at, at + 1);
            at += 1;
        }
    }

    fn keeps_current(&mut self) -> bool {
        let Some(index) = self.current else {
            return false;
        };
        let record = self.sources[index].current();
        if !self.seen_any || record.key != self.key.as_slice() {
            self.key.clear();
            self.key.extend_from_slice(record.key);
            self.next_bound = 0;
            self.seen_any = true;
            self.covering.clear();
            let covering = self.erasures.iter().filter(|erasure| erasure.covers(record.key));
            self.covering.extend(covering.map(|erasure| erasure.lsn));
        } else if record.lsn == self.lsn {
            // The same record from two sources (a replayed one that had been flushed).
            return false;
        }
        self.lsn = record.lsn;
        if record.lsn <= self.retain.after {
            return false;
        }
        // Readers from the LSN of the first erasure above the record on do not see it.
        let erased_at = self.covering.iter().copied().filter(|erased| *erased > record.lsn).min();
        let mut wanted = record.lsn > self.retain.all_above;
        let bounds = &self.retain.bounds;
        while self.next_bound < bounds.len() && record.lsn <= bounds[self.next_bound] {
            wanted |= erased_at.is_none_or(|erased| bounds[self.next_bound] < erased);
            self.next_bound += 1;
        }
        wanted && !self.retain.forgets(record)
    }
}
