//! The main API has examples (which `cargo test --doc` compiles and runs): each public function has one, or its type has one that
//! calls it, or it says which other it mirrors.

use std::collections::BTreeMap;

use crate::pages::root;

/// What a user of the libraries calls.
const MAIN: [(&str, &[&str]); 3] = [
    (
        "engine/src",
        &[
            "engine/mod.rs",
            "engine/builder.rs",
            "engine/partition.rs",
            "engine/snapshot.rs",
            "engine/entries.rs",
            "keyspace/mod.rs",
            "keyspace/manage.rs",
            "keyspace/options.rs",
            "keyspace/snapshot.rs",
            "keyspace/entries.rs",
            "blocking.rs",
            "config.rs",
            "merge_operator.rs",
            "partition/batch.rs",
            "checkpoint/mod.rs",
            "checkpoint/backup.rs",
            "offline/verify.rs",
            "offline/repair.rs",
            "doctor/mod.rs",
        ],
    ),
    (
        "predictor/src",
        &[
            "model.rs",
            "window.rs",
            "scorer/mod.rs",
            "signal/mod.rs",
            "signal/watch.rs",
            "trace/reader.rs",
            "trace/writer.rs",
            "online/mod.rs",
        ],
    ),
    (
        "net/src",
        &[
            "tls.rs",
            "routing.rs",
            "throttle.rs",
            "secret.rs",
            "events.rs",
            "resp/codec.rs",
            "resp/slot.rs",
            "resp/acl.rs",
        ],
    ),
];

/// A public function: its type, if it is a method, its name, its documentation.
struct Function {
    of: String,
    name: String,
    line: usize,
    docs: String,
}

fn word(text: &str) -> String {
    text.chars().take_while(|sign| sign.is_alphanumeric() || *sign == '_').collect()
}

/// The public functions of a source, and the documentation of each type.
fn read(source: &str) -> (Vec<Function>, BTreeMap<String, String>) {
    let (mut functions, mut types) = (Vec::new(), BTreeMap::new());
    let (mut docs, mut of, mut in_text) = (String::new(), String::new(), false);
    for (number, line) in source.lines().enumerate() {
        let text = line.trim();
        if text.starts_with("#[cfg(test)]") {
            break;
        }
        // An example in a raw string goes on until it is closed.
        if text.starts_with("///") || text.starts_with("#[doc") || in_text {
            docs += text;
            docs.push('\n');
            in_text = (in_text || text.starts_with("#[doc")) && !text.ends_with(")]");
            continue;
        }
        if text.starts_with("#[") || text.is_empty() {
            continue;
        }
        if let Some(rest) = line.strip_prefix("impl") {
            let rest = rest.rsplit(" for ").next().unwrap_or(rest);
            let rest = if rest.starts_with('<') { rest.split_once("> ").map_or(rest, |(_, rest)| rest) } else { rest };
            of = word(rest.trim_start());
        } else if line.starts_with('}') {
            of.clear();
        }
        let head = text.strip_prefix("pub ").map(|rest| rest.trim_start_matches("const ").trim_start_matches("async "));
        if let Some(name) = head.and_then(|head| head.strip_prefix("fn ")) {
            functions.push(Function {
                of: of.clone(),
                name: word(name),
                line: number + 1,
                docs: std::mem::take(&mut docs),
            });
        }
        for kind in ["struct ", "enum ", "trait "] {
            if let Some(name) = head.and_then(|head| head.strip_prefix(kind)) {
                types.insert(word(name), std::mem::take(&mut docs));
            }
        }
        docs.clear();
    }
    (functions, types)
}

fn has_example(docs: &str) -> bool {
    docs.contains("```") || docs.contains("example!(")
}

#[test]
fn main_interface_has_examples() {
    let mut checked = 0;
    for (folder, files) in MAIN {
        // A type's documentation may stand in another file than its methods.
        let all: Vec<_> = files
            .iter()
            .map(|file| {
                let path = root().join(folder).join(file);
                (
                    file,
                    read(&std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))),
                )
            })
            .collect();
        let public = |name: &str| all.iter().find_map(|(_, (_, types))| types.get(name));
        for (file, (functions, types)) in &all {
            // Examples of a file; a method is public if its type is.
            let docs: Vec<&String> =
                functions.iter().map(|one| &one.docs).chain(types.values()).filter(|docs| has_example(docs)).collect();
            for function in functions.iter().filter(|one| one.of.is_empty() || public(&one.of).is_some()) {
                checked += 1;
                let called = format!("{}(", function.name);
                let made = format!("{}::{called}", function.of);
                let of_type = types.get(&function.of).or_else(|| public(&function.of)).filter(|docs| has_example(docs));
                let is_called = |docs: &&String| {
                    let as_method = docs.contains(&format!(".{called}")) && of_type.is_none();
                    if function.of.is_empty() { docs.contains(&called) } else { docs.contains(&made) || as_method }
                };
                assert!(
                    has_example(&function.docs)
                        || function.docs.starts_with("/// See [`")
                        || of_type.is_some_and(|docs| docs.contains(&called))
                        || docs.iter().any(is_called),
                    "{folder}/{file}:{}: {}::{} has no example, and that of its type does not call it",
                    function.line,
                    function.of,
                    function.name
                );
            }
        }
    }
    assert!(checked > 150, "only {checked} functions were found");
}

#[test]
fn function_without_an_example_is_seen() {
    let source = "/// It.\n/// ```\n/// It::new().run();\n/// ```\npub struct It;\n\nimpl It {\n    /// Makes it.\n    pub fn new() -> It {}\n\n    \
                  /// Stops.\n    pub fn stop(&self) {}\n}\n";
    let (functions, types) = read(source);
    assert_eq!(
        functions.iter().map(|one| (one.of.as_str(), one.name.as_str())).collect::<Vec<_>>(),
        [("It", "new"), ("It", "stop")]
    );
    assert!(has_example(&types["It"]) && types["It"].contains("new(") && !types["It"].contains("stop("));
}
