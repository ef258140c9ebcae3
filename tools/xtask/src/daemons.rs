//! The servers that the tests talk to, and the compiler that etcd's client is built with. They are unpacked into the cache
//! and not installed: the tests start their own, and no service of the machine begins to run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, run_command, setup};

/// Programs, with the Debian packages that bring them. `protoc` needs the files of `libprotobuf-dev` beside it.
const PROGRAMS: [(&str, &[&str]); 6] = [
    ("etcd", &["etcd-server"]),
    ("named", &["bind9", "bind9-utils"]),
    ("knotd", &["knot"]),
    ("haproxy", &["haproxy"]),
    ("faketime", &["faketime"]),
    ("protoc", &["protobuf-compiler", "libprotobuf-dev"]),
];

/// Fetches what is not on this machine.
pub fn fetch() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(program, _)| find(program).is_none()).map(|all| all.0).collect();
    if missing.is_empty() {
        eprintln!("xtask: etcd, named, knotd, haproxy, faketime and protoc are there");
        return Ok(());
    }
    eprintln!("xtask: fetching {} into {}", missing.join(", "), dir().display());
    let packages: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| missing.contains(program)).flat_map(|(_, all)| *all).copied().collect();
    setup::apt(&["update", "-qq"])?;
    let work = dir().with_extension("new");
    let _ = std::fs::remove_dir_all(&work);
    setup::create(&work)?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-qq"]).args(with_libraries(&packages)?).current_dir(&work);
    run_command(&mut download)?;
    setup::create(&dir())?;
    for entry in std::fs::read_dir(&work).map_err(|cause| format!("{}: {cause}", work.display()))?.flatten() {
        run_command(Command::new("dpkg").arg("-x").arg(entry.path()).arg(dir()))?;
    }
    std::fs::remove_dir_all(&work).map_err(|cause| format!("{}: {cause}", work.display()))?;
    match missing.iter().find(|program| find(program).is_none()) {
        Some(program) => Err(format!("{program} is in none of the packages that were to bring it")),
        None => Ok(()),
    }
}

/// What apt would install: the packages and the libraries of theirs that this machine has not.
fn with_libraries(packages: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("apt-get");
    command.args(["install", "--simulate", "--no-install-recommends", "-qq"]).args(packages);
    let out = command.output().map_err(|cause| format!("apt-get: {cause}"))?;
    if !out.status.success() {
        return Err(format!("apt-get install --simulate: {}", String::from_utf8_lossy(&out.stderr)));
    }
    let lines = String::from_utf8_lossy(&out.stdout);
    Ok(lines.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next().map(String::from)).collect())
}

/// Where they are unpacked; the tests look there too.
pub fn dir() -> PathBuf {
    setup::cache().join("daemons")
}

/// The program, unpacked or installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let own = ["usr/bin", "usr/sbin"].map(|folder| dir().join(folder));
    let of_system = || Some(Path::new("/usr/sbin").join(program)).filter(|file| file.is_file());
    setup::find(program, own).or_else(of_system)
}

/// Environment that has `protoc`, for a build with the feature `etcd`; `None` if there is none.
pub fn protoc() -> Option<Vec<(&'static str, PathBuf)>> {
    let program = find("protoc")?;
    let mut all = vec![("PROTOC", program.clone())];
    if program.starts_with(dir()) {
        all.push(("LD_LIBRARY_PATH", libraries()?));
    }
    Some(all)
}

/// Folder of the unpacked libraries.
fn libraries() -> Option<PathBuf> {
    let lib = dir().join("usr/lib");
    let is_multiarch = |path: &Path| path.to_string_lossy().ends_with("-linux-gnu");
    std::fs::read_dir(lib).ok()?.flatten().map(|entry| entry.path()).find(|path| is_multiarch(path))
}
