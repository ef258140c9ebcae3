//! Walks over the keys of this host, in the order of their slots.
//!
//! A cursor is a slot and a fingerprint of the last key that was returned from it: it means the same to every host and
//! after every restart. Whoever gets one continues behind that key; if the key has gone meanwhile, the slot is begun
//! again, which returns keys twice, and SCAN may. Where a walk has entered a partition, it goes to its end even if the
//! partition moves away: its pages are asked from the new owner.

use std::collections::{HashMap, VecDeque};

use antumbra_engine::Durability;
use antumbra_engine::types::{HostId, PartitionId};
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::routing::Topology;

use super::connection::Connection;
use super::forward::PAGE_KEYS_MAX;
use super::glob::matches_glob;
use super::keyed::parse_integer;
use super::operation::{Operation, Outcome};
use super::reply::Reply;
use super::slot::{self, SLOTS};

/// Keys that KEYS returns, and their bytes.
const KEYS_MAX: usize = 100_000;
const KEYS_BYTES_MAX: usize = 64 << 20;
/// Keys that one SCAN returns.
const SCAN_KEYS_MAX: usize = PAGE_KEYS_MAX;
/// Places of cursors that a shard remembers, so that it need not look for them.
const CURSORS_MAX: usize = 4096;
/// Bits of the fingerprint: a cursor fits the numbers of JavaScript, which some clients read it into.
const FINGERPRINT_BITS: u32 = 39;

/// Where a walk stands: in a slot, behind a key with this fingerprint, or at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    slot: u16,
    fingerprint: u64,
}

impl Cursor {
    fn behind(routing_key: &Bytes) -> Cursor {
        let slot = u16::from_be_bytes([routing_key[0], routing_key[1]]);
        Cursor { slot, fingerprint: fingerprint(routing_key) }
    }

    fn encode(self) -> u64 {
        u64::from(self.slot) << FINGERPRINT_BITS | self.fingerprint
    }

    fn decode(number: u64) -> Option<Cursor> {
        let slot = u16::try_from(number >> FINGERPRINT_BITS).ok().filter(|slot| *slot < SLOTS)?;
        Some(Cursor { slot, fingerprint: number & ((1 << FINGERPRINT_BITS) - 1) })
    }
}

fn fingerprint(routing_key: &[u8]) -> u64 {
    (xxh3_64(routing_key) >> (64 - FINGERPRINT_BITS)).max(1)
}

/// The keys behind cursors that were given out lately.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    keys: HashMap<u64, Bytes>,
    order: VecDeque<u64>,
}

impl Cursors {
    fn remember(&mut self, cursor: u64, routing_key: Bytes) {
        if self.keys.insert(cursor, routing_key).is_none() {
            self.order.push_back(cursor);
        }
        if self.order.len() > CURSORS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}

/// Whether partitions may begin there.
fn is_slot_start(routing_key: &[u8]) -> bool {
    routing_key.len() == 2
}

/// The smallest key above another one.
fn above(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

struct Page {
    /// Routing keys.
    keys: Vec<Bytes>,
    /// Whether there may be more.
    more: bool,
}

impl Connection<'_> {
    /// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`.
    pub async fn scan(&self, args: &[Bytes]) -> Reply {
        match ScanOptions::parse(args) {
            Ok(options) => match self.scan_from(&options).await {
                Ok(reply) => reply,
                Err(cause) => self.failure(0, Err(cause)),
            },
            Err(reply) => reply,
        }
    }

    async fn scan_from(&self, options: &ScanOptions) -> Result<Reply> {
        let topology = self.server.host.routing.load();
        let routes = Routes { topology: &topology, host: self.server.host.id };
        // A walk that stands in a partition, wherever that is by now, goes on in it.
        let is_inside = options.cursor != Cursor { slot: 0, fingerprint: 0 };
        let mut start = if is_inside { self.find_place(options.cursor).await? } else { Bytes::from_static(&[0, 0]) };
        let mut bounds = if is_inside { routes.holding(options.cursor.slot) } else { None };
        let (mut keys, mut next) = (Vec::new(), 0);
        while let Some((first, last)) = bounds.take().or_else(|| routes.next_own(&start)) {
            let range = slot::range_of((first, last));
            start = start.max(Bytes::from(range.start));
            let page = self.page(start.clone(), range.end.map(Bytes::from), options.count - keys.len()).await?;
            keys.extend(page.keys);
            start = match keys.last() {
                Some(last) if page.more => {
                    let cursor = Cursor::behind(last).encode();
                    self.server.cursors.borrow_mut().remember(cursor, last.clone());
                    next = cursor;
                    break;
                }
                _ => match last.checked_add(1) {
                    Some(slot) if slot < SLOTS => Bytes::copy_from_slice(&slot.to_be_bytes()),
                    _ => break,
                },
            };
            if keys.len() >= options.count {
                // The next partition is entered by giving out where it begins.
                if let Some((first, _)) = routes.next_own(&start) {
                    next = Cursor { slot: first, fingerprint: 0 }.encode();
                }
                break;
            }
        }
        let keys = keys.into_iter().map(|key| key.slice(2..));
        let matching = keys.filter(|key| {
            !options.is_other_type
                && options.pattern.as_ref().is_none_or(|pattern| matches_glob(pattern, key))
                && self.user.as_ref().is_some_and(|user| user.may_read(key))
        });
        Ok(Reply::Array(vec![Reply::text(next.to_string()), Reply::Array(matching.map(Reply::Bulk).collect())]))
    }

    /// Where a walk goes on.
    async fn find_place(&self, cursor: Cursor) -> Result<Bytes> {
        let slot_start = Bytes::copy_from_slice(&cursor.slot.to_be_bytes());
        if cursor.fingerprint == 0 {
            return Ok(slot_start);
        }
        if let Some(key) = self.server.cursors.borrow().keys.get(&cursor.encode()) {
            return Ok(above(key));
        }
        let end = slot::range_of((cursor.slot, cursor.slot)).end.map(Bytes::from);
        let mut start = slot_start.clone();
        loop {
            let page = self.page(start, end.clone(), PAGE_KEYS_MAX).await?;
            if let Some(found) = page.keys.iter().find(|key| fingerprint(key) == cursor.fingerprint) {
                return Ok(above(found));
            }
            match page.keys.last() {
                Some(last) if page.more => start = above(last),
                _ => return Ok(slot_start),
            }
        }
    }

    /// Keys of one partition, wherever it is, and of those that it has become since.
    async fn page(&self, mut start: Bytes, end: Option<Bytes>, limit: usize) -> Result<Page> {
        let (server, limit) = (self.server, limit.min(PAGE_KEYS_MAX));
        let forwarding = || server.counters.forwarded.add();
        let mut keys = Vec::new();
        loop {
            let operation = Operation::Page { start, end: end.clone(), limit: limit - keys.len() };
            let (found, next) =
                match super::execute::run(&server.host, &server.shard, operation, false, forwarding).await? {
                    Outcome::Keys(found, next) => (found, next),
                    other => return Err(Error::protocol(format!("a page of keys was asked for, not {other:?}"))),
                };
            let has_ended = found.is_empty();
            keys.extend(found);
            match next {
                // Nothing was left of what the partition has of them: another one goes on.
                Some(next) if keys.len() < limit && (has_ended || is_slot_start(&next)) => start = next,
                next => return Ok(Page { keys, more: next.is_some() }),
            }
        }
    }

    /// Walks over all keys of this host until `visit` says that it is enough.
    async fn walk(&self, mut visit: impl FnMut(Vec<Bytes>) -> bool) -> Result<()> {
        let topology = self.server.host.routing.load();
        for bounds in own_bounds(&topology, self.server.host.id) {
            if !self.walk_slots(bounds, &mut visit).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// As [`Connection::walk`], over slots of one partition. False when `visit` broke off.
    async fn walk_slots(&self, bounds: (u16, u16), mut visit: impl FnMut(Vec<Bytes>) -> bool) -> Result<bool> {
        let range = slot::range_of(bounds);
        let (mut start, end) = (Bytes::from(range.start), range.end.map(Bytes::from));
        loop {
            let page = self.page(start, end.clone(), PAGE_KEYS_MAX).await?;
            let last = page.keys.last().cloned();
            if !visit(page.keys) {
                return Ok(false);
            }
            match last {
                Some(last) if page.more => start = above(&last),
                _ => return Ok(true),
            }
        }
    }

    /// `DBSIZE`.
    pub async fn dbsize(&self) -> Reply {
        let mut count = 0;
        let walked = self.walk(|keys| {
            count += keys.len() as i64;
            true
        });
        match walked.await {
            Ok(()) => Reply::Integer(count),
            Err(cause) => self.failure(0, Err(cause)),
        }
    }

    /// `KEYS pattern`.
    pub async fn keys(&self, pattern: &[u8]) -> Reply {
        let (mut found, mut bytes) = (Vec::new(), 0);
        let walked = self.walk(|keys| {
            for key in keys {
                let key = key.slice(2..);
                if matches_glob(pattern, &key) && self.user.as_ref().is_some_and(|user| user.may_read(&key)) {
                    bytes += key.len();
                    // A part of a page would keep all of it.
                    found.push(Reply::Bulk(Bytes::copy_from_slice(&key)));
                }
            }
            found.len() <= KEYS_MAX && bytes <= KEYS_BYTES_MAX
        });
        if let Err(cause) = walked.await {
            return self.failure(0, Err(cause));
        }
        if found.len() > KEYS_MAX || bytes > KEYS_BYTES_MAX {
            return Reply::Error(format!("ERR KEYS would return more than {KEYS_MAX} keys: use SCAN"));
        }
        Reply::Array(found)
    }

    /// `RANDOMKEY`: a key near a place that was chosen by chance, each slot as likely as the others.
    pub async fn randomkey(&self) -> Reply {
        const NEAR: usize = 64;
        let topology = self.server.host.routing.load();
        let own: Vec<(u16, u16)> = own_bounds(&topology, self.server.host.id).collect();
        let slots: u32 = own.iter().map(|(first, last)| u32::from(last - first) + 1).sum();
        if slots == 0 {
            return Reply::Nil;
        }
        let mut chosen = fastrand::u32(0..slots);
        let mut at = 0;
        while chosen > u32::from(own[at].1 - own[at].0) {
            chosen -= u32::from(own[at].1 - own[at].0) + 1;
            at += 1;
        }
        // From there on to the end, then what is before it.
        let (first, last) = own[at];
        let middle = first + chosen as u16;
        let mut bounds = vec![(middle, last)];
        bounds.extend(own[at + 1..].iter().chain(&own[..at]).copied());
        bounds.extend((middle > first).then(|| (first, middle - 1)));
        for bounds in bounds {
            let range = slot::range_of(bounds);
            match self.page(range.start.into(), range.end.map(Bytes::from), NEAR).await {
                Ok(page) => {
                    let mut keys: Vec<Bytes> = page.keys.into_iter().map(|key| key.slice(2..)).collect();
                    keys.retain(|key| self.user.as_ref().is_some_and(|user| user.may_read(key)));
                    if !keys.is_empty() {
                        return Reply::Bulk(keys.swap_remove(fastrand::usize(0..keys.len())));
                    }
                }
                Err(cause) => return self.failure(0, Err(cause)),
            }
        }
        Reply::Nil
    }

    /// `CLUSTER COUNTKEYSINSLOT slot`: nothing for slots of other hosts, as Redis does.
    pub async fn count_keys_in_slot(&self, slot: &[u8]) -> Reply {
        let mut count = 0;
        let visit = |keys: Vec<Bytes>| {
            count += keys.len() as i64;
            true
        };
        match self.walk_own_slot(slot, visit).await {
            Ok(()) => Reply::Integer(count),
            Err(reply) => reply,
        }
    }

    /// `CLUSTER GETKEYSINSLOT slot count`.
    pub async fn keys_in_slot(&self, slot: &[u8], limit: &[u8]) -> Reply {
        let limit = parse_integer(limit).and_then(|limit| usize::try_from(limit).ok());
        let Some(limit) = limit.filter(|limit| *limit <= KEYS_MAX) else {
            return Reply::error("ERR Invalid number of keys");
        };
        let mut found = Vec::new();
        let visit = |keys: Vec<Bytes>| {
            found.extend(keys.into_iter().map(|key| Reply::Bulk(key.slice(2..))));
            found.len() < limit
        };
        match self.walk_own_slot(slot, visit).await {
            Ok(()) => {
                found.truncate(limit);
                Reply::Array(found)
            }
            Err(reply) => reply,
        }
    }

    async fn walk_own_slot(
        &self,
        slot: &[u8],
        visit: impl FnMut(Vec<Bytes>) -> bool,
    ) -> std::result::Result<(), Reply> {
        let number = parse_integer(slot).and_then(|slot| u16::try_from(slot).ok()).filter(|slot| *slot < SLOTS);
        let slot = number.ok_or_else(|| Reply::error("ERR Invalid slot"))?;
        let host = &self.server.host;
        if host.routing.load().route(slot).is_none_or(|route| route.owner != host.id) {
            return Ok(());
        }
        self.walk_slots((slot, slot), visit).await.map(drop).map_err(|cause| self.failure(slot, Err(cause)))
    }

    /// `FLUSHDB` and `FLUSHALL`.
    pub async fn flush_keys(&self) -> Reply {
        if !self.server.service.config.allow_flush {
            return Reply::error("ERR FLUSHDB is off: start the node with --allow-flush to have it delete everything");
        }
        let topology = self.server.host.routing.load();
        let own = topology.routes.iter().filter(|route| route.owner == self.server.host.id);
        for route in own {
            if let Err(cause) = self.flush_partition(route.partition, route.slots).await {
                return self.failure(route.slots.0, Err(cause));
            }
        }
        Reply::OK
    }

    async fn flush_partition(&self, id: PartitionId, slots: (u16, u16)) -> Result<()> {
        let (partition, range) = (self.server.host.engine.partition(id)?, slot::range_of(slots));
        partition.delete_range(range.clone(), Durability::Durable).await?;
        if partition.stats().await?.range != range {
            return Err(Error::Refused { what: format!("TRYAGAIN partition {id} was split or merged meanwhile") });
        }
        Ok(())
    }
}

fn own_bounds(topology: &Topology, host: HostId) -> impl Iterator<Item = (u16, u16)> + '_ {
    topology.routes.iter().filter(move |route| route.owner == host).map(|route| route.slots)
}

/// The partitions that a walk goes through.
struct Routes<'a> {
    topology: &'a Topology,
    host: HostId,
}

impl Routes<'_> {
    fn holding(&self, slot: u16) -> Option<(u16, u16)> {
        self.topology.route(slot).map(|route| route.slots)
    }

    /// The first partition of this host with slots at or behind `start`.
    fn next_own(&self, start: &[u8]) -> Option<(u16, u16)> {
        let slot = u16::from_be_bytes([start[0], start[1]]);
        own_bounds(self.topology, self.host).find(|(_, last)| *last >= slot)
    }
}

struct ScanOptions {
    cursor: Cursor,
    count: usize,
    pattern: Option<Bytes>,
    /// No key is of the type that is asked for.
    is_other_type: bool,
}

impl ScanOptions {
    fn parse(args: &[Bytes]) -> std::result::Result<ScanOptions, Reply> {
        let number = |bytes: &Bytes| std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<u64>().ok());
        let cursor = number(&args[1]).and_then(Cursor::decode).ok_or_else(|| Reply::error("ERR invalid cursor"))?;
        let mut options = ScanOptions { cursor, count: 10, pattern: None, is_other_type: false };
        for pair in args[2..].chunks(2) {
            match (pair[0].to_ascii_lowercase().as_slice(), pair.get(1)) {
                (b"match", Some(pattern)) => options.pattern = Some(pattern.clone()),
                (b"type", Some(kind)) => options.is_other_type = !kind.eq_ignore_ascii_case(b"string"),
                (b"count", Some(count)) => {
                    let count = parse_integer(count).ok_or_else(super::keyed::not_an_integer)?;
                    if count < 1 {
                        return Err(Reply::error("ERR syntax error"));
                    }
                    options.count = count.min(SCAN_KEYS_MAX as i64) as usize;
                }
                _ => return Err(Reply::error("ERR syntax error")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_is_a_number_that_every_client_can_read() {
        for key in [&b"foo"[..], b"{a}b", b""] {
            let cursor = Cursor::behind(&slot::routing_key(key).into());
            assert!(cursor.fingerprint > 0 && cursor.encode() < 1 << 53);
            assert_eq!(Cursor::decode(cursor.encode()), Some(cursor));
        }
        assert_eq!(Cursor::decode(u64::MAX), None);
        assert_eq!(Cursor::decode(u64::from(SLOTS) << FINGERPRINT_BITS), None);
    }
}
