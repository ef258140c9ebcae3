//! Secrets from files.

use std::path::Path;

use antumbra_net::secret::read_private;

use crate::CliError;

/// The first line of a file that only its owner may read.
pub fn read(path: &Path) -> Result<String, CliError> {
    let text = read_private(path)?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_string()),
        None => Err(format!("{}: its first line is empty: the secret belongs there", path.display()).into()),
    }
}
