//! The program of an older commit, and the upgrade from it to this one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Result, root, run_command, setup, test};

/// Builds the program of `commit`, unless that was done before, and runs the test with it.
pub fn run(commit: &str) -> Result<()> {
    let id = full_id(commit)?;
    let kept = setup::cache().join("programs").join(&id);
    let program = kept.join("antumbra");
    if !program.is_file() {
        build(&id, &kept)?;
    }
    test::upgrade(&program)
}

fn full_id(commit: &str) -> Result<String> {
    let mut command = Command::new("git");
    command.args(["rev-parse", "--verify", "--quiet", "--end-of-options"]).arg(format!("{commit}^{{commit}}"));
    let output = command.current_dir(root()).output().map_err(|cause| format!("git: {cause}"))?;
    if !output.status.success() {
        return Err(format!("--upgrade {commit}: no such commit here; give one that git log shows"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// In a folder of its own, which does not outlive the build.
fn build(id: &str, kept: &Path) -> Result<()> {
    let work = kept.with_extension("new");
    let _ = std::fs::remove_dir_all(&work);
    setup::create(&work)?;
    export(id, &work)?;
    let target = work.join("target");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked", "--bin", "antumbra"]).current_dir(&work);
    run_command(cargo.env("CARGO_TARGET_DIR", &target).env("CARGO_INCREMENTAL", "0"))?;
    setup::create(kept)?;
    let (built, place): (PathBuf, PathBuf) = (target.join("release/antumbra"), kept.join("antumbra"));
    std::fs::copy(&built, &place).map_err(|cause| format!("{}: {cause}", place.display()))?;
    std::fs::remove_dir_all(&work).map_err(|cause| format!("{}: {cause}", work.display()))
}

/// The files of a commit, without touching the checkout.
fn export(id: &str, to: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.args(["archive", id]).current_dir(root()).stdout(Stdio::piped());
    let mut archive = git.spawn().map_err(|cause| format!("git: {cause}"))?;
    let mut tar = Command::new("tar");
    tar.arg("-x").current_dir(to);
    if let Some(files) = archive.stdout.take() {
        tar.stdin(files);
    }
    run_command(&mut tar)?;
    match archive.wait() {
        Ok(status) if status.success() => Ok(()),
        ended => Err(format!("git archive {id}: {ended:?}")),
    }
}
