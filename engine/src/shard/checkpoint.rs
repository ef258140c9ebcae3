//! The part of a checkpoint that one shard makes: hard links to its table files and a manifest that names them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::Result;
use crate::io::{fs, runtime};
use crate::manifest::{ManifestLog, ManifestState, PartitionState, Role};
use crate::partition::layout::Layout;
use crate::partition::{Partition, Serving};
use crate::types::{FileId, WalSeq};

use super::Shard;
use super::files::table_path;

impl Shard {
    /// Makes `dir` a shard's folder that holds every partition served here as it is now: each of one moment, batches
    /// whole. The log is not part of it: memtables are flushed first.
    ///
    /// Errors: [`crate::Error::Io`], and [`crate::Error::Invalid`] while segments are still on their way here; `dir` is then
    /// unfinished.
    /// Cost: one flush a partition, one hard link a file; nothing is copied.
    pub(crate) async fn checkpoint(self: &Rc<Shard>, dir: PathBuf) -> Result<()> {
        let (mut state, mut layouts, mut files) = (ManifestState::default(), Vec::new(), BTreeSet::new());
        for partition in self.partitions() {
            if !matches!(partition.serving(), Serving::Owner | Serving::Frozen | Serving::Suspended) {
                continue;
            }
            partition.check_whole()?;
            partition.flush_all().await?;
            // Without an await: layout and state are of one moment. The layout keeps its files until they are linked.
            let (layout, taken) = partition.capture();
            state.partitions.insert(partition.id(), taken);
            files.extend(layout.segments.iter().flat_map(|segment| segment.tables()).map(|table| table.location.file));
            layouts.push(layout);
        }
        let from = self.dir().to_path_buf();
        let linked = runtime::unblock(move || write_shard(&from, &dir, state, &files)).await;
        drop(layouts);
        linked
    }
}

fn write_shard(from: &Path, to: &Path, state: ManifestState, files: &BTreeSet<FileId>) -> Result<()> {
    fs::create_dir(to)?;
    for file in files {
        fs::hard_link(&table_path(from, *file), &table_path(to, *file))?;
    }
    // Makes the folder's names durable too.
    ManifestLog::create(to, state).map(drop)
}

impl Partition {
    /// Flushes what was written before the call.
    ///
    /// Errors: as [`Partition::flush_oldest`].
    pub(crate) async fn flush_all(&self) -> Result<()> {
        self.freeze_memtable();
        // Memtables that are closed meanwhile are not waited for: under sustained writes there is always a next one.
        for _ in 0..self.frozen_memtables() {
            self.flush_oldest().await?;
        }
        Ok(())
    }

    /// The layout, and the manifest entry of a partition that has what is in its tables and no log.
    fn capture(&self) -> (Rc<Layout>, PartitionState) {
        let layout = self.layout();
        let state = PartitionState {
            keyspace: self.keyspace.clone(),
            range: self.range.clone(),
            epoch: self.epoch(),
            role: Role::Owner,
            segment_target_bytes: self.options.segment_target_bytes,
            block_bytes: self.options.block_bytes,
            compression: self.options.compression,
            segments: layout.segments.iter().map(|segment| segment.desc()).collect(),
            replay_from: WalSeq(0),
            // Numbers given to records that are not in the checkpoint are not used again.
            last_lsn: self.assigned(),
            flushed: self.assigned(),
            missing: None,
        };
        (layout, state)
    }
}
