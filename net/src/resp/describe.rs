//! `COMMAND`: the table as clients ask for it.

use bytes::Bytes;

use super::command::{COMMANDS, Spec, by_name, fits, help, unknown_subcommand};
use super::reply::Reply;

/// Flags that clients do not know.
const INTERNAL_FLAGS: &[&str] = &["access", "dangerous"];

const HELP: &[&str] =
    &["COUNT", "DOCS [name ...]", "GETKEYS command ...", "GETKEYSANDFLAGS command ...", "INFO [name ...]", "LIST"];

/// Answers `COMMAND` and its subcommands.
pub(crate) fn describe(args: &[Bytes]) -> Reply {
    let Some(word) = args.get(1) else {
        return Reply::Array(COMMANDS.iter().map(describe_one).collect());
    };
    let names = &args[2..];
    match word.to_ascii_lowercase().as_slice() {
        b"count" if names.is_empty() => Reply::Integer(COMMANDS.len() as i64),
        b"info" if names.is_empty() => Reply::Array(COMMANDS.iter().map(describe_one).collect()),
        b"info" => Reply::Array(
            names.iter().map(|name| by_name(name).map_or(Reply::NilArray, |(_, spec)| describe_one(spec))).collect(),
        ),
        b"docs" if names.is_empty() => Reply::Map(COMMANDS.iter().map(document).collect()),
        b"docs" => Reply::Map(names.iter().filter_map(|name| by_name(name)).map(|(_, spec)| document(spec)).collect()),
        b"list" if names.is_empty() => Reply::Array(COMMANDS.iter().map(|spec| Reply::text(spec.name)).collect()),
        b"getkeys" if !names.is_empty() => keys_of(names, |key, _| Reply::Bulk(key.clone())),
        b"getkeysandflags" if !names.is_empty() => {
            keys_of(names, |key, spec| Reply::Array(vec![Reply::Bulk(key.clone()), key_flags(spec)]))
        }
        b"help" => help("COMMAND", HELP),
        _ => unknown_subcommand("COMMAND", args),
    }
}

fn describe_one(spec: &Spec) -> Reply {
    let (first, last, step) = spec.keys;
    let statuses = |words: Vec<&'static str>| words.into_iter().map(Reply::status).collect();
    Reply::Array(vec![
        Reply::text(spec.name),
        Reply::Integer(spec.arity),
        Reply::Set(statuses(spec.flags.iter().copied().filter(|flag| !INTERNAL_FLAGS.contains(flag)).collect())),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
        Reply::Set(statuses(spec.categories())),
        // No hints, and no subcommands of their own.
        Reply::Array(Vec::new()),
        Reply::Array(if first == 0 { Vec::new() } else { vec![key_specification(spec)] }),
        Reply::Array(Vec::new()),
    ])
}

fn key_flags(spec: &Spec) -> Reply {
    let flags: &[&'static str] = if spec.writes() { &["RW", "ACCESS", "UPDATE"] } else { &["RO", "ACCESS"] };
    Reply::Set(flags.iter().map(|flag| Reply::status(flag)).collect())
}

fn key_specification(spec: &Spec) -> Reply {
    let (first, last, step) = spec.keys;
    let text = |key: &str| Reply::text(key);
    let number = |key: &str, number: i64| (Reply::text(key), Reply::Integer(number));
    // The last key counts from the first one here, unless it counts from the end.
    let last = if last < 0 { last } else { last - first };
    let begin =
        Reply::Map(vec![(text("type"), text("index")), (text("spec"), Reply::Map(vec![number("index", first)]))]);
    let find = Reply::Map(vec![
        (text("type"), text("range")),
        (text("spec"), Reply::Map(vec![number("lastkey", last), number("keystep", step), number("limit", 0)])),
    ]);
    Reply::Map(vec![(text("flags"), key_flags(spec)), (text("begin_search"), begin), (text("find_keys"), find)])
}

fn document(spec: &Spec) -> (Reply, Reply) {
    let text = |key: &str, value: &str| (Reply::text(key), Reply::text(value));
    (Reply::text(spec.name), Reply::Map(vec![text("summary", spec.summary), text("group", spec.group)]))
}

fn keys_of(args: &[Bytes], told: impl Fn(&Bytes, &Spec) -> Reply) -> Reply {
    let Some((_, spec)) = by_name(&args[0]) else {
        return Reply::error("ERR Invalid command specified");
    };
    if spec.keys.0 == 0 {
        return Reply::error("ERR The command has no key arguments");
    }
    if !fits(spec, args.len()) {
        return Reply::error("ERR Invalid number of arguments specified for command");
    }
    Reply::Array(spec.keys_of(args).map(|key| told(key, spec)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(words: &[&'static str]) -> Reply {
        let args: Vec<Bytes> = words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect();
        describe(&args)
    }

    #[test]
    fn describe_answers_from_the_table() {
        assert_eq!(ask(&["command", "count"]), Reply::Integer(COMMANDS.len() as i64));
        let Reply::Array(found) = ask(&["command", "info", "get", "nothing"]) else { panic!("a list") };
        assert!(matches!(&found[0], Reply::Array(items) if items.len() == 10 && items[0] == Reply::text("get")));
        assert_eq!(found[1], Reply::NilArray);
        let keys = |words: &[&str]| Reply::Array(words.iter().map(|word| Reply::text(*word)).collect());
        assert_eq!(ask(&["command", "getkeys", "mset", "a", "1", "b", "2"]), keys(&["a", "b"]));
        assert_eq!(ask(&["command", "getkeys", "ping"]), Reply::error("ERR The command has no key arguments"));
        assert!(ask(&["command", "getkeys", "get"]).is_error());
        assert!(matches!(ask(&["command", "docs", "get"]), Reply::Map(pairs) if pairs.len() == 1));
        assert!(ask(&["command", "nothing"]).is_error());
    }
}
