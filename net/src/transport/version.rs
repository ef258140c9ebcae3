//! Versions of the protocol between hosts. A host offers all that its release speaks; two hosts use the newest that both
//! offer, and refuse each other where there is none.

use std::fmt;
use std::str::FromStr;

/// The versions that this release speaks, the newest first. A release that changes what hosts say to each other adds one,
/// and drops the oldest one release later: hosts may be one release apart.
const SPOKEN: &[u16] = &[1];
/// What stands before the version in the handshake.
const PREFIX: &str = "antumbra/";

/// Versions that a host offers, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireVersions(Vec<u16>);

impl Default for WireVersions {
    fn default() -> WireVersions {
        WireVersions(SPOKEN.to_vec())
    }
}

impl FromStr for WireVersions {
    type Err = String;

    fn from_str(text: &str) -> Result<WireVersions, String> {
        let parse =
            |word: &str| word.trim().parse::<u16>().map_err(|_| format!("'{word}' is no version of the protocol"));
        let mut versions = text.split(',').map(parse).collect::<Result<Vec<u16>, String>>()?;
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.dedup();
        Ok(WireVersions(versions))
    }
}

impl fmt::Display for WireVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(u16::to_string).collect();
        f.write_str(&words.join(", "))
    }
}

impl WireVersions {
    /// As the handshake has them.
    pub(crate) fn protocols(&self) -> Vec<Vec<u8>> {
        self.0.iter().map(|version| format!("{PREFIX}{version}").into_bytes()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_is_offered_first() {
        let versions: WireVersions = "1, 3,2,3".parse().unwrap();
        assert_eq!(versions.to_string(), "3, 2, 1");
        assert_eq!(versions.protocols()[0], b"antumbra/3");
        assert!("1,two".parse::<WireVersions>().unwrap_err().contains("two"));
        assert!("".parse::<WireVersions>().is_err());
    }
}
