//! Segments on their way to another host: the source takes an *image*, then a *delta*; the target checks the image.
//!
//! The image is the segment's base as it lies on the device, byte by byte, where the segment has one and little has been
//! written above it: no record is merged, decoded or encoded for it, and the shard's core only passes buffers on. Otherwise
//! it is built: the live records at one LSN, as a table. Either way the delta has everything that came behind it.
//!
//! - `INV-IMAGE`: image and delta together show what readers at the covered LSN see. Every record of a segment that is
//!   not in its base is newer than all of the base, and range deletions may hide what the base still holds for a snapshot:
//!   the delta of a base has all of them.
//! - `INV-COPY`: the source's seal names, of each copy, the digest of what travels: all records of the image, older versions
//!   and tombstones of a base included, and the delta. For a base the source takes it from the footer that it has read when
//!   it opened the table, the target from the records that came.

use std::rc::Rc;

use futures_util::FutureExt;

use crate::chain::CopyDigest;
use crate::clock;
use crate::erasure::Erasure;
use crate::error::{Error, Result};
use crate::io::runtime;
use crate::merge::Retain;
use crate::record::Record;
use crate::shard::files::Table;
use crate::table::{self, TableBuilder};
use crate::types::{AttemptId, HostId, Lsn, SegmentId, ValidationToken};

use super::layout::Segment;
use super::output::plain_options;
use super::read::ReadView;
use super::scan::ViewIter;
use super::snapshots::SnapshotPin;
use super::{Partition, Serving};

/// A base travels as it lies unless the tables above it have more than one in this many of its bytes.
const ABOVE_BASE_DIVISOR: u64 = 2;
/// Bytes of a base that are read at a time: as long as a turn of background work takes to copy them.
const READ_BYTES: usize = 128 << 10;

/// The state that an image shows, kept until its segment is covered.
#[derive(Debug)]
pub(super) struct Captured {
    pub pin: SnapshotPin,
    /// Range deletions at or below have been applied to the image.
    pub erased_up_to: Lsn,
    /// Digest of the image's records.
    pub digest: u128,
}

/// A segment as a table: every record at or below an LSN that its readers need, and perhaps older ones.
#[derive(Clone, Debug)]
pub struct Image {
    /// The version it was taken from.
    pub token: ValidationToken,
    /// A table (see [`crate::table`]); empty if the segment has no live record.
    pub table: Vec<u8>,
    /// Digest of its records; 0 if it has none.
    pub digest: u128,
}

/// What changed in a segment between its image and the moment it was covered.
#[derive(Clone, Debug)]
pub struct SegmentDelta {
    /// The last LSN that the delta contains; every later record travels over the mirror.
    pub covered: Lsn,
    /// The range deletions, then the newest version of each changed key, tombstones included, ascending by key.
    pub records: Vec<Record>,
}

/// An image that has arrived and is what was sent: blocks, filter, index, count and digest agree.
#[derive(Clone, Debug)]
pub struct CheckedImage {
    pub(super) table: Vec<u8>,
    /// The last LSN in it.
    pub(super) max_lsn: Lsn,
    /// Digest of its records; 0 if it has none.
    pub(super) digest: u128,
}

impl CheckedImage {
    /// Checks an image.
    ///
    /// # Errors
    /// [`Error::Corruption`] when it is not what was built.
    /// Cost: reads every record, about a millisecond a MiB: not on a shard's core.
    pub fn check(table: Vec<u8>) -> Result<CheckedImage> {
        if table.is_empty() {
            return Ok(CheckedImage { table, max_lsn: Lsn(0), digest: 0 });
        }
        let Some(checked) = table::verify_image(&table).now_or_never() else {
            unreachable!("bytes in memory are read without waiting");
        };
        let meta = checked?;
        Ok(CheckedImage { table, max_lsn: meta.max_lsn, digest: meta.digest })
    }

    /// Its bytes.
    #[must_use]
    pub fn table(&self) -> &[u8] {
        &self.table
    }
}

impl Partition {
    /// Takes the image of a segment. Its state is kept until the segment is covered or captured again.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, [`Error::UnknownSegment`], [`Error::Corruption`], [`Error::Io`].
    pub async fn capture_image(self: &Rc<Self>, attempt: AttemptId, segment: SegmentId) -> Result<Image> {
        let partition = Rc::clone(self);
        self.shard.background().run(async move { partition.capture_segment(attempt, segment).await }).await
    }

    async fn capture_segment(&self, attempt: AttemptId, id: SegmentId) -> Result<Image> {
        self.check_outgoing(attempt)?;
        let (segment, pin) = {
            // A compaction under way may be about to forget a tombstone that the base does not know yet.
            let Some(_guard) = self.lock_maintenance().await else {
                return Err(self.stale(format!("attempt {attempt}")));
            };
            let segment = self.segment(id)?;
            let visible = self.progress.borrow().visible();
            let base_ends = base_to_send(&segment).map_or(visible, |base| base.location.max_lsn);
            (segment, self.snapshots.pin(base_ends.min(visible), clock::wall_ms()))
        };
        let (image, captured) = match base_to_send(&segment) {
            Some(base) => {
                let (token, digest) = (self.token(&segment), base.meta().digest);
                let image = Image { token, table: read_whole(base).await?, digest };
                (image, Captured { pin, erased_up_to: Lsn(0), digest })
            }
            None => {
                let view = self.view_latest();
                let image = self.build_image(&view, id).await?;
                let digest = image.digest;
                (image, Captured { erased_up_to: view.pin.lsn(), pin: view.pin, digest })
            }
        };
        let mut outgoing = self.outgoing.borrow_mut();
        let outgoing = outgoing.as_mut().filter(|held| held.attempt == attempt);
        let outgoing = outgoing.ok_or_else(|| self.stale(format!("attempt {attempt}")))?;
        outgoing.captured.insert(id, captured);
        Ok(image)
    }

    async fn build_image(&self, view: &ReadView, id: SegmentId) -> Result<Image> {
        let segment = self.segment(id)?;
        let token = self.token(&segment);
        // Nothing that has expired since is left out: the target decides by its own clock when it serves.
        let mut records = self.iterate_segment(view, &segment, Retain::visible_at(view.pin.lsn(), 0));
        let mut builder = TableBuilder::new(plain_options(self.options));
        while records.advance().await? {
            builder.add(records.current())?;
            runtime::yield_now().await;
        }
        if builder.is_empty() {
            return Ok(Image { token, table: Vec::new(), digest: 0 });
        }
        let built = builder.finish()?;
        Ok(Image { token, table: built.bytes, digest: built.meta.digest })
    }

    /// The image of a segment of a partition that was handed over to `owner`, which does not hold it yet. Nothing is
    /// written here any more, so every such image shows the state at the hand-over, and no delta follows.
    ///
    /// # Errors
    /// [`Error::Stale`] unless the partition was handed over to `owner`, [`Error::UnknownSegment`],
    /// [`Error::Corruption`], [`Error::Io`].
    pub async fn capture_released(self: &Rc<Self>, owner: HostId, segment: SegmentId) -> Result<Image> {
        let partition = Rc::clone(self);
        let capture = async move {
            if partition.serving() != (Serving::Released { owner }) {
                return Err(partition.stale(format!("fetch: it has not been handed over to host {owner}")));
            }
            let view = partition.view_at(partition.assigned());
            partition.build_image(&view, segment).await
        };
        self.shard.background().run(capture).await
    }

    /// From now on the segment's records travel over the mirror. Returns what changed since its image was taken.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, without an image, or once writes stand still (the seal names every copy that
    /// may arrive), [`Error::UnknownSegment`], [`Error::Corruption`], [`Error::Io`].
    pub async fn cover_segment(self: &Rc<Self>, attempt: AttemptId, id: SegmentId) -> Result<SegmentDelta> {
        let partition = Rc::clone(self);
        self.shard.background().run(async move { partition.cover(attempt, id).await }).await
    }

    async fn cover(&self, attempt: AttemptId, id: SegmentId) -> Result<SegmentDelta> {
        let segment = self.segment(id)?;
        let index = self.layout().index_of(id).ok_or(Error::UnknownSegment { partition: self.id, segment: id })?;
        // Without an await: no record falls between the delta and the mirror.
        let (captured, covered) = {
            self.check_unsealed(id)?;
            let mut outgoing = self.outgoing.borrow_mut();
            let mut mirror = self.mirror.borrow_mut();
            let held = outgoing.as_mut().filter(|held| held.attempt == attempt).zip(mirror.as_mut());
            let (outgoing, tap) = held.ok_or_else(|| self.stale(format!("attempt {attempt}")))?;
            let captured = outgoing.captured.remove(&id);
            let captured = captured.ok_or_else(|| self.stale(format!("segment {id} is covered before its image")))?;
            tap.cover(index);
            (captured, self.assigned())
        };
        let view = self.view_at(covered);
        let after = captured.pin.lsn();
        let mut records = self.iterate_segment(&view, &segment, Retain::changed_between(after, covered));
        // Range deletions first: the table of the rest is built in key order.
        let erased = view.erasures(&segment.start, segment.end.as_ref(), captured.erased_up_to, covered);
        let mut changed: Vec<Record> = erased.iter().map(Erasure::to_record).collect();
        let mut copy = CopyDigest::new(id, captured.digest, covered);
        changed.iter().for_each(|record| copy.update(record.view()));
        while records.advance().await? {
            copy.update(records.current());
            changed.push(records.current().to_record());
            runtime::yield_now().await;
        }
        self.check_unsealed(id)?;
        let mut outgoing = self.outgoing.borrow_mut();
        let outgoing = outgoing.as_mut().filter(|held| held.attempt == attempt);
        let outgoing = outgoing.ok_or_else(|| self.stale(format!("attempt {attempt}")))?;
        outgoing.copies.insert(id, copy.finish());
        Ok(SegmentDelta { covered, records: changed })
    }

    fn check_unsealed(&self, id: SegmentId) -> Result<()> {
        match self.serving() {
            Serving::Owner => Ok(()),
            _ => Err(self.stale(format!("segment {id} is covered after the freeze"))),
        }
    }

    fn iterate_segment<'a>(&self, view: &'a ReadView, segment: &Segment, retain: Retain) -> ViewIter<'a> {
        self.iterate_in_background(view, segment.start.clone(), segment.end.clone(), retain)
    }
}

/// The base, if it is worth to be sent as it lies: most of what the tables above it hold travels a second time.
fn base_to_send(segment: &Segment) -> Option<&Table> {
    let above: u64 = segment.slices.iter().map(|slice| slice.location.len).sum();
    let base = segment.base.as_deref()?;
    (above <= base.location.len / ABOVE_BASE_DIVISOR).then_some(base)
}

async fn read_whole(table: &Table) -> Result<Vec<u8>> {
    let len = table.location.len as usize;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let piece = table.read_bytes(bytes.len() as u64, READ_BYTES.min(len - bytes.len())).await?;
        bytes.extend_from_slice(&piece);
        runtime::yield_now().await;
    }
    Ok(bytes)
}
