//! The command line that `antumbra bench ycsb` and `compare` share.

use std::path::PathBuf;

use clap::Args;

use crate::data::{KEY_BYTES, VALUE_BYTES_MIN};
use crate::error::{Error, Result};
use crate::spec::{Access, Class, DataSize, Distribution, Phase, Spec, Workload};

/// Most keys: their numbers are kept as u32.
const KEYS_MAX: u64 = 1 << 31;

/// Options of a run.
#[derive(Args, Clone, Debug)]
pub struct BenchOptions {
    /// Workloads of YCSB, in the order given; `C,B,A,F,D,E` changes the data least. Before E the data is loaded anew.
    #[arg(id = "workloads", long = "workload", value_enum, value_delimiter = ',', default_values_t = [Workload::C, Workload::B, Workload::A, Workload::F, Workload::D, Workload::E])]
    pub workloads: Vec<Workload>,
    /// Instead of YCSB the phases that RocksDB's db_bench made known: fill in key order and at random, overwrite, read at random
    /// and in key order.
    #[arg(long, conflicts_with = "workloads")]
    pub fills: bool,
    /// Instead of YCSB the requests of a recorded trace (zstd CSV `ts_us,op,key,size`) as fast as they go, on its own keys.
    #[arg(long, conflicts_with_all = ["workloads", "fills", "keys", "data"])]
    pub trace: Option<PathBuf>,
    /// Keys; without it as many as `--data` asks for.
    #[arg(long, conflicts_with = "data")]
    pub keys: Option<u64>,
    /// Size of the data against the memory budget.
    #[arg(long, value_enum, default_value_t = DataSize::Fits)]
    pub data: DataSize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
    /// Seconds that each phase is measured for.
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Seconds of each phase before that, not counted.
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Closed-loop clients of the load and of the workloads.
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Closed-loop clients of the durable puts; 0 leaves that phase out.
    #[arg(long, default_value_t = 64)]
    pub put_clients: usize,
    /// Memory of memtables and caches, in MiB.
    #[arg(long, default_value_t = 512)]
    pub memory_mb: usize,
    /// Which keys are asked for; without it each workload's own.
    #[arg(long, value_enum)]
    pub distribution: Option<Distribution>,
    /// What the writes of the load and of the workloads promise.
    #[arg(long, value_enum, default_value_t = Class::Buffered)]
    pub durability: Class,
    /// How clients reach Antumbra.
    #[arg(long, value_enum, default_value_t = Access::Shard)]
    pub access: Access,
    /// Antumbra's shards; without it as many as threads, but no more than cores.
    #[arg(long)]
    pub shards: Option<usize>,
    /// Pin Antumbra's shards to CPUs from this one on.
    #[arg(long)]
    pub first_cpu: Option<usize>,
    /// How long an idle, pinned shard of Antumbra polls, in microseconds.
    #[arg(long, default_value_t = 0)]
    pub spin_us: u64,
    /// A scan asks for 1 to this many rows.
    #[arg(long, default_value_t = 100)]
    pub scan_rows_max: usize,
    /// How often every workload is run; stores take turns.
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder for the data, emptied before and after; a temporary one without it. Its device is what is measured.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl BenchOptions {
    /// What is to be run.
    ///
    /// # Errors
    /// [`Error::Refused`] names the option that cannot work.
    pub fn spec(&self) -> Result<Spec> {
        let memory_bytes = self.memory_mb << 20;
        let record_bytes = (KEY_BYTES + self.value_bytes) as u64;
        let data_bytes = match self.data {
            DataSize::Fits => memory_bytes as u64 / 2,
            DataSize::FourTimes => memory_bytes as u64 * 4,
        };
        let keys = match &self.trace {
            Some(path) => crate::replay::Recording::read(path)?.keys,
            None => self.keys.unwrap_or(data_bytes / record_bytes),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let check = |fits: bool, what: &str| if fits { Ok(()) } else { Err(Error::refused(what.to_string())) };
        check((1_000..KEYS_MAX).contains(&keys), "--keys: 1,000 to 2,147,483,647")?;
        check(
            self.value_bytes >= VALUE_BYTES_MIN,
            "--value-bytes: at least 17, for the stamp that reads are checked by",
        )?;
        check(self.seconds > 0.0 && self.warmup >= 0.0, "--seconds: above 0, --warmup: not below 0")?;
        check(self.threads > 0, "--threads: at least 1")?;
        check(self.scan_rows_max > 0, "--scan-rows-max: at least 1")?;
        check(self.rounds > 0, "--rounds: at least 1")?;
        Ok(Spec {
            keys,
            value_bytes: self.value_bytes,
            seconds: self.seconds,
            warmup_seconds: self.warmup,
            threads: self.threads,
            put_clients: self.put_clients,
            memory_bytes,
            distribution: self.distribution,
            class: self.durability,
            access: self.access,
            shards: self.shards.unwrap_or(self.threads.min(cores)),
            first_cpu: self.first_cpu,
            spin_us: self.spin_us,
            scan_rows_max: self.scan_rows_max,
            seed: self.seed,
            trace: self.trace.clone(),
        })
    }

    /// The phases in their order, those together that run on the data of one load, which comes first. As the authors of YCSB
    /// prescribe, the data is loaded anew before E: D has inserted keys.
    #[must_use]
    pub fn sessions(&self) -> Vec<Vec<Phase>> {
        if self.trace.is_some() {
            return vec![vec![Phase::Load, Phase::Replay]];
        }
        if self.fills {
            let behind = [Phase::ReadRandom, Phase::ReadSequential, Phase::Overwrite];
            return vec![vec![Phase::FillSequential], [[Phase::Load].as_slice(), &behind].concat()];
        }
        let puts = (self.put_clients > 0).then_some(Phase::DurablePut);
        let phases: Vec<Phase> = self.workloads.iter().map(|workload| Phase::Ycsb(*workload)).chain(puts).collect();
        let continues = |_: &Phase, next: &Phase| *next != Phase::Ycsb(Workload::E);
        phases.chunk_by(continues).map(|phases| [&[Phase::Load], phases].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchOptions,
    }

    #[test]
    fn data_is_loaded_anew_before_scans() {
        let sessions = |arguments: &[&str]| {
            let sessions = Cli::parse_from([&["bench"], arguments].concat()).bench.sessions();
            let names = |phases: &Vec<Phase>| phases.iter().map(Phase::to_string).collect::<Vec<_>>().join(" ");
            sessions.iter().map(names).collect::<Vec<String>>()
        };
        assert_eq!(sessions(&[]), ["load C B A F D", "load E durable put"]);
        assert_eq!(sessions(&["--workload", "E,C", "--put-clients", "0"]), ["load E C"]);
        assert_eq!(sessions(&["--workload", "C", "--put-clients", "0"]), ["load C"]);
        let fills = ["fill in key order", "load read at random read in key order overwrite"];
        assert_eq!(sessions(&["--fills"]), fills);
        assert_eq!(sessions(&["--trace", "some.csv.zst"]), ["load replay"]);
    }
}
