//! Walks the records of a table in order.

use std::rc::Rc;

use bytes::Bytes;

use crate::error::Result;
use crate::record::RecordView;

use super::block::VerifiedBlock;
use super::cache::BlockCache;
use super::reader::{BlockSource, TableReader};

/// Iterates `[start, end)` of a table, reading blocks as it reaches them.
pub struct TableIter<S, C> {
    reader: Rc<TableReader<S>>,
    cache: Rc<C>,
    start: Bytes,
    end: Option<Bytes>,
    /// The block read next, and whether the first has been positioned.
    next_block: Option<usize>,
    block: Option<Rc<VerifiedBlock>>,
    position: usize,
}

impl<S: BlockSource, C: BlockCache> TableIter<S, C> {
    /// An iterator before the first record of the range.
    pub fn new(reader: Rc<TableReader<S>>, start: Bytes, end: Option<Bytes>, cache: Rc<C>) -> TableIter<S, C> {
        TableIter { reader, cache, start, end, next_block: None, block: None, position: 0 }
    }

    /// Moves to the next record; false at the end of the range.
    pub async fn advance(&mut self) -> Result<bool> {
        self.position += 1;
        loop {
            if let Some(block) = &self.block
                && self.position < block.len()
            {
                return Ok(self.in_range());
            }
            let first = self.next_block.is_none();
            let next = self.next_block.unwrap_or_else(|| self.reader.block_for(&self.start));
            if next == self.reader.blocks() {
                self.block = None;
                self.next_block = Some(next);
                return Ok(false);
            }
            let block = self.reader.block(next, &*self.cache).await?;
            self.position = if first { block.seek(&self.start) } else { 0 };
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

    fn in_range(&self) -> bool {
        self.end.as_ref().is_none_or(|end| self.current().key < end.as_ref())
    }
}
