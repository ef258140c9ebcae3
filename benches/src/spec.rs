//! What is run: workloads, distributions, durability, access.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::data::Placing;

/// The core workloads of YCSB (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", 2010).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Workload {
    /// 50 % reads, 50 % updates.
    A,
    /// 95 % reads, 5 % updates.
    B,
    /// Reads only.
    C,
    /// 95 % reads of what was inserted lately, 5 % inserts.
    D,
    /// 95 % short scans, 5 % inserts.
    E,
    /// 50 % reads, 50 % read-modify-writes.
    F,
}

/// Shares of the operations, in percent; they add up to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Point reads.
    pub read: u8,
    /// Overwrites of keys that exist.
    pub update: u8,
    /// New keys.
    pub insert: u8,
    /// Range scans.
    pub scan: u8,
    /// Reads followed by an overwrite of the same key.
    pub modify: u8,
}

impl Workload {
    /// Its operations.
    #[must_use]
    pub fn mix(self) -> Mix {
        let none = Mix { read: 0, update: 0, insert: 0, scan: 0, modify: 0 };
        match self {
            Workload::A => Mix { read: 50, update: 50, ..none },
            Workload::B => Mix { read: 95, update: 5, ..none },
            Workload::C => Mix { read: 100, ..none },
            Workload::D => Mix { read: 95, insert: 5, ..none },
            Workload::E => Mix { scan: 95, insert: 5, ..none },
            Workload::F => Mix { read: 50, modify: 50, ..none },
        }
    }

    /// The distribution that YCSB gives it.
    #[must_use]
    pub fn own_distribution(self) -> Distribution {
        if self == Workload::D { Distribution::Latest } else { Distribution::Zipf }
    }
}

/// Which keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Zipf with exponent 0.99, the popular keys spread over the key space.
    Zipf,
    /// Every key alike.
    Uniform,
    /// Zipf over recency: a client's own inserts first, then what was loaded last.
    Latest,
}

/// What an acknowledgement promises. Stores of different classes are never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A power cut right after the acknowledgement loses nothing.
    Durable,
    /// In the log's buffer or the page cache; a power cut loses the last moments.
    Buffered,
}

/// How the clients of Antumbra reach it; the other stores are called from the clients' threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Clients are tasks on the shards' cores, each beside the keys of its shard.
    Shard,
    /// Clients are threads of their own; every call hops to the shard and back.
    Handle,
}

/// Size of the data against the memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DataSize {
    /// Keys and values take half of the budget.
    Fits,
    /// Keys and values take four times the budget.
    #[value(name = "4x")]
    #[serde(rename = "4x")]
    FourTimes,
}

/// One timed part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Every key once, in an order that is random in the key space.
    Load,
    /// Overwrites of random keys, each acknowledged durably.
    DurablePut,
    /// A YCSB workload.
    Ycsb(Workload),
    /// Every key once, in key order.
    FillSequential,
    /// Overwrites of random keys.
    Overwrite,
    /// Reads of random keys.
    ReadRandom,
    /// All rows in key order, in pages, again and again.
    ReadSequential,
    /// The requests of a recorded trace, as fast as they go.
    Replay,
}

impl Phase {
    /// Whether it writes every key once, into an empty store.
    #[must_use]
    pub fn loads(self) -> bool {
        matches!(self, Phase::Load | Phase::FillSequential)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Phase::Load => write!(f, "load"),
            Phase::DurablePut => write!(f, "durable put"),
            Phase::Ycsb(workload) => write!(f, "{workload:?}"),
            Phase::FillSequential => write!(f, "fill in key order"),
            Phase::Overwrite => write!(f, "overwrite"),
            Phase::ReadRandom => write!(f, "read at random"),
            Phase::ReadSequential => write!(f, "read in key order"),
            Phase::Replay => write!(f, "replay"),
        }
    }
}

/// Everything that has to be equal for two stores to be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Keys loaded.
    pub keys: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Seconds that a phase is measured for (the load ends when all keys are in).
    pub seconds: f64,
    /// Seconds before each of them that are not counted.
    pub warmup_seconds: f64,
    /// Closed-loop clients of the load and of the workloads.
    pub threads: usize,
    /// Closed-loop clients of the durable puts.
    pub put_clients: usize,
    /// Bytes that the store may use for its memtables and caches.
    pub memory_bytes: usize,
    /// `None` takes each workload's own.
    pub distribution: Option<Distribution>,
    /// What the writes of the load and of the workloads promise.
    pub class: Class,
    /// How clients reach Antumbra.
    pub access: Access,
    /// Antumbra's shards.
    pub shards: usize,
    /// Antumbra's shards are pinned to CPUs from this one on.
    pub first_cpu: Option<usize>,
    /// How long an idle shard of Antumbra polls, in microseconds.
    pub spin_us: u64,
    /// A scan asks for 1 to this many rows, all alike likely.
    pub scan_rows_max: usize,
    /// Seed of all random choices.
    pub seed: u64,
    /// The recorded requests that are replayed; keys then lie in the trace's order.
    #[serde(default)]
    pub trace: Option<PathBuf>,
}

impl Spec {
    /// The distribution of a phase.
    #[must_use]
    pub fn distribution_of(&self, phase: Phase) -> Distribution {
        match phase {
            Phase::Load
            | Phase::DurablePut
            | Phase::FillSequential
            | Phase::Overwrite
            | Phase::ReadRandom
            | Phase::ReadSequential
            | Phase::Replay => Distribution::Uniform,
            Phase::Ycsb(workload) => self.distribution.unwrap_or(workload.own_distribution()),
        }
    }

    /// Where the keys lie.
    #[must_use]
    pub fn placing(&self) -> Placing {
        if self.trace.is_some() { Placing::Ordered(self.keys) } else { Placing::Mixed }
    }

    /// Clients of a phase.
    #[must_use]
    pub fn clients_of(&self, phase: Phase) -> usize {
        if phase == Phase::DurablePut { self.put_clients } else { self.threads }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_of_every_workload_adds_up() {
        for workload in Workload::value_variants() {
            let mix = workload.mix();
            assert_eq!(mix.read + mix.update + mix.insert + mix.scan + mix.modify, 100, "{workload:?}");
        }
    }
}
