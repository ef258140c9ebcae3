//! Between hosts, and from clients.

use std::hint::black_box;

use antumbra_engine::types::{AttemptId, Epoch, PartitionId};
use antumbra_net::resp::codec::{Decoder, encode_command};
use antumbra_net::shadow::codec::{compress_against, decompress_against};
use antumbra_net::shadow::frame::{
    ArchivedColumns, Columns, FrameContext, HEADER_LEN, decode_header, decode_payload, encode,
};
use antumbra_net::throttle::Throttle;
use bytes::BytesMut;
use rkyv::util::AlignedVec;

use super::{Piece, Work, piece};

/// A segment of 64 KiB and the same with a twentieth of its records changed.
fn versions() -> (Vec<u8>, Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(3);
    let before: Vec<u8> = (0..64 << 10).map(|_| random.u8(b'a'..=b'z')).collect();
    let mut after = before.clone();
    for record in after.chunks_mut(256).step_by(20) {
        record.iter_mut().for_each(|byte| *byte = random.u8(b'a'..=b'z'));
    }
    (before, after)
}

/// A delta against the version that the target holds: matches found at 300 MB/s.
pub(super) fn delta_compress() -> Piece {
    let (before, after) = versions();
    piece(Work::Bytes(after.len() as u64), 3, move || {
        black_box(compress_against(&before, &after).unwrap());
    })
}

/// Put together again: copies, 1 GB/s.
pub(super) fn delta_decompress() -> Piece {
    let (before, after) = versions();
    let delta = compress_against(&before, &after).unwrap();
    piece(Work::Bytes(after.len() as u64), 10, move || {
        black_box(decompress_against(&before, &delta, after.len()).unwrap());
    })
}

fn columns() -> Columns {
    let mut columns = Columns::of((0..64).collect::<Vec<u64>>());
    (0..32).for_each(|number| columns.push_bytes(&[number; 128]));
    columns
}

const CONTEXT: FrameContext = FrameContext { attempt: AttemptId(3), partition: PartitionId(1), epoch: Epoch(2) };

/// A control message of 4 KiB: one copy, one checksum; 1 us.
pub(super) fn frame_encode() -> Piece {
    let columns = columns();
    let len = encode(2, CONTEXT, &columns).unwrap().len();
    piece(Work::Bytes(len as u64), 500, move || drop(black_box(encode(2, CONTEXT, &columns).unwrap())))
}

/// The way back: checksum, rkyv's validation, and what validation alone would not need, the copy out; 1 us.
pub(super) fn frame_decode() -> Piece {
    let bytes = encode(2, CONTEXT, &columns()).unwrap();
    let (head, payload) = bytes.split_at(HEADER_LEN);
    let (head, payload): ([u8; HEADER_LEN], Vec<u8>) = (head.try_into().unwrap(), payload.to_vec());
    piece(Work::Bytes(bytes.len() as u64), 500, move || {
        let header = decode_header(&head).unwrap();
        black_box(decode_payload(&head, header, &payload).unwrap());
    })
}

/// The archive of a message of 4 KiB with 96 numbers and 32 strings.
fn archive() -> AlignedVec {
    rkyv::to_bytes::<rkyv::rancor::Error>(&columns()).unwrap()
}

/// Access to an archive that comes from a peer: every pointer and length in it is checked: three of them, 30 ns.
pub(super) fn rkyv_validated() -> Piece {
    let archive = archive();
    piece(Work::Bytes(archive.len() as u64), 5_000, move || {
        let columns = rkyv::access::<ArchivedColumns, rkyv::rancor::Error>(black_box(&archive)).unwrap();
        black_box(columns.numbers.len());
    })
}

/// Access to an archive that is known to be sound: arithmetic, 1 ns. What the piece above takes more is the price of safety.
pub(super) fn rkyv_unchecked() -> Piece {
    let archive = archive();
    assert!(rkyv::access::<ArchivedColumns, rkyv::rancor::Error>(&archive).is_ok());
    piece(Work::Bytes(archive.len() as u64), 5_000, move || {
        // SAFETY: these bytes were checked before, and nothing changes them.
        let columns = unsafe { rkyv::access_unchecked::<ArchivedColumns>(black_box(&archive)) };
        black_box(columns.numbers.len());
    })
}

/// Sixteen pipelined SETs out of one buffer: an allocation a command; 100 ns each.
pub(super) fn resp_parse() -> Piece {
    const COMMANDS: u64 = 16;
    let one = encode_command(&[b"SET", b"key:000000001234", &[b'v'; 100]]);
    let all = one.repeat(COMMANDS as usize);
    piece(Work::Elements(COMMANDS), 500, move || {
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::from(&all[..]));
        for _ in 0..COMMANDS {
            black_box(decoder.decode(&mut buffer).unwrap().unwrap());
        }
    })
}

/// A decision of the token bucket: arithmetic, 5 ns.
pub(super) fn bucket() -> Piece {
    let mut throttle = Throttle::new(Some(100_000_000));
    let mut now_ns = 0;
    piece(Work::Elements(1), 5_000, move || {
        now_ns += 1_000_000;
        black_box(throttle.admit(black_box(65_536), now_ns));
    })
}
