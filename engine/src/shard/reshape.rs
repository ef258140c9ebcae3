//! One partition becomes two, or two neighbours become one, without a copy: the new ones read the tables of the old ones.
//!
//! - Histories go on at the last LSN of the old ones, the larger one behind a merge. Nothing of an old log is replayed:
//!   all of it is in tables, on the device, before the manifest has the new ones.
//! - The manifest changes in one edit: the old ones go, the new ones appear. A crash leaves the ones or the others.
//! - `INV-SPLIT`: a table that reaches across the bound of a split is a *slice* of either half, never a base: a base may
//!   travel as it lies. It is opened once for each, so that its file goes with the last. Compaction leaves each half a
//!   base of its own. (What is flushed onto a segment while compaction cuts it is a slice of each piece, opened once.)

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;

use crate::checkpoint::copy_file;
use crate::config::Compression;
use crate::engine::Engine;
use crate::erasure;
use crate::error::{Error, Result};
use crate::io::{Bug, fs, planted, runtime};
use crate::keyspace::catalogue::is_managed;
use crate::manifest::{ManifestEdit, NewPartition, Role, SegmentDesc};
use crate::memtable::Memtable;
use crate::partition::expected::Expected;
use crate::partition::layout::{Layout, Segment};
use crate::partition::{Partition, PartitionInit, Serving, Snapshots};
use crate::types::{Epoch, Hlc, KeyRange, Lsn, PartitionId, SegmentId, ShardId, WalSeq};

use super::Shard;
use super::files::{self, Table};

/// A partition that takes the place of others.
struct Successor {
    id: PartitionId,
    range: KeyRange,
    segments: Vec<Rc<Segment>>,
    last_lsn: Lsn,
    /// Who pinned a state before reads it afterwards.
    snapshots: Rc<Snapshots>,
}

/// A partition whose tables another shard takes.
struct Lent {
    dir: PathBuf,
    keyspace: String,
    range: KeyRange,
    segments: Vec<SegmentDesc>,
    last_lsn: Lsn,
    /// No timestamp in it is larger.
    clock: Hlc,
}

/// Why it has not taken them.
enum Taken {
    /// It has not.
    No(Error),
    /// It may have: its manifest has to be read again.
    Unknown(Error),
}

impl Shard {
    /// Splits a partition that this host owns: keys from `at` on belong to the new partition `child`, on this shard.
    /// Both serve on return. Writes and reads are parked for as long as a flush of what came meanwhile takes; then they
    /// are answered [`Error::UnknownPartition`] and to be asked again.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`]; [`Error::Invalid`] when `at` does not lie within the partition, the child's id is
    /// taken, the partition belongs to a keyspace, is not owned here, lacks segments or has a shadow attached: nothing
    /// has changed; as a flush.
    pub async fn split_partition(
        self: &Rc<Shard>,
        id: PartitionId,
        at: &[u8],
        child: PartitionId,
        epoch: Epoch,
    ) -> Result<()> {
        let old = self.partition(id)?;
        if old.range().start.as_slice() >= at || !old.range().contains(at) {
            return Err(Error::Invalid { what: format!("partition {id} cannot be split outside of its keys") });
        }
        self.check_free(child)?;
        check_free_of_keyspaces(&[id, child])?;
        let halves = self.divide(&old, at, child);
        self.replace(std::slice::from_ref(&old), halves, epoch).await
    }

    /// Makes one partition of two that this host owns on this shard: `id` has the keys of both, `other`, which begins
    /// where it ends, is gone. Writes and reads of both are parked as by [`Shard::split_partition`]. Snapshots of
    /// `other` go with it.
    ///
    /// # Errors
    /// [`Error::UnknownPartition`]; [`Error::Invalid`] when they are no neighbours in this order, or as for a split.
    pub async fn merge_partitions(self: &Rc<Shard>, id: PartitionId, other: PartitionId, epoch: Epoch) -> Result<()> {
        let (low, high) = (self.partition(id)?, self.partition(other)?);
        if low.range().end.as_ref() != Some(&high.range().start) || low.keyspace != high.keyspace {
            return Err(Error::Invalid { what: format!("partition {other} does not begin where {id} ends") });
        }
        check_free_of_keyspaces(&[id, other])?;
        let both = [Rc::clone(&low), Rc::clone(&high)];
        let joined = async move {
            let end = high.range().end.clone();
            Ok(vec![join(&low, &high.layout().segments, end, high.assigned())])
        };
        self.replace(&both, joined, epoch).await
    }

    /// As [`Shard::merge_partitions`], of a partition of this shard into one of another shard of this host. That shard's
    /// manifest decides: this one's has the partition a little longer, and after a crash in between it is the caller's
    /// to see that the other one has its keys too, and to drop it.
    pub(crate) async fn give_partition(
        self: &Rc<Shard>,
        engine: &Engine,
        id: PartitionId,
        (to, into): (ShardId, PartitionId),
        epoch: Epoch,
    ) -> Result<()> {
        let high = self.partition(id)?;
        check_free_of_keyspaces(&[id, into])?;
        let served = high.serving();
        let lend = async {
            self.settle(std::slice::from_ref(&high)).await?;
            let guard = high.lock_maintenance().await;
            guard.ok_or_else(|| high.stale("it is being dropped"))
        };
        let given = match lend.await {
            // Its tables stay what they are while the guard is held.
            Ok(_guard) => {
                let lent = Lent {
                    dir: self.dir().to_path_buf(),
                    keyspace: high.keyspace.clone(),
                    range: high.range().clone(),
                    segments: high.layout().segments.iter().map(|segment| segment.desc()).collect(),
                    last_lsn: high.assigned(),
                    clock: self.clock.last(),
                };
                let take = move |shard: Rc<Shard>| async move { shard.take_partition(into, lent, epoch).await };
                engine.on_shard(to, take).await.unwrap_or_else(|cause| Err(Taken::Unknown(cause)))
            }
            Err(cause) => Err(Taken::No(cause)),
        };
        match given {
            Ok(()) => self.drop_partition(id).await,
            Err(Taken::No(cause)) => {
                if served == Serving::Owner {
                    high.end_suspension();
                }
                Err(cause)
            }
            // Served here, its writes could be missing in what a restart finds there.
            Err(Taken::Unknown(cause)) => Err(cause),
        }
    }

    async fn take_partition(
        self: &Rc<Shard>,
        id: PartitionId,
        lent: Lent,
        epoch: Epoch,
    ) -> std::result::Result<(), Taken> {
        let low = self.partition(id).map_err(Taken::No)?;
        if low.range().end.as_ref() != Some(&lent.range.start) || low.keyspace != lent.keyspace {
            return Err(Taken::No(Error::Invalid {
                what: format!("partition {id} does not end where the other begins"),
            }));
        }
        self.clock.observe(lent.clock);
        let upper = self.open_lent(&lent).await.map_err(Taken::No)?;
        let joined = async { Ok(vec![join(&low, &upper, lent.range.end.clone(), lent.last_lsn)]) };
        match self.replace(std::slice::from_ref(&low), joined, epoch).await {
            Ok(()) => Ok(()),
            Err(cause) if self.wal.failure().is_some() => Err(Taken::Unknown(cause)),
            Err(cause) => {
                upper.iter().flat_map(|segment| segment.tables()).for_each(|table| table.retire());
                Err(Taken::No(cause))
            }
        }
    }

    /// Another shard's tables under names of this one's: links of the same files, or copies where the shards lie on
    /// different file systems. What is not named by the manifest in the end goes with the next start.
    async fn open_lent(&self, lent: &Lent) -> Result<Vec<Rc<Segment>>> {
        let (mut names, mut segments) = (BTreeMap::new(), lent.segments.clone());
        for table in segments.iter_mut().flat_map(|segment| segment.slices.iter_mut().chain(&mut segment.base)) {
            table.file = *names.entry(table.file).or_insert_with(|| self.allocate_file());
        }
        let (from, folder) = (lent.dir.clone(), self.dir().to_path_buf());
        let link = move || {
            for (theirs, ours) in names {
                let (from, to) = (files::table_path(&from, theirs), files::table_path(&folder, ours));
                if fs::hard_link(&from, &to).is_err() {
                    copy_file(&from, &to)?;
                }
            }
            fs::sync_dir(&folder)
        };
        runtime::unblock(link).await?;
        self.open_segments(&segments, lent.range.end.as_ref(), &mut BTreeMap::new()).await
    }

    /// Puts successors in the place of partitions. `successors` looks at them when nothing works on them any more.
    async fn replace(
        self: &Rc<Shard>,
        old: &[Rc<Partition>],
        successors: impl Future<Output = Result<Vec<Successor>>>,
        epoch: Epoch,
    ) -> Result<()> {
        let served: Vec<Serving> = old.iter().map(|old| old.serving()).collect();
        let divided = async {
            self.settle(old).await?;
            let mut guards = Vec::with_capacity(old.len());
            for old in old {
                guards.push(old.lock_maintenance().await.ok_or_else(|| old.stale("it is being dropped"))?);
            }
            let successors = successors.await?;
            // Before anybody else gets the guards: the layouts stay what the successors have.
            old.iter().for_each(|old| old.refuse());
            Ok(successors)
        };
        let successors = match divided.await {
            Ok(successors) => successors,
            Err(cause) => {
                let owned = old.iter().zip(served).filter(|(_, served)| *served == Serving::Owner);
                owned.for_each(|(old, _)| old.end_suspension());
                return Err(cause);
            }
        };
        for old in old {
            old.retire().await;
        }
        let replay_from = self.wal.collecting();
        let model = &old[0];
        let mut edits: Vec<ManifestEdit> =
            old.iter().map(|old| ManifestEdit::DropPartition { partition: old.id() }).collect();
        edits.extend(successors.iter().flat_map(|successor| successor.edits(model, epoch, replay_from)));
        self.log_edits(edits).await?;
        for old in old {
            self.partitions.borrow_mut().remove(&old.id());
            if successors.iter().all(|successor| successor.id != old.id()) {
                self.directory.remove(old.id());
            }
        }
        for successor in successors {
            self.install_successor(model, successor, epoch, replay_from);
        }
        self.rows.forget_all();
        self.handle_memtable_freed();
        Ok(())
    }

    /// Has everything of partitions in tables, and parks who wants more.
    async fn settle(&self, old: &[Rc<Partition>]) -> Result<()> {
        for old in old {
            old.check_divisible()?;
            // Most of it while requests go on.
            old.flush_memtables().await?;
        }
        for old in old {
            // A shadow may have been attached meanwhile; none is from here on.
            old.check_divisible()?;
            old.suspend();
        }
        // Also the confirmations of what is in flight: nobody hears of the old log afterwards.
        self.wal.wait_durable(self.wal.collecting()).await?;
        for old in old.iter().filter(|_| !planted(Bug::ReshapeUnflushed)) {
            old.flush_memtables().await?;
        }
        Ok(())
    }

    /// The two halves of a partition that nothing works on any more.
    async fn divide(&self, old: &Partition, at: &[u8], child: PartitionId) -> Result<Vec<Successor>> {
        let at = Bytes::copy_from_slice(at);
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for segment in &old.layout().segments {
            if segment.end.as_ref().is_some_and(|end| *end <= at) {
                left.push(Rc::clone(segment));
            } else if segment.start >= at {
                right.push(Rc::clone(segment));
            } else {
                let tables: Vec<Rc<Table>> = segment.tables().cloned().collect();
                let mut again = Vec::with_capacity(tables.len());
                for table in &tables {
                    match self.open_table(&table.file, table.location).await {
                        Ok(table) => again.push(table),
                        Err(cause) => {
                            again.iter().for_each(|table: &Rc<Table>| table.retire());
                            return Err(cause);
                        }
                    }
                }
                left.push(half_of(segment, segment.start.clone(), Some(at.clone()), tables));
                right.push(half_of(segment, at.clone(), segment.end.clone(), again));
            }
        }
        let range = old.range();
        let below = KeyRange { start: range.start.clone(), end: Some(at.to_vec()) };
        let above = KeyRange { start: at.to_vec(), end: range.end.clone() };
        let half = |id, range, segments| Successor {
            id,
            range,
            segments,
            last_lsn: old.assigned(),
            snapshots: old.snapshots(),
        };
        Ok(vec![half(old.id(), below, left), half(child, above, right)])
    }

    fn install_successor(self: &Rc<Shard>, model: &Partition, successor: Successor, epoch: Epoch, replay_from: WalSeq) {
        let next_segment = successor.segments.iter().map(|segment| segment.id.0).max().unwrap_or(0) + 1;
        let partition = Partition::new(
            Rc::clone(self),
            PartitionInit {
                id: successor.id,
                keyspace: model.keyspace.clone(),
                range: successor.range,
                options: model.options(),
                epoch,
                serving: Serving::Owner,
                layout: Layout::new(successor.segments),
                memtable: Memtable::new(replay_from),
                last_lsn: successor.last_lsn,
                next_segment,
                replay_from,
                missing: None,
                snapshots: successor.snapshots,
            },
        );
        self.partitions.borrow_mut().insert(successor.id, partition);
        self.directory.insert(successor.id, self.id);
    }
}

impl Successor {
    fn edits(&self, model: &Partition, epoch: Epoch, replay_from: WalSeq) -> Vec<ManifestEdit> {
        let options = model.options();
        let add: Vec<SegmentDesc> = self.segments.iter().map(|segment| segment.desc()).collect();
        let mut edits = vec![ManifestEdit::CreatePartition(NewPartition {
            partition: self.id,
            keyspace: model.keyspace.clone(),
            range: self.range.clone(),
            epoch,
            role: Role::Owner,
            segment_target_bytes: options.segment_target_bytes,
            block_bytes: options.block_bytes,
            segments: add.iter().map(|segment| (segment.id, segment.start_key.clone())).collect(),
            replay_from,
            last_lsn: self.last_lsn,
        })];
        if options.compression != Compression::None {
            edits.push(ManifestEdit::SetOptions { partition: self.id, compression: options.compression });
        }
        let erasures: Vec<ManifestEdit> = ManifestEdit::erasures_of(self.id, &add).collect();
        let remove = add.iter().map(|segment| segment.id).collect();
        edits.push(ManifestEdit::ReplaceSegments { partition: self.id, remove, add });
        edits.extend(erasures);
        edits
    }
}

/// One partition of two neighbours. Segments of the upper one are numbered behind those of the lower one.
fn join(low: &Partition, upper: &[Rc<Segment>], end: Option<Vec<u8>>, last_lsn: Lsn) -> Successor {
    let mut segments = low.layout().segments.clone();
    let next = segments.iter().map(|segment| segment.id.0).max().unwrap_or(0) + 1;
    let numbered = (next..).map(SegmentId).zip(upper);
    segments.extend(numbered.map(|(id, segment)| Rc::new(segment.renumbered(id))));
    Successor {
        id: low.id(),
        range: KeyRange { start: low.range().start.clone(), end },
        segments,
        last_lsn: low.assigned().max(last_lsn),
        snapshots: low.snapshots(),
    }
}

/// What lies of a segment within `[start, end)`. It is compacted next: as if range reads had lost enough time to it.
fn half_of(segment: &Segment, start: Bytes, end: Option<Bytes>, tables: Vec<Rc<Table>>) -> Rc<Segment> {
    let erasures = erasure::clip_all(&segment.erasures, &start, end.as_ref(), Lsn(0), Lsn(u64::MAX));
    Rc::new(Segment {
        id: segment.id,
        start,
        end,
        base: None,
        slices: tables,
        erasures: erasures.into(),
        version: segment.version.clone(),
        cut: false,
        detours: Cell::new(u64::MAX / 2),
        expected: Expected::default(),
    })
}

/// Which partitions a keyspace of the engine has is in its catalogue.
fn check_free_of_keyspaces(ids: &[PartitionId]) -> Result<()> {
    match ids.iter().find(|id| is_managed(**id)) {
        Some(id) => Err(Error::Invalid { what: format!("partition {id} belongs to a keyspace") }),
        None => Ok(()),
    }
}
