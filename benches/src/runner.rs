//! Runs phases on one open store and sums up what its clients measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::client::{ClientRecord, KINDS, Plan};
use crate::error::{Error, Result};
use crate::process::{self, Usage};
use crate::replay::{Recorded, Recording};
use crate::spec::{Class, Phase, Spec};
use crate::store::{Candidate, Store};

/// Numbers of inserted keys that one phase has to itself.
const INSERTS_PER_PHASE: u64 = 1 << 32;

/// Quantiles of one kind of operation, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Operations.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99 of 100 are faster.
    pub p99_us: f64,
    /// 999 of 1000 are faster.
    pub p999_us: f64,
    /// Slowest.
    pub max_us: f64,
}

/// What one phase of one store showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseResult {
    /// The store.
    pub store: String,
    /// The phase.
    pub phase: Phase,
    /// Which round of the phase.
    pub round: u32,
    /// Closed-loop clients.
    pub clients: usize,
    /// What its writes promised.
    pub class: Class,
    /// Seconds measured.
    pub seconds: f64,
    /// Operations a second, all clients together.
    pub ops_per_second: f64,
    /// Rows that scans returned.
    pub rows: u64,
    /// Latency of all operations.
    pub latency: Latency,
    /// Latency by kind of operation.
    pub kinds: BTreeMap<String, Latency>,
    /// CPU time of the whole process for each operation, in microseconds, the clients' own included.
    pub cpu_us_per_op: f64,
    /// Bytes the process wrote to devices.
    pub written_bytes: u64,
    /// Bytes the process read from devices.
    pub read_bytes: u64,
    /// Resident memory at the end, the harness's own included.
    pub resident_bytes: u64,
    /// Bytes of the store's files at the end.
    pub disk_bytes: u64,
    /// What the store counts of itself, as it is at the end.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
}

/// An open store and what it is measured with.
pub struct Runner {
    name: &'static str,
    store: Box<dyn Store>,
    spec: Spec,
    dir: PathBuf,
    phases_run: u64,
    recorded: Arc<[Recorded]>,
}

impl Runner {
    /// Opens the store in a folder.
    ///
    /// # Errors
    /// As the store says.
    pub fn open(candidate: Candidate, spec: &Spec, dir: &Path) -> Result<Runner> {
        std::fs::create_dir_all(dir).map_err(|cause| Error::io(dir.display().to_string(), cause))?;
        let recorded = match &spec.trace {
            Some(path) => Recording::read(path)?.requests,
            None => Arc::default(),
        };
        let store = (candidate.open)(dir, spec)?;
        let (spec, dir) = (spec.clone(), dir.to_path_buf());
        Ok(Runner { name: candidate.name, store, spec, dir, phases_run: 0, recorded })
    }

    /// The store's configuration.
    #[must_use]
    pub fn configuration(&self) -> Vec<(String, String)> {
        self.store.configuration()
    }

    /// Runs one phase. After a load the store is brought to rest.
    ///
    /// # Errors
    /// The first failure of a client.
    pub fn run(&mut self, phase: Phase, round: u32) -> Result<PhaseResult> {
        let plan = Arc::new(self.plan(phase, round));
        let before = Usage::now();
        let records = self.store.drive(&plan)?;
        let used = Usage::now().since(before);
        if phase.loads() {
            self.store.settle()?;
        }
        self.phases_run += 1;
        self.sum_up(&plan, round, &records, used)
    }

    /// Closes the store.
    ///
    /// # Errors
    /// As the store says.
    pub fn close(self) -> Result<()> {
        self.store.close()
    }

    fn plan(&self, phase: Phase, round: u32) -> Plan {
        let spec = &self.spec;
        Plan {
            phase,
            clients: spec.clients_of(phase),
            keys: spec.keys,
            placing: spec.placing(),
            recorded: Arc::clone(&self.recorded),
            value_bytes: spec.value_bytes,
            insert_from: spec.keys + self.phases_run * INSERTS_PER_PHASE,
            version: self.phases_run,
            distribution: spec.distribution_of(phase),
            class: if phase == Phase::DurablePut { Class::Durable } else { spec.class },
            scan_rows_max: spec.scan_rows_max,
            warmup: Duration::from_secs_f64(spec.warmup_seconds),
            measured: Duration::from_secs_f64(spec.seconds),
            seed: spec.seed.wrapping_add(u64::from(round) << 32),
        }
    }

    fn sum_up(&self, plan: &Plan, round: u32, records: &[ClientRecord], used: Usage) -> Result<PhaseResult> {
        let (Some(from), Some(to)) =
            (records.iter().map(|record| record.span.0).min(), records.iter().map(|record| record.span.1).max())
        else {
            return Err(Error::client("no client ran"));
        };
        let seconds = (to - from).as_secs_f64();
        let operations: u64 = records.iter().map(ClientRecord::operations).sum();
        if operations == 0 {
            return Err(Error::client(format!("{}: no operation ended within {seconds:.1} s", plan.phase)));
        }
        let mut kinds = BTreeMap::new();
        let mut all = None;
        for (kind, name) in KINDS {
            let merged = merge(records.iter().map(|record| &record.latency_ns[kind as usize]))?;
            if !merged.is_empty() {
                kinds.insert(name.to_string(), latency_of(&merged));
            }
            all = Some(match all {
                None => merged,
                Some(sum) => merge([&sum, &merged].into_iter())?,
            });
        }
        // CPU time covers the warm-up too.
        let worked = operations + records.iter().map(|record| record.uncounted).sum::<u64>();
        Ok(PhaseResult {
            store: self.name.to_string(),
            phase: plan.phase,
            round,
            clients: plan.clients,
            class: plan.class,
            seconds,
            ops_per_second: operations as f64 / seconds,
            rows: records.iter().map(|record| record.rows).sum(),
            latency: all.as_ref().map(latency_of).unwrap_or_default(),
            kinds,
            cpu_us_per_op: used.cpu_seconds * 1e6 / worked as f64,
            written_bytes: used.written_bytes,
            read_bytes: used.read_bytes,
            resident_bytes: process::resident_bytes(),
            disk_bytes: process::disk_bytes(&self.dir),
            counts: self.store.counts()?,
        })
    }
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("name", &self.name).finish_non_exhaustive()
    }
}

fn merge<'a>(mut parts: impl Iterator<Item = &'a Histogram<u64>>) -> Result<Histogram<u64>> {
    let mut sum = parts.next().ok_or_else(|| Error::client("no histogram to merge"))?.clone();
    for part in parts {
        sum.add(part).map_err(|cause| Error::client(format!("histogram: {cause}")))?;
    }
    Ok(sum)
}

fn latency_of(histogram: &Histogram<u64>) -> Latency {
    let quantile = |share: f64| histogram.value_at_quantile(share) as f64 / 1e3;
    Latency {
        count: histogram.len(),
        mean_us: histogram.mean() / 1e3,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
        max_us: histogram.max() as f64 / 1e3,
    }
}
