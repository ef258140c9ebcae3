//! The commands: one table for dispatch, for rights and for `COMMAND`.

use bytes::Bytes;

use super::keyed::{self, Handler};
use super::reply::Reply;

/// Longest part of what a client sent that an error repeats.
const ECHO_MAX: usize = 128;

/// A command that its connection runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Redis'")]
pub(crate) enum Local {
    Acl,
    Antumbra,
    Asking,
    Auth,
    Client,
    Cluster,
    Command,
    Config,
    Dbsize,
    Debug,
    Discard,
    Echo,
    Exec,
    Flush,
    Hello,
    Info,
    Keys,
    Multi,
    Ping,
    Quit,
    Randomkey,
    Readonly,
    Reset,
    Scan,
    Select,
    Time,
    Unwatch,
    Wait,
    Waitaof,
    Watch,
}

/// Who runs a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// The connection.
    Local(Local),
    /// Whoever owns the keys; see [`keyed`].
    Keyed {
        run: Handler,
        /// Whether it needs the values, not just lengths and deadlines.
        with_values: bool,
    },
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Spec {
    pub name: &'static str,
    pub action: Action,
    /// Arguments with the name; negative = at least.
    pub arity: i64,
    pub flags: &'static [&'static str],
    /// First key, last key (-1 = last argument), step; 0 = no keys.
    pub keys: (i64, i64, i64),
    pub group: &'static str,
    pub summary: &'static str,
}

impl Spec {
    /// Whether it may change keys.
    pub fn writes(&self) -> bool {
        self.has("write")
    }

    /// Whether the command has this flag.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// Where its keys are among `args`.
    pub fn key_places(&self, args: &[Bytes]) -> impl Iterator<Item = usize> + use<> {
        let (first, last, step) = self.keys;
        let len = args.len() as i64;
        let last = if last < 0 { len + last } else { last.min(len - 1) };
        let end = if first == 0 { 0 } else { (last + 1).max(first) };
        (first as usize..end as usize).step_by(step.max(1) as usize)
    }

    /// Its keys among `args`.
    pub fn keys_of<'a>(&self, args: &'a [Bytes]) -> impl Iterator<Item = &'a Bytes> + use<'a> {
        self.key_places(args).map(|place| &args[place])
    }

    /// Its ACL categories, by group and flags.
    pub fn categories(&self) -> Vec<&'static str> {
        let mut categories = Vec::new();
        let group = match self.group {
            "generic" => "@keyspace",
            "string" => "@string",
            "connection" => "@connection",
            "transactions" => "@transaction",
            _ => "@server",
        };
        categories.push(group);
        for (flag, category) in [("readonly", "@read"), ("write", "@write"), ("admin", "@admin")] {
            categories.extend(self.has(flag).then_some(category));
        }
        categories.extend((self.has("admin") || self.has("dangerous")).then_some("@dangerous"));
        categories.push(if self.has("fast") { "@fast" } else { "@slow" });
        categories
    }
}

const NO_KEYS: (i64, i64, i64) = (0, 0, 0);
const ONE: (i64, i64, i64) = (1, 1, 1);
const TWO: (i64, i64, i64) = (1, 2, 1);
const ALL: (i64, i64, i64) = (1, -1, 1);
const PAIRS: (i64, i64, i64) = (1, -1, 2);

const READ: &[&str] = &["readonly", "fast"];
const READ_SLOW: &[&str] = &["readonly"];
const WRITE: &[&str] = &["write", "denyoom", "fast"];
const WRITE_SLOW: &[&str] = &["write", "denyoom"];
const DELETE: &[&str] = &["write"];
const CHANGE: &[&str] = &["write", "fast"];
/// Writes that tell what was there: they need the right to read, too.
const TAKE: &[&str] = &["write", "denyoom", "fast", "access"];
const LOCAL: &[&str] = &["loading", "stale", "fast"];
const OPEN: &[&str] = &["noscript", "loading", "stale", "fast", "no_auth", "allow_busy"];
const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];
const TRANSACTION: &[&str] = &["noscript", "loading", "stale", "fast", "allow_busy"];
const WALK: &[&str] = &["readonly", "no_multi"];
const WALK_ALL: &[&str] = &["readonly", "no_multi", "dangerous"];

struct Row(&'static str, i64, &'static [&'static str], (i64, i64, i64), &'static str);

const fn string(row: Row, run: Handler) -> Spec {
    let Row(name, arity, flags, keys, summary) = row;
    Spec { name, action: Action::Keyed { run, with_values: true }, arity, flags, keys, group: "string", summary }
}

/// A string command that looks only whether there is a value.
const fn string_blind(row: Row, run: Handler) -> Spec {
    let Row(name, arity, flags, keys, summary) = row;
    Spec { name, action: Action::Keyed { run, with_values: false }, arity, flags, keys, group: "string", summary }
}

const fn generic(row: Row, run: Handler, with_values: bool) -> Spec {
    let Row(name, arity, flags, keys, summary) = row;
    Spec { name, action: Action::Keyed { run, with_values }, arity, flags, keys, group: "generic", summary }
}

const fn local(row: Row, group: &'static str, local: Local) -> Spec {
    let Row(name, arity, flags, keys, summary) = row;
    Spec { name, action: Action::Local(local), arity, flags, keys, group, summary }
}

pub(crate) const COMMANDS: &[Spec] = &[
    string(Row("get", 2, READ, ONE, "Returns the value of a key."), keyed::get),
    string(Row("set", -3, WRITE_SLOW, ONE, "Sets a key, with NX, XX, GET, EX, PX, EXAT, PXAT, KEEPTTL."), keyed::set),
    string_blind(Row("setnx", 3, WRITE, ONE, "Sets a key that is not there."), keyed::setnx),
    string_blind(Row("setex", 4, WRITE_SLOW, ONE, "Sets a key for some seconds."), keyed::setex),
    string_blind(Row("psetex", 4, WRITE_SLOW, ONE, "Sets a key for some milliseconds."), keyed::psetex),
    string(Row("getset", 3, TAKE, ONE, "Sets a key and returns what it had."), keyed::getset),
    string(Row("getdel", 2, TAKE, ONE, "Returns the value of a key and deletes it."), keyed::getdel),
    string(Row("getex", -2, TAKE, ONE, "Returns the value of a key and sets its deadline."), keyed::getex),
    string(Row("mget", -2, READ, ALL, "Returns the values of keys, all of one moment."), keyed::mget),
    string_blind(Row("mset", -3, WRITE_SLOW, PAIRS, "Sets keys, all at once."), keyed::mset),
    string_blind(Row("msetnx", -3, WRITE_SLOW, PAIRS, "Sets keys, all at once, if none is there."), keyed::msetnx),
    string(Row("append", 3, WRITE, ONE, "Appends to a value."), keyed::append),
    string_blind(Row("strlen", 2, READ, ONE, "Returns the length of a value."), keyed::strlen),
    string(Row("getrange", 4, READ_SLOW, ONE, "Returns a part of a value."), keyed::getrange),
    string(Row("substr", 4, READ_SLOW, ONE, "Returns a part of a value."), keyed::getrange),
    string(Row("setrange", 4, WRITE_SLOW, ONE, "Overwrites a part of a value."), keyed::setrange),
    string(Row("incr", 2, TAKE, ONE, "Adds one."), keyed::incr),
    string(Row("decr", 2, TAKE, ONE, "Takes one away."), keyed::decr),
    string(Row("incrby", 3, TAKE, ONE, "Adds a number."), keyed::incrby),
    string(Row("decrby", 3, TAKE, ONE, "Takes a number away."), keyed::decrby),
    string(Row("incrbyfloat", 3, TAKE, ONE, "Adds a number that need not be whole."), keyed::incrbyfloat),
    generic(Row("del", -2, DELETE, ALL, "Deletes keys."), keyed::del, false),
    generic(Row("unlink", -2, CHANGE, ALL, "Deletes keys."), keyed::del, false),
    generic(Row("exists", -2, READ, ALL, "Counts the keys that are there."), keyed::exists, false),
    generic(Row("touch", -2, READ, ALL, "Counts the keys that are there."), keyed::exists, false),
    generic(Row("type", 2, READ, ONE, "Tells whether a key is there: they are all strings."), keyed::type_of, false),
    generic(Row("expire", -3, CHANGE, ONE, "Sets a deadline in seconds."), keyed::expire, true),
    generic(Row("pexpire", -3, CHANGE, ONE, "Sets a deadline in milliseconds."), keyed::pexpire, true),
    generic(Row("expireat", -3, CHANGE, ONE, "Sets a deadline by the clock, in seconds."), keyed::expireat, true),
    generic(Row("pexpireat", -3, CHANGE, ONE, "Sets a deadline by the clock, in ms."), keyed::pexpireat, true),
    generic(Row("ttl", 2, READ, ONE, "Returns the seconds left."), keyed::ttl, false),
    generic(Row("pttl", 2, READ, ONE, "Returns the milliseconds left."), keyed::pttl, false),
    generic(Row("expiretime", 2, READ, ONE, "Returns the deadline in seconds."), keyed::expiretime, false),
    generic(Row("pexpiretime", 2, READ, ONE, "Returns the deadline in milliseconds."), keyed::pexpiretime, false),
    generic(Row("persist", 2, CHANGE, ONE, "Removes the deadline."), keyed::persist, true),
    generic(Row("rename", 3, TAKE, TWO, "Renames a key within its slot."), keyed::rename, true),
    generic(Row("renamenx", 3, TAKE, TWO, "Renames a key if the new name is free."), keyed::renamenx, true),
    generic(Row("copy", -3, TAKE, TWO, "Copies a key within its slot."), keyed::copy, true),
    generic(
        Row("object", 3, READ_SLOW, (2, 2, 1), "Tells about a value: ENCODING, REFCOUNT, ..."),
        keyed::object,
        true,
    ),
    local(Row("scan", -2, WALK, NO_KEYS, "Walks over the keys of this node."), "generic", Local::Scan),
    local(Row("keys", 2, WALK_ALL, NO_KEYS, "Returns the keys of this node, if they are few."), "generic", Local::Keys),
    local(Row("randomkey", 1, WALK, NO_KEYS, "Returns a key of this node."), "generic", Local::Randomkey),
    local(Row("dbsize", 1, WALK, NO_KEYS, "Counts the keys of this node by a walk."), "server", Local::Dbsize),
    local(
        Row("flushdb", -1, &["write", "no_multi", "dangerous"], NO_KEYS, "Deletes the keys of this node, if allowed."),
        "server",
        Local::Flush,
    ),
    local(
        Row("flushall", -1, &["write", "no_multi", "dangerous"], NO_KEYS, "Deletes the keys of this node, if allowed."),
        "server",
        Local::Flush,
    ),
    local(Row("multi", 1, TRANSACTION, NO_KEYS, "Begins a transaction."), "transactions", Local::Multi),
    local(Row("exec", 1, TRANSACTION, NO_KEYS, "Runs a transaction."), "transactions", Local::Exec),
    local(Row("discard", 1, TRANSACTION, NO_KEYS, "Drops a transaction."), "transactions", Local::Discard),
    local(
        Row("watch", -2, TRANSACTION, ALL, "Lets the next EXEC fail if these keys change."),
        "transactions",
        Local::Watch,
    ),
    local(Row("unwatch", 1, TRANSACTION, NO_KEYS, "Forgets the watched keys."), "transactions", Local::Unwatch),
    local(
        Row("wait", 3, &["blocking"], NO_KEYS, "Returns how many hosts mirror this one's keys."),
        "generic",
        Local::Wait,
    ),
    local(
        Row("waitaof", 4, &["blocking"], NO_KEYS, "Returns 1 and how many hosts mirror this one's keys."),
        "generic",
        Local::Waitaof,
    ),
    local(Row("ping", -1, LOCAL, NO_KEYS, "Answers PONG, or its argument."), "connection", Local::Ping),
    local(Row("echo", 2, LOCAL, NO_KEYS, "Answers its argument."), "connection", Local::Echo),
    local(Row("hello", -1, OPEN, NO_KEYS, "Chooses the protocol version."), "connection", Local::Hello),
    local(Row("auth", -2, OPEN, NO_KEYS, "Names the user of the connection."), "connection", Local::Auth),
    local(Row("quit", -1, OPEN, NO_KEYS, "Closes the connection."), "connection", Local::Quit),
    local(Row("reset", 1, OPEN, NO_KEYS, "Resets the connection."), "connection", Local::Reset),
    local(Row("select", 2, LOCAL, NO_KEYS, "Accepts database 0."), "connection", Local::Select),
    local(Row("client", -2, LOCAL, NO_KEYS, "Names, lists and ends connections."), "connection", Local::Client),
    local(Row("readonly", 1, LOCAL, NO_KEYS, "Lets the connection be sent MOVED."), "cluster", Local::Readonly),
    local(Row("readwrite", 1, LOCAL, NO_KEYS, "Lets the connection be sent MOVED."), "cluster", Local::Readonly),
    local(Row("asking", 1, LOCAL, NO_KEYS, "Lets the connection be sent MOVED."), "cluster", Local::Asking),
    local(Row("cluster", -2, &["stale"], NO_KEYS, "Tells about the cluster."), "cluster", Local::Cluster),
    local(Row("info", -1, &["loading", "stale"], NO_KEYS, "Tells about this node."), "server", Local::Info),
    local(Row("command", -1, &["loading", "stale"], NO_KEYS, "Tells about the commands."), "server", Local::Command),
    local(Row("time", 1, LOCAL, NO_KEYS, "Tells the time."), "server", Local::Time),
    local(Row("config", -2, ADMIN, NO_KEYS, "Tells the configuration."), "server", Local::Config),
    local(Row("acl", -2, LOCAL, NO_KEYS, "Tells about users."), "server", Local::Acl),
    local(Row("debug", -2, ADMIN, NO_KEYS, "DEBUG SLEEP, if allowed."), "server", Local::Debug),
    local(
        Row("antumbra", -2, ADMIN, NO_KEYS, "Moves partitions and tells about them, in JSON."),
        "server",
        Local::Antumbra,
    ),
];

/// A command by its name in any case.
pub(crate) fn by_name(name: &[u8]) -> Option<(usize, &'static Spec)> {
    COMMANDS.iter().enumerate().find(|(_, spec)| name.eq_ignore_ascii_case(spec.name.as_bytes()))
}

/// Finds a command and checks the number of its arguments; also its place in the table.
pub(crate) fn find(args: &[Bytes]) -> Result<(usize, &'static Spec), Reply> {
    let Some((place, spec)) = by_name(&args[0]) else {
        return Err(unknown(args));
    };
    if fits(spec, args.len()) {
        Ok((place, spec))
    } else {
        Err(Reply::Error(format!("ERR wrong number of arguments for '{}' command", spec.name)))
    }
}

/// Whether a command takes this many arguments.
pub(crate) fn fits(spec: &Spec, args: usize) -> bool {
    let count = args as i64;
    let pairs = spec.keys != PAIRS || count % 2 == 1;
    pairs && if spec.arity < 0 { count >= -spec.arity } else { count == spec.arity }
}

/// What a client sent, as far as an error repeats it.
pub(crate) fn echo(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(ECHO_MAX)]).into_owned()
}

fn unknown(args: &[Bytes]) -> Reply {
    let mut beginning = String::new();
    for arg in &args[1..] {
        if beginning.len() >= ECHO_MAX {
            break;
        }
        beginning.push_str(&format!("'{}' ", echo(&arg[..arg.len().min(ECHO_MAX - beginning.len())])));
    }
    Reply::Error(format!("ERR unknown command '{}', with args beginning with: {beginning}", echo(&args[0])))
}

/// The error for a subcommand that is not there, or has other arguments.
pub(crate) fn unknown_subcommand(container: &str, args: &[Bytes]) -> Reply {
    Reply::Error(format!(
        "ERR unknown subcommand or wrong number of arguments for '{}'. Try {container} HELP.",
        echo(&args[1])
    ))
}

/// The answer to `HELP`.
pub(crate) fn help(container: &str, subcommands: &[&'static str]) -> Reply {
    let head = format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
    let lines = subcommands.iter().map(|line| Reply::status(line));
    Reply::Array(std::iter::once(Reply::Simple(head.into())).chain(lines).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&'static str]) -> Vec<Bytes> {
        words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect()
    }

    #[test]
    fn find_checks_name_and_arity() {
        let found = |words: &[&'static str]| find(&args(words)).map(|(_, spec)| spec.name);
        assert_eq!(found(&["GeT", "k"]), Ok("get"));
        assert_eq!(found(&["get"]), Err(Reply::error("ERR wrong number of arguments for 'get' command")));
        assert!(found(&["mset", "a", "1", "b"]).is_err(), "a key without its value");
        assert_eq!(
            found(&["lpush", "a", "b"]),
            Err(Reply::error("ERR unknown command 'lpush', with args beginning with: 'a' 'b' "))
        );
    }

    #[test]
    fn keys_of_follow_the_positions() {
        let keys = |words: &[&'static str]| {
            let args = args(words);
            let (_, spec) = find(&args).unwrap_or_else(|reply| panic!("{reply:?}"));
            spec.keys_of(&args).cloned().collect::<Vec<_>>()
        };
        assert_eq!(keys(&["mset", "a", "1", "b", "2"]), ["a", "b"]);
        assert_eq!(keys(&["del", "a", "b", "c"]), ["a", "b", "c"]);
        assert_eq!(keys(&["rename", "a", "b"]), ["a", "b"]);
        assert_eq!(keys(&["object", "encoding", "a"]), ["a"]);
        assert!(keys(&["ping"]).is_empty());
    }

    #[test]
    fn table_is_consistent() {
        for (place, spec) in COMMANDS.iter().enumerate() {
            assert_eq!(by_name(spec.name.as_bytes()).map(|found| found.0), Some(place), "{} is named once", spec.name);
            let is_keyed = matches!(spec.action, Action::Keyed { .. });
            assert!(!is_keyed || spec.keys.0 > 0, "{} has keys", spec.name);
            assert!(!is_keyed || spec.has("readonly") != spec.has("write"), "{} reads or writes", spec.name);
            // Whatever passes the check of the arity has its keys where the table says.
            let least = spec.arity.unsigned_abs() as i64;
            assert!(spec.keys.0 < least, "{}", spec.name);
        }
    }
}
