//! The simulator and the crash loop.

use crate::{Result, cargo, number, run_command};

/// Builds and starts `antumbra-sim`, or with `--cluster` `antumbra-cluster-sim`; they say in their own help what they take.
pub fn run(args: &[String]) -> Result<()> {
    let of_cluster = args.iter().any(|arg| arg == "--cluster");
    let (package, program) =
        if of_cluster { ("antumbra-net", "antumbra-cluster-sim") } else { ("antumbra-engine", "antumbra-sim") };
    let build = ["run", "--quiet", "--release", "-p", package, "--features", "sim", "--bin", program];
    run_command(cargo().args(build).arg("--").args(args.iter().filter(|arg| *arg != "--cluster")))
}

/// kill -9 at random moments under durable write load, on the device that holds the temporary folder.
pub fn crash(args: &[String]) -> Result<()> {
    let rounds = number(args, "--rounds")?.unwrap_or(100);
    let test = ["test", "--release", "-p", "antumbra-engine", "--test", "kill", "--", "--nocapture", "kill_nine"];
    run_command(cargo().args(test).env("ANTUMBRA_KILL_ROUNDS", rounds.to_string()))
}
