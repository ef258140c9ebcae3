//! Runs several stores in turns and gathers one report.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::limits;
use crate::machine::Machine;
use crate::options::BenchOptions;
use crate::report::Report;
use crate::runner::{PhaseResult, Runner};
use crate::spec::Spec;
use crate::store::Candidate;

/// Seconds that each figure of the device is measured for.
const LIMITS_SECONDS: f64 = 0.5;

/// A folder for the run's data that is removed at its end.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A fresh folder under `parent`, or where the machine keeps temporary files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(parent: Option<&Path>) -> Result<Place> {
        let parent = parent.map_or_else(std::env::temp_dir, PathBuf::from);
        let made = std::fs::create_dir_all(&parent).and_then(|()| tempfile::tempdir_in(&parent));
        Ok(Place { dir: made.map_err(|cause| Error::io(parent.display().to_string(), cause))? })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A folder in it for a store, without what an earlier session left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn emptied(&self, name: &str) -> Result<PathBuf> {
        let dir = self.path().join(name);
        match std::fs::remove_dir_all(&dir) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(Error::io(dir.display().to_string(), cause)),
            Ok(()) | Err(_) => Ok(dir),
        }
    }
}

/// A report without phases yet.
///
/// # Errors
/// [`Error::Io`] when the device cannot be measured.
pub fn begin_report(place: &Place, spec: &Spec) -> Result<Report> {
    Ok(Report {
        machine: Machine::of(place.path()),
        limits: Some(limits::measure(place.path(), LIMITS_SECONDS)?),
        spec: spec.clone(),
        stores: BTreeMap::new(),
        phases: Vec::new(),
    })
}

/// Measures one store in this process: the sessions of the options, each on data that it loads, `rounds` times. `progress`
/// is told of each result.
///
/// # Errors
/// The first failure of the store.
pub fn run_alone(
    candidate: Candidate,
    options: &BenchOptions,
    mut progress: impl FnMut(&PhaseResult),
) -> Result<Report> {
    let spec = options.spec()?;
    let place = Place::new(options.dir.as_deref())?;
    let mut report = begin_report(&place, &spec)?;
    for round in 0..options.rounds {
        for phases in options.sessions() {
            let dir = place.emptied(candidate.name)?;
            let mut runner = Runner::open(candidate, &spec, &dir)?;
            report.stores.insert(candidate.name.to_string(), runner.configuration());
            for phase in phases {
                let result = runner.run(phase, round)?;
                progress(&result);
                report.phases.push(result);
            }
            runner.close()?;
        }
    }
    Ok(report)
}
