//! Roll-back: the copy that a move has left behind is the base of a shadow back to it.
//!
//! Both hosts have the state at the LSN of the hand-over. While the coordinator's record says so, the owner *keeps the
//! base*: the state at that LSN stays readable, what was deleted behind it is not forgotten, and segments keep their
//! bounds. A shadow *takes the base*: the tables of the released copy lie aside until the segment's turn comes; then
//! both sides digest the segment's live records at that LSN, and where they agree only what changed since travels.
//!
//! - `INV-BASE`: nothing of a base is read as the partition's data before its segment is installed: a segment that is
//!   missing has no table, base or not (`INV-FILL`). Until then the manifest does not name the tables either, so that a
//!   restart leaves a shadow without a base.
//! - A base that is damaged, incomplete (records that were in no log) or cut otherwise has another digest or none, and
//!   the segment travels in full.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::chain::RecordDigest;
use crate::clock;
use crate::error::{Error, Result};
use crate::io::{Bug, planted, runtime};
use crate::merge::{MergeIter, Retain, Source};
use crate::table::Purpose;
use crate::types::{AttemptId, HostId, Lsn, SegmentId};

use super::compact::{LayoutPin, READ_BYTES_MIN};
use super::image::Captured;
use super::layout::{Layout, Segment};
use super::snapshots::SnapshotPin;
use super::{Partition, Serving};

/// The state that two hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The last LSN that both have.
    pub lsn: Lsn,
    /// Records whose deadline had passed by then count on neither side. Milliseconds since the Unix epoch.
    pub wall_ms: u64,
}

/// What an owner keeps while another host has the state at this LSN.
#[derive(Debug)]
pub(super) struct KeptBase {
    lsn: Lsn,
    _pin: SnapshotPin,
    _layout: LayoutPin,
}

/// A segment of a base, and its digest once it has been taken.
#[derive(Debug)]
struct BaseSegment {
    segment: Rc<Segment>,
    digest: Option<u128>,
}

/// What a shadow has taken of the copy that lay here. No manifest names these tables.
#[derive(Debug, Default)]
pub(super) struct Bases {
    segments: BTreeMap<SegmentId, BaseSegment>,
}

impl Bases {
    /// The base of a segment, if this is its digest.
    pub fn get(&self, segment: SegmentId, digest: u128) -> Option<Rc<Segment>> {
        let base = self.segments.get(&segment).filter(|base| base.digest == Some(digest));
        base.map(|base| Rc::clone(&base.segment))
    }

    /// The segment's tables are the shadow's now.
    pub fn note_installed(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
    }

    /// The segment's tables are of no use any more.
    pub fn forget(&mut self, segment: SegmentId) {
        if let Some(base) = self.segments.remove(&segment) {
            base.segment.tables().for_each(|table| table.retire());
        }
    }
}

impl Drop for Bases {
    fn drop(&mut self) {
        self.segments.values().flat_map(|base| base.segment.tables()).for_each(|table| table.retire());
    }
}

impl Partition {
    /// Keeps what a roll-back to the host with the state at `lsn` needs; `None` = no more. Not durable: a partition
    /// that is suspended, as after a restart, forgets no deletion, and where older versions were dropped before this
    /// was called again the digests differ.
    pub fn keep_base(&self, lsn: Option<Lsn>) {
        if self.kept_base() == lsn {
            return;
        }
        *self.base.borrow_mut() = lsn.map(|lsn| KeptBase {
            lsn,
            _pin: self.snapshots.pin(lsn, clock::wall_ms()),
            _layout: self.pin_layout_now(),
        });
    }

    /// The LSN of the base that is kept.
    pub(super) fn kept_base(&self) -> Option<Lsn> {
        self.base.borrow().as_ref().map(|base| base.lsn)
    }

    /// Takes the target's copy of a segment at the base for its image, if the digest of its live records is the same
    /// here. False: it is not, and the segment has to be captured.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, [`Error::UnknownSegment`], [`Error::Corruption`], [`Error::Io`].
    pub async fn capture_on_base(
        self: &Rc<Self>,
        attempt: AttemptId,
        segment: SegmentId,
        base: Base,
        theirs: u128,
    ) -> Result<bool> {
        let partition = Rc::clone(self);
        let capture = async move { partition.capture_base(attempt, segment, base, theirs).await };
        self.shard.background().run(capture).await
    }

    async fn capture_base(&self, attempt: AttemptId, id: SegmentId, base: Base, theirs: u128) -> Result<bool> {
        self.check_outgoing(attempt)?;
        let segment = self.segment(id)?;
        if self.kept_base() != Some(base.lsn) {
            return Ok(false);
        }
        let view = self.view_at(base.lsn);
        let digest = {
            let retain = Retain::visible_at(base.lsn, base.wall_ms);
            let mut records = self.iterate_in_background(&view, segment.start.clone(), segment.end.clone(), retain);
            let mut digest = RecordDigest::default();
            while records.advance().await? {
                digest.update(records.current());
                runtime::yield_now().await;
            }
            digest.finish()
        };
        if digest != theirs {
            return Ok(false);
        }
        let mut outgoing = self.outgoing.borrow_mut();
        let outgoing = outgoing.as_mut().filter(|held| held.attempt == attempt);
        let outgoing = outgoing.ok_or_else(|| self.stale(format!("attempt {attempt}")))?;
        let pin = match planted(Bug::DeltaFromNow) {
            true => self.snapshots.pin(self.assigned(), base.wall_ms),
            false => view.pin,
        };
        outgoing.captured.insert(id, Captured { pin, erased_up_to: base.lsn, digest });
        Ok(true)
    }

    /// The segments of a copy that was handed over to `owner` at `lsn`, all in tables.
    ///
    /// # Errors
    /// [`Error::Invalid`] when what is here is no such copy, saying why; as a flush.
    pub(crate) async fn take_base(&self, owner: HostId, lsn: Lsn) -> Result<Rc<Layout>> {
        let unfit = |what: String| Error::Invalid { what: format!("partition {}: {what}", self.id) };
        if self.serving() != (Serving::Released { owner }) {
            return Err(unfit(format!("what is here was not handed over to host {owner}")));
        }
        if self.assigned() != lsn {
            return Err(unfit(format!("the copy here ends at LSN {}, not at {lsn}", self.assigned())));
        }
        self.check_whole()?;
        self.flush_memtables().await?;
        Ok(self.layout())
    }

    /// Lays the segments of a copy aside that have the same bounds here; the others go. Returns how many there are.
    pub(crate) fn adopt_base(&self, copy: &Layout) -> usize {
        let layout = self.layout();
        let same = |old: &Rc<Segment>| {
            let ours = layout.index_of(old.id).map(|index| &layout.segments[index]);
            ours.is_some_and(|ours| ours.start == old.start && ours.end == old.end)
        };
        let (kept, gone): (Vec<_>, Vec<_>) = copy.segments.iter().cloned().partition(same);
        gone.iter().flat_map(|segment| segment.tables()).for_each(|table| table.retire());
        let count = kept.len();
        let segments = kept.into_iter().map(|segment| (segment.id, BaseSegment { segment, digest: None })).collect();
        match self.shadow.borrow_mut().as_mut() {
            Some(shadow) => shadow.bases = Bases { segments },
            // Dropped, and with it the tables.
            None => drop(Bases { segments }),
        }
        count
    }

    /// The segments that this shadow has a base of, ascending.
    #[must_use]
    pub fn based_segments(&self) -> Vec<SegmentId> {
        let shadow = self.shadow.borrow();
        shadow.iter().flat_map(|shadow| shadow.bases.segments.keys().copied()).collect()
    }

    /// The digest of the live records of a segment at the base; `None` if there is no base of it, or one that cannot be
    /// read: such a base is given up.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt.
    pub async fn digest_base(
        self: &Rc<Self>,
        attempt: AttemptId,
        segment: SegmentId,
        base: Base,
    ) -> Result<Option<u128>> {
        let partition = Rc::clone(self);
        self.shard.background().run(async move { partition.digest_base_segment(attempt, segment, base).await }).await
    }

    async fn digest_base_segment(&self, attempt: AttemptId, id: SegmentId, base: Base) -> Result<Option<u128>> {
        let found = self.with_shadow(attempt, |shadow| {
            let found = shadow.bases.segments.get(&id);
            Ok(found.map(|found| (Rc::clone(&found.segment), found.digest)))
        })?;
        let (segment, known) = match found {
            Some(found) => found,
            None => return Ok(None),
        };
        if known.is_some() {
            return Ok(known);
        }
        let digest = match self.digest_tables(&segment, base).await {
            Ok(digest) => Some(digest),
            Err(cause) => {
                tracing::error!(%cause, partition = %self.id, segment = %id, "no base of a roll-back; it travels in full");
                None
            }
        };
        self.with_shadow(attempt, |shadow| {
            match (shadow.bases.segments.get_mut(&id), digest) {
                (Some(found), Some(_)) => found.digest = digest,
                (Some(_), None) => shadow.bases.forget(id),
                (None, _) => {}
            }
            Ok(digest)
        })
    }

    async fn digest_tables(&self, segment: &Rc<Segment>, base: Base) -> Result<u128> {
        let share = self.shard.read_ahead_bytes();
        let sources: Vec<Source> = segment
            .tables()
            .map(|table| {
                let purpose =
                    Purpose::Maintain { read_bytes: (share / segment.slices.len().max(1)).max(READ_BYTES_MIN) };
                Source::table(table, segment.start.clone(), segment.end.clone(), purpose)
            })
            .collect();
        let retain = Retain::visible_at(base.lsn, base.wall_ms);
        let mut records = MergeIter::new(sources, retain).erased_by(segment.erasures.to_vec());
        let mut digest = RecordDigest::default();
        while records.advance().await? {
            digest.update(records.current());
            runtime::yield_now().await;
        }
        Ok(digest.finish())
    }
}
