//! Looks at the machine and says what would make an engine slow, unsafe, or unable to start, and what to change.
//!
//! Every check is a plain function of what it reads, so that a machine can be described in a test.

mod checks;
mod device;
mod host;

use std::path::Path;

use crate::error::Result;
use crate::io::fs;

pub use device::DeviceFacts;
pub use host::HostFacts;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Works; slower or less safe than it could be.
    Advice,
    /// An engine does not start, or does not keep its promises.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What: a short, stable name.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to change; empty when it is fine.
    pub advice: String,
}

/// What the machine looks like, and what follows.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// Kernel, limits, CPUs.
    pub host: HostFacts,
    /// File system and device of the data folder.
    pub device: DeviceFacts,
    /// What follows from both, worst first within each check's order.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// The worst finding.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Fine)
    }
}

/// Examines the machine for an engine whose data lies in `dir`, which may not exist yet. Writes and removes one small
/// file in the folder, or in the nearest one above it that exists.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) when that folder cannot be written; everything else is a finding.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// let diagnosis = antumbra_engine::doctor::examine(dir.path())?;
/// for finding in diagnosis.findings.iter().filter(|finding| !finding.advice.is_empty()) {
///     println!("{:?} {}: {} -> {}", finding.severity, finding.check, finding.found, finding.advice);
/// }
/// println!("{:?} in all", diagnosis.severity());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn examine(dir: &Path) -> Result<Diagnosis> {
    let existing = dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    // An empty relative path means the working folder.
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let host = HostFacts::read();
    let device = DeviceFacts::read(existing)?;
    let findings = checks::all(&host, &device);
    Ok(Diagnosis { host, device, findings })
}

/// A small file of the kernel's; `None` when there is none.
fn read_text(path: &Path) -> Option<String> {
    let bytes = fs::read_if_present(path).ok()??;
    Some(String::from_utf8_lossy(&bytes).trim().to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn examine_this_machine_leaves_nothing_and_knows_the_basics() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let found = examine(&dir.path().join("not/there/yet")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!found.host.kernel.is_empty() && !found.device.file_system.is_empty());
        assert!(found.device.free_bytes > 0);
        assert!(found.findings.iter().any(|finding| finding.check == "io_uring"));
    }
}
