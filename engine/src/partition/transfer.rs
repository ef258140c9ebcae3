//! The source's side of a move: plan, mirror, freeze, hand-over; images and deltas are [`super::image`]'s. Driven by the
//! shadow protocol; each method names the attempt, and a closed attempt changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use antumbra_predictor::scorer::ScorerKind;
use bytes::Bytes;

use crate::chain::Seal;
use crate::clock;
use crate::error::{Error, Result};
use crate::manifest::{ManifestEdit, Role};
use crate::types::{AttemptId, Epoch, Hlc, HostId, Lsn, SegmentId, ValidationToken};

use super::compact::LayoutPin;
use super::image::Captured;
use super::layout::Segment;
use super::mirror::{MirrorReceiver, MirrorTap};
use super::{Partition, Serving};

/// Smallest size that a segment counts with: an empty one still costs a stream.
const SEGMENT_BYTES_MIN: u64 = 4096;

/// What the source keeps while a shadow is attached.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) attempt: AttemptId,
    /// Segments keep their bounds.
    _layout: LayoutPin,
    /// State of each image under way, until its segment is covered.
    pub(super) captured: BTreeMap<SegmentId, Captured>,
    /// Digest of each copy, for the seal.
    pub(super) copies: BTreeMap<SegmentId, u128>,
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
    /// Bytes of it that are locked in memory.
    pub resident_bytes: u64,
    /// Whether it is still at the host that owned the partition before.
    pub is_missing: bool,
    /// Accesses in the window that closed last.
    pub accesses: u64,
    /// Expected accesses by the guard over all scorers.
    pub auto: f32,
    /// The same by the GRU alone.
    pub gru: f32,
    /// The same by the moving average alone.
    pub ewma: f32,
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
        let seen = access.windows.history(0);
        let missing: BTreeSet<SegmentId> = self.missing_segments().into_iter().collect();
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
                resident_bytes: segment.resident_bytes(),
                is_missing: missing.contains(&segment.id),
                accesses: seen.and_then(|counts| counts.get(index)).map_or(0, |counts| counts.accesses()),
                auto: score(ScorerKind::Auto, index),
                gru: score(ScorerKind::Gru, index),
                ewma: score(ScorerKind::Ewma, index),
            })
            .collect()
    }

    /// The present version of a segment; `None` if there is no such segment.
    #[must_use]
    pub fn segment_token(&self, id: SegmentId) -> Option<ValidationToken> {
        self.segment(id).ok().map(|segment| self.token(&segment))
    }

    /// Requests that this host has served here, since it was opened; none while it is another's.
    pub(crate) fn requests_served(&self) -> u64 {
        match self.serving() {
            Serving::Owner | Serving::Frozen => self.access.borrow().requests(),
            Serving::Suspended | Serving::Shadow { .. } | Serving::Released { .. } => 0,
        }
    }

    /// See [`crate::Shard::foreground_p99`]: of the shard that the partition is pinned to.
    #[must_use]
    pub fn foreground_p99(&self) -> Option<Duration> {
        self.shard.foreground_p99()
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
        let last = self.progress.borrow().last_submitted();
        if let Some(last) = last
            && let Err(cause) = self.shard.wal().wait_durable(last).await
        {
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

    /// Serves again: nobody else has come to own the partition meanwhile.
    pub(crate) fn end_suspension(&self) {
        if self.serving() == Serving::Suspended {
            self.set_serving(Serving::Owner);
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
        self.release(owner, epoch);
        self.log_release(owner, epoch).await
    }

    /// As [`Partition::hand_over`], in memory: [`Partition::log_release`] has to follow. Between the two `owner` may serve
    /// already: whoever restarts reads the coordinator's record before it serves.
    pub fn release(&self, owner: HostId, epoch: Epoch) {
        self.epoch.set(self.epoch.get().max(epoch));
        // What was submitted before the freeze is at the new owner: it may be acknowledged.
        self.mirror.take();
        self.outgoing.take();
        self.base.take();
        self.progress.borrow_mut().set_mirrored(None);
        self.set_serving(Serving::Released { owner });
    }

    /// Makes a [`Partition::release`] durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn log_release(&self, owner: HostId, epoch: Epoch) -> Result<()> {
        // The partition may be dropped meanwhile: then the manifest is to hear no more of it.
        let Some(_guard) = self.lock_maintenance().await else {
            return Ok(());
        };
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
        self.log_release(owner, epoch).await
    }

    pub(super) fn check_outgoing(&self, attempt: AttemptId) -> Result<()> {
        let current = self.outgoing.borrow().as_ref().is_some_and(|held| held.attempt == attempt);
        if current { Ok(()) } else { Err(self.stale(format!("attempt {attempt}"))) }
    }

    pub(super) fn segment(&self, id: SegmentId) -> Result<Rc<Segment>> {
        let layout = self.layout();
        let index = layout.index_of(id).ok_or(Error::UnknownSegment { partition: self.id, segment: id })?;
        Ok(Rc::clone(&layout.segments[index]))
    }

    pub(super) fn token(&self, segment: &Segment) -> ValidationToken {
        let version = segment.version.get();
        let mut checksum = crc32c::crc32c(&self.id.0.to_le_bytes());
        for number in [segment.id.0, version.0] {
            checksum = crc32c::crc32c_append(checksum, &number.to_le_bytes());
        }
        checksum = crc32c::crc32c_append(checksum, &segment.start);
        ValidationToken { segment: segment.id, version, checksum }
    }
}
