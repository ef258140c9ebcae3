//! A range of a keyspace as a stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::{Stream, StreamExt};

use crate::engine::PartitionEntries;
use crate::error::Result;
use crate::partition::KeyValue;
use crate::types::KeyRange;

use super::Partitioning;

/// The keys and values of a range of a keyspace, in key order: a [`Stream`] that owns what it needs (`Send`, `'static`)
/// and works on any runtime.
///
/// The entries of one partition are all of one moment: of the first poll that reaches it, or of the snapshot. Errors end
/// the stream. Cost: one hop a page and partition; with [`Partitioning::Hash`] all partitions are read side by side.
#[doc = example!(r#"people.put("ada", "1815").await?;
let mut entries = people.iter();
while let Some(entry) = entries.next().await {
    assert_eq!(entry?.value, "1815");
}"#)]
#[derive(Debug)]
pub struct Entries {
    /// Of partitions that hold neighbouring keys: read one after another.
    in_turn: VecDeque<PartitionEntries>,
    /// Of partitions that share the range: merged.
    merged: Vec<Merging>,
    backward: bool,
    failed: bool,
}

#[derive(Debug)]
struct Merging {
    entries: PartitionEntries,
    head: Option<KeyValue>,
    ended: bool,
}

impl Entries {
    pub(super) fn new(
        partitioning: &Partitioning,
        range: &KeyRange,
        open: impl Fn(usize) -> PartitionEntries,
    ) -> Entries {
        let touched = (0..partitioning.partitions()).filter(|index| partitioning.range_of(*index).overlaps(range));
        let mut opened = touched.map(open);
        let (mut in_turn, mut merged) = (VecDeque::new(), Vec::new());
        if partitioning.keeps_order() {
            in_turn.extend(opened);
        } else {
            merged.extend(opened.by_ref().map(|entries| Merging { entries, head: None, ended: false }));
        }
        Entries { in_turn, merged, backward: false, failed: false }
    }

    /// Walks the other way. To be called before the first poll.
    #[doc = example!(r#"assert!(people.iter().rev().next().await.is_none());"#)]
    #[must_use]
    pub fn rev(mut self) -> Entries {
        self.backward = !self.backward;
        self.in_turn = self.in_turn.into_iter().rev().map(PartitionEntries::rev).collect();
        let turned = |merging: Merging| Merging { entries: merging.entries.rev(), ..merging };
        self.merged = self.merged.into_iter().map(turned).collect();
        self
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// As [`crate::Partition::page`], [`crate::Error::Closed`].
    #[doc = example!(r#"assert!(people.iter().next().await.is_none());"#)]
    pub async fn next(&mut self) -> Option<Result<KeyValue>> {
        StreamExt::next(self).await
    }

    /// All entries that are left.
    ///
    /// # Errors
    /// As [`Entries::next`].
    #[doc = example!(r#"assert!(people.iter().collect().await?.is_empty());"#)]
    pub async fn collect(mut self) -> Result<Vec<KeyValue>> {
        let mut entries = Vec::new();
        while let Some(entry) = self.next().await {
            entries.push(entry?);
        }
        Ok(entries)
    }

    fn poll_in_turn(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<KeyValue>>> {
        while let Some(first) = self.in_turn.front_mut() {
            match ready!(Pin::new(first).poll_next(context)) {
                Some(entry) => return Poll::Ready(Some(entry)),
                None => drop(self.in_turn.pop_front()),
            }
        }
        Poll::Ready(None)
    }

    fn poll_merged(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<KeyValue>>> {
        let mut waits = false;
        for source in self.merged.iter_mut().filter(|source| source.head.is_none() && !source.ended) {
            match Pin::new(&mut source.entries).poll_next(context) {
                Poll::Pending => waits = true,
                Poll::Ready(Some(Ok(entry))) => source.head = Some(entry),
                Poll::Ready(Some(Err(cause))) => return Poll::Ready(Some(Err(cause))),
                Poll::Ready(None) => source.ended = true,
            }
        }
        if waits {
            return Poll::Pending;
        }
        let heads = self.merged.iter_mut().filter(|source| source.head.is_some());
        let key = |source: &&mut Merging| source.head.as_ref().map(|entry| entry.key.clone());
        let next = if self.backward { heads.max_by_key(key) } else { heads.min_by_key(key) };
        Poll::Ready(next.and_then(|source| source.head.take()).map(Ok))
    }
}

impl Stream for Entries {
    type Item = Result<KeyValue>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<KeyValue>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let next = if self.merged.is_empty() { self.poll_in_turn(context) } else { self.poll_merged(context) };
        self.failed = matches!(next, Poll::Ready(Some(Err(_))));
        next
    }
}
