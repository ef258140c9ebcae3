//! The model checker of the move, with bounds of one's own.

use crate::{Result, cargo, run_command};

const USAGE: &str = "usage: cargo xtask model [--states N] [--writes N] [--moves N] [--source-crashes N] \
                     [--target-crashes N] [--cuts N] [--lost-answers N] [--repeats N] [--timeouts N] [--early N] \
                     [--releases N] [--forces N] [--ends-sampled N]";

/// Checks with the bounds given; the others are the tests' own. `args` are the words behind `model`.
pub fn run(args: &[String]) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--release", "-p", "antumbra-net", "--test", "model", "--", "--nocapture"]);
    for pair in args.chunks(2) {
        let [name, value] = pair else {
            return Err(USAGE.into());
        };
        let name = name.strip_prefix("--").ok_or(USAGE)?;
        value.parse::<u64>().map_err(|_| format!("--{name} {value}: a number is wanted; {USAGE}"))?;
        command.env(format!("ANTUMBRA_MODEL_{}", name.to_uppercase().replace('-', "_")), value);
    }
    run_command(&mut command)
}
