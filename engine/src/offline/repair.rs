//! Makes a damaged data folder open again, and says exactly what that costs.
//!
//! | damage | what is done | what is lost |
//! |---|---|---|
//! | torn end of a log | cut (an opening engine does that too) | nothing that was acknowledged as durable |
//! | hole in a log | cut there; files behind it are set aside | every record behind the hole |
//! | damaged or missing table | set aside; what can be read becomes a new table | the records of the unreadable blocks |
//! | damaged manifest, foreign version | nothing | take a checkpoint, or another host's copy |
//!
//! `INV-REPAIR`: nothing is deleted. What is taken out of service lies in the folder `quarantine`, whole, and is there
//! durably before the shard changes.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_lite::future::block_on;

use crate::clock;
use crate::error::{Error, Result};
use crate::io::{fs, lock};
use crate::manifest::{self, ManifestEdit, ManifestLog, ManifestState, TableRef};
use crate::shard::files::{parse_table_name, table_path};
use crate::table::{self, LostKeys, Salvaged, TableOptions};
use crate::types::{FileId, Lsn, PartitionId, SegmentId, WalSeq};
use crate::wal::{self, WalRest};

use super::inspect::inspect_wal;
use super::tables::{map_file, table_bytes, verify_table};

/// Folder, inside the data folder, for what is taken out of service.
const QUARANTINE: &str = "quarantine";
/// How long to wait for the last writes of a killed process.
const QUIET_TIMEOUT: Duration = Duration::from_secs(10);
/// Tables in a file begin at multiples of this.
const TABLE_ALIGN_BYTES: usize = 4096;

/// Records of one partition that a cut takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalLoss {
    /// How many.
    pub records: u64,
    /// The first LSN.
    pub first: Lsn,
    /// The last LSN.
    pub last: Lsn,
}

/// One thing that is wrong, and what [`repair`] does about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The log's end is torn: the last write before a crash.
    TornTail {
        /// The file.
        path: PathBuf,
        /// Where the log ends.
        offset: u64,
        /// Bytes that are not readable there.
        bytes: u64,
    },
    /// The log has a hole: what was acknowledged behind it is lost.
    LogCut {
        /// The file with the hole.
        path: PathBuf,
        /// Where it begins.
        offset: u64,
        /// What is wrong.
        what: String,
        /// Batches behind the hole that are whole, and go.
        batches: u64,
        /// Their records that no table holds, by partition. Those of the damaged batches are not among them: nobody can
        /// read how many there were.
        records: BTreeMap<PartitionId, WalLoss>,
        /// Later files of the log, which go as a whole.
        later: Vec<PathBuf>,
    },
    /// A table is damaged or missing.
    Table {
        /// The file.
        path: PathBuf,
        /// Where in it.
        table: TableRef,
        /// The partition.
        partition: PartitionId,
        /// The segment.
        segment: SegmentId,
        /// Whether it is the segment's base (older slices lie above it) or a slice: behind a lost record of a slice, an
        /// older version of the key may come back.
        is_base: bool,
        /// What is wrong.
        what: String,
        /// Records that can be read, and stay.
        kept: u64,
        /// Records that cannot; `None` if nobody can say how many.
        lost: Option<u64>,
        /// Which keys those may be.
        ranges: Vec<LostKeys>,
    },
    /// Nothing can be done about it here.
    Beyond {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and where help may come from.
        what: String,
    },
}

/// What [`repair`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// Whether it has been repaired, except for what is beyond repair.
    pub applied: bool,
    /// Where what was taken out of service lies, if anything was.
    pub quarantine: Option<PathBuf>,
}

/// Finds what keeps a data folder from opening or being read, and with `apply` repairs it. `progress` is told what is
/// being looked at.
///
/// # Errors
/// [`Error::Locked`] while an engine has the folder open, [`Error::Invalid`] for a folder that is none, [`Error::Io`]
/// (a repair that was interrupted can be run again).
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// # futures_lite::future::block_on(antumbra_engine::Engine::builder(dir.path()).open()?.close())?;
/// let would = antumbra_engine::offline::repair(dir.path(), false, |path| println!("{}", path.display()))?;
/// assert!(would.findings.is_empty() && !would.applied, "nothing is broken, nothing was changed");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn repair(dir: &Path, apply: bool, mut progress: impl FnMut(&Path)) -> Result<Repair> {
    let (_lock, shards) = super::lock(dir)?;
    let quarantine = dir.join(QUARANTINE);
    let mut findings = Vec::new();
    for shard in shards {
        progress(&shard);
        findings.extend(repair_shard(&shard, &quarantine, apply, &mut progress)?);
    }
    let quarantine = quarantine.is_dir().then_some(quarantine);
    Ok(Repair { findings, applied: apply, quarantine })
}

fn repair_shard(
    shard: &Path,
    quarantine: &Path,
    apply: bool,
    progress: &mut impl FnMut(&Path),
) -> Result<Vec<Finding>> {
    let state = match manifest::read_current(shard) {
        Ok(state) => state,
        Err(cause @ (Error::Corruption { .. } | Error::Version { .. })) => {
            let what = format!("{cause}; restore the shard from a checkpoint, or drop it and copy from another host");
            return Ok(vec![Finding::Beyond { path: shard.to_path_buf(), what }]);
        }
        Err(cause) => return Err(cause),
    };
    let mut findings = examine_log(shard, &state)?;
    for (saved, found) in examine_tables(shard, &state, progress)? {
        if apply {
            replace_table(shard, quarantine, &found, saved.as_deref())?;
        }
        findings.push(found);
    }
    if apply {
        for found in &findings {
            match found {
                Finding::TornTail { path, offset, .. } => cut_log(path, *offset, &[], quarantine)?,
                Finding::LogCut { path, offset, later, .. } => {
                    cut_log(path, *offset, later, quarantine)?;
                    // What was lost is known now: it is no reason to refuse the folder any more.
                    ManifestLog::open(shard)?.append(&[ManifestEdit::Logged { seq: WalSeq(0) }])?;
                }
                Finding::Table { .. } | Finding::Beyond { .. } => {}
            }
        }
    }
    Ok(findings)
}

/// What is wrong with a shard's log.
fn examine_log(shard: &Path, state: &ManifestState) -> Result<Vec<Finding>> {
    let dir = shard.join("wal");
    if !dir.is_dir() || !fs::list_dir(&dir)?.iter().any(|name| name.ends_with(".wal")) {
        return Ok(Vec::new());
    }
    match wal::check(&dir, state.known_of_log(), |_, _| {}) {
        Ok(()) => torn_tail(&dir),
        Err(Error::Corruption { path, .. }) if path == dir => Ok(vec![Finding::Beyond {
            what: format!(
                "the log's beginning is missing (batch {} on): put the missing file back, or restore a checkpoint",
                state.known_of_log().needed_from
            ),
            path,
        }]),
        Err(Error::Corruption { path, offset, what }) => Ok(vec![loss_of_cut(&dir, state, path, offset, what)?]),
        Err(cause @ Error::Version { .. }) => Ok(vec![Finding::Beyond { path: dir, what: cause.to_string() }]),
        Err(cause) => Err(cause),
    }
}

fn torn_tail(dir: &Path) -> Result<Vec<Finding>> {
    let files = inspect_wal(dir, |_, _| {})?;
    let torn = files.iter().filter_map(|file| {
        file.rest.iter().find_map(|rest| match rest {
            WalRest::Unreadable { offset, bytes, .. } => {
                Some(Finding::TornTail { path: file.path.clone(), offset: *offset, bytes: *bytes })
            }
            WalRest::Unused { .. } | WalRest::Recycled { .. } => None,
        })
    });
    Ok(torn.collect())
}

/// What goes when the log is cut at a hole.
fn loss_of_cut(dir: &Path, state: &ManifestState, path: PathBuf, offset: u64, what: String) -> Result<Finding> {
    let mut records: BTreeMap<PartitionId, WalLoss> = BTreeMap::new();
    // Batches before the hole stay; sequence numbers rise, so the first that is whole behind it tells them apart.
    let kept_up_to = inspect_wal(dir, |_, _| {})?
        .iter()
        .flat_map(|file| file.batches.iter().map(|batch| (file.path.clone(), batch.offset, batch.seq)))
        .filter(|(file, at, _)| *file < path || (*file == path && *at < offset))
        .map(|(_, _, seq)| seq)
        .max()
        .unwrap_or(WalSeq(0));
    let files = inspect_wal(dir, |_, record| {
        let flushed = state.partitions.get(&record.partition).is_none_or(|known| record.seq < known.replay_from);
        if record.seq > kept_up_to && !flushed {
            let lsn = record.record.lsn;
            let loss = records.entry(record.partition).or_insert(WalLoss { records: 0, first: lsn, last: lsn });
            loss.records += 1;
            loss.first = loss.first.min(lsn);
            loss.last = loss.last.max(lsn);
        }
    })?;
    let batches = files.iter().flat_map(|file| &file.batches).filter(|batch| batch.seq > kept_up_to).count() as u64;
    let later = files.into_iter().map(|file| file.path).filter(|file| *file > path).collect();
    Ok(Finding::LogCut { path, offset, what, batches, records, later })
}

/// Every table that cannot be read whole, with what can be saved of it.
fn examine_tables(
    shard: &Path,
    state: &ManifestState,
    progress: &mut impl FnMut(&Path),
) -> Result<Vec<(Option<Vec<u8>>, Finding)>> {
    let mut found = Vec::new();
    for (partition, known) in &state.partitions {
        let options = TableOptions { block_bytes: known.block_bytes as usize, compression: known.compression };
        for segment in &known.segments {
            let slices = segment.slices.iter().map(|table| (*table, false));
            for (table, is_base) in slices.chain(segment.base.iter().map(|table| (*table, true))) {
                let path = table_path(shard, table.file);
                progress(&path);
                if let Some((saved, what)) = examine_table(&path, table, options)? {
                    let kept = saved.table.as_ref().map_or(0, |table| table.meta.records);
                    let (partition, segment) = (*partition, segment.id);
                    let (lost, ranges) = (saved.records_lost, saved.lost);
                    let finding = Finding::Table { path, table, partition, segment, is_base, what, kept, lost, ranges };
                    found.push((saved.table.map(|table| table.bytes), finding));
                }
            }
        }
    }
    Ok(found)
}

/// `None` for a sound table.
fn examine_table(path: &Path, table: TableRef, options: TableOptions) -> Result<Option<(Salvaged, String)>> {
    let nothing = |what: &str| Salvaged {
        table: None,
        lost: vec![LostKeys { after: None, through: None, what: what.to_string() }],
        records_lost: None,
    };
    let map = match map_file(path) {
        Ok(map) => map,
        Err(Error::Io { cause, .. }) if !path.exists() || cause.kind() == std::io::ErrorKind::InvalidInput => {
            let what = format!("the file is missing or empty ({cause})");
            return Ok(Some((nothing(&what), what)));
        }
        Err(cause) => return Err(cause),
    };
    match verify_table(path, &map, table) {
        Ok(_) => Ok(None),
        Err(cause @ (Error::Corruption { .. } | Error::Version { .. })) => {
            let what = cause.to_string();
            let saved = match table_bytes(path, &map, table) {
                Ok(bytes) => block_on(table::salvage(bytes, path, options))?,
                Err(_) => nothing(&what),
            };
            Ok(Some((saved, what)))
        }
        Err(cause) => Err(cause),
    }
}

/// Puts what could be saved in the place of a damaged table, and the damaged file into quarantine.
fn replace_table(shard: &Path, quarantine: &Path, finding: &Finding, saved: Option<&[u8]>) -> Result<()> {
    let Finding::Table { path, table, partition, segment, .. } = finding else {
        return Ok(());
    };
    if path.exists() {
        set_aside(path, quarantine)?;
    }
    let mut log = ManifestLog::open(shard)?;
    let mut desc = log
        .state()
        .partitions
        .get(partition)
        .and_then(|known| known.segments.iter().find(|known| known.id == *segment))
        .cloned()
        .ok_or_else(|| Error::Invalid {
            what: format!("partition {partition} lost its segment {segment} meanwhile"),
        })?;
    let replacement = saved.map(|bytes| write_table(shard, bytes, *table)).transpose()?;
    if desc.base == Some(*table) {
        desc.base = replacement;
    } else if let Some(place) = desc.slices.iter().position(|slice| slice == table) {
        desc.slices.splice(place..=place, replacement);
    }
    // Its range deletions stay in force.
    let add = vec![desc];
    let mut edits: Vec<ManifestEdit> = ManifestEdit::erasures_of(*partition, &add).collect();
    edits.insert(0, ManifestEdit::ReplaceSegments { partition: *partition, remove: vec![*segment], add });
    log.append(&edits)
}

/// Writes a table into a new file; its largest LSN is the damaged table's, so that readers look into it as before.
fn write_table(shard: &Path, bytes: &[u8], damaged: TableRef) -> Result<TableRef> {
    let ids = fs::list_dir(shard)?.iter().filter_map(|name| parse_table_name(name)).map(|id| id.0).max();
    let file = FileId(ids.unwrap_or(0).max(damaged.file.0) + 1);
    let path = table_path(shard, file);
    let mut padded = bytes.to_vec();
    padded.resize(padded.len().next_multiple_of(TABLE_ALIGN_BYTES), 0);
    let mut out = fs::File::create(&path)?;
    out.write_all(&padded)?;
    out.sync()?;
    fs::sync_dir(shard)?;
    Ok(TableRef { file, offset: 0, len: bytes.len() as u64, max_lsn: damaged.max_lsn })
}

/// Cuts the log at `offset` of `path`; the file, as it was, and all `later` ones go into quarantine.
fn cut_log(path: &Path, offset: u64, later: &[PathBuf], quarantine: &Path) -> Result<()> {
    let deadline = clock::monotonic() + QUIET_TIMEOUT;
    for file in later {
        drop(lock::open_when_quiet(file, deadline)?);
        set_aside(file, quarantine)?;
        fs::remove_file(file)?;
    }
    drop(lock::open_when_quiet(path, deadline)?);
    let wrong = |cause| Error::io("cut", path, cause);
    let copy = place_in(path, quarantine)?;
    std::fs::copy(path, &copy).and_then(|_| std::fs::File::open(&copy)?.sync_all()).map_err(wrong)?;
    fs::sync_dir(quarantine)?;
    zero_from(path, offset).map_err(wrong)?;
    path.parent().map_or(Ok(()), fs::sync_dir)
}

fn zero_from(path: &Path, offset: u64) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(offset))?;
    let zeros = vec![0; 1 << 20];
    let mut left = len.saturating_sub(offset) as usize;
    while left > 0 {
        let chunk = left.min(zeros.len());
        file.write_all(&zeros[..chunk])?;
        left -= chunk;
    }
    file.sync_all()
}

/// Gives a file a second name in quarantine, durably.
fn set_aside(path: &Path, quarantine: &Path) -> Result<()> {
    let place = place_in(path, quarantine)?;
    std::fs::hard_link(path, &place).map_err(|cause| Error::io("set aside", path, cause))?;
    fs::sync_dir(quarantine)
}

/// A free name in quarantine: shard, file, and a number from the second time on.
fn place_in(path: &Path, quarantine: &Path) -> Result<PathBuf> {
    fs::create_dir(quarantine)?;
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let from = parts.iter().rposition(|part| part.starts_with("shard-")).unwrap_or(parts.len().saturating_sub(1));
    let name = parts[from..].join("-");
    let names = fs::list_dir(quarantine)?;
    let numbered = (1..).map(|number| if number == 1 { name.clone() } else { format!("{name}.{number}") });
    let free = numbered.take(names.len() + 1).find(|name| !names.contains(name));
    Ok(quarantine.join(free.unwrap_or(name)))
}
