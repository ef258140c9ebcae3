//! Digests and digest chains: how two hosts find out that they hold the same records.
//!
//! The canonical form of a record is: key length (u32), key, LSN (u64), timestamp (u64), kind (u8), deadline (u64),
//! value length (u32), value; numbers little-endian. A *digest* is xxh3-128 over the canonical forms of records in
//! order. A *chain* folds one record after another: `chain' = xxh3-128(chain || canonical form)`, so two chains are
//! equal only if the same records came in the same order.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::Xxh3Default;

use crate::record::RecordView;
use crate::types::{Lsn, SegmentId};

/// xxh3-128 over records in canonical form.
#[derive(Clone, Default)]
pub struct RecordDigest {
    state: Xxh3Default,
}

impl std::fmt::Debug for RecordDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordDigest({:032x})", self.finish())
    }
}

impl RecordDigest {
    /// Takes one record in.
    pub fn update(&mut self, record: RecordView<'_>) {
        feed(&mut self.state, record);
    }

    /// The digest of what was taken in so far.
    #[must_use]
    pub fn finish(&self) -> u128 {
        self.state.digest128()
    }
}

fn feed(state: &mut Xxh3Default, record: RecordView<'_>) {
    state.update(&(record.key.len() as u32).to_le_bytes());
    state.update(record.key);
    state.update(&record.lsn.0.to_le_bytes());
    state.update(&record.hlc.0.to_le_bytes());
    state.update(&[record.kind as u8]);
    state.update(&record.expires_at_ms.to_le_bytes());
    state.update(&(record.value.len() as u32).to_le_bytes());
    state.update(record.value);
}

/// Digest of a segment's copy: the image (by the digest of its records), what is newer until it was covered, and the LSN from
/// which on its records are mirrored. Record by record: a delta may be too long for one turn of a shard's core.
#[derive(Clone, Debug)]
pub struct CopyDigest(RecordDigest);

impl CopyDigest {
    /// That of a copy without a delta.
    #[must_use]
    pub fn new(segment: SegmentId, image: u128, covered: Lsn) -> CopyDigest {
        let mut digest = RecordDigest::default();
        digest.state.update(&segment.0.to_le_bytes());
        digest.state.update(&image.to_le_bytes());
        digest.state.update(&covered.0.to_le_bytes());
        CopyDigest(digest)
    }

    /// Takes the delta's next record in.
    pub fn update(&mut self, record: RecordView<'_>) {
        self.0.update(record);
    }

    /// The digest.
    #[must_use]
    pub fn finish(&self) -> u128 {
        self.0.finish()
    }
}

/// The chain of a mirror stream, kept by source and target alike.
///
/// Each segment's chain starts from nothing with its first mirrored record: records may be mirrored while the segment's
/// copy is still on its way, so the copies are digested apart (see [`CopyDigest`]); the seal has both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainState {
    last: Lsn,
    count: u64,
    chain: u128,
    segments: BTreeMap<SegmentId, u128>,
}

/// A closed chain: what source and target compare before the commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seal {
    /// The last LSN of the stream.
    pub final_lsn: Lsn,
    /// LSNs in the stream, elided ones included.
    pub count: u64,
    /// Chain over the whole stream.
    pub chain: u128,
    /// Chain of each segment that a record was mirrored for, ascending by segment.
    pub segments: Vec<(SegmentId, u128)>,
    /// Digest of the copy of each segment that was covered, ascending by segment.
    pub copies: Vec<(SegmentId, u128)>,
}

impl ChainState {
    /// A chain whose first LSN will be the one after `from`.
    #[must_use]
    pub fn new(from: Lsn) -> ChainState {
        ChainState { last: from, count: 0, chain: 0, segments: BTreeMap::new() }
    }

    /// The last LSN folded in.
    #[must_use]
    pub fn last(&self) -> Lsn {
        self.last
    }

    /// Folds a mirrored record of `segment`.
    ///
    /// # Panics
    /// When the record does not follow gap-free: callers check bytes from a peer before.
    pub fn fold_record(&mut self, segment: SegmentId, record: RecordView<'_>) {
        assert_eq!(record.lsn, self.last.next(), "INV-CHAIN: the mirror stream has no gap");
        let fold = |chain: u128| {
            let mut state = Xxh3Default::new();
            state.update(&chain.to_le_bytes());
            feed(&mut state, record);
            state.digest128()
        };
        // The stream's chain folds the segment's: one pass over the record's bytes.
        let of_segment = self.segments.entry(segment).or_default();
        *of_segment = fold(*of_segment);
        let mut state = Xxh3Default::new();
        state.update(&self.chain.to_le_bytes());
        state.update(&segment.0.to_le_bytes());
        state.update(&of_segment.to_le_bytes());
        self.chain = state.digest128();
        self.last = record.lsn;
        self.count += 1;
    }

    /// Folds `count` elided LSNs from `first` on.
    ///
    /// # Panics
    /// When they do not follow gap-free.
    pub fn fold_elided(&mut self, first: Lsn, count: u64) {
        assert_eq!(first, self.last.next(), "INV-CHAIN: the mirror stream has no gap");
        // Elided LSNs are folded one by one, so that it does not matter how a stream groups them.
        for lsn in first.0..first.0 + count {
            let mut state = Xxh3Default::new();
            state.update(&self.chain.to_le_bytes());
            state.update(&lsn.to_le_bytes());
            self.chain = state.digest128();
        }
        self.last = Lsn(self.last.0 + count);
        self.count += count;
    }

    /// The chain as it stands, without copies.
    #[must_use]
    pub fn seal(&self) -> Seal {
        Seal {
            final_lsn: self.last,
            count: self.count,
            chain: self.chain,
            segments: self.segments.iter().map(|(segment, chain)| (*segment, *chain)).collect(),
            copies: Vec::new(),
        }
    }
}

impl Seal {
    /// The first difference between the source's seal and the target's, in words; `None` if they agree. The target may lack
    /// copies that the source has sent, but has none that the source does not know.
    #[must_use]
    pub fn difference(&self, other: &Seal) -> Option<String> {
        if self.final_lsn != other.final_lsn {
            return Some(format!("final LSN {} against {}", self.final_lsn, other.final_lsn));
        }
        if self.count != other.count {
            return Some(format!("{} records against {}", self.count, other.count));
        }
        if let Some(((segment, _), _)) = self.segments.iter().zip(&other.segments).find(|(ours, theirs)| ours != theirs)
        {
            return Some(format!("chain of segment {segment}"));
        }
        if self.chain != other.chain || self.segments.len() != other.segments.len() {
            return Some("chain of the stream".to_string());
        }
        let foreign = other.copies.iter().find(|(segment, digest)| self.copy(*segment) != Some(*digest));
        foreign.map(|(segment, _)| format!("copy of segment {segment}"))
    }

    /// The digest of the copy of a segment.
    #[must_use]
    pub fn copy(&self, segment: SegmentId) -> Option<u128> {
        let at = self.copies.binary_search_by_key(&segment, |(found, _)| *found);
        at.ok().map(|at| self.copies[at].1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::record::RecordKind;
    use crate::types::Hlc;

    fn view(lsn: u64, value: &[u8]) -> RecordView<'_> {
        RecordView { key: b"k", lsn: Lsn(lsn), hlc: Hlc(lsn), kind: RecordKind::Put, expires_at_ms: 0, value }
    }

    #[test]
    fn fold_elided_grouping_does_not_matter() {
        let (mut one, mut two) = (ChainState::new(Lsn(3)), ChainState::new(Lsn(3)));
        one.fold_elided(Lsn(4), 5);
        two.fold_elided(Lsn(4), 2);
        two.fold_elided(Lsn(6), 3);
        assert_eq!(one.seal(), two.seal());
    }

    #[test]
    fn seal_one_value_differs_names_the_segment() {
        let seal = |value: &[u8]| {
            let mut chain = ChainState::new(Lsn(0));
            chain.fold_record(SegmentId(7), view(1, value));
            chain.seal()
        };
        assert_eq!(seal(b"a").difference(&seal(b"a")), None);
        assert_eq!(seal(b"a").difference(&seal(b"b")).unwrap(), "chain of segment 7");
    }

    #[test]
    fn seal_copy_that_the_source_did_not_send_is_a_difference() {
        let seal = |copies: &[(u64, u128)]| {
            let copies = copies.iter().map(|(segment, digest)| (SegmentId(*segment), *digest)).collect();
            Seal { copies, ..ChainState::new(Lsn(0)).seal() }
        };
        let source = seal(&[(1, 10), (2, 20)]);
        assert_eq!(source.difference(&source), None);
        assert_eq!(source.difference(&seal(&[(2, 20)])), None, "what is missing is fetched");
        assert_eq!(source.difference(&seal(&[(1, 10), (2, 21)])).unwrap(), "copy of segment 2");
        assert_eq!(source.difference(&seal(&[(3, 10)])).unwrap(), "copy of segment 3");
    }

    #[test]
    fn copy_digest_each_part_counts() {
        let of = |segment, image, covered, delta: &[&'static [u8]]| {
            let mut digest = CopyDigest::new(SegmentId(segment), image, Lsn(covered));
            delta.iter().for_each(|value| digest.update(view(1, value)));
            digest.finish()
        };
        let digest = of(1, 5, 9, &[b"a"]);
        assert_eq!(digest, of(1, 5, 9, &[b"a"]));
        for other in [
            of(2, 5, 9, &[b"a"]),
            of(1, 6, 9, &[b"a"]),
            of(1, 5, 8, &[b"a"]),
            of(1, 5, 9, &[b"b"]),
            of(1, 5, 9, &[b"a", b"a"]),
            of(1, 5, 9, &[]),
        ] {
            assert_ne!(digest, other);
        }
    }

    #[test]
    fn digest_key_and_value_boundary_moves_digest_changes() {
        let digest = |key: &'static [u8], value: &'static [u8]| {
            let mut digest = RecordDigest::default();
            digest.update(RecordView { key, value, ..view(1, b"") });
            digest.finish()
        };
        assert_ne!(digest(b"ab", b"c"), digest(b"a", b"bc"));
    }
}
