//! Everything that a page names is there: files, anchors, packages, tests, tasks, commands of the Redis protocol.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::common::{ask, start_many};
use crate::pages::{self, Page, commands, resolve, root};

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|cause| panic!("{path}: {cause}"))
}

#[test]
fn links_lead_somewhere() {
    for page in pages::all().into_iter().chain([Page::read("ARCHITECTURE.md"), Page::read("SECURITY.md")]) {
        for (line, link) in &page.links {
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.path.clone() } else { resolve(&page.path, file) };
            assert!(root().join(&target).exists(), "{}:{line}: {link}: there is no {target}", page.path);
            let has = || Page::read(&target).anchors.contains(&anchor.to_string());
            assert!(anchor.is_empty() || has(), "{}:{line}: {link}: {target} has no such heading", page.path);
        }
    }
}

#[test]
fn every_page_of_the_documentation_is_in_the_book() {
    let named: BTreeSet<String> = pages::all().into_iter().map(|page| page.path).collect();
    for folder in ["engine/docs", "net/docs", "tools/docs/book"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap().flatten() {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            let is_page = path.ends_with(".md") && path != pages::SUMMARY;
            assert!(!is_page || named.contains(&path), "{path} is not in {}", pages::SUMMARY);
        }
    }
}

#[test]
fn files_that_are_named_exist() {
    const FOLDERS: [&str; 6] = ["engine/", "net/", "tools/", "predictor/", "benches/", "hw-tests/"];
    let is_path =
        |word: &&str| FOLDERS.iter().any(|folder| word.starts_with(folder)) && !word.contains(['*', '{', '(']);
    for page in pages::all() {
        for (line, span) in &page.spans {
            for word in span.split_whitespace().filter(is_path) {
                let path = root().join(word);
                // A module may be named without its ending.
                let exists = path.exists() || path.with_extension("rs").exists();
                assert!(exists, "{}:{line}: there is no {word}", page.path);
            }
        }
    }
}

/// Folder of a package of the workspace.
fn folder(package: &str) -> Option<&'static str> {
    Some(match package {
        "antumbra-predictor" => "predictor",
        "antumbra-engine" => "engine",
        "antumbra-net" => "net",
        "antumbra-tools" => "tools",
        "antumbra-benches" => "benches",
        "antumbra-hw-tests" => "hw-tests",
        "xtask" => "tools/xtask",
        _ => return None,
    })
}

/// Whether any source below a folder has this text.
fn mentions(dir: &Path, what: &str) -> bool {
    std::fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            path.file_name().is_some_and(|name| name == what) || mentions(&path, what)
        } else {
            let is_rust = path.extension().is_some_and(|ending| ending == "rs");
            let named = path.file_stem().is_some_and(|name| name == what);
            is_rust && (named || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(what)))
        }
    })
}

/// Why cargo would not take a command, if it would not.
fn wrong_for_cargo(words: &[&str]) -> Option<String> {
    let behind = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let (own, given) = words.split_at(behind);
    let value = |flag: &str| own.iter().position(|word| *word == flag).and_then(|at| own.get(at + 1)).copied();
    match own.get(1).copied() {
        Some("xtask") => return wrong_for_xtask(&own[2..]),
        Some("run" | "test" | "bench" | "build" | "doc" | "check") => {}
        Some("install" | "add" | "package" | "deb") => return None,
        other => return Some(format!("cargo has no task {other:?} here")),
    }
    // The workspace's default member.
    let package = value("-p").unwrap_or("antumbra-tools");
    let Some(dir) = folder(package) else {
        return Some(format!("no package is called {package}"));
    };
    let there = |path: String| root().join(dir).join(path).exists();
    for (at, flag) in own.iter().enumerate() {
        let name = own.get(at + 1).copied().unwrap_or_default();
        let found = match *flag {
            "--test" => there(format!("tests/{name}.rs")) || there(format!("tests/{name}/main.rs")),
            "--example" => there(format!("examples/{name}.rs")),
            "--bench" => there(format!("benches/{name}.rs")),
            "--bin" => {
                text(&format!("{dir}/Cargo.toml")).contains(&format!("name = \"{name}\""))
                    || there(format!("src/bin/{name}.rs"))
            }
            "--features" => name.split(',').all(|feature| {
                let (package, feature) = feature.split_once('/').unwrap_or((package, feature));
                folder(package)
                    .is_some_and(|dir| text(&format!("{dir}/Cargo.toml")).contains(&format!("\n{feature} = [")))
            }),
            _ => true,
        };
        if !found {
            return Some(format!("{package} has no {name} for {flag}"));
        }
    }
    // What a test is picked by: the word behind the options, and what stands behind `--`.
    if own.get(1) == Some(&"test") {
        let takes = ["-p", "--test", "--features", "--bin", "--example", "--bench"];
        let mut picked: Vec<&str> = given.iter().copied().filter(|word| !word.starts_with('-')).collect();
        let plain = own.iter().enumerate().skip(2).filter(|(_, word)| !word.starts_with('-'));
        picked.extend(plain.filter(|(at, _)| !takes.contains(&own[at - 1])).map(|(_, word)| *word));
        for word in picked {
            let name = word.trim_end_matches("::");
            if !mentions(&root().join(dir), name) {
                return Some(format!("no test of {package} is called {word}"));
            }
        }
    }
    None
}

/// What the program says of one of its commands.
fn help_of(command: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_antumbra")).args(command).arg("--help").output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

fn wrong_for_xtask(words: &[&str]) -> Option<String> {
    let source = text("tools/xtask/src/main.rs");
    let &task = words.first()?;
    let lines: Vec<&str> = source.lines().filter(|line| line.starts_with(&format!("cargo xtask {task} "))).collect();
    if lines.is_empty() {
        return Some(format!("xtask has no task {task}"));
    }
    // Some have a help of their own.
    let own = match task {
        "guard" => text("tools/xtask/src/guard.rs"),
        "bench" => help_of(&["bench", "report"]),
        "sim" => text("engine/src/sim/main.rs") + &text("net/src/sim/main.rs"),
        _ => String::new(),
    };
    let unknown = |word: &&&str| {
        word.starts_with("--") && !lines.iter().any(|line| line.contains(**word)) && !own.contains(**word)
    };
    words.iter().find(unknown).map(|word| format!("xtask {task} does not take {word}"))
}

#[test]
fn cargo_commands_name_what_is_there() {
    let mut checked = 0;
    for page in pages::all() {
        let blocks = page.blocks.iter().filter(|block| block.info.is_empty() || block.info.starts_with("sh"));
        let in_blocks = blocks.flat_map(commands).map(|command| (command.line, command.words));
        let spans = page.spans.iter().map(|(line, span)| (*line, pages::split(&span.replace(['[', ']'], "")).concat()));
        for (line, words) in in_blocks.chain(spans) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if words.first() != Some(&"cargo") || words.len() < 2 {
                continue;
            }
            checked += 1;
            if let Some(what) = wrong_for_cargo(&words) {
                panic!("{}:{line}: {}: {what}", page.path, words.join(" "));
            }
        }
    }
    assert!(checked > 20, "only {checked} commands were found");
}

#[test]
fn mistakes_in_cargo_commands_are_seen() {
    let wrong = |line: &str| wrong_for_cargo(&line.split(' ').collect::<Vec<_>>());
    assert_eq!(wrong("cargo test --release -p antumbra-engine --test it golden"), None);
    assert_eq!(wrong("cargo xtask sim --seeds 5"), None);
    for (line, what) in [
        ("cargo test -p antumbra-engine --test gone", "no gone for --test"),
        ("cargo test -p antumbra-engine --test it nosuchtest", "no test of antumbra-engine"),
        ("cargo run -p antumbra-nothing", "no package"),
        ("cargo build --features nothing", "no nothing for --features"),
        ("cargo xtask dance", "no task dance"),
        ("cargo xtask sim --sheeds 5", "does not take --sheeds"),
    ] {
        assert!(wrong(line).is_some_and(|found| found.contains(what)), "{line}: {:?}", wrong(line));
    }
}

/// Whether `redis-cli` is given a port last, and no command.
fn is_typed_into(words: &[&str]) -> bool {
    matches!(words, [.., "-p", port] if port.parse::<u16>().is_ok())
}

#[test]
fn commands_of_the_redis_protocol_are_those_of_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start_many(dir.path(), 1);
    // `$3\r\nget\r\n` ...
    let listed = ask(nodes[0].resp, "COMMAND LIST");
    let is_name = |line: &&str| line.chars().next().is_some_and(|sign| sign.is_ascii_lowercase());
    let served: BTreeSet<String> = listed.lines().filter(is_name).map(str::to_ascii_uppercase).collect();
    assert!(served.len() > 50, "{listed}");
    let page = Page::read("net/docs/resp.md");
    let table = page.tables.iter().find(|table| table.rows[0].cells[0] == "command").unwrap();
    let is_command = |word: &&str| word.chars().all(|sign| sign.is_ascii_uppercase());
    let words: BTreeSet<String> = table.rows[1..]
        .iter()
        .flat_map(|row| row.cells[0].split([' ', ',']).filter(|word| !word.is_empty()).filter(is_command))
        .map(str::to_string)
        .collect();
    let missing: Vec<&String> = served.difference(&words).collect();
    assert!(missing.is_empty(), "net/docs/resp.md does not have {missing:?}");
    for row in &table.rows[1..] {
        let first = row.cells[0].split([' ', ',']).next().unwrap();
        assert!(served.contains(first), "net/docs/resp.md:{}: a node serves no {first}", row.line);
    }
    // `ANTUMBRA MOVE id host` in any text, and by redis-cli in any block.
    let usage = ask(nodes[0].resp, "ANTUMBRA HELP");
    let known = |word: &str| usage.split([' ', '|', '[', ']']).any(|known| known == word);
    let check = |page: &Page, line: usize, words: &[&str]| {
        for word in words.iter().filter(|word| word.len() > 2 && word.chars().all(|sign| sign.is_ascii_uppercase())) {
            // Ids and hosts by name.
            assert!(
                known(word) || ["HOST", "OPTIONS"].contains(word),
                "{}:{line}: {words:?}: {word} is not in: {usage}",
                page.path
            );
        }
    };
    for page in pages::all() {
        for (line, span) in &page.spans {
            if let Some(rest) = span.strip_prefix("ANTUMBRA ") {
                check(&page, *line, &rest.split_whitespace().collect::<Vec<_>>());
            }
        }
        let blocks = page.blocks.iter().filter(|block| block.info.starts_with("sh"));
        for command in blocks.flat_map(commands) {
            if command.words[0] != "redis-cli" {
                continue;
            }
            let words: Vec<&str> = command.words.iter().map(String::as_str).collect();
            match words.iter().position(|word| *word == "ANTUMBRA") {
                Some(at) => check(&page, command.line, &words[at + 1..]),
                None => assert!(
                    is_typed_into(&words) || words.iter().any(|word| served.contains(&word.to_ascii_uppercase())),
                    "{}:{}: {words:?}: a node serves none of these",
                    page.path,
                    command.line
                ),
            }
        }
    }
}

#[test]
fn rust_in_the_pages_is_compiled() {
    let doctests = text("engine/src/lib.rs") + &text("net/src/lib.rs") + &text("predictor/src/lib.rs");
    for page in pages::all() {
        for block in &page.blocks {
            if block.info.starts_with("rust") {
                let included = doctests.contains(&format!("/{}\")", page.path));
                assert!(included, "{}:{}: no crate has this page among its doctests", page.path, block.line);
                assert!(!block.info.contains("ignore"), "{}:{}: is not compiled", page.path, block.line);
            }
        }
    }
}

/// Whether any source of the programs has this text, a placeholder of a format standing for anything.
fn is_said(what: &str) -> bool {
    ["engine/src", "net/src", "tools/src"].iter().any(|dir| said_below(&root().join(dir), what))
}

fn said_below(dir: &Path, what: &str) -> bool {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).any(|path| {
        path.is_dir() && said_below(&path, what) || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(what))
    })
}

#[test]
fn symptoms_are_what_the_programs_say() {
    let page = Page::read("net/docs/failures.md");
    let mut checked = 0;
    for row in page.tables.iter().flat_map(|table| &table.rows[1..]) {
        let of_row = page.spans.iter().filter(|(line, span)| *line == row.line && row.cells[0].contains(span.as_str()));
        for (line, span) in of_row.filter(|(_, span)| !span.starts_with("antumbra ")) {
            checked += 1;
            assert!(is_said(span), "net/docs/failures.md:{line}: no program says '{span}'");
        }
    }
    assert!(checked > 12, "only {checked} symptoms were found");
}

#[test]
fn errors_that_are_named_exist() {
    let all = ["engine", "net", "predictor"].map(|crate_| text(&format!("{crate_}/src/error.rs"))).concat();
    for page in pages::all() {
        for (line, span) in &page.spans {
            if let Some(name) = span.strip_prefix("Error::") {
                let is_there = [" {", ",", "("].iter().any(|end| all.contains(&format!("\n    {name}{end}")));
                assert!(is_there, "{}:{line}: there is no {span}", page.path);
            }
        }
    }
}

/// The largest version that the sources at or below a path write.
fn newest_version(path: &Path) -> Option<u32> {
    if path.is_dir() {
        let below = std::fs::read_dir(path).into_iter().flatten().flatten();
        return below.filter_map(|entry| newest_version(&entry.path())).max();
    }
    let code = std::fs::read_to_string(path).ok()?;
    let versions = code.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("const VERSION"));
    versions.filter_map(|rest| rest.split(['=', ';']).nth(1)?.trim().parse().ok()).max()
}

#[test]
fn versions_of_formats_are_those_of_the_code() {
    let page = Page::read("engine/docs/formats.md");
    let table = page.tables.iter().find(|table| table.rows[0].cells[..2] == ["structure", "version"]).unwrap();
    for row in &table.rows[1..] {
        let numbers = row.cells[1].split(|sign: char| !sign.is_ascii_digit()).filter_map(|word| word.parse().ok());
        let spans = page.spans.iter().filter(|(line, _)| *line == row.line);
        let sources =
            spans.map(|(_, span)| root().join(if span.contains("src/") { "" } else { "engine/src" }).join(span));
        let newest = sources.filter_map(|path| newest_version(&path)).max();
        assert_eq!(newest, numbers.max(), "engine/docs/formats.md:{}: {}", row.line, row.cells[0]);
        assert!(newest.is_some(), "engine/docs/formats.md:{}: no source has a version", row.line);
    }
}
