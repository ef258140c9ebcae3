//! Reconciliation behind a forced promotion: the old owner hands out what it has written alone, the new one settles it
//! against its own history.
//!
//! Both histories are equal up to the LSN of the promotion. A key that only one side has changed since needs no decision. One
//! that both have changed is a *conflict*, which the partition's policy settles. What the owner writes once the
//! reconciliation has begun stands above both.
//!
//! - `INV-SETTLE`: settling a record a second time changes nothing, whatever was written in between: what the first time
//!   left lies behind [`Divergence::until`].

use std::rc::Rc;

use bytes::Bytes;

use crate::clock;
use crate::config::Durability;
use crate::erasure::Erasure;
use crate::error::{Error, Result};
use crate::limits;
use crate::merge::Retain;
use crate::merge_operator::NamedOperator;
use crate::record::{Record, RecordKind, RecordView};
use crate::types::{Hlc, HostId, KeyRange, Lsn};

use super::write::{Change, ReadBase};
use super::{Partition, Serving};

/// How a key that both sides have changed is settled.
#[derive(Clone, Debug)]
pub enum ConflictPolicy {
    /// The larger timestamp wins; of equal ones the owner's, whose epoch is later.
    LastWriteWins,
    /// The owner's version stays.
    PreferTarget,
    /// The returned version is taken.
    PreferSource,
    /// The owner's version stays, the returned one is kept under a key beside it.
    KeepBoth,
    /// Both values are combined; where one side has none, or the operator refuses, the larger timestamp wins.
    Merge(NamedOperator),
}

/// Where two histories part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The last LSN that both have.
    pub lsn: Lsn,
    /// The last LSN of the owner that is settled against the returned history.
    pub until: Lsn,
}

/// What a key holds on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its place in that side's history.
    pub lsn: Lsn,
    /// Its timestamp.
    pub hlc: Hlc,
    /// The value; `None` if it was deleted.
    pub value: Option<Bytes>,
    /// Deadline in milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
}

impl Version {
    fn of(record: RecordView<'_>) -> Version {
        let value = (record.kind == RecordKind::Put).then(|| Bytes::copy_from_slice(record.value));
        Version { lsn: record.lsn, hlc: record.hlc, value, expires_at_ms: record.expires_at_ms }
    }

    fn live(&self, now_ms: u64) -> Option<&Bytes> {
        self.value.as_ref().filter(|_| self.expires_at_ms == 0 || self.expires_at_ms > now_ms)
    }
}

/// What becomes of a returned version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The owner has it, or one that says the same: nothing is to be done.
    Same,
    /// The owner has not changed the key: it is taken.
    Taken,
    /// A conflict: it is taken, the owner's version goes.
    Returned,
    /// A conflict: the owner's version stays.
    Kept,
    /// A conflict: the owner's version stays, the returned one is kept beside it.
    KeptBoth,
    /// A conflict: both are replaced by this value.
    Merged(Bytes),
    /// The owner has written the key since the reconciliation began: that stands.
    Superseded,
}

impl Decision {
    /// Whether one of two versions did not become what the key holds.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        !matches!(self, Decision::Same | Decision::Taken)
    }
}

/// Decides about a returned version of `key` where the owner has `ours`.
#[must_use]
pub fn decide(
    policy: &ConflictPolicy,
    divergence: Divergence,
    key: &[u8],
    ours: Option<&Version>,
    theirs: &Version,
    now_ms: u64,
) -> Decision {
    let Some(ours) = ours else {
        return Decision::Taken;
    };
    let same = ours.value == theirs.value && ours.expires_at_ms == theirs.expires_at_ms;
    if same && (ours.hlc == theirs.hlc || ours.lsn > divergence.lsn) {
        return Decision::Same;
    }
    if ours.lsn <= divergence.lsn {
        return Decision::Taken;
    }
    if ours.lsn > divergence.until {
        let keeps = matches!(policy, ConflictPolicy::KeepBoth) && theirs.value.is_some();
        return if keeps { Decision::KeptBoth } else { Decision::Superseded };
    }
    let latest = if theirs.hlc > ours.hlc { Decision::Returned } else { Decision::Kept };
    match policy {
        ConflictPolicy::LastWriteWins => latest,
        ConflictPolicy::PreferTarget => Decision::Kept,
        ConflictPolicy::PreferSource => Decision::Returned,
        // Beside a value that stays, a deletion leaves nothing to be kept.
        ConflictPolicy::KeepBoth if theirs.value.is_none() => Decision::Kept,
        ConflictPolicy::KeepBoth => Decision::KeptBoth,
        ConflictPolicy::Merge(operator) => match (ours.live(now_ms), theirs.live(now_ms)) {
            (Some(one), Some(other)) => match operator.apply(key, Some(one), other) {
                Ok(merged) if merged.len() <= limits::VALUE_LEN_MAX => Decision::Merged(merged.into()),
                _ => latest,
            },
            _ => latest,
        },
    }
}

/// A returned record, and what is to become of it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The record as the old owner has it.
    pub record: Record,
    /// The newest version here.
    pub ours: Option<Version>,
    /// What follows.
    pub decision: Decision,
    base: ReadBase,
}

impl Judged {
    /// The returned version.
    #[must_use]
    pub fn theirs(&self) -> Version {
        Version::of(self.record.view())
    }
}

/// Some of what a released partition was given alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedPage {
    /// The newest version of each key, ascending by key; then, in the last page, the range deletions: what was written
    /// behind one of them is settled by then, and stands.
    pub records: Vec<Record>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Bytes>,
}

impl Partition {
    /// What was written here behind `after`, in a partition that `owner` has taken over; from `start` on (empty: from the
    /// beginning), until it takes `bytes_max` bytes.
    ///
    /// # Errors
    /// [`Error::Stale`] unless the partition is released to `owner`, [`Error::Corruption`], [`Error::Io`].
    pub async fn changed_since(
        self: &Rc<Self>,
        owner: HostId,
        after: Lsn,
        start: Bytes,
        bytes_max: usize,
    ) -> Result<ChangedPage> {
        let partition = Rc::clone(self);
        let read = async move { partition.read_changed(owner, after, &start, bytes_max).await };
        self.shard.background().run(read).await
    }

    async fn read_changed(&self, owner: HostId, after: Lsn, start: &Bytes, bytes_max: usize) -> Result<ChangedPage> {
        if self.serving() != (Serving::Released { owner }) {
            return Err(self.stale(format!("it is not released to host {owner}")));
        }
        let up_to = self.assigned();
        let view = self.view_at(up_to);
        let (from, end) = self.clamp(&KeyRange { start: start.to_vec(), end: None });
        let mut page = ChangedPage::default();
        let whole = self.clamp(&KeyRange::all());
        let mut records = self.iterate(&view, from, end, Retain::changed_between(after, up_to));
        let mut bytes = 0;
        while records.advance().await? {
            let record = records.current();
            if bytes >= bytes_max {
                page.next = Some(Bytes::copy_from_slice(record.key));
                break;
            }
            bytes += record.key.len() + record.value.len();
            page.records.push(record.to_record());
            crate::io::runtime::yield_now().await;
        }
        if page.next.is_none() {
            let mut erased = view.erasures(&whole.0, whole.1.as_ref(), after, up_to);
            erased.sort_by_key(|erasure| erasure.lsn);
            page.records.extend(erased.iter().map(Erasure::to_record));
        }
        Ok(page)
    }

    /// No timestamp of this host is larger.
    #[must_use]
    pub fn latest_timestamp(&self) -> Hlc {
        self.shard.clock().last().max(Hlc::from_wall_ms(clock::wall_ms()))
    }

    /// Makes every later timestamp larger than those of a returned history, the largest of which is `largest`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when that is further ahead of this host's clock than [`limits::HLC_AHEAD_MAX_MS`]: taking it would
    /// let a wrong clock win over everything that is written until then, and lowering it would change which of two
    /// versions is the later one.
    pub fn observe_returned(&self, largest: Hlc) -> Result<()> {
        self.check_ahead(largest)?;
        self.shard.clock().observe(largest);
        Ok(())
    }

    fn check_ahead(&self, hlc: Hlc) -> Result<()> {
        let ahead_ms = hlc.wall_ms().saturating_sub(clock::wall_ms());
        if ahead_ms <= limits::HLC_AHEAD_MAX_MS {
            return Ok(());
        }
        let what = format!(
            "partition {}: a timestamp of the returned host is {:.1} s ahead of this host's clock, at most {} s are taken: \
             set the clocks right; its writes stay where they are until then",
            self.id,
            ahead_ms as f64 / 1e3,
            limits::HLC_AHEAD_MAX_MS / 1000,
        );
        Err(Error::Invalid { what })
    }

    /// Decides about a returned record of one key.
    ///
    /// # Errors
    /// As [`Partition::get`]; [`Error::Invalid`] for a range deletion (see [`Partition::keys_erased`]) and for a timestamp too
    /// far ahead.
    pub async fn judge(&self, record: Record, divergence: Divergence, policy: &ConflictPolicy) -> Result<Judged> {
        self.check_key(&record.key)?;
        self.check_ahead(record.hlc)?;
        if record.kind == RecordKind::RangeDelete {
            return Err(Error::Invalid { what: "a range deletion is judged key by key".into() });
        }
        self.wait_readable().await?;
        self.check_whole()?;
        let base = self.read_base();
        let ours = self.newest(&record.key, base.lsn).await?;
        let theirs = Version::of(record.view());
        let decision = decide(policy, divergence, &record.key, ours.as_ref(), &theirs, clock::wall_ms());
        Ok(Judged { record, ours, decision, base })
    }

    /// The newest version of `key` at or below `at`, a deletion included.
    async fn newest(&self, key: &Bytes, at: Lsn) -> Result<Option<Version>> {
        let layout = self.layout();
        let segment = &layout.segments[layout.locate(key)];
        let (erased, found) = self.find_in_segment(key.as_ref().into(), at, segment).await?;
        let found = found.map(|found| Version::of(found.view())).filter(|found| found.lsn > erased);
        if found.is_some() || erased == Lsn(0) {
            return Ok(found);
        }
        let behind = Bytes::from([key.as_ref(), &[0]].concat());
        let erasures = self.view_at(at).erasures(key, Some(&behind), Lsn(erased.0 - 1), erased);
        let hlc = erasures.first().map_or(Hlc(0), |erasure| erasure.hlc);
        Ok(Some(Version { lsn: erased, hlc, value: None, expires_at_ms: 0 }))
    }

    /// Does what was decided, durably; `keep_at` is the key under which a version is kept beside another. False if the key
    /// was written meanwhile: then it has to be judged again.
    ///
    /// # Errors
    /// As [`Partition::write`].
    pub async fn settle_judged(&self, judged: &Judged, keep_at: Option<&Bytes>) -> Result<bool> {
        let Record { key, hlc, .. } = &judged.record;
        let theirs = judged.theirs();
        let change = |key: &Bytes, value: Option<Bytes>, expires_at_ms| Change {
            key: key.clone(),
            kind: if value.is_some() { RecordKind::Put } else { RecordKind::Delete },
            expires_at_ms,
            value: value.unwrap_or_default(),
        };
        let (change, stamp) = match &judged.decision {
            Decision::Same | Decision::Kept | Decision::Superseded => return Ok(true),
            Decision::Taken | Decision::Returned => (change(key, theirs.value, theirs.expires_at_ms), Some(*hlc)),
            Decision::Merged(value) => {
                let deadline = judged.ours.as_ref().map_or(0, |ours| ours.expires_at_ms);
                (change(key, Some(value.clone()), deadline), None)
            }
            Decision::KeptBoth => {
                let Some(beside) = keep_at.filter(|beside| self.check_key(beside).is_ok()) else {
                    return Ok(true);
                };
                let known = self.newest(beside, self.assigned()).await?;
                if known.is_some_and(|known| known.hlc == *hlc) {
                    return Ok(true);
                }
                (change(beside, theirs.value, theirs.expires_at_ms), Some(*hlc))
            }
        };
        self.wait_writable(Durability::Durable).await?;
        // Without an await from here to the append.
        let decides_key = change.key == *key;
        if decides_key && !self.unchanged_since(key, judged.base) {
            return Ok(false);
        }
        let written = self.append_stamped(change, stamp, Durability::Durable)?;
        self.freeze_if_full();
        self.wait_confirmed(written.lsn).await?;
        Ok(true)
    }

    /// The keys that a range deletion of the returned history hides here, as deletions of one key each; from `start` on
    /// (empty: from the beginning of its range), at most `limit` of them. The second value is where the next ones begin.
    ///
    /// # Errors
    /// As [`Partition::scan`].
    pub async fn keys_erased(
        &self,
        erasure: &Record,
        start: &Bytes,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<Bytes>)> {
        let erasure = Erasure::of_record(erasure.view());
        let start = if start.is_empty() { erasure.start.to_vec() } else { start.to_vec() };
        let range = KeyRange { start, end: erasure.end.as_ref().map(|end| end.to_vec()) };
        let page = self.scan(&range, limit).await?;
        let deletion = |key| Record {
            key,
            lsn: erasure.lsn,
            hlc: erasure.hlc,
            kind: RecordKind::Delete,
            expires_at_ms: 0,
            value: Bytes::new(),
        };
        Ok((page.items.into_iter().map(|item| deletion(item.key)).collect(), page.next))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::merge_operator::MergeOperators;

    const DIVERGENCE: Divergence = Divergence { lsn: Lsn(10), until: Lsn(20) };

    fn version(lsn: u64, hlc: u64, value: Option<&[u8]>) -> Version {
        let value = value.map(Bytes::copy_from_slice);
        Version { lsn: Lsn(lsn), hlc: Hlc(hlc), value, expires_at_ms: 0 }
    }

    fn decided(policy: &ConflictPolicy, ours: Option<Version>, theirs: &Version) -> Decision {
        decide(policy, DIVERGENCE, b"k", ours.as_ref(), theirs, 1_000)
    }

    fn merge(name: &str) -> ConflictPolicy {
        ConflictPolicy::Merge(MergeOperators::default().find(name).unwrap())
    }

    fn every_policy() -> Vec<ConflictPolicy> {
        use ConflictPolicy::{KeepBoth, LastWriteWins, PreferSource, PreferTarget};
        vec![LastWriteWins, PreferTarget, PreferSource, KeepBoth, merge("append")]
    }

    #[test]
    fn key_that_one_side_changed_needs_no_policy() {
        let theirs = version(15, 5, Some(b"new"));
        for policy in every_policy() {
            assert_eq!(decided(&policy, None, &theirs), Decision::Taken);
            assert_eq!(decided(&policy, Some(version(10, 9, Some(b"old"))), &theirs), Decision::Taken);
            let later = decided(&policy, Some(version(21, 9, Some(b"later"))), &theirs);
            let keeps = matches!(policy, ConflictPolicy::KeepBoth);
            assert_eq!(later, if keeps { Decision::KeptBoth } else { Decision::Superseded });
        }
    }

    #[test]
    fn conflict_is_settled_by_policy() {
        let (ours, early, late) =
            (version(12, 50, Some(b"o")), version(99, 40, Some(b"e")), version(11, 60, Some(b"l")));
        let both = |policy: ConflictPolicy| {
            (decided(&policy, Some(ours.clone()), &early), decided(&policy, Some(ours.clone()), &late))
        };
        assert_eq!(both(ConflictPolicy::LastWriteWins), (Decision::Kept, Decision::Returned));
        assert_eq!(both(ConflictPolicy::PreferTarget), (Decision::Kept, Decision::Kept));
        assert_eq!(both(ConflictPolicy::PreferSource), (Decision::Returned, Decision::Returned));
        assert_eq!(both(ConflictPolicy::KeepBoth), (Decision::KeptBoth, Decision::KeptBoth));
        let merged = |value: &'static [u8]| Decision::Merged(Bytes::from_static(value));
        assert_eq!(both(merge("append")), (merged(b"oe"), merged(b"ol")));
    }

    #[test]
    fn equal_timestamps_the_later_epoch_wins() {
        let theirs = version(90, 50, Some(b"t"));
        let decision = decided(&ConflictPolicy::LastWriteWins, Some(version(12, 50, Some(b"o"))), &theirs);
        assert_eq!(decision, Decision::Kept);
    }

    #[test]
    fn merge_with_a_deletion_or_a_refusal_falls_back_to_the_later() {
        let gone = version(12, 50, None);
        assert_eq!(decided(&merge("append"), Some(gone.clone()), &version(15, 60, Some(b"t"))), Decision::Returned);
        assert_eq!(decided(&merge("append"), Some(gone), &version(15, 40, Some(b"t"))), Decision::Kept);
        let no_number = decided(&merge("add"), Some(version(12, 50, Some(b"o"))), &version(15, 60, Some(b"t")));
        assert_eq!(no_number, Decision::Returned);
    }

    fn arbitrary_version() -> impl Strategy<Value = Version> {
        (8..24u64, 0..6u64, prop::option::of(0..3u8)).prop_map(|(lsn, hlc, value)| {
            version(lsn, hlc, value.map(|value| [value]).as_ref().map(<[u8; 1]>::as_slice))
        })
    }

    proptest! {
        /// What settling leaves is left alone by settling it again (`INV-SETTLE`).
        #[test]
        fn settled_twice_is_settled_once(
            ours in prop::option::of(arbitrary_version()), theirs in arbitrary_version(), policy in 0..5usize,
        ) {
            let policy = &every_policy()[policy];
            let decision = decided(policy, ours.clone(), &theirs);
            let left = match &decision {
                // Written by the reconciliation: behind `until`.
                Decision::Taken | Decision::Returned => Some(Version { lsn: Lsn(30), ..theirs.clone() }),
                Decision::Merged(value) => Some(version(30, 7, Some(value))),
                Decision::Same | Decision::Kept | Decision::KeptBoth | Decision::Superseded => ours,
            };
            let again = decided(policy, left, &theirs);
            let changes = matches!(again, Decision::Taken | Decision::Returned | Decision::Merged(_));
            prop_assert!(!changes, "{:?}, then {:?}", decision, again);
        }

        /// Under `lww` it does not matter which of the two was promoted, except for equal timestamps.
        #[test]
        fn last_write_wins_on_either_side(one in arbitrary_version(), other in arbitrary_version()) {
            let in_conflict = |of: Version| Version { lsn: Lsn(15), ..of };
            let (one, other) = (in_conflict(one), in_conflict(other));
            prop_assume!(one.hlc != other.hlc && one.value != other.value);
            let policy = ConflictPolicy::LastWriteWins;
            let here = decided(&policy, Some(one.clone()), &other) == Decision::Returned;
            let there = decided(&policy, Some(other), &one) == Decision::Returned;
            prop_assert!(here != there);
        }
    }
}
