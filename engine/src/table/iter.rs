//! Walks the records of a table in order.

use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::Bytes;

use crate::error::Result;
use crate::heads::Bound;
use crate::record::RecordView;

use super::block::VerifiedBlock;
use super::cache::{BlockCache, Warmth};
use super::reader::{BlockSource, TableReader, UnverifiedRun};

/// What a walk is for: how far it reads ahead, and whether its blocks are worth keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A reader waits: the first read brings a block at least, each that follows twice as much while the walk goes on.
    Serve {
        /// Bytes of the first read.
        first_bytes: usize,
    },
    /// Nobody waits, and each block is used once: large reads that leave the cache as it is.
    Maintain {
        /// Bytes of one read.
        read_bytes: usize,
    },
}

/// Bytes of one read of a walk at most.
pub(crate) const READ_AHEAD_BYTES_MAX: usize = 256 << 10;

/// Iterates `[start, end)` of a table, reading blocks as it reaches them.
pub struct TableIter<S, C> {
    reader: Rc<TableReader<S>>,
    cache: Rc<C>,
    start: Bytes,
    end: Option<Bytes>,
    purpose: Purpose,
    read_ahead_bytes: usize,
    /// The block taken next, once it is known.
    next_block: Option<usize>,
    /// Blocks read already: those from `next_block` on.
    ahead: Option<UnverifiedRun>,
    block: Option<Rc<VerifiedBlock>>,
    position: usize,
    /// Records of the block that lie in the range.
    limit: usize,
    /// How warm the block is that it stands in; known in maintenance only.
    warmth: Warmth,
}

impl<S: BlockSource, C: BlockCache> TableIter<S, C> {
    /// An iterator before the first record of the range.
    pub fn new(
        reader: Rc<TableReader<S>>,
        start: Bytes,
        end: Option<Bytes>,
        cache: Rc<C>,
        purpose: Purpose,
    ) -> TableIter<S, C> {
        let read_ahead_bytes = match purpose {
            Purpose::Serve { first_bytes } => first_bytes,
            Purpose::Maintain { read_bytes } => read_bytes.min(READ_AHEAD_BYTES_MAX),
        };
        TableIter {
            reader,
            cache,
            start,
            end,
            purpose,
            read_ahead_bytes,
            next_block: None,
            ahead: None,
            block: None,
            position: 0,
            limit: 0,
            warmth: Warmth::Cold,
        }
    }

    /// How warm the record is that it stands on. Always cold but for [`Purpose::Maintain`].
    pub(crate) fn warmth(&self) -> Warmth {
        self.warmth
    }

    /// As [`TableIter::advance`] where that reads nothing from the source; `None` if it does, and then nothing happened.
    pub fn advance_now(&mut self) -> Option<bool> {
        if let Some(moved) = self.advance_in_block() {
            return Some(moved);
        }
        // A walk in the background asks the cache in its own way.
        if matches!(self.purpose, Purpose::Maintain { .. }) || self.ahead.is_some() {
            return None;
        }
        let next = self.upcoming_block();
        let held = self.reader.cached(next, &*self.cache)?;
        Some(self.enter(next, held))
    }

    /// Hands the record that it stands on and those behind it to `visit`: what is live at `now_ms`, in this block, while the
    /// keys behind the first lie before `bound`. Stands on the last record passed then, and returns whether `visit` broke
    /// off. `None`, and nothing happened, if a key has two versions in the block.
    pub(crate) fn visit(
        &mut self,
        bound: Option<Bound<'_>>,
        now_ms: u64,
        visit: &mut impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Option<ControlFlow<()>> {
        let block = self.block.as_ref().filter(|block| block.is_distinct() && self.position < self.limit)?;
        let (passed, flow) = block.visit_live(self.position..self.limit, bound, now_ms, visit);
        self.position += passed - 1;
        Some(flow)
    }

    /// Moves to the next record; false at the end of the range.
    pub async fn advance(&mut self) -> Result<bool> {
        if let Some(moved) = self.advance_in_block() {
            return Ok(moved);
        }
        let next = self.upcoming_block();
        let block = self.take_block(next).await?;
        Ok(self.enter(next, block))
    }

    /// Moves to the next record, or to the end of the range; `None`, and nothing happened, if the next block has to be had.
    fn advance_in_block(&mut self) -> Option<bool> {
        if self.position + 1 < self.limit {
            self.position += 1;
            return Some(true);
        }
        let ends_here = self.block.as_ref().is_some_and(|block| self.limit < block.len());
        if ends_here || self.upcoming_block() == self.reader.blocks() {
            (self.block, self.position, self.limit) = (None, 0, 0);
            self.next_block = Some(self.reader.blocks());
            return Some(false);
        }
        None
    }

    /// The block that comes next; the number of blocks if none does.
    fn upcoming_block(&mut self) -> usize {
        *self.next_block.get_or_insert_with(|| self.reader.block_for(&self.start))
    }

    /// Steps on the first record of the upcoming block that lies in the range; false if none does.
    fn enter(&mut self, index: usize, block: Rc<VerifiedBlock>) -> bool {
        // The first one: none has been entered before.
        self.position = if self.block.is_none() { block.seek(&self.start) } else { 0 };
        self.limit = match &self.end {
            Some(end) if block.key(block.len() - 1) >= end.as_ref() => block.seek(end),
            _ => block.len(),
        };
        self.block = Some(block);
        self.next_block = Some(index + 1);
        self.position < self.limit
    }

    /// The record it stands on.
    ///
    /// # Panics
    /// When the last [`TableIter::advance`] did not return true.
    #[must_use]
    pub fn current(&self) -> RecordView<'_> {
        let block = self.block.as_ref().unwrap_or_else(|| unreachable!("INV-ITER: current follows a true advance"));
        block.record(self.position)
    }

    /// The key of the record it stands on.
    ///
    /// # Panics
    /// As [`TableIter::current`].
    #[must_use]
    pub fn current_key(&self) -> &[u8] {
        let block = self.block.as_ref().unwrap_or_else(|| unreachable!("INV-ITER: current follows a true advance"));
        block.key(self.position)
    }

    async fn take_block(&mut self, block: usize) -> Result<Rc<VerifiedBlock>> {
        let keep = matches!(self.purpose, Purpose::Serve { .. });
        if let Some(run) = &mut self.ahead
            && let Some(verified) = self.reader.next_of(run, &*self.cache, keep)?
        {
            if !keep {
                self.warmth = self.reader.peek(block, &*self.cache).map_or(Warmth::Cold, |(_, warmth)| warmth);
            }
            return Ok(verified);
        }
        self.ahead = None;
        let held = match self.purpose {
            Purpose::Serve { .. } => self.reader.cached(block, &*self.cache).map(|held| (held, Warmth::Cold)),
            Purpose::Maintain { .. } => self.reader.peek(block, &*self.cache),
        };
        if let Some((held, warmth)) = held {
            self.warmth = warmth;
            return Ok(held);
        }
        self.warmth = Warmth::Cold;
        let end = self.end.as_deref().map_or(self.reader.blocks(), |end| self.reader.block_for(end) + 1);
        let mut run = self.reader.read_ahead(block..end, self.read_ahead_bytes, &*self.cache, keep).await?;
        if keep {
            self.read_ahead_bytes = (self.read_ahead_bytes * 2).clamp(16 << 10, READ_AHEAD_BYTES_MAX);
        }
        let first = self.reader.next_of(&mut run, &*self.cache, keep)?;
        self.ahead = Some(run);
        match first {
            Some(verified) => Ok(verified),
            None => unreachable!("INV-ITER: a read brings the block it begins with"),
        }
    }
}
