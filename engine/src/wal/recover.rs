//! What a log holds after a crash.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::error::{Error, Result};
use crate::io::direct::BLOCK_BYTES;
use crate::io::{fs, lock};
use crate::types::WalSeq;

use super::files;
use super::format::{self, BatchBuilder, BatchHeader, Entry};

/// What the manifest knows of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// First batch that is still needed; 0 when no log is.
    pub needed_from: WalSeq,
    /// Last batch that was seen on the device; 0 when none was.
    pub logged: WalSeq,
}

/// Where the new incarnation begins.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Last batch on the device: the mark of the new incarnation.
    pub(super) durable: WalSeq,
    /// File of the new incarnation, and where its next batch goes.
    pub(super) generation: u64,
    pub(super) offset: u64,
    pub(super) file_bytes: u64,
    pub(super) dir: PathBuf,
    /// Older files with the sequence number of their first batch, ascending.
    pub(super) older: Vec<(u64, WalSeq)>,
}

/// Reads every batch in order and begins a new incarnation behind them.
///
/// `beyond` is the largest sequence number that the manifest names.
///
/// Errors: [`Error::Locked`] when old writes are still on their way after `timeout`; [`Error::Corruption`] with file and
/// offset for a hole, and for a log that does not hold what the manifest knows of; whatever `replay` returns.
pub(crate) fn recover(
    dir: &Path,
    file_bytes: u64,
    known: Known,
    beyond: WalSeq,
    timeout: Duration,
    mut replay: impl FnMut(WalSeq, Entry<'_>) -> Result<()>,
) -> Result<Recovered> {
    fs::create_dir(dir)?;
    let generations = files::list_generations(dir)?;
    let mut scan = Scan::default();
    let mut older = Vec::new();
    let deadline = clock::monotonic() + timeout;
    for &generation in &generations {
        let path = files::wal_path(dir, generation);
        let mut file = lock::open_when_quiet(&path, deadline)?;
        // What the dead process's last writes left in the device's cache is on the device before it counts.
        file.sync()?;
        let bytes = file.read_to_end()?;
        if let Some(first) = scan.read_file(&path, &bytes, generation, &mut replay)? {
            older.push((generation, first));
        } else {
            // Prepared and never used, or retired: nothing in it.
            fs::remove_file(&path)?;
        }
    }
    scan.check_known(dir, known)?;
    let generation = generations.last().copied().unwrap_or(0) + 1;
    // Two past the largest seen: the batch behind a torn one may be whole on the device.
    let mark = WalSeq((scan.largest.0 + 2).max(beyond.0 + 1));
    let follows = WalSeq(scan.next.map_or(0, |next| next.0 - 1));
    let offset = begin_incarnation(dir, generation, file_bytes, mark, follows)?;
    Ok(Recovered { durable: mark, generation, offset, file_bytes, dir: dir.to_path_buf(), older })
}

/// Reads every batch in order, as [`recover`] does, and changes nothing.
///
/// Errors: as [`recover`], and [`Error::Io`] when there is no log.
pub(crate) fn check(dir: &Path, known: Known, mut visit: impl FnMut(WalSeq, Entry<'_>)) -> Result<()> {
    let mut scan = Scan::default();
    for generation in files::list_generations(dir)? {
        let path = files::wal_path(dir, generation);
        let bytes = fs::File::open(&path)?.read_to_end()?;
        scan.read_file(&path, &bytes, generation, &mut |seq, entry| {
            visit(seq, entry);
            Ok(())
        })?;
    }
    scan.check_known(dir, known)
}

/// Writes the mark of a new incarnation into a new file.
fn begin_incarnation(dir: &Path, generation: u64, file_bytes: u64, mark: WalSeq, follows: WalSeq) -> Result<u64> {
    files::prepare(dir, generation, file_bytes, None)?;
    let path = files::wal_path(dir, generation);
    let batch = BatchBuilder::mark(generation, mark, follows);
    let mut file = fs::File::open_write(&path)?;
    file.write_all(batch.as_slice())?;
    file.sync()?;
    Ok(batch.len() as u64)
}

#[derive(Default)]
struct Scan {
    /// The sequence number that has to come next; `None` before the first batch.
    next: Option<WalSeq>,
    /// Where the log of the present incarnation ends, if it has been seen to end inside a file.
    torn: Option<(PathBuf, u64)>,
    first: Option<WalSeq>,
    /// Where the last file with batches ends.
    end: Option<(PathBuf, u64)>,
    /// Largest sequence number seen in a whole batch, cut ones included.
    largest: WalSeq,
}

impl Scan {
    /// Reads one file; returns the sequence number of its first batch that counts.
    fn read_file(
        &mut self,
        path: &Path,
        bytes: &[u8],
        generation: u64,
        replay: &mut impl FnMut(WalSeq, Entry<'_>) -> Result<()>,
    ) -> Result<Option<WalSeq>> {
        let mut first = None;
        let mut offset = 0;
        while let Some((header, payload)) = format::decode_batch(&bytes[offset..], generation) {
            if header.incarnation && offset == 0 {
                self.check_cut(path, header)?;
                self.torn = None;
            } else if self.next.is_some_and(|next| header.seq != next) || self.torn.is_some() {
                break;
            }
            self.largest = self.largest.max(header.seq);
            first.get_or_insert(header.seq);
            self.first.get_or_insert(header.seq);
            let entries =
                format::decode_entries(header, payload).map_err(|what| Error::corruption(path, offset as u64, what))?;
            for entry in entries {
                replay(header.seq, entry)?;
            }
            self.next = Some(WalSeq(header.seq.0 + 1));
            offset += header.padded_len();
            self.end = Some((path.to_path_buf(), offset as u64));
            if offset >= bytes.len() {
                return Ok(first);
            }
        }
        self.scan_tail(path, bytes, offset, generation)?;
        Ok(first)
    }

    /// Looks for whole batches behind the end: one may have been in flight beside the torn one, more is a hole.
    fn scan_tail(&mut self, path: &Path, bytes: &[u8], from: usize, generation: u64) -> Result<()> {
        for offset in (from..bytes.len()).step_by(BLOCK_BYTES) {
            let Some((header, _)) = format::decode_batch(&bytes[offset..], generation) else {
                if let Some(found) = format::foreign_version(&bytes[offset..], generation) {
                    let (path, known) = (path.to_path_buf(), format::version());
                    return Err(Error::Version { path, what: "write-ahead log", found, known });
                }
                continue;
            };
            self.largest = self.largest.max(header.seq);
            let Some(next) = self.next else {
                // The log's beginning was recycled: a batch in the middle cannot be its first.
                return Err(Error::corruption(path, offset as u64, "the file's first batch is damaged"));
            };
            if header.seq > WalSeq(next.0 + 1) {
                let what = format!("batch {next} is damaged, but batch {} behind it is whole", header.seq);
                let (path, offset) = self.torn.clone().unwrap_or((path.to_path_buf(), from as u64));
                return Err(Error::corruption(path, offset, what));
            }
            if header.seq > next || offset > from {
                // The one behind a torn one: the log ends before both.
                self.torn.get_or_insert((path.to_path_buf(), from as u64));
            }
        }
        Ok(())
    }

    /// The log begins where the manifest needs it, and ends no earlier than the manifest has seen it end.
    fn check_known(&self, dir: &Path, known: Known) -> Result<()> {
        let Known { needed_from, logged } = known;
        let missing = match self.first {
            // A checkpoint comes without a log, and needs none.
            _ if needed_from == WalSeq(0) => None,
            Some(first) if first <= needed_from => None,
            Some(first) => Some(format!("the log begins at batch {first}, the manifest needs batch {needed_from}")),
            None => Some(format!("the log is empty, the manifest needs batch {needed_from}")),
        };
        if let Some(what) = missing {
            return Err(Error::corruption(dir, 0, what));
        }
        let next = self.next.unwrap_or_default();
        if logged == WalSeq(0) || next > logged {
            return Ok(());
        }
        let (path, offset) = self.torn.clone().or_else(|| self.end.clone()).unwrap_or((dir.to_path_buf(), 0));
        let what = format!("batch {next} is damaged or missing, but batch {logged} was on the device");
        Err(Error::corruption(path, offset, what))
    }

    /// A new incarnation begins where its recovery saw the log end, and left room for what may have been in flight.
    fn check_cut(&self, path: &Path, mark: BatchHeader) -> Result<()> {
        let Some(next) = self.next else {
            return Ok(());
        };
        let last = WalSeq(next.0 - 1);
        match mark.follows {
            Some(follows) if follows > last => {
                let (path, offset) = self.torn.clone().or_else(|| self.end.clone()).unwrap_or((path.to_path_buf(), 0));
                let what = format!("batch {next} is damaged, but batches up to {follows} were replayed once");
                Err(Error::corruption(path, offset, what))
            }
            Some(follows) if follows < last => {
                let what = format!("the incarnation begins behind batch {follows}, but batch {last} is whole");
                Err(Error::corruption(path, 0, what))
            }
            _ if mark.seq < next => {
                let what = format!("the incarnation begins at batch {}, {next} was due", mark.seq);
                Err(Error::corruption(path, 0, what))
            }
            _ => Ok(()),
        }
    }
}

/// What the fuzzer does with bytes: they are changes to a log of three files, which then replays a beginning of what was
/// written, or reports corruption.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn fuzz(data: &[u8]) {
    const FILE_BYTES: u64 = 64 << 10;
    const BATCHES: u64 = 12;
    let machine = crate::io::sim::Machine::new(1, None);
    let _entered = machine.enter();
    let dir = Path::new("/log");
    let written = (|| -> Result<()> {
        fs::create_dir(dir)?;
        for generation in 1..=3 {
            let mut bytes = vec![0; FILE_BYTES as usize];
            for (place, seq) in ((generation - 1) * BATCHES / 3 + 1..=generation * BATCHES / 3).enumerate() {
                let batch = fuzz_batch(generation, seq);
                let at = place * 2 * BLOCK_BYTES;
                bytes[at..at + batch.len()].copy_from_slice(batch.as_slice());
            }
            // Six bytes are one change: where, how often, what.
            for change in data.chunks_exact(6).filter(|change| u64::from(change[0] % 3) + 1 == generation) {
                let at = u16::from_le_bytes([change[1], change[2]]) as usize;
                let len = change[3] as usize + 1;
                let end = (at + len).min(bytes.len());
                bytes[at..end]
                    .iter_mut()
                    .for_each(|byte| *byte = if change[5] & 1 == 0 { *byte ^ change[4] } else { change[4] });
            }
            let mut file = fs::File::create(&files::wal_path(dir, generation))?;
            file.write_all(&bytes)?;
            file.sync()?;
        }
        fs::sync_dir(dir)
    })();
    assert!(written.is_ok(), "a good disk");
    let mut replayed = Vec::new();
    let known = Known { needed_from: WalSeq(1), logged: WalSeq(0) };
    let recovered = recover(dir, FILE_BYTES, known, WalSeq(0), Duration::ZERO, |seq, entry| {
        assert_eq!(seq.0, entry.record.lsn.0, "an entry belongs to its batch");
        replayed.push(seq.0);
        Ok(())
    });
    match recovered {
        Ok(recovered) => {
            assert!(replayed.iter().copied().eq(1..=replayed.len() as u64), "{replayed:?} has a gap");
            assert!(recovered.durable.0 > replayed.len() as u64, "the mark lies behind what was replayed");
        }
        Err(Error::Corruption { .. }) => {}
        Err(cause) => panic!("a damaged log gives {cause}"),
    }
}

/// A batch of two blocks with one entry.
#[cfg(any(test, feature = "sim"))]
fn fuzz_batch(generation: u64, seq: u64) -> crate::io::direct::AlignedBuf {
    use crate::record::{RecordKind, RecordView};
    use crate::types::{AttemptId, Hlc, Lsn, PartitionId};
    let value = [seq as u8; 5_000];
    let record = RecordView {
        key: b"key",
        lsn: Lsn(seq),
        hlc: Hlc(seq),
        kind: RecordKind::Put,
        expires_at_ms: 0,
        value: &value,
    };
    let mut builder = BatchBuilder::new();
    builder.push(Entry { partition: PartitionId(1), attempt: AttemptId(0), record });
    builder.seal(generation, WalSeq(seq))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{RecordKind, RecordView};
    use crate::types::{AttemptId, Hlc, Lsn, PartitionId};

    const FILE_BYTES: u64 = 64 << 10;

    fn batch(generation: u64, seq: u64, value: &[u8]) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        let record =
            RecordView { key: b"key", lsn: Lsn(seq), hlc: Hlc(seq), kind: RecordKind::Put, expires_at_ms: 0, value };
        builder.push(Entry { partition: PartitionId(1), attempt: AttemptId(0), record });
        builder.seal(generation, WalSeq(seq)).as_slice().to_vec()
    }

    fn run(dir: &Path) -> Result<(Vec<u64>, Recovered)> {
        let mut seen = Vec::new();
        let recovered = recover(dir, FILE_BYTES, Known::default(), WalSeq(0), Duration::ZERO, |seq, entry| {
            assert_eq!(entry.record.lsn.0, seq.0);
            seen.push(seq.0);
            Ok(())
        })?;
        Ok((seen, recovered))
    }

    /// A log whose first incarnation wrote `count` batches; returns the file's path, its generation and where each begins.
    fn log(dir: &Path, count: u64) -> (PathBuf, u64, Vec<(u64, usize)>) {
        let (_, recovered) = run(dir).unwrap();
        let path = files::wal_path(dir, recovered.generation);
        let mut bytes = std::fs::read(&path).unwrap();
        let mut at = recovered.offset as usize;
        let mut places = Vec::new();
        for index in 0..count {
            let seq = recovered.durable.0 + 1 + index;
            let batch = batch(recovered.generation, seq, &vec![1; (index as usize * 997) % 5_000]);
            bytes[at..at + batch.len()].copy_from_slice(&batch);
            places.push((seq, at));
            at += batch.len();
        }
        std::fs::write(&path, bytes).unwrap();
        (path, recovered.generation, places)
    }

    fn damage(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at + 70] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn recover_whole_log_replays_all_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let (_, _, places) = log(dir.path(), 6);
        let all: Vec<u64> = places.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(run(dir.path()).unwrap().0, all);
        assert_eq!(run(dir.path()).unwrap().0, all, "a second crash right after the start changes nothing");
    }

    #[test]
    fn recover_last_batch_torn_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, places) = log(dir.path(), 5);
        damage(&path, places[4].1);
        assert_eq!(run(dir.path()).unwrap().0.len(), 4);
    }

    #[test]
    fn recover_batch_behind_torn_one_is_cut_and_stays_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, places) = log(dir.path(), 5);
        damage(&path, places[3].1);
        let (seen, recovered) = run(dir.path()).unwrap();
        assert_eq!(seen.len(), 3);
        assert!(recovered.durable.0 > places[4].0, "its number is not used again");
        assert_eq!(run(dir.path()).unwrap().0.len(), 3);
    }

    #[test]
    fn recover_hole_names_file_and_offset() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, places) = log(dir.path(), 6);
        damage(&path, places[2].1);
        match run(dir.path()) {
            Err(Error::Corruption { path: found, offset, .. }) => {
                assert_eq!((found, offset), (path, places[2].1 as u64));
            }
            other => panic!("expected corruption, got {other:?}"),
        }
    }

    #[test]
    fn recover_recycled_file_ignores_older_generation() {
        let dir = tempfile::tempdir().unwrap();
        let (path, generation, places) = log(dir.path(), 4);
        std::fs::rename(&path, files::wal_path(dir.path(), generation + 1)).unwrap();
        let (seen, _) = run(dir.path()).unwrap();
        assert!(seen.is_empty(), "{places:?} carry another generation");
    }

    #[test]
    fn recover_log_begins_behind_what_the_manifest_needs_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), 2);
        let known = Known { needed_from: WalSeq(1), logged: WalSeq(0) };
        let result = recover(dir.path(), FILE_BYTES, known, WalSeq(1), Duration::ZERO, |_, _| Ok(()));
        assert!(matches!(result, Err(Error::Corruption { .. })));
    }

    #[test]
    fn recover_log_ends_before_what_the_manifest_has_seen_is_refused_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, places) = log(dir.path(), 4);
        let (last, at) = places[places.len() - 1];
        damage(&path, at);
        let recover_seen = |logged| {
            let known = Known { needed_from: WalSeq(places[0].0), logged };
            recover(dir.path(), FILE_BYTES, known, WalSeq(1), Duration::ZERO, |_, _| Ok(()))
        };
        match recover_seen(WalSeq(last)) {
            Err(Error::Corruption { path: found, offset, .. }) => {
                assert_eq!((found, offset), (path, at as u64));
            }
            other => panic!("{other:?}"),
        }
        recover_seen(WalSeq(last - 1)).unwrap();
    }

    #[test]
    fn recover_last_batch_of_an_earlier_incarnation_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, places) = log(dir.path(), 4);
        let (seen, _) = run(dir.path()).unwrap();
        assert_eq!(seen.len(), 4);
        run(dir.path()).unwrap();
        damage(&path, places[3].1);
        match run(dir.path()) {
            Err(Error::Corruption { path: found, offset, .. }) => {
                assert_eq!((found, offset), (path, places[3].1 as u64));
            }
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn recover_file_cut_anywhere_replays_a_prefix(count in 1..8u64, cut in any::<prop::sample::Index>()) {
            let dir = tempfile::tempdir().unwrap();
            let (path, _, places) = log(dir.path(), count);
            let mut bytes = std::fs::read(&path).unwrap();
            let cut = cut.index(bytes.len());
            bytes[cut..].fill(0);
            std::fs::write(&path, bytes).unwrap();
            let (seen, _) = run(dir.path()).unwrap();
            let all: Vec<u64> = places.iter().map(|(seq, _)| *seq).collect();
            prop_assert!(all.starts_with(&seen));
            let whole = places.windows(2).filter(|pair| pair[1].1 <= cut).count();
            prop_assert!(seen.len() >= whole);
        }
    }
}
