//! The target's side of a move: a shadow takes images, deltas and the mirror, and becomes the owner.
//!
//! A segment's image lies below everything that the mirror brought meanwhile, and its delta right above the image;
//! records carry their LSNs, so the order of arrival does not matter to readers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::chain::{ChainState, CopyDigest, Seal};
use crate::config::Durability;
use crate::erasure::Erasure;
use crate::error::{Error, Result};
use crate::governor::IoClass;
use crate::io::{Bug, planted, runtime};
use crate::manifest::{ManifestEdit, Role, SegmentDesc, TableRef};
use crate::record::{Record, RecordKind};
use crate::shard::files::Table;
use crate::table::TableBuilder;
use crate::types::{AttemptId, Epoch, Hlc, Lsn, SegmentId, WalSeq};

use super::base::Bases;
use super::expected::Expected;
use super::image::CheckedImage;
use super::layout::Segment;
use super::mirror::MirrorItem;
use super::output::{TableFileWriter, plain_options};
use super::{Partition, Serving};

/// What a shadow knows beside its data.
#[derive(Debug)]
pub(super) struct ShadowState {
    attempt: AttemptId,
    pub chain: ChainState,
    /// Digest of each copy that was installed.
    copies: BTreeMap<SegmentId, u128>,
    /// Largest timestamp seen.
    pub clock: Hlc,
    /// The WAL batch with the last record of the mirror.
    logged: WalSeq,
    /// The last LSN of the source's seal, once it has been compared and the readiness is durable.
    sealed: Option<Lsn>,
    /// It is about to be promoted by force: nothing more is taken.
    pub stopped: bool,
    /// That it holds everything up to some LSN is durable.
    pub noted_whole: bool,
    /// What lay here before, of segments that are not installed yet.
    pub bases: Bases,
}

/// How far the mirror has been taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The last LSN taken in.
    pub last: Lsn,
    /// The WAL batch that makes it durable.
    pub seq: WalSeq,
}

/// What a copy's delta lies on.
enum Below {
    /// A table that has come.
    Image(CheckedImage),
    /// What lay here before, whose live records have this digest.
    Base(u128),
}

impl Below {
    fn digest(&self) -> u128 {
        match self {
            Below::Image(image) => image.digest,
            Below::Base(digest) => *digest,
        }
    }
}

impl Partition {
    /// Readies a partition that was just created as a shadow, for the mirror that begins after `from`.
    pub(crate) fn begin_shadow(&self, attempt: AttemptId, from: Lsn) {
        *self.shadow.borrow_mut() = Some(ShadowState {
            attempt,
            chain: ChainState::new(from),
            copies: BTreeMap::new(),
            clock: Hlc::default(),
            logged: self.shard.wal().durable(),
            sealed: None,
            stopped: false,
            noted_whole: false,
            bases: Bases::default(),
        });
    }

    /// Takes in a stretch of the mirror: WAL and memtable. [`Partition::mirror_durable`] tells when it is on the
    /// device. What has been taken in before is passed over: a source whose link was lost sends it again.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt or a gap (nothing behind the gap is taken), [`Error::ReadOnly`].
    pub async fn apply_mirror(&self, attempt: AttemptId, items: Vec<MirrorItem>) -> Result<Applied> {
        for item in items {
            self.shard.wait_room(Durability::Durable).await?;
            if self.fold(attempt, &item)?
                && let MirrorItem::Record { record, .. } = item
            {
                let logged = self.log(attempt, &record)?;
                self.with_shadow(attempt, |shadow| {
                    shadow.logged = logged;
                    Ok(())
                })?;
                self.note_version(&record);
                self.insert(&record);
            }
            // A long stretch is not to keep a request of this shard waiting.
            runtime::yield_now().await;
        }
        // The last record's batch, also if this stretch had none: an acknowledgement speaks for all before it.
        self.with_shadow(attempt, |shadow| Ok(Applied { last: shadow.chain.last(), seq: shadow.logged }))
    }

    /// Whether the item is new.
    fn fold(&self, attempt: AttemptId, item: &MirrorItem) -> Result<bool> {
        self.with_shadow(attempt, |shadow| {
            if shadow.stopped {
                return Err(self.stale("mirror of a standby that is being promoted"));
            }
            let due = shadow.chain.last().next();
            if item.lsn() < due {
                return Ok(false);
            }
            if item.lsn() != due {
                return Err(self.stale(format!("mirror brings LSN {}, {due} is due", item.lsn())));
            }
            match item {
                MirrorItem::Record { segment, record } => {
                    shadow.chain.fold_record(*segment, record.view());
                    shadow.clock = shadow.clock.max(record.hlc);
                }
                MirrorItem::Elided { lsn } => shadow.chain.fold_elided(*lsn, 1),
            }
            Ok(true)
        })
    }

    /// The last LSN that the mirror has brought, and the segments that are held: where a source goes on whose link was lost.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, or once the mirror is not taken in any more.
    pub fn shadow_position(&self, attempt: AttemptId) -> Result<(Lsn, Vec<SegmentId>)> {
        let last = self.with_shadow(attempt, |shadow| match shadow.stopped {
            true => Err(self.stale("a standby that is being promoted")),
            false => Ok(shadow.chain.last()),
        })?;
        let layout = self.layout();
        let ids = layout.segments.iter().map(|segment| segment.id);
        Ok((last, ids.filter(|id| !self.lacks(*id)).collect()))
    }

    fn note_version(&self, record: &Record) {
        let layout = self.layout();
        layout.segments[layout.locate(&record.key)].raise_version(record.lsn);
    }

    /// Waits until what [`Partition::apply_mirror`] took in is on the device.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub async fn mirror_durable(&self, applied: Applied) -> Result<()> {
        if planted(Bug::MirrorUnsynced) {
            return Ok(());
        }
        self.shard.wal().wait_durable(applied.seq).await?;
        self.note_whole().await
    }

    /// Installs a segment's image and its delta, durably: in a shadow, or behind an early switchover. `covered` is the LSN
    /// from which on its records are mirrored; `None` for an image of the state at the hand-over.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt, a segment held already or a copy that the seal does not name, [`Error::UnknownSegment`],
    /// [`Error::Corruption`] when the delta is of another segment; in each case nothing is installed.
    pub async fn install_image(
        self: &Rc<Self>,
        attempt: AttemptId,
        segment: SegmentId,
        covered: Option<Lsn>,
        image: CheckedImage,
        delta: Vec<Record>,
    ) -> Result<()> {
        let partition = Rc::clone(self);
        let task = async move { partition.install_tables(attempt, segment, covered, Below::Image(image), delta).await };
        self.shard.background().run(task).await
    }

    /// As [`Partition::install_image`], of a segment whose base here has the digest `base` and is its image.
    ///
    /// # Errors
    /// As [`Partition::install_image`]; [`Error::Stale`] when there is no such base.
    pub async fn install_on_base(
        self: &Rc<Self>,
        attempt: AttemptId,
        segment: SegmentId,
        covered: Lsn,
        base: u128,
        delta: Vec<Record>,
    ) -> Result<()> {
        let partition = Rc::clone(self);
        let task =
            async move { partition.install_tables(attempt, segment, Some(covered), Below::Base(base), delta).await };
        self.shard.background().run(task).await
    }

    async fn install_tables(
        &self,
        attempt: AttemptId,
        id: SegmentId,
        covered: Option<Lsn>,
        below: Below,
        delta: Vec<Record>,
    ) -> Result<()> {
        self.check_missing(attempt, id)?;
        let segment = self.segment(id)?;
        let range = segment.range();
        let mut digest = covered.map(|covered| CopyDigest::new(id, below.digest(), covered));
        for record in &delta {
            if !range.contains(&record.key) {
                return Err(Error::corruption("<delta>", 0, format!("a key outside segment {id}")));
            }
            if let Some(digest) = &mut digest {
                digest.update(record.view());
            }
            runtime::yield_now().await;
        }
        let copy = digest.map(|digest| digest.finish());
        self.check_sealed_copy(id, copy)?;
        let (erased, delta): (Vec<Record>, Vec<Record>) =
            delta.into_iter().partition(|record| record.kind == RecordKind::RangeDelete);
        let pieces = erased.iter().map(|record| Erasure::of_record(record.view()));
        let erasures: Vec<Erasure> =
            pieces.filter_map(|erasure| erasure.clipped(&segment.start, segment.end.as_ref())).collect();
        let mut tables: Vec<(Vec<u8>, Lsn)> = Vec::new();
        let base = match below {
            Below::Image(image) if image.table.is_empty() => None,
            Below::Image(image) => {
                tables.push((image.table, image.max_lsn));
                None
            }
            Below::Base(digest) => Some(self.base_of(attempt, id, digest)?),
        };
        if !delta.is_empty() {
            let mut builder = TableBuilder::new(plain_options(self.options));
            for record in &delta {
                builder.add(record.view())?;
                runtime::yield_now().await;
            }
            let built = builder.finish()?;
            tables.push((built.bytes, built.meta.max_lsn));
        }
        let clock = delta.iter().chain(&erased).map(|record| record.hlc).max().unwrap_or_default();
        self.install_below(attempt, id, copy, base, tables, erasures).await?;
        match self.shadow.borrow_mut().as_mut() {
            Some(shadow) => {
                shadow.clock = shadow.clock.max(clock);
                shadow.copies.extend(copy.map(|digest| (id, digest)));
            }
            None => self.shard.clock().observe(clock),
        }
        self.note_whole().await
    }

    fn check_missing(&self, attempt: AttemptId, segment: SegmentId) -> Result<()> {
        let filling = self.filling.borrow();
        match filling.as_ref().filter(|filling| filling.attempt == attempt) {
            Some(filling) if filling.missing.contains(&segment) => Ok(()),
            Some(_) => Err(self.stale(format!("segment {segment} is held already"))),
            None => Err(self.stale(format!("attempt {attempt} fills nothing here"))),
        }
    }

    /// Writes tables, oldest first, into one file and puts them below what the segment has, and above what lay here
    /// before.
    async fn install_below(
        &self,
        attempt: AttemptId,
        id: SegmentId,
        copy: Option<u128>,
        under: Option<Rc<Segment>>,
        tables: Vec<(Vec<u8>, Lsn)>,
        erasures: Vec<Erasure>,
    ) -> Result<()> {
        let opened = self.write_tables(&tables).await?;
        let Some(_guard) = self.lock_maintenance().await else {
            return Err(self.stale("the shadow is being discarded"));
        };
        // Another copy of it may have been faster, and the seal too.
        self.check_missing(attempt, id)?;
        self.check_sealed_copy(id, copy)?;
        let layout = self.layout();
        let index = layout.index_of(id).ok_or(Error::UnknownSegment { partition: self.id, segment: id })?;
        let old = &layout.segments[index];
        // What a compaction of early mirror records made the base is newer than the image: it becomes a slice.
        let mut slices = old.slices.clone();
        slices.extend(old.base.iter().cloned());
        let brought = tables.iter().map(|(_, lsn)| *lsn).chain(erasures.iter().map(|erasure| erasure.lsn));
        let below = under.as_ref().map_or(Lsn(0), |under| under.version.get());
        let version = old.version.get().max(brought.max().unwrap_or_default()).max(below);
        let mut opened = opened.into_iter();
        let base = match &under {
            Some(under) => under.base.clone(),
            None => opened.next(),
        };
        slices.extend(opened);
        slices.extend(under.iter().flat_map(|under| under.slices.iter().cloned()));
        let erased_below = under.as_ref().map(|under| Rc::clone(&under.erasures)).unwrap_or_default();
        let segment = Rc::new(Segment {
            id,
            start: old.start.clone(),
            end: old.end.clone(),
            base,
            slices,
            erasures: [&*old.erasures, &erasures, &*erased_below].concat().into(),
            version: version.into(),
            cut: false,
            detours: Cell::new(0),
            expected: Expected::default(),
        });
        let add: Vec<SegmentDesc> = vec![segment.desc()];
        let mut edits: Vec<ManifestEdit> = ManifestEdit::erasures_of(self.id, &add).collect();
        edits.insert(0, ManifestEdit::ReplaceSegments { partition: self.id, remove: vec![id], add });
        edits.push(ManifestEdit::Held { partition: self.id, segment: id });
        self.shard.log_edits(edits).await?;
        // Records that came during the write raised the version further.
        segment.version.set(segment.version.get().max(old.version.get()));
        *self.layout.borrow_mut() = layout.replaced(index, 1, vec![segment]);
        if let Some(shadow) = self.shadow.borrow_mut().as_mut() {
            match under {
                Some(_) => shadow.bases.note_installed(id),
                None => shadow.bases.forget(id),
            }
        }
        self.shard.rows().forget_all();
        self.note_held(id);
        Ok(())
    }

    async fn write_tables(&self, tables: &[(Vec<u8>, Lsn)]) -> Result<Vec<Rc<Table>>> {
        if tables.is_empty() {
            return Ok(Vec::new());
        }
        let mut writer = TableFileWriter::create(&self.shard, self.options, IoClass::Idle).await?;
        let mut locations: Vec<TableRef> = Vec::new();
        for (bytes, max_lsn) in tables {
            locations.push(writer.write_table(bytes, *max_lsn).await?);
        }
        let file = writer.finish().await?;
        let mut opened = Vec::new();
        for location in locations {
            opened.push(self.shard.open_table(&file, location).await?);
        }
        Ok(opened)
    }

    /// Compares the source's seal with what this shadow holds, and makes the readiness durable. Segments may be missing
    /// only if `early`.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt; [`Error::Invalid`] naming the first difference: the shadow is not the
    /// source's equal and must not be promoted.
    pub async fn make_ready(&self, attempt: AttemptId, seal: &Seal, early: bool) -> Result<()> {
        if let Some(missing) = self.missing_segments().first().filter(|_| !early) {
            return Err(Error::Invalid { what: format!("segment {missing} is not held") });
        }
        let logged = self.with_shadow(attempt, |shadow| {
            let mut ours = shadow.chain.seal();
            ours.copies = shadow.copies.iter().map(|(segment, digest)| (*segment, *digest)).collect();
            match seal.difference(&ours) {
                Some(difference) => Err(Error::Invalid { what: format!("source and shadow differ: {difference}") }),
                None => Ok(shadow.logged),
            }
        })?;
        self.note_sealed(seal);
        if !planted(Bug::MirrorUnsynced) {
            self.shard.wal().wait_durable(logged).await?;
        }
        self.log_shadow(attempt, seal.final_lsn).await?;
        self.with_shadow(attempt, |shadow| {
            shadow.sealed = Some(seal.final_lsn);
            Ok(())
        })
    }

    /// The digests of the copies that this shadow holds: what a host with a planted defect takes for the source's.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn shadow_copies(&self) -> Vec<(SegmentId, u128)> {
        let shadow = self.shadow.borrow();
        shadow.iter().flat_map(|shadow| shadow.copies.iter()).map(|(segment, digest)| (*segment, *digest)).collect()
    }

    /// What a client of a shadow is told.
    pub(super) fn not_owner(&self, attempt: AttemptId) -> Error {
        let ready =
            self.shadow.borrow().as_ref().is_some_and(|shadow| shadow.attempt == attempt && shadow.sealed.is_some());
        Error::NotOwner { partition: self.id, attempt, ready }
    }

    /// Becomes the owner in `epoch`, which the coordinator has recorded. The history goes on after `last`, timestamps
    /// after `clock`; the state at `last` and `wall_ms` is kept for the digest.
    ///
    /// # Errors
    /// [`Error::Stale`] when this is no shadow of the attempt, [`Error::Io`].
    pub async fn promote(&self, attempt: AttemptId, epoch: Epoch, last: Lsn, clock: Hlc, wall_ms: u64) -> Result<()> {
        if self.serving() != (Serving::Shadow { attempt }) {
            return Err(self.stale(format!("promotion by attempt {attempt}")));
        }
        let edit = ManifestEdit::SetRole { partition: self.id, role: Role::Owner, epoch, last_lsn: last };
        self.shard.log_edits(vec![edit]).await?;
        let seen = self.shadow.take().map_or(clock, |shadow| shadow.clock.max(clock));
        self.shard.clock().observe(seen);
        self.progress.borrow_mut().adopt(last);
        self.pin_final(attempt, last, wall_ms);
        self.epoch.set(epoch);
        self.set_serving(Serving::Owner);
        Ok(())
    }

    /// Becomes the owner because the coordinator's record says so, without a word from the source: after a restart or
    /// a lost link. The history goes on after the seal, which was durable before the commit.
    ///
    /// # Errors
    /// As [`Partition::promote`]; [`Error::Stale`] when the shadow was never ready, so that no commit can be its.
    pub async fn promote_by_record(&self, attempt: AttemptId, epoch: Epoch) -> Result<()> {
        let sealed = self.shadow.borrow().as_ref().map(|shadow| shadow.sealed);
        let last = match sealed {
            Some(sealed) => sealed.ok_or_else(|| self.stale(format!("attempt {attempt} was never ready here")))?,
            // After a restart the manifest has brought the history to the seal.
            None => self.progress.borrow().visible(),
        };
        self.promote(attempt, epoch, last, Hlc(0), 0).await?;
        self.unpin_final(attempt);
        Ok(())
    }

    fn base_of(&self, attempt: AttemptId, id: SegmentId, digest: u128) -> Result<Rc<Segment>> {
        let base = self.with_shadow(attempt, |shadow| Ok(shadow.bases.get(id, digest)))?;
        base.ok_or_else(|| self.stale(format!("segment {id} has no base of this digest here")))
    }

    pub(super) fn with_shadow<T>(
        &self,
        attempt: AttemptId,
        with: impl FnOnce(&mut ShadowState) -> Result<T>,
    ) -> Result<T> {
        let mut shadow = self.shadow.borrow_mut();
        let shadow = shadow.as_mut().filter(|shadow| shadow.attempt == attempt);
        with(shadow.ok_or_else(|| self.stale(format!("attempt {attempt}")))?)
    }
}
