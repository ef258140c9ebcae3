//! Time as the drivers see it: the machine's, or that of the simulated host that a task runs on.

use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Now, on a clock that never goes back.
pub(crate) fn now() -> Instant {
    #[cfg(feature = "sim")]
    if let Some(since) = antumbra_engine::sim::now() {
        static BASE: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        return *BASE.get_or_init(Instant::now) + since;
    }
    Instant::now()
}

/// Time since `then`.
pub(crate) fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// Milliseconds since the Unix epoch by the wall clock.
pub(crate) fn wall_ms() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(wall_ms) = antumbra_engine::sim::wall_ms() {
        return wall_ms;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Waits. On a plane, or on a simulated host.
pub(crate) async fn sleep(duration: Duration) {
    #[cfg(feature = "sim")]
    if let Some(sleep) = antumbra_engine::sim::Sleep::new(duration) {
        return sleep.await;
    }
    tokio::time::sleep(duration).await;
}

/// Waits, on whatever runtime this runs.
pub(crate) async fn pause(duration: Duration) {
    #[cfg(feature = "sim")]
    if let Some(sleep) = antumbra_engine::sim::Sleep::new(duration) {
        return sleep.await;
    }
    let (done, ended) = futures_channel::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(duration);
        let _ = done.send(());
    });
    let _ = ended.await;
}

/// What `work` returns, or `None` when it takes longer than `limit`. On a plane, or on a simulated host.
pub(crate) async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    #[cfg(feature = "sim")]
    if let Some(sleep) = antumbra_engine::sim::Sleep::new(limit) {
        let late = async {
            sleep.await;
            None
        };
        return futures_lite::future::or(async { Some(work.await) }, late).await;
    }
    tokio::time::timeout(limit, work).await.ok()
}

/// Ticks at once and then in equal distances, however late somebody looks.
#[derive(Debug)]
pub(crate) struct Ticker {
    next: Instant,
    period: Duration,
}

impl Ticker {
    pub fn new(period: Duration) -> Ticker {
        Ticker { next: now(), period }
    }

    /// Waits for the next tick.
    /// Cancel: the tick is not lost.
    pub async fn tick(&mut self) {
        let wait = self.next.saturating_duration_since(now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        self.next = now().max(self.next) + self.period;
    }
}
