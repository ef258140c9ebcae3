//! What a partition must hold: every write with its LSN, in memory, and what of it may be missing after a crash.
//!
//! A shard recovers a *prefix* of a partition's history: up to some LSN at or behind the last acknowledged durable
//! write everything is there, and nothing behind it. So the model needs no guessing: the LSN of each write is seen when
//! it is assigned, acknowledged or not, and after a crash the partition's own last LSN says which prefix it claims.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::partition::{KeyValue, Write};
use crate::types::{KeyRange, Lsn};

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub lsn: Lsn,
    /// `None` for a tombstone.
    pub value: Option<Bytes>,
    /// Milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
}

impl Version {
    /// What `write` leaves at `lsn`.
    pub fn of(write: &Write, lsn: Lsn) -> Version {
        Version { lsn, value: write.value.clone(), expires_at_ms: write.expires_at_ms }
    }

    fn live_at(&self, now_ms: u64) -> Option<&Bytes> {
        let expired = self.expires_at_ms != 0 && self.expires_at_ms <= now_ms;
        self.value.as_ref().filter(|_| !expired)
    }
}

/// The history of one partition.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Ascending by LSN.
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// Last LSN noted.
    last: Lsn,
    /// Last LSN that was acknowledged as durable.
    acked: Lsn,
    /// First and last LSN of each write of more than one record: all of it survives, or nothing.
    atomic: Vec<(Lsn, Lsn)>,
}

impl History {
    /// The LSNs from `first` to `last` have just been assigned to one write: all of it survives, or nothing.
    pub fn begin(&mut self, first: Lsn, last: Lsn) -> Result<(), String> {
        let before = std::mem::replace(&mut self.last, last);
        if first < last {
            self.atomic.push((first, last));
        }
        if first == before.next() { Ok(()) } else { Err(format!("LSN {first} was assigned after {before}")) }
    }

    /// Notes a version of a write that has begun.
    pub fn put(&mut self, key: Bytes, version: Version) {
        self.keys.entry(key).or_default().push(version);
    }

    /// Notes that what `range` holds is deleted at `lsn`.
    pub fn erase(&mut self, range: &KeyRange, lsn: Lsn) {
        for (key, versions) in self.keys.range_mut(Bytes::copy_from_slice(&range.start)..) {
            if range.end.as_deref().is_some_and(|end| key.as_ref() >= end) {
                break;
            }
            versions.push(Version { lsn, value: None, expires_at_ms: 0 });
        }
    }

    /// Everything up to `lsn` was acknowledged as durable.
    pub fn acknowledge(&mut self, lsn: Lsn) {
        self.acked = self.acked.max(lsn);
    }

    /// After a restart the partition says that its history ends at `last`. Forgets what is behind it.
    pub fn settle(&mut self, last: Lsn) -> Result<(), String> {
        if last < self.acked {
            return Err(format!("recovered up to LSN {last}, but {} was acknowledged as durable", self.acked));
        }
        self.cut(last)
    }

    /// As [`History::settle`], when damage to the log may have cost acknowledged writes.
    pub fn cut(&mut self, last: Lsn) -> Result<(), String> {
        if last > self.last {
            return Err(format!("recovered up to LSN {last}, but only {} were written", self.last));
        }
        if let Some((first, end)) = self.atomic.iter().find(|(first, end)| *first <= last && last < *end) {
            return Err(format!("recovered up to LSN {last}, in the middle of the batch from {first} to {end}"));
        }
        self.last = last;
        self.atomic.retain(|(_, end)| *end <= last);
        for versions in self.keys.values_mut() {
            versions.truncate(versions.partition_point(|version| version.lsn <= last));
        }
        self.keys.retain(|_, versions| !versions.is_empty());
        // What was recovered is durable.
        self.acked = last;
        Ok(())
    }

    /// The version of `key` that a reader at `lsn` finds.
    pub fn version(&self, key: &[u8], lsn: Lsn) -> Option<&Version> {
        let versions = self.keys.get(key)?;
        let index = versions.partition_point(|version| version.lsn <= lsn).checked_sub(1)?;
        versions.get(index)
    }

    /// The value that a reader at `lsn` and `now_ms` finds.
    pub fn value(&self, key: &[u8], lsn: Lsn, now_ms: u64) -> Option<Bytes> {
        self.version(key, lsn).and_then(|version| version.live_at(now_ms)).cloned()
    }

    /// What a scan at `lsn` and `now_ms` returns: up to `limit` items, and the key behind them.
    pub fn scan(&self, range: &KeyRange, limit: usize, lsn: Lsn, now_ms: u64) -> (Vec<KeyValue>, Option<Bytes>) {
        let mut items = Vec::new();
        for key in self.keys.range(Bytes::copy_from_slice(&range.start)..).map(|(key, _)| key) {
            if range.end.as_deref().is_some_and(|end| key.as_ref() >= end) {
                break;
            }
            let Some(value) = self.value(key, lsn, now_ms) else {
                continue;
            };
            if items.len() == limit {
                return (items, Some(key.clone()));
            }
            items.push(KeyValue { key: key.clone(), value });
        }
        (items, None)
    }

    /// Last LSN noted.
    pub fn last(&self) -> Lsn {
        self.last
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn written(lsns: u64) -> History {
        let mut history = History::default();
        for lsn in 1..=lsns {
            let value = Some(Bytes::from(lsn.to_string()));
            let key = Bytes::from(format!("k{}", lsn % 3));
            if lsn != 7 && lsn != 8 {
                let last = if lsn == 6 { 8 } else { lsn };
                history.begin(Lsn(lsn), Lsn(last)).unwrap();
            }
            history.put(key, Version { lsn: Lsn(lsn), value, expires_at_ms: if lsn == 6 { 100 } else { 0 } });
        }
        history
    }

    #[test]
    fn settle_before_acknowledged_behind_written_or_within_batch_is_refused() {
        let mut history = written(9);
        history.acknowledge(Lsn(4));
        assert!(history.clone().settle(Lsn(3)).is_err());
        assert!(history.clone().settle(Lsn(10)).is_err());
        assert!(history.clone().settle(Lsn(7)).is_err());
        history.settle(Lsn(5)).unwrap();
        assert_eq!(history.value(b"k0", Lsn(99), 0).unwrap(), "3", "LSN 6 and 9 are gone");
        assert!(history.begin(Lsn(7), Lsn(7)).is_err(), "LSN 6 is due");
    }

    #[test]
    fn scan_at_lsn_and_time_skips_expired_and_names_the_next() {
        let history = written(8);
        let (items, next) = history.scan(&KeyRange::all(), 1, Lsn(7), 99);
        assert_eq!((items[0].key.as_ref(), items[0].value.as_ref()), (&b"k0"[..], &b"6"[..]));
        assert_eq!(next.unwrap(), "k1");
        let (items, next) = history.scan(&KeyRange::all(), 5, Lsn(7), 100);
        assert_eq!(items.iter().map(|item| item.value.as_ref()).collect::<Vec<_>>(), [b"7", b"5"]);
        assert_eq!(next, None);
    }
}
