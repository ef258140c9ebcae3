//! The manifest on disk. Blocking I/O: callers run it off the shard's core.
//!
//! `INV-MANIFEST`: after a failed write the log is latched; nothing is appended to a file whose end is unknown.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::fs::{self, File};

use super::codec;
use super::edit::ManifestEdit;
use super::state::ManifestState;

const HEADER_LEN: usize = 16;
const VERSION: u8 = 1;
pub(super) const CURRENT: &str = "CURRENT";
/// A new snapshot is written when the edits behind the last one take more than this, and more than the snapshot.
const LOG_BYTES_MIN: u64 = 256 << 10;

/// The open manifest of a shard.
#[derive(Debug)]
pub struct ManifestLog {
    dir: PathBuf,
    number: u64,
    file: File,
    groups: u64,
    snapshot_bytes: u64,
    log_bytes: u64,
    state: ManifestState,
    failed: Option<Error>,
}

impl ManifestLog {
    /// Opens the manifest in `dir`, or creates an empty one. A torn last group is cut off.
    ///
    /// # Errors
    /// [`Error::Corruption`] for a broken group that is not the last, [`Error::Io`].
    pub fn open(dir: &Path) -> Result<ManifestLog> {
        let current = dir.join(CURRENT);
        let (number, state) = match fs::read_if_present(&current)? {
            Some(bytes) => {
                let file = String::from_utf8_lossy(&bytes);
                let number = parse_name(file.trim())
                    .ok_or_else(|| Error::corruption(&current, 0, format!("{file:?} is no manifest's name")))?;
                (number, read_manifest(&dir.join(name(number)))?)
            }
            None => (0, ManifestState::default()),
        };
        // A fresh file after each start: nothing is appended behind a cut.
        let log = ManifestLog::install(dir, number + 1, state)?;
        log.remove_others()?;
        Ok(log)
    }

    /// Writes a manifest into a folder that has none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(dir: &Path, state: ManifestState) -> Result<ManifestLog> {
        ManifestLog::install(dir, 1, state)
    }

    /// The state as of the last successful append.
    #[must_use]
    pub fn state(&self) -> &ManifestState {
        &self.state
    }

    /// Makes the edits durable together: one write and one fdatasync.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an edit does not fit the state (nothing is written); [`Error::Io`] latches the log.
    pub fn append(&mut self, edits: &[ManifestEdit]) -> Result<()> {
        if let Some(cause) = &self.failed {
            return Err(cause.clone());
        }
        let mut state = self.state.clone();
        for edit in edits {
            state.apply(edit).map_err(|what| Error::Invalid { what: format!("manifest edit: {what}") })?;
        }
        let result = self.write(edits);
        match result {
            Ok(()) => self.state = state,
            Err(cause) => {
                self.failed = Some(cause.clone());
                return Err(cause);
            }
        }
        if self.log_bytes > LOG_BYTES_MIN.max(self.snapshot_bytes) {
            self.renew().inspect_err(|cause| self.failed = Some(cause.clone()))?;
        }
        Ok(())
    }

    /// Goes on in a new file that begins with a snapshot. A failure leaves open which file is in force, so nothing may
    /// be appended to either.
    fn renew(&mut self) -> Result<()> {
        let next = ManifestLog::install(&self.dir, self.number + 1, self.state.clone())?;
        *self = next;
        self.remove_others()
    }

    fn write(&mut self, edits: &[ManifestEdit]) -> Result<()> {
        let group = encode_group(self.groups, edits)?;
        self.file.write_all(&group)?;
        self.file.sync_data()?;
        self.groups += 1;
        self.log_bytes += group.len() as u64;
        Ok(())
    }

    /// Writes `state` as a new manifest file and makes it the one in force.
    fn install(dir: &Path, number: u64, state: ManifestState) -> Result<ManifestLog> {
        let path = dir.join(name(number));
        let group = encode_group(0, &state.snapshot())?;
        let mut file = File::create(&path)?;
        file.write_all(&group)?;
        file.sync()?;
        fs::sync_dir(dir)?;
        fs::write_file_atomic(&dir.join(CURRENT), name(number).as_bytes())?;
        Ok(ManifestLog {
            dir: dir.to_path_buf(),
            number,
            file,
            groups: 1,
            snapshot_bytes: group.len() as u64,
            log_bytes: 0,
            state,
            failed: None,
        })
    }

    /// Removes manifest files that are not in force (left by a crash, or superseded).
    fn remove_others(&self) -> Result<()> {
        for found in fs::list_dir(&self.dir)? {
            if parse_name(&found).is_some_and(|number| number != self.number) {
                fs::remove_file(&self.dir.join(found))?;
            }
        }
        Ok(())
    }
}

/// The state of the manifest in force in `dir`, without opening it.
///
/// # Errors
/// As [`ManifestLog::open`], and [`Error::Io`] when there is none.
pub fn read_current(dir: &Path) -> Result<ManifestState> {
    let current = dir.join(CURRENT);
    let name = File::open(&current)?.read_to_end()?;
    read_manifest(&dir.join(String::from_utf8_lossy(&name).trim()))
}

fn name(number: u64) -> String {
    format!("MANIFEST-{number:06}")
}

pub(super) fn parse_name(name: &str) -> Option<u64> {
    name.strip_prefix("MANIFEST-")?.parse().ok()
}

fn encode_group(group: u64, edits: &[ManifestEdit]) -> Result<Vec<u8>> {
    let payload = codec::encode(edits)?;
    let mut identity = group.to_le_bytes();
    assert_eq!(identity[7], 0, "INV-MANIFEST: fewer than 2^56 groups");
    identity[7] = VERSION;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&identity), &payload);
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&identity);
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Reads every whole group of a manifest file.
pub(super) fn read_manifest(path: &Path) -> Result<ManifestState> {
    let bytes = File::open(path)?.read_to_end()?;
    let mut state = ManifestState::default();
    let (mut offset, mut group) = (0, 0);
    while offset < bytes.len() {
        match decode_group(&bytes[offset..], group) {
            Ok((edits, len)) => {
                for edit in &edits {
                    state.apply(edit).map_err(|what| Error::corruption(path, offset as u64, what))?;
                }
                offset += len;
                group += 1;
            }
            Err(_) if foreign_version(&bytes[offset..]).is_some() => {
                let found = foreign_version(&bytes[offset..]).unwrap_or_default();
                return Err(Error::Version { path: path.to_path_buf(), what: "manifest", found, known: VERSION });
            }
            // The snapshot was complete before the file came into force, so its loss is never a torn append.
            Err(what) if group == 0 || has_group_behind(&bytes[offset..], group) => {
                return Err(Error::corruption(path, offset as u64, what));
            }
            Err(what) => {
                tracing::warn!(path = %path.display(), offset, what, "cut a torn group off the manifest");
                break;
            }
        }
    }
    Ok(state)
}

pub(super) fn decode_group(bytes: &[u8], group: u64) -> std::result::Result<(Vec<ManifestEdit>, usize), String> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err("group header cut short".into());
    };
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let Some(payload) = rest.get(..field(0) as usize) else {
        return Err(format!("group of {} bytes cut short", field(0)));
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[8..]), payload);
    if crc != field(4) {
        return Err(format!("group checksum {crc:08x}, header says {:08x}", field(4)));
    }
    if header[15] != VERSION {
        return Err(format!("manifest version {}, this build knows {VERSION}", header[15]));
    }
    if header[8..15] != group.to_le_bytes()[..7] {
        return Err(format!("not group {group}: groups repeated or out of order"));
    }
    Ok((codec::decode(payload)?, HEADER_LEN + payload.len()))
}

/// The version of a whole group that another build wrote: neither torn nor damaged, so it is never cut.
fn foreign_version(bytes: &[u8]) -> Option<u8> {
    let (header, rest) = bytes.split_at_checked(HEADER_LEN)?;
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let payload = rest.get(..field(0) as usize)?;
    let whole = crc32c::crc32c_append(crc32c::crc32c(&header[8..]), payload) == field(4);
    (whole && header[15] != VERSION).then_some(header[15])
}

/// Whether a later group stands whole behind a broken one: then it was no torn append.
fn has_group_behind(bytes: &[u8], group: u64) -> bool {
    (1..bytes.len().saturating_sub(HEADER_LEN)).any(|at| {
        let later = u64::from_le_bytes(std::array::from_fn(|index| if index < 7 { bytes[at + 8 + index] } else { 0 }));
        bytes[at + 15] == VERSION
            && later > group
            && later <= group + bytes.len() as u64
            && decode_group(&bytes[at..], later).is_ok()
    })
}

/// What the fuzzer does with bytes: as a group, and as the edits of one whose checksum is right.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = decode_group(data, 0);
    let _ = has_group_behind(data, 0);
    let Ok(edits) = codec::decode(data) else {
        return;
    };
    let mut state = ManifestState::default();
    let fitted = edits.iter().all(|edit| state.apply(edit).is_ok());
    let again = codec::encode(&edits).ok().and_then(|bytes| codec::decode(&bytes).ok());
    assert_eq!(again.as_ref(), Some(&edits), "what was decoded survives another round");
    if fitted {
        let mut rebuilt = ManifestState::default();
        let applied = state.snapshot().iter().all(|edit| rebuilt.apply(edit).is_ok());
        assert!(applied && rebuilt == state, "a snapshot rebuilds the state");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Compression;
    use crate::erasure::Erasure;
    use crate::manifest::{NewPartition, Role, SegmentDesc, TableRef};
    use crate::types::{AttemptId, Epoch, FileId, Hlc, HostId, KeyRange, Lsn, PartitionId, SegmentId, WalSeq};

    fn create(partition: u64) -> ManifestEdit {
        ManifestEdit::CreatePartition(NewPartition {
            partition: PartitionId(partition),
            keyspace: "default".into(),
            range: KeyRange { start: vec![1], end: Some(vec![200]) },
            epoch: Epoch(1),
            role: Role::Owner,
            segment_target_bytes: 4096,
            block_bytes: 512,
            segments: vec![(SegmentId(1), vec![1])],
            replay_from: WalSeq(3),
            last_lsn: Lsn(0),
        })
    }

    fn table(file: u64) -> TableRef {
        TableRef { file: FileId(file), offset: 4096, len: 777, max_lsn: Lsn(file) }
    }

    /// A history in which each group fits the state before it.
    fn history(steps: &[u8]) -> Vec<Vec<ManifestEdit>> {
        let (mut next_segment, mut splits) = (2, 0);
        let mut groups = vec![vec![create(1), create(2)]];
        for (step, kind) in steps.iter().enumerate() {
            let (step, partition) = (step as u64 + 1, PartitionId(1));
            let first = SegmentId(if splits == 0 { 1 } else { next_segment - 2 });
            groups.push(match kind % 9 {
                5 => vec![ManifestEdit::SetOptions { partition, compression: Compression::Zstd }],
                6 => vec![ManifestEdit::Missing { partition, attempt: AttemptId(step), segments: vec![first] }],
                7 => vec![ManifestEdit::Held { partition, segment: first }],
                8 => vec![ManifestEdit::Logged { seq: WalSeq(step) }],
                3 => vec![ManifestEdit::Flushed { partition, lsn: Lsn(step) }],
                4 => vec![ManifestEdit::AddErasures {
                    partition,
                    segment: first,
                    erasures: vec![
                        Erasure { start: vec![2].into(), end: Some(vec![3].into()), lsn: Lsn(step), hlc: Hlc(9) },
                        Erasure { start: vec![].into(), end: None, lsn: Lsn(step), hlc: Hlc(step) },
                    ],
                }],
                0 => vec![ManifestEdit::AddRun {
                    partition,
                    slices: vec![(first, table(step))],
                    replay_from: WalSeq(step),
                    last_lsn: Lsn(step),
                }],
                1 => {
                    let piece = |id, start: u8| SegmentDesc {
                        id: SegmentId(id),
                        start_key: vec![start],
                        base: Some(table(step)),
                        slices: vec![],
                        erasures: vec![],
                    };
                    let start = 1;
                    splits += 1;
                    next_segment += 2;
                    if splits > 90 {
                        continue;
                    }
                    vec![ManifestEdit::ReplaceSegments {
                        partition,
                        remove: vec![first],
                        add: vec![piece(next_segment - 2, start), piece(next_segment - 1, 100 - splits as u8)],
                    }]
                }
                _ => vec![ManifestEdit::SetRole {
                    partition: PartitionId(2),
                    role: if step % 2 == 0 {
                        Role::Shadow { attempt: AttemptId(step) }
                    } else {
                        Role::Released { owner: HostId(4) }
                    },
                    epoch: Epoch(step + 1),
                    last_lsn: Lsn(0),
                }],
            });
        }
        groups
    }

    /// An input of the fuzzer that is accepted.
    pub(crate) fn fuzz_seed() -> Vec<u8> {
        let edits: Vec<ManifestEdit> = history(&[0, 1, 2, 0]).concat();
        codec::encode(&edits).unwrap().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn open_after_any_truncation_has_the_whole_groups(steps in prop::collection::vec(any::<u8>(), 1..12)) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = ManifestLog::open(dir.path()).unwrap();
            let path = dir.path().join(name(log.number));
            let mut states = vec![(std::fs::metadata(&path).unwrap().len(), log.state().clone())];
            for group in history(&steps) {
                log.append(&group).unwrap();
                states.push((std::fs::metadata(&path).unwrap().len(), log.state().clone()));
            }
            drop(log);
            let bytes = std::fs::read(&path).unwrap();
            let snapshot_len = states[0].0 as usize;
            for len in (snapshot_len..=bytes.len()).step_by(7).chain([bytes.len()]) {
                std::fs::write(&path, &bytes[..len]).unwrap();
                let expected = states.iter().rev().find(|(end, _)| *end <= len as u64).unwrap();
                prop_assert_eq!(&read_manifest(&path).unwrap(), &expected.1);
            }
            std::fs::write(&path, &bytes).unwrap();
            let reopened = ManifestLog::open(dir.path()).unwrap();
            prop_assert_eq!(reopened.state(), &states.last().unwrap().1);
        }

        #[test]
        fn read_bit_flip_in_the_middle_is_corruption(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = ManifestLog::open(dir.path()).unwrap();
            let path = dir.path().join(name(log.number));
            log.append(&[create(1)]).unwrap();
            let last_group_at = std::fs::metadata(&path).unwrap().len() as usize;
            log.append(&[create(2)]).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at.index(last_group_at)] ^= 1 << bit;
            std::fs::write(&path, &bytes).unwrap();
            let refused = matches!(read_manifest(&path), Err(Error::Corruption { .. }));
            prop_assert!(refused);
        }

        #[test]
        fn decode_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = codec::decode(&bytes);
            let _ = decode_group(&bytes, 0);
        }
    }

    #[test]
    fn append_edit_that_does_not_fit_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = ManifestLog::open(dir.path()).unwrap();
        let refused = log.append(&[create(1), create(1)]);
        assert!(matches!(refused, Err(Error::Invalid { .. })));
        assert!(log.state().partitions.is_empty());
        log.append(&[create(1)]).unwrap();
    }

    #[test]
    fn append_log_outgrows_snapshot_is_rewritten_and_old_file_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = ManifestLog::open(dir.path()).unwrap();
        let first = log.number;
        log.append(&[create(1)]).unwrap();
        let role = |epoch| ManifestEdit::SetRole {
            partition: PartitionId(1),
            role: Role::Owner,
            epoch: Epoch(epoch),
            last_lsn: Lsn(0),
        };
        let many: Vec<ManifestEdit> = (1..20_000).map(role).collect();
        log.append(&many).unwrap();
        assert!(log.number > first);
        assert!(!dir.path().join(name(first)).exists());
        let state = log.state().clone();
        drop(log);
        assert_eq!(ManifestLog::open(dir.path()).unwrap().state(), &state);
    }

    #[test]
    fn open_crash_before_current_was_renamed_keeps_the_old_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = ManifestLog::open(dir.path()).unwrap();
        log.append(&[create(1)]).unwrap();
        let (number, state) = (log.number, log.state().clone());
        drop(log);
        // The next file was written, CURRENT.tmp too, and the power went before the rename.
        std::fs::write(dir.path().join(name(number + 1)), b"half a snapsh").unwrap();
        std::fs::write(dir.path().join("CURRENT.tmp"), name(number + 1)).unwrap();
        assert_eq!(ManifestLog::open(dir.path()).unwrap().state(), &state);
    }
}
