//! Secrets from files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::CliError;

/// The first line of a file that only its owner may read.
pub fn read(path: &Path) -> Result<String, CliError> {
    let failed = |what: String| CliError::from(format!("{}: {what}", path.display()));
    let mode = std::fs::metadata(path).map_err(|cause| failed(cause.to_string()))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(failed(format!("its mode is {mode:o}, and it holds a secret: chmod 600 it")));
    }
    let text = std::fs::read_to_string(path).map_err(|cause| failed(cause.to_string()))?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_string()),
        None => Err(failed("its first line is empty: the secret belongs there".into())),
    }
}
