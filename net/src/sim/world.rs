//! The hosts, the true time, and whose turn it is.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use antumbra_engine::sim::{Bug, Node, darken};
use antumbra_engine::types::{HostId, PartitionId};
use antumbra_engine::{Compression, EngineConfig, PartitionOptions, Serving};
use fastrand::Rng;

use crate::coordinator::ClusterState;
use crate::failpoint::Failpoint;
use crate::host::{CoordinatorAt, Host, HostSettings, Reports};
use crate::shadow::MoveHandle;
use crate::shadow::conflict::Conflict;
use crate::transport::{PlaneHandle, SchedulingClass};

use super::chaos::Profile;
use super::client::Clients;
use super::network::{Network, Place, Weather};
use super::{Mutant, Options, Report, logs, with_seat};

/// The host that keeps the coordinator.
pub(super) const COORDINATOR: Place = 0;
/// The last operations of the load end by then.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// A process that ends by itself, or does not come up, is started again after this time.
const RESTART: Duration = Duration::from_millis(200);

/// What the simulation itself does at a time.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// A client begins an operation.
    Ask(usize),
    /// A request reaches its host.
    Request(u64),
    /// An answer reaches its client.
    Answer(u64, super::client::Answer),
    /// A client waits no longer.
    GiveUp(u64),
    Start(Place),
    /// A process runs on that stood still.
    Resume(Place),
    /// A disk is as fast as before.
    DiskRecovers(Place),
    /// A link carries again.
    Mend(Place, Place),
    /// Something goes wrong.
    Trouble,
    /// Somebody asks for a move.
    Move,
    /// A standby has been kept for long enough.
    EndStandby(usize),
    /// Somebody promotes a standby by force.
    Promote,
    /// Somebody splits a partition.
    Split,
    /// Somebody makes one of two.
    Merge,
    /// The records are read, to see whether everything has come to rest.
    Look,
}

/// One host, dead or alive.
pub(super) struct Slot {
    pub node: Node,
    /// Processes so far.
    pub life: u64,
    pub is_up: bool,
    pub stands_still: bool,
    pub host: Rc<RefCell<Option<Arc<Host>>>>,
    /// It takes requests; before that, what it owned when it last knew does not count.
    pub listens: Rc<Cell<bool>>,
    /// Reports of reconciliations, on a device that keeps everything.
    pub reports: Arc<Mutex<Vec<Conflict>>>,
    /// Why the process ended by itself.
    pub ended: Rc<RefCell<Option<String>>>,
}

pub(super) struct World {
    pub now: Duration,
    pub random: Rng,
    pub network: Network,
    pub slots: Vec<Slot>,
    pub profile: Profile,
    pub shape: Shape,
    pub clients: Clients,
    pub counts: Report,
    /// Nothing goes wrong in this run, not even an answer is lost.
    pub is_calm: bool,
    /// The first error that a client of such a run was told of.
    pub complaint: Option<String>,
    /// While failures go on.
    pub is_troubled: bool,
    /// The records as they were read last.
    pub records: Rc<RefCell<Option<ClusterState>>>,
    pub moves: Vec<MoveHandle>,
    /// Partitions that somebody has tried to promote by force: two hosts may have served them.
    pub forced: BTreeSet<u64>,
    /// Partitions so far: ids go from 1 to this.
    pub partitions: u64,
    /// Splits and merges that somebody was told of.
    pub splits: Rc<Cell<u64>>,
    pub merges: Rc<Cell<u64>>,
    /// Forced promotions that took place.
    pub promotions: Rc<Cell<u64>>,
    acts: BTreeMap<(Duration, u64), Act>,
    next_act: u64,
    trace: Cell<u64>,
}

/// Sizes of one run, drawn once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub hosts: usize,
    pub partitions: u64,
    pub keys: u64,
    pub clients: usize,
    pub value_len_max: usize,
    options: PartitionOptions,
    memory_budget_bytes: usize,
    pub lag_max: u64,
}

impl Shape {
    fn draw(random: &mut Rng) -> Shape {
        Shape {
            hosts: random.usize(2..4),
            partitions: random.u64(1..3),
            keys: [4, 12, 30][random.usize(0..3)],
            clients: random.usize(2..7),
            value_len_max: [40, 600, 3_000][random.usize(0..3)],
            options: PartitionOptions {
                segment_target_bytes: random.u64(2_000..20_000),
                block_bytes: random.u32(300..3_000),
                compression: [Compression::None, Compression::Zstd][random.usize(0..2)],
            },
            memory_budget_bytes: [64 << 10, 256 << 10, 1 << 20][random.usize(0..3)],
            lag_max: [0, 4, 256][random.usize(0..3)],
        }
    }
}

impl World {
    pub fn new(seed: u64, options: &Options) -> World {
        let mut random = Rng::with_seed(seed);
        let shape = Shape::draw(&mut random);
        let profile = Profile::draw(&mut random, seed);
        with_seat(|seat| seat.crash_per_mille = profile.crash_at_step_per_mille);
        let weather = draw_weather(&mut random);
        let network = Network::new(random.u64(..), shape.hosts, weather);
        let slots = (0..shape.hosts).map(|_| Slot::draw(&mut random, &profile, options.bug())).collect();
        World {
            now: Duration::ZERO,
            network,
            slots,
            clients: Clients::new(shape.clients, options.operations),
            shape,
            counts: Report::default(),
            is_calm: profile.is_calm() && weather.lost_answers_per_mille == 0,
            complaint: None,
            is_troubled: true,
            records: Rc::default(),
            moves: Vec::new(),
            forced: BTreeSet::new(),
            partitions: shape.partitions,
            splits: Rc::default(),
            merges: Rc::default(),
            promotions: Rc::default(),
            profile,
            acts: BTreeMap::new(),
            next_act: 0,
            trace: Cell::new(seed),
            random,
        }
    }

    /// The whole run.
    pub fn run(&mut self) -> Result<(), String> {
        self.tell(|world| format!("{:?} {:?}", world.shape, world.profile));
        self.set_up()?;
        self.begin_load();
        self.begin_trouble();
        let patience = self.profile.load_max + LAST_PATIENCE;
        self.run_until("the load", patience, |world| world.clients.are_done())?;
        self.come_to_rest()?;
        self.check_histories()?;
        self.check_reconciled()
    }

    /// Takes steps until `done`, checking the rules that hold at every step.
    pub fn run_until(&mut self, what: &str, patience: Duration, done: impl Fn(&World) -> bool) -> Result<(), String> {
        let deadline = self.now + patience;
        while !done(self) {
            if self.now > deadline {
                return Err(format!("{what} does not end within {patience:?} of simulated time{}", self.stuck()));
            }
            if !self.step()? {
                return Err(format!("{what} does not end: nothing can happen any more{}", self.stuck()));
            }
        }
        Ok(())
    }

    /// The earliest thing happens; false if there is none.
    fn step(&mut self) -> Result<bool, String> {
        enum Turn {
            Act,
            Network,
            Node(Place),
        }
        let act = self.acts.first_key_value().map(|((due, _), _)| (*due, Turn::Act));
        let network = self.network.due().map(|due| (due, Turn::Network));
        let running = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_up && !slot.stands_still);
        let nodes = running.filter_map(|(place, slot)| Some((slot.node.due()?, Turn::Node(place))));
        let next = act.into_iter().chain(network).chain(nodes).min_by_key(|(due, _)| *due);
        let Some((due, turn)) = next else {
            return Ok(false);
        };
        self.now = self.now.max(due);
        self.network.advance(self.now);
        match turn {
            Turn::Act => {
                if let Some((_, act)) = self.acts.pop_first() {
                    logs::set_place(self.now, "world");
                    self.mix(1);
                    self.act(act);
                }
            }
            Turn::Network => {
                self.mix(2);
                if let Some(arrival) = self.network.step() {
                    let node = &self.slots[arrival.place].node;
                    let _on = node.enter();
                    node.spawn((arrival.handler)(arrival.incoming));
                }
            }
            Turn::Node(place) => {
                self.mix(3 + place as u64);
                logs::set_place(self.now, ["host 1", "host 2", "host 3"][place]);
                self.slots[place].node.turn(self.now);
                self.after_turn(place)?;
            }
        }
        Ok(true)
    }

    fn after_turn(&mut self, place: Place) -> Result<(), String> {
        logs::set_place(self.now, "world");
        let passed = with_seat(|seat| std::mem::take(&mut seat.passed)).unwrap_or_default();
        for passed in passed {
            self.mix(passed.step.len() as u64);
            self.pass(place, &passed);
        }
        self.clients.take_answers().into_iter().for_each(|(operation, answer)| {
            let due = self.now + self.client_delay();
            self.at(due, Act::Answer(operation, answer));
        });
        let ended = self.slots[place].ended.borrow_mut().take();
        if let Some(why) = ended {
            self.tell(|_| format!("host {} ends: {why}", place + 1));
            self.crash(place, false, RESTART);
        }
        self.check_owners()?;
        self.complaint.take().map_or(Ok(()), Err)
    }

    /// W1: at no moment do two hosts, or two partitions of one, accept writes of the same keys, unless one was promoted by
    /// force.
    fn check_owners(&self) -> Result<(), String> {
        let mut owned = Vec::new();
        for id in (1..=self.partitions).filter(|id| !self.forced.contains(id)).map(PartitionId) {
            for (place, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.listens.get()) {
                if let Some(range) = slot.node.range(id)
                    && slot.node.serving(id) == Some(Serving::Owner)
                {
                    owned.push((range, id, place + 1));
                }
            }
        }
        owned.sort_by(|(one, ..), (two, ..)| one.start.cmp(&two.start));
        for pair in owned.windows(2) {
            let ((one, id, host), (two, other_id, other_host)) = (&pair[0], &pair[1]);
            if one.end.as_ref().is_none_or(|end| *end > two.start) {
                return Err(format!(
                    "W1: partition {id} on host {host} and {other_id} on host {other_host} own the same keys at once"
                ));
            }
        }
        Ok(())
    }

    pub fn at(&mut self, due: Duration, act: Act) {
        self.next_act += 1;
        self.acts.insert((due, self.next_act), act);
    }

    pub fn after(&mut self, delay: Duration, act: Act) {
        self.at(self.now + delay, act);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Ask(client) => self.ask(client),
            Act::Request(operation) => self.request(operation),
            Act::Answer(operation, answer) => self.answer(operation, answer),
            Act::GiveUp(operation) => self.give_up(operation),
            Act::Start(place) => self.start(place),
            Act::Resume(place) => self.set_still(place, false),
            Act::DiskRecovers(place) => self.slots[place].node.set_disk_slower(0),
            Act::Mend(from, to) => self.network.set_cut(from, to, false),
            Act::Trouble => self.make_trouble(),
            Act::Move => self.ask_for_move(),
            Act::EndStandby(index) => self.end_standby(index),
            Act::Promote => self.promote(),
            Act::Split => self.split(),
            Act::Merge => self.merge(),
            Act::Look => self.look(),
        }
    }

    /// Starts a process, unless there is one.
    pub fn start(&mut self, place: Place) {
        let slot = &mut self.slots[place];
        if slot.is_up {
            return;
        }
        slot.life += 1;
        slot.is_up = true;
        self.network.rise(place);
        let slot = &self.slots[place];
        let (network, id) = (self.network.clone(), HostId(place as u32 + 1));
        let (host, listens, ended) = (Rc::clone(&slot.host), Rc::clone(&slot.listens), Rc::clone(&slot.ended));
        let opening = slot.node.open_engine(self.engine_config());
        let settings = HostSettings {
            resp: ([10, 0, 0, place as u8 + 1], 3).into(),
            resp_tls: None,
            coordinator: match place {
                COORDINATOR => CoordinatorAt::Here,
                _ => CoordinatorAt::Remote(Network::address(COORDINATOR, SchedulingClass::Normal), HostId(1)),
            },
            options: self.shape.options,
            failpoint: Failpoint::default(),
            reports: Reports::Kept(Arc::clone(&slot.reports)),
            events: None,
            controller: None,
            roll_back_for: self.profile.roll_back_for,
            stall: None,
        };
        let _on = slot.node.enter();
        slot.node.spawn(async move {
            let start = async {
                let engine = opening.await?;
                let listen = |class, handler| {
                    listens.set(true);
                    PlaneHandle::simulated(network.listen(place, class, handler))
                };
                Host::start_simulated(engine, id, settings, listen).await
            };
            match start.await {
                Ok(started) => *host.borrow_mut() = Some(started),
                Err(cause) => *ended.borrow_mut() = Some(cause.to_string()),
            }
        });
        self.tell(|_| format!("host {} starts", place + 1));
    }

    /// A process dies, with the power or alone; another one starts after `down`.
    pub fn crash(&mut self, place: Place, power: bool, down: Duration) {
        if !self.slots[place].is_up {
            return;
        }
        self.tell(|_| format!("host {} {}", place + 1, if power { "loses power" } else { "is killed" }));
        self.network.fall(place);
        let slot = &mut self.slots[place];
        (slot.is_up, slot.stands_still) = (false, false);
        slot.listens.set(false);
        self.network.set_still(place, false);
        {
            let _on = slot.node.enter();
            darken();
            slot.host.borrow_mut().take();
        }
        if power {
            slot.node.cut_power();
        } else {
            slot.node.kill();
        }
        slot.ended.borrow_mut().take();
        if power {
            self.counts.power_cuts += 1;
        } else {
            self.counts.kills += 1;
        }
        self.lose_requests(place);
        self.after(down, Act::Start(place));
    }

    /// Small sizes, so that logs wrap, memtables are flushed and segments split within a few hundred writes.
    fn engine_config(&self) -> EngineConfig {
        let mut config = EngineConfig::new("/data");
        config.memory_budget_bytes = self.shape.memory_budget_bytes;
        config.wal_file_bytes = 256 << 10;
        config.window = Duration::from_secs(2);
        config
    }

    fn mix(&self, word: u64) {
        let mixed = self.trace.get() ^ word ^ self.now.as_nanos() as u64;
        self.trace.set(mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
    }

    pub fn tell(&self, what: impl FnOnce(&World) -> String) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!("{}", what(self));
        }
    }

    pub fn report(&self) -> Report {
        let nodes = self.slots.iter().fold(0, |trace: u64, slot| trace.rotate_left(7) ^ slot.node.trace());
        Report {
            messages: self.network.messages(),
            promotions: self.promotions.get(),
            splits: self.splits.get(),
            merges: self.merges.get(),
            conflicts: self.conflicts().len() as u64,
            disk_operations: self.slots.iter().map(|slot| slot.node.disk_operations()).sum(),
            virtual_ms: self.now.as_millis() as u64,
            trace: self.trace.get() ^ self.network.trace().rotate_left(1) ^ nodes,
            ..self.counts
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for slot in &self.slots {
            let _on = slot.node.enter();
            darken();
            slot.host.borrow_mut().take();
            slot.node.kill();
        }
    }
}

impl Slot {
    fn draw(random: &mut Rng, profile: &Profile, bug: Option<Bug>) -> Slot {
        let rate_ppm = random.i32(-profile.rate_ppm..=profile.rate_ppm);
        let ahead_ms = random.i64(-profile.wall_ms..=profile.wall_ms);
        Slot {
            node: Node::new(random.u64(..), rate_ppm, ahead_ms, bug),
            life: 0,
            is_up: false,
            stands_still: false,
            host: Rc::default(),
            listens: Rc::default(),
            reports: Arc::default(),
            ended: Rc::default(),
        }
    }
}

impl Options {
    /// Defects of the engine are planted in the machine.
    fn bug(&self) -> Option<Bug> {
        match self.mutant {
            Some(Mutant::MirrorUnsynced) => Some(Bug::MirrorUnsynced),
            Some(Mutant::DeltaFromNow) => Some(Bug::DeltaFromNow),
            Some(Mutant::ReshapeUnflushed) => Some(Bug::ReshapeUnflushed),
            _ => None,
        }
    }
}

fn draw_weather(random: &mut Rng) -> Weather {
    Weather {
        delay_us: [50, 300, 2_000][random.usize(0..3)],
        late_per_mille: [0, 5, 30][random.usize(0..3)],
        late_ms: random.u64(1..300),
        bulk_late_per_mille: [0, 20, 200][random.usize(0..3)],
        bulk_late_ms: random.u64(1..2_500),
        lost_answers_per_mille: [0, 10, 100][random.usize(0..3)],
        window: [1 << 10, 16 << 10, 256 << 10][random.usize(0..3)],
    }
}
