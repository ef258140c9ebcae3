//! A simulated machine among others: what a simulation of several hosts drives. Each has a disk, a scheduler and clocks of
//! its own; whoever drives them keeps the true time and says whose turn it is.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::error::Result;
use crate::io::sim::{Entered, Machine, current};
use crate::partition::Serving;
use crate::shard::Shard;
use crate::types::{KeyRange, PartitionId};

use super::Bug;

const MILLION: u128 = 1_000_000;

/// One machine. Its monotonic clock may run too fast or too slow, its wall clock may be wrong.
#[derive(Debug)]
pub struct Node {
    machine: Rc<Machine>,
    /// Parts in a million of the clock's rate.
    rate: u128,
    /// Shards of the present life, to be taken apart with it: they hold themselves.
    shards: Rc<RefCell<Vec<Rc<Shard>>>>,
}

/// While it lives, the thread is on the node.
#[derive(Debug)]
pub struct OnNode {
    _entered: Entered,
}

impl Node {
    /// A machine with an empty disk, whose clock gains `rate_ppm` parts in a million and whose wall clock shows
    /// `wall_ahead_ms` too much.
    #[must_use]
    pub fn new(seed: u64, rate_ppm: i32, wall_ahead_ms: i64, bug: Option<Bug>) -> Node {
        let machine = Machine::new(seed, bug);
        machine.set_wall_ahead_ms(wall_ahead_ms);
        let rate = MILLION.saturating_add_signed(i128::from(rate_ppm));
        Node { machine, rate, shards: Rc::default() }
    }

    /// Puts this thread on the node.
    #[must_use]
    pub fn enter(&self) -> OnNode {
        OnNode { _entered: self.machine.enter() }
    }

    /// The true time at which something happens here next; `None` if only a message can bring it about.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let local_ns = u128::from(self.machine.next_step_ns()?);
        // Rounded up, so that the local clock has got there by then.
        let due_ns = (local_ns * MILLION).div_ceil(self.rate);
        Some(Duration::from_nanos(due_ns as u64))
    }

    /// Lets time pass up to the true time `now`, then one task run.
    pub fn turn(&self, now: Duration) {
        let _entered = self.machine.enter();
        self.machine.step_at((now.as_nanos() * self.rate / MILLION) as u64);
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.machine.spawn(task).detach();
    }

    /// Opens the engine in `config.dir`. To be awaited by a task of this node.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_engine(&self, config: EngineConfig) -> impl Future<Output = Result<Engine>> + use<> {
        let shards = Rc::clone(&self.shards);
        async move {
            let (engine, opened) = Engine::open_simulated(config, super::model()).await?;
            shards.borrow_mut().extend(opened);
            Ok(engine)
        }
    }

    /// How a partition of the present life is served; `None` if it is not here.
    #[must_use]
    pub fn serving(&self, partition: PartitionId) -> Option<Serving> {
        self.shards.borrow().iter().find_map(|shard| Some(shard.partition(partition).ok()?.serving()))
    }

    /// The keys of a partition of the present life; `None` if it is not here.
    #[must_use]
    pub fn range(&self, partition: PartitionId) -> Option<KeyRange> {
        self.shards.borrow().iter().find_map(|shard| Some(shard.partition(partition).ok()?.range().clone()))
    }

    /// How much longer than usual the disk takes, in multiples.
    pub fn set_disk_slower(&self, times: u32) {
        self.machine.faults.borrow_mut().slower = times;
    }

    /// The process dies; what it has written to files stays, and what it had sent to the device still lands.
    pub fn kill(&self) {
        let _entered = self.machine.enter();
        self.machine.kill();
        self.abandon();
    }

    /// The power goes, and comes back: the disk keeps what is durable, and of the rest what chance decides.
    pub fn cut_power(&self) {
        let _entered = self.machine.enter();
        self.machine.power_up();
        self.abandon();
    }

    fn abandon(&self) {
        let shards = std::mem::take(&mut *self.shards.borrow_mut());
        shards.iter().for_each(|shard| shard.abandon());
    }

    /// Whether the process died in the middle of something ([`darken`]) and waits for its end.
    #[must_use]
    pub fn is_dark(&self) -> bool {
        self.machine.is_dark()
    }

    /// Hash over every step of the disk so far.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.machine.trace()
    }

    /// Disk operations so far.
    #[must_use]
    pub fn disk_operations(&self) -> u64 {
        self.machine.operations()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The monotonic clock of the node that this thread is on; `None` on a real machine.
#[must_use]
pub fn now() -> Option<Duration> {
    current().map(|machine| machine.now())
}

/// The wall clock of the node that this thread is on, in milliseconds since the Unix epoch; `None` on a real machine.
#[must_use]
pub fn wall_ms() -> Option<u64> {
    current().map(|machine| machine.wall_ms())
}

/// Starts a task on the node that this thread is on.
///
/// # Panics
/// On a real machine.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    match current() {
        Some(machine) => machine.spawn(task).detach(),
        None => unreachable!("only a simulated host starts tasks here"),
    }
}

/// Has the process on this node die here and now. The caller goes on to its next await, and whatever it does means nothing
/// to anybody; the driver of the simulation ends it.
pub fn darken() {
    if let Some(machine) = current() {
        machine.darken();
    }
}

/// Whether the process on this node is dead already.
#[must_use]
pub fn is_dark() -> bool {
    current().is_some_and(|machine| machine.is_dark())
}

/// Waits on the clock of the node that polls it. Goes from thread to thread, as the futures of other runtimes do.
#[derive(Debug)]
pub struct Sleep {
    due: Duration,
    /// Whom the timer wakes that is set.
    armed: Option<Waker>,
}

impl Sleep {
    /// Waits for `duration`; `None` on a real machine.
    #[must_use]
    pub fn new(duration: Duration) -> Option<Sleep> {
        Some(Sleep { due: now()? + duration, armed: None })
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match current() {
            Some(machine) if machine.now() < self.due => {
                if self.armed.as_ref().is_none_or(|armed| !armed.will_wake(context.waker())) {
                    self.armed = Some(context.waker().clone());
                    machine.wake_at(self.due, context.waker().clone());
                }
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}
