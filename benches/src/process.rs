//! What a process has used so far, from `/proc`.

use std::path::Path;

/// Clock ticks a second in `/proc/PID/stat`; fixed by the kernel's ABI.
const TICKS_PER_SECOND: f64 = 100.0;

/// Counters at one moment; what cannot be read is 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU seconds, user and system.
    pub cpu_seconds: f64,
    /// Bytes written to devices.
    pub written_bytes: u64,
    /// Bytes read from devices.
    pub read_bytes: u64,
}

impl Usage {
    /// This process's counters now.
    #[must_use]
    pub fn now() -> Usage {
        Usage::read("self")
    }

    /// Another process's counters now.
    #[must_use]
    pub fn of(process: u32) -> Usage {
        Usage::read(&process.to_string())
    }

    fn read(process: &str) -> Usage {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
        let stat = read("stat");
        // The name in parentheses may hold spaces; utime and stime are the 12th and 13th field behind it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        let io = read("io");
        Usage {
            cpu_seconds: (ticks(11) + ticks(12)) / TICKS_PER_SECOND,
            written_bytes: field(&io, "write_bytes:"),
            read_bytes: field(&io, "read_bytes:"),
        }
    }

    /// What was used since an earlier moment.
    #[must_use]
    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu_seconds: self.cpu_seconds - earlier.cpu_seconds,
            written_bytes: self.written_bytes - earlier.written_bytes,
            read_bytes: self.read_bytes - earlier.read_bytes,
        }
    }
}

/// Resident memory now, in bytes.
#[must_use]
pub fn resident_bytes() -> u64 {
    field(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmRSS:") << 10
}

/// The most resident memory that a process has had, in bytes.
#[must_use]
pub fn peak_bytes(process: u32) -> u64 {
    field(&std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default(), "VmHWM:") << 10
}

/// Bytes that the files under a folder take on the device.
#[must_use]
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_and_cpu_of_this_process_are_positive() {
        let mut sum = 0_u64;
        for number in 0..200_000_000_u64 {
            sum = sum.wrapping_mul(31).wrapping_add(std::hint::black_box(number));
        }
        std::hint::black_box(sum);
        assert!(resident_bytes() > 1 << 20);
        assert!(Usage::now().cpu_seconds > 0.0);
        let own = std::process::id();
        assert!(Usage::of(own).cpu_seconds > 0.0 && peak_bytes(own) > 1 << 20);
        assert_eq!(peak_bytes(u32::MAX), 0, "nobody has used nothing");
    }
}
