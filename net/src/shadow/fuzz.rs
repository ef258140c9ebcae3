//! What the fuzzer does with the frames of another host. A target fails by a panic; its corpus, in `net/fuzz/corpus`,
//! is replayed by a test.

use super::frame::{self, Columns, FrameContext, HEADER_LEN};
use super::message::Message;
use super::segment::{DeltaHead, ImageHead, KIND_DELTA, KIND_IMAGE};

const CONTEXT: FrameContext = FrameContext {
    attempt: antumbra_engine::types::AttemptId(1),
    partition: antumbra_engine::types::PartitionId(2),
    epoch: antumbra_engine::types::Epoch(3),
};

/// Decodes bytes as they are, and, behind the kind that the first one names, as the payload of a frame whose checksum
/// is right.
///
/// # Panics
/// When it has found something.
pub fn frame(bytes: &[u8]) {
    if let Some((header, payload)) = bytes.split_first_chunk::<HEADER_LEN>()
        && let Ok(decoded) = frame::decode_header(header)
        && let Ok(columns) = frame::decode_payload(header, decoded, payload)
    {
        body(decoded.kind, &columns);
    }
    let Some((kind, payload)) = bytes.split_first() else { return };
    let framed = frame::around(*kind, CONTEXT, payload);
    let Some((header, payload)) = framed.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(decoded) = frame::decode_header(header) else { return };
    assert_eq!((decoded.kind, decoded.context), (*kind, CONTEXT), "a header that was made right");
    if let Ok(columns) = frame::decode_payload(header, decoded, payload) {
        body(*kind, &columns);
    }
}

/// What is accepted is sent on as something that is accepted, and means the same.
fn body(kind: u8, columns: &Columns) {
    match kind {
        KIND_IMAGE => {
            let Ok(head) = ImageHead::from_columns(columns) else { return };
            assert_eq!(head.to_columns().numbers, columns.numbers, "an image or a base, and nothing beside it");
        }
        KIND_DELTA => {
            let Ok(head) = DeltaHead::from_columns(columns) else { return };
            assert_eq!(DeltaHead::from_columns(&head.to_columns()).ok(), Some(head));
        }
        _ => {
            let Ok(message) = Message::from_columns(kind, columns) else { return };
            let again = message.to_columns().and_then(|(kind, columns)| Message::from_columns(kind, &columns));
            assert_eq!(format!("{:?}", again.ok()), format!("{:?}", Some(message)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::{Path, PathBuf};

    use antumbra_engine::types::{Lsn, SegmentId};

    use super::super::message;
    use super::super::segment::{Announced, Body};
    use super::*;

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/shadow-frame")
    }

    /// A frame of each kind, as the kind and its payload.
    fn seeds() -> Vec<(String, Vec<u8>)> {
        let body = Body { raw_len: 9, wire_len: 7 };
        let image = ImageHead { segment: SegmentId(4), announced: Announced::Image(body) };
        let base = ImageHead { announced: Announced::Base(u128::MAX - 9), ..image };
        let heads = [
            ("seed-image", KIND_IMAGE, image.to_columns()),
            ("seed-base", KIND_IMAGE, base.to_columns()),
            ("seed-delta", KIND_DELTA, DeltaHead { covered: Lsn(5), body }.to_columns()),
        ];
        let heads = heads.map(|(name, kind, columns)| (name.to_owned(), kind, columns));
        let messages = message::tests::samples().into_iter().map(|message| {
            let (kind, columns) = message.to_columns().unwrap();
            (format!("seed-message-{kind}"), kind, columns)
        });
        let input = |(name, kind, columns): (String, u8, Columns)| {
            let framed = frame::encode(kind, CONTEXT, &columns).unwrap();
            (name, [&[kind], &framed[HEADER_LEN..]].concat())
        };
        heads.into_iter().chain(messages).map(input).collect()
    }

    #[test]
    fn corpus_replays_and_has_a_frame_of_each_kind() {
        let mut inputs = Vec::new();
        for entry in std::fs::read_dir(corpus()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let result = std::panic::catch_unwind(|| frame(&bytes));
            assert!(result.is_ok(), "shadow-frame fails on {}", path.display());
            inputs.push(bytes);
        }
        for (name, bytes) in seeds() {
            assert!(inputs.contains(&bytes), "{name} is not in the corpus: run write_first_corpus");
        }
    }

    /// Writes inputs that the decoders accept, for a corpus to begin with.
    #[test]
    #[ignore = "writes to the source tree: run it after a change of a format"]
    fn write_first_corpus() {
        std::fs::create_dir_all(corpus()).unwrap();
        for (name, bytes) in seeds() {
            std::fs::write(corpus().join(name), bytes).unwrap();
        }
    }

    proptest::proptest! {
        #[test]
        fn random_columns_hold(kind in 0..40u8, numbers: Vec<u64>, ends: Vec<u8>, bytes: Vec<u8>) {
            let ends = ends.into_iter().map(u32::from).collect();
            body(kind, &Columns { numbers, ends, bytes });
        }

        #[test]
        fn random_bytes_hold(bytes: Vec<u8>) {
            frame(&bytes);
        }
    }
}
