//! The engine on a real kernel: file systems, faults, limits, power cuts.
//! `cargo test --release -p antumbra-hw-tests --test hw -- --nocapture` also prints what the machine has.
#![allow(clippy::unwrap_used)]

mod device;
mod fault;
mod file_systems;
mod limits;
mod mount;
mod power;
mod probe;
mod recorder;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use antumbra_engine::Result;
use antumbra_engine::blocking::{Engine, Keyspace};
use antumbra_engine::keyspace::KeyspaceOptions;

/// Held by each test that mounts something or starts a process: a process inherits the open files of the engines of other tests,
/// and what has an open file is not unmounted.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An engine of the least size, and its one keyspace; both are made where the folder is empty.
fn open(dir: &Path) -> Result<(Engine, Keyspace)> {
    let engine = Engine::open(small(dir))?;
    let rows = engine.open_keyspace("hw", KeyspaceOptions::default())?;
    Ok((engine, rows))
}

fn small(dir: &Path) -> antumbra_engine::EngineConfig {
    let mut config = antumbra_engine::EngineConfig::new(dir);
    config.memory_budget_bytes = 16 << 20;
    config.wal_file_bytes = 32 << 20;
    config.residency = false;
    config
}

fn key(number: usize) -> String {
    format!("key-{number:06}")
}

fn value(number: usize, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut value = vec![0; len];
    random.fill(&mut value);
    value
}

/// What is wrong with the rows below `count`, if anything is.
fn missing(rows: &Keyspace, count: usize, len: usize) -> Option<String> {
    (0..count).find_map(|number| match rows.get(key(number)) {
        Ok(Some(found)) if found == value(number, len) => None,
        Ok(found) => Some(format!("{}: {} of {len} bytes", key(number), found.map_or(0, |found| found.len()))),
        Err(cause) => Some(format!("{}: {cause}", key(number))),
    })
}
