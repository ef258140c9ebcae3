//! The commands: one table for dispatch and for `COMMAND`.

use bytes::Bytes;

use super::reply::Reply;

/// What a command does, for dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Redis'")]
pub(crate) enum Kind {
    Get,
    Set,
    Del,
    Mget,
    Mset,
    Exists,
    Scan,
    Ping,
    Echo,
    Hello,
    Info,
    Command,
    Cluster,
    Select,
    Client,
    Config,
    Dbsize,
    Quit,
    Readonly,
    Asking,
    Reset,
    Antumbra,
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Spec {
    pub name: &'static str,
    pub kind: Kind,
    /// Arguments with the name; negative = at least.
    pub arity: i64,
    pub flags: &'static [&'static str],
    /// First key, last key (-1 = last argument), step; 0 = no keys.
    pub keys: (i64, i64, i64),
    pub summary: &'static str,
}

const fn spec(
    name: &'static str,
    kind: Kind,
    arity: i64,
    flags: &'static [&'static str],
    keys: (i64, i64, i64),
    summary: &'static str,
) -> Spec {
    Spec { name, kind, arity, flags, keys, summary }
}

const NO_KEYS: (i64, i64, i64) = (0, 0, 0);

pub(crate) const COMMANDS: &[Spec] = &[
    spec("get", Kind::Get, 2, &["readonly", "fast"], (1, 1, 1), "Returns the value of a key."),
    spec("set", Kind::Set, -3, &["write", "denyoom"], (1, 1, 1), "Sets the value of a key, with EX, PX, EXAT or PXAT."),
    spec("del", Kind::Del, -2, &["write"], (1, -1, 1), "Deletes keys."),
    spec("mget", Kind::Mget, -2, &["readonly", "fast"], (1, -1, 1), "Returns the values of keys."),
    spec("mset", Kind::Mset, -3, &["write", "denyoom"], (1, -1, 2), "Sets keys."),
    spec("exists", Kind::Exists, -2, &["readonly", "fast"], (1, -1, 1), "Counts the keys that exist."),
    spec("scan", Kind::Scan, -2, &["readonly"], NO_KEYS, "Iterates over the keys of this node."),
    spec("ping", Kind::Ping, -1, &["fast"], NO_KEYS, "Answers PONG, or its argument."),
    spec("echo", Kind::Echo, 2, &["fast"], NO_KEYS, "Answers its argument."),
    spec("hello", Kind::Hello, -1, &["fast", "noscript"], NO_KEYS, "Chooses the protocol version."),
    spec("info", Kind::Info, -1, &["loading", "stale"], NO_KEYS, "Tells about this node."),
    spec("command", Kind::Command, -1, &["loading", "stale"], NO_KEYS, "Tells about the commands."),
    spec("cluster", Kind::Cluster, -2, &["stale"], NO_KEYS, "Tells about the cluster."),
    spec("select", Kind::Select, 2, &["fast"], NO_KEYS, "Accepts database 0."),
    spec("client", Kind::Client, -2, &["stale"], NO_KEYS, "Names the connection."),
    spec("config", Kind::Config, -2, &["admin"], NO_KEYS, "Answers what clients ask for."),
    spec("dbsize", Kind::Dbsize, 1, &["readonly", "fast"], NO_KEYS, "Counts the keys of this node by a scan."),
    spec("quit", Kind::Quit, -1, &["fast"], NO_KEYS, "Closes the connection."),
    spec("readonly", Kind::Readonly, 1, &["fast"], NO_KEYS, "Marks the connection as one that follows MOVED."),
    spec("readwrite", Kind::Readonly, 1, &["fast"], NO_KEYS, "Marks the connection as one that follows MOVED."),
    spec("asking", Kind::Asking, 1, &["fast"], NO_KEYS, "Marks the connection as one that follows MOVED."),
    spec("reset", Kind::Reset, 1, &["fast"], NO_KEYS, "Resets the connection."),
    spec("antumbra", Kind::Antumbra, -2, &["admin"], NO_KEYS, "Moves partitions and tells about them, in JSON."),
];

/// Finds a command and checks the number of its arguments.
pub(crate) fn find(args: &[Bytes]) -> Result<&'static Spec, Reply> {
    let name = String::from_utf8_lossy(&args[0]).to_ascii_lowercase();
    let Some(spec) = COMMANDS.iter().find(|spec| spec.name == name) else {
        let name: String = name.chars().take(128).collect();
        return Err(Reply::Error(format!("ERR unknown command '{name}'")));
    };
    let count = args.len() as i64;
    let fits = if spec.arity < 0 { count >= -spec.arity } else { count == spec.arity };
    let pairs = spec.kind != Kind::Mset || count % 2 == 1;
    if fits && pairs {
        Ok(spec)
    } else {
        Err(Reply::Error(format!("ERR wrong number of arguments for '{}' command", spec.name)))
    }
}

/// Answers `COMMAND` and its subcommands.
pub(crate) fn describe(args: &[Bytes]) -> Reply {
    let chosen = |names: &[Bytes]| -> Vec<&'static Spec> {
        let wanted =
            |spec: &&Spec| names.is_empty() || names.iter().any(|name| name.eq_ignore_ascii_case(spec.name.as_bytes()));
        COMMANDS.iter().filter(wanted).collect()
    };
    match args.get(1).map(|word| word.to_ascii_lowercase()).as_deref() {
        None => Reply::Array(COMMANDS.iter().map(describe_one).collect()),
        Some(b"count") => Reply::Integer(COMMANDS.len() as i64),
        Some(b"info") => Reply::Array(chosen(&args[2..]).into_iter().map(describe_one).collect()),
        Some(b"docs") => Reply::Map(
            chosen(&args[2..])
                .into_iter()
                .map(|spec| {
                    let summary = (Reply::text("summary"), Reply::text(spec.summary));
                    (Reply::text(spec.name), Reply::Map(vec![summary]))
                })
                .collect(),
        ),
        Some(_) => Reply::Error("ERR unknown subcommand of 'command'".into()),
    }
}

fn describe_one(spec: &Spec) -> Reply {
    let (first, last, step) = spec.keys;
    Reply::Array(vec![
        Reply::text(spec.name),
        Reply::Integer(spec.arity),
        Reply::Array(spec.flags.iter().map(|flag| Reply::Simple(flag)).collect()),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&'static str]) -> Vec<Bytes> {
        words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect()
    }

    #[test]
    fn find_checks_name_and_arity() {
        assert!(find(&args(&["GeT", "k"])).is_ok_and(|spec| spec.kind == Kind::Get));
        assert!(find(&args(&["get"])).is_err());
        assert!(find(&args(&["mset", "a", "1", "b"])).is_err(), "a key without its value");
        assert!(find(&args(&["flushall"])).is_err());
    }
}
