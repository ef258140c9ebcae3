//! From facts to findings.

use super::device::DeviceFacts;
use super::host::HostFacts;
use super::{Finding, Severity};

/// Largest block of the engine's direct I/O.
const BLOCK_BYTES: u32 = 4096;
/// Locked memory for a shard's rings, and for resident segments to be worth it.
const MEMLOCK_BYTES: u64 = 64 << 20;
/// Open files that a larger engine needs.
const OPEN_FILES: u64 = 4096;
/// Free space below which compaction may not finish.
const FREE_BYTES: u64 = 2 << 30;
/// File systems on which the engine is tested.
const TESTED: [&str; 3] = ["ext4", "xfs", "btrfs"];
/// File systems that lose everything, or whose promises depend on another host.
const UNSAFE: [&str; 6] = ["tmpfs", "ramfs", "overlay", "nfs", "nfs4", "fuse.sshfs"];
/// First release with all that the engine asks of io_uring.
const KERNEL_MIN: (u32, u32) = (5, 11);

/// Every check, in the order in which people should read them.
pub(super) fn all(host: &HostFacts, device: &DeviceFacts) -> Vec<Finding> {
    vec![
        kernel(host),
        io_uring(host),
        memlock(host),
        open_files(host),
        cpus(host),
        governor(host),
        memory(host),
        huge_pages(host),
        file_system(device),
        mount(device),
        direct(device),
        space(device),
        write_cache(device),
        scheduler(device),
        io_poll(device),
    ]
}

fn fine(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, severity: Severity::Fine, found: found.into(), advice: String::new() }
}

fn advice(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, severity: Severity::Advice, found: found.into(), advice: advice.into() }
}

fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, severity: Severity::Problem, found: found.into(), advice: advice.into() }
}

fn kernel(host: &HostFacts) -> Finding {
    let mut numbers = host.kernel.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < KERNEL_MIN {
        let wanted = format!("run Linux {}.{} or later", KERNEL_MIN.0, KERNEL_MIN.1);
        return problem("kernel", format!("Linux {}", host.kernel), wanted);
    }
    fine("kernel", format!("Linux {}", host.kernel))
}

fn io_uring(host: &HostFacts) -> Finding {
    match (&host.io_uring_problem, host.io_uring_disabled) {
        (Some(what), _) => problem("io_uring", what, "see the message; without io_uring no engine starts"),
        (None, Some(1)) => advice(
            "io_uring",
            "works for this user; kernel.io_uring_disabled = 1 keeps others out",
            "run the engine as this user or group, or set sysctl kernel.io_uring_disabled=0",
        ),
        (None, _) => fine("io_uring", "works"),
    }
}

fn memlock(host: &HostFacts) -> Finding {
    if host.may_lock_memory || host.memlock_bytes == u64::MAX {
        return fine("locked memory", "not limited");
    }
    let found = format!("{} KiB", host.memlock_bytes >> 10);
    if host.memlock_bytes < MEMLOCK_BYTES {
        let wanted =
            "raise `ulimit -l` (systemd: LimitMEMLOCK=infinity) so that hot segments can be kept in locked memory";
        return advice("locked memory", found, wanted);
    }
    fine("locked memory", found)
}

fn open_files(host: &HostFacts) -> Finding {
    let found = host.open_files_max.to_string();
    if host.open_files_max < OPEN_FILES {
        return advice(
            "open files",
            found,
            "raise `ulimit -n` to 65536: each table file of a large store is held open",
        );
    }
    fine("open files", found)
}

fn cpus(host: &HostFacts) -> Finding {
    let found = format!("{} of {} usable, {}", host.cpus_allowed, host.cpus_online, host.cpu);
    if host.cpus_allowed < 2 {
        let wanted = "give the process at least two CPUs: one for a shard, one for everything else";
        return advice("CPUs", found, wanted);
    }
    fine("CPUs", found)
}

fn governor(host: &HostFacts) -> Finding {
    let found = host.governors.join(", ");
    if host.governors.is_empty() {
        let known = if host.virtualised { "set by the hypervisor's host" } else { "no frequency scaling" };
        return fine("CPU governor", known);
    }
    if host.governors.iter().any(|governor| governor != "performance") {
        let wanted =
            "set it to performance (cpupower frequency-set -g performance): tail latency suffers while cores speed up";
        return advice("CPU governor", found, wanted);
    }
    fine("CPU governor", found)
}

fn memory(host: &HostFacts) -> Finding {
    let mib = |bytes: u64| bytes >> 20;
    let found = format!(
        "{} MiB, {} MiB available, {} MiB swap",
        mib(host.memory_bytes),
        mib(host.memory_available_bytes),
        mib(host.swap_bytes)
    );
    if host.swap_bytes > 0 {
        let wanted =
            "keep the engine from being swapped (systemd: MemorySwapMax=0): a shard that waits for swap serves nobody";
        return advice("memory", found, wanted);
    }
    fine("memory", found)
}

fn huge_pages(host: &HostFacts) -> Finding {
    if host.huge_pages == "never" {
        let wanted = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: the block cache asks for huge pages";
        return advice("huge pages", "never", wanted);
    }
    fine("huge pages", if host.huge_pages.is_empty() { "not known" } else { host.huge_pages.as_str() })
}

fn file_system(device: &DeviceFacts) -> Finding {
    let found = format!("{} on {}", device.file_system, device.source);
    let kind = device.file_system.as_str();
    if UNSAFE.contains(&kind) {
        let wanted = "put the data on a local ext4 or xfs: this one does not keep what it acknowledged";
        return problem("file system", found, wanted);
    }
    if !TESTED.contains(&kind) {
        return advice("file system", found, format!("the engine is tested on {}", TESTED.join(", ")));
    }
    if kind == "btrfs" {
        let wanted = "ext4 and xfs are faster: copy-on-write gives up what preparing log files gains (or set chattr +C on the folder)";
        return advice("file system", found, wanted);
    }
    fine("file system", found)
}

fn mount(device: &DeviceFacts) -> Finding {
    let options = device.mount_options.as_str();
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    if has("ro") {
        return problem("mount", options, "mount the file system for writing");
    }
    if has("nobarrier") || has("barrier=0") {
        return problem("mount", options, "mount without nobarrier: a power cut would lose acknowledged writes");
    }
    fine("mount", options)
}

fn direct(device: &DeviceFacts) -> Finding {
    if let Some(what) = &device.direct_problem {
        return problem("direct I/O", what, "put the data on a file system that knows O_DIRECT (ext4, xfs)");
    }
    match (device.memory_align, device.offset_align) {
        (Some(0), _) | (_, Some(0)) => {
            problem("direct I/O", "the file system falls back to the page cache", "put the data on ext4 or xfs")
        }
        (Some(memory), Some(offset)) if memory > BLOCK_BYTES || offset > BLOCK_BYTES => problem(
            "direct I/O",
            format!("needs alignment to {memory} (memory) and {offset} (offset)"),
            format!("the engine writes blocks of {BLOCK_BYTES} bytes: use a device with smaller blocks"),
        ),
        (Some(memory), Some(offset)) => {
            fine("direct I/O", format!("aligned to {memory} (memory) and {offset} (offset)"))
        }
        _ => fine("direct I/O", "works; this kernel does not tell the alignment"),
    }
}

fn space(device: &DeviceFacts) -> Finding {
    let found = format!("{:.1} of {:.1} GB free", device.free_bytes as f64 / 1e9, device.total_bytes as f64 / 1e9);
    if device.free_bytes < FREE_BYTES {
        let wanted = "make room: compaction writes a segment anew before it removes the old one";
        return problem("space", found, wanted);
    }
    if device.total_bytes > 0 && device.free_bytes < device.total_bytes / 10 {
        return advice("space", found, "keep a tenth free: solid-state disks and ext4 slow down when nearly full");
    }
    fine("space", found)
}

fn write_cache(device: &DeviceFacts) -> Finding {
    match device.write_cache.as_deref() {
        Some("write through") => fine("write cache", "none, or protected: durable writes need no flush"),
        Some("write back") => advice(
            "write cache",
            "volatile: each durable write waits for a flush of the device's cache",
            "a device with power-loss protection acknowledges at once; never switch the flush off on one without",
        ),
        _ => fine("write cache", "not known"),
    }
}

fn scheduler(device: &DeviceFacts) -> Finding {
    match (device.rotational, device.scheduler.as_deref()) {
        (Some(true), _) => advice(
            "device",
            "says that it spins",
            "the engine is made for solid-state disks (virtual disks may just say so)",
        ),
        (_, Some(name @ ("bfq" | "kyber" | "mq-deadline"))) => advice(
            "device",
            format!("scheduler {name}"),
            "echo none > /sys/block/DEVICE/queue/scheduler: the engine orders its own requests",
        ),
        (_, name) => fine("device", format!("scheduler {}", name.unwrap_or("not known"))),
    }
}

fn io_poll(device: &DeviceFacts) -> Finding {
    match device.io_poll {
        Some(true) => fine("polled completions", "on"),
        Some(false) => fine("polled completions", "off: completions come by interrupts"),
        None => fine("polled completions", "not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good_host() -> HostFacts {
        HostFacts {
            kernel: "6.12.3-x".into(),
            cpus_allowed: 4,
            cpus_online: 4,
            memlock_bytes: u64::MAX,
            open_files_max: 65_536,
            memory_bytes: 8 << 30,
            huge_pages: "madvise".into(),
            ..HostFacts::default()
        }
    }

    fn good_device() -> DeviceFacts {
        DeviceFacts {
            file_system: "ext4".into(),
            mount_options: "rw,relatime".into(),
            source: "/dev/x".into(),
            memory_align: Some(512),
            offset_align: Some(512),
            free_bytes: 50 << 30,
            total_bytes: 100 << 30,
            rotational: Some(false),
            write_cache: Some("write through".into()),
            scheduler: Some("none".into()),
            ..DeviceFacts::default()
        }
    }

    fn severity(check: &str, host: &HostFacts, device: &DeviceFacts) -> Severity {
        let found = all(host, device).into_iter().find(|finding| finding.check == check);
        let Some(found) = found else { panic!("no check {check}") };
        assert_eq!(found.advice.is_empty(), found.severity == Severity::Fine, "{found:?}");
        found.severity
    }

    #[test]
    fn all_of_a_good_machine_is_fine() {
        let found = all(&good_host(), &good_device());
        assert!(found.iter().all(|finding| finding.severity == Severity::Fine), "{found:?}");
    }

    /// One thing that may be wrong with a machine.
    type Flaw = fn(&mut HostFacts, &mut DeviceFacts);

    #[test]
    fn each_flaw_is_found_by_its_check() {
        let flaws: [(&str, Severity, Flaw); 17] = [
            ("kernel", Severity::Problem, |host, _| host.kernel = "5.4.0".into()),
            ("kernel", Severity::Problem, |host, _| host.kernel = String::new()),
            ("io_uring", Severity::Problem, |host, _| host.io_uring_problem = Some("forbidden".into())),
            ("io_uring", Severity::Advice, |host, _| host.io_uring_disabled = Some(1)),
            ("locked memory", Severity::Advice, |host, _| host.memlock_bytes = 8 << 20),
            ("open files", Severity::Advice, |host, _| host.open_files_max = 1024),
            ("CPUs", Severity::Advice, |host, _| host.cpus_allowed = 1),
            ("CPU governor", Severity::Advice, |host, _| host.governors = vec!["powersave".into()]),
            ("memory", Severity::Advice, |host, _| host.swap_bytes = 1 << 30),
            ("huge pages", Severity::Advice, |host, _| host.huge_pages = "never".into()),
            ("file system", Severity::Problem, |_, device| device.file_system = "tmpfs".into()),
            ("mount", Severity::Problem, |_, device| device.mount_options = "rw,nobarrier".into()),
            ("direct I/O", Severity::Problem, |_, device| device.direct_problem = Some("EINVAL".into())),
            ("direct I/O", Severity::Problem, |_, device| device.offset_align = Some(16_384)),
            ("space", Severity::Problem, |_, device| device.free_bytes = 1 << 20),
            ("write cache", Severity::Advice, |_, device| device.write_cache = Some("write back".into())),
            ("device", Severity::Advice, |_, device| device.scheduler = Some("bfq".into())),
        ];
        for (check, expected, flaw) in flaws {
            let (mut host, mut device) = (good_host(), good_device());
            flaw(&mut host, &mut device);
            assert_eq!(severity(check, &host, &device), expected, "{check}");
        }
    }
}
