//! Requests that reach a host which does not serve their partition, on their way to the one that does.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::Written;
use antumbra_engine::types::{AttemptId, Epoch, Hlc, HostId, Lsn, PartitionId};
use bytes::{Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::shadow::frame::{self, Columns, FrameContext, HEADER_LEN};
use crate::transport::{Call, Incoming, StreamKind, call, serve_call};

use super::codec;
use super::keyed::Deadline;
use super::operation::{self, Operation, Outcome};
use super::reply::{Reply, code_of};
use super::step::{Step, Watched};

/// How long the new owner may take to begin to serve.
const PATIENCE: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Keys of one page.
pub(crate) const PAGE_KEYS_MAX: usize = 10_000;

/// Sends an operation to the host that serves it.
pub(crate) async fn send(host: &Host, owner: HostId, partition: PartitionId, operation: &Operation) -> Result<Outcome> {
    let address = host.routing.load().addresses(owner).map(|addresses| addresses.control);
    let address = address.ok_or_else(|| Error::Refused { what: format!("host {owner} is not known") })?;
    let request = encode_operation(partition, operation)?;
    let request = Call {
        peer: address,
        host: owner,
        kind: StreamKind::Forward,
        request: &request,
        timeout: TIMEOUT,
        may_repeat: !writes(operation),
    };
    decode_outcome(&call(&host.control, request).await?)
}

/// Whether it may change something.
fn writes(operation: &Operation) -> bool {
    match operation {
        Operation::Get { .. } | Operation::See { .. } | Operation::Page { .. } => false,
        Operation::Set { .. } => true,
        Operation::Step(step) => step.writes(),
    }
}

/// Serves an operation that another host forwards.
pub(crate) async fn serve(host: &Arc<Host>, incoming: Incoming) {
    let peer = incoming.peer;
    let served = serve_call(incoming, |request| async move {
        let result = match decode_operation(&request) {
            Ok((partition, operation)) => {
                operation::apply_when_promoted(&host.engine, partition, operation, PATIENCE).await
            }
            Err(cause) => Err(cause),
        };
        encode_outcome(result).unwrap_or_default()
    });
    if let Err(cause) = served.await {
        tracing::debug!(%cause, %peer, "forwarded request");
    }
}

fn context(partition: PartitionId) -> FrameContext {
    FrameContext { attempt: AttemptId(0), partition, epoch: Epoch(0) }
}

/// An argument or the like that is not there, among lengths.
const NOTHING: u64 = u64::MAX;

fn encode_operation(partition: PartitionId, operation: &Operation) -> Result<Vec<u8>> {
    let mut columns = Columns::default();
    let kind = match operation {
        Operation::Get { key } => {
            columns.push_bytes(key);
            64
        }
        Operation::Set { key, value, deadline } => {
            columns.push_bytes(key);
            columns.push_bytes(value);
            let (kind, ms) = match deadline {
                Deadline::None => (0, 0),
                Deadline::At(ms) => (0, *ms),
                Deadline::In(ms) => (1, *ms),
            };
            columns.numbers.extend([ms, kind]);
            65
        }
        Operation::Step(step) => {
            columns.numbers.push(step.watched.len() as u64);
            for watched in &step.watched {
                columns.push_bytes(&watched.key);
                push_version(&mut columns, watched.seen);
            }
            for args in &step.calls {
                columns.numbers.push(args.len() as u64);
                args.iter().for_each(|arg| columns.push_bytes(arg));
            }
            67
        }
        Operation::See { keys } => {
            keys.iter().for_each(|key| columns.push_bytes(key));
            68
        }
        Operation::Page { start, end, limit } => {
            columns.numbers.push(*limit as u64);
            columns.push_bytes(start);
            end.iter().for_each(|end| columns.push_bytes(end));
            69
        }
    };
    frame::encode(kind, context(partition), &columns)
}

fn push_version(columns: &mut Columns, version: Option<Written>) {
    let (lsn, hlc) = version.map_or((NOTHING, NOTHING), |version| (version.lsn.0, version.hlc.0));
    columns.numbers.extend([lsn, hlc]);
}

fn version_at(columns: &Columns, index: usize) -> Result<Option<Written>> {
    let (lsn, hlc) = (columns.number(index)?, columns.number(index + 1)?);
    Ok((lsn != NOTHING).then_some(Written { lsn: Lsn(lsn), hlc: Hlc(hlc) }))
}

fn bytes_at(columns: &Columns, index: usize) -> Result<Bytes> {
    columns.bytes_at(index).map(Bytes::copy_from_slice)
}

/// A routing key, which begins with a slot.
fn routing_key_at(columns: &Columns, index: usize) -> Result<Bytes> {
    let key = bytes_at(columns, index)?;
    if key.len() < 2 { Err(Error::protocol("a routing key without a slot")) } else { Ok(key) }
}

fn decode_operation(bytes: &[u8]) -> Result<(PartitionId, Operation)> {
    let (header, columns) = decode(bytes)?;
    let operation = match header.kind {
        64 => Operation::Get { key: routing_key_at(&columns, 0)? },
        65 => {
            let deadline = match (columns.number(0)?, columns.number(1)?) {
                (0, 0) => Deadline::None,
                (ms, 0) => Deadline::At(ms),
                (ms, _) => Deadline::In(ms),
            };
            Operation::Set { key: routing_key_at(&columns, 0)?, value: bytes_at(&columns, 1)?, deadline }
        }
        67 => Operation::Step(Arc::new(decode_step(&columns)?)),
        68 => {
            let keys: Vec<Bytes> = (0..columns.ends.len()).map(|at| bytes_at(&columns, at)).collect::<Result<_>>()?;
            if keys.is_empty() {
                return Err(Error::protocol("no keys to see"));
            }
            Operation::See { keys }
        }
        69 => Operation::Page {
            start: routing_key_at(&columns, 0)?,
            end: if columns.ends.len() > 1 { Some(bytes_at(&columns, 1)?) } else { None },
            limit: usize::try_from(columns.number(0)?).unwrap_or(PAGE_KEYS_MAX).min(PAGE_KEYS_MAX),
        },
        other => return Err(Error::protocol(format!("unknown operation {other}"))),
    };
    Ok((header.context.partition, operation))
}

fn decode_step(columns: &Columns) -> Result<Step> {
    let mut step = Step::default();
    let watched = usize::try_from(columns.number(0)?).unwrap_or(usize::MAX);
    // Each has its bytes: an absurd count fails before it costs anything.
    for index in 0..watched {
        step.watched.push(Watched { key: bytes_at(columns, index)?, seen: version_at(columns, 1 + 2 * index)? });
    }
    let mut at = watched;
    for count in &columns.numbers[1 + 2 * watched..] {
        let mut args = Vec::new();
        for _ in 0..*count {
            args.push(bytes_at(columns, at)?);
            at += 1;
        }
        step.calls.push(args);
    }
    Ok(step)
}

fn encode_outcome(result: Result<Outcome>) -> Result<Vec<u8>> {
    let mut columns = Columns::default();
    let kind = match result {
        Ok(Outcome::Value(Some(value))) => {
            columns.push_bytes(&value);
            80
        }
        Ok(Outcome::Value(None)) => 81,
        Ok(Outcome::Written) => 82,
        Ok(Outcome::Moved(owner)) => {
            columns.numbers.push(u64::from(owner.0));
            84
        }
        Ok(Outcome::Shadow { ready }) => {
            columns.numbers.push(u64::from(ready));
            85
        }
        Ok(Outcome::Absent) => 87,
        Ok(Outcome::Replies(replies)) => {
            let mut bytes = Vec::new();
            replies.iter().for_each(|reply| reply.write(&mut bytes, 2));
            columns.numbers.push(replies.len() as u64);
            columns.push_bytes(&bytes);
            88
        }
        Ok(Outcome::Conflict) => 89,
        Ok(Outcome::Versions(versions)) => {
            versions.into_iter().for_each(|version| push_version(&mut columns, version));
            90
        }
        Ok(Outcome::Keys(keys, next)) => {
            columns.numbers.push(u64::from(next.is_some()));
            next.iter().chain(&keys).for_each(|key| columns.push_bytes(key));
            91
        }
        Err(cause) => {
            let text = code_of(&cause).map_or_else(|| cause.to_string(), |code| format!("{code} {cause}"));
            columns.push_bytes(text.as_bytes());
            86
        }
    };
    frame::encode(kind, context(PartitionId(0)), &columns)
}

fn decode_outcome(bytes: &[u8]) -> Result<Outcome> {
    let (header, columns) = decode(bytes)?;
    Ok(match header.kind {
        80 => Outcome::Value(Some(bytes_at(&columns, 0)?)),
        81 => Outcome::Value(None),
        82 => Outcome::Written,
        84 => Outcome::Moved(HostId(columns.number(0)? as u32)),
        85 => Outcome::Shadow { ready: columns.number(0)? != 0 },
        87 => Outcome::Absent,
        88 => {
            let mut bytes = BytesMut::from(columns.bytes_at(0)?);
            let mut replies = Vec::new();
            for _ in 0..columns.number(0)? {
                let reply = codec::parse_reply(&mut bytes).map_err(|bad| Error::protocol(bad.0))?;
                replies.push(Reply::from(reply.ok_or_else(|| Error::protocol("a reply is cut short"))?));
            }
            Outcome::Replies(replies)
        }
        89 => Outcome::Conflict,
        90 => {
            let versions = (0..columns.numbers.len()).step_by(2).map(|at| version_at(&columns, at));
            Outcome::Versions(versions.collect::<Result<_>>()?)
        }
        91 => {
            let mut keys: Vec<Bytes> =
                (0..columns.ends.len()).map(|at| bytes_at(&columns, at)).collect::<Result<_>>()?;
            let next = if columns.number(0)? == 0 || keys.is_empty() { None } else { Some(keys.remove(0)) };
            Outcome::Keys(keys, next)
        }
        86 => return Err(Error::Refused { what: refusal(columns.text_at(0)?) }),
        other => return Err(Error::protocol(format!("unknown outcome {other}"))),
    })
}

/// The other host's words, without what it put before them.
fn refusal(text: String) -> String {
    text.strip_prefix("refused: ").map_or(text.clone(), str::to_string)
}

fn decode(bytes: &[u8]) -> Result<(frame::Header, Columns)> {
    let mut header_bytes = [0; HEADER_LEN];
    let (head, rest) = bytes.split_at_checked(HEADER_LEN).ok_or_else(|| Error::protocol("cut short"))?;
    header_bytes.copy_from_slice(head);
    let header = frame::decode_header(&header_bytes)?;
    if rest.len() != header.payload_len {
        return Err(Error::protocol("cut short"));
    }
    let columns = frame::decode_payload(&header_bytes, header, rest)?;
    Ok((header, columns))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn operations_and_outcomes_survive_the_wire() {
        let key = Bytes::from_static(b"\0\x01key");
        let value = Bytes::from_static(b"value");
        let args = |words: &[&'static str]| words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect();
        let seen = Written { lsn: Lsn(7), hlc: Hlc(8) };
        let step = Step {
            calls: vec![args(&["incr", "a"]), args(&["get", ""])],
            watched: vec![
                Watched { key: Bytes::from_static(b"w"), seen: Some(seen) },
                Watched { key: Bytes::new(), seen: None },
            ],
        };
        for operation in [
            Operation::Get { key: key.clone() },
            Operation::Set { key: key.clone(), value: value.clone(), deadline: Deadline::At(5) },
            Operation::Set { key: key.clone(), value: value.clone(), deadline: Deadline::In(5) },
            Operation::Set { key: key.clone(), value: value.clone(), deadline: Deadline::None },
            Operation::Step(Arc::new(step)),
            Operation::Step(Arc::new(Step::of(args(&["get", "a"])))),
            Operation::See { keys: args(&["a", "b"]) },
            Operation::Page { start: key.clone(), end: None, limit: 3 },
            Operation::Page { start: key.clone(), end: Some(value.clone()), limit: 3 },
        ] {
            let bytes = encode_operation(PartitionId(3), &operation).unwrap();
            assert_eq!(decode_operation(&bytes).unwrap(), (PartitionId(3), operation));
        }
        for outcome in [
            Outcome::Value(Some(value)),
            Outcome::Value(None),
            Outcome::Written,
            Outcome::Replies(vec![
                Reply::OK,
                Reply::Nil,
                Reply::Integer(-1),
                Reply::error("ERR no"),
                Reply::Array(vec![Reply::Nil, Reply::text("a")]),
            ]),
            Outcome::Conflict,
            Outcome::Versions(vec![Some(seen), None]),
            Outcome::Keys(vec![key.clone()], None),
            Outcome::Keys(vec![key.clone()], Some(key.clone())),
            Outcome::Keys(Vec::new(), Some(key)),
            Outcome::Moved(HostId(2)),
            Outcome::Shadow { ready: true },
            Outcome::Absent,
        ] {
            assert_eq!(decode_outcome(&encode_outcome(Ok(outcome.clone())).unwrap()).unwrap(), outcome);
        }
        let refused = encode_outcome(Err(Error::Refused { what: "CROSSSLOT ...".into() })).unwrap();
        assert!(matches!(decode_outcome(&refused), Err(Error::Refused { what }) if what == "CROSSSLOT ..."));
    }

    proptest! {
        #[test]
        fn decode_random_bytes_never_panics(bytes: Vec<u8>) {
            let _ = decode_operation(&bytes);
            let _ = decode_outcome(&bytes);
        }

        #[test]
        fn decode_columns_that_do_not_fit_never_panics(
            kind in 60..95_u8,
            numbers: Vec<u64>,
            strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 0..8)
        ) {
            let mut columns = Columns::of(numbers);
            strings.iter().for_each(|bytes| columns.push_bytes(bytes));
            let bytes = frame::encode(kind, context(PartitionId(1)), &columns).unwrap();
            if let Ok((_, operation)) = decode_operation(&bytes) {
                let _ = operation.slot();
            }
            let _ = decode_outcome(&bytes);
        }
    }
}
