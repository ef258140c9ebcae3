//! The source's end of the mirror: every record of a partition, in LSN order, on its way to a shadow.
//!
//! A record of a segment that the shadow does not hold yet is *elided*: only its LSN travels, because the copy to come
//! contains it. From the moment a segment is *covered* its records travel in full. The tap never blocks a writer: it
//! counts what is queued, and a queue beyond its budget closes the tap, which ends the attempt and not the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chain::ChainState;
use crate::record::Record;
use crate::types::{Lsn, SegmentId};

/// One element of the mirror stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorItem {
    /// A record of a covered segment.
    Record {
        /// Its segment at the source.
        segment: SegmentId,
        /// The record.
        record: Record,
    },
    /// An LSN whose record travels with a copy instead.
    Elided {
        /// The LSN.
        lsn: Lsn,
    },
}

impl MirrorItem {
    /// The item's LSN.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        match self {
            MirrorItem::Record { record, .. } => record.lsn,
            MirrorItem::Elided { lsn } => *lsn,
        }
    }

    /// Bytes counted against the queue's budget.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        match self {
            MirrorItem::Record { record, .. } => (record.key.len() + record.value.len() + 64) as u64,
            MirrorItem::Elided { .. } => 32,
        }
    }
}

/// The receiving end, for the thread that sends.
#[derive(Debug)]
pub struct MirrorReceiver {
    /// Last LSN before the mirror; the first item is the one after it.
    pub from: Lsn,
    items: async_channel::Receiver<MirrorItem>,
    queued_bytes: Arc<AtomicU64>,
}

impl MirrorReceiver {
    /// The next item; `None` when the tap was closed.
    pub async fn recv(&self) -> Option<MirrorItem> {
        let item = self.items.recv().await.ok()?;
        self.queued_bytes.fetch_sub(item.queued_bytes(), Ordering::Relaxed);
        Some(item)
    }

    /// The next item if it is there already.
    #[must_use]
    pub fn try_recv(&self) -> Option<MirrorItem> {
        let item = self.items.try_recv().ok()?;
        self.queued_bytes.fetch_sub(item.queued_bytes(), Ordering::Relaxed);
        Some(item)
    }
}

/// The sending end, in the partition.
#[derive(Debug)]
pub(crate) struct MirrorTap {
    pub chain: ChainState,
    /// By index of the (pinned) segment layout.
    covered: Vec<bool>,
    items: async_channel::Sender<MirrorItem>,
    queued_bytes: Arc<AtomicU64>,
    queued_bytes_max: u64,
}

impl MirrorTap {
    /// A tap over a layout of `segments` segments whose first item will be the one after `from`.
    pub fn new(from: Lsn, segments: usize, queued_bytes_max: u64) -> (MirrorTap, MirrorReceiver) {
        let (sender, items) = async_channel::unbounded();
        let queued_bytes = Arc::new(AtomicU64::new(0));
        let tap = MirrorTap {
            chain: ChainState::new(from),
            covered: vec![false; segments],
            items: sender,
            queued_bytes: Arc::clone(&queued_bytes),
            queued_bytes_max,
        };
        (tap, MirrorReceiver { from, items, queued_bytes })
    }

    /// From the next record on, the segment's records travel in full.
    pub fn cover(&mut self, segment_index: usize) {
        self.covered[segment_index] = true;
    }

    /// Takes the record just assigned. A full queue closes the tap.
    pub fn push(&mut self, segment_index: usize, segment: SegmentId, record: &Record) {
        let item = if self.covered[segment_index] {
            self.chain.fold_record(segment, record.view());
            MirrorItem::Record { segment, record: record.clone() }
        } else {
            self.chain.fold_elided(record.lsn, 1);
            MirrorItem::Elided { lsn: record.lsn }
        };
        let bytes = item.queued_bytes();
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if queued > self.queued_bytes_max || self.items.try_send(item).is_err() {
            self.items.close();
        }
    }
}
