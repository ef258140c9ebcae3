//! A range of one partition as a stream.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::{Stream, StreamExt};

use crate::error::Result;
use crate::partition::{Direction, KeyValue, Page, PageLimits};
use crate::types::KeyRange;

use super::{PartitionHandle, PartitionSnapshot};

/// The first page is small, since many ranges are; each later one takes twice as much, up to the largest.
const FIRST_PAGE: PageLimits = PageLimits { items: 128, bytes: 32 << 10 };
const LARGEST_PAGE: PageLimits = PageLimits { items: 2048, bytes: 512 << 10 };

type Fetch = Pin<Box<dyn Future<Output = Result<(Option<PartitionSnapshot>, Page)>> + Send>>;

/// The keys and values of a range, all of one moment, in either direction: a [`Stream`] that owns what it needs (`Send`,
/// `'static`) and works on any runtime.
///
/// The moment is that of the first poll, or the snapshot's. From the second page on the next one is read while the caller
/// works on this one (many streams end within the first), so at most two pages of 512 KiB are in memory, a page holding
/// one item at least.
/// Errors: as [`crate::Partition::page`]; the stream ends behind the first.
/// Cancel: dropping it lets go of its moment. Cost: one hop a page.
#[doc = example!(r#"use antumbra_engine::types::KeyRange;
people.put("ada", "1815").await?;
let mut entries = people.partitions()[0].entries(KeyRange::all());
while let Some(entry) = entries.next().await {
    assert_eq!(entry?.value, "1815");
}"#)]
pub struct PartitionEntries {
    handle: PartitionHandle,
    /// The moment; `None` before the first page and when that was all.
    snapshot: Option<PartitionSnapshot>,
    direction: Direction,
    limits: PageLimits,
    items: std::vec::IntoIter<KeyValue>,
    /// What no page has been asked for yet.
    rest: Option<KeyRange>,
    fetch: Option<Fetch>,
    pages: u64,
}

impl std::fmt::Debug for PartitionEntries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionEntries").field("rest", &self.rest).finish_non_exhaustive()
    }
}

impl PartitionEntries {
    pub(super) fn new(
        handle: PartitionHandle,
        snapshot: Option<PartitionSnapshot>,
        range: KeyRange,
    ) -> PartitionEntries {
        PartitionEntries {
            handle,
            snapshot,
            direction: Direction::Forward,
            limits: FIRST_PAGE,
            items: Vec::new().into_iter(),
            rest: Some(range),
            fetch: None,
            pages: 0,
        }
    }

    /// Walks the other way. To be called before the first poll.
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
let mut newest = people.partitions()[0].entries(KeyRange::prefix(b"2026-")).rev();
assert!(newest.next().await.is_none());"#)]
    #[must_use]
    pub fn rev(mut self) -> PartitionEntries {
        self.direction = match self.direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
        self
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// As [`crate::Partition::page`].
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
assert!(people.partitions()[0].entries(KeyRange::all()).next().await.is_none());"#)]
    pub async fn next(&mut self) -> Option<Result<KeyValue>> {
        StreamExt::next(self).await
    }

    /// Asks for the next page, if there is one.
    fn begin_fetch(&mut self) {
        let Some(range) = self.rest.take() else {
            return;
        };
        let (direction, limits) = (self.direction, self.limits);
        self.limits = PageLimits {
            items: (limits.items * 2).min(LARGEST_PAGE.items),
            bytes: (limits.bytes * 2).min(LARGEST_PAGE.bytes),
        };
        let handle = self.handle.clone();
        self.fetch = Some(match self.snapshot.clone() {
            Some(snapshot) => Box::pin(async move {
                let page = snapshot.page(range, direction, limits).await?;
                Ok((Some(snapshot), page))
            }),
            None => Box::pin(async move { handle.first_page(range, direction, limits).await }),
        });
    }

    fn take_page(&mut self, snapshot: Option<PartitionSnapshot>, page: Page) {
        self.items = page.items.into_iter();
        self.rest = page.rest;
        // At the end nothing has to be kept any more.
        self.snapshot = snapshot.filter(|_| self.rest.is_some());
    }
}

impl Stream for PartitionEntries {
    type Item = Result<KeyValue>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<KeyValue>>> {
        loop {
            if let Some(item) = self.items.next() {
                return Poll::Ready(Some(Ok(item)));
            }
            if self.fetch.is_none() {
                self.begin_fetch();
            }
            let Some(fetch) = self.fetch.as_mut() else {
                return Poll::Ready(None);
            };
            let fetched = ready!(fetch.as_mut().poll(context));
            self.fetch = None;
            match fetched {
                Ok((snapshot, page)) => self.take_page(snapshot, page),
                Err(cause) => {
                    (self.rest, self.snapshot) = (None, None);
                    return Poll::Ready(Some(Err(cause)));
                }
            }
            self.pages += 1;
            if self.pages == 1 {
                continue;
            }
            self.begin_fetch();
            // Its job is on the way to the shard before the caller works on this page. A result that is there at once
            // is looked at when it is needed: the future would not be polled again.
            if let Some(mut fetch) = self.fetch.take() {
                match fetch.as_mut().poll(context) {
                    Poll::Pending => self.fetch = Some(fetch),
                    Poll::Ready(result) => self.fetch = Some(Box::pin(std::future::ready(result))),
                }
            }
        }
    }
}
