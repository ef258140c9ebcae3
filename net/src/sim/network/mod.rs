//! A network between simulated hosts, as QUIC makes it look from above: connections that live until one end has not heard
//! from the other for too long or is told that it is gone, streams that are ordered in themselves and overtake each other,
//! windows that make senders wait. What it may do: any delay, links cut one way or both, answers lost, connections lost.

mod pipe;
mod plane;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use antumbra_engine::types::HostId;
use fastrand::Rng;

use crate::transport::{Handler, IDLE_TIMEOUT, IDLE_TIMEOUT_BULK, Incoming, SchedulingClass, StreamKind};

use pipe::{Chunk, Pipe};

pub use pipe::{PipeReader, PipeWriter};
pub use plane::SimulatedPlane;

/// An end looks this often whether its peer is still there.
const KEEP_ALIVE_MS: std::ops::Range<u64> = 700..1_000;
/// A packet is sent again after this time.
const RESEND_MS: std::ops::Range<u64> = 20..200;

pub(super) type ConnectionId = u64;
pub(super) type PipeId = u64;
/// Number of a host in the simulation.
pub(super) type Place = usize;

/// How fast and how reliable it is; drawn once a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Usual delay of a packet, in microseconds.
    pub delay_us: u64,
    /// Packets in a thousand that take up to `late_ms`.
    pub late_per_mille: u32,
    pub late_ms: u64,
    /// The same for segments, which travel on threads that have to wait.
    pub bulk_late_per_mille: u32,
    pub bulk_late_ms: u64,
    /// Calls of the coordinator in a thousand whose answer is lost.
    pub lost_answers_per_mille: u32,
    /// Bytes that a stream may have under way.
    pub window: usize,
}

/// The network. Clones share it.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    now: Duration,
    random: Rng,
    weather: Weather,
    next_id: u64,
    /// Life of each host; odd while it is up.
    lives: Vec<u64>,
    /// Hosts that stand still: nothing is heard from them.
    still: Vec<bool>,
    listeners: BTreeMap<SocketAddr, Listener>,
    /// Directed links that carry nothing.
    cut: BTreeSet<(Place, Place)>,
    connections: BTreeMap<ConnectionId, Connection>,
    pipes: BTreeMap<PipeId, Pipe>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    trace: u64,
    messages: u64,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("now", &self.now).finish_non_exhaustive()
    }
}

struct Listener {
    place: Place,
    handler: Handler,
}

/// One end of a connection.
#[derive(Clone, Debug)]
struct End {
    place: Place,
    life: u64,
    heard: Duration,
    closed: Option<String>,
}

#[derive(Clone, Debug)]
struct Connection {
    class: SchedulingClass,
    /// Where the handler of the second end is found.
    to: SocketAddr,
    /// The opener first.
    ends: [End; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next piece of a stream is there.
    Arrive(PipeId),
    /// The receiver of a stream wants no more of it.
    Stop(PipeId),
    /// An end looks after its peer.
    KeepAlive(ConnectionId, usize),
    /// An end is told by a packet that its peer is gone.
    Reset(ConnectionId, usize),
}

/// A stream that a host has to be told of.
pub(super) struct Arrival {
    pub place: Place,
    pub handler: Handler,
    pub incoming: Incoming,
}

impl Network {
    pub(super) fn new(seed: u64, hosts: usize, weather: Weather) -> Network {
        let inner = Inner {
            now: Duration::ZERO,
            random: Rng::with_seed(seed),
            weather,
            next_id: 1,
            lives: vec![0; hosts],
            still: vec![false; hosts],
            listeners: BTreeMap::new(),
            cut: BTreeSet::new(),
            connections: BTreeMap::new(),
            pipes: BTreeMap::new(),
            events: BinaryHeap::new(),
            trace: seed,
            messages: 0,
        };
        Network { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host begins a new life.
    pub(super) fn rise(&self, place: Place) {
        self.lock().lives[place] += 1;
    }

    /// A host is dead: nothing of it is on its way any more but what has been sent already.
    pub(super) fn fall(&self, place: Place) {
        let mut inner = self.lock();
        inner.lives[place] += 1;
        inner.listeners.retain(|_, listener| listener.place != place);
    }

    /// A host stands still, or goes on.
    pub(super) fn set_still(&self, place: Place, still: bool) {
        self.lock().still[place] = still;
    }

    /// Cuts or mends a link, in one direction.
    pub(super) fn set_cut(&self, from: Place, to: Place, cut: bool) {
        let mut inner = self.lock();
        if cut {
            inner.cut.insert((from, to));
        } else {
            inner.cut.remove(&(from, to));
        }
    }

    /// Every link carries again.
    pub(super) fn mend(&self) {
        let mut inner = self.lock();
        inner.cut.clear();
        inner.weather.lost_answers_per_mille = 0;
    }

    /// Loses every connection of a host, or only those of its control plane.
    pub(super) fn lose_connections_of(&self, place: Place, control_alone: bool) {
        let mut inner = self.lock();
        let wanted = |one: &Connection| {
            one.ends.iter().any(|end| end.place == place) && !(control_alone && one.class == SchedulingClass::Idle)
        };
        let of = inner.connections.iter().filter(|(_, one)| wanted(one));
        let of: Vec<ConnectionId> = of.map(|(id, _)| *id).collect();
        for (id, end) in of.into_iter().flat_map(|id| [(id, 0), (id, 1)]) {
            let due = inner.now + inner.delay(SchedulingClass::Normal);
            inner.schedule(due, Event::Reset(id, end));
        }
    }

    /// Loses a connection, if there is one: both ends are told, one after the other.
    pub(super) fn lose_connection(&self) -> bool {
        let mut inner = self.lock();
        let open: Vec<ConnectionId> = inner.connections.keys().copied().collect();
        if open.is_empty() {
            return false;
        }
        let chosen = open[inner.random.usize(0..open.len())];
        for end in 0..2 {
            let due = inner.now + inner.delay(SchedulingClass::Normal);
            inner.schedule(due, Event::Reset(chosen, end));
        }
        true
    }

    /// When something happens next.
    pub(super) fn due(&self) -> Option<Duration> {
        self.lock().events.peek().map(|Reverse((due, ..))| *due)
    }

    /// True time goes on.
    pub(super) fn advance(&self, now: Duration) {
        let mut inner = self.lock();
        inner.now = inner.now.max(now);
    }

    /// Lets the next event happen; what comes out is a stream that its host has to take.
    pub(super) fn step(&self) -> Option<Arrival> {
        let mut inner = self.lock();
        let Reverse((due, number, event)) = inner.events.pop()?;
        inner.now = inner.now.max(due);
        let mixed = inner.trace ^ number ^ due.as_nanos() as u64;
        inner.trace = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        match event {
            Event::Arrive(pipe) => inner.arrive(pipe, self),
            Event::Stop(pipe) => {
                inner.stop(pipe);
                None
            }
            Event::KeepAlive(connection, end) => {
                inner.keep_alive(connection, end);
                None
            }
            Event::Reset(connection, end) => {
                inner.close(connection, end, "reset by the peer");
                None
            }
        }
    }

    pub(super) fn trace(&self) -> u64 {
        self.lock().trace
    }

    pub(super) fn messages(&self) -> u64 {
        self.lock().messages
    }
}

impl Inner {
    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn schedule(&mut self, due: Duration, event: Event) {
        let number = self.fresh_id();
        self.events.push(Reverse((due, number, event)));
    }

    fn delay(&mut self, class: SchedulingClass) -> Duration {
        let weather = self.weather;
        let (per_mille, late_ms) = match class {
            SchedulingClass::Normal => (weather.late_per_mille, weather.late_ms),
            SchedulingClass::Idle => (weather.bulk_late_per_mille, weather.bulk_late_ms),
        };
        let late = self.random.u32(0..1_000) < per_mille;
        let us =
            if late { self.random.u64(0..late_ms.max(1) * 1_000) } else { self.random.u64(1..weather.delay_us * 2) };
        Duration::from_micros(us)
    }

    fn carries(&self, from: Place, to: Place) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Whether the process that an end belongs to is still the same.
    fn is_alive(&self, end: &End) -> bool {
        self.lives[end.place] == end.life
    }

    fn is_up(&self, place: Place) -> bool {
        self.lives[place] % 2 == 1
    }

    fn keep_alive(&mut self, id: ConnectionId, index: usize) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (own, peer) = (connection.ends[index].clone(), connection.ends[1 - index].clone());
        let class = connection.class;
        if !self.is_alive(&own) || own.closed.is_some() {
            self.forget_if_over(id);
            return;
        }
        let there = self.carries(own.place, peer.place);
        let back = self.carries(peer.place, own.place);
        let peer_holds_it = self.is_alive(&peer) && peer.closed.is_none();
        let (now, mut heard) = (self.now, own.heard);
        let peer_moves = !self.still[peer.place];
        if self.still[own.place] {
            let due = now + Duration::from_millis(self.random.u64(KEEP_ALIVE_MS));
            return self.schedule(due, Event::KeepAlive(id, index));
        }
        if back && peer_holds_it && peer_moves {
            heard = now;
        } else if there && back && peer_moves && self.is_up(peer.place) {
            return self.close(id, index, "reset by the peer");
        }
        let idle = match class {
            SchedulingClass::Normal => IDLE_TIMEOUT,
            SchedulingClass::Idle => IDLE_TIMEOUT_BULK,
        };
        if now - heard > idle {
            return self.close(id, index, "timed out");
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.ends[index].heard = heard;
        }
        let due = now + Duration::from_millis(self.random.u64(KEEP_ALIVE_MS));
        self.schedule(due, Event::KeepAlive(id, index));
    }

    fn close(&mut self, id: ConnectionId, index: usize, why: &str) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.ends[index].closed.is_some() {
            return;
        }
        connection.ends[index].closed = Some(why.into());
        for pipe in self.pipes.values_mut().filter(|pipe| pipe.connection == id) {
            pipe.wake();
        }
        self.forget_if_over(id);
    }

    /// A connection that both ends have given up needs no looking after.
    fn forget_if_over(&mut self, id: ConnectionId) {
        let over = self
            .connections
            .get(&id)
            .is_some_and(|connection| connection.ends.iter().all(|end| end.closed.is_some() || !self.is_alive(end)));
        if over {
            self.connections.remove(&id);
            for pipe in self.pipes.values_mut().filter(|pipe| pipe.connection == id) {
                pipe.wake();
            }
            self.pipes.retain(|_, pipe| pipe.connection != id || pipe.is_held());
        }
    }

    /// The reason for which an end carries nothing.
    fn closed(&self, id: ConnectionId, index: usize) -> Option<String> {
        match self.connections.get(&id) {
            Some(connection) => connection.ends[index].closed.clone(),
            None => Some("closed".into()),
        }
    }

    fn arrive(&mut self, id: PipeId, network: &Network) -> Option<Arrival> {
        let pipe = self.pipes.get(&id)?;
        let Some(connection) = self.connections.get(&pipe.connection) else {
            self.pipes.remove(&id);
            return None;
        };
        let (connection_id, sender) = (pipe.connection, pipe.sender);
        let (from, to) = (connection.ends[sender].clone(), connection.ends[1 - sender].clone());
        let class = connection.class;
        let address = connection.to;
        let reachable = self.carries(from.place, to.place);
        if !reachable || !self.is_alive(&to) || to.closed.is_some() {
            // What is lost is sent again, as long as the sender believes in the connection.
            let sends = (self.is_alive(&from) && from.closed.is_none()) || reachable;
            if reachable && self.carries(to.place, from.place) && self.is_up(to.place) {
                let due = self.now + self.delay(class);
                self.schedule(due, Event::Reset(connection_id, sender));
            } else if sends && self.is_alive(&to) && to.closed.is_none() {
                let due = self.now + Duration::from_millis(self.random.u64(RESEND_MS));
                self.schedule(due, Event::Arrive(id));
            } else if let Some(pipe) = self.pipes.get_mut(&id) {
                pipe.on_way.clear();
            }
            return None;
        }
        self.messages += 1;
        let now = self.now;
        let pipe = self.pipes.get_mut(&id)?;
        let (_, chunk) = pipe.on_way.pop_front()?;
        let next = pipe.on_way.front().map(|(due, _)| *due);
        let opened = match chunk {
            Chunk::Open { kind, back } => Some((kind, back)),
            Chunk::Bytes(bytes) => {
                pipe.take_in(&bytes);
                None
            }
            Chunk::End => {
                pipe.ended = true;
                pipe.wake();
                None
            }
            Chunk::Lost => {
                pipe.lost = true;
                pipe.wake();
                None
            }
        };
        if let Some(due) = next {
            self.schedule(due.max(now), Event::Arrive(id));
        }
        let (kind, back) = opened?;
        let listener = self.listeners.get(&address).filter(|listener| listener.place == to.place)?;
        let handler = Arc::clone(&listener.handler);
        let recv = PipeReader::new(network, id);
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.reader_held = true;
        }
        let send = back.map(|back| {
            if let Some(pipe) = self.pipes.get_mut(&back) {
                pipe.writer_held = true;
            }
            PipeWriter::new(network, back)
        });
        let peer = HostId(from.place as u32 + 1);
        let incoming = Incoming {
            peer,
            kind,
            send: send.map(crate::transport::SendStream::Simulated),
            recv: crate::transport::RecvStream::Simulated(recv),
        };
        Some(Arrival { place: to.place, handler, incoming })
    }

    fn stop(&mut self, id: PipeId) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.stopped = true;
            pipe.on_way.clear();
            pipe.wake();
            if !pipe.is_held() {
                self.pipes.remove(&id);
            }
        }
    }

    fn open_pipe(&mut self, connection: ConnectionId, sender: usize) -> PipeId {
        let id = self.fresh_id();
        let window = self.weather.window;
        self.pipes.insert(id, Pipe::new(connection, sender, window));
        id
    }

    /// Puts a piece on its way, behind those of the same stream that are on it already.
    fn send(&mut self, id: PipeId, chunk: Chunk) {
        let Some(connection) = self.pipes.get(&id).map(|pipe| pipe.connection) else {
            return;
        };
        let Some(class) = self.connections.get(&connection).map(|connection| connection.class) else {
            return;
        };
        let due = self.now + self.delay(class);
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        let due = pipe.on_way.back().map_or(due, |(last, _)| due.max(*last));
        pipe.on_way.push_back((due, chunk));
        if pipe.on_way.len() == 1 {
            self.schedule(due, Event::Arrive(id));
        }
    }

    fn loses_answer(&mut self, kind: StreamKind) -> bool {
        kind == StreamKind::Coordinator && self.random.u32(0..1_000) < self.weather.lost_answers_per_mille
    }
}
