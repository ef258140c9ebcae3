//! What the figures were measured on.

use std::path::Path;

use antumbra_engine::doctor::{DeviceFacts, HostFacts};
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
    /// Looks around. What cannot be found out is empty.
    #[must_use]
    pub fn of(dir: &Path) -> Machine {
        let (host, device) = (HostFacts::read(), DeviceFacts::read(dir).unwrap_or_default());
        Machine {
            kernel: host.kernel,
            cpu: host.cpu,
            cores: host.cpus_allowed,
            memory_mib: host.memory_bytes >> 20,
            file_system: device.file_system,
            device: device.source,
        }
    }
}
