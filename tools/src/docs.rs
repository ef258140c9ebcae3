//! README and book against the command line itself: each command that they show is one that this program takes, and the
//! reference of commands and settings is what the program would say. `ANTUMBRA_UPDATE_DOCS=1` writes the reference anew.

use std::fmt::Write;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};

#[path = "../tests/docs/pages.rs"]
#[allow(dead_code)]
mod pages;

use pages::Page;

/// Commands that the reference leaves out: `bench` and `predict` are for who works on the project.
const OMITTED: [&str; 3] = ["help", "bench", "predict"];
const REFERENCE: &str = "tools/docs/book/reference.md";

/// Whether the program takes these words. What is left out of a part of a command is not missed.
fn parse(words: &[String], is_whole: bool) -> Result<(), String> {
    use ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion, MissingRequiredArgument,
        MissingSubcommand,
    };
    let Err(cause) = crate::settings::command().try_get_matches_from(words) else {
        return Ok(());
    };
    match cause.kind() {
        DisplayHelp | DisplayVersion => Ok(()),
        MissingRequiredArgument | MissingSubcommand | DisplayHelpOnMissingArgumentOrSubcommand if !is_whole => Ok(()),
        _ => Err(cause.to_string()),
    }
}

/// The program's own words of a command line, if it is one of it.
fn own_words(words: &[String]) -> Option<Vec<String>> {
    match words.first()?.as_str() {
        "antumbra" => Some(words.to_vec()),
        "cargo" if words.iter().any(|word| word == "antumbra") => {
            let behind = words.iter().position(|word| word == "--")?;
            Some(["antumbra".to_string()].into_iter().chain(words[behind + 1..].iter().cloned()).collect())
        }
        _ => None,
    }
}

/// A mention in the text has names in place of values: `ctl move ID HOST`, `--policy auto|advise|manual`.
fn filled_in(span: &str) -> Vec<String> {
    let is_name =
        |word: &str| word.chars().all(|sign| sign.is_ascii_uppercase() || sign == '-') && !word.starts_with('-');
    let value = |word: &str| match word {
        "ADDRESS" => "127.0.0.1:1".to_string(),
        word if is_name(word) => "1".to_string(),
        word => word.split('|').next().unwrap_or_default().to_string(),
    };
    let span = span.replace(['[', ']'], "");
    span.split_whitespace().filter(|word| *word != "..").map(value).collect()
}

#[test]
fn commands_in_blocks_are_ones_that_the_program_takes() {
    let mut checked = 0;
    for page in pages::all() {
        let blocks = page.blocks.iter().filter(|block| block.info.is_empty() || block.info.starts_with("sh"));
        for command in blocks.flat_map(pages::commands) {
            let Some(words) = own_words(&command.words) else { continue };
            checked += 1;
            if let Err(what) = parse(&words, command.is_whole) {
                panic!("{}:{}: {}: {what}", page.path, command.line, command.words.join(" "));
            }
        }
    }
    assert!(checked > 30, "only {checked} commands were found");
}

#[test]
fn commands_in_the_text_are_ones_that_the_program_takes() {
    let mut checked = 0;
    for page in pages::all() {
        for (line, span) in &page.spans {
            let begins = |with: &str| span.starts_with(with);
            let words = match span {
                _ if begins("antumbra ") => filled_in(span),
                _ if begins("ctl ") => filled_in(&format!("antumbra {span}")),
                _ => continue,
            };
            checked += 1;
            // An option may be named without its value.
            let with_value: Vec<String> = words.iter().cloned().chain(["1".to_string()]).collect();
            if let Err(what) = parse(&words, false).or_else(|what| parse(&with_value, false).map_err(|_| what)) {
                panic!("{}:{line}: `{span}`: {what}", page.path);
            }
        }
    }
    assert!(checked > 20, "only {checked} commands were found");
}

/// Every long option of the program.
fn flags(command: &Command, found: &mut Vec<String>) {
    found.extend(command.get_arguments().filter_map(Arg::get_long).map(|long| format!("--{long}")));
    command.get_subcommands().for_each(|command| flags(command, found));
}

#[test]
fn flags_and_variables_in_the_text_are_known() {
    // Other programs' own; what is wrong with cargo's is found by the test `docs`.
    const PROGRAMS: &[&str] = &["cargo ", "-p ", "etcdctl "];
    const VARIABLES: &[&str] =
        &["ANTUMBRA_LOG", "ANTUMBRA_ETCD_PASSWORD", "ANTUMBRA_CRASH_ROUNDS", "ANTUMBRA_UPDATE_DOCS"];
    let mut known = Vec::new();
    let mut command = crate::settings::command();
    command.build();
    flags(&command, &mut known);
    for page in pages::all() {
        for (line, span) in
            page.spans.iter().filter(|(_, span)| !PROGRAMS.iter().any(|program| span.starts_with(program)))
        {
            for word in span.split([' ', '=']).filter(|word| word.starts_with("--") && word.len() > 2) {
                let word = word.trim_end_matches("..").trim_end_matches(['-', '.']);
                let is_known = |flag: &String| flag == word || (span.contains("..") && flag.starts_with(word));
                assert!(known.iter().any(is_known), "{}:{line}: `{span}`: nothing takes {word}", page.path);
            }
            let variable = span.split('=').next().unwrap_or_default();
            if let Some(name) = variable.strip_prefix("ANTUMBRA_").filter(|name| !name.contains(['.', ' '])) {
                let long = format!("--{}", name.to_ascii_lowercase().replace('_', "-"));
                assert!(
                    known.contains(&long) || VARIABLES.contains(&variable),
                    "{}:{line}: no variable is called {variable}",
                    page.path
                );
            }
        }
    }
}

/// Of a table whose first column is headed `setting`: name and, in brackets, the default.
#[test]
fn settings_in_tables_have_the_defaults_that_are_said() {
    let command = crate::settings::command();
    let node = command.find_subcommand("node").expect("a command");
    let mut checked = 0;
    for page in pages::all() {
        let tables = page.tables.iter().filter(|table| table.rows.first().is_some_and(|row| row.cells[0] == "setting"));
        for row in tables.flat_map(|table| &table.rows[1..]) {
            let (name, said) = row.cells[0].split_once(" (").map_or((row.cells[0].as_str(), None), |(name, value)| {
                (name, Some(value.trim_end_matches(')').to_string()))
            });
            let arg = node.get_arguments().find(|arg| arg.get_long() == Some(name));
            let arg = arg.unwrap_or_else(|| panic!("{}:{}: no setting is called {name}", page.path, row.line));
            assert_eq!(said, default(arg), "{}:{}: default of {name}", page.path, row.line);
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} settings were found");
}

fn default(arg: &Arg) -> Option<String> {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    (takes_value && !values.is_empty()).then(|| values.join(","))
}

fn help(arg: &Arg) -> String {
    arg.get_long_help()
        .or(arg.get_help())
        .map(ToString::to_string)
        .unwrap_or_default()
        .replace('|', "\\|")
        .replace('\n', " ")
}

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")
}

/// The leaves below a command, each with what leads to it.
fn leaves<'a>(command: &'a Command, path: &str, found: &mut Vec<(String, &'a Command)>) {
    let below: Vec<&Command> = command
        .get_subcommands()
        .filter(|below| !OMITTED.contains(&below.get_name()) && !below.is_hide_set())
        .collect();
    if below.is_empty() {
        found.push((path.to_string(), command));
    }
    for next in below {
        leaves(next, &format!("{path} {}", next.get_name()), found);
    }
}

fn reference() -> String {
    let mut command = crate::settings::command();
    command.build();
    let mut text = String::from(
        "# Commands and settings\n\nWhat `antumbra --help` says, in one place; `antumbra man DIR` writes it as manual pages. A test compares this page\n\
         with the program. `antumbra bench` and `antumbra predict` are left to their `--help`.\n",
    );
    let mut found = Vec::new();
    leaves(&command, "antumbra", &mut found);
    for (path, leaf) in found {
        let about = leaf.get_long_about().or(leaf.get_about()).map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, "\n## {path}\n\n{about}\n");
        let args: Vec<&Arg> = leaf.get_arguments().filter(|arg| is_shown(arg)).collect();
        if args.is_empty() {
            continue;
        }
        let _ = write!(text, "\n| argument | default | meaning |\n|---|---|---|\n");
        for arg in args {
            let name = match arg.get_long() {
                Some(long) => format!("--{long}"),
                None => arg.get_id().as_str().to_ascii_uppercase(),
            };
            let value = default(arg).map(|value| format!("`{value}`")).unwrap_or_default();
            let _ = writeln!(text, "| `{name}` | {value} | {} |", help(arg));
        }
    }
    text
}

#[test]
fn reference_is_what_the_program_says() {
    let path = pages::root().join(REFERENCE);
    let wanted = reference();
    if std::env::var_os("ANTUMBRA_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("the reference can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs =
        wanted.lines().zip(found.lines().chain(std::iter::repeat(""))).find(|(wanted, found)| wanted != found);
    let again = "ANTUMBRA_UPDATE_DOCS=1 cargo test --release -p antumbra-tools --bin antumbra reference writes it anew";
    assert!(wanted == found, "{REFERENCE} is not what the program says: {differs:?}; {again}");
}

#[test]
fn page_without_a_mistake_is_told_from_one_with() {
    let page =
        Page::parse("x.md", "```sh\nantumbra ctl move 1 2 --trottle 5   # typo\nantumbra node .. --shards 2\n```\n");
    let all = pages::commands(&page.blocks[0]);
    assert!(parse(&all[0].words, all[0].is_whole).is_err_and(|what| what.contains("--trottle")));
    assert_eq!(parse(&all[1].words, all[1].is_whole), Ok(()));
    assert!(parse(&all[1].words, true).is_err(), "a whole command has to name the host");
}
