//! Builds every benchmark and has `antumbra bench report` run them.

use crate::{Result, antumbra, program, root, run_command};

/// Where the recorded traces lie, if they lie beside the repository.
const TRACES: &str = "../shared/traces";
/// How the keys of those lie that are not block addresses.
const BY_ARRIVAL: [&str; 2] = ["scarab_recs", "mooncake_conv"];

/// Runs the report; all but `--peers` is for it to understand.
pub fn run(args: &[String]) -> Result<()> {
    let with_peers = args.iter().any(|arg| arg == "--peers");
    let mut given: Vec<String> = args.iter().filter(|arg| *arg != "--peers").cloned().collect();
    let full = given.iter().any(|arg| arg == "--full");
    let antumbra = antumbra()?;
    let bench = |name: &str| {
        program(&["bench", "-p", "antumbra-benches", "--bench", name, "--no-run"], name)
            .map(|path| path.display().to_string())
    };
    given.extend(["--hot".into(), bench("hot")?]);
    if full {
        given.extend(["--predictor".into(), bench("predictor")?]);
        if !given.iter().any(|arg| arg == "--trace") {
            given.extend(traces().into_iter().flat_map(|trace| ["--trace".into(), trace]));
        }
    }
    if with_peers {
        let compare = ["build", "--release", "-p", "antumbra-benches", "--features", "peers", "--bin", "compare"];
        given.extend(["--compare".into(), program(&compare, "compare, with RocksDB (minutes)")?.display().to_string()]);
    }
    run_command(std::process::Command::new(antumbra).args(["bench", "report"]).args(given).current_dir(root()))
}

/// The recorded traces and how their keys lie.
fn traces() -> Vec<String> {
    let entries = std::fs::read_dir(root().join(TRACES)).into_iter().flatten().flatten();
    let mut traces: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mapping = if BY_ARRIVAL.contains(&name.strip_suffix(".csv.zst")?) { "arrival" } else { "range" };
            Some(format!("{}:{mapping}", entry.path().display()))
        })
        .collect();
    traces.sort_unstable();
    traces
}
