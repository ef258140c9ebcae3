//! Wake-ups between tasks of one shard: no threads, no locks, no lost wake-up.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Tasks that wait for a condition which other tasks of the same executor change.
#[derive(Debug, Default)]
pub(crate) struct Event {
    wakers: RefCell<Vec<Waker>>,
}

impl Event {
    /// Lets every waiting task look at its condition again.
    pub fn notify_all(&self) {
        // Taken out while they are woken, since a woken task may come back at once; the memory is used again.
        let mut woken = self.wakers.take();
        if woken.is_empty() {
            return;
        }
        woken.drain(..).for_each(Waker::wake);
        let mut wakers = self.wakers.borrow_mut();
        if wakers.is_empty() {
            *wakers = woken;
        }
    }

    /// Waits until `ready` gives a value; it is called at once and after each [`Event::notify_all`].
    /// Cancel: leaves nothing behind but a spurious wake-up.
    pub async fn wait_for<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match ready() {
            Some(value) => Poll::Ready(value),
            None => {
                self.wakers.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// Mutual exclusion between tasks of one shard whose critical sections await.
#[derive(Debug, Default)]
pub(crate) struct TaskLock {
    held: std::cell::Cell<bool>,
    released: Event,
}

impl TaskLock {
    /// Waits for the lock; it is released when the guard is dropped.
    pub async fn lock(&self) -> TaskGuard<'_> {
        self.released
            .wait_for(|| {
                if self.held.get() {
                    return None;
                }
                self.held.set(true);
                Some(())
            })
            .await;
        TaskGuard { lock: self }
    }

    /// The lock, if nobody holds it.
    pub fn try_lock(&self) -> Option<TaskGuard<'_>> {
        // Not `then_some`: a guard that is made and dropped would release what somebody else holds.
        (!self.held.replace(true)).then(|| TaskGuard { lock: self })
    }
}

/// Holds a [`TaskLock`].
#[derive(Debug)]
pub(crate) struct TaskGuard<'a> {
    lock: &'a TaskLock,
}

impl Drop for TaskGuard<'_> {
    fn drop(&mut self) {
        self.lock.held.set(false);
        self.lock.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_asked_for_in_vain_stays_with_its_holder() {
        let lock = TaskLock::default();
        let held = lock.try_lock();
        assert!(held.is_some());
        assert!(lock.try_lock().is_none() && lock.try_lock().is_none());
        drop(held);
        assert!(lock.try_lock().is_some());
    }
}
