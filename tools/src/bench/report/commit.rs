//! Which commit was measured. `cargo xtask results` has this file too, so it names nothing of this crate.

use std::path::Path;
use std::process::Command;

/// What figures depend on.
const SOURCES: [&str; 8] = [
    "Cargo.lock",
    "predictor/src",
    "engine/src",
    "net/src",
    "benches/src",
    "tools/src/demo",
    "tools/src/moving",
    "tools/src/bench",
];

/// The last commit that changed them, and whether something has been changed since; `None` outside a checkout.
pub fn measured(root: &Path) -> Option<String> {
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").args(args).arg("--").args(SOURCES).current_dir(root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let (last, changed) = (git(&["log", "-1", "--format=%h"])?, git(&["status", "--short"])?);
    let last = Some(last).filter(|last| !last.is_empty())?;
    Some(if changed.is_empty() { last } else { format!("{last} and changes that were not committed") })
}
