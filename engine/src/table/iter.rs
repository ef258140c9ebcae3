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
    /// A reader waits: the first block is read alone, then twice as much with each read while the walk goes on.
    Serve,
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
    /// The block taken next, and whether the first has been positioned.
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
            Purpose::Serve => 1,
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

    /// As [`TableIter::advance`] while the next record lies in the block that it stands in; `None` if that has to be
    /// asked, and then nothing happened.
    pub fn advance_now(&mut self) -> Option<bool> {
        if self.position + 1 < self.limit {
            self.position += 1;
            return Some(true);
        }
        None
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
        self.position += 1;
        loop {
            if let Some(block) = &self.block {
                if self.position < self.limit {
                    return Ok(true);
                }
                if self.limit < block.len() {
                    // The range ends within the block.
                    self.limit = self.position;
                    return Ok(false);
                }
            }
            let first = self.next_block.is_none();
            let next = self.next_block.unwrap_or_else(|| self.reader.block_for(&self.start));
            self.next_block = Some(next);
            if next == self.reader.blocks() {
                (self.block, self.position, self.limit) = (None, 0, 0);
                return Ok(false);
            }
            let block = self.take_block(next).await?;
            self.position = if first { block.seek(&self.start) } else { 0 };
            self.limit = match &self.end {
                Some(end) if block.key(block.len() - 1) >= end.as_ref() => block.seek(end),
                _ => block.len(),
            };
            self.block = Some(block);
            self.next_block = Some(next + 1);
        }
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
        let keep = self.purpose == Purpose::Serve;
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
            Purpose::Serve => self.reader.cached(block, &*self.cache).map(|held| (held, Warmth::Cold)),
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
