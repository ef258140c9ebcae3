//! Group commit as a state machine without I/O: which entries go into which batch, where a batch goes, and what is
//! durable.

use std::collections::VecDeque;

use crate::error::Error;
use crate::io::direct::{AlignedBuf, BLOCK_BYTES};
use crate::types::WalSeq;

use super::format::{BatchBuilder, Entry, HEADER_LEN};

/// Batches in flight; recovery relies on it (`INV-FLIGHT`).
pub(super) const FLIGHT_MAX: usize = 2;
/// Largest payload at which writers have to wait until a batch has been sent; less where files are smaller than an
/// embedder may choose (see [`open_bytes_limit`]).
pub(super) const OPEN_BYTES_MAX: usize = 4 << 20;

/// The limit for files of this size: a batch has to fit one.
const fn open_bytes_limit(file_bytes: u64) -> usize {
    let share = (file_bytes / 8) as usize;
    if share < OPEN_BYTES_MAX { share } else { OPEN_BYTES_MAX }
}

/// A batch ready to be written.
#[derive(Debug)]
pub(super) struct SealedBatch {
    pub seq: WalSeq,
    /// Generation of the file it goes to.
    #[cfg(test)]
    pub generation: u64,
    pub offset: u64,
    pub bytes: AlignedBuf,
}

/// What the driver should do next.
#[derive(Debug)]
pub(super) enum Step {
    /// Write this batch.
    Write(SealedBatch),
    /// The batch does not fit the file: provide the next one, then ask again.
    NextFile,
    /// Nothing to do now.
    Wait,
}

#[derive(Debug)]
struct Flight {
    seq: WalSeq,
    written: bool,
}

/// The machine.
#[derive(Debug)]
pub(super) struct GroupCommit {
    open: BatchBuilder,
    open_seq: WalSeq,
    /// Payload at which writers have to wait until a batch has been sent.
    open_bytes_max: usize,
    file_bytes: u64,
    generation: u64,
    offset: u64,
    flights: VecDeque<Flight>,
    durable: WalSeq,
    failed: Option<Error>,
}

impl GroupCommit {
    /// Continues a log whose last durable batch is `durable`, at `offset` of file `generation`.
    /// Writers wait while the batch being collected holds `open_bytes_max` bytes.
    pub fn new(durable: WalSeq, generation: u64, offset: u64, file_bytes: u64, open_bytes_max: usize) -> GroupCommit {
        GroupCommit {
            open_bytes_max: open_bytes_max.min(open_bytes_limit(file_bytes)),
            open: BatchBuilder::new(),
            open_seq: WalSeq(durable.0 + 1),
            file_bytes,
            generation,
            offset,
            flights: VecDeque::new(),
            durable,
            failed: None,
        }
    }

    /// The batch that the next entry joins.
    pub fn collecting(&self) -> WalSeq {
        self.open_seq
    }

    /// Every batch up to this one is on the device.
    pub fn durable(&self) -> WalSeq {
        self.durable
    }

    /// The first failure; nothing is accepted or acknowledged after it.
    pub fn failure(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Whether writers may add entries without waiting.
    pub fn has_room(&self) -> bool {
        self.open.payload_len() < self.open_bytes_max
    }

    /// Bytes of entries that fit a batch for sure when [`GroupCommit::has_room`]: a batch lies in one file.
    pub fn batch_bytes_left(&self) -> usize {
        (self.file_bytes as usize).saturating_sub(HEADER_LEN + self.open_bytes_max + BLOCK_BYTES)
    }

    /// Whether everything that was added is on the device.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && self.flights.is_empty()
    }

    /// Adds an entry to the open batch.
    ///
    /// Errors: the failure that latched the log.
    pub fn push(&mut self, entry: Entry<'_>) -> Result<WalSeq, Error> {
        if let Some(cause) = &self.failed {
            return Err(cause.clone());
        }
        self.open.push(entry);
        Ok(self.open_seq)
    }

    /// Closes the open batch if it may be written now.
    pub fn next_step(&mut self) -> Step {
        if self.failed.is_some() || self.open.is_empty() || self.flights.len() == FLIGHT_MAX {
            return Step::Wait;
        }
        let len = self.open.padded_len() as u64;
        if self.offset + len > self.file_bytes {
            return Step::NextFile;
        }
        let seq = self.open_seq;
        let collected = std::mem::replace(&mut self.open, BatchBuilder::with_capacity(len as usize));
        let bytes = collected.seal(self.generation, seq);
        let batch = SealedBatch {
            seq,
            #[cfg(test)]
            generation: self.generation,
            offset: self.offset,
            bytes,
        };
        self.offset += len;
        self.open_seq = WalSeq(seq.0 + 1);
        self.flights.push_back(Flight { seq, written: false });
        Step::Write(batch)
    }

    /// The next file is ready: batches go there from now on.
    pub fn begin_file(&mut self, generation: u64) {
        assert!(generation > self.generation, "INV-APPEND: generations rise");
        self.generation = generation;
        self.offset = 0;
    }

    /// Batch `seq` is on the device. True if `durable` advanced.
    pub fn handle_written(&mut self, seq: WalSeq) -> bool {
        let before = self.durable;
        for flight in &mut self.flights {
            flight.written |= flight.seq == seq;
        }
        while self.failed.is_none() && self.flights.front().is_some_and(|flight| flight.written) {
            if let Some(flight) = self.flights.pop_front() {
                self.durable = flight.seq;
            }
        }
        self.durable > before
    }

    /// Writing failed: the log accepts and acknowledges nothing more.
    pub fn handle_failed(&mut self, cause: &Error) {
        if self.failed.is_none() {
            self.failed = Some(Error::ReadOnly { cause: cause.to_string().into() });
        }
    }
}

/// Smallest file that holds the largest batch: the open limit is passed by at most one record of the largest size.
pub(super) const fn batch_bytes_max() -> usize {
    HEADER_LEN + OPEN_BYTES_MAX + crate::limits::VALUE_LEN_MAX + crate::limits::KEY_LEN_MAX + 4096 * 2
}

const _: () = assert!(batch_bytes_max() as u64 <= crate::config::WAL_FILE_BYTES_MIN);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{RecordKind, RecordView};
    use crate::types::{AttemptId, Hlc, Lsn, PartitionId};

    fn entry(value: &[u8]) -> Entry<'_> {
        let record = RecordView { key: b"k", lsn: Lsn(1), hlc: Hlc(1), kind: RecordKind::Put, expires_at_ms: 0, value };
        Entry { partition: PartitionId(1), attempt: AttemptId(0), record }
    }

    fn write(group: &mut GroupCommit) -> SealedBatch {
        match group.next_step() {
            Step::Write(batch) => batch,
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    #[test]
    fn handle_written_out_of_order_becomes_durable_in_order() {
        let mut group = GroupCommit::new(WalSeq(10), 1, 0, 1 << 20, OPEN_BYTES_MAX);
        group.push(entry(b"a")).unwrap();
        let first = write(&mut group);
        group.push(entry(b"b")).unwrap();
        let second = write(&mut group);
        group.push(entry(b"c")).unwrap();
        assert!(matches!(group.next_step(), Step::Wait), "two are in flight");
        assert!(!group.handle_written(second.seq));
        assert_eq!(group.durable(), WalSeq(10));
        assert!(group.handle_written(first.seq));
        assert_eq!(group.durable(), WalSeq(12));
        assert_eq!(write(&mut group).seq, WalSeq(13));
    }

    #[test]
    fn handle_failed_first_batch_second_is_never_durable() {
        let mut group = GroupCommit::new(WalSeq(0), 1, 0, 1 << 20, OPEN_BYTES_MAX);
        group.push(entry(b"a")).unwrap();
        write(&mut group);
        group.push(entry(b"b")).unwrap();
        let second = write(&mut group);
        group.handle_failed(&Error::Closed);
        assert!(!group.handle_written(second.seq));
        assert!(matches!(group.push(entry(b"c")), Err(Error::ReadOnly { .. })));
        assert!(matches!(group.next_step(), Step::Wait));
    }

    proptest! {
        #[test]
        fn batches_never_overlap_and_never_pass_the_file_end(sizes in prop::collection::vec(0..9_000usize, 1..60)) {
            let mut group = GroupCommit::new(WalSeq(0), 1, 0, 16_384, OPEN_BYTES_MAX);
            let value = vec![7; 9_000];
            let mut end = (1, 0);
            for size in sizes {
                group.push(entry(&value[..size])).unwrap();
                let batch = match group.next_step() {
                    Step::NextFile => {
                        group.begin_file(end.0 + 1);
                        write(&mut group)
                    }
                    Step::Write(batch) => batch,
                    Step::Wait => unreachable!(),
                };
                let start = (batch.generation, batch.offset);
                prop_assert!(start == end || (start.0 == end.0 + 1 && start.1 == 0));
                end = (start.0, start.1 + batch.bytes.len() as u64);
                prop_assert!(end.1 <= 16_384);
                prop_assert!(group.handle_written(batch.seq));
            }
        }
    }
}
