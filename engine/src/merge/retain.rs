//! Which versions of a key survive a merge.

use crate::erasure::{self, Erasure};
use crate::record::{RecordKind, RecordView};
use crate::types::Lsn;

/// Which versions of a key a merge keeps.
#[derive(Clone, Debug)]
pub(crate) struct Retain {
    /// For each of these LSNs, descending, the newest version at or below it is kept.
    pub(super) bounds: Vec<Lsn>,
    /// Versions at or below are left out (a delta begins behind them).
    pub(super) after: Lsn,
    /// Every version above is kept: readers will begin at any LSN from here on.
    pub(super) all_above: Lsn,
    /// Tombstones and expired records at or below this LSN are left out.
    pub(super) forget_up_to: Lsn,
    /// Records with a deadline at or before this time have expired.
    pub(super) now_ms: u64,
}

impl Retain {
    /// What a reader at `lsn` sees: one live record a key.
    pub fn visible_at(lsn: Lsn, now_ms: u64) -> Retain {
        Retain { bounds: vec![lsn], after: Lsn(0), all_above: Lsn(u64::MAX), forget_up_to: lsn, now_ms }
    }

    /// What changed behind `after` up to `lsn`: the newest version a key, tombstones included.
    pub fn changed_between(after: Lsn, lsn: Lsn) -> Retain {
        Retain { bounds: vec![lsn], after, all_above: Lsn(u64::MAX), forget_up_to: Lsn(0), now_ms: 0 }
    }

    /// What any reader may still need, tombstones included, since older versions may lie below: those at `snapshots`
    /// (ascending) and those to come, which begin at `visible` or later.
    pub fn needed(snapshots: &[Lsn], visible: Lsn) -> Retain {
        let mut bounds = vec![Lsn(u64::MAX), visible];
        bounds.extend(snapshots.iter().rev().filter(|snapshot| **snapshot < visible));
        Retain { bounds, after: Lsn(0), all_above: visible, forget_up_to: Lsn(0), now_ms: 0 }
    }

    /// As [`Retain::needed`] where nothing lies below: tombstones that every reader sees are forgotten.
    pub fn needed_at_bottom(snapshots: &[Lsn], visible: Lsn, horizon_ms: u64) -> Retain {
        let forget_up_to = snapshots.first().copied().unwrap_or(visible).min(visible);
        Retain { forget_up_to, now_ms: horizon_ms, ..Retain::needed(snapshots, visible) }
    }

    /// The same, but what is gone behind `lsn` is not forgotten.
    pub fn remembering_since(self, lsn: Option<Lsn>) -> Retain {
        Retain { forget_up_to: lsn.map_or(self.forget_up_to, |lsn| self.forget_up_to.min(lsn)), ..self }
    }

    /// Records at or below are left out.
    pub fn after(&self) -> Lsn {
        self.after
    }

    /// Whether of each key's versions that a reader at its bound sees only the newest can be kept.
    pub fn is_of_one_version(&self) -> bool {
        self.bounds.len() == 1 && self.all_above == Lsn(u64::MAX)
    }

    /// The erasures that are still needed once this has been applied to every older version of their keys.
    pub fn keep_erasures(&self, erasures: &mut Vec<Erasure>) {
        erasures.retain(|erasure| erasure.lsn > self.forget_up_to);
        erasure::drop_contained(erasures, &self.bounds, self.all_above);
    }

    pub(super) fn forgets(&self, record: RecordView<'_>) -> bool {
        let gone = record.kind == RecordKind::Delete || !record.is_live(self.now_ms);
        gone && record.lsn <= self.forget_up_to
    }
}
