//! The source's side of a move: plan, images, deltas, freeze, hand-over. Driven by the shadow protocol; each method
//! names the attempt, and a closed attempt changes nothing.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use antumbra_predictor::scorer::ScorerKind;
use bytes::Bytes;

use crate::chain::{Seal, copy_digest};
use crate::clock;
use crate::erasure::Erasure;
use crate::error::{Error, Result};
use crate::manifest::{ManifestEdit, Role};
use crate::merge::Retain;
use crate::record::Record;
use crate::table::TableBuilder;
use crate::types::{AttemptId, Epoch, Hlc, HostId, Lsn, SegmentId, ValidationToken};

use super::compact::LayoutPin;
use super::layout::Segment;
use super::mirror::{MirrorReceiver, MirrorTap};
use super::output::plain_options;
use super::read::ReadView;
use super::scan::ViewIter;
use super::snapshots::SnapshotPin;
use super::{Partition, Serving};

/// Smallest size that a segment counts with: an empty one still costs a stream.
const SEGMENT_BYTES_MIN: u64 = 4096;

/// What the source keeps while a shadow is attached.
#[derive(Debug)]
pub(super) struct Outgoing {
    attempt: AttemptId,
    /// Segments keep their bounds.
    _layout: LayoutPin,
    /// State and digest of each image under way, until its segment is covered.
    captured: BTreeMap<SegmentId, (SnapshotPin, u128)>,
    /// Digest of each copy, for the seal.
    copies: BTreeMap<SegmentId, u128>,
}

/// A segment as the plan of a shadow sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentSummary {
    /// The segment.
    pub id: SegmentId,
    /// First key.
    pub start: Bytes,
    /// Bytes to copy, about.
    pub bytes: u64,
    /// Its present version.
    pub token: ValidationToken,
    /// Expected accesses by the guard over all scorers.
    pub auto: f32,
    /// The same by the GRU alone.
    pub gru: f32,
    /// The same by the moving average alone.
    pub ewma: f32,
}

/// The live records of a segment at one LSN, as a table.
#[derive(Clone, Debug)]
pub struct Image {
    /// The version it was taken from.
    pub token: ValidationToken,
    /// The LSN it shows.
    pub snapshot: Lsn,
    /// A table (see [`crate::table`]); empty if the segment has no live record.
    pub table: Vec<u8>,
    /// Digest of its records.
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

/// The state at which a partition stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Last LSN and the mirror's chain.
    pub seal: Seal,
    /// Largest timestamp given out so far.
    pub clock: Hlc,
    /// When it froze, in milliseconds since the Unix epoch: what had expired by then counts on neither side.
    pub wall_ms: u64,
}

impl Partition {
    /// Begins to mirror: from the LSN in the receiver on, every record goes to it, elided while its segment is not
    /// covered. The queue may hold `queued_bytes_max` bytes; beyond, it is closed.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another shadow is attached or this host does not own the partition.
    pub async fn attach_mirror(self: &Rc<Self>, attempt: AttemptId, queued_bytes_max: u64) -> Result<MirrorReceiver> {
        let layout_pin = self.pin_layout().await;
        if self.serving() != Serving::Owner {
            return Err(Error::Invalid { what: format!("partition {} is not served here", self.id) });
        }
        if self.outgoing.borrow().is_some() {
            return Err(Error::Invalid { what: format!("partition {} has a shadow already", self.id) });
        }
        self.check_whole()?;
        let segments = self.layout().segments.len();
        let (tap, receiver) = MirrorTap::new(self.assigned(), segments, queued_bytes_max);
        // Should the shadow be promoted by force, what lies behind it is compared.
        self.keep_changes_since(Some(receiver.from));
        *self.mirror.borrow_mut() = Some(tap);
        *self.outgoing.borrow_mut() =
            Some(Outgoing { attempt, _layout: layout_pin, captured: BTreeMap::new(), copies: BTreeMap::new() });
        Ok(receiver)
    }

    /// Ends the mirror of this attempt. Writes that waited for the target are acknowledged by this host alone: after
    /// a synchronous mirror only to be called once the attempt is closed at the coordinator.
    pub fn detach_mirror(&self, attempt: AttemptId) {
        if self.check_outgoing(attempt).is_ok() {
            self.mirror.take();
            self.outgoing.take();
            self.keep_changes_since(None);
            self.progress.borrow_mut().set_mirrored(None);
        }
    }

    /// The segments with sizes, tokens and scores, ascending by key.
    #[must_use]
    pub fn segment_summaries(&self) -> Vec<SegmentSummary> {
        let layout = self.layout();
        let access = self.access.borrow();
        let score = |kind, index: usize| access.scores(kind).get(index).copied().unwrap_or(0.0);
        layout
            .segments
            .iter()
            .enumerate()
            .map(|(index, segment)| SegmentSummary {
                id: segment.id,
                start: segment.start.clone(),
                bytes: segment.bytes().max(SEGMENT_BYTES_MIN),
                token: self.token(segment),
                auto: score(ScorerKind::Auto, index),
                gru: score(ScorerKind::Gru, index),
                ewma: score(ScorerKind::Ewma, index),
            })
            .collect()
    }

    /// Takes the image of a segment. Its state is kept until the segment is covered or captured again.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, [`Error::UnknownSegment`], [`Error::Corruption`], [`Error::Io`].
    pub async fn capture_image(self: &Rc<Self>, attempt: AttemptId, segment: SegmentId) -> Result<Image> {
        let partition = Rc::clone(self);
        self.shard.background().run(async move { partition.build_image(attempt, segment).await }).await
    }

    async fn build_image(&self, attempt: AttemptId, id: SegmentId) -> Result<Image> {
        self.check_outgoing(attempt)?;
        let view = self.view_latest();
        let image = self.image_at(&view, id).await?;
        let mut outgoing = self.outgoing.borrow_mut();
        let outgoing = outgoing.as_mut().filter(|held| held.attempt == attempt);
        let outgoing = outgoing.ok_or_else(|| self.stale(format!("attempt {attempt}")))?;
        outgoing.captured.insert(id, (view.pin, image.digest));
        Ok(image)
    }

    async fn image_at(&self, view: &ReadView, id: SegmentId) -> Result<Image> {
        let segment = self.segment(id)?;
        let (token, snapshot) = (self.token(&segment), view.pin.lsn());
        // Nothing that has expired since is left out: the target decides by its own clock when it serves.
        let mut records = self.iterate_segment(view, &segment, Retain::visible_at(snapshot, 0));
        let mut builder = TableBuilder::new(plain_options(self.options));
        while records.advance().await? {
            builder.add(records.current())?;
            crate::io::runtime::yield_now().await;
        }
        let (table, digest) = match builder.is_empty() {
            true => (Vec::new(), 0),
            false => {
                let built = builder.finish()?;
                (built.bytes, built.meta.digest)
            }
        };
        Ok(Image { token, snapshot, table, digest })
    }

    /// The image of a segment of a partition that was handed over to `owner`, which does not hold it yet. Nothing is
    /// written here any more, so every such image shows the state at the hand-over.
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
            partition.image_at(&view, segment).await
        };
        self.shard.background().run(capture).await
    }

    /// From now on the segment's records travel over the mirror. Returns what changed since its image was taken.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, without an image, or once writes stand still (the seal names every copy that
    /// may arrive), [`Error::UnknownSegment`], [`Error::Corruption`],
    /// [`Error::Io`].
    pub async fn cover_segment(self: &Rc<Self>, attempt: AttemptId, id: SegmentId) -> Result<SegmentDelta> {
        let partition = Rc::clone(self);
        self.shard.background().run(async move { partition.cover(attempt, id).await }).await
    }

    async fn cover(&self, attempt: AttemptId, id: SegmentId) -> Result<SegmentDelta> {
        let segment = self.segment(id)?;
        let index = self.layout().index_of(id).ok_or(Error::UnknownSegment { partition: self.id, segment: id })?;
        // Without an await: no record falls between the delta and the mirror.
        let ((pin, image), covered) = {
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
        let mut records = self.iterate_segment(&view, &segment, Retain::changed_between(pin.lsn(), covered));
        // Range deletions first: the table of the rest is built in key order.
        let erased = view.erasures(&segment.start, segment.end.as_ref(), pin.lsn(), covered);
        let mut changed: Vec<Record> = erased.iter().map(Erasure::to_record).collect();
        while records.advance().await? {
            changed.push(records.current().to_record());
            crate::io::runtime::yield_now().await;
        }
        self.check_unsealed(id)?;
        let mut outgoing = self.outgoing.borrow_mut();
        let held = outgoing.as_mut().filter(|held| held.attempt == attempt);
        let outgoing = held.ok_or_else(|| self.stale(format!("attempt {attempt}")))?;
        outgoing.copies.insert(id, copy_digest(id, image, covered, &changed));
        Ok(SegmentDelta { covered, records: changed })
    }

    fn check_unsealed(&self, id: SegmentId) -> Result<()> {
        match self.serving() {
            Serving::Owner => Ok(()),
            _ => Err(self.stale(format!("segment {id} is covered after the freeze"))),
        }
    }

    /// Whether `token` still names the present version of its segment.
    #[must_use]
    pub fn is_current(&self, token: ValidationToken) -> bool {
        self.segment(token.segment).is_ok_and(|segment| self.token(&segment) == token)
    }

    /// Makes acknowledgements wait for the target from now on; it has made durable everything up to `acked`.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt.
    pub fn set_synchronous(&self, attempt: AttemptId, acked: Lsn) -> Result<()> {
        self.check_outgoing(attempt)?;
        self.progress.borrow_mut().set_mirrored(Some(acked));
        Ok(())
    }

    /// The target has made durable everything up to `acked`.
    pub fn handle_mirror_ack(&self, attempt: AttemptId, acked: Lsn) {
        if self.check_outgoing(attempt).is_err() {
            return;
        }
        self.keep_since.set(self.keep_since.get().max(Some(acked)));
        let mut progress = self.progress.borrow_mut();
        if progress.is_synchronous() {
            progress.set_mirrored(Some(acked));
        }
    }

    /// Parks writes. Returns once everything written before is on this host's device. Reads are served for
    /// `read_lease` at most: after that another host may own the partition, and they are parked too.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, [`Error::ReadOnly`]; the partition is then served as before.
    pub async fn freeze(&self, attempt: AttemptId, read_lease: Duration) -> Result<Frozen> {
        self.check_outgoing(attempt)?;
        if self.serving() != Serving::Owner {
            return Err(self.stale("freeze of a partition that is not served here"));
        }
        self.reads_until.set(clock::monotonic() + read_lease);
        self.set_serving(Serving::Frozen);
        let wall_ms = clock::wall_ms();
        let wal = self.shard.wal();
        if let Err(cause) = wal.wait_durable(wal.collecting()).await {
            self.set_serving(Serving::Owner);
            return Err(cause);
        }
        let seal = self.mirror.borrow().as_ref().map(|tap| tap.chain.seal());
        let mut seal = seal.ok_or_else(|| self.stale(format!("attempt {attempt}")))?;
        if let Some(outgoing) = self.outgoing.borrow().as_ref() {
            seal.copies = outgoing.copies.iter().map(|(segment, digest)| (*segment, *digest)).collect();
        }
        assert_eq!(seal.final_lsn, self.assigned(), "INV-GATE: nothing is assigned while frozen");
        self.pin_final(attempt, seal.final_lsn, wall_ms);
        Ok(Frozen { seal, clock: self.shard.clock().last(), wall_ms })
    }

    /// Serves again after an abort that the coordinator has recorded in `epoch`.
    ///
    /// # Errors
    /// [`Error::Io`]: the epoch could not be made durable; the partition is served all the same.
    pub async fn thaw(&self, attempt: AttemptId, epoch: Epoch) -> Result<()> {
        self.detach_mirror(attempt);
        self.unpin_final(attempt);
        self.resume(epoch).await
    }

    /// Parks reads and writes of a partition that is served here, until [`Partition::resume`] or
    /// [`Partition::hand_over`]. For the moments in which another host may own it already: after a restart until the
    /// coordinator's record has been read, and when a switchover's outcome is not known in time.
    pub fn suspend(&self) {
        if matches!(self.serving(), Serving::Owner | Serving::Frozen) {
            self.set_serving(Serving::Suspended);
        }
    }

    /// Serves again: the coordinator's record says that this host owns the partition in `epoch`. A partition that is a
    /// shadow or released stays what it is.
    ///
    /// # Errors
    /// [`Error::Io`]: the epoch could not be made durable; the partition is served all the same.
    pub async fn resume(&self, epoch: Epoch) -> Result<()> {
        let raised = epoch > self.epoch.get();
        self.epoch.set(self.epoch.get().max(epoch));
        if matches!(self.serving(), Serving::Frozen | Serving::Suspended) {
            self.set_serving(Serving::Owner);
        }
        if self.serving() != Serving::Owner || !raised {
            return Ok(());
        }
        let edit = ManifestEdit::SetRole {
            partition: self.id,
            role: Role::Owner,
            epoch: self.epoch.get(),
            last_lsn: self.progress.borrow().durable(),
        };
        self.shard.log_edits(vec![edit]).await
    }

    /// Stops serving after a commit that the coordinator has recorded: `owner` serves in `epoch`. Parked and late
    /// requests are answered [`Error::Moved`].
    ///
    /// # Errors
    /// [`Error::Io`]: the role could not be made durable; nothing is served all the same.
    pub async fn hand_over(&self, owner: HostId, epoch: Epoch) -> Result<()> {
        self.epoch.set(self.epoch.get().max(epoch));
        // What was submitted before the freeze is at the new owner: it may be acknowledged.
        self.mirror.take();
        self.outgoing.take();
        self.progress.borrow_mut().set_mirrored(None);
        self.set_serving(Serving::Released { owner });
        let edit = ManifestEdit::SetRole {
            partition: self.id,
            role: Role::Released { owner },
            epoch,
            last_lsn: self.progress.borrow().durable(),
        };
        self.shard.log_edits(vec![edit]).await
    }

    /// As [`Partition::hand_over`], but `owner` was promoted by force with nothing behind `lsn`: writes that wait for its
    /// acknowledgement are not acknowledged, and what was written behind `lsn` is kept for [`Partition::changed_since`].
    ///
    /// # Errors
    /// As [`Partition::hand_over`].
    pub async fn hand_over_diverged(&self, owner: HostId, epoch: Epoch, lsn: Lsn) -> Result<()> {
        self.keep_changes_since(Some(lsn));
        self.epoch.set(self.epoch.get().max(epoch));
        self.mirror.take();
        self.outgoing.take();
        self.set_serving(Serving::Released { owner });
        let role = Role::Released { owner };
        let last_lsn = self.progress.borrow().durable();
        self.shard.log_edits(vec![ManifestEdit::SetRole { partition: self.id, role, epoch, last_lsn }]).await
    }

    fn check_outgoing(&self, attempt: AttemptId) -> Result<()> {
        let current = self.outgoing.borrow().as_ref().is_some_and(|held| held.attempt == attempt);
        if current { Ok(()) } else { Err(self.stale(format!("attempt {attempt}"))) }
    }

    pub(super) fn segment(&self, id: SegmentId) -> Result<Rc<Segment>> {
        let layout = self.layout();
        let index = layout.index_of(id).ok_or(Error::UnknownSegment { partition: self.id, segment: id })?;
        Ok(Rc::clone(&layout.segments[index]))
    }

    fn token(&self, segment: &Segment) -> ValidationToken {
        let version = segment.version.get();
        let mut checksum = crc32c::crc32c(&self.id.0.to_le_bytes());
        for number in [segment.id.0, version.0] {
            checksum = crc32c::crc32c_append(checksum, &number.to_le_bytes());
        }
        checksum = crc32c::crc32c_append(checksum, &segment.start);
        ValidationToken { segment: segment.id, version, checksum }
    }

    fn iterate_segment<'a>(&self, view: &'a ReadView, segment: &Segment, retain: Retain) -> ViewIter<'a> {
        self.iterate(view, segment.start.clone(), segment.end.clone(), retain)
    }
}
