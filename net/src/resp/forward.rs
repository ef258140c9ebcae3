//! Requests that reach a host which does not serve their partition, on their way to the one that does.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::{AttemptId, Epoch, HostId, PartitionId};
use bytes::Bytes;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::shadow::frame::{self, Columns, FrameContext, HEADER_LEN};
use crate::transport::{Incoming, StreamKind, call, serve_call};

use super::operation::{self, Operation, Outcome};

/// How long the new owner may take to begin to serve.
const PATIENCE: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends an operation to the host that serves it.
pub(crate) async fn send(host: &Host, owner: HostId, partition: PartitionId, operation: &Operation) -> Result<Outcome> {
    let address = host.routing.load().addresses(owner).map(|addresses| addresses.control);
    let address = address.ok_or_else(|| Error::Refused { what: format!("host {owner} is not known") })?;
    let request = encode_operation(partition, operation)?;
    let response = call(&host.control, address, owner, StreamKind::Forward, &request, TIMEOUT).await?;
    decode_outcome(&response)
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

fn encode_operation(partition: PartitionId, operation: &Operation) -> Result<Vec<u8>> {
    let mut columns = Columns::default();
    columns.push_bytes(operation.key());
    let kind = match operation {
        Operation::Get { .. } => 64,
        Operation::Set { value, expires_at_ms, .. } => {
            columns.numbers.push(*expires_at_ms);
            columns.push_bytes(value);
            65
        }
        Operation::Delete { .. } => 66,
    };
    frame::encode(kind, context(partition), &columns)
}

fn decode_operation(bytes: &[u8]) -> Result<(PartitionId, Operation)> {
    let (header, columns) = decode(bytes)?;
    let key = Bytes::copy_from_slice(columns.bytes_at(0)?);
    let operation = match header.kind {
        64 => Operation::Get { key },
        65 => {
            let value = Bytes::copy_from_slice(columns.bytes_at(1)?);
            Operation::Set { key, value, expires_at_ms: columns.number(0)? }
        }
        66 => Operation::Delete { key },
        other => return Err(Error::protocol(format!("unknown operation {other}"))),
    };
    Ok((header.context.partition, operation))
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
        Ok(Outcome::Deleted(existed)) => {
            columns.numbers.push(u64::from(existed));
            83
        }
        Ok(Outcome::Moved(owner)) => {
            columns.numbers.push(u64::from(owner.0));
            84
        }
        Ok(Outcome::Shadow { ready }) => {
            columns.numbers.push(u64::from(ready));
            85
        }
        Ok(Outcome::Absent) => 87,
        Err(cause) => {
            columns.push_bytes(cause.to_string().as_bytes());
            86
        }
    };
    frame::encode(kind, context(PartitionId(0)), &columns)
}

fn decode_outcome(bytes: &[u8]) -> Result<Outcome> {
    let (header, columns) = decode(bytes)?;
    Ok(match header.kind {
        80 => Outcome::Value(Some(Bytes::copy_from_slice(columns.bytes_at(0)?))),
        81 => Outcome::Value(None),
        82 => Outcome::Written,
        83 => Outcome::Deleted(columns.number(0)? != 0),
        84 => Outcome::Moved(HostId(columns.number(0)? as u32)),
        85 => Outcome::Shadow { ready: columns.number(0)? != 0 },
        87 => Outcome::Absent,
        86 => return Err(Error::Refused { what: columns.text_at(0)? }),
        other => return Err(Error::protocol(format!("unknown outcome {other}"))),
    })
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
        for operation in [
            Operation::Get { key: key.clone() },
            Operation::Set { key: key.clone(), value: value.clone(), expires_at_ms: 5 },
            Operation::Delete { key },
        ] {
            let bytes = encode_operation(PartitionId(3), &operation).unwrap();
            assert_eq!(decode_operation(&bytes).unwrap(), (PartitionId(3), operation));
        }
        for outcome in [
            Outcome::Value(Some(value)),
            Outcome::Value(None),
            Outcome::Written,
            Outcome::Deleted(true),
            Outcome::Moved(HostId(2)),
            Outcome::Shadow { ready: true },
            Outcome::Absent,
        ] {
            assert_eq!(decode_outcome(&encode_outcome(Ok(outcome.clone())).unwrap()).unwrap(), outcome);
        }
    }

    proptest! {
        #[test]
        fn decode_random_bytes_never_panics(bytes: Vec<u8>) {
            let _ = decode_operation(&bytes);
            let _ = decode_outcome(&bytes);
        }
    }
}
