//! Connections of one shard.
//!
//! Memory of a connection: its read buffer (at most one command and [`READ_BYTES`]) and the replies of one batch.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::{Shard, runtime};
use bytes::{Bytes, BytesMut};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use futures_util::future::join_all;
use glommio::net::{TcpListener, TcpStream};

use crate::error::{Error, Result};
use crate::host::Host;

use super::codec;
use super::command::{self, Kind};
use super::operation::{Operation, Outcome};
use super::reply::Reply;
use super::{admin, cluster, execute, slot};

/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;
/// Replies are sent when this many bytes are waiting.
const REPLY_BYTES: usize = 256 << 10;
/// Scans whose position is remembered, for each shard.
const CURSORS_MAX: usize = 4096;

/// Configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// TCP address; every shard listens on it (SO_REUSEPORT).
    pub listen: SocketAddr,
    /// Connections of one shard; more are refused.
    pub connections_max: usize,
}

/// What a server has done.
#[derive(Debug, Default)]
pub struct Counters {
    connections: Cell<usize>,
    accepted: Cell<u64>,
    commands: Cell<u64>,
    forwarded: Cell<u64>,
    moved: Cell<u64>,
    errors: Cell<u64>,
}

fn add(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Positions of scans: an opaque number stands for the routing key where the next page begins.
#[derive(Debug, Default)]
struct Cursors {
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

struct Server {
    host: Arc<Host>,
    shard: Rc<Shard>,
    counters: Counters,
    cursors: RefCell<Cursors>,
}

/// Listens and serves until the shard ends.
///
/// # Errors
/// [`Error::Link`] when the address cannot be had.
pub async fn serve(host: Arc<Host>, shard: Rc<Shard>, config: ServerConfig) -> Result<()> {
    let listener = TcpListener::bind(config.listen).map_err(|cause| Error::link(config.listen, cause))?;
    let server = Rc::new(Server { host, shard, counters: Counters::default(), cursors: RefCell::default() });
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(cause) => {
                tracing::warn!(%cause, "accept");
                runtime::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let server = Rc::clone(&server);
        let full = server.counters.connections.get() >= config.connections_max;
        runtime::spawn_detached(async move {
            let open = &server.counters.connections;
            open.set(open.get() + 1);
            add(&server.counters.accepted);
            let mut connection =
                Connection { server: &server, stream, version: 2, follows_moved: false, name: Bytes::new() };
            if full {
                let _ = connection.stream.write_all(b"-ERR max number of clients reached\r\n").await;
            } else if let Err(cause) = connection.run().await {
                tracing::debug!(%cause, "connection");
            }
            let _ = connection.stream.close().await;
            let open = &server.counters.connections;
            open.set(open.get() - 1);
        });
    }
}

struct Connection<'a> {
    server: &'a Server,
    stream: TcpStream,
    version: u8,
    /// The client has shown that it follows MOVED; others are forwarded.
    follows_moved: bool,
    name: Bytes,
}

impl Connection<'_> {
    async fn run(&mut self) -> std::io::Result<()> {
        self.stream.set_nodelay(true).map_err(std::io::Error::from)?;
        let mut buffer = BytesMut::new();
        let mut chunk = vec![0; READ_BYTES];
        let mut replies = Vec::new();
        loop {
            let len = self.stream.read(&mut chunk).await?;
            if len == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&chunk[..len]);
            let (commands, bad) = take_commands(&mut buffer);
            let quit = self.serve_batch(commands, &mut replies).await?;
            if let Some(bad) = bad {
                Reply::Error(format!("ERR {}", bad.0)).write(&mut replies, self.version);
                self.stream.write_all(&replies).await?;
                return Ok(());
            }
            if !replies.is_empty() {
                self.stream.write_all(&replies).await?;
                replies.clear();
            }
            if quit {
                return Ok(());
            }
        }
    }

    /// Serves what one read brought. Neighbouring SETs begin together, so that they share a group commit.
    async fn serve_batch(&mut self, commands: Vec<Vec<Bytes>>, replies: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut commands = commands.into_iter().peekable();
        while let Some(args) = commands.next() {
            add(&self.server.counters.commands);
            let spec = match command::find(&args) {
                Ok(spec) => spec,
                Err(reply) => {
                    add(&self.server.counters.errors);
                    reply.write(replies, self.version);
                    continue;
                }
            };
            if spec.kind == Kind::Set {
                let mut group = vec![args];
                while let Some(next) = commands.next_if(|next| is_set(next)) {
                    add(&self.server.counters.commands);
                    group.push(next);
                }
                for reply in self.set_group(&group).await {
                    self.count_and_write(&reply, replies);
                }
            } else {
                let reply = self.serve_command(spec.kind, &args).await;
                self.count_and_write(&reply, replies);
                if spec.kind == Kind::Quit {
                    return Ok(true);
                }
            }
            if replies.len() >= REPLY_BYTES {
                self.stream.write_all(replies).await?;
                replies.clear();
            }
        }
        Ok(false)
    }

    fn count_and_write(&self, reply: &Reply, replies: &mut Vec<u8>) {
        if matches!(reply, Reply::Error(_)) {
            add(&self.server.counters.errors);
        }
        reply.write(replies, self.version);
    }

    async fn serve_command(&mut self, kind: Kind, args: &[Bytes]) -> Reply {
        match kind {
            Kind::Get => self.get(&args[1]).await,
            Kind::Set => self.set_group(&[args.to_vec()]).await.pop().unwrap_or(Reply::Nil),
            Kind::Del => self.count_keys(&args[1..], |key| Operation::Delete { key }).await,
            Kind::Exists => self.count_keys(&args[1..], |key| Operation::Get { key }).await,
            Kind::Mget => self.mget(&args[1..]).await,
            Kind::Mset => self.mset(&args[1..]).await,
            Kind::Scan => self.scan(args).await,
            Kind::Dbsize => self.dbsize().await,
            Kind::Ping => args.get(1).map_or(Reply::Simple("PONG"), |text| Reply::Bulk(text.clone())),
            Kind::Echo => Reply::Bulk(args[1].clone()),
            Kind::Hello => self.hello(args),
            Kind::Info => Reply::text(self.info().await),
            Kind::Command => command::describe(args),
            Kind::Cluster => self.cluster(args),
            Kind::Select if args[1].as_ref() == b"0" => Reply::Simple("OK"),
            Kind::Select => Reply::Error("ERR SELECT is not allowed in cluster mode".into()),
            Kind::Client => self.client(args),
            Kind::Config => config(args),
            Kind::Quit => Reply::Simple("OK"),
            Kind::Readonly | Kind::Asking => {
                self.follows_moved = true;
                Reply::Simple("OK")
            }
            Kind::Reset => {
                (self.version, self.follows_moved) = (2, false);
                Reply::Simple("RESET")
            }
            Kind::Antumbra => match admin::run(&self.server.host, args).await {
                Ok(value) => Reply::text(value.to_string()),
                Err(cause) => Reply::Error(format!("ERR {cause}")),
            },
        }
    }

    async fn get(&self, key: &Bytes) -> Reply {
        let slot = slot::slot_of(key);
        match self.run_operation(Operation::Get { key: slot::routing_key(key).into() }).await {
            Ok(Outcome::Value(value)) => value.map_or(Reply::Nil, Reply::Bulk),
            other => self.server.failure(slot, other),
        }
    }

    /// Starts all SETs, then sends on, in order, those that another host has to take.
    async fn set_group(&self, group: &[Vec<Bytes>]) -> Vec<Reply> {
        let operations: Vec<std::result::Result<Operation, Reply>> =
            group.iter().map(|args| set_operation(args)).collect();
        let started = operations.iter().map(|operation| async move {
            match operation {
                Ok(operation) => {
                    Some(execute::try_here(&self.server.host, &self.server.shard, operation.clone()).await)
                }
                Err(_) => None,
            }
        });
        let outcomes = join_all(started).await;
        let mut replies = Vec::with_capacity(group.len());
        for (operation, outcome) in operations.into_iter().zip(outcomes) {
            replies.push(match (operation, outcome) {
                (Err(reply), _) => reply,
                (Ok(_), Some(Ok(Some(Outcome::Written)))) => Reply::Simple("OK"),
                (Ok(operation), Some(Ok(_))) => {
                    let slot = operation.slot();
                    match self.run_operation(operation).await {
                        Ok(Outcome::Written) => Reply::Simple("OK"),
                        other => self.server.failure(slot, other),
                    }
                }
                (Ok(operation), Some(Err(cause))) => self.server.failure(operation.slot(), Err(cause)),
                (Ok(_), None) => Reply::Nil,
            });
        }
        replies
    }

    async fn count_keys(&self, keys: &[Bytes], operation: impl Fn(Bytes) -> Operation) -> Reply {
        if let Some(reply) = cross_slot(keys.iter()) {
            return reply;
        }
        let mut count = 0;
        for key in keys {
            match self.run_operation(operation(slot::routing_key(key).into())).await {
                Ok(Outcome::Deleted(existed)) => count += i64::from(existed),
                Ok(Outcome::Value(value)) => count += i64::from(value.is_some()),
                other => return self.server.failure(slot::slot_of(key), other),
            }
        }
        Reply::Integer(count)
    }

    async fn mget(&self, keys: &[Bytes]) -> Reply {
        if let Some(reply) = cross_slot(keys.iter()) {
            return reply;
        }
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            match self.get(key).await {
                error @ Reply::Error(_) => return error,
                value => values.push(value),
            }
        }
        Reply::Array(values)
    }

    async fn mset(&self, pairs: &[Bytes]) -> Reply {
        if let Some(reply) = cross_slot(pairs.iter().step_by(2)) {
            return reply;
        }
        let group: Vec<Vec<Bytes>> = pairs
            .chunks_exact(2)
            .map(|pair| vec![Bytes::from_static(b"SET"), pair[0].clone(), pair[1].clone()])
            .collect();
        let replies = self.set_group(&group).await;
        replies.into_iter().find(|reply| matches!(reply, Reply::Error(_))).unwrap_or(Reply::Simple("OK"))
    }

    /// Runs an operation where its partition is.
    async fn run_operation(&self, operation: Operation) -> Result<Outcome> {
        let Server { host, shard, counters, .. } = self.server;
        execute::run(host, shard, operation, self.follows_moved, || add(&counters.forwarded)).await
    }

    /// Pages through this host's partitions in the order of their slots.
    async fn scan(&self, args: &[Bytes]) -> Reply {
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

    async fn dbsize(&self) -> Reply {
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

    fn hello(&mut self, args: &[Bytes]) -> Reply {
        match args.get(1).map(Bytes::as_ref) {
            None | Some(b"2") => self.version = 2,
            Some(b"3") => self.version = 3,
            Some(_) => return Reply::Error("NOPROTO unsupported protocol version".into()),
        }
        let text = |key: &str, value: &str| (Reply::text(key), Reply::text(value));
        Reply::Map(vec![
            text("server", "redis"),
            text("version", "7.4.0"),
            (Reply::text("proto"), Reply::Integer(i64::from(self.version))),
            (Reply::text("id"), Reply::Integer(self.server.counters.accepted.get() as i64)),
            text("mode", "cluster"),
            text("role", "master"),
            (Reply::text("modules"), Reply::Array(Vec::new())),
        ])
    }

    async fn info(&self) -> String {
        let (server, counters) = (self.server, &self.server.counters);
        let mut text = format!(
            "# Server\r\nredis_version:7.4.0\r\nantumbra_version:{}\r\nredis_mode:cluster\r\nhost:{}\r\nshard:{}\r\n\
             process_id:{}\r\n\r\n# Clients\r\nconnected_clients:{}\r\n\r\n# Stats\r\n\
             total_connections_received:{}\r\ntotal_commands_processed:{}\r\nforwarded:{}\r\nmoved:{}\r\nerrors:{}\r\n\
             \r\n# Cluster\r\ncluster_enabled:1\r\n\r\n# Partitions\r\n",
            env!("CARGO_PKG_VERSION"),
            server.host.id,
            server.shard.id(),
            std::process::id(),
            counters.connections.get(),
            counters.accepted.get(),
            counters.commands.get(),
            counters.forwarded.get(),
            counters.moved.get(),
            counters.errors.get(),
        );
        for partition in server.shard.partitions() {
            let stats = partition.stats();
            text.push_str(&format!(
                "partition{}:epoch={},serving={:?},segments={},table_bytes={},memtable_bytes={},last_lsn={}\r\n",
                stats.id,
                stats.epoch,
                stats.serving,
                stats.segments,
                stats.table_bytes,
                stats.memtable_bytes,
                stats.visible
            ));
        }
        text
    }

    fn cluster(&mut self, args: &[Bytes]) -> Reply {
        let topology = self.server.host.routing.load();
        let word = args[1].to_ascii_lowercase();
        // Whoever asks where the slots are follows them.
        self.follows_moved |= matches!(word.as_slice(), b"slots" | b"shards" | b"nodes");
        match word.as_slice() {
            b"slots" => cluster::slots(&topology),
            b"shards" => cluster::shards(&topology),
            b"nodes" => Reply::text(cluster::nodes(&topology, self.server.host.id)),
            b"info" => Reply::text(cluster::info(&topology)),
            b"myid" => Reply::text(cluster::node_id(self.server.host.id)),
            b"keyslot" if args.len() == 3 => Reply::Integer(i64::from(slot::slot_of(&args[2]))),
            b"countkeysinslot" => Reply::Error("ERR counting the keys of a slot takes a scan: use SCAN".into()),
            _ => Reply::Error("ERR unknown subcommand of 'cluster'".into()),
        }
    }

    fn client(&mut self, args: &[Bytes]) -> Reply {
        match args[1].to_ascii_lowercase().as_slice() {
            b"setname" if args.len() == 3 => {
                self.name = args[2].clone();
                Reply::Simple("OK")
            }
            b"getname" => Reply::Bulk(self.name.clone()),
            b"id" => Reply::Integer(self.server.counters.accepted.get() as i64),
            b"setinfo" | b"no-evict" | b"no-touch" | b"reply" => Reply::Simple("OK"),
            _ => Reply::Error("ERR unknown subcommand of 'client'".into()),
        }
    }
}

impl Server {
    fn failure(&self, slot: u16, result: Result<Outcome>) -> Reply {
        match result {
            Ok(Outcome::Moved(owner)) => {
                add(&self.counters.moved);
                match self.host.routing.load().addresses(owner) {
                    Some(addresses) => Reply::Error(format!("MOVED {slot} {}", addresses.resp)),
                    None => Reply::Error(format!("CLUSTERDOWN host {owner} is not known")),
                }
            }
            Ok(other) => Reply::Error(format!("ERR unexpected outcome {other:?}")),
            Err(Error::Refused { what }) if what.starts_with("CLUSTERDOWN") || what.starts_with("TRYAGAIN") => {
                Reply::Error(what)
            }
            Err(Error::Engine(cause @ antumbra_engine::Error::OutOfReach { .. })) => {
                Reply::Error(format!("TRYAGAIN {cause}"))
            }
            Err(Error::Engine(cause @ antumbra_engine::Error::ReadOnly { .. })) => {
                Reply::Error(format!("READONLY {cause}"))
            }
            Err(cause) => Reply::Error(format!("ERR {cause}")),
        }
    }

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

fn take_commands(buffer: &mut BytesMut) -> (Vec<Vec<Bytes>>, Option<codec::BadRequest>) {
    let mut commands = Vec::new();
    loop {
        match codec::parse(buffer) {
            Ok(Some(args)) if args.is_empty() => {}
            Ok(Some(args)) => commands.push(args),
            Ok(None) => return (commands, None),
            Err(bad) => return (commands, Some(bad)),
        }
    }
}

fn is_set(args: &[Bytes]) -> bool {
    args[0].eq_ignore_ascii_case(b"set") && args.len() >= 3
}

fn set_operation(args: &[Bytes]) -> std::result::Result<Operation, Reply> {
    let mut expires_at_ms = 0;
    for pair in args[3..].chunks(2) {
        let number =
            pair.get(1).and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|text| text.parse::<u64>().ok());
        let unit = pair[0].to_ascii_lowercase();
        let known = matches!(unit.as_slice(), b"ex" | b"px" | b"exat" | b"pxat");
        let number = match (known, number) {
            (false, _) => return Err(Reply::Error("ERR syntax error".into())),
            (true, None | Some(0)) => return Err(Reply::Error("ERR invalid expire time in 'set' command".into())),
            (true, Some(number)) => number,
        };
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        expires_at_ms = match unit.as_slice() {
            b"ex" => now.saturating_add(number.saturating_mul(1000)),
            b"px" => now.saturating_add(number),
            b"exat" => number.saturating_mul(1000),
            _ => number,
        };
    }
    Ok(Operation::Set { key: slot::routing_key(&args[1]).into(), value: args[2].clone(), expires_at_ms })
}

fn cross_slot<'a>(mut keys: impl Iterator<Item = &'a Bytes>) -> Option<Reply> {
    let first = keys.next().map(|key| slot::slot_of(key))?;
    let same = keys.all(|key| slot::slot_of(key) == first);
    (!same).then(|| Reply::Error("CROSSSLOT Keys in request don't hash to the same slot".into()))
}

fn config(args: &[Bytes]) -> Reply {
    if !args[1].eq_ignore_ascii_case(b"get") {
        return Reply::Error("ERR unknown subcommand of 'config'".into());
    }
    let known = |name: &Bytes| match name.to_ascii_lowercase().as_slice() {
        b"save" => Some(""),
        b"appendonly" => Some("yes"),
        b"maxmemory" => Some("0"),
        _ => None,
    };
    let pairs = args[2..].iter().filter_map(|name| Some((Reply::Bulk(name.clone()), Reply::text(known(name)?))));
    Reply::Map(pairs.collect())
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
