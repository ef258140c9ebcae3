//! The life of a get, and what every reader reads from.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::clock;
use crate::erasure::{self, Erasure};
use crate::error::{Error, Result};
use crate::heads::common_len;
use crate::memtable::{Memtable, MemtableCursor, VersionRef};
use crate::merge::{MergeIter, Retain, Source};
use crate::record::{RecordKind, RecordView};
use crate::shard::files::Table;
use crate::table::{BlockRecord, HashedKey, Lookup, Purpose};
use crate::types::Lsn;

use super::batch::Versioned;
use super::layout::{Layout, Segment};
use super::snapshots::{Moment, SnapshotPin};
use super::{Partition, Serving};

/// Block reads of one [`Partition::multi_get`] that are under way at a time: enough to fill a device's queue.
pub const READS_IN_FLIGHT: usize = 64;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Routing key.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
}

/// A version of a key, kept in memory where it lies as long as this lives.
pub(super) enum Found {
    Memtable(Rc<Memtable>, VersionRef),
    Block(BlockRecord),
}

impl Found {
    fn lsn(&self) -> Lsn {
        match self {
            Found::Memtable(table, at) => table.record(*at).lsn,
            Found::Block(record) => record.lsn(),
        }
    }

    pub fn view(&self) -> RecordView<'_> {
        match self {
            Found::Memtable(table, at) => table.record(*at),
            Found::Block(record) => record.view(),
        }
    }

    /// The value that a reader sees, now or at `now_ms`. The clock is asked only for a record that has a deadline.
    fn live_value(&self, now_ms: Option<u64>) -> Option<&[u8]> {
        let (kind, expires_at_ms, value) = match self {
            Found::Memtable(table, at) => {
                let record = table.record(*at);
                (record.kind, record.expires_at_ms, record.value)
            }
            Found::Block(record) => record.content(),
        };
        let has_expired = || expires_at_ms <= now_ms.unwrap_or_else(clock::wall_ms);
        let is_live = kind == RecordKind::Put && (expires_at_ms == 0 || !has_expired());
        is_live.then_some(value)
    }

    /// The same with version and deadline.
    fn live_versioned(&self, now_ms: Option<u64>) -> Option<Versioned> {
        self.live_value(now_ms).map(|_| Versioned::from(self.view()))
    }
}

/// Everything that a reader of one moment reads from.
pub(super) struct ReadView {
    pub layout: Rc<Layout>,
    /// Newest first.
    pub memtables: Vec<Rc<Memtable>>,
    pub pin: SnapshotPin,
}

impl Partition {
    /// The value of `key`, or `None`.
    ///
    /// Errors: [`crate::Error::KeyLength`], [`crate::Error::WrongPartition`], [`crate::Error::Moved`],
    /// [`crate::Error::NotOwner`], [`crate::Error::Corruption`], [`crate::Error::Io`].
    /// Cost: no I/O when the memtable or the block cache holds the key; else one block read a table that may hold it.
    /// One copy of the value; see [`Partition::get_with`] for none.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.get_with(key, |value| value.map(Bytes::copy_from_slice)).await
    }

    /// As [`Partition::get`] without an await; `None` when a block has to be read, or readers have to wait.
    pub(crate) fn get_now(&self, key: &[u8]) -> Option<Result<Option<Bytes>>> {
        if let Err(cause) = self.check_key(key) {
            return Some(Err(cause));
        }
        if let Err(cause) = self.read_gate()? {
            return Some(Err(cause));
        }
        let key = HashedKey::from(key);
        if let Some(row) = self.shard.rows().find(self.id, key) {
            let value = Bytes::copy_from_slice(row.value());
            self.count_row_read(row.segment(), key.bytes, value.len());
            return Some(Ok(Some(value)));
        }
        let (index, found) = self.find_latest_in_memory(key)?;
        let value = found.as_ref().and_then(|found| found.live_value(None));
        self.count_read(index, key.bytes, key.bytes.len() + value.map_or(0, <[u8]>::len));
        Some(Ok(value.map(Bytes::copy_from_slice)))
    }

    /// Hands the value of `key` to `read` where it lies, in the memtable or in a cached block, and returns what that
    /// returns. `read` gets `None` when there is no value.
    ///
    /// Errors: as [`Partition::get`].
    /// Cost: as [`Partition::get`], without a copy and without an allocation when nothing has to be read; the future is
    /// then ready at its first poll.
    pub async fn get_with<T>(&self, key: &[u8], read: impl FnOnce(Option<&[u8]>) -> T) -> Result<T> {
        self.check_key(key)?;
        self.wait_readable().await?;
        let key = HashedKey::from(key);
        if let Some(row) = self.shard.rows().find(self.id, key) {
            let result = read(Some(row.value()));
            self.count_row_read(row.segment(), key.bytes, row.value().len());
            return Ok(result);
        }
        let read = |found: Option<&Found>| {
            let value = found.and_then(|found| found.live_value(None));
            (value.map_or(0, <[u8]>::len), read(value))
        };
        self.read_hashed(key, None, read).await
    }

    /// The value of `key` with its version and deadline.
    ///
    /// Errors, cost: as [`Partition::get`].
    pub async fn get_versioned(&self, key: &[u8]) -> Result<Option<Versioned>> {
        let read = |found: Option<&Found>| {
            let versioned = found.and_then(|found| found.live_versioned(None));
            (versioned.as_ref().map_or(0, |versioned| versioned.value.len()), versioned)
        };
        self.read_with(key, None, read).await
    }

    /// The values of many keys, in their order, all of one moment.
    ///
    /// Errors: as [`Partition::get`]; the first one ends the call.
    /// Cost: as [`Partition::get`] a key; up to [`READS_IN_FLIGHT`] block reads are under way at a time.
    pub async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.wait_readable().await?;
        let pin = self.pin_latest();
        self.multi_get_at(keys, &pin.moment()).await
    }

    /// [`Partition::get`] as of a pinned moment. A deadline that passed since then does not count.
    ///
    /// Errors, cost: as [`Partition::get`].
    pub async fn get_at(&self, key: &[u8], moment: &Moment) -> Result<Option<Bytes>> {
        let read = |found: Option<&Found>| {
            let value = found.and_then(|found| found.live_value(Some(moment.wall_ms)));
            (value.map_or(0, <[u8]>::len), value.map(Bytes::copy_from_slice))
        };
        self.read_with(key, Some(moment.lsn), read).await
    }

    /// [`Partition::multi_get`] as of a pinned moment.
    ///
    /// Errors, cost: as [`Partition::multi_get`].
    pub async fn multi_get_at(&self, keys: &[Bytes], moment: &Moment) -> Result<Vec<Option<Bytes>>> {
        let reads = stream::iter(keys).map(|key| self.get_at(key, moment));
        reads.buffered(READS_IN_FLIGHT).try_collect().await
    }

    /// Pins what readers see now.
    #[must_use]
    pub fn pin_latest(&self) -> SnapshotPin {
        self.snapshots.pin(self.progress.borrow().visible(), clock::wall_ms())
    }

    /// Hands the newest version of `key` at `snapshot`, or of now, to `read` and counts the read with the bytes that it
    /// says.
    async fn read_with<T>(
        &self,
        key: &[u8],
        snapshot: Option<Lsn>,
        read: impl FnOnce(Option<&Found>) -> (usize, T),
    ) -> Result<T> {
        self.check_key(key)?;
        self.wait_readable().await?;
        self.read_hashed(key.into(), snapshot, read).await
    }

    async fn read_hashed<T>(
        &self,
        key: HashedKey<'_>,
        snapshot: Option<Lsn>,
        read: impl FnOnce(Option<&Found>) -> (usize, T),
    ) -> Result<T> {
        let in_memory = match snapshot {
            Some(snapshot) => self.find_in_memory(key, snapshot),
            None => self.find_latest_in_memory(key),
        };
        let (index, found) = match in_memory {
            Some(found) => found,
            None => {
                let snapshot = snapshot.unwrap_or_else(|| self.progress.borrow().visible());
                self.find(key, snapshot).await?
            }
        };
        let (bytes, result) = read(found.as_ref());
        self.count_read(index, key.bytes, key.bytes.len() + bytes);
        Ok(result)
    }

    /// [`Partition::find_in_memory`] of now; what is found in a table may become a hot row.
    fn find_latest_in_memory(&self, key: HashedKey<'_>) -> Option<(usize, Option<Found>)> {
        let visible = self.progress.borrow().visible();
        let (index, found) = self.find_in_memory(key, visible)?;
        if let Some(Found::Block(record)) = &found {
            self.offer_row(key, visible, index, record);
        }
        Some((index, found))
    }

    /// Keeps a row that was found at hand, if it is read again and again and `INV-ROW` holds for it.
    fn offer_row(&self, key: HashedKey<'_>, visible: Lsn, index: usize, record: &BlockRecord) {
        let (kind, expires_at_ms, value) = record.content();
        let rows = self.shard.rows();
        if kind != RecordKind::Put || expires_at_ms != 0 || !rows.wants(self.id, key, value.len()) {
            return;
        }
        // What has taken this one's place may have the key in a newer version.
        if self.retired.get() {
            return;
        }
        let layout = self.layout.borrow();
        let segment = &layout.segments[index];
        // Nothing newer may be waiting for its readers, in a table or in a memtable.
        let is_newest = segment.tables().all(|table| table.location.max_lsn <= visible)
            && segment.erasures.is_empty()
            && self.newest_in_memtables(key.bytes) == Lsn(0)
            && !self.lacks_any();
        if is_newest {
            rows.fill(self.id, key, value, index);
        }
    }

    /// The newest state of `key` at or below `base`, expired values left out. Not counted: a write asks.
    ///
    /// Errors: [`crate::Error::Corruption`], [`crate::Error::Io`].
    pub(super) async fn state_at(&self, key: &[u8], base: Lsn, now_ms: u64) -> Result<Option<Versioned>> {
        self.look_at(key, base, now_ms, |record| record.map(Versioned::from)).await
    }

    /// Hands the newest state of `key` at or below `base` to `look`, `None` if it was not live at `now_ms`. Not counted: a
    /// write asks.
    ///
    /// Errors: [`crate::Error::Corruption`], [`crate::Error::Io`].
    pub(super) async fn look_at<T>(
        &self,
        key: &[u8],
        base: Lsn,
        now_ms: u64,
        look: impl FnOnce(Option<RecordView<'_>>) -> T,
    ) -> Result<T> {
        let (_, found) = self.find(key.into(), base).await?;
        Ok(look(found.as_ref().map(Found::view).filter(|record| record.is_live(now_ms))))
    }

    /// Hands the live record of `key` as of a pinned moment to `read` where it lies, with its version and deadline.
    ///
    /// Errors, cost: as [`Partition::get_with`].
    pub async fn read_record_at<T>(
        &self,
        key: &[u8],
        moment: &Moment,
        read: impl FnOnce(Option<RecordView<'_>>) -> T,
    ) -> Result<T> {
        let read = |found: Option<&Found>| {
            let record = found.map(Found::view).filter(|record| record.is_live(moment.wall_ms));
            (record.map_or(0, |record| record.value.len()), read(record))
        };
        self.read_with(key, Some(moment.lsn), read).await
    }

    /// The newest version of `key` at or below `snapshot` (tombstones included), and its segment's index.
    async fn find(&self, key: HashedKey<'_>, snapshot: Lsn) -> Result<(usize, Option<Found>)> {
        loop {
            let layout = self.layout();
            let index = layout.locate(key.bytes);
            let segment = &layout.segments[index];
            let lacked = self.lacks(segment.id);
            let (erased, found) = self.find_in_segment(key, snapshot, segment).await?;
            if !lacked || found.is_some() || erased > Lsn(0) {
                return Ok((index, found.filter(|found| erased == Lsn(0) || found.lsn() > erased)));
            }
            self.wait_held(segment.id).await?;
        }
    }

    /// The newest version of `key` in the memtables and in `segment`, and the newest range deletion over it.
    pub(super) async fn find_in_segment(
        &self,
        key: HashedKey<'_>,
        snapshot: Lsn,
        segment: &Segment,
    ) -> Result<(Lsn, Option<Found>)> {
        let mut found = self.find_in_memtables(key, snapshot);
        let erased = self.erased_at(key.bytes, snapshot, segment);
        // A memtable record is newer than every table's, except in a shadow, which takes records out of order.
        let mut newest = found.as_ref().map_or(erased, |found| found.lsn().max(erased));
        let read_bytes = segment.expected.read_bytes(self.shard.read_ahead());
        for table in segment.tables() {
            if newest >= table.location.max_lsn {
                continue;
            }
            if let Some(candidate) = table.get(key, snapshot, read_bytes).await?.map(Found::Block)
                && candidate.lsn() > newest
            {
                newest = candidate.lsn();
                found = Some(candidate);
            }
        }
        Ok((erased, found))
    }

    /// LSN of the newest version of `key` or range deletion over it in the memtables; `Lsn(0)` if there is none.
    pub(super) fn newest_in_memtables(&self, key: &[u8]) -> Lsn {
        let latest = Lsn(u64::MAX);
        let found = self.find_in_memtables(key.into(), latest).as_ref().map_or(Lsn(0), Found::lsn);
        found.max(self.erased_in_memtables(key, latest))
    }

    /// LSN of the newest range deletion over `key` at or below `snapshot`; `Lsn(0)` if there is none.
    fn erased_at(&self, key: &[u8], snapshot: Lsn, segment: &Segment) -> Lsn {
        self.erased_in_memtables(key, snapshot).max(segment.erased_at(key, snapshot))
    }

    fn erased_in_memtables(&self, key: &[u8], snapshot: Lsn) -> Lsn {
        let newest = self.active.borrow().erasures().newest_covering(key, snapshot);
        let frozen = self.frozen.borrow();
        frozen.iter().fold(newest, |newest, table| newest.max(table.erasures().newest_covering(key, snapshot)))
    }

    /// As [`Partition::find`] without an await; `None` when a block has to be read or a segment is missing.
    fn find_in_memory(&self, key: HashedKey<'_>, snapshot: Lsn) -> Option<(usize, Option<Found>)> {
        let layout = self.layout.borrow();
        let index = layout.locate(key.bytes);
        let segment = &layout.segments[index];
        let mut found = self.find_in_memtables(key, snapshot);
        let erased = self.erased_at(key.bytes, snapshot, segment);
        let mut newest = found.as_ref().map_or(erased, |found| found.lsn().max(erased));
        for (table, is_last) in segment.tables_last_marked() {
            if newest >= table.location.max_lsn {
                continue;
            }
            match table.lookup(key, snapshot, !is_last) {
                Lookup::Absent => {}
                // Without a record above it, or another table below, its LSN need not be read.
                Lookup::Found(record) if newest == Lsn(0) && is_last => found = Some(Found::Block(record)),
                Lookup::Found(record) if record.lsn() > newest => {
                    newest = record.lsn();
                    found = Some(Found::Block(record));
                }
                Lookup::Found(_) => {}
                Lookup::OnDevice => return None,
            }
        }
        // A missing segment may have what the memtables lack.
        if found.is_none() && erased == Lsn(0) && self.lacks(segment.id) {
            return None;
        }
        Some((index, found.filter(|found| erased == Lsn(0) || found.lsn() > erased)))
    }

    fn find_in_memtables(&self, key: HashedKey<'_>, snapshot: Lsn) -> Option<Found> {
        let mut found: Option<Found> = None;
        let active = self.active.borrow();
        let frozen = self.frozen.borrow();
        for table in std::iter::once(&*active).chain(frozen.iter()) {
            let Some(at) = table.get(key, snapshot) else {
                continue;
            };
            if found.as_ref().is_none_or(|found| found.lsn() < table.record(at).lsn) {
                found = Some(Found::Memtable(Rc::clone(table), at));
            }
        }
        found
    }

    /// Waits while it is not known who owns the partition.
    ///
    /// Errors: [`crate::Error::Moved`], [`crate::Error::NotOwner`].
    pub async fn wait_readable(&self) -> Result<()> {
        self.serving_changed.wait_for(|| self.read_gate()).await
    }

    /// Whether readers may pass; `None` makes them wait.
    pub(super) fn read_gate(&self) -> Option<Result<()>> {
        match self.serving.get() {
            Serving::Owner => Some(Ok(())),
            Serving::Frozen => (clock::monotonic() < self.reads_until.get()).then_some(Ok(())),
            // Others have taken its place: whoever waits here is to look again.
            Serving::Suspended if self.retired.get() => Some(Err(Error::UnknownPartition { partition: self.id })),
            Serving::Suspended => None,
            Serving::Shadow { attempt } => Some(Err(self.not_owner(attempt))),
            Serving::Released { owner } => Some(Err(self.moved(owner))),
        }
    }

    /// Counts a read that a hot row has answered, of a value of so many bytes.
    fn count_row_read(&self, index: usize, key: &[u8], value_bytes: usize) {
        let index = self.count_read(index, key, key.len() + value_bytes);
        self.layout.borrow().segments[index].expected.count_row_read();
    }

    /// Counts a read; the layout may have changed since `index` was found. Returns which segment it is now.
    fn count_read(&self, index: usize, key: &[u8], bytes: usize) -> usize {
        self.count_fill_read();
        let layout = self.layout.borrow();
        let fits = |segment: &Rc<Segment>| {
            segment.start.as_ref() <= key && segment.end.as_ref().is_none_or(|end| key < end.as_ref())
        };
        let index = if layout.segments.get(index).is_some_and(fits) { index } else { layout.locate(key) };
        self.access.borrow_mut().record_read(index, key, bytes as u64);
        index
    }

    /// A view of what readers see now.
    pub(super) fn view_latest(&self) -> ReadView {
        let visible = self.progress.borrow().visible();
        self.view_at(visible)
    }

    /// A view of the history up to `lsn`.
    pub(super) fn view_at(&self, lsn: Lsn) -> ReadView {
        let mut memtables = vec![Rc::clone(&self.active.borrow())];
        memtables.extend(self.frozen.borrow().iter().cloned());
        ReadView { layout: self.layout(), memtables, pin: self.snapshots.pin(lsn, clock::wall_ms()) }
    }
}

impl ReadView {
    /// The part of `[start, end)` that lies in one segment, which holds `start`.
    pub(super) fn merge(
        &self,
        segment: usize,
        start: Bytes,
        end: Option<&Bytes>,
        retain: Retain,
        purpose: Purpose,
    ) -> MergeIter {
        let (lsn, segment) = (self.pin.lsn(), &self.layout.segments[segment]);
        let end = match (end, &segment.end) {
            (Some(end), Some(segment_end)) => Some(end.min(segment_end).clone()),
            (end, segment_end) => end.or(segment_end.as_ref()).cloned(),
        };
        let written = self.memtables.iter().filter(|table| !table.is_empty());
        let newest_only = retain.is_of_one_version();
        let cursor =
            |table| MemtableCursor::new(Rc::clone(table), start.clone(), end.clone(), lsn).newest_only(newest_only);
        let in_memtables = written.map(|table| Source::Memtable(cursor(table)));
        let table = |table: &Rc<Table>| Source::table(table, start.clone(), end.clone(), purpose);
        // What changed behind an LSN is not in a table that ends before it.
        let tables = segment.tables().filter(|table| table.location.max_lsn > retain.after());
        let sources = in_memtables.chain(tables.map(table)).collect();
        let erasures = self.erasures(&start, end.as_ref(), Lsn(0), lsn);
        // What both ends of a range begin with, every key between them begins with.
        let shared = end.as_ref().map_or(0, |end| common_len(&start, end));
        MergeIter::new(sources, retain).erased_by(erasures).sharing(shared)
    }

    /// The range deletions within `[start, end)` above `after` and at or below `up_to`.
    pub fn erasures(&self, start: &Bytes, end: Option<&Bytes>, after: Lsn, up_to: Lsn) -> Vec<Erasure> {
        let in_memtables = self.memtables.iter().flat_map(|table| table.erasures().within(start, end, after, up_to));
        let mut erasures: Vec<Erasure> = in_memtables.collect();
        let first = self.layout.locate(start);
        let touched = self.layout.segments[first..].iter().filter(|segment| !segment.erasures.is_empty());
        for segment in touched.take_while(|segment| end.is_none_or(|end| segment.start < *end)) {
            erasures.extend(erasure::clip_all(&segment.erasures, start, end, after, up_to));
        }
        erasures
    }
}
