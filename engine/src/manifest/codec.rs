//! The encoding of edits: columns of numbers and byte strings, so that the archive holds primitive vectors only.

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use crate::config::Compression;
use crate::erasure::Erasure;
use crate::error::{Error, Result};
use crate::types::{AttemptId, Epoch, FileId, Hlc, HostId, KeyRange, Lsn, PartitionId, SegmentId, WalSeq};

use super::edit::{ManifestEdit, NewPartition, Role, SegmentDesc, TableRef};

const KIND_CREATE: u8 = 1;
const KIND_ROLE: u8 = 2;
const KIND_DROP: u8 = 3;
const KIND_RUN: u8 = 4;
const KIND_REPLACE: u8 = 5;
const KIND_ERASE: u8 = 6;
const KIND_FLUSHED: u8 = 7;
const KIND_OPTIONS: u8 = 8;
const KIND_MISSING: u8 = 9;
const KIND_HELD: u8 = 10;
const KIND_LOGGED: u8 = 11;

/// Columns of a group of edits; the archive's root. The field order is the format.
#[derive(Archive, Serialize, Debug, Default)]
struct EditColumns {
    kinds: Vec<u8>,
    /// End of each edit's numbers.
    number_ends: Vec<u32>,
    numbers: Vec<u64>,
    /// End of each edit's byte strings, counted in strings.
    string_ends: Vec<u32>,
    /// End of each byte string.
    byte_ends: Vec<u32>,
    bytes: Vec<u8>,
}

/// Encodes a group of edits.
pub(super) fn encode(edits: &[ManifestEdit]) -> Result<AlignedVec> {
    let mut columns = EditColumns::default();
    for edit in edits {
        let mut writer = Writer { columns: &mut columns };
        let kind = writer.edit(edit);
        columns.kinds.push(kind);
        columns.number_ends.push(columns.numbers.len() as u32);
        columns.string_ends.push(columns.byte_ends.len() as u32);
    }
    rkyv::to_bytes::<rancor::Error>(&columns)
        .map_err(|cause| Error::Invalid { what: format!("manifest edits do not fit an archive: {cause}") })
}

/// Decodes a group of edits; an error says what is wrong.
pub(super) fn decode(payload: &[u8]) -> std::result::Result<Vec<ManifestEdit>, String> {
    let mut aligned = AlignedVec::<16>::with_capacity(payload.len());
    aligned.extend_from_slice(payload);
    let archived = rkyv::access::<ArchivedEditColumns, rancor::Error>(&aligned).map_err(|cause| cause.to_string())?;
    let ends = |column: &[rkyv::rend::u32_le], total: usize| -> std::result::Result<Vec<usize>, String> {
        let ends: Vec<usize> = column.iter().map(|end| end.to_native() as usize).collect();
        let fits = ends.is_sorted() && ends.last().copied().unwrap_or(0) == total;
        if fits { Ok(ends) } else { Err("column ends do not rise to the column's length".into()) }
    };
    let number_ends = ends(&archived.number_ends, archived.numbers.len())?;
    let string_ends = ends(&archived.string_ends, archived.byte_ends.len())?;
    let byte_ends = ends(&archived.byte_ends, archived.bytes.len())?;
    if number_ends.len() != archived.kinds.len() || string_ends.len() != archived.kinds.len() {
        return Err("columns of unequal length".into());
    }
    let start = |ends: &[usize], index: usize| if index == 0 { 0 } else { ends[index - 1] };
    (0..archived.kinds.len())
        .map(|index| {
            let numbers = &archived.numbers[start(&number_ends, index)..number_ends[index]];
            let strings = (start(&string_ends, index)..string_ends[index])
                .map(|string| &archived.bytes[start(&byte_ends, string)..byte_ends[string]])
                .collect::<Vec<&[u8]>>();
            let mut reader = Reader { numbers: numbers.iter(), strings: strings.into_iter() };
            let edit = reader.edit(archived.kinds[index])?;
            reader.finish()?;
            Ok(edit)
        })
        .collect()
}

struct Writer<'a> {
    columns: &'a mut EditColumns,
}

impl Writer<'_> {
    fn number(&mut self, number: u64) {
        self.columns.numbers.push(number);
    }

    fn string(&mut self, string: &[u8]) {
        self.columns.bytes.extend_from_slice(string);
        self.columns.byte_ends.push(self.columns.bytes.len() as u32);
    }

    fn table(&mut self, table: &TableRef) {
        [table.file.0, table.offset, table.len, table.max_lsn.0].into_iter().for_each(|number| self.number(number));
    }

    fn role(&mut self, role: Role) {
        let (code, detail) = match role {
            Role::Owner => (0, 0),
            Role::Shadow { attempt } => (1, attempt.0),
            Role::Released { owner } => (2, u64::from(owner.0)),
        };
        self.number(code);
        self.number(detail);
    }

    fn edit(&mut self, edit: &ManifestEdit) -> u8 {
        match edit {
            ManifestEdit::CreatePartition(new) => {
                self.number(new.partition.0);
                self.number(new.epoch.0);
                self.role(new.role);
                self.number(new.segment_target_bytes);
                self.number(u64::from(new.block_bytes));
                self.number(new.replay_from.0);
                self.number(new.last_lsn.0);
                self.number(u64::from(new.range.end.is_some()));
                self.string(new.keyspace.as_bytes());
                self.string(&new.range.start);
                self.string(new.range.end.as_deref().unwrap_or_default());
                self.number(new.segments.len() as u64);
                for (id, start) in &new.segments {
                    self.number(id.0);
                    self.string(start);
                }
                KIND_CREATE
            }
            ManifestEdit::SetRole { partition, role, epoch, last_lsn } => {
                self.number(partition.0);
                self.role(*role);
                self.number(epoch.0);
                self.number(last_lsn.0);
                KIND_ROLE
            }
            ManifestEdit::DropPartition { partition } => {
                self.number(partition.0);
                KIND_DROP
            }
            ManifestEdit::AddRun { partition, slices, replay_from, last_lsn } => {
                self.number(partition.0);
                self.number(replay_from.0);
                self.number(last_lsn.0);
                self.number(slices.len() as u64);
                for (segment, table) in slices {
                    self.number(segment.0);
                    self.table(table);
                }
                KIND_RUN
            }
            ManifestEdit::ReplaceSegments { partition, remove, add } => {
                self.number(partition.0);
                self.number(remove.len() as u64);
                remove.iter().for_each(|segment| self.number(segment.0));
                self.number(add.len() as u64);
                for segment in add {
                    self.number(segment.id.0);
                    self.string(&segment.start_key);
                    self.number(u64::from(segment.base.is_some()));
                    segment.base.iter().for_each(|table| self.table(table));
                    self.number(segment.slices.len() as u64);
                    segment.slices.iter().for_each(|table| self.table(table));
                }
                KIND_REPLACE
            }
            ManifestEdit::SetOptions { partition, compression } => {
                self.number(partition.0);
                self.number(match compression {
                    Compression::None => 0,
                    Compression::Zstd => 1,
                });
                KIND_OPTIONS
            }
            ManifestEdit::Flushed { partition, lsn } => {
                self.number(partition.0);
                self.number(lsn.0);
                KIND_FLUSHED
            }
            ManifestEdit::Logged { seq } => {
                self.number(seq.0);
                KIND_LOGGED
            }
            ManifestEdit::Missing { partition, attempt, segments } => {
                self.number(partition.0);
                self.number(attempt.0);
                self.number(segments.len() as u64);
                segments.iter().for_each(|segment| self.number(segment.0));
                KIND_MISSING
            }
            ManifestEdit::Held { partition, segment } => {
                self.number(partition.0);
                self.number(segment.0);
                KIND_HELD
            }
            ManifestEdit::AddErasures { partition, segment, erasures } => {
                self.number(partition.0);
                self.number(segment.0);
                self.number(erasures.len() as u64);
                for erasure in erasures {
                    self.number(erasure.lsn.0);
                    self.number(erasure.hlc.0);
                    self.string(&erasure.start);
                    // No key is empty: an empty end means that there is none.
                    self.string(erasure.end.as_deref().unwrap_or_default());
                }
                KIND_ERASE
            }
        }
    }
}

struct Reader<'a> {
    numbers: std::slice::Iter<'a, rkyv::rend::u64_le>,
    strings: std::vec::IntoIter<&'a [u8]>,
}

impl Reader<'_> {
    fn number(&mut self) -> std::result::Result<u64, String> {
        self.numbers.next().map(|number| number.to_native()).ok_or_else(|| "edit ends early (numbers)".into())
    }

    fn string(&mut self) -> std::result::Result<Vec<u8>, String> {
        self.strings.next().map(<[u8]>::to_vec).ok_or_else(|| "edit ends early (strings)".into())
    }

    /// A count of things that take at least one number each, so that it cannot ask for absurd memory.
    fn count(&mut self) -> std::result::Result<u64, String> {
        let count = self.number()?;
        if count > self.numbers.len() as u64 {
            return Err(format!("edit announces {count} parts, {} numbers are left", self.numbers.len()));
        }
        Ok(count)
    }

    fn table(&mut self) -> std::result::Result<TableRef, String> {
        Ok(TableRef {
            file: FileId(self.number()?),
            offset: self.number()?,
            len: self.number()?,
            max_lsn: Lsn(self.number()?),
        })
    }

    fn role(&mut self) -> std::result::Result<Role, String> {
        let (code, detail) = (self.number()?, self.number()?);
        match code {
            0 => Ok(Role::Owner),
            1 => Ok(Role::Shadow { attempt: AttemptId(detail) }),
            2 => Ok(Role::Released { owner: HostId(u32::try_from(detail).map_err(|_| "host id out of range")?) }),
            other => Err(format!("unknown role {other}")),
        }
    }

    fn edit(&mut self, kind: u8) -> std::result::Result<ManifestEdit, String> {
        if kind == KIND_LOGGED {
            return Ok(ManifestEdit::Logged { seq: WalSeq(self.number()?) });
        }
        let partition = PartitionId(self.number()?);
        match kind {
            KIND_CREATE => self.create(partition).map(ManifestEdit::CreatePartition),
            KIND_ROLE => Ok(ManifestEdit::SetRole {
                partition,
                role: self.role()?,
                epoch: Epoch(self.number()?),
                last_lsn: Lsn(self.number()?),
            }),
            KIND_DROP => Ok(ManifestEdit::DropPartition { partition }),
            KIND_RUN => {
                let (replay_from, last_lsn) = (WalSeq(self.number()?), Lsn(self.number()?));
                let slices = (0..self.count()?)
                    .map(|_| Ok((SegmentId(self.number()?), self.table()?)))
                    .collect::<std::result::Result<_, String>>()?;
                Ok(ManifestEdit::AddRun { partition, slices, replay_from, last_lsn })
            }
            KIND_REPLACE => {
                let remove = (0..self.count()?)
                    .map(|_| self.number().map(SegmentId))
                    .collect::<std::result::Result<_, String>>()?;
                let add = (0..self.count()?).map(|_| self.segment()).collect::<std::result::Result<_, String>>()?;
                Ok(ManifestEdit::ReplaceSegments { partition, remove, add })
            }
            KIND_OPTIONS => {
                let compression = match self.number()? {
                    0 => Compression::None,
                    1 => Compression::Zstd,
                    other => return Err(format!("unknown compression {other}")),
                };
                Ok(ManifestEdit::SetOptions { partition, compression })
            }
            KIND_FLUSHED => Ok(ManifestEdit::Flushed { partition, lsn: Lsn(self.number()?) }),
            KIND_MISSING => {
                let attempt = AttemptId(self.number()?);
                let segments = (0..self.count()?)
                    .map(|_| self.number().map(SegmentId))
                    .collect::<std::result::Result<_, String>>()?;
                Ok(ManifestEdit::Missing { partition, attempt, segments })
            }
            KIND_HELD => Ok(ManifestEdit::Held { partition, segment: SegmentId(self.number()?) }),
            KIND_ERASE => {
                let segment = SegmentId(self.number()?);
                let erasures =
                    (0..self.count()?).map(|_| self.erasure()).collect::<std::result::Result<_, String>>()?;
                Ok(ManifestEdit::AddErasures { partition, segment, erasures })
            }
            other => Err(format!("unknown kind of edit {other}: written by a later version")),
        }
    }

    fn erasure(&mut self) -> std::result::Result<Erasure, String> {
        let (lsn, hlc) = (Lsn(self.number()?), Hlc(self.number()?));
        let (start, end) = (self.string()?, self.string()?);
        Ok(Erasure { start: start.into(), end: (!end.is_empty()).then(|| end.into()), lsn, hlc })
    }

    fn create(&mut self, partition: PartitionId) -> std::result::Result<NewPartition, String> {
        let epoch = Epoch(self.number()?);
        let role = self.role()?;
        let segment_target_bytes = self.number()?;
        let block_bytes = u32::try_from(self.number()?).map_err(|_| "block size out of range")?;
        let (replay_from, last_lsn) = (WalSeq(self.number()?), Lsn(self.number()?));
        let has_end = self.number()? == 1;
        let keyspace = String::from_utf8(self.string()?).map_err(|_| "keyspace name is not UTF-8")?;
        let (start, end) = (self.string()?, self.string()?);
        let segments = (0..self.count()?)
            .map(|_| Ok((SegmentId(self.number()?), self.string()?)))
            .collect::<std::result::Result<_, String>>()?;
        let range = KeyRange { start, end: has_end.then_some(end) };
        Ok(NewPartition {
            partition,
            keyspace,
            range,
            epoch,
            role,
            segment_target_bytes,
            block_bytes,
            segments,
            replay_from,
            last_lsn,
        })
    }

    fn segment(&mut self) -> std::result::Result<SegmentDesc, String> {
        let (id, start_key) = (SegmentId(self.number()?), self.string()?);
        let base = if self.number()? == 1 { Some(self.table()?) } else { None };
        let slices = (0..self.count()?).map(|_| self.table()).collect::<std::result::Result<_, String>>()?;
        Ok(SegmentDesc { id, start_key, base, slices, erasures: Vec::new() })
    }

    fn finish(mut self) -> std::result::Result<(), String> {
        if self.numbers.next().is_some() || self.strings.next().is_some() {
            return Err("edit is longer than its kind".into());
        }
        Ok(())
    }
}
