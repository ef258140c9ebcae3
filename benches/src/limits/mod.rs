//! What the machine itself can do: device, memory, loopback, QUIC without anything around it. Measured in the run that the
//! stores are measured in, since shared machines change from hour to hour.

mod device;
mod memory;
mod quic;
mod tcp;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::compare::Place;
use crate::error::{Error, Result};
use crate::fio::fio;

pub use device::{Limits, measure};

/// File that fio reads and writes.
const FILE_NAME: &str = "fio-limits";
const FILE_BYTES: usize = 256 << 20;
/// Reads that are under way at a time.
const DEPTH: usize = 64;

/// Options of a run.
#[derive(Args, Clone, Debug)]
pub struct LimitsOptions {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// How often each is made; all take turns.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Folder for the data, emptied before and after; its device is what is measured.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Of what.
    pub group: String,
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// By round.
    pub rounds: Vec<f64>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitsReport {
    /// In the order in which they are measured.
    pub ceilings: Vec<Ceiling>,
    /// What could not be measured: of what, and why.
    pub missing: Vec<(String, String)>,
}

/// Measures every limit in turns; `progress` is told what comes next. What fails is named in the report.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be made.
pub fn run(options: &LimitsOptions, mut progress: impl FnMut(String)) -> Result<LimitsReport> {
    let place = Place::new(options.dir.as_deref())?;
    let (dir, time) = (place.path(), Duration::from_secs_f64(options.seconds));
    type Measure<'a> = Box<dyn Fn() -> Result<Vec<(&'static str, &'static str, f64)>> + 'a>;
    let groups: [(&str, Measure<'_>); 5] = [
        ("device by fio", Box::new(|| by_fio(dir, options.seconds))),
        ("device by blocking calls", Box::new(|| blocking(dir, options.seconds))),
        ("memory", Box::new(|| Ok(memory::measure(time)))),
        ("loopback TCP", Box::new(|| tcp::measure(time))),
        ("QUIC alone (quinn, loopback)", Box::new(|| quic::measure(time))),
    ];
    let mut report = LimitsReport::default();
    for round in 1..=options.rounds {
        for (group, measure) in &groups {
            if report.missing.iter().any(|(missing, _)| missing == group) {
                continue;
            }
            progress(format!("round {round} of {}: {group}", options.rounds));
            match measure() {
                Ok(found) => found.into_iter().for_each(|figure| report.add(group, figure)),
                Err(cause) => report.missing.push(((*group).to_string(), cause.to_string())),
            }
        }
    }
    Ok(report)
}

impl LimitsReport {
    fn add(&mut self, group: &str, (name, unit, value): (&str, &str, f64)) {
        let same = |ceiling: &&mut Ceiling| ceiling.group == group && ceiling.name == name;
        match self.ceilings.iter_mut().find(same) {
            Some(ceiling) => ceiling.rounds.push(value),
            None => self.ceilings.push(Ceiling {
                group: group.into(),
                name: name.into(),
                unit: unit.into(),
                rounds: vec![value],
            }),
        }
    }
}

impl std::fmt::Display for LimitsReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Ceiling { group, name, unit, rounds } in &self.ceilings {
            let [low, high] = crate::local::spread(rounds);
            let median = crate::local::median(rounds.iter().copied());
            writeln!(f, "{group:<30} {name:<44} {median:>12.1} {unit:<9} ({low:.1} to {high:.1})")?;
        }
        self.missing.iter().try_for_each(|(group, why)| writeln!(f, "{group:<30} not measured: {why}"))
    }
}

fn by_fio(dir: &Path, seconds: f64) -> Result<Vec<(&'static str, &'static str, f64)>> {
    let path = dir.join(FILE_NAME);
    if !path.exists() {
        // Direct reads would first have to write back what the page cache holds.
        let written = std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(&vec![0x5a; FILE_BYTES]).and_then(|()| file.sync_all()));
        written.map_err(|cause| Error::io(path.display().to_string(), cause))?;
    }
    let reads = fio(dir, FILE_NAME, &["--rw=randread", "--bs=4k", &format!("--iodepth={DEPTH}")], seconds)?;
    let lone = fio(dir, FILE_NAME, &["--rw=randread", "--bs=4k", "--iodepth=1"], seconds)?;
    let writes = fio(dir, FILE_NAME, &["--rw=write", "--sync=dsync", "--bs=4k", "--iodepth=1"], seconds)?;
    Ok(vec![
        ("random reads of 4 KiB, depth 64", "reads/s", reads.read.iops),
        ("random read of 4 KiB, depth 1, p50", "us", lone.read.lat_ns.percentile.p50 / 1e3),
        ("durable writes of 4 KiB, depth 1", "writes/s", writes.write.iops),
        ("durable write of 4 KiB, depth 1, p50", "us", writes.write.lat_ns.percentile.p50 / 1e3),
    ])
}

fn blocking(dir: &Path, seconds: f64) -> Result<Vec<(&'static str, &'static str, f64)>> {
    let limits = measure(dir, seconds)?;
    Ok(vec![
        ("random reads of 4 KiB, 64 threads", "reads/s", limits.reads_per_second_64),
        ("random read of 4 KiB, p50", "us", limits.read_p50_us),
        ("durable write of 4 KiB, p50", "us", limits.durable_write_p50_us),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn run_measures_every_limit_in_every_round_or_says_why_not() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let options = LimitsOptions { seconds: 0.05, rounds: 2, dir: Some(dir.path().to_path_buf()), json: false };
        let report = run(&options, |_| {}).unwrap();
        for group in ["device by blocking calls", "memory", "loopback TCP", "QUIC alone (quinn, loopback)"] {
            let found: Vec<&Ceiling> = report.ceilings.iter().filter(|ceiling| ceiling.group == group).collect();
            assert!(!found.is_empty(), "{group}: {report}");
            let sound =
                |ceiling: &&Ceiling| ceiling.rounds.len() == 2 && ceiling.rounds.iter().all(|value| *value > 0.0);
            assert!(found.iter().all(sound), "{report}");
        }
        assert!(report.missing.iter().all(|(group, why)| group.contains("fio") && why.contains("fio")), "{report}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }
}
