//! The string family against a model that knows nothing of the implementation: a map of values with deadlines.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::command::{self, Action};
use super::*;

type Model = BTreeMap<String, (Vec<u8>, u64)>;

/// Runs a command on a model's state through the implementation, the way a step does.
fn run(state: &mut Model, now_ms: u64, words: &[&str]) -> Reply {
    let args: Vec<Bytes> = words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    let (_, spec) = command::find(&args).unwrap_or_else(|reply| panic!("{words:?}: {reply:?}"));
    let Action::Keyed { run, with_values } = spec.action else { panic!("{words:?}") };
    let found = spec.keys_of(&args).map(|key| {
        let live = state.get(std::str::from_utf8(key).unwrap()).filter(|(_, at_ms)| *at_ms == 0 || *at_ms > now_ms);
        let entry = live.map(|(value, expires_at_ms)| Entry {
            len: value.len(),
            value: with_values.then(|| Bytes::copy_from_slice(value)),
            expires_at_ms: *expires_at_ms,
        });
        (Bytes::from(slot::routing_key(key)), entry)
    });
    let mut keys = Keys::new(found.collect::<Vec<_>>(), now_ms);
    let reply = run(&mut keys, &args).unwrap_or_else(|refusal| refusal);
    for write in keys.into_writes().unwrap() {
        assert!(spec.writes(), "{words:?} changes nothing");
        let key = String::from_utf8(write.key[2..].to_vec()).unwrap();
        match write.value {
            Some(value) => state.insert(key, (value.to_vec(), write.expires_at_ms)),
            None => state.remove(&key),
        };
    }
    reply
}

fn bulk(value: Option<&[u8]>) -> Reply {
    value.map_or(Reply::Nil, |value| Reply::Bulk(Bytes::copy_from_slice(value)))
}

fn integer(value: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == value).then_some(number)
}

/// What Redis' documentation says of each command, as plainly as it can be said.
fn expected(model: &mut Model, now_ms: u64, words: &[&str]) -> Option<Reply> {
    model.retain(|_, (_, at_ms)| *at_ms == 0 || *at_ms > now_ms);
    let value_of = |model: &Model, key: &str| model.get(key).map(|(value, _)| value.clone());
    let number = |text: &str| text.parse::<i64>().unwrap();
    let key = words.get(1).copied().unwrap_or_default().to_string();
    let old = model.get(&key).cloned();
    let old_value = old.as_ref().map(|(value, _)| value.as_slice());
    let deadline = old.as_ref().map_or(0, |(_, at_ms)| *at_ms);
    Some(match words {
        ["get", _] => bulk(old_value),
        ["set", _, value] => {
            model.insert(key, (value.as_bytes().to_vec(), 0));
            Reply::OK
        }
        ["set", _, value, "nx"] | ["set", _, value, "xx"] => {
            if (words[3] == "nx") != old.is_none() {
                return Some(Reply::Nil);
            }
            model.insert(key, (value.as_bytes().to_vec(), 0));
            Reply::OK
        }
        ["set", _, value, "keepttl", "get"] => {
            model.insert(key, (value.as_bytes().to_vec(), deadline));
            bulk(old_value)
        }
        ["set", _, value, "px", ms] | ["psetex", _, ms, value] => {
            model.insert(key, (value.as_bytes().to_vec(), now_ms + number(ms) as u64));
            Reply::OK
        }
        ["setnx", _, value] => {
            if old.is_none() {
                model.insert(key, (value.as_bytes().to_vec(), 0));
            }
            Reply::Integer(i64::from(old.is_none()))
        }
        ["getset", _, value] => {
            model.insert(key, (value.as_bytes().to_vec(), 0));
            bulk(old_value)
        }
        ["getdel", _] => {
            model.remove(&key);
            bulk(old_value)
        }
        ["getex", _, "persist"] => {
            model.entry(key).and_modify(|entry| entry.1 = 0);
            bulk(old_value)
        }
        ["append", _, value] => {
            let entry = model.entry(key).or_default();
            entry.0.extend_from_slice(value.as_bytes());
            Reply::Integer(entry.0.len() as i64)
        }
        ["strlen", _] => Reply::Integer(old_value.map_or(0, <[u8]>::len) as i64),
        ["getrange", _, start, end] => {
            let value = old_value.unwrap_or_default();
            let len = value.len() as i64;
            let place = |at: i64| if at < 0 { (at + len).max(0) } else { at };
            let (start, end) = (number(start), number(end));
            let crossed = start < 0 && end < 0 && start > end;
            let kept = value
                .iter()
                .enumerate()
                .filter(|(at, _)| !crossed && (place(start)..=place(end)).contains(&(*at as i64)));
            Reply::Bulk(kept.map(|(_, byte)| *byte).collect())
        }
        ["setrange", _, offset, part] => {
            let mut value = old_value.unwrap_or_default().to_vec();
            let offset = number(offset) as usize;
            if !part.is_empty() {
                value.resize(value.len().max(offset + part.len()), 0);
                value[offset..offset + part.len()].copy_from_slice(part.as_bytes());
                model.insert(key, (value.clone(), deadline));
            }
            Reply::Integer(value.len() as i64)
        }
        ["incrby", _, by] | ["decrby", _, by] => {
            let by = if words[0] == "incrby" { number(by) } else { -number(by) };
            match old_value.map_or(Some(0), integer) {
                Some(before) => match before.checked_add(by) {
                    Some(sum) => {
                        model.insert(key, (sum.to_string().into_bytes(), deadline));
                        Reply::Integer(sum)
                    }
                    None => Reply::error("ERR increment or decrement would overflow"),
                },
                None => not_an_integer(),
            }
        }
        ["mget", keys @ ..] => Reply::Array(keys.iter().map(|key| bulk(value_of(model, key).as_deref())).collect()),
        ["mset", a, x, b, y] | ["msetnx", a, x, b, y] => {
            let refused = words[0] == "msetnx" && (model.contains_key(*a) || model.contains_key(*b));
            if !refused {
                model.insert((*a).into(), (x.as_bytes().to_vec(), 0));
                model.insert((*b).into(), (y.as_bytes().to_vec(), 0));
            }
            if words[0] == "mset" { Reply::OK } else { Reply::Integer(i64::from(!refused)) }
        }
        ["del", keys @ ..] => Reply::Integer(keys.iter().filter(|key| model.remove(**key).is_some()).count() as i64),
        ["exists", keys @ ..] => Reply::Integer(keys.iter().filter(|key| model.contains_key(**key)).count() as i64),
        ["pexpire", _, ms, rest @ ..] => {
            let at_ms = (now_ms as i64 + number(ms)).max(1) as u64;
            let allowed = old.is_some()
                && match rest {
                    [] => true,
                    ["nx"] => deadline == 0,
                    ["xx"] => deadline != 0,
                    ["gt"] => deadline != 0 && at_ms > deadline,
                    ["lt"] => deadline == 0 || at_ms < deadline,
                    _ => return None,
                };
            if allowed {
                model.entry(key).and_modify(|entry| entry.1 = at_ms);
            }
            Reply::Integer(i64::from(allowed))
        }
        ["pttl", _] => Reply::Integer(match (&old, deadline) {
            (None, _) => -2,
            (_, 0) => -1,
            (_, at_ms) => (at_ms - now_ms) as i64,
        }),
        ["pexpiretime", _] => Reply::Integer(match (&old, deadline) {
            (None, _) => -2,
            (_, 0) => -1,
            (_, at_ms) => at_ms as i64,
        }),
        ["persist", _] => {
            model.entry(key).and_modify(|entry| entry.1 = 0);
            Reply::Integer(i64::from(deadline != 0))
        }
        ["rename", _, to] | ["renamenx", _, to] => {
            let Some(old) = old else { return Some(Reply::error("ERR no such key")) };
            if words[0] == "renamenx" && model.contains_key(*to) {
                return Some(Reply::Integer(0));
            }
            model.remove(&key);
            model.insert((*to).into(), old);
            if words[0] == "rename" { Reply::OK } else { Reply::Integer(1) }
        }
        ["copy", from, to, "replace"] if from != to => {
            let Some(old) = old else { return Some(Reply::Integer(0)) };
            model.insert((*to).into(), old);
            Reply::Integer(1)
        }
        _ => return None,
    })
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(String::from)
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{0,6}",
        (-20..20_i64).prop_map(|number| number.to_string()),
        prop::sample::select(vec!["9223372036854775807", "-9223372036854775808", "007", "+1", " 1"])
            .prop_map(String::from),
    ]
}

fn words(name: &'static str, rest: impl Strategy<Value = Vec<String>> + 'static) -> BoxedStrategy<Vec<String>> {
    rest.prop_map(move |rest| std::iter::once(name.to_string()).chain(rest).collect()).boxed()
}

fn command() -> impl Strategy<Value = Vec<String>> {
    let one = |name| words(name, key().prop_map(|key| vec![key]));
    let valued = |name| words(name, (key(), value()).prop_map(|(key, value)| vec![key, value]));
    let set = |rest: &'static [&'static str]| {
        let options =
            move |(key, value)| [vec![key, value], rest.iter().map(|word| word.to_string()).collect()].concat();
        words("set", (key(), value()).prop_map(options))
    };
    let numbered = |name: &'static str, range: std::ops::Range<i64>| {
        words(name, (key(), range).prop_map(|(key, number)| vec![key, number.to_string()]))
    };
    let pairs = |name| {
        let args = (key(), value(), key(), value());
        words(name, args.prop_map(|(a, x, b, y)| vec![a, x, b, y]))
    };
    let expire = |only: &'static str| {
        let args = move |(key, ms): (String, i64)| {
            let only = (!only.is_empty()).then(|| only.to_string());
            [key, ms.to_string()].into_iter().chain(only).collect()
        };
        words("pexpire", (key(), -50..200_i64).prop_map(args))
    };
    let two = |name: &'static str, rest: &'static [&'static str]| {
        let args = move |(a, b)| [vec![a, b], rest.iter().map(|word| word.to_string()).collect()].concat();
        words(name, (key(), key()).prop_map(args))
    };
    let strategies: Vec<BoxedStrategy<Vec<String>>> = vec![
        one("get"),
        one("strlen"),
        one("getdel"),
        one("pttl"),
        one("pexpiretime"),
        one("persist"),
        valued("set"),
        set(&["nx"]),
        set(&["xx"]),
        set(&["keepttl", "get"]),
        set(&["px", "60"]),
        valued("setnx"),
        valued("getset"),
        valued("append"),
        words("getex", key().prop_map(|key| vec![key, "persist".into()])),
        words("psetex", (key(), 1..200_i64, value()).prop_map(|(key, ms, value)| vec![key, ms.to_string(), value])),
        words(
            "getrange",
            (key(), -9..9_i64, -9..9_i64).prop_map(|(key, a, b)| vec![key, a.to_string(), b.to_string()]),
        ),
        words("setrange", (key(), 0..9_i64, value()).prop_map(|(key, at, part)| vec![key, at.to_string(), part])),
        numbered("incrby", -30..30),
        numbered("decrby", -30..30),
        words("mget", prop::collection::vec(key(), 1..4)),
        words("del", prop::collection::vec(key(), 1..4)),
        words("exists", prop::collection::vec(key(), 1..4)),
        pairs("mset"),
        pairs("msetnx"),
        expire(""),
        expire("nx"),
        expire("xx"),
        expire("gt"),
        expire("lt"),
        two("rename", &[]),
        two("renamenx", &[]),
        two("copy", &["replace"]),
    ];
    prop::strategy::Union::new(strategies)
}

proptest! {
    #[test]
    fn string_family_answers_as_the_model(
        commands in prop::collection::vec((command(), 0..40_u64), 1..60)
    ) {
        let (mut state, mut model, mut now_ms) = (Model::new(), Model::new(), 1_000_000);
        for (words, passed_ms) in &commands {
            now_ms += passed_ms;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if let Some(expected) = expected(&mut model, now_ms, &words) {
                prop_assert_eq!(run(&mut state, now_ms, &words), expected, "{:?}", words);
            }
            // What has passed its deadline is gone for both.
            let live = |model: &Model| model.iter().filter(|(_, (_, at_ms))| *at_ms == 0 || *at_ms > now_ms)
                .map(|(key, entry)| (key.clone(), entry.clone())).collect::<Model>();
            prop_assert_eq!(live(&state), live(&model), "{:?}", words);
        }
    }
}

fn error(state: &mut Model, words: &[&str]) -> String {
    match run(state, 1_000, words) {
        Reply::Error(text) => text,
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn refusals_are_worded_as_redis_words_them() {
    let mut state = Model::from([("k".into(), (b"text".to_vec(), 0))]);
    let before = state.clone();
    for (words, text) in [
        (&["set", "k", "v", "nx", "xx"][..], "ERR syntax error"),
        (&["set", "k", "v", "ex"], "ERR syntax error"),
        (&["set", "k", "v", "ex", "1", "px", "1"], "ERR syntax error"),
        (&["set", "k", "v", "ex", "1", "keepttl"], "ERR syntax error"),
        (&["set", "k", "v", "ex", "x"], "ERR value is not an integer or out of range"),
        (&["set", "k", "v", "ex", "0"], "ERR invalid expire time in 'set' command"),
        (&["set", "k", "v", "ex", "9223372036854775807"], "ERR invalid expire time in 'set' command"),
        (&["setex", "k", "-1", "v"], "ERR invalid expire time in 'setex' command"),
        (&["getex", "k", "ex", "0"], "ERR invalid expire time in 'getex' command"),
        (&["getex", "k", "persist", "x"], "ERR syntax error"),
        (&["incr", "k"], "ERR value is not an integer or out of range"),
        (&["decrby", "n", "-9223372036854775808"], "ERR decrement would overflow"),
        (&["incrbyfloat", "k", "1"], "ERR value is not a valid float"),
        (&["setrange", "k", "-1", "v"], "ERR offset is out of range"),
        (&["setrange", "k", "99999999999", "v"], "ERR string exceeds maximum allowed size (16777216 bytes)"),
        (&["expire", "k", "1", "nx", "xx"], "ERR NX and XX, GT or LT options at the same time are not compatible"),
        (&["expire", "k", "1", "gt", "lt"], "ERR GT and LT options at the same time are not compatible"),
        (&["expire", "k", "1", "no"], "ERR Unsupported option no"),
        (&["expire", "k", "9223372036854775807"], "ERR invalid expire time in 'expire' command"),
        (&["rename", "no", "k"], "ERR no such key"),
        (&["copy", "k", "k"], "ERR source and destination objects are the same"),
        (&["copy", "k", "l", "db", "1"], "ERR DB index is out of range"),
    ] {
        assert_eq!(error(&mut state, words), text, "{words:?}");
        assert_eq!(state, before, "{words:?} changed something");
    }
}

#[test]
fn deadline_in_the_past_deletes() {
    let mut state = Model::from([("k".into(), (b"v".to_vec(), 0))]);
    assert_eq!(run(&mut state, 1_000_000, &["expireat", "k", "1"]), Reply::Integer(1));
    assert!(state.is_empty());
    assert_eq!(run(&mut state, 1_000_000, &["ttl", "k"]), Reply::Integer(-2));
}

#[test]
fn object_encoding_is_told_as_redis_stores() {
    let long = "x".repeat(45);
    for (value, encoding) in [("12", "int"), ("012", "embstr"), ("text", "embstr"), (long.as_str(), "raw")] {
        let mut state = Model::from([("k".into(), (value.as_bytes().to_vec(), 0))]);
        assert_eq!(run(&mut state, 1, &["object", "encoding", "k"]), Reply::text(encoding));
    }
    assert_eq!(run(&mut Model::new(), 1, &["object", "encoding", "k"]), Reply::Nil);
}
