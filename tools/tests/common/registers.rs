//! Registers that are written and read through any node while processes die: versions only rise.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use redis::Commands;

const KEYS: u64 = 64;

/// What the registers are called and how they are used.
#[derive(Clone, Copy)]
pub struct Use<'a> {
    /// Before each name; with a hash tag, all are in one slot.
    pub prefix: &'a str,
    /// Threads; [`KEYS`] is a multiple of them.
    pub writers: u64,
    /// Time that each waits behind a write and a read.
    pub pause: Duration,
}

impl Default for Use<'_> {
    fn default() -> Self {
        Use { prefix: "key", writers: 4, pause: Duration::ZERO }
    }
}

/// One key's history. A write that was not answered may still take place later, whatever is written after it: so its
/// writer goes on with a fresh key, and each key has versions that only rise.
#[derive(Clone, Default)]
struct Register {
    name: String,
    issued: u64,
    /// Largest version that was acknowledged or read.
    floor: u64,
}

pub struct Registers {
    prefix: String,
    writers: u64,
    pause: Duration,
    current: Vec<Mutex<Register>>,
    retired: Mutex<Vec<Register>>,
    acked: AtomicU64,
    wrong: Mutex<Vec<String>>,
    /// Why requests failed, the first of them.
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Registers {
    pub fn new() -> Registers {
        Registers::used(Use::default())
    }

    pub fn used(how: Use<'_>) -> Registers {
        let register = |number| Register { name: format!("{}-{number}-0", how.prefix), ..Register::default() };
        Registers {
            prefix: how.prefix.into(),
            writers: how.writers,
            pause: how.pause,
            current: (0..KEYS).map(|number| Mutex::new(register(number))).collect(),
            retired: Mutex::default(),
            acked: AtomicU64::new(0),
            wrong: Mutex::default(),
            failed: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// Starts the writers; each has keys of its own, and reads any.
    pub fn start(self: &Arc<Registers>, nodes: Vec<SocketAddr>) -> Vec<JoinHandle<()>> {
        let writer = |writer| {
            let (registers, nodes) = (Arc::clone(self), nodes.clone());
            std::thread::spawn(move || load(&registers, nodes, writer))
        };
        (0..self.writers).map(writer).collect()
    }

    pub fn stop(&self, writers: Vec<JoinHandle<()>>) {
        self.stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }

    /// Writes that were acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Why requests failed, as far as they are kept.
    pub fn failures(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }

    fn note_failures(&self, client: &mut Client) {
        const KEPT: usize = 20;
        let mut failed = self.failed.lock().unwrap();
        failed.extend(client.failures.drain(..));
        failed.truncate(KEPT);
    }

    /// No read has gone back in time.
    pub fn check_reads(&self, place: &str) {
        let wrong = self.wrong.lock().unwrap().clone();
        assert!(wrong.is_empty(), "{place}: {wrong:?}");
    }

    /// Once the writers have stopped: `owner` has for each key a version that was acknowledged last, or tried later.
    pub fn check_at(&self, owner: SocketAddr) {
        let mut client = Client::new(vec![owner], 0);
        let current = self.current.iter().map(|register| register.lock().unwrap().clone());
        for register in current.chain(self.retired.lock().unwrap().iter().cloned()) {
            let found = client.call(|connection| connection.get::<_, Option<u64>>(&register.name));
            let found =
                found.unwrap_or_else(|| panic!("{owner} does not answer for {}: {:?}", register.name, client.failures));
            let found = found.unwrap_or(0);
            let possible = register.floor..=register.issued;
            assert!(possible.contains(&found), "{}: version {found}, {possible:?} may be there", register.name);
        }
        self.check_reads("in the end");
        assert!(self.acked() > 100, "the load was real: {} writes", self.acked());
    }

    fn begin_write(&self, number: u64) -> (String, u64) {
        let mut register = self.current[number as usize].lock().unwrap();
        register.issued += 1;
        (register.name.clone(), register.issued)
    }

    fn end_write(&self, number: u64, version: u64, acked: bool) {
        let mut register = self.current[number as usize].lock().unwrap();
        if acked {
            register.floor = register.floor.max(version);
            self.acked.fetch_add(1, Ordering::Relaxed);
        } else {
            let mut retired = self.retired.lock().unwrap();
            let name = format!("{}-{number}-{}", self.prefix, retired.len() + 1);
            let fresh = Register { name, ..Register::default() };
            retired.push(std::mem::replace(&mut register, fresh));
        }
    }

    fn begin_read(&self, number: u64) -> (String, u64) {
        let register = self.current[number as usize].lock().unwrap();
        (register.name.clone(), register.floor)
    }

    /// A read that began when at least `floor` was acknowledged or read has returned `found`.
    fn end_read(&self, number: u64, name: &str, floor: u64, found: u64) {
        if found < floor {
            self.wrong.lock().unwrap().push(format!("{name}: version {found} after version {floor}"));
        }
        let mut register = self.current[number as usize].lock().unwrap();
        if register.name == name {
            register.floor = register.floor.max(found);
        }
    }
}

/// Connects to one node after the other until one answers.
pub struct Client {
    nodes: Vec<SocketAddr>,
    next: usize,
    connection: Option<redis::Connection>,
    failures: Vec<String>,
}

impl Client {
    pub fn new(nodes: Vec<SocketAddr>, next: usize) -> Client {
        Client { nodes, next, connection: None, failures: Vec::new() }
    }

    pub fn call<T>(&mut self, work: impl Fn(&mut redis::Connection) -> redis::RedisResult<T>) -> Option<T> {
        if self.connection.is_none() {
            self.next += 1;
            let node = self.nodes[self.next % self.nodes.len()];
            let client = redis::Client::open(format!("redis://{node}")).unwrap();
            match client.get_connection_with_timeout(Duration::from_millis(500)) {
                Ok(connection) => self.connection = Some(connection),
                Err(cause) => self.failures.push(format!("connecting to {node}: {cause}")),
            }
        }
        let connection = self.connection.as_mut()?;
        let _ = connection.set_read_timeout(Some(Duration::from_secs(3)));
        match work(connection) {
            Ok(result) => Some(result),
            Err(cause) => {
                let node = self.nodes[self.next % self.nodes.len()];
                self.failures.push(format!("by {node}: {cause}"));
                self.connection = None;
                std::thread::sleep(Duration::from_millis(5));
                None
            }
        }
    }
}

/// Each writer has keys of its own, and reads any.
fn load(registers: &Registers, nodes: Vec<SocketAddr>, writer: u64) {
    let mut random = fastrand::Rng::with_seed(writer);
    let mut client = Client::new(nodes, writer as usize);
    while !registers.stop.load(Ordering::Relaxed) {
        let mine = random.u64(0..KEYS / registers.writers) * registers.writers + writer;
        let (name, version) = registers.begin_write(mine);
        let acked = client.call(|connection| connection.set::<_, _, ()>(&name, version)).is_some();
        registers.end_write(mine, version, acked);
        let any = random.u64(0..KEYS);
        let (name, floor) = registers.begin_read(any);
        if let Some(found) = client.call(|connection| connection.get::<_, Option<u64>>(&name)) {
            registers.end_read(any, &name, floor, found.unwrap_or(0));
        }
        registers.note_failures(&mut client);
        std::thread::sleep(registers.pause);
    }
}
