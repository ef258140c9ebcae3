//! One partition on its shard: memtables, segments, progress, mirror. Everything here runs on one core; nothing is
//! shared with another thread.
//!
//! - `INV-GATE`: writes are accepted only while the partition serves as [`Serving::Owner`]; a frozen or suspended
//!   partition parks them, a released one answers who owns it now. Reads pass while it is owned or frozen.
//! - `INV-VISIBLE`: a reader sees exactly the records at or below the visible LSN at the moment it began.
//! - `INV-FILL` is [`filling`]'s.
//! - `INV-MAINT`: flush, compaction and image installation of one partition exclude each other.

mod access;
mod base;
mod batch;
mod compact;
mod digest;
pub(crate) mod expected;
mod export;
mod filling;
mod flush;
mod image;
pub(crate) mod layout;
mod mirror;
mod observing;
mod output;
mod page;
mod progress;
mod read;
mod reconcile;
mod recording;
mod scan;
mod scrub;
mod shadow;
mod snapshots;
mod standby;
mod transfer;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::PartitionOptions;
use crate::error::{Error, Result};
use crate::event::{Event, TaskGuard, TaskLock};
use crate::memtable::Memtable;
use crate::shard::Shard;
use crate::shard::files::Table;
use crate::types::{AttemptId, Epoch, HostId, KeyRange, Lsn, PartitionId, SegmentId, WalSeq};

use access::Access;
pub(crate) use compact::SLICES_MAX;
use layout::Layout;
use mirror::MirrorTap;
use progress::Progress;
pub(crate) use snapshots::Snapshots;

pub use access::Totals;
pub use base::Base;
pub use batch::{Batch, Commit, Condition, Conflict, Versioned};
pub use digest::RangeDigest;
pub use export::{ExportPage, Exported};
pub use filling::FillProgress;
pub use image::{CheckedImage, Image, SegmentDelta};
pub use mirror::{MirrorItem, MirrorReceiver};
pub use observing::{OBSERVED_MAX, Observed};
pub use page::{Direction, Page, PageLimits};
pub use read::{KeyValue, READS_IN_FLIGHT};
pub use reconcile::{ChangedPage, ConflictPolicy, Decision, Divergence, Judged, Version, decide};
pub use recording::{RecordedPage, RecordedRequest};
pub use scan::ScanPage;
pub use scrub::ScrubReport;
pub use shadow::Applied;
pub use snapshots::{Moment, SnapshotPin};
pub use standby::Standby;
pub use transfer::{Frozen, SegmentSummary};
pub use write::{Write, Written};

/// Who serves the partition, as this host knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Serving {
    /// This host serves reads and writes.
    Owner,
    /// This host serves reads; writes are parked (switchover under way).
    Frozen,
    /// Reads and writes are parked until it is known who owns the partition.
    Suspended,
    /// This host fills a shadow; it serves nobody.
    Shadow {
        /// The attempt that fills it.
        attempt: AttemptId,
    },
    /// Another host serves; the data may still be here until it is dropped.
    Released {
        /// The owner.
        owner: HostId,
    },
}

/// A partition as its shard sees it. Shared by `Rc` among the tasks of the shard.
pub struct Partition {
    pub(crate) id: PartitionId,
    pub(crate) keyspace: String,
    pub(crate) range: KeyRange,
    pub(crate) options: PartitionOptions,
    pub(crate) shard: Rc<Shard>,
    epoch: Cell<Epoch>,
    serving: Cell<Serving>,
    /// Being dropped: nothing is written any more, whoever still holds it.
    retired: Cell<bool>,
    /// Notified when `serving` or `retired` changes.
    serving_changed: Event,
    /// Until when a frozen partition serves reads, as [`crate::clock::monotonic`] tells.
    reads_until: Cell<Duration>,
    progress: RefCell<Progress>,
    active: RefCell<Rc<Memtable>>,
    /// Memtables waiting for their flush, newest first.
    frozen: RefCell<Vec<Rc<Memtable>>>,
    layout: RefCell<Rc<Layout>>,
    /// While above 0 no segment is split or merged.
    layout_pins: Rc<Cell<u32>>,
    next_segment: Cell<u64>,
    access: RefCell<Access>,
    mirror: RefCell<Option<MirrorTap>>,
    outgoing: RefCell<Option<transfer::Outgoing>>,
    final_pin: RefCell<Option<digest::FinalPin>>,
    shadow: RefCell<Option<shadow::ShadowState>>,
    filling: RefCell<Option<filling::Filling>>,
    /// How the last filling went.
    filled: RefCell<Option<FillProgress>>,
    /// Whether `filling` is there: what readers look at.
    lacks_segments: Cell<bool>,
    /// Notified when a segment is held, is wanted, or cannot be fetched.
    filling_changed: Event,
    snapshots: Rc<Snapshots>,
    /// Deletions above this LSN are kept for a comparison with another host's history.
    keep_since: Cell<Option<Lsn>>,
    /// What a roll-back to the host before needs.
    base: RefCell<Option<base::KeptBase>>,
    maintenance: TaskLock,
    /// First batch that the durable manifest still needs for this partition.
    replay_from: Cell<WalSeq>,
    /// Memtables flushed so far.
    flushes: Cell<u64>,
    /// Compactions that are due for what has been flushed.
    owed_compactions: Cell<usize>,
    /// Bytes of all tables at the last flush or compaction.
    table_bytes: Cell<u64>,
    /// Whether the memtables may hold records that are in no log.
    unlogged: Cell<bool>,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition").field("id", &self.id).field("serving", &self.serving.get()).finish_non_exhaustive()
    }
}

/// What recovery or creation knows of a partition.
pub(crate) struct PartitionInit {
    pub id: PartitionId,
    pub keyspace: String,
    pub range: KeyRange,
    pub options: PartitionOptions,
    pub epoch: Epoch,
    pub serving: Serving,
    pub layout: Rc<Layout>,
    pub memtable: Memtable,
    pub last_lsn: Lsn,
    pub next_segment: u64,
    pub replay_from: WalSeq,
    /// Segments that are not held yet, and the attempt that is to bring them.
    pub missing: Option<(AttemptId, BTreeSet<SegmentId>)>,
    pub snapshots: Rc<Snapshots>,
}

/// Counts and sizes of a partition, for people and for the controller.
#[derive(Clone, Debug)]
pub struct PartitionStats {
    /// The partition.
    pub id: PartitionId,
    /// Its keyspace.
    pub keyspace: String,
    /// Its key range.
    pub range: KeyRange,
    /// Its epoch.
    pub epoch: Epoch,
    /// Who serves it.
    pub serving: Serving,
    /// Number of segments.
    pub segments: usize,
    /// Tables that flushes left on top of the segments' compacted ones.
    pub slices: usize,
    /// Segments that are still at the host that owned the partition before.
    pub missing_segments: usize,
    /// Bytes in tables.
    pub table_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: usize,
    /// Bytes of tables that are locked in memory.
    pub resident_bytes: u64,
    /// Last LSN that readers see.
    pub visible: Lsn,
    /// Deletions behind this LSN are kept, if there is one: another host's history parted here.
    pub keeps_since: Option<Lsn>,
    /// Another host has the state at this LSN, and a roll-back to it needs only what changed since, if there is one.
    pub keeps_base: Option<Lsn>,
    /// Sums of the last closed window.
    pub totals: Totals,
    /// Sums of all windows closed since the partition was opened.
    pub sums: Totals,
    /// Windows closed so far.
    pub windows_closed: u64,
}

/// A segment as residency sees it.
#[derive(Debug)]
pub(crate) struct Hotness {
    /// Expected accesses.
    pub score: f32,
    pub bytes: usize,
    pub tables: Vec<Rc<Table>>,
}

impl Partition {
    pub(crate) fn new(shard: Rc<Shard>, init: PartitionInit) -> Rc<Partition> {
        let segments = init.layout.segments.len();
        let partition = Rc::new(Partition {
            id: init.id,
            keyspace: init.keyspace,
            range: init.range,
            options: init.options,
            epoch: Cell::new(init.epoch),
            serving: Cell::new(init.serving),
            retired: Cell::new(false),
            serving_changed: Event::default(),
            reads_until: Cell::new(Duration::ZERO),
            progress: RefCell::new(Progress::new(init.last_lsn)),
            active: RefCell::new(Rc::new(init.memtable)),
            frozen: RefCell::default(),
            layout: RefCell::new(init.layout),
            layout_pins: Rc::default(),
            next_segment: Cell::new(init.next_segment),
            access: RefCell::new(Access::new(shard.model(), segments)),
            mirror: RefCell::default(),
            outgoing: RefCell::default(),
            final_pin: RefCell::default(),
            shadow: RefCell::default(),
            filling: RefCell::default(),
            filled: RefCell::default(),
            lacks_segments: Cell::new(false),
            filling_changed: Event::default(),
            snapshots: init.snapshots,
            keep_since: Cell::new(None),
            base: RefCell::default(),
            maintenance: TaskLock::default(),
            replay_from: Cell::new(init.replay_from),
            flushes: Cell::new(0),
            owed_compactions: Cell::new(0),
            table_bytes: Cell::new(0),
            unlogged: Cell::new(false),
            shard,
        });
        if let Some((attempt, missing)) = init.missing {
            partition.begin_filling(attempt, missing);
        }
        partition
    }

    /// The partition's id.
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The partition's key range.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// The options it was created with.
    #[must_use]
    pub fn options(&self) -> PartitionOptions {
        self.options
    }

    /// The ownership generation.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch.get()
    }

    /// Who serves it.
    #[must_use]
    pub fn serving(&self) -> Serving {
        self.serving.get()
    }

    /// The last LSN assigned.
    #[must_use]
    pub fn assigned(&self) -> Lsn {
        self.progress.borrow().assigned()
    }

    /// The last LSN that is on this host's device.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.progress.borrow().durable()
    }

    /// The last LSN that readers see.
    #[must_use]
    pub fn visible(&self) -> Lsn {
        self.progress.borrow().visible()
    }

    /// Whether every acknowledged write is durable on another host, too.
    #[must_use]
    pub fn is_mirrored(&self) -> bool {
        self.progress.borrow().is_synchronous()
    }

    /// Counts and sizes.
    #[must_use]
    pub fn stats(&self) -> PartitionStats {
        let layout = self.layout();
        let (totals, sums, windows_closed) = self.access.borrow().totals();
        PartitionStats {
            id: self.id,
            keyspace: self.keyspace.clone(),
            range: self.range.clone(),
            epoch: self.epoch.get(),
            serving: self.serving.get(),
            segments: layout.segments.len(),
            slices: layout.segments.iter().map(|segment| segment.slices.len()).sum(),
            missing_segments: self.missing_segments().len(),
            table_bytes: layout.segments.iter().map(|segment| segment.bytes()).sum(),
            memtable_bytes: self.memtable_bytes(),
            resident_bytes: layout.segments.iter().map(|segment| segment.resident_bytes()).sum(),
            visible: self.progress.borrow().visible(),
            keeps_since: self.keep_since.get(),
            keeps_base: self.kept_base(),
            totals,
            sums,
            windows_closed,
        }
    }

    /// Bytes of all memtables, active and waiting for their flush.
    pub(crate) fn memtable_bytes(&self) -> usize {
        let (active, frozen) = self.active_and_frozen_bytes();
        active + frozen
    }

    /// That it can become two: this host owns it, whole, and nobody copies it.
    ///
    /// # Errors
    /// [`Error::Invalid`], saying what is in the way.
    pub(crate) fn check_divisible(&self) -> Result<()> {
        let unfit = |what: &str| Err(Error::Invalid { what: format!("partition {}: {what}", self.id) });
        if !matches!(self.serving(), Serving::Owner | Serving::Suspended) {
            return unfit("it is not served here");
        }
        if self.outgoing.borrow().is_some() {
            return unfit("it has a shadow");
        }
        self.check_whole()
    }

    /// Everything written so far is in tables on return.
    pub(crate) async fn flush_memtables(&self) -> Result<()> {
        self.freeze_memtable();
        while self.flush_oldest().await? {}
        Ok(())
    }

    pub(crate) fn snapshots(&self) -> Rc<Snapshots> {
        Rc::clone(&self.snapshots)
    }

    pub(crate) fn layout(&self) -> Rc<Layout> {
        Rc::clone(&self.layout.borrow())
    }

    fn set_serving(&self, serving: Serving) {
        self.serving.set(serving);
        self.serving_changed.notify_all();
        self.filling_changed.notify_all();
        self.progress.borrow_mut().wake_all();
    }

    fn allocate_segment(&self) -> SegmentId {
        let id = self.next_segment.get();
        self.next_segment.set(id + 1);
        SegmentId(id)
    }

    /// Every batch up to `seq` is on the device.
    pub(crate) fn handle_durable(&self, seq: WalSeq) {
        self.progress.borrow_mut().handle_durable(seq);
    }

    /// The WAL failed: nobody needs to wait any longer.
    pub(crate) fn handle_wal_failed(&self) {
        self.progress.borrow_mut().wake_all();
        self.serving_changed.notify_all();
    }

    /// One access window ended: hands the counts to the scorers, in slices that let other tasks run.
    pub(crate) async fn close_window(&self) {
        /// Segments scored between two chances for other tasks; about 50 us.
        const SCORE_SLICE_SEGMENTS: usize = 256;
        self.access.borrow_mut().close_window();
        self.note_answered();
        loop {
            let done = self.access.borrow_mut().step(SCORE_SLICE_SEGMENTS);
            if done {
                break;
            }
            crate::io::runtime::yield_now().await;
        }
        self.note_expected().await;
    }

    /// Excludes other maintenance (`INV-MAINT`). `None` once the partition is being dropped: its edits would hit whatever
    /// has taken its id since.
    pub(crate) async fn lock_maintenance(&self) -> Option<TaskGuard<'_>> {
        let guard = self.maintenance.lock().await;
        (!self.retired.get()).then_some(guard)
    }

    /// As [`Partition::lock_maintenance`], without waiting: `None` also if other maintenance runs.
    pub(crate) fn try_lock_maintenance(&self) -> Option<TaskGuard<'_>> {
        if self.retired.get() { None } else { self.maintenance.try_lock() }
    }

    /// Refuses requests from now on; the partition is about to be dropped.
    pub(crate) fn refuse(&self) {
        self.retired.set(true);
        self.serving_changed.notify_all();
        self.filling_changed.notify_all();
    }

    /// Refuses writes from now on and waits until no maintenance runs; the partition is about to be dropped.
    pub(crate) async fn retire(&self) {
        self.refuse();
        let _guard = self.maintenance.lock().await;
        self.mirror.take();
        self.outgoing.take();
        self.shadow.take();
        self.filling.take();
        self.final_pin.take();
        self.base.take();
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        crate::limits::check_key(key)?;
        if !self.range.contains(key) {
            return Err(Error::WrongPartition { partition: self.id });
        }
        Ok(())
    }

    fn moved(&self, owner: HostId) -> Error {
        Error::Moved { partition: self.id, owner, epoch: self.epoch.get() }
    }

    /// The first and last key of a sub-range of the partition, as cursors want them.
    fn clamp(&self, range: &KeyRange) -> (Bytes, Option<Bytes>) {
        let start = range.start.as_slice().max(self.range.start.as_slice());
        let end = match (range.end.as_deref(), self.range.end.as_deref()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        (Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice))
    }
}
