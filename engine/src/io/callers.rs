//! Who wants this thread while something keeps it: other threads, by the queue of their jobs, and sockets that have something to
//! read.
//!
//! glommio notices both only when its executor looks at its rings. While a task is ready that is when the preemption timer
//! expires, hundreds of microseconds later; a socket does not bring it about, since its readiness comes over a ring that the
//! timer is not in. So background work asks here after each of its turns, and a thread that waits for the device without
//! sleeping asks all the time: at a microsecond, where it serves sockets.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Shorter than it takes the executor to look.
const AT_ONCE: Duration = Duration::from_micros(2);

thread_local! {
    static QUEUES: RefCell<Vec<Box<dyn Fn() -> bool>>> = const { RefCell::new(Vec::new()) };
    static SOCKETS: OnceCell<OwnedFd> = const { OnceCell::new() };
}

/// This thread is wanted when `is_wanted` says that something has come from another one.
pub(crate) fn interrupt_when(is_wanted: impl Fn() -> bool + 'static) {
    QUEUES.with_borrow_mut(|queues| queues.push(Box::new(is_wanted)));
}

/// The thread looks for requests on `socket` also while background work keeps it, or a wait for the device; until it is closed.
///
/// # Errors
/// The system's, mostly a limit of what may be watched; requests of this socket may wait a little longer then.
pub fn watch(socket: &impl AsRawFd) -> io::Result<()> {
    SOCKETS.with(|sockets| {
        let watched = match sockets.get() {
            Some(watched) => watched,
            None => {
                // SAFETY: takes no memory.
                let made = succeed(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
                // SAFETY: a descriptor that nobody else has.
                sockets.get_or_init(|| unsafe { OwnedFd::from_raw_fd(made) })
            }
        };
        let mut wanted = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        let (watched, socket) = (watched.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: the kernel reads the event during the call.
        succeed(unsafe { libc::epoll_ctl(watched, libc::EPOLL_CTL_ADD, socket, &raw mut wanted) })?;
        Ok(())
    })
}

/// Whether this thread serves sockets.
pub(super) fn has_sockets() -> bool {
    SOCKETS.with(|sockets| sockets.get().is_some())
}

/// Whether somebody wants this thread.
pub(super) fn are_waiting() -> bool {
    QUEUES.with_borrow(|queues| queues.iter().any(|is_wanted| is_wanted())) || SOCKETS.with(have_news)
}

/// Has the executor look at its rings, and those run whose requests it finds there.
pub(super) async fn serve() {
    glommio::timer::sleep(AT_ONCE).await;
}

fn have_news(sockets: &OnceCell<OwnedFd>) -> bool {
    sockets.get().is_some_and(|watched| {
        let mut found = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: there is room for the one event that is asked for.
        unsafe { libc::epoll_wait(watched.as_raw_fd(), &raw mut found, 1, 0) > 0 }
    })
}

fn succeed(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::Instant;

    use futures_lite::AsyncReadExt;

    use super::*;
    use crate::io::runtime::{self, RuntimeOptions};

    /// How late a message is taken up, in the median, while background work keeps the core.
    fn lateness(is_watched: bool) -> Duration {
        const MESSAGES: usize = 200;
        let preempt = Duration::from_millis(2);
        let options = RuntimeOptions { name: "callers".into(), cpu: None, spin: Duration::ZERO, preempt };
        let run = move || async move {
            let background = runtime::Background::new(preempt);
            let is_over = Rc::new(Cell::new(false));
            let ends = Rc::clone(&is_over);
            background.spawn_detached(async move {
                while !ends.get() {
                    runtime::yield_now().await;
                }
            });
            let (mut sender, receiver) = UnixStream::pair().unwrap();
            receiver.set_nonblocking(true).unwrap();
            if is_watched {
                runtime::watch(&receiver).unwrap();
            }
            // SAFETY: the descriptor is open and from here on the stream's alone.
            let mut receiver = unsafe { glommio::net::UnixStream::from_raw_fd(receiver.into_raw_fd()) };
            let begin = Instant::now();
            let sending = std::thread::spawn(move || {
                for _ in 0..MESSAGES {
                    std::thread::sleep(Duration::from_millis(3));
                    sender.write_all(&(begin.elapsed().as_micros() as u64).to_le_bytes()).unwrap();
                }
            });
            let mut late = Vec::new();
            for _ in 0..MESSAGES {
                let mut sent = [0; 8];
                receiver.read_exact(&mut sent).await.unwrap();
                late.push(begin.elapsed().saturating_sub(Duration::from_micros(u64::from_le_bytes(sent))));
            }
            is_over.set(true);
            sending.join().unwrap();
            late.sort_unstable();
            late[MESSAGES / 2]
        };
        runtime::spawn(options, run).unwrap().join().unwrap()
    }

    #[test]
    fn background_work_gives_way_to_a_watched_socket() {
        let (watched, unwatched) = (lateness(true), lateness(false));
        assert!(watched * 2 < unwatched, "{watched:?} late in the median, {unwatched:?} if nobody looks");
    }
}
