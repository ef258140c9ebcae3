//! What outlives a life of the shard: the machine, the model of its partitions, the configuration, the counts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use crate::config::{CompactionOrder, Compression, EngineConfig, PartitionOptions, ReadAhead};
use crate::engine::Directory;
use crate::error::{Error, Result};
use crate::io::sim::Machine;
use crate::partition::Write;
use crate::shard::{PartitionSpec, Shard};
use crate::types::{Epoch, KeyRange, PartitionId, ShardId};

use super::history::History;
use super::{Options, Report};

/// Folder of the shard on the machine.
pub(super) fn shard_dir() -> PathBuf {
    Path::new("/data/shard-000").to_path_buf()
}

/// A partition as the model knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    pub history: History,
    pub presence: Presence,
}

/// Whether a partition is on the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    #[default]
    Absent,
    /// It was being created or dropped when the shard ended.
    Unknown,
    Present,
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    pub machine: Rc<Machine>,
    pub partitions: RefCell<BTreeMap<PartitionId, Expected>>,
    pub shape: Shape,
    pub operations_wanted: u64,
    verbose: bool,
    pub counts: RefCell<Report>,
    /// What each client is at, for whoever looks into a hang.
    pub doing: RefCell<BTreeMap<u64, String>>,
    config: Arc<EngineConfig>,
    directory: Arc<Directory>,
    /// The shard of this life, so that it can be taken apart when it was killed.
    shard: RefCell<Option<Rc<Shard>>>,
    violation: RefCell<Option<String>>,
    /// Injected errors when this life began.
    errors_before: Cell<u64>,
    /// The shard accepts no more writes, and a fault explains it.
    ended_by_fault: Cell<bool>,
    next_value: Cell<u64>,
}

/// Sizes of one run, drawn once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub partitions: u64,
    pub keys: u64,
    pub clients: u64,
    /// Largest value, in bytes.
    pub value_len_max: usize,
    pub segment_target_bytes: u64,
    pub block_bytes: u32,
    pub compression: Compression,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> Rc<World> {
        let machine = Machine::new(seed, options.bug);
        let (shape, mut config) = machine.draw(|random| (Shape::draw(random), draw_config(random)));
        // By the seed itself: what was drawn before these were there is drawn still.
        config.read_ahead = [ReadAhead::Growing, ReadAhead::Expected, ReadAhead::Wide][seed as usize % 3];
        config.compaction_order = [CompactionOrder::Slices, CompactionOrder::Expected][seed as usize / 3 % 2];
        Rc::new(World {
            machine,
            partitions: RefCell::default(),
            shape,
            operations_wanted: options.operations,
            verbose: options.verbose,
            counts: RefCell::default(),
            doing: RefCell::default(),
            config: Arc::new(config),
            directory: Arc::default(),
            shard: RefCell::default(),
            violation: RefCell::default(),
            errors_before: Cell::new(0),
            ended_by_fault: Cell::new(false),
            next_value: Cell::new(1),
        })
    }

    /// Opens the shard and keeps hold of it.
    pub async fn open(&self) -> Result<Rc<Shard>> {
        let (config, directory) = (Arc::clone(&self.config), Arc::clone(&self.directory));
        let shard = Shard::open(ShardId(0), shard_dir(), config, super::model(), directory).await?;
        *self.shard.borrow_mut() = Some(Rc::clone(&shard));
        Ok(shard)
    }

    /// The shard of this life, if it was opened.
    pub fn shard(&self) -> Option<Rc<Shard>> {
        self.shard.borrow().clone()
    }

    /// A life begins.
    pub fn begin_life(&self) {
        self.counts.borrow_mut().lives += 1;
        self.errors_before.set(self.machine.injected.errors.get());
        self.ended_by_fault.set(false);
        self.doing.borrow_mut().clear();
    }

    /// What is left of a life is taken apart: a shard that was killed would keep itself alive.
    pub fn end_life(&self) {
        if let Some(shard) = self.shard.borrow_mut().take() {
            shard.abandon();
        }
    }

    /// Ends everything.
    pub fn end(&self) {
        self.machine.kill();
        self.end_life();
    }

    pub fn spec(&self, id: PartitionId) -> PartitionSpec {
        PartitionSpec {
            id,
            keyspace: "sim".into(),
            range: KeyRange::all(),
            epoch: Epoch(1),
            options: PartitionOptions {
                segment_target_bytes: self.shape.segment_target_bytes,
                block_bytes: self.shape.block_bytes,
                compression: self.shape.compression,
            },
        }
    }

    /// Tells what happens, if somebody wants to know.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            let life = self.counts.borrow().lives;
            eprintln!("{:?} life {life}: {}", self.machine.now(), what());
        }
    }

    /// Notes the first violation.
    pub fn violate(&self, what: String) {
        self.tell(|| format!("VIOLATION {what}"));
        self.violation.borrow_mut().get_or_insert(what);
    }

    pub fn take_violation(&self) -> std::result::Result<(), String> {
        self.violation.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Whether clients are to stop.
    pub fn is_over(&self) -> bool {
        self.ended_by_fault.get()
            || self.violation.borrow().is_some()
            || self.counts.borrow().operations >= self.operations_wanted
    }

    /// Whether a fault was injected in this life.
    pub fn had_fault(&self) -> bool {
        self.machine.injected.errors.get() > self.errors_before.get()
    }

    /// Whether damage lies on the disk that nobody was told of.
    pub fn has_damage(&self) -> bool {
        !self.machine.injected.silent.borrow().is_empty()
    }

    /// An error that an operation was answered with: a violation unless something explains it. True for one after
    /// which the life can go on.
    pub fn judge(&self, what: &str, cause: &Error) -> bool {
        self.tell(|| format!("{what}: {cause}"));
        match cause {
            // Whatever fails now fails because the machine was interrupted.
            _ if self.machine.is_dark() => false,
            Error::ReadOnly { .. } if self.had_fault() => {
                self.ended_by_fault.set(true);
                false
            }
            Error::Io { .. } if self.had_fault() => true,
            Error::NoRoom { .. } if self.had_fault() || self.has_damage() => true,
            Error::Corruption { .. } if self.has_damage() => {
                self.counts.borrow_mut().detected += 1;
                true
            }
            _ => {
                self.violate(format!("{what}: {cause}"));
                false
            }
        }
    }

    /// A value that no other write has.
    pub fn fresh_value(&self) -> Vec<u8> {
        let number = self.next_value.get();
        self.next_value.set(number + 1);
        let len = self.machine.draw(|random| match random.u8(..) {
            0..8 => 0,
            8..200 => random.usize(8..100),
            200..250 => random.usize(100..2_000.min(self.shape.value_len_max)),
            _ => random.usize(0..self.shape.value_len_max),
        });
        number.to_le_bytes().iter().copied().cycle().take(len).collect()
    }

    /// A put (some of them with a deadline) or a delete.
    pub fn draw_write(&self) -> Write {
        let deletes = self.machine.draw(|random| random.u8(0..6)) == 0;
        let value = (!deletes).then(|| Bytes::from(self.fresh_value()));
        self.machine.draw(|random| {
            let expires = value.is_some() && random.u8(0..10) == 0;
            let expires_at_ms = if expires { self.machine.wall_ms() + random.u64(1..5_000) } else { 0 };
            Write { key: self.key(random).into(), value, expires_at_ms }
        })
    }

    pub fn key(&self, random: &mut Rng) -> Vec<u8> {
        let number = random.u64(0..self.shape.keys);
        let mut key = format!("{:03}", number).into_bytes();
        // Some keys are long, and some are the beginning of others.
        key.resize(key.len() + (number % 7 * (number % 3)) as usize * 4, b'-');
        key
    }

    pub fn report(&self) -> Report {
        Report {
            errors: self.machine.injected.errors.get(),
            disk_operations: self.machine.operations(),
            trace: self.machine.trace(),
            ..*self.counts.borrow()
        }
    }
}

impl Shape {
    fn draw(random: &mut Rng) -> Shape {
        Shape {
            partitions: random.u64(1..4),
            keys: [20, 100, 400][random.usize(0..3)],
            clients: random.u64(1..7),
            value_len_max: [2_001, 6_000, 20_000][random.usize(0..3)],
            segment_target_bytes: random.u64(2_000..30_000),
            block_bytes: random.u32(200..4_000),
            compression: [Compression::None, Compression::Zstd][random.usize(0..2)],
        }
    }
}

/// Small sizes, so that logs wrap, memtables are flushed and segments split within a few hundred writes. They are below
/// what [`EngineConfig::check`] lets an embedder choose.
fn draw_config(random: &mut Rng) -> EngineConfig {
    let mut config = EngineConfig::new("/data");
    config.memory_budget_bytes = [64 << 10, 256 << 10, 1 << 20][random.usize(0..3)];
    config.wal_file_bytes = [256 << 10, 512 << 10][random.usize(0..2)];
    config.window = Duration::from_millis(random.u64(1_000..20_000));
    config.lock_timeout = Duration::from_secs(10);
    config
}
