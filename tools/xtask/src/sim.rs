//! The simulator and the crash loop.

use crate::{Result, cargo, number, run_command};

/// Builds and starts `antumbra-sim`, which says in its own help what it takes.
pub fn run(args: &[String]) -> Result<()> {
    let build = ["run", "--quiet", "--release", "-p", "antumbra-engine", "--features", "sim", "--bin", "antumbra-sim"];
    run_command(cargo().args(build).arg("--").args(args))
}

/// kill -9 at random moments under durable write load, on the device that holds the temporary folder.
pub fn crash(args: &[String]) -> Result<()> {
    let rounds = number(args, "--rounds")?.unwrap_or(100);
    let test = ["test", "--release", "-p", "antumbra-engine", "--test", "kill", "--", "--nocapture", "kill_nine"];
    run_command(cargo().args(test).env("ANTUMBRA_KILL_ROUNDS", rounds.to_string()))
}
