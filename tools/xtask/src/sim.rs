//! The simulator and the crash loop.

use std::process::Command;

use crate::{Result, built, cargo, number, root, run_command};

/// Builds and starts `antumbra-sim`, or with `--cluster` `antumbra-cluster-sim`; they say in their own help what they take.
pub fn run(args: &[String]) -> Result<()> {
    let of_cluster = args.iter().any(|arg| arg == "--cluster");
    let program = if of_cluster { "antumbra-cluster-sim" } else { "antumbra-sim" };
    // Both in one build, whichever is wanted: alone, each would have the engine built with features of its own.
    let packages = ["-p", "antumbra-engine", "-p", "antumbra-net", "--features", "antumbra-net/sim"];
    let mut build = cargo();
    build.args(["build", "--quiet", "--release"]).args(packages).args(["--bin", "antumbra-sim"]);
    let built = built(build.args(["--bin", "antumbra-cluster-sim"]))?;
    let path = built.iter().find(|path| path.file_name().is_some_and(|name| name == program));
    let path = path.ok_or_else(|| format!("cargo has not built {program}"))?;
    run_command(Command::new(path).current_dir(root()).args(args.iter().filter(|arg| *arg != "--cluster")))
}

/// kill -9 at random moments under durable write load, on the device that holds the temporary folder.
pub fn crash(args: &[String]) -> Result<()> {
    let rounds = number(args, "--rounds")?.unwrap_or(100);
    let test = ["test", "--release", "-p", "antumbra-engine", "--test", "kill", "--", "--nocapture", "kill_nine"];
    run_command(cargo().args(test).env("ANTUMBRA_KILL_ROUNDS", rounds.to_string()))
}
