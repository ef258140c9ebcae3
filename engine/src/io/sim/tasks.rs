//! Tasks and timers of a simulated machine: one thread, the next task drawn by the seed, time that jumps to the next
//! timer when nothing can run.

use std::cell::{Cell, RefCell};
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::disk::{FlightId, HandleId};

type TaskId = u64;

/// Tasks that can run, in the order in which they were woken. A waker may go anywhere, hence the lock.
#[derive(Debug, Default)]
struct Ready(Mutex<Vec<TaskId>>);

#[derive(Debug)]
struct TaskWaker {
    task: TaskId,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<TaskWaker>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<TaskWaker>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
        }
    }
}

struct Task {
    /// Away while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    handle: Arc<TaskWaker>,
    waker: Waker,
}

/// What happens at a moment.
#[derive(Debug)]
pub(super) enum Alarm {
    Wake(Waker),
    /// A write reaches the device, whoever still waits for it.
    Land(FlightId),
    Close(HandleId),
}

struct Timer {
    due_ns: u64,
    /// Breaks ties in the order of setting.
    number: u64,
    alarm: Alarm,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        (self.due_ns, self.number) == (other.due_ns, other.number)
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        // The heap's largest is the earliest.
        (other.due_ns, other.number).cmp(&(self.due_ns, self.number))
    }
}

#[derive(Default)]
pub(super) struct Scheduler {
    ready: Arc<Ready>,
    tasks: RefCell<std::collections::BTreeMap<TaskId, Task>>,
    timers: RefCell<BinaryHeap<Timer>>,
    next_id: Cell<u64>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("tasks", &self.tasks.borrow().len()).finish_non_exhaustive()
    }
}

impl Scheduler {
    fn fresh_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    pub fn spawn<T: 'static>(self: &Rc<Scheduler>, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let state: Rc<RefCell<Joined<T>>> = Rc::new(RefCell::new(Joined { result: None, waiting: None }));
        let done = Rc::clone(&state);
        let task = self.fresh_id();
        let handle = Arc::new(TaskWaker { task, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
        let waker = Waker::from(Arc::clone(&handle));
        waker.wake_by_ref();
        let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let result = future.await;
            let mut joined = done.borrow_mut();
            joined.result = Some(result);
            if let Some(waker) = joined.waiting.take() {
                waker.wake();
            }
        });
        self.tasks.borrow_mut().insert(task, Task { future: Some(future), handle, waker });
        JoinHandle { state, task, scheduler: Rc::downgrade(self), detached: false }
    }

    pub fn set(&self, due_ns: u64, alarm: Alarm) {
        let number = self.fresh_id();
        self.timers.borrow_mut().push(Timer { due_ns, number, alarm });
    }

    /// Whether a task can run.
    pub fn is_ready(&self) -> bool {
        !self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// When the next timer is due.
    pub fn next_due(&self) -> Option<u64> {
        self.timers.borrow().peek().map(|timer| timer.due_ns)
    }

    /// Takes the next timer if it is due by `now_ns`.
    pub fn take_due(&self, now_ns: u64) -> Option<(u64, Alarm)> {
        let mut timers = self.timers.borrow_mut();
        if timers.peek().is_none_or(|timer| timer.due_ns > now_ns) {
            return None;
        }
        timers.pop().map(|timer| (timer.due_ns, timer.alarm))
    }

    /// Lets one task run, chosen by `choose` among the number of tasks that can; false if none can.
    pub fn run_one(&self, choose: impl FnOnce(usize) -> usize) -> bool {
        let task = {
            let mut ready = self.ready.0.lock().unwrap_or_else(PoisonError::into_inner);
            if ready.is_empty() {
                return false;
            }
            let index = choose(ready.len());
            ready.swap_remove(index)
        };
        let taken = self.tasks.borrow_mut().get_mut(&task).and_then(|task| {
            task.handle.queued.store(false, Ordering::Relaxed);
            Some((task.future.take()?, task.waker.clone()))
        });
        let Some((mut future, waker)) = taken else {
            return true;
        };
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut tasks = self.tasks.borrow_mut();
        match polled {
            Poll::Ready(()) => drop(tasks.remove(&task)),
            Poll::Pending => {
                if let Some(task) = tasks.get_mut(&task) {
                    task.future = Some(future);
                    return true;
                }
            }
        }
        drop(tasks);
        // Ended or cancelled by itself: dropped only now, since its destructors may come back here.
        drop(future);
        true
    }

    fn cancel(&self, task: TaskId) {
        let task = self.tasks.borrow_mut().remove(&task);
        drop(task);
    }

    /// Ends every task; timers of the device stay.
    pub fn clear(&self) {
        loop {
            let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let timers = std::mem::take(&mut *self.timers.borrow_mut());
        let device = timers.into_iter().filter(|timer| matches!(timer.alarm, Alarm::Land(_)));
        let device: BinaryHeap<Timer> = device.collect();
        *self.timers.borrow_mut() = device;
    }

    /// Forgets every timer.
    pub fn clear_timers(&self) {
        let timers = std::mem::take(&mut *self.timers.borrow_mut());
        drop(timers);
    }
}

struct Joined<T> {
    result: Option<T>,
    waiting: Option<Waker>,
}

/// Waits for a task; dropped, it cancels it.
pub(crate) struct JoinHandle<T> {
    state: Rc<RefCell<Joined<T>>>,
    task: TaskId,
    scheduler: Weak<Scheduler>,
    detached: bool,
}

impl<T> JoinHandle<T> {
    /// Lets the task go on without anybody waiting for it.
    pub fn detach(mut self) {
        self.detached = true;
    }

    /// The task's result if it has ended.
    pub fn take(&self) -> Option<T> {
        self.state.borrow_mut().result.take()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.state.borrow_mut();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waiting = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if !self.detached
            && let Some(scheduler) = self.scheduler.upgrade()
        {
            scheduler.cancel(self.task);
        }
    }
}
