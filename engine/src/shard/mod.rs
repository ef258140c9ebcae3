//! One shard: a pinned core that owns its partitions whole.
//!
//! Start-up order (see `recovery`): data lock, manifest, WAL (which waits out ghost writes of a killed process),
//! replay into memtables, removal of files that no manifest names, then service.

mod checkpoint;
pub(crate) mod files;
mod lateness;
mod maintenance;
mod manifest;
mod memtables;
mod pace;
pub(crate) mod recovery;
mod reshape;
pub(crate) mod rows;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use antumbra_predictor::model::Model;

use crate::clock::HlcClock;
use crate::config::{CompactionOrder, Compression, EngineConfig, PartitionOptions, ReadAhead};
use crate::engine::Directory;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::governor::Governor;
use crate::io::direct::DirectFile;
use crate::io::runtime::{self, Background};
use crate::manifest::{ManifestEdit, NewPartition, Role, TableRef};
use crate::memtable::{ChunkStock, Memtable};
use crate::partition::expected::Expected;
use crate::partition::layout::{Layout, Segment};
use crate::partition::{Partition, PartitionInit, Serving, SnapshotPin};
use crate::residency::Residency;
use crate::table::{BuildBuffers, Charge, ShardBlockCache};
use crate::types::{AttemptId, Epoch, FileId, HostId, KeyRange, Lsn, PartitionId, SegmentId, ShardId};
use crate::wal::Wal;

use files::{Table, TableFile, Unfinished};
use manifest::ShardManifest;
use rows::HotRows;

/// Memory to build tables in that is kept between two table files.
const BUILD_BUFFER_BYTES_MAX: usize = 1 << 20;

/// What a new partition is to be.
///
/// # Example
/// ```
/// use antumbra_engine::types::{Epoch, KeyRange, PartitionId};
/// use antumbra_engine::{PartitionOptions, PartitionSpec};
/// let spec = PartitionSpec {
///     id: PartitionId(7),
///     keyspace: String::new(),
///     range: KeyRange::all(),
///     epoch: Epoch(1),
///     options: PartitionOptions::default(),
/// };
/// ```
#[derive(Clone, Debug)]
pub struct PartitionSpec {
    /// Id, unique in the cluster.
    pub id: PartitionId,
    /// Keyspace it belongs to.
    pub keyspace: String,
    /// Routing keys it holds.
    pub range: KeyRange,
    /// Ownership generation.
    pub epoch: Epoch,
    /// Options.
    pub options: PartitionOptions,
}

/// A shard as its own tasks see it.
pub struct Shard {
    id: ShardId,
    dir: PathBuf,
    config: Arc<EngineConfig>,
    model: Arc<Model>,
    wal: Wal,
    manifest: ShardManifest,
    cache: Rc<ShardBlockCache>,
    rows: HotRows,
    memtable_charge: RefCell<Option<Charge>>,
    residency: Residency,
    clock: HlcClock,
    background: Background,
    directory: Arc<Directory>,
    partitions: RefCell<BTreeMap<PartitionId, Rc<Partition>>>,
    next_file: Cell<u64>,
    removals: async_channel::Sender<PathBuf>,
    maintenance_wanted: Event,
    maintenance_pending: Cell<bool>,
    memtable_room: Event,
    memtable_stock: Rc<ChunkStock>,
    pace: pace::Pace,
    /// How many flushes failed in a row, and why the last one did.
    flush_failures: RefCell<Option<(u32, Error)>>,
    closing: Cell<bool>,
    /// Notified when one of the two below is set.
    task_ended: Event,
    maintenance_ended: Cell<bool>,
    removals_ended: Cell<bool>,
    /// What the last table file was built in.
    build_buffers: RefCell<BuildBuffers>,
    /// Snapshots that other threads hold, by number.
    pins: RefCell<BTreeMap<u64, SnapshotPin>>,
    next_pin: Cell<u64>,
    lateness: lateness::Lateness,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("id", &self.id)
            .field("wal", &self.wal)
            .field("holds_writers", &self.holds_writers())
            .field("maintenance_pending", &self.maintenance_pending)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

impl Shard {
    /// The shard's number on this host.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The partition with this id.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`].
    pub fn partition(&self, id: PartitionId) -> Result<Rc<Partition>> {
        self.partitions.borrow().get(&id).cloned().ok_or(Error::UnknownPartition { partition: id })
    }

    /// All partitions of this shard, ascending by id.
    #[must_use]
    pub fn partitions(&self) -> Vec<Rc<Partition>> {
        self.partitions.borrow().values().cloned().collect()
    }

    /// Creates a partition that this host owns.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the id is taken, [`Error::Io`] when the manifest cannot be written (nothing is created).
    pub async fn create_partition(self: &Rc<Shard>, spec: PartitionSpec) -> Result<Rc<Partition>> {
        let first = (SegmentId(1), spec.range.start.clone());
        self.check_free(spec.id)?;
        self.install_partition(spec, Role::Owner, vec![first], Lsn(0)).await
    }

    fn check_free(&self, id: PartitionId) -> Result<()> {
        if self.partitions.borrow().contains_key(&id) {
            return Err(Error::Invalid { what: format!("partition {id} exists already on this host") });
        }
        Ok(())
    }

    /// Writes a new partition's manifest entry and brings it to life. A partition that has the id goes in the same
    /// edit; its tables are the caller's.
    pub(crate) async fn install_partition(
        self: &Rc<Shard>,
        spec: PartitionSpec,
        role: Role,
        segments: Vec<(SegmentId, Vec<u8>)>,
        last_lsn: Lsn,
    ) -> Result<Rc<Partition>> {
        let replaces = self.partitions.borrow().contains_key(&spec.id);
        let next_segment = segments.iter().map(|(id, _)| id.0).max().unwrap_or(0) + 1;
        let replay_from = self.wal.collecting();
        let mut edits = Vec::new();
        if replaces {
            edits.push(ManifestEdit::DropPartition { partition: spec.id });
        }
        edits.push(ManifestEdit::CreatePartition(NewPartition {
            partition: spec.id,
            keyspace: spec.keyspace.clone(),
            range: spec.range.clone(),
            epoch: spec.epoch,
            role,
            segment_target_bytes: spec.options.segment_target_bytes,
            block_bytes: spec.options.block_bytes,
            segments: segments.clone(),
            replay_from,
            last_lsn,
        }));
        if spec.options.compression != Compression::None {
            edits.push(ManifestEdit::SetOptions { partition: spec.id, compression: spec.options.compression });
        }
        let filled_by = match role {
            Role::Shadow { attempt } => Some(attempt),
            Role::Owner | Role::Released { .. } => None,
        };
        let missing: BTreeSet<SegmentId> = segments.iter().filter(|_| filled_by.is_some()).map(|(id, _)| *id).collect();
        if let Some(attempt) = filled_by {
            let segments = missing.iter().copied().collect();
            edits.push(ManifestEdit::Missing { partition: spec.id, attempt, segments });
        }
        self.log_edits(edits).await?;
        let ends = segments.iter().skip(1).map(|(_, start)| Some(start.clone())).chain([spec.range.end.clone()]);
        let layout = segments
            .iter()
            .zip(ends)
            .map(|((id, start), end)| {
                Rc::new(Segment {
                    id: *id,
                    start: start.clone().into(),
                    end: end.map(Into::into),
                    base: None,
                    slices: Vec::new(),
                    erasures: Rc::default(),
                    version: Cell::new(Lsn(0)),
                    cut: false,
                    detours: Cell::new(0),
                    expected: Expected::default(),
                })
            })
            .collect();
        let partition = Partition::new(
            Rc::clone(self),
            PartitionInit {
                id: spec.id,
                keyspace: spec.keyspace,
                range: spec.range,
                options: spec.options,
                epoch: spec.epoch,
                serving: Serving::from(role),
                layout: Layout::new(layout),
                memtable: Memtable::new(replay_from),
                last_lsn,
                next_segment,
                replay_from,
                missing: filled_by.map(|attempt| (attempt, missing)),
                snapshots: Rc::default(),
            },
        );
        // An earlier partition may have had the id.
        self.rows.forget_all();
        self.partitions.borrow_mut().insert(spec.id, Rc::clone(&partition));
        self.directory.insert(spec.id, self.id);
        Ok(partition)
    }

    /// Removes a partition and its data from this host.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`], [`Error::Io`].
    pub async fn drop_partition(&self, id: PartitionId) -> Result<()> {
        let partition = self.partition(id)?;
        partition.retire().await;
        // A later partition of this id must not find this one's records in a batch that is still being collected.
        self.wal.wait_durable(self.wal.collecting()).await?;
        self.log_edits(vec![ManifestEdit::DropPartition { partition: id }]).await?;
        self.partitions.borrow_mut().remove(&id);
        self.directory.remove(id);
        self.handle_memtable_freed();
        for segment in &partition.layout().segments {
            segment.tables().for_each(|table| table.retire());
        }
        Ok(())
    }

    /// Creates a partition that is filled by a move: the segments are the source's, its mirror begins after `from`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the partition is on this host already, [`Error::Io`].
    pub async fn create_shadow(
        self: &Rc<Shard>,
        spec: PartitionSpec,
        attempt: AttemptId,
        segments: Vec<(SegmentId, Vec<u8>)>,
        from: Lsn,
    ) -> Result<Rc<Partition>> {
        self.check_free(spec.id)?;
        let partition = self.install_partition(spec, Role::Shadow { attempt }, segments, from).await?;
        partition.begin_shadow(attempt, from);
        Ok(partition)
    }

    /// As [`Shard::create_shadow`], on top of the copy here that was handed over to `owner` at `base`: see
    /// [`crate::partition::Base`]. The copy is the shadow's then, whatever becomes of the attempt. Returns how many
    /// segments have a base.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`]; [`Error::Invalid`] when what is here is no such copy, and it is left alone;
    /// [`Error::Io`].
    pub async fn create_shadow_on_base(
        self: &Rc<Shard>,
        spec: PartitionSpec,
        attempt: AttemptId,
        segments: Vec<(SegmentId, Vec<u8>)>,
        from: Lsn,
        (owner, base): (HostId, Lsn),
    ) -> Result<usize> {
        let old = self.partition(spec.id)?;
        let copy = old.take_base(owner, base).await?;
        old.retire().await;
        // The shadow must not find the copy's records in a batch that is still being collected.
        self.wal.wait_durable(self.wal.collecting()).await?;
        let partition = self.install_partition(spec, Role::Shadow { attempt }, segments, from).await?;
        drop(old);
        self.handle_memtable_freed();
        partition.begin_shadow(attempt, from);
        Ok(partition.adopt_base(&copy))
    }

    /// Discards the shadow of an attempt; a partition that is no such shadow is left alone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn discard_shadow(&self, id: PartitionId, attempt: AttemptId) -> Result<()> {
        match self.partition(id) {
            Ok(partition) if partition.serving() == (Serving::Shadow { attempt }) => self.drop_partition(id).await,
            _ => Ok(()),
        }
    }

    /// Keeps a pin for another thread, under the number returned.
    pub(crate) fn keep_pin(&self, pin: SnapshotPin) -> u64 {
        let number = self.next_pin.get();
        self.next_pin.set(number + 1);
        self.pins.borrow_mut().insert(number, pin);
        number
    }

    /// Lets go of a pin.
    pub(crate) fn unpin(&self, number: u64) {
        self.pins.borrow_mut().remove(&number);
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn background(&self) -> &Background {
        &self.background
    }

    pub(crate) fn cache(&self) -> &ShardBlockCache {
        &self.cache
    }

    pub(crate) fn rows(&self) -> &HotRows {
        &self.rows
    }

    pub(crate) fn residency(&self) -> &Residency {
        &self.residency
    }

    /// Whether tables lie in files that can be mapped, and the embedder wants it.
    pub(crate) fn can_hold_resident(&self) -> bool {
        self.config.residency && !runtime::is_simulated()
    }

    /// Bytes that resident segments may take; what they take, the cache lacks.
    pub(crate) fn resident_budget_bytes(&self) -> usize {
        self.config.resident_budget_bytes()
    }

    /// Bytes that one compaction may hold of its sources at a time.
    pub(crate) fn read_ahead_bytes(&self) -> usize {
        self.config.read_ahead_bytes()
    }

    /// How far readers read ahead.
    pub(crate) fn read_ahead(&self) -> ReadAhead {
        self.config.read_ahead
    }

    /// Which segment is compacted first.
    pub(crate) fn compaction_order(&self) -> CompactionOrder {
        self.config.compaction_order
    }

    pub(crate) fn governor(&self) -> &Governor {
        &self.config.governor
    }

    pub(crate) fn wal(&self) -> &Wal {
        &self.wal
    }

    pub(crate) fn clock(&self) -> &HlcClock {
        &self.clock
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Makes edits of the manifest durable together. A failure latches the whole shard: what the manifest says is not
    /// known any more, so nothing may be flushed, and writers must not wait for room that never comes.
    pub(crate) async fn log_edits(&self, mut edits: Vec<ManifestEdit>) -> Result<()> {
        edits.push(ManifestEdit::Logged { seq: self.wal.durable() });
        let logged = self.manifest.append(edits).await;
        if let Err(cause @ Error::Io { .. }) = &logged {
            self.wal.latch(cause);
        }
        logged
    }

    pub(crate) fn allocate_file(&self) -> FileId {
        let id = self.next_file.get();
        self.next_file.set(id + 1);
        FileId(id)
    }

    pub(crate) fn table_path(&self, id: FileId) -> PathBuf {
        files::table_path(&self.dir, id)
    }

    pub(crate) fn unfinished(&self, id: FileId) -> Unfinished {
        Unfinished::new(self.table_path(id), self.removals.clone())
    }

    /// Opens a table file that is complete and durable.
    pub(crate) async fn open_file(&self, id: FileId) -> Result<Rc<TableFile>> {
        let file = DirectFile::open_read(&self.table_path(id)).await?;
        Ok(TableFile::new(id, file, self.removals.clone()))
    }

    pub(crate) async fn open_table(&self, file: &Rc<TableFile>, location: TableRef) -> Result<Rc<Table>> {
        Table::open(Rc::clone(file), location, Rc::clone(&self.cache)).await
    }

    /// Memory to build tables in.
    pub(crate) fn take_build_buffers(&self) -> BuildBuffers {
        self.build_buffers.take()
    }

    /// Keeps that memory for the next one.
    pub(crate) fn keep_build_buffers(&self, buffers: BuildBuffers) {
        if buffers.bytes() <= BUILD_BUFFER_BYTES_MAX {
            self.build_buffers.replace(buffers);
        }
    }

    /// Asks the maintenance task to look for work.
    pub(crate) fn request_maintenance(&self) {
        self.maintenance_pending.set(true);
        self.maintenance_wanted.notify_all();
    }

    /// Takes apart what a killed shard has left in memory: it and its partitions hold each other.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn abandon(&self) {
        let partitions = std::mem::take(&mut *self.partitions.borrow_mut());
        drop(partitions);
    }

    /// The WAL made every batch up to `seq` durable.
    fn handle_durable(&self, seq: crate::types::WalSeq) {
        for partition in self.partitions.borrow().values() {
            partition.handle_durable(seq);
        }
    }

    fn handle_wal_failed(&self) {
        for partition in self.partitions.borrow().values() {
            partition.handle_wal_failed();
        }
        self.memtable_room.notify_all();
    }
}

impl From<Role> for Serving {
    fn from(role: Role) -> Serving {
        match role {
            Role::Owner => Serving::Owner,
            Role::Shadow { attempt } => Serving::Shadow { attempt },
            Role::Released { owner } => Serving::Released { owner },
        }
    }
}
