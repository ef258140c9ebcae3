//! What makes no progress: a move whose machine stands still, a shard that answers nobody. Each becomes an event, with what
//! it waits for, and a metric until it goes on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use antumbra_engine::types::{PartitionId, ShardId};
use serde::{Deserialize, Serialize};

use crate::events::Topic;
use crate::process;
use crate::shadow::MoveHandle;
use crate::shadow::source::State;
use crate::time::{self, Ticker};

use super::Host;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// What can stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Move(PartitionId),
    Shard(u16),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Move(partition) => write!(f, "move of partition {partition}"),
            Subject::Shard(shard) => write!(f, "shard {shard}"),
        }
    }
}

/// Something that stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// What.
    pub subject: String,
    /// Since when: milliseconds since the Unix epoch.
    pub since: u64,
    /// What it waits for.
    pub waits_for: String,
}

/// What was seen last of a subject.
#[derive(Debug)]
struct Seen {
    /// Differs when there was progress.
    mark: String,
    since: Instant,
    since_ms: u64,
    said: bool,
}

/// Remembers when each subject has made progress. No I/O and no clock.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    seen: HashMap<Subject, Seen>,
}

/// What is to be said of a subject.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    GoesOn,
    /// It stands still, for the first time or still.
    Stands {
        first: bool,
        since_ms: u64,
    },
    /// It stood still until now.
    WentOn {
        stood: Duration,
    },
}

impl Watch {
    fn new(limit: Duration) -> Watch {
        Watch { limit, seen: HashMap::new() }
    }

    fn look(&mut self, subject: Subject, mark: String, now: Instant, now_ms: u64) -> Verdict {
        let fresh = |mark| Seen { mark, since: now, since_ms: now_ms, said: false };
        match self.seen.entry(subject) {
            Entry::Vacant(place) => {
                place.insert(fresh(mark));
                Verdict::GoesOn
            }
            Entry::Occupied(mut place) => {
                let stood = now.saturating_duration_since(place.get().since);
                let known = place.get_mut();
                if known.mark != mark {
                    let said = known.said;
                    *known = fresh(mark);
                    return if said { Verdict::WentOn { stood } } else { Verdict::GoesOn };
                }
                if stood < self.limit {
                    return Verdict::GoesOn;
                }
                let first = !std::mem::replace(&mut known.said, true);
                Verdict::Stands { first, since_ms: known.since_ms }
            }
        }
    }

    /// Forgets all but these.
    fn keep(&mut self, subjects: &[Subject]) {
        self.seen.retain(|subject, _| subjects.contains(subject));
    }
}

/// Runs until the host ends.
pub(super) async fn run(host: Weak<Host>, limit: Duration) {
    let mut ticker = Ticker::new(LOOK);
    let mut watch = Watch::new(limit);
    let mut pings: Vec<Arc<Ping>> = Vec::new();
    loop {
        ticker.tick().await;
        let Some(host) = host.upgrade() else { return };
        pings.resize_with(host.engine.shards(), Arc::default);
        let mut looked = Vec::new();
        for (shard, ping) in pings.iter().enumerate() {
            ping.send(&host, ShardId(shard as u16));
            let waits_for = || format!("its thread ({})", process::thread_waits_for(&format!("shard-{shard}")));
            looked.push((Subject::Shard(shard as u16), ping.mark(), waits_for()));
        }
        for (partition, known) in host.all_moves().into_iter().filter(|(_, known)| can_stall(known)) {
            let progress = known.progress();
            let mark = format!("{} {} {}", progress.state, progress.held, progress.bytes_on_wire);
            looked.push((Subject::Move(partition), mark, waits_for(&host, &known)));
        }
        watch.keep(&looked.iter().map(|(subject, ..)| *subject).collect::<Vec<_>>());
        let mut stalls = Vec::new();
        for (subject, mark, waits_for) in looked {
            let partition = match subject {
                Subject::Move(partition) => Some(partition),
                Subject::Shard(_) => None,
            };
            match watch.look(subject, mark, time::now(), time::wall_ms()) {
                Verdict::GoesOn => {}
                Verdict::Stands { first, since_ms } => {
                    if first {
                        let text = format!("{subject} has made no progress for {limit:?}: it waits for {waits_for}");
                        tracing::warn!("{text}");
                        host.events.note(Topic::Alarm, partition, text);
                    }
                    stalls.push(Stall { subject: subject.to_string(), since: since_ms, waits_for });
                }
                Verdict::WentOn { stood } => {
                    let text = format!("{subject} goes on; it had stood still for {:.1} s", stood.as_secs_f64());
                    host.events.note(Topic::Alarm, partition, text);
                }
            }
        }
        host.set_stalls(stalls);
    }
}

/// A shard is asked for a word, and asked again once it has answered.
#[derive(Debug, Default)]
struct Ping {
    asked: AtomicU64,
    answered: AtomicU64,
}

impl Ping {
    fn send(self: &Arc<Ping>, host: &Arc<Host>, shard: ShardId) {
        if self.asked.load(Ordering::Relaxed) != self.answered.load(Ordering::Relaxed) {
            return;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (ping, engine) = (Arc::clone(self), host.engine.clone());
        host.control.spawn(async move {
            let answer = move |_| async move {
                ping.answered.fetch_add(1, Ordering::Relaxed);
            };
            // It fails when the engine is being closed.
            let _ = engine.spawn_on_shard(shard, answer).await;
        });
    }

    fn mark(&self) -> String {
        self.answered.load(Ordering::Relaxed).to_string()
    }
}

/// A move that waits for an operator's, or the controller's, word stands still rightly.
fn can_stall(known: &MoveHandle) -> bool {
    let waits = known.state() == State::Ready && known.waits_for_word();
    !known.is_finished() && !waits
}

fn waits_for(host: &Host, known: &MoveHandle) -> String {
    let to = known.destination();
    match known.state() {
        State::Opening => format!("host {to} to create the shadow"),
        State::Copying => {
            let progress = known.progress();
            format!("host {to} to take segments: it holds {} of {}", progress.held, progress.segments)
        }
        State::Reconnecting => format!("a new connection to host {to}"),
        State::Ready | State::Freezing => "the writes under way here to end".into(),
        State::Tail => format!("host {to} to acknowledge the last writes"),
        State::Verifying => format!("host {to} to compare what it holds"),
        State::Committing | State::Aborting => {
            let cause = host.coordinator.health().last_error;
            let cause = cause.map_or_else(String::new, |cause| format!(" (its last error: {cause})"));
            format!("the coordinator's word{cause}")
        }
        State::HandingOver => "the reads under way here to end".into(),
        State::Promoting => format!("host {to} to serve"),
        State::Draining => format!("host {to} to fetch what an early switchover has left here"),
        State::Digesting => format!("the digests of this host and host {to}"),
        State::AwaitingTarget => format!("host {to}, which is to complete the attempt"),
        State::Complete | State::Aborted => "nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stall_is_said_once_and_its_end_too() {
        const LIMIT: Duration = Duration::from_secs(10);
        let (mut watch, began) = (Watch::new(LIMIT), Instant::now());
        let subject = Subject::Shard(3);
        let mut look = |seconds: u64, mark: &str| {
            watch.look(subject, mark.into(), began + Duration::from_secs(seconds), 1000 * seconds)
        };
        assert_eq!(look(0, "a"), Verdict::GoesOn);
        assert_eq!(look(9, "a"), Verdict::GoesOn);
        assert_eq!(look(9, "b"), Verdict::GoesOn, "just in time");
        assert_eq!(look(18, "b"), Verdict::GoesOn);
        assert_eq!(look(19, "b"), Verdict::Stands { first: true, since_ms: 9000 });
        assert_eq!(look(25, "b"), Verdict::Stands { first: false, since_ms: 9000 });
        assert_eq!(look(30, "c"), Verdict::WentOn { stood: Duration::from_secs(21) });
        assert_eq!(look(31, "c"), Verdict::GoesOn);
        watch.keep(&[Subject::Move(PartitionId(1))]);
        let later = began + Duration::from_secs(60);
        assert_eq!(watch.look(subject, "c".into(), later, 0), Verdict::GoesOn, "it was forgotten");
    }
}
