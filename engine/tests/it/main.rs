//! The tests of the engine's interface, in one program: each of its own would be linked with all of the engine.
//! A process of their own have `kill` and `soak`.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod atomic;
mod checkpoints;
mod expected;
mod golden;
mod hot_rows;
mod keyspaces;
mod model;
mod offline;
mod operations;
mod promote;
mod reshape;
mod residency;
mod roll_back;
mod shadow;
mod shards;
