//! Segments that are expected to be read most stay in memory whole: mapped, locked, checked while locked.
//!
//! A read of a resident segment costs no I/O, no copy into the cache and no page fault, and the cache is left to the
//! rest. After each access window the segments are ranked by expected accesses per byte; the best ones that fit the
//! budget are loaded on a thread of its own, a few a window. What is loaded is charged to the block cache, so the memory
//! budget holds. Nothing is loaded while the cache has room: everything that is read is in memory then anyway, and on
//! huge pages, which a mapped file does not have.
//!
//! An unlocked map is never read: a page fault would stop every task of the core. Where the process may not lock memory
//! (no CAP_IPC_LOCK and a small `ulimit -l`) the cache serves alone; that is said once.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::io::runtime;
use crate::partition::Hotness;
use crate::shard::Shard;
use crate::shard::files::Table;
use crate::table::{Charge, TablePlace};

/// Segments loaded after one window at most.
const LOADS_PER_WINDOW: usize = 4;
/// A resident segment counts this much more than one that would have to be loaded: scores tremble.
const STAY_BONUS: f32 = 1.5;
/// A segment is worth its memory when it is expected to be read so much more for each of its bytes than the whole is: else
/// the cache, which holds single blocks, makes better use of it.
const WORTH_FACTOR: f32 = 2.0;
/// The cache is short of memory when this many per cent of it are in use.
const CACHE_SHORT_PERCENT: usize = 90;

/// Memory that a resident table takes beside its blocks: their directories, a handle a block.
const RESIDENT_BYTES_PER_RECORD: usize = 24;

/// A shard's state of residency.
#[derive(Debug, Default)]
pub(crate) struct Residency {
    /// Locking memory failed: not tried again.
    refused: Cell<bool>,
    /// Something may be resident.
    any: Cell<bool>,
}

/// What a table holds while it is resident.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    charge: RefCell<Option<Charge>>,
}

impl Resident {
    pub fn is_resident(&self) -> bool {
        self.charge.borrow().is_some()
    }

    pub fn hold(&self, charge: Charge) {
        *self.charge.borrow_mut() = Some(charge);
    }

    /// Lets go; false if nothing was held.
    pub fn release(&self) -> bool {
        self.charge.borrow_mut().take().is_some()
    }
}

/// Which of `segments` to hold within `budget` bytes: the best by score per byte, in that order.
fn choose(segments: &[Hotness], budget: usize) -> Vec<usize> {
    let rank = |hot: &Hotness| {
        let stays = hot.tables.iter().all(|table| table.is_resident());
        hot.score / hot.bytes as f32 * if stays { STAY_BONUS } else { 1.0 }
    };
    let (score, bytes) = segments.iter().fold((0.0, 0), |(score, bytes), hot| (score + hot.score, bytes + hot.bytes));
    let least = score / bytes as f32 * WORTH_FACTOR;
    let mut order: Vec<(f32, usize)> = segments
        .iter()
        .enumerate()
        .filter(|(_, hot)| hot.score > 0.0 && hot.bytes > 0)
        .map(|(index, hot)| (rank(hot), index))
        .filter(|(rank, _)| *rank >= least)
        .collect();
    order.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
    let mut left = budget;
    let mut chosen = Vec::new();
    for (_, index) in order {
        if segments[index].bytes <= left {
            left -= segments[index].bytes;
            chosen.push(index);
        }
    }
    chosen
}

impl Shard {
    /// Loads the segments that are hot now and lets go of those that no longer are.
    pub(crate) async fn refresh_residency(self: &Rc<Shard>) {
        if self.residency().refused.get() || !self.can_hold_resident() {
            return;
        }
        if !self.residency().any.get() && !self.cache().is_short(CACHE_SHORT_PERCENT) {
            return;
        }
        self.residency().any.set(true);
        let segments: Vec<Hotness> = self.partitions().iter().flat_map(|partition| partition.hotness()).collect();
        let chosen = choose(&segments, self.resident_budget_bytes());
        let mut is_chosen = vec![false; segments.len()];
        chosen.iter().for_each(|index| is_chosen[*index] = true);
        for (hot, is_chosen) in segments.iter().zip(is_chosen) {
            if !is_chosen {
                for table in &hot.tables {
                    table.leave_memory().await;
                }
            }
        }
        let missing = |index: &&usize| segments[**index].tables.iter().any(|table| !table.is_resident());
        for index in chosen.iter().filter(missing).take(LOADS_PER_WINDOW) {
            for table in segments[*index].tables.iter().filter(|table| !table.is_resident()) {
                if let Err(cause) = self.load(table).await {
                    self.note_failure(&cause);
                    return;
                }
                runtime::yield_now().await;
            }
        }
    }

    async fn load(&self, table: &Rc<Table>) -> Result<()> {
        let place: TablePlace = table.place();
        // Charged first, so that the cache has made room when the memory is taken.
        let charge = self.cache().charge(place.bytes() + table.meta().records as usize * RESIDENT_BYTES_PER_RECORD);
        let loaded = runtime::unblock(move || place.load()).await?;
        if table.is_retired() {
            // Compaction was faster; nobody will read it for long.
            runtime::unblock(move || drop(loaded)).await;
        } else {
            table.stay_in_memory(loaded, charge);
        }
        Ok(())
    }

    fn note_failure(&self, cause: &Error) {
        match cause {
            Error::Io { .. } => {
                self.residency().refused.set(true);
                tracing::warn!(
                    %cause,
                    "hot segments are not kept in memory: grant CAP_IPC_LOCK or raise `ulimit -l`; the cache serves alone"
                );
            }
            _ => tracing::error!(%cause, "a hot segment cannot be kept in memory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hot(score: f32, bytes: usize) -> Hotness {
        Hotness { score, bytes, tables: Vec::new() }
    }

    #[test]
    fn choose_takes_the_best_per_byte_that_fit() {
        let segments = [hot(10.0, 100), hot(30.0, 100), hot(50.0, 1_000), hot(0.0, 10), hot(9.0, 50)];
        assert_eq!(choose(&segments, 260), [1, 4]);
        assert_eq!(choose(&segments, 100), [1]);
        assert_eq!(choose(&segments, 20), Vec::<usize>::new());
        assert_eq!(choose(&segments, 10_000), [1, 4], "the others are hardly read more than the whole");
    }

    #[test]
    fn choose_of_segments_that_are_read_alike_leaves_them_to_the_cache() {
        let segments: Vec<Hotness> = (0..50).map(|index| hot(90.0 + (index % 20) as f32, 1_000)).collect();
        assert_eq!(choose(&segments, 10_000), Vec::<usize>::new());
    }
}
