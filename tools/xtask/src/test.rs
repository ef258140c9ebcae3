//! All tests, with one line of counts at the end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::{Result, add_etcd, artifacts, cargo, setup};

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    skipped: Vec<String>,
    /// What failed tests printed, to be repeated at the end.
    failures: Vec<String>,
    in_failures: bool,
    /// Suites that did not end well.
    broken: Vec<String>,
}

/// A command of tests and what to call it.
struct Suite {
    name: String,
    command: Command,
}

/// Runs the set-up, the tests of the workspace, and those that need libtorch.
///
/// Tests of whole nodes mostly wait, and their nodes have deadlines: these programs run one behind the other. What else there is to
/// build and to test, which mostly computes, is done beside them at a lower priority.
pub fn run(with_torch: bool) -> Result<()> {
    let mut counts = Counts::default();
    if with_torch {
        setup::run()?;
    }
    let mut build = cargo();
    build.args(["test", "--release", "--workspace", "--no-run"]);
    let mut documentation = cargo();
    documentation.args(["test", "--release", "--workspace", "--doc", "--no-fail-fast"]);
    if !add_etcd(&mut build) || !add_etcd(&mut documentation) {
        counts.skipped.push("etcd: there is no protoc to build its client with; cargo xtask setup fetches it".into());
    }
    let in_front = |suite: &Suite| ["tools/", "hw-tests/"].iter().any(|package| suite.name.starts_with(package));
    let (nodes, mut others): (Vec<Suite>, Vec<Suite>) = suites(&artifacts(&mut build)?).into_iter().partition(in_front);
    others.push(Suite { name: "documentation".into(), command: documentation });
    // The cluster's simulation is in no other build.
    let mut simulated = cargo();
    simulated.args(["test", "--release", "-p", "antumbra-net", "--features", "sim", "--lib", "sim::"]);
    others.push(Suite { name: "simulated cluster".into(), command: simulated });
    if with_torch {
        others.push(Suite { name: "predictor with libtorch".into(), command: with_libtorch() });
    } else {
        counts.skipped.push("training and its agreement with libtorch: --no-torch was given".into());
    }
    let counts = Mutex::new(counts);
    std::thread::scope(|scope| {
        scope.spawn(|| others.iter().for_each(|suite| run_suite(&suite.name, &mut yielding(&suite.command), &counts)));
        for mut suite in nodes {
            run_suite(&suite.name, &mut suite.command, &counts);
        }
    });
    conclude(&counts.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn with_libtorch() -> Command {
    let torch = setup::torch_dir();
    let mut command = cargo();
    command
        .args(["test", "--release", "-p", "antumbra-predictor", "--features", "torch", "--no-fail-fast", "--"])
        .arg("--show-output")
        .env("LIBTORCH", &torch)
        .env("LD_LIBRARY_PATH", torch.join("lib"));
    command
}

/// The test programs among what cargo says that it has built, to be run as it would.
fn suites(artifacts: &str) -> Vec<Suite> {
    let string =
        |line: &str, name: &str| Some(line.split_once(&format!("\"{name}\":\""))?.1.split_once('"')?.0.to_string());
    let suite = |line: &str| {
        let profile = line.split_once("\"profile\":{")?.1.split_once('}')?.0;
        let program = string(line, "executable").filter(|_| profile.contains("\"test\":true"))?;
        let manifest = PathBuf::from(string(line, "manifest_path")?);
        let folder = manifest.parent()?;
        let target = string(line.split_once("\"target\":{")?.1, "name")?;
        let name = format!("{}/{target}", folder.file_name()?.to_string_lossy());
        let mut command = Command::new(program);
        // Tests say SKIPPED on their output, which would be swallowed.
        command.current_dir(folder).env("CARGO_MANIFEST_DIR", folder).args(["--show-output", "--test-threads=4"]);
        Some(Suite { name, command })
    };
    artifacts.lines().filter_map(suite).collect()
}

/// The same at a lower priority.
fn yielding(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.arg("-n10").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        nice.current_dir(folder);
    }
    nice
}

/// Runs a suite, shows what it has printed once it is done, and adds up what it says.
fn run_suite(name: &str, command: &mut Command, counts: &Mutex<Counts>) {
    let begin = Instant::now();
    eprintln!("xtask: testing {name}");
    let out = command.stderr(Stdio::inherit()).output();
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    match out {
        Ok(out) => {
            let text = String::from_utf8_lossy(&out.stdout);
            println!("\n{name}:\n{text}");
            text.lines().for_each(|line| count(line, &mut counts));
            if !out.status.success() {
                counts.broken.push(format!("{name} ended with {}", out.status));
            }
        }
        Err(cause) => counts.broken.push(format!("{name}: {cause}")),
    }
    println!("{name} took {:.0} s", begin.elapsed().as_secs_f64());
}

/// One of the tests, of the whole workspace: with other features of what it depends on, all that would be built once more.
fn one_test(name: &str) -> Command {
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--test", name]);
    command
}

/// Runs the set-up and the tests of the status page.
pub fn browser() -> Result<()> {
    setup::run()?;
    let mut command = one_test("browser");
    add_etcd(&mut command);
    run_alone(command.args(["--", "--show-output"]))
}

/// Runs the set-up and the cluster of three hosts in their namespaces.
pub fn cluster() -> Result<()> {
    setup::run()?;
    let mut command = one_test("namespaces");
    if !add_etcd(&mut command) {
        return Err("there is no protoc to build etcd's client with, although the set-up fetches it".into());
    }
    run_alone(command.args(["--", "--show-output"]))
}

/// Runs the upgrade from an older program.
pub fn upgrade(older: &Path) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--release", "-p", "antumbra-tools", "--test", "upgrade", "--", "--show-output"]);
    run_alone(command.arg("--include-ignored").env("ANTUMBRA_OLDER", older))
}

fn run_alone(command: &mut Command) -> Result<()> {
    let counts = Mutex::default();
    run_suite("these tests", command, &counts);
    conclude(&counts.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Says what has come out.
fn conclude(counts: &Counts) -> Result<()> {
    for line in &counts.failures {
        println!("{line}");
    }
    for reason in &counts.skipped {
        println!("SKIPPED: {reason}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        counts.passed,
        counts.failed,
        counts.ignored + counts.skipped.len() as u64
    );
    let strict = std::env::var_os("HW_STRICT").is_some_and(|value| value == "1");
    if counts.failed > 0 || !counts.broken.is_empty() {
        return Err(format!("some tests failed: {}", counts.broken.join(", ")));
    }
    if strict && !counts.skipped.is_empty() {
        return Err("HW_STRICT=1, and something was skipped".into());
    }
    Ok(())
}

/// Understands `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, `SKIPPED: reason`, and what stands between
/// `failures:` and the result.
fn count(line: &str, counts: &mut Counts) {
    counts.in_failures = (counts.in_failures || line == "failures:") && !line.starts_with("test result: ");
    if counts.in_failures {
        counts.failures.push(line.to_string());
    }
    if let Some(reason) = line.split("SKIPPED: ").nth(1) {
        counts.skipped.push(reason.to_string());
    }
    let Some(result) = line.trim_start().strip_prefix("test result: ") else {
        return;
    };
    for part in result.split([';', '.']) {
        let mut words = part.split_whitespace();
        let (number, what) = (words.next().and_then(|word| word.parse::<u64>().ok()), words.next());
        match (number, what) {
            (Some(number), Some("passed")) => counts.passed += number,
            (Some(number), Some("failed")) => counts.failed += number,
            (Some(number), Some("ignored")) => counts.ignored += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_keeps_what_failed_tests_printed() {
        let mut counts = Counts::default();
        let lines = [
            "test a ... FAILED",
            "",
            "failures:",
            "---- a stdout ----",
            "thread 'a' panicked at a.rs:1:",
            "failures:",
            "    a",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored",
            "test b ... ok",
        ];
        lines.iter().for_each(|line| count(line, &mut counts));
        assert_eq!(counts.failures, lines[2..7]);
    }

    #[test]
    fn suites_are_the_programs_of_tests_alone() {
        let line = |kind: &str, name: &str, of_tests: bool, executable: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"/w/net/Cargo.toml\",\"target\":{{\"kind\":[\"{kind}\"],\
                 \"name\":\"{name}\",\"test\":true}},\"profile\":{{\"opt_level\":\"3\",\"test\":{of_tests}}},\
                 \"executable\":{executable},\"fresh\":true}}\n"
            )
        };
        let built = line("lib", "antumbra_net", false, "null")
            + &line("bin", "antumbra", false, "\"/t/antumbra\"")
            + &line("test", "outside", true, "\"/t/outside-1\"");
        let suites = suites(&built);
        assert_eq!(suites.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>(), ["net/outside"]);
        assert_eq!(suites[0].command.get_program(), "/t/outside-1");
        assert_eq!(suites[0].command.get_current_dir(), Some(Path::new("/w/net")));
        let yielding = yielding(&suites[0].command);
        assert_eq!(yielding.get_args().collect::<Vec<_>>()[..2], ["-n10", "/t/outside-1"]);
        assert_eq!(yielding.get_current_dir(), Some(Path::new("/w/net")));
    }

    #[test]
    fn count_adds_up_results() {
        let mut counts = Counts::default();
        count(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            &mut counts,
        );
        count("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured", &mut counts);
        count("SKIPPED: no GPU", &mut counts);
        assert_eq!((counts.passed, counts.failed, counts.ignored, counts.skipped.len()), (5, 1, 1, 1));
    }
}
