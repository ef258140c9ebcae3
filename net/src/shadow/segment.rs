//! One segment on the wire: image, then delta.
//!
//! ```text
//! frame  kind 32: segment, bytes of the image, bytes on the wire; of a segment whose base the target has: segment, 0, 0 and
//!                 the digest of that base (two numbers)
//! bytes  the image, zstd; none with a base
//! frame  kind 33: covered LSN, bytes of the delta (0 = none), bytes on the wire
//! bytes  the delta: a record batch, zstd against the image
//! ```

use antumbra_engine::types::{Lsn, SegmentId};

use crate::error::{Error, Result};

use super::frame::{Columns, join, split};

/// Kind of an [`ImageHead`].
pub const KIND_IMAGE: u8 = 32;
/// Kind of a [`DeltaHead`].
pub const KIND_DELTA: u8 = 33;
/// Largest image or delta that is accepted, in bytes.
pub const IMAGE_MAX: usize = 256 << 20;

/// Bytes that follow a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Once decompressed.
    pub raw_len: usize,
    /// As they travel.
    pub wire_len: usize,
}

impl Body {
    fn of(raw_len: u64, wire_len: u64) -> Result<Body> {
        let len = |len: u64| match usize::try_from(len) {
            Ok(len) if len <= IMAGE_MAX => Ok(len),
            _ => Err(Error::protocol(format!("{len} bytes of a segment announced, at most {IMAGE_MAX}"))),
        };
        Ok(Body { raw_len: len(raw_len)?, wire_len: len(wire_len)? })
    }
}

/// What a segment's delta lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// An image, which follows.
    Image(Body),
    /// What the target has from before, with this digest; nothing follows.
    Base(u128),
}

/// The first frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHead {
    /// The segment.
    pub segment: SegmentId,
    /// What its delta lies on.
    pub announced: Announced,
}

impl ImageHead {
    /// As a frame has it.
    #[must_use]
    pub fn to_columns(self) -> Columns {
        match self.announced {
            Announced::Image(body) => Columns::of([self.segment.0, body.raw_len as u64, body.wire_len as u64]),
            Announced::Base(digest) => {
                let [low, high] = split(digest);
                Columns::of([self.segment.0, 0, 0, low, high])
            }
        }
    }

    /// # Errors
    /// [`Error::Protocol`] for what is neither an image nor a base.
    pub fn from_columns(columns: &Columns) -> Result<ImageHead> {
        let (segment, announced) = match columns.numbers[..] {
            [segment, raw_len, wire_len] => (segment, Announced::Image(Body::of(raw_len, wire_len)?)),
            [segment, 0, 0, low, high] => (segment, Announced::Base(join(low, high))),
            ref other => return Err(Error::protocol(format!("neither an image nor a base: {other:?}"))),
        };
        Ok(ImageHead { segment: SegmentId(segment), announced })
    }
}

/// The second frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHead {
    /// From this LSN on the segment's records are mirrored; 0 behind an image of the state at the hand-over.
    pub covered: Lsn,
    /// The delta, which follows.
    pub body: Body,
}

impl DeltaHead {
    /// As a frame has it.
    #[must_use]
    pub fn to_columns(self) -> Columns {
        Columns::of([self.covered.0, self.body.raw_len as u64, self.body.wire_len as u64])
    }

    /// # Errors
    /// [`Error::Protocol`].
    pub fn from_columns(columns: &Columns) -> Result<DeltaHead> {
        let body = Body::of(columns.number(1)?, columns.number(2)?)?;
        Ok(DeltaHead { covered: Lsn(columns.number(0)?), body })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body() -> impl Strategy<Value = Body> {
        (0..=IMAGE_MAX, 0..=IMAGE_MAX).prop_map(|(raw_len, wire_len)| Body { raw_len, wire_len })
    }

    fn announced() -> impl Strategy<Value = Announced> {
        prop_oneof![body().prop_map(Announced::Image), any::<u128>().prop_map(Announced::Base)]
    }

    proptest! {
        #[test]
        fn heads_survive_their_columns(segment: u64, announced in announced(), covered: u64, body in body()) {
            let image = ImageHead { segment: SegmentId(segment), announced };
            prop_assert_eq!(ImageHead::from_columns(&image.to_columns()).unwrap(), image);
            let delta = DeltaHead { covered: Lsn(covered), body };
            prop_assert_eq!(DeltaHead::from_columns(&delta.to_columns()).unwrap(), delta);
        }

        #[test]
        fn what_is_accepted_is_what_would_be_sent(
            numbers in prop::collection::vec(prop_oneof![0..3u64, any::<u64>()], 0..7)
        ) {
            let columns = Columns::of(numbers);
            if let Ok(head) = ImageHead::from_columns(&columns) {
                prop_assert_eq!(head.to_columns(), columns.clone());
            }
            if let Ok(head) = DeltaHead::from_columns(&columns) {
                prop_assert_eq!(DeltaHead::from_columns(&head.to_columns()).unwrap(), head);
            }
        }
    }

    #[test]
    fn base_that_announces_bytes_and_sizes_without_bound_are_refused() {
        let refused = |numbers: &[u64]| ImageHead::from_columns(&Columns::of(numbers)).is_err();
        assert!(refused(&[1, 5, 0, 7, 7]) && refused(&[1, 0, 5, 7, 7]), "a base with bytes");
        assert!(refused(&[1, 0, 0, 7]) && refused(&[1, 0, 0, 7, 7, 7]), "half a digest, and more than one");
        let beyond = IMAGE_MAX as u64 + 1;
        assert!(refused(&[1, beyond, 0]) && refused(&[1, 0, beyond]));
        assert!(DeltaHead::from_columns(&Columns::of([1, beyond, 0])).is_err());
        assert!(DeltaHead::from_columns(&Columns::of([1, 0, beyond])).is_err());
    }
}
