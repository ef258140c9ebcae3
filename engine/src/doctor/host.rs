//! Kernel, limits and CPUs.

use std::path::Path;

use crate::io::probe;

use super::read_text;

/// What was read of the host. Absent files give `None` or empty values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Kernel release.
    pub kernel: String,
    /// CPU model.
    pub cpu: String,
    /// CPUs that this process may run on.
    pub cpus_allowed: usize,
    /// CPUs that are online.
    pub cpus_online: usize,
    /// Frequency governors in use, without repeats.
    pub governors: Vec<String>,
    /// Whether a hypervisor is below.
    pub virtualised: bool,
    /// Why io_uring cannot be used; `None` if it can.
    pub io_uring_problem: Option<String>,
    /// `kernel.io_uring_disabled`.
    pub io_uring_disabled: Option<u32>,
    /// Soft limit of locked memory, in bytes; `u64::MAX` for none.
    pub memlock_bytes: u64,
    /// Whether locked memory is not limited for this process (CAP_IPC_LOCK).
    pub may_lock_memory: bool,
    /// Soft limit of open files.
    pub open_files_max: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// Swap, in bytes.
    pub swap_bytes: u64,
    /// The mode of transparent huge pages that is in brackets.
    pub huge_pages: String,
}

/// Bit of CAP_IPC_LOCK in a capability set.
const CAP_IPC_LOCK: u32 = 14;

impl HostFacts {
    /// Reads them.
    #[must_use]
    pub fn read() -> HostFacts {
        let text = |path: &str| read_text(Path::new(path)).unwrap_or_default();
        let status = text("/proc/self/status");
        let (cpuinfo, meminfo) = (text("/proc/cpuinfo"), text("/proc/meminfo"));
        let kib = |name: &str| field(&meminfo, name).split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
        let bytes = |name: &str| kib(name).unwrap_or(0) << 10;
        let capabilities = u64::from_str_radix(field(&status, "CapEff"), 16).unwrap_or(0);
        HostFacts {
            kernel: text("/proc/sys/kernel/osrelease"),
            cpu: field(&cpuinfo, "model name").to_string(),
            cpus_allowed: count_cpus(field(&status, "Cpus_allowed_list")),
            cpus_online: count_cpus(&text("/sys/devices/system/cpu/online")),
            governors: governors(),
            virtualised: field(&cpuinfo, "flags").split(' ').any(|flag| flag == "hypervisor"),
            io_uring_problem: probe().err().map(|cause| cause.to_string()),
            io_uring_disabled: text("/proc/sys/kernel/io_uring_disabled").parse().ok(),
            memlock_bytes: limit(libc::RLIMIT_MEMLOCK),
            may_lock_memory: capabilities >> CAP_IPC_LOCK & 1 == 1,
            open_files_max: limit(libc::RLIMIT_NOFILE),
            memory_bytes: bytes("MemTotal"),
            memory_available_bytes: bytes("MemAvailable"),
            swap_bytes: bytes("SwapTotal"),
            huge_pages: bracketed(&text("/sys/kernel/mm/transparent_hugepage/enabled")).to_string(),
        }
    }
}

/// The value behind `name` and a colon at a line's beginning.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let matching = |line: &'a str| line.split_once(':').filter(|(key, _)| key.trim() == name);
    text.lines().find_map(matching).map_or("", |(_, value)| value.trim())
}

/// Number of CPUs in a list such as `0-3,8`.
fn count_cpus(list: &str) -> usize {
    let count = |range: &str| match range.split_once('-') {
        Some((first, last)) => Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1),
        None => range.parse::<usize>().ok().map(|_| 1),
    };
    list.split(',').filter_map(|range| count(range.trim())).sum()
}

/// What stands in brackets.
fn bracketed(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(inside, _)| inside)
}

fn governors() -> Vec<String> {
    let Ok(policies) = std::fs::read_dir("/sys/devices/system/cpu/cpufreq") else {
        return Vec::new();
    };
    let paths = policies.flatten().map(|policy| policy.path().join("scaling_governor"));
    let mut found: Vec<String> = paths.filter_map(|path| read_text(&path)).collect();
    found.sort();
    found.dedup();
    found
}

fn limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let status = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if status == 0 { limit.rlim_cur } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsers_understand_the_kernel() {
        assert_eq!(count_cpus("0-3,8"), 5);
        assert_eq!(count_cpus("7"), 1);
        assert_eq!(count_cpus(""), 0);
        assert_eq!(bracketed("always [madvise] never"), "madvise");
        assert_eq!(field("Name:\tx\nCapEff:\t00ff\n", "CapEff"), "00ff");
        assert_eq!(field("model name\t: A B\n", "model name"), "A B");
    }
}
