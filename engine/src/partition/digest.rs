//! Digests of what two hosts should hold alike: every live record at the last LSN before the hand-over.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::chain::RecordDigest;
use crate::clock;
use crate::error::{Error, Result};
use crate::merge::Retain;
use crate::types::{AttemptId, Lsn};

use super::Partition;
use super::scrub::Pace;
use super::snapshots::SnapshotPin;

/// What waited for the hand-over is served before the digests begin.
const REST: Duration = Duration::from_millis(100);
/// Records are read this fast at most, in bytes a second: readers and writers are not to notice that somebody looks after what
/// the hand-over has brought.
const BYTES_S: u64 = 200_000_000;

/// Keeps the state at the hand-over readable on either side.
#[derive(Debug)]
pub(super) struct FinalPin {
    pub attempt: AttemptId,
    pub pin: SnapshotPin,
    /// Records whose deadline had passed by then count on neither side. Milliseconds since the Unix epoch.
    pub wall_ms: u64,
}

/// Digest of the live records of one key range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeDigest {
    /// First key of the range.
    pub start: Vec<u8>,
    /// Live records in it.
    pub records: u64,
    /// See [`crate::chain`].
    pub digest: u128,
}

impl Partition {
    /// Keeps the state at `lsn` and `wall_ms` for [`Partition::digest_final`].
    pub(super) fn pin_final(&self, attempt: AttemptId, lsn: Lsn, wall_ms: u64) {
        let pin = self.snapshots.pin(lsn, wall_ms.min(clock::wall_ms()));
        *self.final_pin.borrow_mut() = Some(FinalPin { attempt, pin, wall_ms });
    }

    /// Lets go of the state kept for the digest.
    pub fn unpin_final(&self, attempt: AttemptId) {
        self.final_pin.borrow_mut().take_if(|held| held.attempt == attempt);
    }

    /// Digests of the state at the hand-over, one for each range that begins at one of `starts` and ends at the next
    /// (the last at the partition's end). Reads everything, in the background and paced.
    ///
    /// # Errors
    /// [`Error::Stale`] when nothing is kept for this attempt, [`Error::Corruption`], [`Error::Io`].
    pub async fn digest_final(self: &Rc<Self>, attempt: AttemptId, starts: Vec<Vec<u8>>) -> Result<Vec<RangeDigest>> {
        let partition = Rc::clone(self);
        self.shard.background().run(async move { partition.digest_ranges(attempt, starts).await }).await
    }

    async fn digest_ranges(&self, attempt: AttemptId, starts: Vec<Vec<u8>>) -> Result<Vec<RangeDigest>> {
        let kept = self.final_pin.borrow().as_ref().map(|held| (held.attempt, held.pin.lsn(), held.wall_ms));
        let Some((_, lsn, wall_ms)) = kept.filter(|(held, ..)| *held == attempt) else {
            return Err(self.stale(format!("digest of attempt {attempt}: its final state is not kept")));
        };
        let mut pace = Pace::after(REST, BYTES_S);
        let mut digests = Vec::with_capacity(starts.len());
        for (index, start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).or(self.range.end.as_ref()).map(|end| Bytes::copy_from_slice(end));
            let view = self.view_at(lsn);
            let retain = Retain::visible_at(lsn, wall_ms);
            let mut records = self.iterate_in_background(&view, Bytes::copy_from_slice(start), end, retain);
            let (mut digest, mut count) = (RecordDigest::default(), 0);
            while records.advance().await? {
                let record = records.current();
                let bytes = (record.key.len() + record.value.len()) as u64;
                digest.update(record);
                count += 1;
                pace.pay(bytes).await;
            }
            digests.push(RangeDigest { start: start.clone(), records: count, digest: digest.finish() });
        }
        Ok(digests)
    }

    pub(crate) fn stale(&self, what: impl Into<String>) -> Error {
        Error::Stale { partition: self.id, what: what.into() }
    }
}
