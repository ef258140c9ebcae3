//! What the commands do that a connection runs by itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use antumbra_engine::runtime;
use bytes::Bytes;

use super::acl::{DEFAULT, User, Users};
use super::command::{Local, echo, help, unknown_subcommand};
use super::connection::{Connection, Wanted};
use super::info::REDIS_VERSION;
use super::keyed::{not_an_integer, parse_integer};
use super::reply::Reply;
use super::{admin, cluster, describe, slot};

/// Longest DEBUG SLEEP.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// Longest name of a connection.
const NAME_MAX: usize = 256;

impl Connection<'_> {
    pub async fn serve_local(&mut self, local: Local, args: &[Bytes]) -> Reply {
        match local {
            Local::Ping if args.len() > 2 => Reply::error("ERR wrong number of arguments for 'ping' command"),
            Local::Ping => args.get(1).map_or(Reply::status("PONG"), |text| Reply::Bulk(text.clone())),
            Local::Echo => Reply::Bulk(args[1].clone()),
            Local::Hello => self.hello(args).unwrap_or_else(|refusal| refusal),
            Local::Auth => self.auth(args).unwrap_or_else(|refusal| refusal),
            Local::Acl => self.acl(args).unwrap_or_else(|refusal| refusal),
            Local::Quit => {
                self.ends = true;
                Reply::OK
            }
            Local::Reset => self.reset(),
            Local::Select => match parse_integer(&args[1]) {
                Some(0) => Reply::OK,
                Some(_) => Reply::error("ERR SELECT is not allowed in cluster mode"),
                None => Reply::error("ERR invalid DB index"),
            },
            Local::Client => self.client_command(args).unwrap_or_else(|refusal| refusal),
            Local::Readonly | Local::Asking => {
                self.follows_moved = true;
                Reply::OK
            }
            Local::Cluster => self.cluster(args).await,
            Local::Info => self.info(&args[1..]).await,
            Local::Command => describe::describe(args),
            Local::Config => self.config(args),
            Local::Time => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let text = |number: u64| Reply::text(number.to_string());
                Reply::Array(vec![text(now.as_secs()), text(u64::from(now.subsec_micros()))])
            }
            Local::Scan => self.scan(args).await,
            Local::Keys => self.keys(&args[1]).await,
            Local::Dbsize => self.dbsize().await,
            Local::Randomkey => self.randomkey().await,
            Local::Flush => self.flush_keys().await,
            Local::Multi => self.multi(),
            Local::Exec => self.exec().await,
            Local::Discard => self.discard(),
            Local::Watch => self.watch(&args[1..]).await,
            Local::Unwatch => self.unwatch(),
            Local::Wait => self.wait(&args[1..], Reply::Integer).await,
            Local::Waitaof => {
                let both = |mirrors| Reply::Array(vec![Reply::Integer(1), Reply::Integer(mirrors)]);
                self.wait(&args[1..], both).await
            }
            Local::Debug => self.debug(args).await,
            Local::Antumbra => match admin::run(&self.server.host, &self.server.service, args).await {
                Ok(value) => Reply::text(value.to_string()),
                Err(cause) => Reply::Error(format!("ERR {cause}")),
            },
        }
    }

    /// `HELLO [version [AUTH user password] [SETNAME name]]`.
    fn hello(&mut self, args: &[Bytes]) -> Result<Reply, Reply> {
        let version = match args.get(1).map(Bytes::as_ref) {
            None => self.version,
            Some(b"2") => 2,
            Some(b"3") => 3,
            Some(number) if parse_integer(number).is_none() => {
                return Err(Reply::error("ERR Protocol version is not an integer or out of range"));
            }
            Some(_) => return Err(Reply::error("NOPROTO unsupported protocol version")),
        };
        let (mut user, mut name) = (None, None);
        let mut rest = args.get(2..).unwrap_or_default();
        while let Some((word, behind)) = rest.split_first() {
            match (word.to_ascii_lowercase().as_slice(), behind) {
                (b"auth", [who, password, behind @ ..]) => {
                    user = Some(self.server.service.users.load().authenticate(who, password)?);
                    rest = behind;
                }
                (b"setname", [to, behind @ ..]) => {
                    name = Some(checked_name(to, "Client names")?);
                    rest = behind;
                }
                _ => return Err(Reply::Error(format!("ERR Syntax error in HELLO option '{}'", echo(word)))),
            }
        }
        if let Some(user) = user {
            self.become_user(user);
        }
        if self.user.is_none() {
            return Err(Reply::error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
                 <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the \
                 same time",
            ));
        }
        if let Some(name) = name {
            self.client.names().name = name;
        }
        self.set_version(version);
        let text = |key: &str, value: &str| (Reply::text(key), Reply::text(value));
        Ok(Reply::Map(vec![
            text("server", "redis"),
            text("version", REDIS_VERSION),
            (Reply::text("proto"), Reply::Integer(i64::from(self.version))),
            (Reply::text("id"), Reply::Integer(self.client.id as i64)),
            text("mode", "cluster"),
            text("role", "master"),
            (Reply::text("modules"), Reply::Array(Vec::new())),
        ]))
    }

    fn set_version(&mut self, version: u8) {
        self.version = version;
        self.client.version.store(version, std::sync::atomic::Ordering::Relaxed);
    }

    fn become_user(&mut self, user: std::sync::Arc<User>) {
        self.client.names().user.clone_from(&user.name);
        self.user = Some(user);
    }

    /// `AUTH [user] password`.
    fn auth(&mut self, args: &[Bytes]) -> Result<Reply, Reply> {
        let users = self.server.service.users.load();
        let user = match args {
            [_, password] => {
                if users.unnamed().is_some() {
                    return Err(Reply::error(
                        "ERR AUTH <password> called without any password configured for the default user. Are you sure \
                         your configuration is correct?",
                    ));
                }
                users.authenticate(DEFAULT.as_bytes(), password)?
            }
            [_, name, password] => users.authenticate(name, password)?,
            _ => return Err(Reply::error("ERR syntax error")),
        };
        self.become_user(user);
        Ok(Reply::OK)
    }

    fn acl(&mut self, args: &[Bytes]) -> Result<Reply, Reply> {
        let service = &self.server.service;
        let list = |told: fn(&User) -> String| {
            Reply::Array(service.users.load().all().map(|user| Reply::text(told(user))).collect())
        };
        match (args[1].to_ascii_lowercase().as_slice(), args.len()) {
            (b"whoami", 2) => Ok(Reply::text(self.user.as_ref().map_or("", |user| &user.name))),
            (b"help", 2) => Ok(help("ACL", &["LIST", "LOAD", "USERS", "WHOAMI"])),
            (b"users", 2) => {
                self.admin_only("acl|users")?;
                Ok(list(|user| user.name.clone()))
            }
            (b"list", 2) => {
                self.admin_only("acl|list")?;
                Ok(list(User::describe))
            }
            (b"load", 2) => {
                self.admin_only("acl|load")?;
                let users = service.users.load();
                let Some(path) = users.path() else {
                    return Err(Reply::error(
                        "ERR this node was started without a file of users: there is nothing to load",
                    ));
                };
                let loaded = Users::load(path).map_err(|cause| Reply::Error(format!("ERR {cause}")))?;
                // Connections keep the rights that they have until they name a user again.
                service.users.store(loaded.into());
                Ok(Reply::OK)
            }
            _ => Err(unknown_subcommand("ACL", args)),
        }
    }

    fn reset(&mut self) -> Reply {
        self.transaction.forget();
        self.follows_moved = false;
        self.wanted = Wanted::All;
        self.set_version(2);
        self.user = self.server.service.users.load().unnamed();
        let mut names = self.client.names();
        names.name.clear();
        names.user = self.user.as_ref().map_or(String::new(), |user| user.name.clone());
        Reply::status("RESET")
    }

    /// `WAIT` and `WAITAOF`: what is acknowledged is on this host's device, and on that of a mirror, so that there is
    /// nothing to wait for.
    async fn wait(&self, numbers: &[Bytes], told: impl Fn(i64) -> Reply) -> Reply {
        if numbers.iter().any(|number| parse_integer(number).is_none_or(|number| number < 0)) {
            return not_an_integer();
        }
        let host = &self.server.host;
        let written = self.written_slot.and_then(|slot| Some(host.routing.load().route(slot)?.partition));
        let mirrored = match written.map(|id| host.engine.partition(id)) {
            // It may have moved away since: then nothing is known of it.
            Some(Ok(partition)) => {
                partition.with(|partition| async move { Ok(partition.is_mirrored()) }).await.unwrap_or(false)
            }
            _ => false,
        };
        told(i64::from(mirrored))
    }

    /// Fails for a user without the right to administer.
    fn admin_only(&self, command: &str) -> Result<(), Reply> {
        match &self.user {
            Some(user) if user.administers() => Ok(()),
            user => Err(Reply::Error(format!(
                "NOPERM User {} has no permissions to run the '{command}' command",
                user.as_ref().map_or("", |user| &user.name)
            ))),
        }
    }

    async fn debug(&self, args: &[Bytes]) -> Reply {
        if !self.server.service.config.allow_debug {
            return Reply::error("ERR DEBUG command not allowed: start the node with --allow-debug");
        }
        let seconds = args.get(2).and_then(|text| std::str::from_utf8(text).ok()?.parse::<f64>().ok());
        match (args[1].to_ascii_lowercase().as_slice(), seconds) {
            (b"sleep", Some(seconds)) if seconds >= 0.0 && args.len() == 3 => {
                runtime::sleep(Duration::try_from_secs_f64(seconds).unwrap_or(SLEEP_MAX).min(SLEEP_MAX)).await;
                Reply::OK
            }
            (b"sleep", None) => Reply::error("ERR value is not a valid float"),
            _ => unknown_subcommand("DEBUG", args),
        }
    }

    async fn cluster(&mut self, args: &[Bytes]) -> Reply {
        let host = self.server.host.id;
        let topology = self.server.host.routing.load();
        let tls = self.is_tls();
        let word = args[1].to_ascii_lowercase();
        // Whoever asks where the slots are follows them.
        self.follows_moved |= matches!(word.as_slice(), b"slots" | b"shards" | b"nodes");
        match (word.as_slice(), &args[2..]) {
            (b"slots", []) => cluster::slots(&topology, tls),
            (b"shards", []) => cluster::shards(&topology, tls),
            (b"nodes", []) => Reply::Verbatim(cluster::nodes(&topology, host, tls)),
            (b"info", []) => Reply::Verbatim(cluster::info(&topology, host)),
            (b"myid" | b"myshardid", []) => Reply::text(cluster::node_id(host)),
            (b"keyslot", [key]) => Reply::Integer(i64::from(slot::slot_of(key))),
            (b"countkeysinslot", [slot]) => self.count_keys_in_slot(slot).await,
            (b"getkeysinslot", [slot, count]) => self.keys_in_slot(slot, count).await,
            (b"replicas" | b"slaves", [node]) => match cluster::is_known(&topology, node) {
                true => Reply::Array(Vec::new()),
                false => Reply::Error(format!("ERR Unknown node {}", echo(node))),
            },
            (b"links", []) => Reply::Array(Vec::new()),
            (b"help", []) => help("CLUSTER", cluster::HELP),
            _ => unknown_subcommand("CLUSTER", args),
        }
    }

    fn client_command(&mut self, args: &[Bytes]) -> Result<Reply, Reply> {
        const HELP: &[&str] = &[
            "GETNAME",
            "GETREDIR",
            "ID",
            "INFO",
            "KILL address",
            "KILL filter value ...",
            "LIST [TYPE type] [ID id ...]",
            "NO-EVICT (ON|OFF)",
            "NO-TOUCH (ON|OFF)",
            "REPLY (ON|OFF|SKIP)",
            "SETINFO option value",
            "SETNAME name",
            "TRACKING OFF",
        ];
        let is_switch = |word: &Bytes| word.eq_ignore_ascii_case(b"on") || word.eq_ignore_ascii_case(b"off");
        match (args[1].to_ascii_lowercase().as_slice(), &args[2..]) {
            (b"id", []) => Ok(Reply::Integer(self.client.id as i64)),
            (b"getname", []) => {
                let name = self.client.names().name.clone();
                Ok(if name.is_empty() { Reply::Nil } else { Reply::text(name) })
            }
            (b"setname", [name]) => {
                self.client.names().name = checked_name(name, "Client names")?;
                Ok(Reply::OK)
            }
            (b"setinfo", [option, value]) => {
                match option.to_ascii_lowercase().as_slice() {
                    b"lib-name" => self.client.names().library = checked_name(value, "lib-name")?,
                    b"lib-ver" => self.client.names().library_version = checked_name(value, "lib-ver")?,
                    other => return Err(Reply::Error(format!("ERR Unrecognized option '{}'", echo(other)))),
                }
                Ok(Reply::OK)
            }
            (b"info", []) => Ok(Reply::Verbatim(format!("{}\n", self.client.describe()))),
            (b"list", options) => {
                self.admin_only("client|list")?;
                self.server.service.clients.list(options)
            }
            (b"kill", options) => {
                self.admin_only("client|kill")?;
                let (reply, kills_me) = self.server.service.clients.kill(options, &self.client)?;
                self.ends |= kills_me;
                Ok(reply)
            }
            // Nothing is evicted, and reads count as reads whoever reads.
            (b"no-evict" | b"no-touch", [word]) if is_switch(word) => Ok(Reply::OK),
            (b"no-evict" | b"no-touch" | b"reply", []) => Err(unknown_subcommand("CLIENT", args)),
            (b"reply", [word]) => {
                self.wanted = match word.to_ascii_lowercase().as_slice() {
                    b"on" => Wanted::All,
                    b"off" => Wanted::None,
                    b"skip" if self.wanted == Wanted::All => Wanted::AllButNext,
                    b"skip" => self.wanted,
                    _ => return Err(Reply::error("ERR syntax error")),
                };
                Ok(Reply::OK)
            }
            (b"getredir", []) => Ok(Reply::Integer(-1)),
            (b"tracking", [word, ..]) if word.eq_ignore_ascii_case(b"off") => Ok(Reply::OK),
            (b"tracking", _) => Err(Reply::error("ERR client-side caching is not supported")),
            (b"help", []) => Ok(help("CLIENT", HELP)),
            _ => Err(unknown_subcommand("CLIENT", args)),
        }
    }
}

fn checked_name(name: &Bytes, what: &str) -> Result<String, Reply> {
    let is_printable = name.iter().all(|byte| (b'!'..=b'~').contains(byte));
    if !is_printable || name.len() > NAME_MAX {
        return Err(Reply::Error(format!("ERR {what} cannot contain spaces, newlines or special characters.")));
    }
    Ok(String::from_utf8_lossy(name).into_owned())
}
