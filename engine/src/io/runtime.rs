//! Executors: one glommio executor per shard, on a thread of its own.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use glommio::timer::Timer;
use glommio::{ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, Shares, SharesManager, TaskQueueHandle};

use crate::error::{Error, Result};

pub use super::callers::watch;

use super::callers;
use super::watchdog::Beat;

/// Memory that an executor registers with its ring; small, since it counts against `ulimit -l`.
const IO_MEMORY_BYTES: usize = 1 << 20;
/// Preemption timer until the queues set theirs. Long: an executor whose timer expires before it has run its first task
/// sleeps for good (see [`KeepAwake`]), and nothing is there yet to wake it.
const START_PREEMPT: Duration = Duration::from_millis(100);

/// How an executor is set up.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeOptions {
    pub name: String,
    pub cpu: Option<usize>,
    pub spin: Duration,
    pub preempt: Duration,
}

/// A running executor.
pub(crate) struct RuntimeHandle<T: Send + 'static> {
    handle: ExecutorJoinHandle<T>,
}

impl<T: Send + 'static> RuntimeHandle<T> {
    /// Waits for the executor to end.
    pub fn join(self) -> Result<T> {
        self.handle.join().map_err(|cause| Error::Environment { what: format!("a shard's thread died: {cause}") })
    }
}

/// Starts an executor on its own thread and runs what `start` returns on it.
///
/// Errors: [`Error::Environment`] when the thread or its rings cannot be had. Call [`super::probe`] first.
pub(crate) fn spawn<F, T>(
    options: RuntimeOptions,
    start: impl FnOnce() -> F + Send + 'static,
) -> Result<RuntimeHandle<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let placement = options.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let mut builder = LocalExecutorBuilder::new(placement)
        .name(&options.name)
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(START_PREEMPT);
    // Spinning pays only where nobody else wants the core.
    if options.cpu.is_some() && !options.spin.is_zero() {
        builder = builder.spin_before_park(options.spin);
    }
    let spawned = builder.spawn(move || {
        let beat = Beat::start(NAP_MIN);
        async move {
            // Requests run in a queue of their own, so that background work gets what they leave.
            let latency = Latency::Matters(options.preempt);
            let foreground = glommio::executor().create_task_queue(Shares::Static(WEIGHT), latency, "foreground");
            match glommio::spawn_local_into(start(), foreground) {
                Ok(task) => KeepAwake::new(task, beat).await,
                Err(cause) => unreachable!("a queue that was just created: {cause}"),
            }
        }
    });
    let handle =
        spawned.map_err(|cause| Error::Environment { what: format!("cannot start {}: {cause}", options.name) })?;
    Ok(RuntimeHandle { handle })
}

/// Shortest and longest time that an executor sleeps without looking for work.
const NAP_MIN: Duration = Duration::from_millis(1);
const NAP_MAX: Duration = Duration::from_millis(50);

/// Bounds what a defect of glommio costs: an executor whose preemption timer expires before it has run anything (its
/// thread was displaced at the wrong moment) goes to sleep with work to do, and sleeps until the next event from
/// outside, however long that takes. Its main future, which this is, is polled before every sleep: it keeps a timer
/// armed that ends the sleep soon while the executor is busy, and seldom while it is idle. See also [`super::watchdog`].
struct KeepAwake<T> {
    task: glommio::Task<T>,
    timer: Timer,
    nap: Duration,
    tasks_executed: u64,
    beat: Arc<Beat>,
}

impl<T> KeepAwake<T> {
    fn new(task: glommio::Task<T>, beat: Arc<Beat>) -> KeepAwake<T> {
        KeepAwake { task, timer: Timer::new(NAP_MIN), nap: NAP_MIN, tasks_executed: 0, beat }
    }
}

impl<T> Future for KeepAwake<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if let Poll::Ready(result) = Pin::new(&mut self.task).poll(context) {
            return Poll::Ready(result);
        }
        let executed = glommio::executor().executor_stats().tasks_executed();
        if executed != self.tasks_executed {
            self.tasks_executed = executed;
            if self.nap > NAP_MIN {
                self.nap = NAP_MIN;
                self.timer = Timer::new(NAP_MIN);
                self.beat.expect_within(NAP_MIN);
            }
        }
        while Pin::new(&mut self.timer).poll(context).is_ready() {
            self.nap = (self.nap * 2).min(NAP_MAX);
            self.timer = Timer::new(self.nap);
            self.beat.expect_within(self.nap);
        }
        Poll::Pending
    }
}

/// Starts a task in the caller's queue that nobody waits for.
pub fn spawn_detached(task: impl Future<Output = ()> + 'static) {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.spawn(task).detach();
    }
    glommio::spawn_local(task).detach();
}

/// Tasks that get what requests leave: flush and compaction, which get more of the core the sooner the host's own writes have to
/// wait for them, and what others ask for (copies, digests, scrubs).
#[derive(Clone, Debug)]
pub(crate) struct Background {
    /// Absent on a simulated machine, whose scheduler knows no classes: any order of tasks may happen.
    queues: Option<Rc<Queues>>,
    weight: Rc<Weight>,
}

#[derive(Debug)]
struct Queues {
    own: TaskQueueHandle,
    for_others: TaskQueueHandle,
}

/// What requests weigh.
const WEIGHT: usize = 1000;
/// What background work weighs: what it gets of a busy core when nobody has to wait for it, and when everybody has.
const BACKGROUND_WEIGHT: std::ops::RangeInclusive<usize> = 100..=2 * WEIGHT;

/// The weight of background work beside that of requests.
#[derive(Debug)]
struct Weight(Cell<usize>);

impl SharesManager for Weight {
    fn shares(&self) -> usize {
        self.0.get()
    }

    fn adjustment_period(&self) -> Duration {
        Duration::from_millis(1)
    }
}

impl Background {
    /// Two queues whose tasks let the thread look at its rings every `preempt` at the latest.
    pub fn new(preempt: Duration) -> Background {
        let weight = Rc::new(Weight(Cell::new(*BACKGROUND_WEIGHT.start())));
        #[cfg(any(test, feature = "sim"))]
        if super::sim::current().is_some() {
            return Background { queues: None, weight };
        }
        let executor = glommio::executor();
        let own = Shares::Dynamic(Rc::<Weight>::clone(&weight));
        let queues = Queues {
            own: executor.create_task_queue(own, Latency::Matters(preempt), "background"),
            for_others: executor.create_task_queue(
                Shares::Static(*BACKGROUND_WEIGHT.start()),
                Latency::Matters(preempt),
                "for others",
            ),
        };
        Background { queues: Some(Rc::new(queues)), weight }
    }

    /// Gives background work more of the core the sooner requests will have to wait for it: at an `urgency` of 0 the least,
    /// at 1 as much as requests have, and still more above.
    pub fn set_urgency(&self, urgency: f64) {
        let (least, most) = (*BACKGROUND_WEIGHT.start(), *BACKGROUND_WEIGHT.end());
        let weight = least + ((WEIGHT - least) as f64 * urgency.max(0.0)) as usize;
        self.weight.0.set(weight.min(most));
    }

    /// Runs what others ask for and returns its result.
    /// Cancel: the task ends where it stands.
    pub async fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        #[cfg(any(test, feature = "sim"))]
        if let Some(machine) = super::sim::current() {
            return machine.spawn(task).await;
        }
        self.spawn(task, |queues| queues.for_others).await
    }

    /// Starts a task of this host's own that nobody waits for.
    pub fn spawn_detached(&self, task: impl Future<Output = ()> + 'static) {
        #[cfg(any(test, feature = "sim"))]
        if let Some(machine) = super::sim::current() {
            return machine.spawn(task).detach();
        }
        drop(self.spawn(task, |queues| queues.own).detach());
    }

    fn spawn<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
        queue: impl Fn(&Queues) -> TaskQueueHandle,
    ) -> glommio::Task<T> {
        let task = Sliced { task: Box::pin(task) };
        let queue = self.queues.as_ref().map(|queues| glommio::spawn_local_into(task, queue(queues)));
        match queue {
            Some(Ok(task)) => task,
            Some(Err(cause)) => unreachable!("the background queues live as long as their executor: {cause}"),
            None => unreachable!("only a simulated machine has no queue"),
        }
    }
}

/// How long background work keeps the core at a time: a request that comes meanwhile waits for it.
const BACKGROUND_SLICE: Duration = Duration::from_micros(40);

thread_local! {
    /// When the background task that runs now has to let others run.
    static SLICE_END: Cell<Option<Instant>> = const { Cell::new(None) };
    static BACKGROUND_TURNS: Cell<u64> = const { Cell::new(0) };
}

/// A background task, whose turns are short: see [`yield_now`].
struct Sliced<T> {
    task: Pin<Box<dyn Future<Output = T>>>,
}

impl<T> Future for Sliced<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        SLICE_END.set(Some(Instant::now() + BACKGROUND_SLICE));
        BACKGROUND_TURNS.set(BACKGROUND_TURNS.get() + 1);
        let polled = self.task.as_mut().poll(context);
        SLICE_END.set(None);
        super::ring::take_up();
        polled
    }
}

/// Whether this is a simulated machine.
pub(crate) fn is_simulated() -> bool {
    #[cfg(any(test, feature = "sim"))]
    return super::sim::current().is_some();
    #[cfg(not(any(test, feature = "sim")))]
    false
}

/// Whether a background task runs now.
pub(super) fn is_in_background() -> bool {
    SLICE_END.get().is_some()
}

/// How often background tasks have run on this thread.
pub(super) fn background_turns() -> u64 {
    BACKGROUND_TURNS.get()
}

/// Lets other tasks of the executor run if this one has used up its time.
pub async fn yield_now() {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.yield_now().await;
    }
    super::ring::hurry();
    match SLICE_END.get() {
        // The preemption timer alone would give background work as long a turn as requests.
        Some(end) if Instant::now() >= end => {
            if callers::are_waiting() {
                callers::serve().await;
            } else {
                glommio::executor().yield_task_queue_now().await;
            }
        }
        _ => glommio::yield_if_needed().await,
    }
}

/// Waits.
pub async fn sleep(duration: Duration) {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.sleep(duration).await;
    }
    glommio::timer::sleep(duration).await;
}

/// Runs blocking code on a thread of its own.
pub(crate) async fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[cfg(any(test, feature = "sim"))]
    if let Some(machine) = super::sim::current() {
        return machine.unblock(work).await;
    }
    glommio::executor().spawn_blocking(work).await
}
