//! What a fresh Debian machine needs for the tests. Can be repeated: what is there already is left alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, daemons, run_command};

/// Version of libtorch that the pinned `tch` expects.
const TORCH: &str = "2.13.0";
/// Programs that the tests call, with the Debian packages that bring them.
const PROGRAMS: [(&str, &str); 12] = [
    ("cc", "gcc"),
    ("c++", "g++"),
    ("redis-cli", "redis-tools"),
    ("python3", "python3"),
    ("fio", "fio"),
    ("mkfs.xfs", "xfsprogs"),
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
    ("promtool", "prometheus"),
    ("valgrind", "valgrind"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
];
/// Libraries of libtorch's CPU part, and those that it names.
const LIBRARIES: [&str; 4] = ["libtorch_cpu.so", "libc10.so", "libgomp", "libtorch_global_deps.so"];

/// Installs everything.
pub fn run() -> Result<()> {
    packages()?;
    daemons::fetch()?;
    libtorch()
}

/// Where libtorch lies.
pub fn torch_dir() -> PathBuf {
    cache().join(format!("libtorch-{TORCH}"))
}

/// What is fetched once for all checkouts.
pub fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    cache.join("antumbra")
}

/// A program, in the first of these folders and then of those of PATH that has it.
pub fn find(program: &str, first: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = first.into_iter().chain(std::env::split_paths(&path));
    all.map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn packages() -> Result<()> {
    let is_missing = |program: &str| find(program, []).is_none();
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| is_missing(program)).map(|(_, package)| *package).collect();
    if !has_pip() {
        missing.push("python3-pip");
    }
    if missing.is_empty() {
        eprintln!("xtask: system packages are there");
        return Ok(());
    }
    eprintln!("xtask: installing {}", missing.join(", "));
    apt(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(missing);
    apt(&install)
}

/// Runs apt-get as root.
pub fn apt(args: &[&str]) -> Result<()> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.starts_with(b"0"));
    let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
    if !root {
        command.arg("apt-get");
    }
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    run_command(&mut command)
}

fn has_pip() -> bool {
    Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|out| out.status.success())
}

/// The CPU part of the torch wheel, laid out as `tch` wants it. Built beside its place and moved there when complete.
fn libtorch() -> Result<()> {
    let dir = torch_dir();
    if dir.join("build-version").is_file() && dir.join("lib/libtorch.so").is_file() {
        eprintln!("xtask: libtorch {TORCH} is in {}", dir.display());
        return Ok(());
    }
    let parent = dir.parent().ok_or("no cache folder")?.to_path_buf();
    let work = parent.join(format!("libtorch-{TORCH}.new"));
    eprintln!("xtask: fetching libtorch {TORCH} (about 550 MB) into {}", dir.display());
    let _ = std::fs::remove_dir_all(&work);
    let wheels = work.join("wheels");
    create(&wheels)?;
    let torch = format!("torch=={TORCH}");
    for package in [torch.as_str(), "nvidia-cuda-runtime>=13.0,<13.1", "nvidia-cuda-cupti>=13.0,<13.1"] {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest"]).arg(&wheels).arg(package);
        run_command(&mut pip)?;
    }
    unpack(&wheels, &work.join("unpacked"))?;
    lay_out(&work.join("unpacked"), &work.join("out"))?;
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::rename(work.join("out"), &dir).map_err(|cause| format!("{}: {cause}", dir.display()))?;
    std::fs::remove_dir_all(&work).map_err(|cause| format!("{}: {cause}", work.display()))
}

pub fn create(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|cause| format!("{}: {cause}", dir.display()))
}

/// Unpacks every wheel of a folder.
pub fn unpack(wheels: &Path, out: &Path) -> Result<()> {
    create(out)?;
    for entry in std::fs::read_dir(wheels).map_err(|cause| cause.to_string())?.flatten() {
        run_command(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(entry.path()).arg(out))?;
    }
    Ok(())
}

fn lay_out(unpacked: &Path, out: &Path) -> Result<()> {
    let lib = out.join("lib");
    create(&lib)?;
    let torch = unpacked.join("torch");
    let wanted = |name: &str| LIBRARIES.iter().any(|library| name.starts_with(library));
    let cuda = |name: &str| name.starts_with("libcudart.so") || name.starts_with("libcupti.so");
    take_files(&torch.join("lib"), &lib, &wanted)?;
    for entry in walk(&unpacked.join("nvidia")) {
        if entry.file_name().is_some_and(|name| cuda(&name.to_string_lossy())) {
            take(&entry, &lib)?;
        }
    }
    std::fs::rename(torch.join("include"), out.join("include")).map_err(|cause| format!("include: {cause}"))?;
    let write =
        |path: PathBuf, text: &str| std::fs::write(&path, text).map_err(|cause| format!("{}: {cause}", path.display()));
    // A linker script: the wheel's own libtorch.so wants the CUDA libraries.
    write(lib.join("libtorch.so"), "INPUT(-ltorch_cpu)\n")?;
    write(out.join("build-version"), TORCH)
}

fn take_files(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(from).map_err(|cause| format!("{}: {cause}", from.display()))?.flatten() {
        if wanted(&entry.file_name().to_string_lossy()) {
            take(&entry.path(), to)?;
        }
    }
    Ok(())
}

/// Moves a library.
fn take(file: &Path, to: &Path) -> Result<()> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    std::fs::rename(file, to.join(&name)).map_err(|cause| format!("{}: {cause}", file.display()))
}

/// Every file below a folder.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
