//! `cargo xtask`: set-up, checks and tests behind one door.

mod bench;
mod book;
#[path = "../../src/bench/report/commit.rs"]
mod commit;
mod daemons;
mod fuzz;
mod guard;
mod jobs;
mod model;
mod release;
mod results;
mod setup;
mod sim;
mod test;
mod upgrade;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask setup             install what the tests need: system packages; etcd, named, knotd, haproxy, faketime, protoc and the CPU
                              libtorch (in your cache)
cargo xtask test [--no-torch] set-up, then all tests; --no-torch leaves training out and says so
cargo xtask test --browser    of these only the status page in a headless Chromium; screenshots in the target folder
cargo xtask test --cluster    of these only three hosts in network namespaces, with etcd, named and haproxy: a hot spot, and failures
cargo xtask test --upgrade COMMIT  not among these: three hosts of that older commit, whose program is built once, become this one's
cargo xtask model [--writes N ...]  model checker of the move, with larger bounds
cargo xtask check             formatting, clippy, documentation
cargo xtask sim [--seeds N]   the storage simulator: N seeds (2000) of crashes and faults against a model; --help for more
cargo xtask sim --cluster [--seeds N]  whole hosts, their clients and moves on simulated disks, clocks and links: N seeds (200)
cargo xtask crash [--rounds N]  kill -9 under load on the real device, N times (100)
cargo xtask fuzz [--seconds N] [--target NAME]  every decoder under libFuzzer, N seconds each (60)
cargo xtask bench [--smoke | --quick | --full] [--peers] [--out DIR] [OPTION ...]  every benchmark in one run, as report.html,
                              report.json, report.csv and report.md (bench-report/): quick takes 10 minutes on 2 cores, full 90 with peers
cargo xtask guard             instructions of the hot pieces against those kept in benches/instructions.txt; --help for more
cargo xtask results NAME ...  measures what README and book quote, into benches/results/NAME.json: demo, move, ycsb
cargo xtask setup --release-tools  mdbook, cargo-deny, cargo-semver-checks, cargo-deb and cargo-cyclonedx, most of them built (in your cache)
cargo xtask book              the book, as a site; what its pages say is tested by `cargo test -p antumbra-tools --test docs`
cargo xtask release-check [--quick] [--baseline REVISION]  packing, oldest compiler, licences, sources, advisories, API against the
                              last release or a revision; --quick leaves out what needs those tools or minutes
cargo xtask msrv              builds the libraries with the oldest compiler that Cargo.toml promises
cargo xtask deb               Debian package with unit, manual pages, completions and bill of materials; looks into it
cargo xtask miri              the engine's modules without I/O under Miri (needs a nightly compiler with the component miri)
cargo xtask soak [--seconds N] updates for that long (600), checking memory and space against their budgets
";

/// A message for people.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let result = match args.first().map(String::as_str) {
        Some("setup") if flag("--release-tools") => release::install(),
        Some("setup") => setup::run(),
        Some("test") if flag("--browser") => test::browser(),
        Some("test") if flag("--cluster") => test::cluster(),
        Some("test") if flag("--upgrade") => {
            value(&args, "--upgrade").and_then(|commit| upgrade::run(&commit.unwrap_or_default()))
        }
        Some("test") => test::run(!flag("--no-torch")),
        Some("model") => model::run(&args[1..]),
        Some("check") => check(),
        Some("sim") => sim::run(&args[1..]),
        Some("crash") => sim::crash(&args[1..]),
        Some("bench") => bench::run(&args[1..]),
        Some("guard") => guard::run(&args[1..]),
        Some("fuzz") => fuzz::run(&args[1..]),
        Some("book") => book::run(),
        Some("msrv") => release::msrv(),
        Some("release-check") if flag("--quick") => release::quick(),
        Some("release-check") => value(&args, "--baseline").and_then(release::check),
        Some("deb") => release::debian(),
        Some("results") => results::run(&args[1..]),
        Some("miri") => miri(),
        Some("soak") => soak(&args[1..]),
        Some("help" | "--help") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!("unknown task '{other}'\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("xtask: {what}");
            ExitCode::FAILURE
        }
    }
}

fn soak(args: &[String]) -> Result<()> {
    let seconds = match args {
        [] => "600",
        [name, seconds] if name == "--seconds" && seconds.parse::<f64>().is_ok_and(|seconds| seconds > 0.0) => seconds,
        _ => return Err("soak takes --seconds and a number".into()),
    };
    run_command(
        cargo()
            .args(["test", "--release", "-p", "antumbra-engine", "--test", "soak", "--", "--nocapture"])
            .env("ANTUMBRA_SOAK_SECONDS", seconds),
    )
}

/// Modules of the engine whose tests do no I/O and map no memory.
const PURE_MODULES: &[&str] = &["heads::", "chain::", "erasure::", "memtable::arena", "table::filter", "limits::"];

fn miri() -> Result<()> {
    // Miri is a hundred times slower: few cases of each property. They are kept in files, which isolation would refuse.
    run_command(
        cargo()
            .args(["+nightly", "miri", "test", "-p", "antumbra-engine", "--lib", "--"])
            .args(PURE_MODULES)
            .env("PROPTEST_CASES", "4")
            .env("MIRIFLAGS", "-Zmiri-disable-isolation"),
    )
}

fn check() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    let mut clippy = cargo();
    clippy.args(["clippy", "--release", "--workspace", "--all-targets"]);
    if !add_etcd(&mut clippy) {
        eprintln!("xtask: without etcd, for want of protoc; cargo xtask setup fetches it");
    }
    run_command(clippy.args(["--", "-D", "warnings"]))?;
    run_command(
        cargo()
            .args(["doc", "--release", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"),
    )
}

/// The word behind a flag.
fn value(args: &[String], flag: &str) -> Result<Option<String>> {
    let Some(at) = args.iter().position(|arg| arg == flag) else {
        return Ok(None);
    };
    args.get(at + 1).cloned().map(Some).ok_or_else(|| format!("{flag} wants a value"))
}

/// The number behind a flag.
fn number(args: &[String], flag: &str) -> Result<Option<u64>> {
    let parse = |word: String| word.parse().map_err(|_| format!("{flag} wants a number, not '{word}'"));
    value(args, flag)?.map(parse).transpose()
}

/// The workspace's root.
fn root() -> PathBuf {
    // Cargo says where the program belongs that it runs; what was compiled in may be another checkout's, if the two share a
    // target directory.
    let own = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    own.join("../..")
}

/// Where cargo builds.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // The cargo that runs this has set them. A build script that looks at them (ring's) would run again each time that a cargo
    // from here follows one from a shell, and with it everything above be built again.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|set| name.to_string_lossy().starts_with(set)) {
            command.env_remove(name);
        }
    }
    command
}

/// Has a build include etcd; false if there is no compiler for its messages.
fn add_etcd(command: &mut Command) -> bool {
    let protoc = daemons::protoc();
    if let Some(environment) = &protoc {
        command.args(["--features", "antumbra-net/etcd"]).envs(environment.iter().map(|(name, value)| (name, value)));
    }
    protoc.is_some()
}

/// Runs a build; the programs that it made.
fn built(command: &mut Command) -> Result<Vec<PathBuf>> {
    let out = command
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|cause| format!("cargo: {cause}"))?;
    if !out.status.success() {
        return Err(format!("{command:?} ended with {}", out.status));
    }
    // A line of JSON each: {"reason":"compiler-artifact",...,"executable":"PATH",...}
    let text = String::from_utf8_lossy(&out.stdout);
    let path = |line: &str| Some(PathBuf::from(line.split_once("\"executable\":\"")?.1.split_once('"')?.0));
    Ok(text.lines().filter_map(path).map(|path| root().join(path)).collect())
}

/// Builds one program; its path.
fn program(build: &[&str], name: &str) -> Result<PathBuf> {
    eprintln!("xtask: building {name}");
    built(cargo().args(build))?.pop().ok_or_else(|| format!("cargo does not say where {name} is"))
}

/// Builds `antumbra`; its path.
fn antumbra() -> Result<PathBuf> {
    program(&["build", "--release", "-p", "antumbra-tools", "--bin", "antumbra"], "antumbra")
}

/// Runs a command, showing it first.
fn run_command(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{:?} ended with {status}", command.get_program())),
        Err(cause) => Err(format!("{:?}: {cause}", command.get_program())),
    }
}
