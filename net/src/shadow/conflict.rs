//! How a partition that was promoted by force settles conflicts, and what is told of each of them.

use antumbra_engine::Engine;
use antumbra_engine::partition::{ConflictPolicy, Decision, Judged, Version};
use antumbra_engine::types::HostId;
use serde::{Deserialize, Serialize};

use crate::coordinator::Diverged;
use crate::error::{Error, Result};
use crate::resp::slot;

/// The policy of these words: `lww`, `prefer-target`, `prefer-source`, `reject-and-keep-both`, `merge:OPERATOR`.
///
/// # Errors
/// [`Error::Refused`] with the known words; [`Error::Engine`] for an operator that this host was started without.
pub fn parse_policy(words: &str, engine: &Engine) -> Result<ConflictPolicy> {
    Ok(match words {
        "lww" => ConflictPolicy::LastWriteWins,
        "prefer-target" => ConflictPolicy::PreferTarget,
        "prefer-source" => ConflictPolicy::PreferSource,
        "reject-and-keep-both" => ConflictPolicy::KeepBoth,
        other => match other.strip_prefix("merge:") {
            Some(operator) => ConflictPolicy::Merge(engine.merge_operator(operator)?),
            None => {
                let what = format!(
                    "no conflict policy '{other}': lww, prefer-target (the promoted host), prefer-source (the one that \
                     returns), reject-and-keep-both or merge:OPERATOR"
                );
                return Err(Error::Refused { what });
            }
        },
    })
}

/// One side of a conflict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Its place in that side's history.
    pub lsn: u64,
    /// Its timestamp.
    pub hlc: u64,
    /// The physical part of the timestamp, in milliseconds since the Unix epoch.
    pub written_ms: u64,
    /// The value in hexadecimal; null if it was deleted.
    pub value_hex: Option<String>,
    /// Deadline in milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
}

/// One conflict and what was decided: a line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The partition.
    pub partition: u64,
    /// The attempt of the forced promotion.
    pub attempt: u64,
    /// The host that returned.
    pub returned_from: u32,
    /// The last LSN that both hosts have.
    pub parted_at: u64,
    /// The key as text.
    pub key: String,
    /// The key in hexadecimal.
    pub key_hex: String,
    /// The policy.
    pub policy: String,
    /// `returned`, `kept`, `both`, `merged`, or `superseded` by what the owner wrote during the reconciliation.
    pub decided: String,
    /// What the owner had.
    pub here: Option<Side>,
    /// What the returned host had.
    pub returned: Side,
    /// The key under which the returned version is kept beside the owner's; null if it is in this line alone.
    pub kept_at: Option<String>,
    /// The value that replaced both, in hexadecimal.
    pub merged_hex: Option<String>,
}

impl Conflict {
    /// The line about a judged record; `None` if it is no conflict.
    pub(crate) fn of(judged: &Judged, from: HostId, diverged: &Diverged, partition: u64) -> Option<Conflict> {
        let decided = match &judged.decision {
            Decision::Same | Decision::Taken => return None,
            // A deletion that a later write stands above has taken nothing away.
            Decision::Superseded if judged.theirs().value.is_none() => return None,
            Decision::Returned => "returned",
            Decision::Kept => "kept",
            Decision::KeptBoth => "both",
            Decision::Merged(_) => "merged",
            Decision::Superseded => "superseded",
        };
        let key = judged.record.key.get(2..).unwrap_or_default();
        let beside = key_beside(judged, from).filter(|_| judged.decision == Decision::KeptBoth);
        Some(Conflict {
            partition,
            attempt: diverged.attempt,
            returned_from: from.0,
            parted_at: diverged.lsn,
            key: String::from_utf8_lossy(key).into_owned(),
            key_hex: hex(key),
            policy: diverged.policy.clone(),
            decided: decided.into(),
            here: judged.ours.as_ref().map(side),
            returned: side(&judged.theirs()),
            kept_at: beside.map(|routing| String::from_utf8_lossy(&routing[2..]).into_owned()),
            merged_hex: match &judged.decision {
                Decision::Merged(value) => Some(hex(value)),
                _ => None,
            },
        })
    }

    /// Tells lines apart: the same conflict, judged again behind a crash, has the same.
    pub(crate) fn identity(&self) -> (String, u64, String) {
        (self.key_hex.clone(), self.returned.hlc, self.decided.clone())
    }
}

/// The routing key under which a returned version is kept beside the owner's, in the same slot; `None` for a key that no
/// hash tag can name.
pub(crate) fn key_beside(judged: &Judged, from: HostId) -> Option<Vec<u8>> {
    let suffix = format!("!conflict-{from}-{:016x}", judged.record.hlc.0);
    slot::key_beside(&judged.record.key, suffix.as_bytes())
}

fn side(version: &Version) -> Side {
    Side {
        lsn: version.lsn.0,
        hlc: version.hlc.0,
        written_ms: version.hlc.wall_ms(),
        value_hex: version.value.as_ref().map(|value| hex(value)),
        expires_at_ms: version.expires_at_ms,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
