//! What has happened on a host, for those who ask later: signals, decisions with their reasons, moves with their accounts.
//!
//! The newest are kept in memory; with a folder all go to `events.jsonl` in it, too, which becomes `events.1.jsonl` when it
//! has grown to [`FILE_BYTES_MAX`]. Events are for people: they are written, not synced.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use antumbra_engine::types::PartitionId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::time;

/// Events kept in memory.
const KEPT: usize = 1024;
/// Size at which the file is put aside.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// The trend of a shard's load.
    Signal,
    /// What the controller has decided, or would have.
    Decision,
    /// A move.
    Move,
    /// Who decides.
    Leader,
    /// What an operator has changed on this host.
    Operator,
    /// Something that an operator should look at.
    Alarm,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises with each event of a process, from 1.
    pub number: u64,
    /// Milliseconds since the Unix epoch by the wall clock.
    pub at_ms: u64,
    /// What it is about.
    pub topic: Topic,
    /// The partition, if it is about one.
    pub partition: Option<u64>,
    /// What happened, and why.
    pub text: String,
}

/// The events of a host.
///
/// # Example
/// ```
/// use antumbra_net::events::{Events, Topic};
/// let events = Events::new(None); // in memory alone
/// let news = events.watch();
/// events.note(Topic::Move, None, "moved to host 2");
/// assert_eq!(*news.borrow(), 1);
/// assert_eq!(events.since(0, 10)[0].text, "moved to host 2");
/// ```
#[derive(Debug)]
pub struct Events {
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    folder: Option<PathBuf>,
    file: Option<File>,
    file_bytes: u64,
}

impl Events {
    /// Without a folder they are kept in memory only.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Events {
        let kept = Kept { events: VecDeque::new(), folder, file: None, file_bytes: 0 };
        Events { kept: Mutex::new(kept), newest: watch::Sender::new(0) }
    }

    /// Notes what has just happened.
    pub fn note(&self, topic: Topic, partition: Option<PartitionId>, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(?topic, partition = partition.map(|id| id.0), "{text}");
        let number = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let number = kept.events.back().map_or(1, |last| last.number + 1);
            let event = Event { number, at_ms: time::wall_ms(), topic, partition: partition.map(|id| id.0), text };
            if let Err(cause) = kept.write(&event) {
                tracing::warn!(%cause, "the event is kept in memory only");
            }
            if kept.events.len() == KEPT {
                kept.events.pop_front();
            }
            kept.events.push_back(event);
            number
        };
        self.newest.send_replace(number);
    }

    /// Those behind number `after`, oldest first, the newest `most` of them.
    #[must_use]
    pub fn since(&self, after: u64, most: usize) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = kept.events.iter().filter(|event| event.number > after).count();
        kept.events.iter().skip(kept.events.len() - newer.min(most)).cloned().collect()
    }

    /// Changes with each event.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

impl Kept {
    fn write(&mut self, event: &Event) -> std::io::Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let path = folder.join("events.jsonl");
        if self.file_bytes > FILE_BYTES_MAX {
            self.file = None;
            fs::rename(&path, folder.join("events.1.jsonl"))?;
        }
        if self.file.is_none() {
            fs::create_dir_all(folder)?;
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            self.file_bytes = file.metadata()?.len();
            self.file = Some(file);
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        if let Some(file) = &mut self.file {
            file.write_all(&line)?;
            self.file_bytes += line.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn newest_are_kept_in_memory_and_all_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::new(Some(folder.path().to_path_buf()));
        for number in 0..KEPT + 5 {
            events.note(Topic::Move, Some(PartitionId(number as u64)), "moved");
        }
        let kept = events.since(0, usize::MAX);
        assert_eq!((kept.len(), kept[0].number, *events.watch().borrow()), (KEPT, 6, KEPT as u64 + 5));
        assert_eq!(
            events.since(KEPT as u64, 3).iter().map(|event| event.number).collect::<Vec<_>>(),
            [1027, 1028, 1029]
        );
        assert!(events.since(KEPT as u64 + 5, 3).is_empty());
        let lines = fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
        let first: Event = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!((lines.lines().count(), first.number), (KEPT + 5, 1));
    }

    #[test]
    fn full_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::new(Some(folder.path().to_path_buf()));
        let text = "x".repeat(64 << 10);
        for _ in 0..=FILE_BYTES_MAX / text.len() as u64 + 1 {
            events.note(Topic::Alarm, None, text.clone());
        }
        let size = |name| fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size("events.1.jsonl") > FILE_BYTES_MAX && size("events.jsonl") < FILE_BYTES_MAX);
    }
}
