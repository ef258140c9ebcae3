//! Walks over the keys of this host.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::error::Result;

use super::connection::Connection;
use super::reply::Reply;
use super::server::Server;
use super::slot;

/// Scans whose position is remembered, for each shard.
const CURSORS_MAX: usize = 4096;

/// Positions of scans: an opaque number stands for the routing key where the next page begins.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    next: u64,
    positions: HashMap<u64, Bytes>,
    order: VecDeque<u64>,
}

impl Cursors {
    fn remember(&mut self, position: Bytes) -> u64 {
        self.next += 1;
        self.positions.insert(self.next, position);
        self.order.push_back(self.next);
        if self.order.len() > CURSORS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.positions.remove(&oldest);
        }
        self.next
    }
}

impl Connection<'_> {
    /// Pages through this host's partitions in the order of their slots.
    pub async fn scan(&self, args: &[Bytes]) -> Reply {
        let options = match ScanOptions::parse(args) {
            Ok(options) => options,
            Err(reply) => return reply,
        };
        let start = match options.cursor {
            0 => Bytes::new(),
            cursor => match self.server.cursors.borrow().positions.get(&cursor) {
                Some(position) => position.clone(),
                None => return Reply::Error("ERR unknown cursor: begin the scan again with 0".into()),
            },
        };
        match self.server.scan_page(start, options.count).await {
            Ok((keys, next)) => {
                let cursor = next.map_or(0, |next| self.server.cursors.borrow_mut().remember(next));
                let matching =
                    keys.into_iter().filter(|key| options.pattern.as_ref().is_none_or(|glob| matches_glob(glob, key)));
                let keys = matching.map(Reply::Bulk).collect();
                Reply::Array(vec![Reply::text(cursor.to_string()), Reply::Array(keys)])
            }
            Err(cause) => self.server.failure(0, Err(cause)),
        }
    }

    /// Counts the keys.
    pub async fn dbsize(&self) -> Reply {
        let (mut count, mut start) = (0, Bytes::new());
        loop {
            match self.server.scan_page(start, 1_000).await {
                Ok((keys, next)) => {
                    count += keys.len() as i64;
                    match next {
                        Some(next) => start = next,
                        None => return Reply::Integer(count),
                    }
                }
                Err(cause) => return self.server.failure(0, Err(cause)),
            }
        }
    }
}

impl Server {
    /// Up to `count` keys from routing key `start` on, and where the next page begins.
    async fn scan_page(&self, start: Bytes, count: usize) -> Result<(Vec<Bytes>, Option<Bytes>)> {
        let topology = self.host.routing.load();
        let mine = topology.routes.iter().filter(|route| route.owner == self.host.id);
        let mut from = start;
        for route in mine {
            let mut range = slot::range_of(route.slots);
            if range.end.as_deref().is_some_and(|end| from.as_ref() >= end) {
                continue;
            }
            if from.as_ref() > range.start.as_slice() {
                range.start = from.to_vec();
            }
            let end = range.end.clone();
            let page = match self.shard.partition(route.partition) {
                Ok(partition) => partition.scan(&range, count).await?,
                Err(_) => self.host.engine.partition(route.partition)?.scan(range, count).await?,
            };
            // The next page of this partition, or the next partition.
            let next = page.next.or_else(|| end.map(Bytes::from));
            if page.items.is_empty() && next.is_some() {
                from = next.unwrap_or_default();
                continue;
            }
            let keys = page.items.into_iter().map(|item| item.key.slice(2..)).collect();
            return Ok((keys, next));
        }
        Ok((Vec::new(), None))
    }
}

struct ScanOptions {
    cursor: u64,
    count: usize,
    pattern: Option<Bytes>,
}

impl ScanOptions {
    fn parse(args: &[Bytes]) -> std::result::Result<ScanOptions, Reply> {
        let number = |bytes: &Bytes| std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<u64>().ok());
        let cursor = number(&args[1]).ok_or_else(|| Reply::Error("ERR invalid cursor".into()))?;
        let mut options = ScanOptions { cursor, count: 10, pattern: None };
        for pair in args[2..].chunks(2) {
            match (pair[0].to_ascii_lowercase().as_slice(), pair.get(1)) {
                (b"match", Some(pattern)) => options.pattern = Some(pattern.clone()),
                (b"count", Some(count)) => {
                    let count = number(count).filter(|count| *count > 0);
                    let count =
                        count.ok_or_else(|| Reply::Error("ERR value is not an integer or out of range".into()))?;
                    options.count = count.min(10_000) as usize;
                }
                _ => return Err(Reply::Error("ERR syntax error".into())),
            }
        }
        Ok(options)
    }
}

/// `*`, `?` and literal bytes.
fn matches_glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, matched)) => {
                    star = Some((at, matched + 1));
                    (p, t) = (at + 1, matched + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_glob_stars_and_marks() {
        assert!(matches_glob(b"a*c?", b"abbbcd"));
        assert!(matches_glob(b"*", b""));
        assert!(!matches_glob(b"a?", b"a"));
        assert!(!matches_glob(b"abc", b"abd"));
    }
}
