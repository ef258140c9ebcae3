//! Pace: writers and the work that they cause go in step, so that they wait often and shortly, and not seldom and long.
//!
//! A full memtable is flushed while the next one fills. That gives every segment a slice, so that behind each flush some of
//! the segments are compacted. What is left of both, against all that one full memtable makes to do, says how far
//! the next one may be full: with everything still to do by [`SLACK`], with nothing wholly. Until writers come near that,
//! requests have the core; from there on background work gets more and more of it, and in the end writers wait.
//!
//! - `INV-PACE-ENDS`: writers are held only while work is left that maintenance is at. A compaction that failed is not counted
//!   until it is tried again; that flushes fail is what writers are told.

use std::cell::Cell;
use std::time::Duration;

use crate::clock;
use crate::config::Durability;
use crate::partition::SLICES_MAX;

use super::Shard;

/// How far, in full memtables, writers may be ahead of the work.
const SLACK: f64 = 0.5;
/// What may be left of compactions when the next memtable is begun, in those of one full memtable: the more slices a
/// compaction takes in, the less it costs for each, and the more of them reads have to look into.
const OWED_FREE: f64 = 1.0;
/// How much room writers that were held get at a time, in full memtables: they stand and go in turns of this.
const GRAIN: f64 = 1.0 / 24.0;
/// How long writers stand at a time where memtables have room: then each may go once, so that none waits for a whole turn.
const STAND_MAX: Duration = Duration::from_millis(2);
/// Those that do not wait for the device go at every so many of these times: they are so fast that one in a thousand of their
/// writes would wait for 2 ms.
const TURNS_BUFFERED: u64 = 5;

/// Where the work stands.
#[derive(Debug, Default)]
pub(super) struct Pace {
    done: Cell<Done>,
    /// Whether writers are to wait.
    held: Cell<bool>,
    /// Whether memtables have no room, so that nobody may write.
    full: Cell<bool>,
    /// Since when they stand.
    since: Cell<Duration>,
    /// How often those that stood might go once.
    turns: Cell<u64>,
}

impl Pace {
    /// Takes in whether writers are to wait and whether memtables are full; true if some may go.
    fn settle(&self, held: bool, full: bool, now: Duration) -> bool {
        let (before, held) = (self.held.replace(held || full), held || full);
        self.full.set(full);
        if !before {
            self.since.set(now);
            return false;
        }
        if held && !full && now.saturating_sub(self.since.get()) >= STAND_MAX {
            self.since.set(now);
            self.turns.update(|turns| turns + 1);
            return true;
        }
        !held
    }

    /// The turn at which a writer of this class that begins to stand now may go once.
    pub(super) fn next_turn(&self, durability: Durability) -> u64 {
        self.turns.get() + if durability == Durability::Durable { 1 } else { TURNS_BUFFERED }
    }

    /// Whether a writer may go whose turn is `turn`.
    pub(super) fn lets_go(&self, turn: u64) -> bool {
        !self.held.get() || (self.turns.get() >= turn && !self.full.get())
    }
}

/// What is done of the flush and of the compaction under way, in bytes as [`Load`] counts them.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    flush: f64,
    compaction: f64,
}

/// Bytes that the partitions of a shard hold, and what is to be done with them.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Memtables that are written to.
    active: f64,
    /// Memtables that wait for their flush, or are being flushed.
    frozen: f64,
    tables: f64,
    /// Tables to be rewritten for what has been flushed.
    owed: f64,
}

/// What a load allows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Verdict {
    held: bool,
    urgency: f64,
}

impl Load {
    /// `memtable` is the size of a full memtable; writers that are `held` stay so until there is room for a turn.
    fn judge(&self, memtable: f64, done: Done, held: bool) -> Verdict {
        let compaction = self.tables / SLICES_MAX as f64;
        let flush = (self.frozen - done.flush).max(0.0);
        let owed = (self.owed + self.frozen / memtable * compaction - done.compaction).max(0.0);
        let all = flush + (owed - OWED_FREE * compaction).max(0.0);
        // Without the flush there is no room, however little is owed.
        let behind = (flush / memtable).max(all / (memtable + compaction));
        let ahead = self.active / memtable - (1.0 - behind);
        let limit = if held { SLACK - GRAIN } else { SLACK };
        let indebted = owed / (owed + compaction).max(f64::MIN_POSITIVE);
        Verdict { held: behind > 0.0 && ahead > limit, urgency: (ahead / SLACK).max(indebted) }
    }
}

impl Shard {
    /// Whether writers are to wait until background work has come on.
    pub(super) fn holds_writers(&self) -> bool {
        self.pace.held.get()
    }

    /// Whether nobody may write until memtables have been flushed.
    pub(super) fn stops_writers(&self) -> bool {
        self.pace.full.get()
    }

    /// Notes how much of the flush under way is done, in bytes of the memtable.
    pub(crate) fn note_flushed(&self, bytes: f64) {
        self.pace.done.update(|done| Done { flush: bytes, ..done });
        self.set_pace();
    }

    /// Notes how much of the compaction under way is done, in bytes of the segment; 0 when it has ended.
    pub(crate) fn note_compacted(&self, bytes: f64) {
        self.pace.done.update(|done| Done { compaction: bytes, ..done });
        self.set_pace();
    }

    /// Looks at the work anew: what background work gets of the core, and whether writers wait.
    pub(crate) fn set_pace(&self) {
        let mut load = Load::default();
        for partition in self.partitions.borrow().values() {
            let (active, frozen) = partition.active_and_frozen_bytes();
            load.active += active as f64;
            load.frozen += frozen as f64;
            load.tables += partition.table_bytes() as f64;
            load.owed += partition.owed_bytes();
        }
        let pace = &self.pace;
        let before = pace.held.get();
        let Verdict { held, urgency } = load.judge(self.memtable_bytes_max() as f64, pace.done.get(), before);
        let full = load.active + load.frozen >= self.config.memtable_budget_bytes() as f64;
        self.background.set_urgency(urgency);
        if pace.settle(held, full, clock::monotonic()) {
            self.memtable_room.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    fn judge(active: f64, frozen: f64, owed: f64, flushed: f64) -> Verdict {
        let load = Load { active: active * MIB, frozen: frozen * MIB, tables: 48.0 * MIB, owed: owed * MIB };
        load.judge(8.0 * MIB, Done { flush: flushed * MIB, compaction: 0.0 }, false)
    }

    #[test]
    fn writers_without_work_to_wait_for_are_never_held() {
        assert!((0..100).all(|active| !judge(f64::from(active), 0.0, 0.0, 0.0).held));
        assert!((0..100).all(|active| !judge(f64::from(active), 0.0, 8.0, 0.0).held), "as much as may be left");
    }

    #[test]
    fn writers_behind_a_full_memtable_go_in_step_with_its_flush() {
        assert!(!judge(3.9, 8.0, 0.0, 0.0).held, "half a memtable ahead");
        assert!(judge(4.1, 8.0, 0.0, 0.0).held);
        assert!(!judge(5.9, 8.0, 0.0, 2.0).held);
        assert!(judge(6.1, 8.0, 0.0, 2.0).held);
    }

    #[test]
    fn writers_go_in_step_with_compaction_where_it_has_fallen_behind() {
        // A cycle is 8 MiB of flush and 8 MiB of compaction; the first 8 MiB that are owed are free.
        assert!(!judge(7.9, 0.0, 16.0, 0.0).held);
        assert!(judge(8.1, 0.0, 16.0, 0.0).held);
        assert!(judge(0.1, 0.0, 32.0, 0.0).held);
    }

    #[test]
    fn writers_that_were_held_wait_until_there_is_room_for_a_turn() {
        let load = Load { active: 3.9 * MIB, frozen: 8.0 * MIB, tables: 48.0 * MIB, owed: 0.0 };
        assert!(load.judge(8.0 * MIB, Done::default(), true).held);
        assert!(!load.judge(8.0 * MIB, Done { flush: MIB, compaction: 0.0 }, true).held);
    }

    #[test]
    fn writers_go_once_for_every_while_that_they_stand_unless_memtables_are_full() {
        let pace = Pace::default();
        let at = |tenths: u32| STAND_MAX * tenths / 10;
        assert!(!pace.settle(true, false, at(100)) && !pace.settle(true, false, at(109)));
        assert!(pace.settle(true, false, at(110)) && !pace.settle(true, false, at(119)));
        assert!(pace.settle(true, false, at(120)));
        assert_eq!((pace.turns.get(), pace.held.get()), (2, true));
        assert!(!pace.settle(true, true, at(200)) && pace.full.get(), "no room");
        assert!(pace.settle(false, false, at(201)) && !pace.held.get() && !pace.full.get());
        assert!(!pace.settle(false, false, at(300)) && !pace.settle(true, false, at(305)), "they stand from here on");
        assert!(!pace.settle(true, false, at(314)) && pace.settle(true, false, at(315)));
    }

    #[test]
    fn writers_that_wait_for_no_device_stand_longer_but_go_as_soon_as_nobody_stands() {
        let pace = Pace::default();
        let at = |turns: u32| STAND_MAX * (100 + turns);
        assert!(!pace.settle(true, false, at(0)));
        let (durable, buffered) = (pace.next_turn(Durability::Durable), pace.next_turn(Durability::Buffered));
        assert_eq!(pace.next_turn(Durability::Memory), buffered);
        let lets_go = |turns: u32, held, full| {
            pace.settle(held, full, at(turns));
            (pace.lets_go(durable), pace.lets_go(buffered))
        };
        assert_eq!(lets_go(0, true, false), (false, false));
        assert_eq!(lets_go(1, true, false), (true, false));
        assert_eq!(lets_go(2, true, true), (false, false), "no room");
        assert_eq!((3..6).map(|turns| lets_go(turns, true, false)).max(), Some((true, false)));
        assert_eq!(lets_go(6, true, false), (true, true));
        assert!(!pace.lets_go(pace.next_turn(Durability::Durable)), "whoever has gone stands anew");
        assert!(lets_go(7, false, false) == (true, true) && pace.lets_go(pace.next_turn(Durability::Buffered)));
    }

    #[test]
    fn more_done_than_was_owed_is_no_urgency() {
        // Compactions rewrite more than was counted where segments were cut in between.
        let load = Load { active: MIB, frozen: 0.0, tables: 6.0 * MIB, owed: 0.0 };
        let verdict = load.judge(8.0 * MIB, Done { flush: 0.0, compaction: 4.0 * MIB }, false);
        assert!(!verdict.held && verdict.urgency <= 0.0, "{verdict:?}");
        let empty = Load { active: MIB, ..Load::default() };
        assert!(empty.judge(8.0 * MIB, Done::default(), false).urgency <= 0.0);
    }

    #[test]
    fn urgency_grows_to_one_where_writers_are_held() {
        assert!(judge(2.0, 8.0, 0.0, 0.0).urgency < 0.75);
        assert!((judge(4.0, 8.0, 0.0, 0.0).urgency - 1.0).abs() < 1e-9);
        assert!(judge(0.0, 0.0, 0.0, 0.0).urgency <= 0.0);
    }
}
