//! Tables for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::local::median;
use crate::machine::Machine;
use crate::runner::PhaseResult;
use crate::spec::{Phase, Spec};

/// Everything a run showed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What the device can do.
    pub limits: Option<Limits>,
    /// What was equal for all stores.
    pub spec: Spec,
    /// Configuration of each store.
    pub stores: BTreeMap<String, Vec<(String, String)>>,
    /// Every phase of every store and round, in the order in which they were run.
    pub phases: Vec<PhaseResult>,
}

/// A phase of one store over all rounds.
struct Row<'a> {
    store: &'a str,
    rounds: Vec<&'a PhaseResult>,
}

impl Row<'_> {
    fn median(&self, figure: impl Fn(&PhaseResult) -> f64) -> f64 {
        median(self.rounds.iter().map(|round| figure(round)))
    }
}

impl Report {
    /// The header: machine, device, what was equal, each store's configuration.
    #[must_use]
    pub fn header(&self) -> String {
        let (machine, spec) = (&self.machine, &self.spec);
        let mut text = String::new();
        let _ = writeln!(
            text,
            "kernel {}, {} ({} cores, {} MiB), {} on {}",
            machine.kernel, machine.cpu, machine.cores, machine.memory_mib, machine.file_system, machine.device
        );
        if let Some(limits) = &self.limits {
            let _ = writeln!(
                text,
                "device, 4 KiB direct: read {:.0}/s at depth 1 (p50 {:.0} us), {:.0}/s with 64 threads; durable write {:.0}/s (p50 {:.0} us)",
                limits.reads_per_second,
                limits.read_p50_us,
                limits.reads_per_second_64,
                limits.durable_writes_per_second,
                limits.durable_write_p50_us
            );
        }
        let record_bytes = (crate::data::KEY_BYTES + spec.value_bytes) as u64;
        let _ = writeln!(
            text,
            "{} keys of 24 B, values of {} B ({} MB), memory budget {} MiB, {} clients, writes {:?}, {} s a phase after {} s, seed {}",
            spec.keys,
            spec.value_bytes,
            spec.keys * record_bytes / 1_000_000,
            spec.memory_bytes >> 20,
            spec.threads,
            spec.class,
            spec.seconds,
            spec.warmup_seconds,
            spec.seed
        );
        for (store, configuration) in &self.stores {
            let parts: Vec<String> = configuration.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let _ = writeln!(text, "{store}: {}", parts.join("; "));
        }
        text
    }

    /// One table a phase: medians over the rounds, and each store's ratio to the first.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for phase in self.distinct_phases() {
            let rows = self.rows(phase);
            let clients = rows[0].rounds[0].clients;
            let _ = writeln!(
                text,
                "\n{phase}: {clients} clients, {:?}, writes {:?}",
                self.spec.distribution_of(phase),
                rows[0].rounds[0].class
            );
            let _ = writeln!(
                text,
                "  {:<12} {:>12} {:>8} {:>9} {:>9} {:>10} {:>10} {:>8} {:>8} {:>8}",
                "store", "op/s", "ratio", "p50 us", "p99 us", "p99.9 us", "max us", "CPU us", "RSS MiB", "disk MiB"
            );
            let base = rows[0].median(|round| round.ops_per_second);
            for row in &rows {
                let _ = writeln!(
                    text,
                    "  {:<12} {:>12.0} {:>8.2} {:>9.2} {:>9.2} {:>10.2} {:>10.0} {:>8.2} {:>8.0} {:>8.0}",
                    row.store,
                    row.median(|round| round.ops_per_second),
                    row.median(|round| round.ops_per_second) / base,
                    row.median(|round| round.latency.p50_us),
                    row.median(|round| round.latency.p99_us),
                    row.median(|round| round.latency.p999_us),
                    row.median(|round| round.latency.max_us),
                    row.median(|round| round.cpu_us_per_op),
                    row.median(|round| round.resident_bytes as f64) / f64::from(1 << 20),
                    row.median(|round| round.disk_bytes as f64) / f64::from(1 << 20),
                );
            }
            self.spread(&mut text, &rows);
            for row in rows.iter().filter(|row| !row.rounds[0].counts.is_empty()) {
                let last = row.rounds[row.rounds.len() - 1];
                let counts: Vec<String> = last.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
                let _ = writeln!(text, "    {} at the end: {}", row.store, counts.join(", "));
            }
        }
        text
    }

    /// How far the rounds lie apart, where there are several.
    fn spread(&self, text: &mut String, rows: &[Row<'_>]) {
        for row in rows.iter().filter(|row| row.rounds.len() > 1) {
            let rates: Vec<String> = row.rounds.iter().map(|round| format!("{:.0}", round.ops_per_second)).collect();
            let _ = writeln!(text, "    {} by round: {}", row.store, rates.join(", "));
        }
    }

    fn distinct_phases(&self) -> Vec<Phase> {
        let mut phases = Vec::new();
        for result in &self.phases {
            if !phases.contains(&result.phase) {
                phases.push(result.phase);
            }
        }
        phases
    }

    fn rows(&self, phase: Phase) -> Vec<Row<'_>> {
        let mut rows: Vec<Row<'_>> = Vec::new();
        for result in self.phases.iter().filter(|result| result.phase == phase) {
            match rows.iter_mut().find(|row| row.store == result.store) {
                Some(row) => row.rounds.push(result),
                None => rows.push(Row { store: &result.store, rounds: vec![result] }),
            }
        }
        rows
    }
}
