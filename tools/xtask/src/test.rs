//! All tests, with one line of counts at the end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, add_etcd, cargo, setup};

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    skipped: Vec<String>,
    /// What failed tests printed, to be repeated at the end.
    failures: Vec<String>,
    in_failures: bool,
    broken: bool,
}

/// Runs the set-up, the tests of the workspace, and those that need libtorch.
pub fn run(with_torch: bool) -> Result<()> {
    let mut counts = Counts::default();
    if with_torch {
        setup::run()?;
    }
    let mut workspace = cargo();
    workspace.args(["test", "--release", "--workspace", "--no-fail-fast"]);
    if !add_etcd(&mut workspace) {
        counts.skipped.push("etcd: there is no protoc to build its client with; cargo xtask setup fetches it".into());
    }
    // Tests say SKIPPED on their output, which would be swallowed.
    run_counted(workspace.args(["--", "--show-output", "--test-threads=4"]), &mut counts)?;
    // The cluster's simulation is in no other build.
    run_counted(
        cargo().args(["test", "--release", "-p", "antumbra-net", "--features", "sim", "--lib", "sim::"]),
        &mut counts,
    )?;
    if with_torch {
        let torch = setup::torch_dir();
        let mut command = cargo();
        command
            .args(["test", "--release", "-p", "antumbra-predictor", "--features", "torch", "--no-fail-fast", "--"])
            .arg("--show-output")
            .env("LIBTORCH", &torch)
            .env("LD_LIBRARY_PATH", torch.join("lib"));
        run_counted(&mut command, &mut counts)?;
    } else {
        counts.skipped.push("training and its agreement with libtorch: --no-torch was given".into());
    }
    conclude(&counts)
}

/// One of the tests, of the whole workspace: with other features of what it depends on, all that would be built once more.
fn one_test(name: &str) -> Command {
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--test", name]);
    command
}

/// Runs the set-up and the tests of the status page.
pub fn browser() -> Result<()> {
    let mut counts = Counts::default();
    setup::run()?;
    let mut command = one_test("browser");
    add_etcd(&mut command);
    run_counted(command.args(["--", "--show-output"]), &mut counts)?;
    conclude(&counts)
}

/// Runs the set-up and the cluster of three hosts in their namespaces.
pub fn cluster() -> Result<()> {
    let mut counts = Counts::default();
    setup::run()?;
    let mut command = one_test("namespaces");
    if !add_etcd(&mut command) {
        return Err("there is no protoc to build etcd's client with, although the set-up fetches it".into());
    }
    run_counted(command.args(["--", "--show-output"]), &mut counts)?;
    conclude(&counts)
}

/// Runs the upgrade from an older program.
pub fn upgrade(older: &Path) -> Result<()> {
    let mut counts = Counts::default();
    let mut command = cargo();
    command.args(["test", "--release", "-p", "antumbra-tools", "--test", "upgrade", "--", "--show-output"]);
    run_counted(command.arg("--include-ignored").env("ANTUMBRA_OLDER", older), &mut counts)?;
    conclude(&counts)
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
    if counts.failed > 0 || counts.broken {
        return Err("some tests failed".into());
    }
    if strict && !counts.skipped.is_empty() {
        return Err("HW_STRICT=1, and something was skipped".into());
    }
    Ok(())
}

/// Runs a command, shows what it prints, and counts what it says of its tests.
fn run_counted(command: &mut Command, counts: &mut Counts) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|cause| format!("cargo: {cause}"))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
            count(&line, counts);
            println!("{line}");
        }
    }
    let status = child.wait().map_err(|cause| format!("cargo: {cause}"))?;
    counts.broken |= !status.success();
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
