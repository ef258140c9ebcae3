//! What a machine may have, and how to find out.

use std::path::Path;
use std::process::Command;

/// Whose fault it is when something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Linux machine with two cores, root, and what `cargo xtask setup` installs has it.
    Expected,
    /// Another kernel, hypervisor or mainboard would be needed.
    OfTheMachine,
}

/// One of the things that tests need.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// Short and stable.
    pub name: &'static str,
    /// What strictness makes of its absence.
    pub kind: Kind,
    /// What was found, or why there is nothing.
    pub probe: fn() -> Result<String, String>,
}

/// All of them.
pub const CAPABILITIES: [Capability; 14] = [
    Capability { name: "io_uring", kind: Kind::Expected, probe: io_uring },
    Capability { name: "two CPUs", kind: Kind::Expected, probe: two_cpus },
    Capability { name: "root", kind: Kind::Expected, probe: root },
    Capability { name: "memlock limit", kind: Kind::Expected, probe: prlimit },
    Capability { name: "loop devices", kind: Kind::Expected, probe: loop_devices },
    Capability { name: "ext4", kind: Kind::Expected, probe: || file_system("ext4", "mkfs.ext4") },
    Capability { name: "xfs", kind: Kind::OfTheMachine, probe: || file_system("xfs", "mkfs.xfs") },
    Capability { name: "tmpfs", kind: Kind::Expected, probe: || kernel_knows("tmpfs") },
    Capability { name: "FUSE", kind: Kind::Expected, probe: fuse },
    Capability { name: "control groups", kind: Kind::Expected, probe: control_groups },
    Capability { name: "device mapper", kind: Kind::OfTheMachine, probe: device_mapper },
    Capability { name: "NUMA", kind: Kind::OfTheMachine, probe: numa },
    Capability { name: "poll queues", kind: Kind::OfTheMachine, probe: poll_queues },
    Capability { name: "GPU", kind: Kind::OfTheMachine, probe: gpu },
];

/// One by its name.
///
/// # Panics
/// If there is none of that name.
#[must_use]
pub fn by_name(name: &str) -> Capability {
    let found = CAPABILITIES.into_iter().find(|capability| capability.name == name);
    found.unwrap_or_else(|| panic!("no capability '{name}'"))
}

/// Whether all of these are here; says what is missing.
///
/// # Panics
/// With HW_STRICT=1, where one is missing that is expected.
#[must_use]
pub fn here(names: &[&str]) -> bool {
    for name in names {
        let capability = by_name(name);
        let Err(reason) = (capability.probe)() else { continue };
        match capability.kind {
            Kind::Expected => {
                println!("SKIPPED: {name}: {reason}");
                assert!(!strict(), "HW_STRICT=1, and {name} is missing: {reason}");
            }
            Kind::OfTheMachine => println!("NOT HERE: {name}: {reason}"),
        }
        return false;
    }
    true
}

/// Whether nothing that is expected may be missing.
#[must_use]
pub fn strict() -> bool {
    std::env::var_os("HW_STRICT").is_some_and(|value| value == "1")
}

fn read(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map(|text| text.trim().to_string()).map_err(|cause| format!("{path}: {cause}"))
}

/// Whether a program can be started; where it is.
fn program(name: &str) -> Result<String, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    let found = std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.map(|path| path.display().to_string()).ok_or_else(|| format!("there is no {name}"))
}

fn io_uring() -> Result<String, String> {
    let ring = Ring::set_up()?;
    let operations = ring.operations()?;
    Ok(format!("features {:#x}, {operations} operations", ring.features))
}

fn two_cpus() -> Result<String, String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus >= 2 { Ok(format!("{cpus}")) } else { Err(format!("{cpus} CPU")) }
}

fn root() -> Result<String, String> {
    let id = Command::new("id").arg("-u").output().map_err(|cause| format!("id: {cause}"))?;
    let id = String::from_utf8_lossy(&id.stdout).trim().to_string();
    if id == "0" { Ok("yes".into()) } else { Err(format!("user {id}: mounts and control groups need root")) }
}

fn prlimit() -> Result<String, String> {
    program("prlimit")?;
    let limits = read("/proc/self/limits")?;
    let line = limits.lines().find(|line| line.starts_with("Max locked memory"));
    Ok(line.unwrap_or("unknown").split_whitespace().skip(3).collect::<Vec<_>>().join(" "))
}

fn loop_devices() -> Result<String, String> {
    root()?;
    program("losetup")?;
    let found = Command::new("losetup").arg("-f").output().map_err(|cause| format!("losetup: {cause}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if found.status.success() { Ok(format!("next is {}", said(&found.stdout))) } else { Err(said(&found.stderr)) }
}

fn kernel_knows(name: &str) -> Result<String, String> {
    let known = read("/proc/filesystems")?;
    let found = known.lines().any(|line| line.split_whitespace().last() == Some(name));
    if found { Ok("yes".into()) } else { Err(format!("this kernel has no {name}")) }
}

fn file_system(name: &str, maker: &str) -> Result<String, String> {
    loop_devices()?;
    kernel_knows(name)?;
    program(maker).map_err(|cause| format!("{cause}; cargo xtask setup installs it"))
}

fn fuse() -> Result<String, String> {
    root()?;
    if !Path::new("/dev/fuse").exists() {
        return Err("there is no /dev/fuse".into());
    }
    kernel_knows("fuse")
}

fn control_groups() -> Result<String, String> {
    root()?;
    let kinds = [("/sys/fs/cgroup/memory", "version 1"), ("/sys/fs/cgroup/cgroup.controllers", "version 2")];
    let found = kinds.iter().find(|(path, _)| Path::new(path).exists());
    found.map(|(_, kind)| (*kind).to_string()).ok_or_else(|| "nothing is mounted at /sys/fs/cgroup".into())
}

fn device_mapper() -> Result<String, String> {
    root()?;
    program("dmsetup")?;
    let said = Command::new("dmsetup").arg("targets").output().map_err(|cause| format!("dmsetup: {cause}"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let targets: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if said.status.success() && targets.contains(&"error") {
        return Ok(format!("targets {}", targets.join(", ")));
    }
    Err("this kernel has no device mapper".into())
}

/// Numbers of the nodes that have CPUs.
fn nodes() -> Vec<u32> {
    let entries = std::fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    let number = |name: String| name.strip_prefix("node")?.parse::<u32>().ok();
    entries.filter_map(|entry| number(entry.file_name().to_string_lossy().into_owned())).collect()
}

fn numa() -> Result<String, String> {
    let nodes = nodes().len();
    if nodes > 1 { Ok(format!("{nodes} nodes")) } else { Err("one node".into()) }
}

fn poll_queues() -> Result<String, String> {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let polled: Vec<String> = devices
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| read(&format!("/sys/block/{name}/queue/io_poll")).is_ok_and(|value| value == "1"))
        .collect();
    if polled.is_empty() { Err("no block device reports io_poll".into()) } else { Ok(polled.join(", ")) }
}

fn gpu() -> Result<String, String> {
    if Path::new("/dev/nvidiactl").exists() { Ok("NVIDIA".into()) } else { Err("there is no /dev/nvidiactl".into()) }
}

/// A ring of io_uring, to ask the kernel what it can do.
#[derive(Debug)]
pub struct Ring {
    file: std::os::fd::OwnedFd,
    /// IORING_FEAT_*.
    pub features: u32,
}

/// Operations that the engine's runtime submits: numbers of `enum io_uring_op`.
pub const OPERATIONS: [(u8, &str); 12] = [
    (4, "READ_FIXED"),
    (5, "WRITE_FIXED"),
    (6, "POLL_ADD"),
    (11, "TIMEOUT"),
    (13, "ACCEPT"),
    (16, "CONNECT"),
    (17, "FALLOCATE"),
    (18, "OPENAT"),
    (19, "CLOSE"),
    (21, "STATX"),
    (22, "READ"),
    (23, "WRITE"),
];

impl Ring {
    /// Sets up a small one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_up() -> Result<Ring, String> {
        use std::os::fd::FromRawFd;
        // `struct io_uring_params` has 120 bytes; zeroed, it asks for a plain ring. Its features stand at byte 20.
        let mut params = [0_u32; 30];
        // SAFETY: the kernel reads and writes 120 bytes at the pointer, which `params` has.
        let file = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8_u32, params.as_mut_ptr()) };
        if file < 0 {
            return Err(format!("io_uring_setup: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just returned to us and nobody else knows it.
        let file = unsafe { std::os::fd::OwnedFd::from_raw_fd(file as i32) };
        Ok(Ring { file, features: params[5] })
    }

    /// Which operations the kernel supports, by their number.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn supported(&self) -> Result<Vec<u8>, String> {
        use std::os::fd::AsRawFd;
        const REGISTER_PROBE: u32 = 8;
        const OPERATIONS_MAX: usize = 256;
        const SUPPORTED: u16 = 1;
        // `struct io_uring_probe`: 16 bytes of head, then 8 bytes for each operation: number, reserve, flags, reserve.
        let mut probe = vec![0_u64; 2 + OPERATIONS_MAX];
        let (ring, pointer) = (self.file.as_raw_fd(), probe.as_mut_ptr());
        // SAFETY: the kernel writes the head and at most as many operations as are asked for, which `probe` has room for.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_PROBE, pointer, OPERATIONS_MAX) };
        if done < 0 {
            return Err(format!("io_uring_register: {}", std::io::Error::last_os_error()));
        }
        let count = probe[0].to_ne_bytes()[1] as usize;
        let operation = |word: &u64| {
            let [number, _, low, high, ..] = word.to_ne_bytes();
            (u16::from_ne_bytes([low, high]) & SUPPORTED != 0).then_some(number)
        };
        Ok(probe[2..].iter().take(count).filter_map(operation).collect())
    }

    fn operations(&self) -> Result<usize, String> {
        self.supported().map(|operations| operations.len())
    }
}
