//! The sessions of README and book (blocks ```` ```sh,run ````) as somebody types them: nodes, ctl, redis-cli, in order, each block
//! on fresh nodes in a network of its own, so that the ports are those that stand there.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use crate::pages::{self, Block};

/// What runs each line: the nodes in the background until they are ready; what follows for ever for two seconds; everything else to
/// a good end, and moves that it began to theirs.
const HELPERS: &str = r#"
set -u
ip link set lo up
redis-cli() { timeout 60 "$(type -P redis-cli)" -e "$@"; }
settle() {
    # A move that was asked for shows in the record a moment later.
    sleep 0.5
    for turn in $(seq 600); do
        case "$(antumbra ctl --json partitions 2>/dev/null)" in *'"Moving"'*|*'"Committed"'*) sleep 0.1; continue;; esac
        # Nobody types faster than a new partition is made.
        [ "$nodes" != 2 ] || redis-cli CLUSTER INFO | grep -q cluster_state:ok && return 0
        sleep 0.1
    done
    echo "moves did not end"; return 1
}
stands() {
    for turn in $(seq 600); do
        redis-cli ANTUMBRA PROGRESS "$1" | grep -q Ready && return 0
        sleep 0.1
    done
    return 1
}
node() {
    log="$LOGS/$((++nodes))"
    "$@" >"$log" 2>&1 & pids="$pids $!"
    for turn in $(seq 300); do
        grep -q READY "$log" && return 0
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    cat "$log"; return 1
}
follow() { timeout 2 "$@"; [ $? = 124 ]; }
failed() { echo "FAILED line $1: $2"; exit 1; }
nodes=0; pids=""; shadow=
trap 'kill $pids 2>/dev/null; wait' EXIT
"#;

fn is_endless(words: &[String]) -> bool {
    words.iter().any(|word| word == "--follow")
}

/// A script of a block.
fn script(block: &Block, data: &Path) -> String {
    let mut script = HELPERS.to_string();
    for command in pages::commands(block) {
        let quoted: Vec<String> = command
            .words
            .iter()
            .map(|word| word.replace("/data", &data.display().to_string()).replace('\'', "'\\''"))
            .map(|word| format!("'{word}'"))
            .collect();
        // Functions are found by their bare name.
        let words = quoted.join(" ").replacen("'redis-cli'", "redis-cli", 1);
        let how = match command.words.get(1).map(String::as_str) {
            Some("node") => "node ",
            // It draws on a terminal.
            Some("ctl") if command.words.iter().any(|word| word == "top") => {
                let _ = writeln!(
                    script,
                    "script -qec 'timeout 2 antumbra ctl top' /dev/null >/dev/null; [ $? = 124 ] || failed {} top",
                    command.line
                );
                continue;
            }
            _ if is_endless(&command.words) => "follow ",
            Some(_) if command.words[0] == "antumbra" => "timeout 60 ",
            _ => "",
        };
        let name = command.words.join(" ").replace('\'', "");
        let _ = writeln!(script, "echo '+ {name}'\n{how}{words} || failed {} '{name}'", command.line);
        // A shadow stays, and its partition is being moved as long as it does.
        let is = |known: &[&str]| command.words.iter().any(|word| known.contains(&word.as_str()));
        if is(&["shadow", "--manual"]) {
            let partition = command.words.get(3).map_or("1", String::as_str);
            let _ = writeln!(script, "shadow=1; stands {partition} || failed {} 'a shadow is ready'", command.line);
        }
        if is(&["abort", "switch"]) {
            let _ = writeln!(script, "shadow=");
        }
        if !is(&["node", "shadow", "promote", "--manual"]) {
            let _ = writeln!(script, "[ -n \"$shadow\" ] || settle || failed {} 'moves end'", command.line);
        }
    }
    script
}

/// How a network of one's own is had; who is not root becomes it in there.
fn namespace() -> &'static str {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.starts_with(b"0\n"));
    if is_root { "-n" } else { "-rn" }
}

fn run(script: &str, dir: &Path) -> Output {
    let path = dir.join("session.sh");
    std::fs::write(&path, script).unwrap();
    std::fs::create_dir_all(dir.join("logs")).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_antumbra")).parent().unwrap().display().to_string();
    let search = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("unshare");
    command.args([namespace(), "timeout", "300", "bash"]).arg(&path);
    command.env("PATH", search).env("LOGS", dir.join("logs")).current_dir(dir).output().unwrap()
}

#[test]
fn sessions_run_as_they_stand_there() {
    let can = Command::new("unshare").args([namespace(), "ip", "link", "set", "lo", "up"]).output();
    if !can.is_ok_and(|out| out.status.success()) {
        return println!("SKIPPED: no network namespace can be made here, where ports are free (unshare -rn, ip)");
    }
    let mut count = 0;
    for page in pages::all() {
        for block in page.blocks.iter().filter(|block| block.info == "sh,run") {
            count += 1;
            let dir = tempfile::tempdir().unwrap();
            let output = run(&script(block, &dir.path().join("data")), dir.path());
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            println!("{}:{}\n{said}", page.path, block.line);
            assert!(output.status.success(), "{}:{}: {said}", page.path, block.line);
        }
    }
    assert!(count > 1, "only {count} sessions were found");
}

#[test]
fn session_with_a_mistake_fails() {
    let page = pages::Page::parse("x.md", "```sh,run\nantumbra ctl --node 127.0.0.1:1 status\n```\n");
    let dir = tempfile::tempdir().unwrap();
    let output = run(&script(&page.blocks[0], dir.path()), dir.path());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{said}");
}
