//! What happened in a run, in order, with the hosts' own logs: for whoever looks into a failure.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span;

thread_local! {
    /// True time and the host whose turn it is.
    static AT: RefCell<(Duration, String)> = const { RefCell::new((Duration::ZERO, String::new())) };
}

/// Says whose lines follow.
pub(super) fn set_place(now: Duration, who: &str) {
    AT.with_borrow_mut(|at| {
        at.0 = now;
        if at.1 != who {
            at.1 = who.to_string();
        }
    });
}

/// The lines of one run.
#[derive(Clone)]
pub(super) struct Log {
    lines: Option<Arc<Mutex<Vec<String>>>>,
}

impl Log {
    pub fn begin(wanted: bool) -> Log {
        set_place(Duration::ZERO, "world");
        Log { lines: wanted.then(Arc::default) }
    }

    /// Collects what `work` logs.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.lines {
            Some(lines) => tracing::subscriber::with_default(Collector { lines: Arc::clone(lines) }, work),
            None => tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), work),
        }
    }

    pub fn end(self) -> Vec<String> {
        let taken =
            |lines: Arc<Mutex<Vec<String>>>| std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
        self.lines.map(taken).unwrap_or_default()
    }
}

struct Collector {
    lines: Arc<Mutex<Vec<String>>>,
}

impl tracing::Subscriber for Collector {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("antumbra") && *metadata.level() <= tracing::Level::DEBUG
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let (now, who) = AT.with_borrow(Clone::clone);
        let mut line = Line(format!("{:>12.6} {who:<8} ", now.as_secs_f64()));
        event.record(&mut line);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}
