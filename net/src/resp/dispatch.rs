//! What each command does.

use bytes::Bytes;

use crate::error::Result;

use super::command::{self, Kind};
use super::connection::Connection;
use super::operation::{Operation, Outcome};
use super::reply::Reply;
use super::server::{Server, add};
use super::{admin, cluster, execute, slot};

impl Connection<'_> {
    pub async fn serve_command(&mut self, kind: Kind, args: &[Bytes]) -> Reply {
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
    pub async fn run_operation(&self, operation: Operation) -> Result<Outcome> {
        let Server { host, shard, counters, .. } = self.server;
        execute::run(host, shard, operation, self.follows_moved, || add(&counters.forwarded)).await
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

pub(super) fn set_operation(args: &[Bytes]) -> std::result::Result<Operation, Reply> {
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
