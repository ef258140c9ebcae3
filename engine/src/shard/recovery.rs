//! From a folder to a serving shard.

use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use antumbra_predictor::model::Model;
use bytes::Bytes;

use crate::clock::HlcClock;
use crate::config::{EngineConfig, PartitionOptions};
use crate::engine::Directory;
use crate::error::Result;
use crate::event::Event;
use crate::io::runtime::Background;
use crate::io::{direct, fs};
use crate::manifest::{ManifestLog, ManifestState, PartitionState, Role, SegmentDesc};
use crate::memory::keep_idle;
use crate::memtable::{ChunkStock, Memtable};
use crate::partition::expected::Expected;
use crate::partition::layout::{Layout, Segment};
use crate::partition::{Partition, PartitionInit, Serving};
use crate::residency::Residency;
use crate::table::ShardBlockCache;
use crate::types::{FileId, Lsn, PartitionId, ShardId, WalSeq};
use crate::wal::{self, Wal, WalEvent};

use super::Shard;
use super::files::{self, TableFile};
use super::manifest::ShardManifest;
use super::pace::Pace;
use super::rows::HotRows;

/// Removals that may wait; more are left to the next start.
const REMOVALS_MAX: usize = 4096;

/// What the log has for one partition.
struct Replayed {
    memtable: Memtable,
    last_lsn: Lsn,
}

impl Shard {
    /// Opens shard `id` in `dir`: manifest, log, tables, then its tasks.
    pub(crate) async fn open(
        id: ShardId,
        dir: PathBuf,
        config: Arc<EngineConfig>,
        model: Arc<Model>,
        directory: Arc<Directory>,
    ) -> Result<Rc<Shard>> {
        fs::create_dir(&dir)?;
        keep_idle(config.idle_buffer_bytes());
        direct::warm_up(&dir).await?;
        let manifest = ManifestLog::open(&dir)?;
        let state = manifest.state().clone();
        let clock = HlcClock::default();
        let mut replayed = empty_memtables(&state);
        let replay_from = state.partitions.values().map(|partition| partition.replay_from).max().unwrap_or_default();
        let recovered = wal::recover(
            &dir.join("wal"),
            config.wal_file_bytes,
            state.known_of_log(),
            state.logged.max(replay_from),
            config.lock_timeout,
            |seq, entry| {
                replay(&state, &mut replayed, &clock, seq, entry);
                Ok(())
            },
        )?;
        let background = Background::new(config.preempt);
        let memtable_stock = Rc::new(ChunkStock::new(config.memtable_bytes_max()));
        let next_file = remove_orphans(&dir, &state)?;
        let wal = Wal::open(recovered, background.clone(), config.wal_batch_bytes()).await?;
        let (removals, removed) = async_channel::bounded(REMOVALS_MAX);
        let cache = Rc::new(ShardBlockCache::new(config.cache_budget_bytes()));
        let shard = Rc::new(Shard {
            id,
            dir,
            rows: HotRows::new(config.rows_budget_bytes(), Rc::clone(&cache)),
            cache,
            memtable_charge: RefCell::default(),
            residency: Residency::default(),
            config,
            model,
            wal,
            manifest: ShardManifest::new(manifest),
            clock,
            background,
            directory,
            partitions: RefCell::default(),
            next_file: Cell::new(next_file),
            removals,
            maintenance_wanted: Event::default(),
            maintenance_pending: Cell::new(true),
            memtable_room: Event::default(),
            memtable_stock,
            pace: Pace::default(),
            flush_failures: RefCell::default(),
            closing: Cell::new(false),
            task_ended: Event::default(),
            maintenance_ended: Cell::new(false),
            removals_ended: Cell::new(false),
            pins: RefCell::default(),
            build_buffers: RefCell::default(),
            next_pin: Cell::new(0),
            lateness: Default::default(),
        });
        if let Err(cause) = shard.open_partitions(state, replayed).await {
            // This process may open the folder again, once it is repaired: the log must not stay locked.
            shard.partitions.borrow_mut().clear();
            shard.wal.close().await;
            return Err(cause);
        }
        let weak = Rc::downgrade(&shard);
        shard.wal.observe(move |event| {
            if let Some(shard) = weak.upgrade() {
                match event {
                    WalEvent::Durable(seq) => shard.handle_durable(seq),
                    WalEvent::Failed => shard.handle_wal_failed(),
                }
            }
        });
        shard.start_tasks(removed);
        Ok(shard)
    }

    async fn open_partitions(
        self: &Rc<Shard>,
        state: ManifestState,
        mut replayed: BTreeMap<PartitionId, Replayed>,
    ) -> Result<()> {
        let mut opened = BTreeMap::new();
        for (id, partition) in state.partitions {
            let Some(found) = replayed.remove(&id) else {
                unreachable!("INV-RECOVER: every partition of the manifest has a memtable");
            };
            let built = self.open_partition(id, partition, found, &mut opened).await?;
            built.freeze_if_full();
            self.partitions.borrow_mut().insert(id, built);
            self.directory.insert(id, self.id);
        }
        self.account_memtables();
        Ok(())
    }

    async fn open_partition(
        self: &Rc<Shard>,
        id: PartitionId,
        state: PartitionState,
        replayed: Replayed,
        opened: &mut BTreeMap<FileId, Rc<TableFile>>,
    ) -> Result<Rc<Partition>> {
        let layout = Layout::new(self.open_segments(&state.segments, state.range.end.as_ref(), opened).await?);
        replayed.memtable.for_each_key(|key, lsn| layout.segments[layout.locate(key)].raise_version(lsn));
        for segment in &layout.segments {
            let erasures = replayed.memtable.erasures();
            let within = erasures.within(&segment.start, segment.end.as_ref(), Lsn(0), Lsn(u64::MAX));
            within.iter().for_each(|erasure| segment.raise_version(erasure.lsn));
        }
        let next_segment = state.segments.iter().map(|segment| segment.id.0).max().unwrap_or(0) + 1;
        Ok(Partition::new(
            Rc::clone(self),
            PartitionInit {
                id,
                keyspace: state.keyspace,
                range: state.range,
                options: PartitionOptions {
                    segment_target_bytes: state.segment_target_bytes,
                    block_bytes: state.block_bytes,
                    compression: state.compression,
                },
                epoch: state.epoch,
                serving: Serving::from(state.role),
                layout,
                memtable: replayed.memtable,
                last_lsn: replayed.last_lsn,
                next_segment,
                replay_from: state.replay_from,
                missing: state.missing,
                snapshots: Rc::default(),
            },
        ))
    }

    /// Opens neighbouring segments, the last of which ends at `end`, and the files in which they lie.
    pub(super) async fn open_segments(
        &self,
        descs: &[SegmentDesc],
        end: Option<&Vec<u8>>,
        opened: &mut BTreeMap<FileId, Rc<TableFile>>,
    ) -> Result<Vec<Rc<Segment>>> {
        let mut segments = Vec::with_capacity(descs.len());
        for (index, desc) in descs.iter().enumerate() {
            let end = descs.get(index + 1).map(|next| &next.start_key).or(end);
            let mut tables = Vec::new();
            for location in desc.slices.iter().chain(&desc.base) {
                let file = match opened.entry(location.file) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(self.open_file(location.file).await?),
                };
                tables.push(self.open_table(file, *location).await?);
            }
            let base = if desc.base.is_some() { tables.pop() } else { None };
            let written = desc.slices.iter().chain(&desc.base).map(|table| table.max_lsn);
            let version = written.chain(desc.erasures.iter().map(|erasure| erasure.lsn)).max().unwrap_or_default();
            segments.push(Rc::new(Segment {
                id: desc.id,
                start: Bytes::copy_from_slice(&desc.start_key),
                end: end.map(|end| Bytes::copy_from_slice(end)),
                base,
                slices: tables,
                erasures: desc.erasures.as_slice().into(),
                version: Cell::new(version),
                cut: false,
                detours: Cell::new(0),
                expected: Expected::default(),
            }));
        }
        Ok(segments)
    }
}

fn empty_memtables(state: &ManifestState) -> BTreeMap<PartitionId, Replayed> {
    state
        .partitions
        .iter()
        .map(|(id, partition)| {
            let memtable = Memtable::new(partition.replay_from);
            (*id, Replayed { memtable, last_lsn: partition.last_lsn })
        })
        .collect()
}

/// Takes a record of the log in, unless it is flushed already or belongs to an earlier life of the partition.
fn replay(
    state: &ManifestState,
    replayed: &mut BTreeMap<PartitionId, Replayed>,
    clock: &HlcClock,
    seq: WalSeq,
    entry: wal::Entry<'_>,
) {
    clock.observe(entry.record.hlc);
    let Some((partition, found)) = state.partitions.get(&entry.partition).zip(replayed.get_mut(&entry.partition))
    else {
        return;
    };
    let of_this_shadow = match partition.role {
        Role::Shadow { attempt } => entry.attempt == attempt,
        Role::Owner | Role::Released { .. } => true,
    };
    if seq < partition.replay_from || !of_this_shadow {
        return;
    }
    found.last_lsn = found.last_lsn.max(entry.record.lsn);
    if entry.record.lsn <= partition.flushed {
        return;
    }
    found.memtable.insert(entry.record);
}

/// Removes table files that no manifest names (a crash left them); returns the next free id.
fn remove_orphans(dir: &std::path::Path, state: &ManifestState) -> Result<u64> {
    let named: BTreeSet<FileId> = state.referenced_files().collect();
    let mut largest = named.last().map_or(0, |id| id.0);
    for name in fs::list_dir(dir)? {
        let Some(id) = files::parse_table_name(&name) else {
            continue;
        };
        largest = largest.max(id.0);
        if !named.contains(&id) {
            tracing::debug!(file = name, "removed a table file that no manifest names");
            fs::remove_file(&dir.join(name))?;
        }
    }
    Ok(largest + 1)
}
