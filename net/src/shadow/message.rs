//! The messages of the control and mirror streams as frames.

use antumbra_engine::chain::Seal;
use antumbra_engine::partition::{Base, MirrorItem, RangeDigest};
use antumbra_engine::table::{decode_records, encode_records};
use antumbra_engine::types::{Epoch, Hlc, Lsn, SegmentId, ValidationToken};

use crate::error::{Error, Result};
use crate::transport::{RecvStream, SendStream, read_exact_limited};

use super::frame::{self, Columns, FrameContext, HEADER_LEN, PAYLOAD_MAX, join, split};
use super::plan::PlanEntry;

/// What the source says of the partition when it opens a shadow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Keyspace.
    pub keyspace: String,
    /// First and last slot.
    pub slots: (u16, u16),
    /// See `PartitionOptions`.
    pub segment_target_bytes: u64,
    /// See `PartitionOptions`.
    pub block_bytes: u32,
    /// The mirror begins after this LSN.
    pub from: Lsn,
    /// The state that the target's host has left from before, if the record says so.
    pub base: Option<Base>,
    /// Segments and their first keys.
    pub segments: Vec<(SegmentId, Vec<u8>)>,
}

/// What of a base a target has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Based {
    /// Segments that lie there.
    pub segments: u64,
    /// Why there are none, if the source has named a base.
    pub why_none: String,
}

/// What a shadow has when its source is back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The last LSN that the mirror has brought.
    pub last: Lsn,
    /// The segments it holds.
    pub held: Vec<SegmentId>,
}

/// The source's state when its writes stand still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealing {
    /// Last LSN and chains.
    pub seal: Seal,
    /// Largest timestamp given out.
    pub clock: Hlc,
    /// When writes stopped, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// Whether the target may lack segments.
    pub early: bool,
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Source: create the shadow.
    Open(Opening),
    /// Target: created.
    Opened(Based),
    /// Source, first on a new control stream: the link was lost, the attempt goes on.
    Resume,
    /// Target: it does.
    Resumed(Resumed),
    /// Either: the attempt has failed here.
    Failed(String),
    /// Source: segments not yet sent, best first.
    Plan(Vec<PlanEntry>),
    /// Target: send this segment in this version.
    Request(ValidationToken),
    /// Target: the same, and the segment's live records at the base have this digest there.
    RequestOnBase(ValidationToken, u128),
    /// Source: it has changed; this is its version.
    Stale(ValidationToken),
    /// Target: installed.
    Held(SegmentId),
    /// Target: everything up to this LSN is durable here.
    MirrorAck(Lsn),
    /// Source: writes stand still, this is the end.
    Seal(Sealing),
    /// Target: equal, and durable.
    SealOk,
    /// Source: serve, in the epoch that the coordinator recorded.
    Promote(Epoch),
    /// Target: serving.
    Promoted,
    /// Source: digest these ranges.
    Digest(Vec<Vec<u8>>),
    /// Target: the digests.
    Digests(Vec<RangeDigest>),
    /// Source: the attempt is complete.
    Complete,
    /// Source, on the mirror stream: the next records.
    Mirror(Vec<MirrorItem>),
    /// Source, at regular intervals: the last LSN it has assigned, and whether acknowledgements wait for the target.
    Position(Lsn, bool),
    /// Target: what its requests waited for lately, the 99th percentile in microseconds.
    Foreground(u64),
}

/// Kind of [`Message::Failed`].
pub(super) const KIND_FAILED: u8 = 3;

fn token_numbers(token: ValidationToken) -> [u64; 3] {
    [token.segment.0, token.version.0, u64::from(token.checksum)]
}

fn token_at(columns: &Columns, at: usize) -> Result<ValidationToken> {
    Ok(ValidationToken {
        segment: SegmentId(columns.number(at)?),
        version: Lsn(columns.number(at + 1)?),
        checksum: columns.number(at + 2)? as u32,
    })
}

impl Message {
    /// Kind byte and columns.
    ///
    /// # Errors
    /// [`Error::Engine`] when records do not fit.
    pub(super) fn to_columns(&self) -> Result<(u8, Columns)> {
        let text = |text: &str| {
            let mut columns = Columns::default();
            columns.push_bytes(text.as_bytes());
            columns
        };
        Ok(match self {
            Message::Open(opening) => (1, opening_columns(opening)),
            Message::Opened(based) => {
                let mut columns = Columns::of([based.segments]);
                columns.push_bytes(based.why_none.as_bytes());
                (2, columns)
            }
            Message::Failed(what) => (KIND_FAILED, text(what)),
            Message::Plan(entries) => {
                let numbers = entries.iter().flat_map(|entry| {
                    let [segment, version, checksum] = token_numbers(entry.token);
                    [segment, version, checksum, entry.score.to_bits(), entry.bytes]
                });
                (4, Columns::of(numbers.collect::<Vec<u64>>()))
            }
            Message::Request(token) => (5, Columns::of(token_numbers(*token))),
            Message::Stale(token) => (6, Columns::of(token_numbers(*token))),
            Message::Held(segment) => (7, Columns::of([segment.0])),
            Message::MirrorAck(lsn) => (8, Columns::of([lsn.0])),
            Message::Seal(sealing) => (9, seal_columns(sealing)),
            Message::SealOk => (10, Columns::default()),
            Message::Promote(epoch) => (11, Columns::of([epoch.0])),
            Message::Promoted => (12, Columns::default()),
            Message::Digest(starts) => {
                let mut columns = Columns::default();
                starts.iter().for_each(|start| columns.push_bytes(start));
                (13, columns)
            }
            Message::Digests(digests) => {
                let mut columns = Columns::default();
                for range in digests {
                    let [low, high] = split(range.digest);
                    columns.numbers.extend([range.records, low, high]);
                    columns.push_bytes(&range.start);
                }
                (14, columns)
            }
            Message::Complete => (15, Columns::default()),
            Message::Mirror(items) => (16, mirror_columns(items)?),
            Message::Position(assigned, synchronous) => (17, Columns::of([assigned.0, u64::from(*synchronous)])),
            Message::Foreground(us) => (18, Columns::of([*us])),
            Message::RequestOnBase(token, digest) => {
                let numbers = token_numbers(*token).into_iter().chain(split(*digest));
                (21, Columns::of(numbers.collect::<Vec<u64>>()))
            }
            Message::Resume => (19, Columns::default()),
            Message::Resumed(Resumed { last, held }) => {
                let held = held.iter().map(|segment| segment.0);
                (20, Columns::of(std::iter::once(last.0).chain(held).collect::<Vec<u64>>()))
            }
        })
    }

    pub(super) fn from_columns(kind: u8, columns: &Columns) -> Result<Message> {
        Ok(match kind {
            1 => Message::Open(opening_of(columns)?),
            2 => Message::Opened(Based { segments: columns.number(0)?, why_none: columns.text_at(0)? }),
            KIND_FAILED => Message::Failed(columns.text_at(0)?),
            4 => Message::Plan(plan_of(columns)?),
            5 => Message::Request(token_at(columns, 0)?),
            6 => Message::Stale(token_at(columns, 0)?),
            7 => Message::Held(SegmentId(columns.number(0)?)),
            8 => Message::MirrorAck(Lsn(columns.number(0)?)),
            9 => Message::Seal(seal_of(columns)?),
            10 => Message::SealOk,
            11 => Message::Promote(Epoch(columns.number(0)?)),
            12 => Message::Promoted,
            13 => Message::Digest(byte_strings(columns, 0)?),
            14 => Message::Digests(digests_of(columns)?),
            15 => Message::Complete,
            16 => Message::Mirror(mirror_of(columns)?),
            17 => Message::Position(Lsn(columns.number(0)?), columns.number(1)? == 1),
            18 => Message::Foreground(columns.number(0)?),
            19 => Message::Resume,
            20 => {
                let last = Lsn(columns.number(0)?);
                Message::Resumed(Resumed { last, held: columns.numbers[1..].iter().map(|id| SegmentId(*id)).collect() })
            }
            21 => Message::RequestOnBase(token_at(columns, 0)?, join(columns.number(3)?, columns.number(4)?)),
            other => return Err(Error::protocol(format!("unknown message kind {other}"))),
        })
    }
}

fn byte_strings(columns: &Columns, from: usize) -> Result<Vec<Vec<u8>>> {
    (from..columns.ends.len()).map(|index| columns.bytes_at(index).map(<[u8]>::to_vec)).collect()
}

fn opening_columns(opening: &Opening) -> Columns {
    let mut columns = Columns::of([
        u64::from(opening.slots.0),
        u64::from(opening.slots.1),
        opening.segment_target_bytes,
        u64::from(opening.block_bytes),
        opening.from.0,
        u64::from(opening.base.is_some()),
        opening.base.map_or(0, |base| base.lsn.0),
        opening.base.map_or(0, |base| base.wall_ms),
    ]);
    columns.push_bytes(opening.keyspace.as_bytes());
    for (id, start) in &opening.segments {
        columns.numbers.push(id.0);
        columns.push_bytes(start);
    }
    columns
}

fn opening_of(columns: &Columns) -> Result<Opening> {
    let ids = columns.numbers.get(8..).unwrap_or_default();
    let starts = byte_strings(columns, 1)?;
    if ids.len() != starts.len() || ids.is_empty() {
        return Err(Error::protocol(format!("{} segments with {} keys", ids.len(), starts.len())));
    }
    Ok(Opening {
        keyspace: columns.text_at(0)?,
        slots: (columns.number(0)? as u16, columns.number(1)? as u16),
        segment_target_bytes: columns.number(2)?,
        block_bytes: columns.number(3)? as u32,
        from: Lsn(columns.number(4)?),
        base: match columns.number(5)? {
            0 => None,
            _ => Some(Base { lsn: Lsn(columns.number(6)?), wall_ms: columns.number(7)? }),
        },
        segments: ids.iter().map(|id| SegmentId(*id)).zip(starts).collect(),
    })
}

fn plan_of(columns: &Columns) -> Result<Vec<PlanEntry>> {
    (0..columns.numbers.len() / 5)
        .map(|entry| {
            Ok(PlanEntry {
                token: token_at(columns, entry * 5)?,
                score: f64::from_bits(columns.number(entry * 5 + 3)?),
                bytes: columns.number(entry * 5 + 4)?,
            })
        })
        .collect()
}

fn seal_columns(sealing: &Sealing) -> Columns {
    let Sealing { seal, clock, wall_ms, early } = sealing;
    let [low, high] = split(seal.chain);
    let chains = seal.segments.len() as u64;
    let mut columns =
        Columns::of([clock.0, *wall_ms, seal.final_lsn.0, seal.count, low, high, u64::from(*early), chains]);
    for (segment, digest) in seal.segments.iter().chain(&seal.copies) {
        let [low, high] = split(*digest);
        columns.numbers.extend([segment.0, low, high]);
    }
    columns
}

fn seal_of(columns: &Columns) -> Result<Sealing> {
    let digests = columns.numbers.get(8..).unwrap_or_default().chunks_exact(3);
    let mut digests: Vec<(SegmentId, u128)> = digests.map(|of| (SegmentId(of[0]), join(of[1], of[2]))).collect();
    let chains = usize::try_from(columns.number(7)?).unwrap_or(usize::MAX);
    if chains > digests.len() {
        return Err(Error::protocol(format!("{chains} chains announced, {} are there", digests.len())));
    }
    let copies = digests.split_off(chains);
    let ascends = |digests: &[(SegmentId, u128)]| digests.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !ascends(&digests) || !ascends(&copies) {
        return Err(Error::protocol("the segments of a seal do not ascend"));
    }
    let seal = Seal {
        final_lsn: Lsn(columns.number(2)?),
        count: columns.number(3)?,
        chain: join(columns.number(4)?, columns.number(5)?),
        segments: digests,
        copies,
    };
    let (clock, wall_ms) = (Hlc(columns.number(0)?), columns.number(1)?);
    Ok(Sealing { seal, clock, wall_ms, early: columns.number(6)? == 1 })
}

fn digests_of(columns: &Columns) -> Result<Vec<RangeDigest>> {
    (0..columns.ends.len())
        .map(|index| {
            Ok(RangeDigest {
                start: columns.bytes_at(index)?.to_vec(),
                records: columns.number(index * 3)?,
                digest: join(columns.number(index * 3 + 1)?, columns.number(index * 3 + 2)?),
            })
        })
        .collect()
}

/// Numbers: first LSN, then per item the segment (0 = elided). Bytes: the records as one batch.
fn mirror_columns(items: &[MirrorItem]) -> Result<Columns> {
    let mut columns = Columns::of([items.first().map_or(0, |item| item.lsn().0)]);
    let mut records = Vec::new();
    for item in items {
        match item {
            MirrorItem::Record { segment, record } => {
                columns.numbers.push(segment.0);
                records.push(record.view());
            }
            MirrorItem::Elided { .. } => columns.numbers.push(0),
        }
    }
    columns.push_bytes(&encode_records(records)?);
    Ok(columns)
}

fn mirror_of(columns: &Columns) -> Result<Vec<MirrorItem>> {
    let mut records = decode_records(columns.bytes_at(0)?)?.into_iter();
    let (first, segments) = columns.numbers.split_first().ok_or_else(|| Error::protocol("a mirror without an LSN"))?;
    let mut items = Vec::with_capacity(segments.len());
    for (offset, segment) in segments.iter().enumerate() {
        let lsn =
            first.checked_add(offset as u64).map(Lsn).ok_or_else(|| Error::protocol("LSNs beyond their range"))?;
        items.push(match *segment {
            0 => MirrorItem::Elided { lsn },
            segment => match records.next() {
                Some(record) if record.lsn == lsn => MirrorItem::Record { segment: SegmentId(segment), record },
                found => {
                    return Err(Error::protocol(format!("LSN {lsn} is due, not {:?}", found.map(|found| found.lsn))));
                }
            },
        });
    }
    if records.next().is_some() {
        return Err(Error::protocol("more records than announced"));
    }
    Ok(items)
}

/// Sends a message.
///
/// # Errors
/// [`Error::Link`], [`Error::Protocol`].
pub async fn send(stream: &mut SendStream, context: FrameContext, message: &Message) -> Result<()> {
    let (kind, columns) = message.to_columns()?;
    let bytes = frame::encode(kind, context, &columns)?;
    stream.write_all(&bytes).await.map_err(|cause| Error::link("peer", cause))
}

/// Receives the next message.
///
/// # Errors
/// [`Error::Link`] at the end of the stream, [`Error::Protocol`].
pub async fn receive(stream: &mut RecvStream) -> Result<(FrameContext, Message)> {
    let mut header_bytes = [0; HEADER_LEN];
    stream.read_exact(&mut header_bytes).await.map_err(|cause| Error::link("peer", format!("{cause:?}")))?;
    let header = frame::decode_header(&header_bytes)?;
    let payload = read_exact_limited(stream, header.payload_len, PAYLOAD_MAX).await?;
    let columns = frame::decode_payload(&header_bytes, header, &payload)?;
    Ok((header.context, Message::from_columns(header.kind, &columns)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use antumbra_engine::record::{Record, RecordKind};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn round_trip(message: &Message) {
        let (kind, columns) = message.to_columns().unwrap();
        assert_eq!(format!("{:?}", Message::from_columns(kind, &columns).unwrap()), format!("{message:?}"));
    }

    /// A message of each kind.
    pub fn samples() -> Vec<Message> {
        let token = ValidationToken { segment: SegmentId(4), version: Lsn(9), checksum: 77 };
        let record = Record {
            key: Bytes::from_static(b"k"),
            lsn: Lsn(12),
            hlc: Hlc(3),
            kind: RecordKind::Put,
            expires_at_ms: 0,
            value: Bytes::from_static(b"v"),
        };
        let digest = RangeDigest { start: b"s".to_vec(), records: 2, digest: u128::MAX - 5 };
        vec![
            Message::Open(Opening {
                keyspace: "default".into(),
                slots: (3, 4),
                segment_target_bytes: 5,
                block_bytes: 6,
                from: Lsn(7),
                base: Some(Base { lsn: Lsn(0), wall_ms: 8 }),
                segments: vec![(SegmentId(1), vec![]), (SegmentId(2), b"m".to_vec())],
            }),
            Message::Opened(Based { segments: 3, why_none: "why".into() }),
            Message::RequestOnBase(token, u128::MAX - 9),
            Message::Resume,
            Message::Resumed(Resumed { last: Lsn(3), held: vec![SegmentId(1), SegmentId(9)] }),
            Message::Failed("why".into()),
            Message::Plan(vec![PlanEntry { token, score: 0.25, bytes: 9 }]),
            Message::Request(token),
            Message::Stale(token),
            Message::Held(SegmentId(8)),
            Message::MirrorAck(Lsn(8)),
            Message::Foreground(9),
            Message::Seal(Sealing {
                seal: Seal {
                    final_lsn: Lsn(1),
                    count: 2,
                    chain: 1 << 100,
                    segments: vec![(SegmentId(1), 5), (SegmentId(2), u128::MAX)],
                    copies: vec![(SegmentId(1), u128::MAX - 1), (SegmentId(3), 4)],
                },
                clock: Hlc(7),
                wall_ms: 8,
                early: true,
            }),
            Message::SealOk,
            Message::Promote(Epoch(1)),
            Message::Promoted,
            Message::Digest(vec![vec![], b"x".to_vec()]),
            Message::Digests(vec![digest]),
            Message::Complete,
            Message::Position(Lsn(9), true),
            Message::Mirror(vec![
                MirrorItem::Elided { lsn: Lsn(11) },
                MirrorItem::Record { segment: SegmentId(2), record },
                MirrorItem::Elided { lsn: Lsn(13) },
            ]),
        ]
    }

    #[test]
    fn every_message_survives_its_columns() {
        let mut kinds: Vec<u8> = samples().iter().map(|message| message.to_columns().unwrap().0).collect();
        samples().iter().for_each(round_trip);
        kinds.sort_unstable();
        assert_eq!(kinds, (1..=21).collect::<Vec<u8>>(), "each kind is tried");
    }

    proptest! {
        #[test]
        fn decode_arbitrary_columns_never_panics(kind in 0..23u8, numbers: Vec<u64>, ends: Vec<u32>, bytes: Vec<u8>) {
            let _ = Message::from_columns(kind, &Columns { numbers, ends, bytes });
        }
    }
}
