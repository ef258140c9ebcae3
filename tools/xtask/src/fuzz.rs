//! Coverage-guided fuzzing of every decoder with the stable compiler.
//!
//! The instrumentation is LLVM's own pass, which `-Cpasses` reaches without a nightly compiler; libFuzzer comes as the
//! crate `libfuzzer-sys`. What is missing against nightly is AddressSanitizer: the decoders are safe code but for one
//! unchecked access behind a verification, which the targets read completely.

use std::path::PathBuf;
use std::process::Command;

use crate::jobs::in_parallel;
use crate::{Result, cargo, number, root, run_command, target_dir, value};

/// Instruments every crate: edges counted inline, comparisons traced.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// Given explicitly, so that build scripts and procedural macros are built without the instrumentation.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const TARGETS: &[&str] = &[
    "wal-batch",
    "wal-recovery",
    "manifest",
    "table-block",
    "table-index",
    "table-footer",
    "table-filter",
    "table-image",
    "records",
    "keyspaces",
    "backup",
    "resp-request",
    "resp-reply",
    "shadow-frame",
];

/// Builds the fuzzer and runs each target (or one) for a while; `--keep` adds to the corpus what reached something new.
pub fn run(args: &[String]) -> Result<()> {
    let seconds = number(args, "--seconds")?.unwrap_or(60);
    let keep = args.iter().any(|arg| arg == "--keep");
    let only = value(args, "--target")?;
    if let Some(name) = &only
        && !TARGETS.contains(&name.as_str())
    {
        return Err(format!("no fuzz target is called '{name}': {}", TARGETS.join(", ")));
    }
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        println!("SKIPPED: fuzzing is set up for {PLATFORM} alone");
        return Ok(());
    }
    let program = build()?;
    let chosen: Vec<&str> =
        TARGETS.iter().copied().filter(|target| only.as_deref().is_none_or(|name| name == *target)).collect();
    // The targets are independent: one a core.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let results = in_parallel(&chosen, cores, |target| fuzz(&program, target, seconds, keep));
    let failed: Vec<&str> =
        chosen.iter().zip(results).filter(|(_, result)| result.is_err()).map(|(target, _)| *target).collect();
    println!("{} targets, {seconds} s each, failed: {failed:?}", chosen.len());
    if failed.is_empty() { Ok(()) } else { Err(format!("findings in {failed:?}: see engine/fuzz/artifacts")) }
}

fn dir() -> PathBuf {
    root().join("engine/fuzz")
}

fn build() -> Result<PathBuf> {
    // A folder of its own: other flags would throw away what is built in the other one.
    let target_dir = target_dir().join("fuzz");
    run_command(
        cargo()
            .current_dir(dir())
            .args(["build", "--release", "--target", PLATFORM])
            .env("CARGO_TARGET_DIR", &target_dir)
            .env("RUSTFLAGS", FLAGS),
    )?;
    Ok(target_dir.join(PLATFORM).join("release/decoders"))
}

fn fuzz(program: &PathBuf, target: &str, seconds: u64, keep: bool) -> Result<()> {
    // Inputs lie with the crate that decodes them.
    let of_net = target.starts_with("resp-") || target.starts_with("shadow-");
    let owner = if of_net { "net/fuzz" } else { "engine/fuzz" };
    let (corpus, artifacts) = (root().join(owner).join("corpus").join(target), dir().join("artifacts"));
    let found = std::env::temp_dir().join(format!("antumbra-fuzz-{}-{target}", std::process::id()));
    for dir in [&corpus, &artifacts, &found] {
        std::fs::create_dir_all(dir).map_err(|cause| format!("{}: {cause}", dir.display()))?;
    }
    let command = |arguments: &[String]| {
        let mut command = Command::new(program);
        command.env("ANTUMBRA_FUZZ_TARGET", target).args(arguments);
        command
    };
    // New inputs go to the first folder; the kept corpus is read only.
    let result = run_command(
        command(&[
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/{target}-", artifacts.display()),
            "-max_len=8192".into(),
            "-timeout=10".into(),
            "-rss_limit_mb=2048".into(),
            "-print_final_stats=1".into(),
        ])
        .arg(&found)
        .arg(&corpus),
    );
    if keep && result.is_ok() {
        run_command(command(&["-merge=1".into()]).arg(&corpus).arg(&found))?;
    }
    std::fs::remove_dir_all(&found).map_err(|cause| format!("{}: {cause}", found.display()))?;
    result
}
