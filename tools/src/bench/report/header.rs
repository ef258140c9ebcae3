//! Where, when and with what the figures were measured.

use std::path::Path;
use std::process::Command;

use antumbra_engine::doctor;

use super::commit;
use crate::CliError;

/// What the program was built of.
const LOCK: &str = include_str!("../../../../Cargo.lock");
/// Of these the versions are told.
const PACKAGES: [&str; 15] = [
    "antumbra-engine",
    "glommio",
    "rkyv",
    "zstd",
    "crc32c",
    "quinn",
    "quinn-proto",
    "rustls",
    "tokio",
    "criterion",
    "rocksdb",
    "librocksdb-sys",
    "fjall",
    "redb",
    "heed",
];

/// Names and values; what cannot be found out is `unknown`.
pub fn read(dir: &Path) -> Result<Vec<(String, String)>, CliError> {
    let found = doctor::examine(dir)?;
    let (host, device) = (&found.host, &found.device);
    let known = |value: Option<String>| value.unwrap_or_else(|| "unknown".into());
    let aligned = |bytes: Option<u32>| known(bytes.map(|bytes| bytes.to_string()));
    let governors = if host.governors.is_empty() { "none (virtual machine)".into() } else { host.governors.join(", ") };
    let mut header = vec![
        ("time".into(), said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("commit".into(), known(commit::measured(Path::new(".")))),
        ("kernel".into(), host.kernel.clone()),
        ("CPU".into(), host.cpu.clone()),
        ("CPUs".into(), format!("{} of {} online, governor {governors}", host.cpus_allowed, host.cpus_online)),
        ("virtual machine".into(), if host.virtualised { "yes".into() } else { "no".into() }),
        ("memory".into(), format!("{} MiB", host.memory_bytes >> 20)),
        ("file system".into(), format!("{} on {} ({})", device.file_system, device.source, device.mount_options)),
        ("device write cache".into(), known(device.write_cache.clone())),
        ("device scheduler".into(), known(device.scheduler.clone())),
        (
            "direct I/O".into(),
            format!(
                "aligned to {} bytes in the file, {} in memory",
                aligned(device.offset_align),
                aligned(device.memory_align)
            ),
        ),
        ("rustc".into(), said("rustc", &["--version"])),
        ("fio".into(), said("fio", &["--version"])),
    ];
    let version = |name: &str| version_of(name, LOCK).map(|version| format!("{name} {version}"));
    header.push(("libraries".into(), PACKAGES.iter().filter_map(|name| version(name)).collect::<Vec<_>>().join(", ")));
    Ok(header)
}

/// The first line that a program prints.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    let line = output.and_then(|output| String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_string));
    line.unwrap_or_else(|| "unknown".into())
}

fn version_of(name: &str, lock: &str) -> Option<String> {
    let wanted = format!("name = \"{name}\"\nversion = \"");
    // The last one: an older version, of some dependency, stands before what Antumbra uses.
    let (_, version) = lock.rsplit_once(&wanted)?;
    Some(version.split_once('"')?.0.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn header_names_machine_and_versions() {
        let header = read(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let value = |name: &str| &header.iter().find(|(found, _)| found == name).unwrap().1;
        assert!(!value("kernel").is_empty() && value("memory").ends_with("MiB"));
        for name in ["glommio", "quinn-proto", "rocksdb"] {
            assert!(value("libraries").contains(&format!("{name} ")), "{name}");
        }
        assert!(value("libraries").contains("zstd 0.14."), "of two, the one of Antumbra");
        assert!(value("direct I/O").contains("aligned to"));
    }
}
