//! What the figures were measured on.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The machine and the place of the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// CPU model.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// File system of the data folder.
    pub file_system: String,
    /// Its device.
    pub device: String,
}

impl Machine {
    /// Looks around. What cannot be read is empty.
    #[must_use]
    pub fn of(dir: &Path) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value).trim().to_string()
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let memory_kib: u64 = memory.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let (file_system, device) = mount_of(dir, &read("/proc/self/mountinfo"));
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            cpu: value(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib >> 10,
            file_system,
            device,
        }
    }
}

/// Type and device of the file system that a folder is on: the mount with the longest matching path.
fn mount_of(dir: &Path, mounts: &str) -> (String, String) {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let mut best = (0, String::new(), String::new());
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), mut rest) = (before.split(' ').nth(4), after.split(' ')) else {
            continue;
        };
        if dir.starts_with(point) && point.len() >= best.0 {
            let mut next = || rest.next().unwrap_or_default().to_string();
            best = (point.len(), next(), next());
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_of_takes_the_longest_path() {
        let mounts = "20 1 8:1 / / rw - ext4 /dev/a rw\n21 20 8:2 / /proc rw - proc proc rw\n";
        assert_eq!(mount_of(Path::new("/proc/self"), mounts).0, "proc");
        assert_eq!(mount_of(Path::new("/"), mounts), ("ext4".into(), "/dev/a".into()));
    }
}
