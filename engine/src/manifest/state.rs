//! The state that edits build up.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Compression;
use crate::types::{AttemptId, Epoch, FileId, KeyRange, Lsn, PartitionId, SegmentId, WalSeq};
use crate::wal::Known;

use super::edit::{ManifestEdit, NewPartition, Role, SegmentDesc, TableRef};

/// A partition as the manifest knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionState {
    /// Keyspace.
    pub keyspace: String,
    /// Routing keys.
    pub range: KeyRange,
    /// Ownership generation.
    pub epoch: Epoch,
    /// Who serves it.
    pub role: Role,
    /// See `PartitionOptions`.
    pub segment_target_bytes: u64,
    /// See `PartitionOptions`.
    pub block_bytes: u32,
    /// Ascending by start key.
    pub segments: Vec<SegmentDesc>,
    /// Where replay begins.
    pub replay_from: WalSeq,
    /// Where its history stands at least.
    pub last_lsn: Lsn,
    /// See `PartitionOptions`.
    pub compression: Compression,
    /// Every record up to here is in tables.
    pub flushed: Lsn,
    /// Segments that are not held yet, and the attempt that is to bring them; never empty.
    pub missing: Option<(AttemptId, BTreeSet<SegmentId>)>,
}

/// All partitions of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestState {
    /// By id.
    pub partitions: BTreeMap<PartitionId, PartitionState>,
    /// The log reached this batch at least.
    pub logged: WalSeq,
}

impl ManifestState {
    /// Applies one edit; an error says why it does not fit and leaves the state as it was.
    pub fn apply(&mut self, edit: &ManifestEdit) -> Result<(), String> {
        match edit {
            ManifestEdit::CreatePartition(new) => self.create(new),
            ManifestEdit::SetRole { partition, role, epoch, last_lsn } => {
                let state = self.partition(*partition)?;
                if *epoch < state.epoch {
                    return Err(format!("partition {partition}: epoch {epoch} after epoch {}", state.epoch));
                }
                state.role = *role;
                state.epoch = *epoch;
                state.last_lsn = state.last_lsn.max(*last_lsn);
                Ok(())
            }
            ManifestEdit::DropPartition { partition } => {
                self.partition(*partition)?;
                self.partitions.remove(partition);
                Ok(())
            }
            ManifestEdit::AddRun { partition, slices, replay_from, last_lsn } => {
                let state = self.partition(*partition)?;
                if let Some((segment, _)) = slices.iter().find(|(id, _)| index_of(&state.segments, *id).is_none()) {
                    return Err(format!("partition {partition}: run for unknown segment {segment}"));
                }
                for (segment, table) in slices {
                    if let Some(index) = index_of(&state.segments, *segment) {
                        state.segments[index].slices.insert(0, *table);
                    }
                }
                state.replay_from = *replay_from;
                state.last_lsn = state.last_lsn.max(*last_lsn);
                Ok(())
            }
            ManifestEdit::ReplaceSegments { partition, remove, add } => self.replace(*partition, remove, add),
            ManifestEdit::SetOptions { partition, compression } => {
                self.partition(*partition)?.compression = *compression;
                Ok(())
            }
            ManifestEdit::Flushed { partition, lsn } => {
                let state = self.partition(*partition)?;
                state.flushed = state.flushed.max(*lsn);
                Ok(())
            }
            ManifestEdit::Logged { seq } => {
                self.logged = *seq;
                Ok(())
            }
            ManifestEdit::Missing { partition, attempt, segments } => {
                let state = self.partition(*partition)?;
                if let Some(unknown) = segments.iter().find(|id| index_of(&state.segments, **id).is_none()) {
                    return Err(format!("partition {partition}: unknown segment {unknown} is missing"));
                }
                let missing: BTreeSet<SegmentId> = segments.iter().copied().collect();
                state.missing = (!missing.is_empty()).then_some((*attempt, missing));
                Ok(())
            }
            ManifestEdit::Held { partition, segment } => {
                let state = self.partition(*partition)?;
                if let Some((_, missing)) = &mut state.missing {
                    missing.remove(segment);
                }
                state.missing.take_if(|(_, missing)| missing.is_empty());
                Ok(())
            }
            ManifestEdit::AddErasures { partition, segment, erasures } => {
                let state = self.partition(*partition)?;
                let index = index_of(&state.segments, *segment)
                    .ok_or_else(|| format!("partition {partition}: erasures of unknown segment {segment}"))?;
                state.segments[index].erasures.extend(erasures.iter().cloned());
                Ok(())
            }
        }
    }

    /// The files that some segment reads.
    pub fn referenced_files(&self) -> impl Iterator<Item = FileId> {
        self.tables().map(|table| table.file)
    }

    /// All tables.
    pub fn tables(&self) -> impl Iterator<Item = &TableRef> {
        let segments = self.partitions.values().flat_map(|partition| &partition.segments);
        segments.flat_map(|segment| segment.slices.iter().chain(&segment.base))
    }

    /// What the log has to hold.
    pub(crate) fn known_of_log(&self) -> Known {
        let needed_from = self.partitions.values().map(|partition| partition.replay_from).min().unwrap_or_default();
        Known { needed_from, logged: self.logged }
    }

    /// The edits that build this state from nothing.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ManifestEdit> {
        let mut edits = Vec::new();
        if self.logged > WalSeq(0) {
            edits.push(ManifestEdit::Logged { seq: self.logged });
        }
        for (id, state) in &self.partitions {
            edits.push(ManifestEdit::CreatePartition(NewPartition {
                partition: *id,
                keyspace: state.keyspace.clone(),
                range: state.range.clone(),
                epoch: state.epoch,
                role: state.role,
                segment_target_bytes: state.segment_target_bytes,
                block_bytes: state.block_bytes,
                segments: state.segments.iter().map(|segment| (segment.id, segment.start_key.clone())).collect(),
                replay_from: state.replay_from,
                last_lsn: state.last_lsn,
            }));
            edits.push(ManifestEdit::ReplaceSegments {
                partition: *id,
                remove: state.segments.iter().map(|segment| segment.id).collect(),
                add: state.segments.clone(),
            });
            edits.extend(ManifestEdit::erasures_of(*id, &state.segments));
            if state.compression != Compression::None {
                edits.push(ManifestEdit::SetOptions { partition: *id, compression: state.compression });
            }
            if let Some((attempt, missing)) = &state.missing {
                let segments = missing.iter().copied().collect();
                edits.push(ManifestEdit::Missing { partition: *id, attempt: *attempt, segments });
            }
            if state.flushed > Lsn(0) {
                edits.push(ManifestEdit::Flushed { partition: *id, lsn: state.flushed });
            }
        }
        edits
    }

    fn partition(&mut self, id: PartitionId) -> Result<&mut PartitionState, String> {
        self.partitions.get_mut(&id).ok_or_else(|| format!("edit of unknown partition {id}"))
    }

    fn create(&mut self, new: &NewPartition) -> Result<(), String> {
        if self.partitions.contains_key(&new.partition) {
            return Err(format!("partition {} created twice", new.partition));
        }
        let starts: Vec<&Vec<u8>> = new.segments.iter().map(|(_, start)| start).collect();
        check_starts(&starts, &new.range)?;
        let segments = new.segments.iter().map(|(id, start_key)| SegmentDesc {
            id: *id,
            start_key: start_key.clone(),
            base: None,
            slices: Vec::new(),
            erasures: Vec::new(),
        });
        let state = PartitionState {
            keyspace: new.keyspace.clone(),
            range: new.range.clone(),
            epoch: new.epoch,
            role: new.role,
            segment_target_bytes: new.segment_target_bytes,
            block_bytes: new.block_bytes,
            segments: segments.collect(),
            replay_from: new.replay_from,
            last_lsn: new.last_lsn,
            compression: Compression::None,
            flushed: Lsn(0),
            missing: None,
        };
        self.partitions.insert(new.partition, state);
        Ok(())
    }

    fn replace(&mut self, partition: PartitionId, remove: &[SegmentId], add: &[SegmentDesc]) -> Result<(), String> {
        let state = self.partition(partition)?;
        let first = remove.first().and_then(|id| index_of(&state.segments, *id));
        let index = first.ok_or_else(|| format!("partition {partition}: replaces no segment"))?;
        let present = state.segments[index..].iter().map(|segment| segment.id).take(remove.len());
        if !present.eq(remove.iter().copied()) {
            return Err(format!("partition {partition}: replaced segments are not neighbours"));
        }
        if add.first().map(|segment| &segment.start_key) != Some(&state.segments[index].start_key) {
            return Err(format!("partition {partition}: the replacement starts elsewhere"));
        }
        let mut segments = state.segments.clone();
        // What an edit carries is what its bytes carry: erasures come by edits of their own.
        let added = add.iter().map(|segment| SegmentDesc { erasures: Vec::new(), ..segment.clone() });
        segments.splice(index..index + remove.len(), added);
        check_starts(&segments.iter().map(|segment| &segment.start_key).collect::<Vec<_>>(), &state.range)?;
        state.segments = segments;
        Ok(())
    }
}

fn index_of(segments: &[SegmentDesc], id: SegmentId) -> Option<usize> {
    segments.iter().position(|segment| segment.id == id)
}

fn check_starts(starts: &[&Vec<u8>], range: &KeyRange) -> Result<(), String> {
    let begins = starts.first().is_some_and(|start| **start == range.start);
    let rises = starts.windows(2).all(|pair| pair[0] < pair[1]);
    let ends = range.end.as_ref().is_none_or(|end| starts.last().is_some_and(|last| *last < end || starts.len() == 1));
    if begins && rises && ends { Ok(()) } else { Err("segments do not cover the partition's range in order".into()) }
}
