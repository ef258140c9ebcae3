//! What the fuzzer does with the bytes of strangers. A target fails by a panic; its corpus, in `net/fuzz/corpus`, is
//! replayed by a test.

use bytes::BytesMut;

use super::codec::{self, Decoder};
use super::command::{self, Action};
use super::keyed::{Entry, Keys, parse_set};
use super::{describe, slot};

/// Decodes requests, whole and in pieces, which have to agree; runs those that a keyed command makes of them.
///
/// # Panics
/// When it has found something.
pub fn request(bytes: &[u8]) {
    let (mut decoder, mut whole) = (Decoder::default(), BytesMut::from(bytes));
    let mut commands = Vec::new();
    let ended = loop {
        match decoder.decode(&mut whole) {
            Ok(Some(args)) => commands.push(args),
            ended => break ended,
        }
    };
    let (mut decoder, mut buffer, mut at) = (Decoder::default(), BytesMut::new(), 0);
    let mut in_pieces = None;
    for piece in bytes.chunks(3) {
        buffer.extend_from_slice(piece);
        while in_pieces.is_none() {
            match decoder.decode(&mut buffer) {
                Ok(Some(args)) => {
                    assert_eq!(args, commands[at], "cut into pieces it is the same");
                    at += 1;
                }
                Ok(None) => break,
                Err(bad) => in_pieces = Some(bad),
            }
        }
    }
    assert_eq!((at, in_pieces), (commands.len(), ended.err()), "it ends the same way");
    for args in commands.iter().filter(|args| !args.is_empty()) {
        let Ok((_, spec)) = command::find(args) else { continue };
        let keys: Vec<_> = spec.keys_of(args).cloned().collect();
        describe::describe(&[args.clone(), args.clone()].concat());
        let Action::Keyed { run, .. } = spec.action else { continue };
        let entry = Entry { len: 2, value: Some(bytes::Bytes::from_static(b"42")), expires_at_ms: 2_000_000 };
        let found = keys.iter().map(|key| (slot::routing_key(key).into(), Some(entry.clone())));
        let mut keys = Keys::new(found.collect::<Vec<_>>(), 1_000_000);
        let _ = run(&mut keys, args);
        assert!(keys.into_writes().is_ok(), "every value is there");
        if spec.name == "set" {
            let _ = parse_set(args);
        }
    }
}

/// Decodes replies.
pub fn reply(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(_)) = codec::parse_reply(&mut buffer) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn corpus_of_every_target_replays() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (target, run) in [("resp-request", request as fn(&[u8])), ("resp-reply", reply)] {
            let mut inputs = 0;
            for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                let result = std::panic::catch_unwind(|| run(&bytes));
                assert!(result.is_ok(), "{target} fails on {}", path.display());
                inputs += 1;
            }
            assert!(inputs > 5, "{target} has a corpus");
        }
    }

    proptest::proptest! {
        #[test]
        fn random_requests_hold(
            words in proptest::collection::vec(("[ -~]{0,8}", 0..60_usize), 0..6),
            tail: Vec<u8>
        ) {
            let mut bytes = Vec::new();
            for (word, place) in &words {
                let spec = &command::COMMANDS[place % command::COMMANDS.len()];
                bytes.extend(codec::encode_command(&[spec.name.as_bytes(), word.as_bytes(), b"1", b"nx"][..1 + place % 4]));
            }
            bytes.extend(tail);
            request(&bytes);
        }
    }
}
