//! What must not be seen: it is read from files that nobody else may read, and never printed.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::{Error, Result};

/// A password or key.
///
/// # Example
/// ```
/// use antumbra_net::secret::Secret;
/// let secret = Secret::new("open sesame");
/// assert_eq!(secret.reveal(), "open sesame");
/// assert_eq!(format!("{secret:?}"), "Secret");
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("readable");
/// std::fs::write(&path, "everybody can read this")?;
/// assert!(Secret::load(&path).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// From the environment or a test.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The file without the white space at its ends.
    ///
    /// # Errors
    /// [`Error::Refused`] when it cannot be read, or others may read it.
    pub fn load(path: &Path) -> Result<Secret> {
        read_private(path).map(|text| Secret(text.trim().into()))
    }

    /// The text, for whom it is meant.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Reads a file that holds secrets.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("readable");
/// std::fs::write(&path, "everybody can read this")?;
/// assert!(antumbra_net::secret::read_private(&path).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// [`Error::Refused`] when it cannot be read, or others may read it.
pub fn read_private(path: &Path) -> Result<String> {
    let refuse = |what: String| Error::Refused { what: format!("{}: {what}", path.display()) };
    let mode = std::fs::metadata(path).map_err(|cause| refuse(cause.to_string()))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(refuse(format!("its mode is {mode:o}, and it holds secrets: chmod 600 it")));
    }
    std::fs::read_to_string(path).map_err(|cause| refuse(cause.to_string()))
}
