//! Scrub: everything of a partition that is on the device, against its checksums, while the partition serves.

use std::rc::Rc;
use std::time::Duration;

use crate::chain::RecordDigest;
use crate::clock;
use crate::error::{Error, Result};
use crate::io::runtime;
use crate::shard::files::Table;
use crate::types::SegmentId;

use super::Partition;

/// Debt of time at which a paced scrub sleeps; shorter sleeps cost more than they pace.
const SLEEP_MIN: Duration = Duration::from_millis(2);

/// What a scrub read, and what was wrong.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Tables read.
    pub tables: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damage, each with the segment that it is in; reading goes on behind it.
    pub damage: Vec<(SegmentId, Error)>,
}

/// Keeps reading at a rate.
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    /// When the bytes read so far are paid for, on the monotonic clock.
    due: Duration,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Pace {
        Pace { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), due: clock::monotonic() }
    }

    /// A pace that begins after a rest.
    pub fn after(rest: Duration, bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second: Some(bytes_per_second), due: clock::monotonic() + rest }
    }

    /// Waits until the bytes just read are paid for.
    pub async fn pay(&mut self, bytes: u64) {
        runtime::yield_now().await;
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let now = clock::monotonic();
        // Time that passed unused is not made up for by a burst.
        self.due = self.due.max(now) + Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        let ahead = self.due.saturating_sub(now);
        if ahead >= SLEEP_MIN {
            runtime::sleep(ahead).await;
        }
    }
}

impl Partition {
    /// Reads every table of the partition past the cache, at most `bytes_per_second` fast, and checks footer, index,
    /// filter, every block, count and digest. Damage is reported, not repaired: see [`crate::offline::repair`].
    ///
    /// Errors: [`Error::Io`] when the device fails otherwise than by wrong bytes.
    /// Cancel: reading goes on to the end, unseen. Cost: one read a block, in the background of the shard.
    pub async fn scrub(self: &Rc<Self>, bytes_per_second: Option<u64>) -> Result<ScrubReport> {
        let partition = Rc::clone(self);
        self.shard.background().run(async move { partition.scrub_tables(bytes_per_second).await }).await
    }

    async fn scrub_tables(&self, bytes_per_second: Option<u64>) -> Result<ScrubReport> {
        let mut pace = Pace::new(bytes_per_second);
        let mut report = ScrubReport::default();
        // The layout keeps its files for as long as it is held.
        let layout = self.layout();
        for segment in &layout.segments {
            for table in segment.tables() {
                scrub_table(table, segment.id, &mut pace, &mut report).await?;
            }
        }
        Ok(report)
    }
}

async fn scrub_table(table: &Table, segment: SegmentId, pace: &mut Pace, report: &mut ScrubReport) -> Result<()> {
    report.tables += 1;
    let mut damaged = Vec::new();
    match table.reread_parts().await {
        Ok(bytes) => {
            report.bytes += bytes;
            pace.pay(bytes).await;
        }
        Err(cause) => keep(cause, &mut damaged)?,
    }
    let (mut digest, mut records) = (RecordDigest::default(), 0);
    for block in 0..table.blocks() {
        report.blocks += 1;
        match table.reread_block(block).await {
            Ok(read) => {
                (0..read.len()).for_each(|index| digest.update(read.record(index)));
                records += read.len() as u64;
                let bytes = read.bytes() as u64;
                report.bytes += bytes;
                pace.pay(bytes).await;
            }
            Err(cause) => keep(cause, &mut damaged)?,
        }
    }
    report.records += records;
    let meta = table.meta();
    if damaged.is_empty() && (records != meta.records || digest.finish() != meta.digest) {
        let what = "records do not match the footer's count and digest";
        damaged.push(Error::corruption(table.file.path(), table.location.offset, what));
    }
    report.damage.extend(damaged.into_iter().map(|cause| (segment, cause)));
    Ok(())
}

/// Damage is kept; any other failure ends the scrub.
fn keep(cause: Error, damaged: &mut Vec<Error>) -> Result<()> {
    match cause {
        Error::Corruption { .. } | Error::Version { .. } => {
            damaged.push(cause);
            Ok(())
        }
        other => Err(other),
    }
}
