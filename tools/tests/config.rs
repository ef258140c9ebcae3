//! Settings of a node: command line before environment before file; mistakes are named with their place.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

fn antumbra(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antumbra"));
    command.args(args).envs(environment.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn file(dir: &Path, text: &str) -> String {
    let path = dir.join("node.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn command_line_goes_before_environment_before_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        dir.path(),
        "host = 1\ndir = \"data\"\nca = \"ca\"\nresp = \"127.0.0.1:1001\"\nshards = 2\nmemory-mib = 300\nallow-flush = true\n",
    );
    let check = |args: &[&str], environment: &[(&str, &str)]| {
        let all: Vec<&str> = ["node", "--config", &path, "--check"].into_iter().chain(args.iter().copied()).collect();
        let output = antumbra(&all, environment);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    assert_eq!(check(&[], &[]), "host 1: data in data, RESP on 127.0.0.1:1001, 2 shards, 300 MiB\n");
    let environment = [("ANTUMBRA_SHARDS", "3"), ("ANTUMBRA_MEMORY_MIB", "400")];
    assert_eq!(check(&[], &environment), "host 1: data in data, RESP on 127.0.0.1:1001, 3 shards, 400 MiB\n");
    let last = check(&["--shards", "1", "--host", "7"], &environment);
    assert_eq!(last, "host 7: data in data, RESP on 127.0.0.1:1001, 1 shards, 400 MiB\n");
    let output = antumbra(&["node", "--check"], &[("ANTUMBRA_CONFIG", &path)]);
    assert!(said(&output).starts_with("host 1: data in data"), "{}", said(&output));
    assert!(!dir.path().join("data").exists(), "nothing was started");
}

#[test]
fn mistakes_are_named_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let head = "host = 1\ndir = \"data\"\nca = \"ca\"\n";
    for (line, what) in [
        ("shard = 2", "no setting is called 'shard'"),
        ("shards = \"many\"", "many"),
        ("shards = 0", "shards"),
        ("allow-flush = 1", "true or false"),
        ("shards = [1, 2]", "not array"),
        ("shards = ", "line 4"),
        ("config = \"other\"", "command line"),
        ("policy = \"sometimes\"", "manual, advise or auto"),
        ("coordinator = \"there\"", "HOST@ADDRESS"),
        ("resp = \"here\"", "here"),
        ("users = \"no/such/file\"", "no/such/file"),
    ] {
        let path = file(dir.path(), &format!("{head}{line}\n"));
        let output = antumbra(&["node", "--config", &path, "--check"], &[]);
        assert!(!output.status.success() && said(&output).contains(what), "{line}: {}", said(&output));
    }
    let output = antumbra(&["node", "--config", "no/such", "--check"], &[]);
    assert!(!output.status.success() && said(&output).contains("no/such"), "{}", said(&output));
}

#[test]
fn example_file_and_unit_are_sound() {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    let example = dist.join("node.toml").display().to_string();
    let output = antumbra(&["node", "--config", &example, "--check"], &[]);
    assert!(output.status.success() && said(&output).contains("4 shards, 4096 MiB"), "{}", said(&output));
    let unit = std::fs::read_to_string(dist.join("antumbra.service")).unwrap();
    for line in unit.lines().filter_map(|line| line.split_once("=/usr/bin/antumbra ")) {
        let mut args: Vec<&str> = line.1.split(' ').collect();
        let place = args.iter().position(|arg| *arg == "--config").unwrap();
        args[place + 1] = &example;
        args.retain(|arg| *arg != "--check");
        args.push("--check");
        let output = antumbra(&args, &[]);
        assert!(output.status.success(), "{line:?}: {}", said(&output));
    }
}

#[test]
fn manual_and_completions_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let output = antumbra(&["man", &dir.path().display().to_string()], &[]);
    assert!(output.status.success(), "{}", said(&output));
    let page = std::fs::read_to_string(dir.path().join("antumbra-node.1")).unwrap();
    assert!(page.contains("policy") && page.contains("TOML"), "{page}");
    assert!(dir.path().join("antumbra-ctl-drain.1").is_file());
    for shell in ["bash", "zsh", "fish"] {
        let output = antumbra(&["completions", shell], &[]);
        assert!(output.status.success() && said(&output).contains("drain"), "{shell}");
    }
}
