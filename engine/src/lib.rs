//! One host of Antumbra: a thread-per-core io_uring storage engine that can be embedded without the rest.
//!
//! [`Engine::builder`] opens a data folder, [`Engine::open_keyspace`] a named set of keys in it; [`Keyspace`] has the
//! operations, and [`blocking`] the same without async. What lies below is public too: [`PartitionHandle`] is a partition
//! from any thread and runtime, [`Engine::on_shard`] ships code to the data. `engine/docs/api.md` says what is promised; the
//! life of a put, a get and a move is drawn in `ARCHITECTURE.md`.

#![deny(missing_docs)]

/// An example of an item's documentation, run by `cargo test --doc`: it has an `engine` that lies below `dir`, and `people`, a
/// keyspace of it.
macro_rules! example {
    ($text:literal) => {
        concat!(
            "\n# Example\n```\n# use antumbra_engine::*;\n# let dir = tempfile::tempdir()?;\n",
            "# let engine = Engine::builder(dir.path().join(\"data\")).memory_budget(64 << 20).wal_file(32 << 20).open()?;\n",
            "# futures_lite::future::block_on(async {\n",
            "# let people = engine.create_keyspace(\"people\", KeyspaceOptions::new()).await?;\n# async {\n",
            $text,
            "\n# Ok::<(), Error>(())\n# }.await?;\n# drop(people);\n# engine.close().await })?;\n",
            "# Ok::<(), Box<dyn std::error::Error>>(())\n```"
        )
    };
}

pub mod blocking;
pub mod chain;
pub mod checkpoint;
mod clock;
pub mod config;
pub mod doctor;
mod engine;
pub mod erasure;
pub mod error;
mod event;
#[cfg(any(test, feature = "sim"))]
pub mod fuzz;
pub mod governor;
mod heads;
mod io;
pub mod keyspace;
pub mod limits;
mod manifest;
mod memory;
mod memtable;
mod merge;
pub mod merge_operator;
pub mod offline;
pub mod partition;
pub mod record;
mod residency;
pub mod shard;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod table;
pub mod types;
mod wal;

pub use config::{CompactionOrder, Compression, Durability, EngineConfig, PartitionOptions, ReadAhead};
pub use engine::{Engine, EngineBuilder, EngineStats, PartitionEntries, PartitionHandle, PartitionSnapshot, ShardUse};
pub use error::{Error, Result};
pub use io::runtime;
pub use keyspace::{Entries, Keyspace, KeyspaceOptions, KeyspaceStats, Partitioning, Snapshot};
pub use merge_operator::{MergeOperator, MergeOperators, NamedOperator};
pub use partition::{
    Batch, Commit, Condition, Conflict, ExportPage, Exported, KeyValue, Partition, PartitionStats, ScanPage,
    ScrubReport, Serving, Versioned, Write, Written,
};
pub use shard::{PartitionSpec, Shard};

/// The README and the book's page on embedding: their examples are tests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../README.md")]
    mod readme {}
    #[doc = include_str!("../../tools/docs/book/embedding.md")]
    mod embedding {}
}
