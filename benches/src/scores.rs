//! What the predictor's scores gain in the engine beside the order of a move: segments that stay in memory, how much a read
//! brings at a time, which segment is compacted first. Each use against the engine without it, on loads that it was made
//! for and on loads that it may lose on.
//!
//! The modes of a use take turns, each round on an engine opened anew; a ratio is of two neighbours of one round.

mod load;

use std::path::{Path, PathBuf};
use std::time::Duration;

use antumbra_engine::{CompactionOrder, Engine, EngineConfig, PartitionOptions, ReadAhead};
use clap::{Args, ValueEnum};
use futures_lite::future::block_on;
use serde::Serialize;

use crate::compare::Place;
use crate::error::Result;
use crate::local::{LOAD_MEMORY_BYTES, PARTITION, VALUE_BYTES, failed, fill, median, on_shard, spread};
use crate::process::Usage;
use load::{Figures, Load, key};

/// One use of the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Segments that stay in memory whole.
    Residency,
    /// How much a read brings at a time.
    ReadAhead,
    /// Which segment is compacted first.
    Compaction,
}

/// Options of a run.
#[derive(Args, Clone, Debug)]
pub struct ScoresOptions {
    /// One use alone.
    #[arg(long)]
    pub only: Option<Use>,
    /// Data, in MiB.
    #[arg(long, default_value_t = 1024)]
    pub mib: u64,
    /// Memory budget, in MiB.
    #[arg(long, default_value_t = 64)]
    pub memory_mib: usize,
    /// Length of an access window, in milliseconds.
    #[arg(long, default_value_t = 250)]
    pub window_ms: u64,
    /// Seconds of load before each measurement: the scorers and the cache get to know it.
    #[arg(long, default_value_t = 4.0)]
    pub warm_seconds: f64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// How often each is made.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Folder for the data, emptied before and after; its device is what is measured.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// One mode of one use under one load; medians of the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What the scores are used for.
    #[serde(rename = "use")]
    pub of: Use,
    /// The load.
    pub load: &'static str,
    /// `off`, or how they are used.
    pub mode: &'static str,
    /// Operations, their latency, what ran beside them.
    #[serde(flatten)]
    pub figures: Figures,
    /// Operations a second by those of `off`, median of the rounds' own ratios.
    pub ratio: f64,
    /// Smallest and largest of those.
    pub spread: [f64; 2],
    /// The same of what ran beside them; 0 if nothing did.
    pub beside_ratio: f64,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct ScoresReport {
    /// Data and memory, in MiB.
    pub mib: [u64; 2],
    /// Rounds.
    pub rounds: usize,
    /// By use, load, mode.
    pub rows: Vec<Row>,
}

/// A name, and what it sets.
type Mode = (&'static str, fn(&mut EngineConfig));

/// A use under a load, and its modes; the first is `off`.
struct Trial {
    of: Use,
    load: Load,
    modes: &'static [Mode],
}

const READ_AHEAD: &[Mode] = &[
    ("off", |config| config.read_ahead = ReadAhead::Growing),
    ("expected", |config| config.read_ahead = ReadAhead::Expected),
    ("wide everywhere", |config| config.read_ahead = ReadAhead::Wide),
];
const RESIDENCY: &[Mode] =
    &[("off", |config| config.residency = false), ("expected", |config| config.residency = true)];
const COMPACTION: &[Mode] = &[
    ("off", |config| config.compaction_order = CompactionOrder::Slices),
    ("expected", |config| config.compaction_order = CompactionOrder::Expected),
];

fn trials() -> Vec<Trial> {
    let read_ahead = [Load::Front, Load::PagesBesideRandom, Load::HotRows, Load::HotFifth];
    let read_ahead = read_ahead.map(|load| Trial { of: Use::ReadAhead, load, modes: READ_AHEAD });
    let residency = [Load::HotFifth, Load::HotRows, Load::PagesBesideRandom];
    let residency = residency.map(|load| Trial { of: Use::Residency, load, modes: RESIDENCY });
    let compaction = [Load::ScansUnderWrites, Load::GetsUnderWrites];
    let compaction = compaction.map(|load| Trial { of: Use::Compaction, load, modes: COMPACTION });
    residency.into_iter().chain(read_ahead).chain(compaction).collect()
}

/// Runs it; `progress` is told what comes next.
///
/// # Errors
/// [`Error::Store`](crate::error::Error::Store), [`Error::Io`](crate::error::Error::Io).
pub fn run(options: &ScoresOptions, mut progress: impl FnMut(String)) -> Result<ScoresReport> {
    let place = Place::new(options.dir.as_deref())?;
    run_in(place.path(), options, &mut progress)
}

fn run_in(dir: &Path, options: &ScoresOptions, progress: &mut impl FnMut(String)) -> Result<ScoresReport> {
    let keys = ((options.mib << 20) / (VALUE_BYTES as u64 + 24)).max(1);
    progress(format!("loading {keys} keys"));
    let mut config = EngineConfig::new(dir);
    config.memory_budget_bytes = LOAD_MEMORY_BYTES;
    fill(Engine::open(config).map_err(failed)?, PartitionOptions::default(), keys, key)?;
    let mut rows = Vec::new();
    for trial in trials().into_iter().filter(|trial| options.only.is_none_or(|only| only == trial.of)) {
        let mut measured = vec![Vec::new(); trial.modes.len()];
        for round in 1..=options.rounds {
            for ((mode, set), figures) in trial.modes.iter().zip(&mut measured) {
                progress(format!("{:?}, {}, {mode}: round {round} of {}", trial.of, trial.load.name(), options.rounds));
                figures.push(one_round(dir, options, keys, trial.load, *set)?);
            }
        }
        let names = trial.modes.iter().map(|(mode, _)| *mode);
        rows.extend(names.zip(&measured).map(|(mode, figures)| row(&trial, mode, figures, &measured[0])));
    }
    Ok(ScoresReport { mib: [options.mib, options.memory_mib as u64], rounds: options.rounds, rows })
}

fn one_round(
    dir: &Path,
    options: &ScoresOptions,
    keys: u64,
    load: Load,
    set: fn(&mut EngineConfig),
) -> Result<Figures> {
    let mut config = EngineConfig::new(dir);
    config.memory_budget_bytes = options.memory_mib << 20;
    config.window = Duration::from_millis(options.window_ms);
    // Each use is measured without the others.
    config.residency = false;
    set(&mut config);
    let engine = Engine::open(config).map_err(failed)?;
    let partition = engine.partition(PARTITION).map_err(failed)?;
    if load.writes() {
        block_on(partition.compact()).map_err(failed)?;
    }
    let time = Duration::from_secs_f64(options.seconds);
    let warm = Duration::from_secs_f64(options.warm_seconds);
    let warmed = on_shard(&partition, async move |at| load.run(at, keys, 0, warm).await)?;
    let before = Usage::now();
    let mut samples = on_shard(&partition, async move |at| load.run(at, keys, warmed.front, time).await)?;
    let read_bytes = Usage::now().since(before).read_bytes;
    let slices = block_on(partition.stats()).map_err(failed)?.slices;
    drop(partition);
    block_on(engine.close()).map_err(failed)?;
    Ok(samples.figures(read_bytes, slices))
}

fn row(trial: &Trial, mode: &'static str, figures: &[Figures], off: &[Figures]) -> Row {
    let ratios = |of: fn(&Figures) -> f64| -> Vec<f64> {
        let by = |(figures, off): (&Figures, &Figures)| if of(off) > 0.0 { of(figures) / of(off) } else { 0.0 };
        figures.iter().zip(off).map(by).collect()
    };
    let own = ratios(|figures| figures.ops_per_second);
    Row {
        of: trial.of,
        load: trial.load.name(),
        mode,
        figures: Figures::median(figures),
        spread: spread(&own),
        ratio: median(own),
        beside_ratio: median(ratios(|figures| figures.beside_per_second)),
    }
}

impl std::fmt::Display for ScoresReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [data, memory] = self.mib;
        writeln!(f, "{data} MiB of data, {memory} MiB of memory, {} rounds", self.rounds)?;
        let head = "ratio (spread)       beside  ratio";
        writeln!(f, "{:<50} {:>9} {:>8} {:>8} {:>8}  {head}", "", "op/s", "p50 us", "p99 us", "read MB/s")?;
        for row in &self.rows {
            let (Figures { ops_per_second, p50_us, p99_us, .. }, [low, high]) = (&row.figures, row.spread);
            let name = format!("{:?}, {}: {}", row.of, row.load, row.mode);
            write!(f, "{name:<50} {ops_per_second:>9.0} {p50_us:>8.1} {p99_us:>8.0} ")?;
            write!(f, "{:>9.0}  {:.2} ({low:.2} to {high:.2})", row.figures.read_mb_per_second, row.ratio)?;
            writeln!(f, "  {:>8.0}  {:.2}", row.figures.beside_per_second, row.beside_ratio)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn run_measures_every_mode_of_every_use() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let options = ScoresOptions {
            only: None,
            mib: 4,
            memory_mib: 16,
            window_ms: 20,
            warm_seconds: 0.1,
            seconds: 0.2,
            rounds: 1,
            dir: Some(dir.path().to_path_buf()),
            json: false,
        };
        let report = run(&options, |_| {}).unwrap();
        let modes: usize = trials().iter().map(|trial| trial.modes.len()).sum();
        assert_eq!(report.rows.len(), modes);
        assert!(report.rows.iter().all(|row| row.figures.ops_per_second > 0.0), "{report:?}");
        let off = report.rows.iter().filter(|row| row.mode == "off");
        assert!(off.clone().count() > 0 && off.clone().all(|row| row.ratio == 1.0 && row.spread == [1.0, 1.0]));
        assert!(report.to_string().contains("wide everywhere"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }
}
