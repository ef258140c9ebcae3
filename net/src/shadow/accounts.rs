//! What a move cost, for reports.

use antumbra_engine::types::HostId;
use serde::{Deserialize, Serialize};

/// Accounts of the copy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowAccounts {
    /// Segments copied.
    pub segments: u64,
    /// Of these, segments of which only what had changed was sent: the target had the rest from before.
    #[serde(default)]
    pub segments_on_base: u64,
    /// What those take, about, in bytes at the source.
    #[serde(default)]
    pub bytes_on_base: u64,
    /// What the target had from before, in words.
    #[serde(default)]
    pub base: String,
    /// Bytes of images, before compression.
    pub bytes_copied: u64,
    /// Bytes of images and deltas on the wire.
    pub bytes_on_wire: u64,
    /// Segments that needed a delta.
    pub deltas: u64,
    /// Bytes of deltas, before compression.
    pub delta_bytes_raw: u64,
    /// Bytes of deltas on the wire.
    pub delta_bytes_on_wire: u64,
    /// Requests that were answered with a newer token.
    pub token_retries: u64,
    /// Times at which the link was lost and the copy went on over another.
    pub resumed: u64,
    /// From the first request to the last segment held.
    pub seconds: f64,
    /// The cap, in MB (10^6 bytes) per second; 0 = none.
    pub throttle_mb_s: f64,
    /// Bytes on the wire over the time in which there were bytes to send, in MB per second.
    pub observed_mb_s: f64,
    /// Records that travelled over the mirror.
    pub mirrored_records: u64,
    /// Records elided from it.
    pub elided_records: u64,
    /// How requests fared, and what that did to the rate.
    pub foreground: ForegroundAccounts,
}

/// What requests beside a copy saw: how late they ran, and what the log took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForegroundAccounts {
    /// What the 99th percentile was to stay at, source and target, in microseconds.
    pub set_point_us: [u64; 2],
    /// Mean of the 99th percentiles of each look, source and target, in microseconds.
    pub p99_us: [u64; 2],
    /// Seconds in which that held the rate.
    pub limited_by_foreground_s: f64,
    /// Seconds in which the cap did.
    pub limited_by_cap_s: f64,
    /// Seconds in which neither did: the copy itself was not faster.
    pub limited_by_supply_s: f64,
    /// The last rate, in MB (10^6 bytes) per second; 0 = not governed.
    pub rate_mb_s: f64,
}

/// One step of the switchover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// Name, as in the design.
    pub name: String,
    /// Duration in microseconds.
    pub us: u64,
}

/// Accounts of the switchover.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwitchoverAccounts {
    /// Epoch at the start.
    pub epoch_before: u64,
    /// Epoch after the commit.
    pub epoch_after: u64,
    /// Segments that were still at the source when the target began to serve.
    pub missing: u64,
    /// In order.
    pub steps: Vec<StepTime>,
}

/// Outcome of the verification after the hand-over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Ranges compared.
    pub segments: u64,
    /// Records compared.
    pub records: u64,
    /// Digest over the source's ranges.
    pub source_digest: String,
    /// Digest over the target's ranges.
    pub target_digest: String,
    /// Whether every range agreed.
    pub equal: bool,
}

/// One point of a copy order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderedSegment {
    /// Segment id.
    pub segment: u64,
    /// First key, as text.
    pub start: String,
    /// Bytes to copy.
    pub bytes: u64,
    /// Expected accesses when the copy began, by the guard over all scorers.
    pub auto: f32,
    /// The same by the GRU.
    pub gru: f32,
    /// The same by the moving average.
    pub ewma: f32,
}

/// A whole move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MoveReport {
    /// Attempt id.
    pub attempt: u64,
    /// Accounts of the copy.
    pub shadow: ShadowAccounts,
    /// Accounts of the switchover.
    pub switchover: SwitchoverAccounts,
    /// The verification.
    pub verify: VerifyReport,
    /// The segments when the copy began, in key order.
    pub segments: Vec<OrderedSegment>,
    /// Segment ids in the order in which they were sent.
    pub sent: Vec<u64>,
    /// Time in microseconds for which writes were parked at the source.
    pub frozen_us: u64,
    /// Wall clock in milliseconds since the Unix epoch: copy began, ready, frozen, promoted, complete.
    pub marks_ms: Vec<(String, u64)>,
}

impl MoveReport {
    /// What an event history says of it.
    #[must_use]
    pub fn in_words(&self, destination: HostId) -> String {
        let shadow = &self.shadow;
        format!(
            "moved to host {destination} (attempt {}): {} segments, {:.1} MB on the wire ({:.1} MB of images, {} deltas) in {:.1} s, \
             {} requests with a stale token, {} resumed; writes parked for {:.2} ms; {} segments were missing at the switchover",
            self.attempt,
            shadow.segments,
            shadow.bytes_on_wire as f64 / 1e6,
            shadow.bytes_copied as f64 / 1e6,
            shadow.deltas,
            shadow.seconds,
            shadow.token_retries,
            shadow.resumed,
            self.frozen_us as f64 / 1e3,
            self.switchover.missing,
        )
    }
}
