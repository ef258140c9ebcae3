//! What an early switchover left behind: how many reads the new owner answered by itself, second by second.

use std::time::Instant;

use serde::Serialize;

use super::cluster;
use crate::CliError;
use crate::client::Client;

/// What the new owner lacked, and what that cost.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EarlyReport {
    /// Share of the expected accesses that had to be held, in percent.
    pub threshold_percent: f64,
    /// Segments that were missing when the target began to serve.
    pub missing: u64,
    /// From then until nothing was missing, in seconds.
    pub seconds: f64,
    /// Reads in that time.
    pub reads: u64,
    /// Reads among them that waited for a segment.
    pub reads_waited: u64,
    /// Share of the reads of each second that did not wait.
    pub local_share: Vec<f64>,
}

/// Looks at the new owner again and again.
#[derive(Default)]
pub struct FillWatch {
    began: Option<Instant>,
    /// Reads, and those that waited, at the end of each second.
    seconds: Vec<(u64, u64)>,
    last: (u64, u64),
    ended: Option<f64>,
}

impl FillWatch {
    /// Reads the target's counters once.
    pub async fn look(&mut self, target: &Client) -> Result<(), CliError> {
        let Ok(fill) = target.json(&format!("ANTUMBRA FILL {}", cluster::PARTITION)).await else {
            // Not created there yet.
            return Ok(());
        };
        let number = |name: &str| fill[name].as_u64().unwrap_or(0);
        if fill["serving"] != true || self.ended.is_some() {
            return Ok(());
        }
        let began = *self.began.get_or_insert_with(Instant::now);
        self.last = (number("reads"), number("reads_waited"));
        let elapsed = began.elapsed().as_secs_f64();
        if elapsed >= (self.seconds.len() + 1) as f64 {
            self.seconds.push(self.last);
        }
        if number("missing") == 0 {
            self.ended = Some(elapsed);
            self.seconds.push(self.last);
        }
        Ok(())
    }

    pub fn report(&self, threshold_percent: f64, missing: u64) -> EarlyReport {
        let before = std::iter::once((0, 0)).chain(self.seconds.iter().copied());
        let share = |((reads_before, waited_before), (reads, waited)): ((u64, u64), &(u64, u64))| {
            let all = reads - reads_before;
            if all == 0 { 1.0 } else { 1.0 - (waited - waited_before) as f64 / all as f64 }
        };
        EarlyReport {
            threshold_percent,
            missing,
            seconds: self.ended.unwrap_or(0.0),
            reads: self.last.0,
            reads_waited: self.last.1,
            local_share: before.zip(&self.seconds).map(share).collect(),
        }
    }
}
