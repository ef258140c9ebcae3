//! Segments that this host does not hold yet: all of a new shadow's, and what an early switchover left at the source.
//!
//! - `INV-FILL`: whoever needs what lies in a missing segment waits until it is held, or is told that it is out of reach.
//!   That a missing segment has no table never reads as that a key has no value.
//!
//! What is missing is in the manifest, so a restart knows it too.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::chain::Seal;
use crate::error::{Error, Result};
use crate::types::{AttemptId, SegmentId};

use super::compact::LayoutPin;
use super::page::Direction;
use super::{Partition, Serving};

/// What is missing, and who waits for it.
#[derive(Debug)]
pub(super) struct Filling {
    pub attempt: AttemptId,
    pub missing: BTreeSet<SegmentId>,
    /// The source's seal, once it has been compared: a copy that comes later is one that it names.
    seal: Option<Seal>,
    /// Segments that are being fetched.
    fetching: BTreeSet<SegmentId>,
    /// Segments that readers wait for, the longest first.
    wanted: VecDeque<SegmentId>,
    /// Why nothing can be fetched at the moment.
    out_of_reach: Option<String>,
    reads: u64,
    reads_waited: u64,
    /// Segments keep the source's bounds.
    _layout: LayoutPin,
}

/// How far a partition is filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillProgress {
    /// The attempt that left segments behind.
    pub attempt: AttemptId,
    /// Segments in all.
    pub segments: usize,
    /// Segments that are not held yet.
    pub missing: usize,
    /// Reads since the partition is served here.
    pub reads: u64,
    /// Reads among them that had to wait for a segment.
    pub reads_waited: u64,
    /// Why nothing can be fetched at the moment, if so.
    pub out_of_reach: Option<String>,
}

impl Filling {
    fn progress(&self) -> FillProgress {
        FillProgress {
            attempt: self.attempt,
            segments: 0,
            missing: self.missing.len(),
            reads: self.reads,
            reads_waited: self.reads_waited,
            out_of_reach: self.out_of_reach.clone(),
        }
    }
}

impl Partition {
    /// Notes at the start of a partition's life here what it lacks.
    pub(crate) fn begin_filling(&self, attempt: AttemptId, missing: BTreeSet<SegmentId>) {
        if missing.is_empty() {
            return;
        }
        self.lacks_segments.set(true);
        *self.filling.borrow_mut() = Some(Filling {
            attempt,
            missing,
            seal: None,
            fetching: BTreeSet::new(),
            wanted: VecDeque::new(),
            out_of_reach: None,
            reads: 0,
            reads_waited: 0,
            _layout: self.pin_layout_now(),
        });
    }

    /// The shadow equals this seal: later copies are compared with it.
    pub(super) fn note_sealed(&self, seal: &Seal) {
        if let Some(filling) = self.filling.borrow_mut().as_mut() {
            filling.seal = Some(seal.clone());
        }
    }

    /// That a copy with this digest is none that the seal, if there is one, does not name.
    pub(super) fn check_sealed_copy(&self, segment: SegmentId, copy: Option<u128>) -> Result<()> {
        let filling = self.filling.borrow();
        let seal = filling.as_ref().and_then(|filling| filling.seal.as_ref());
        match (seal, copy) {
            (Some(seal), Some(digest)) if seal.copy(segment) != Some(digest) => {
                Err(self.stale(format!("the seal does not name this copy of segment {segment}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether this host does not hold the segment yet. One load where nothing is missing.
    #[must_use]
    pub fn lacks(&self, segment: SegmentId) -> bool {
        self.lacks_segments.get()
            && self.filling.borrow().as_ref().is_some_and(|filling| filling.missing.contains(&segment))
    }

    /// Whether any segment is missing.
    #[must_use]
    pub fn lacks_any(&self) -> bool {
        self.lacks_segments.get()
    }

    /// That nothing is missing.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming how much is.
    pub(crate) fn check_whole(&self) -> Result<()> {
        match self.missing_segments().len() {
            0 => Ok(()),
            missing => Err(Error::Invalid {
                what: format!("partition {}: {missing} segments are still on their way here; wait for them", self.id),
            }),
        }
    }

    /// The segment is installed.
    pub(super) fn note_held(&self, segment: SegmentId) {
        let mut filling = self.filling.borrow_mut();
        let Some(held) = filling.as_mut() else {
            return;
        };
        held.missing.remove(&segment);
        held.fetching.remove(&segment);
        held.wanted.retain(|other| *other != segment);
        if held.missing.is_empty() {
            *self.filled.borrow_mut() = Some(held.progress());
            *filling = None;
            self.lacks_segments.set(false);
        }
        drop(filling);
        self.filling_changed.notify_all();
    }

    /// What is missing, or how it went; `None` if nothing has been missing since the partition was opened.
    #[must_use]
    pub fn fill_progress(&self) -> Option<FillProgress> {
        let segments = self.layout().segments.len();
        let open = self.filling.borrow().as_ref().map(Filling::progress);
        let progress = open.or_else(|| self.filled.borrow().clone());
        progress.map(|progress| FillProgress { segments, ..progress })
    }

    /// The segments that are missing, ascending.
    #[must_use]
    pub fn missing_segments(&self) -> Vec<SegmentId> {
        self.filling.borrow().as_ref().map(|filling| filling.missing.iter().copied().collect()).unwrap_or_default()
    }

    /// Takes the next segment to be fetched: one that a reader waits for, else the first of `order` (ids of segments,
    /// best first), else any. `None` when all that is missing is being fetched.
    ///
    /// # Errors
    /// [`Error::Stale`] when another attempt fills the partition.
    pub fn take_missing(&self, attempt: AttemptId, order: &[SegmentId]) -> Result<Option<SegmentId>> {
        self.with_filling(attempt, |filling| {
            let free = |segment: &SegmentId| filling.missing.contains(segment) && !filling.fetching.contains(segment);
            let wanted = filling.wanted.iter().copied().find(free);
            let next = wanted
                .or_else(|| order.iter().copied().find(free))
                .or_else(|| filling.missing.iter().copied().find(free));
            filling.fetching.extend(next);
            next
        })
    }

    /// As [`Partition::take_missing`], but only a segment that a reader waits for; waits for one. `None` once nothing is
    /// missing or another attempt fills the partition.
    pub async fn take_wanted(&self, attempt: AttemptId) -> Option<SegmentId> {
        self.filling_changed
            .wait_for(|| {
                let taken = self.with_filling(attempt, |filling| {
                    let free = |segment: &SegmentId| !filling.fetching.contains(segment);
                    let wanted = filling.wanted.iter().copied().find(free);
                    filling.fetching.extend(wanted);
                    wanted
                });
                match taken {
                    Ok(Some(segment)) => Some(Some(segment)),
                    Ok(None) if !self.retired.get() => None,
                    Ok(None) | Err(_) => Some(None),
                }
            })
            .await
    }

    /// A fetch has failed: the segment may be taken again. `out_of_reach` says why, if nothing can be fetched at all:
    /// readers that need what is missing are told so until [`Partition::note_reachable`].
    pub fn give_back(&self, attempt: AttemptId, segment: SegmentId, out_of_reach: Option<String>) {
        let changed = self.with_filling(attempt, |filling| {
            filling.fetching.remove(&segment);
            filling.out_of_reach = out_of_reach;
        });
        if changed.is_ok() {
            self.filling_changed.notify_all();
        }
    }

    /// What is missing can be fetched again.
    pub fn note_reachable(&self, attempt: AttemptId) {
        let _ = self.with_filling(attempt, |filling| filling.out_of_reach = None);
    }

    fn with_filling<T>(&self, attempt: AttemptId, with: impl FnOnce(&mut Filling) -> T) -> Result<T> {
        let mut filling = self.filling.borrow_mut();
        let filling = filling.as_mut().filter(|filling| filling.attempt == attempt);
        filling.map(with).ok_or_else(|| self.stale(format!("attempt {attempt} fills nothing here")))
    }

    /// Counts a read while segments are missing.
    pub(super) fn count_fill_read(&self) {
        if self.lacks_segments.get()
            && let Some(filling) = self.filling.borrow_mut().as_mut()
        {
            filling.reads += 1;
        }
    }

    /// Waits until the segment is held.
    ///
    /// Errors: [`Error::OutOfReach`] when it cannot be fetched; [`Error::Moved`] and the like when the partition is served
    /// here no more.
    pub(super) async fn wait_held(&self, segment: SegmentId) -> Result<()> {
        let mut counted = false;
        self.filling_changed
            .wait_for(|| {
                if self.serving() != Serving::Owner && self.serving() != Serving::Frozen {
                    return self.read_gate().filter(Result::is_err);
                }
                let mut filling = self.filling.borrow_mut();
                let Some(open) = filling.as_mut().filter(|open| open.missing.contains(&segment)) else {
                    return Some(Ok(()));
                };
                if let Some(why) = &open.out_of_reach {
                    return Some(Err(Error::OutOfReach { partition: self.id, segment, what: why.clone() }));
                }
                if !counted {
                    counted = true;
                    open.reads_waited += 1;
                }
                if !open.wanted.contains(&segment) {
                    open.wanted.push_back(segment);
                    drop(filling);
                    // A fetcher may wait for just this.
                    self.filling_changed.notify_all();
                }
                None
            })
            .await
    }

    /// The part of `[start, end)` that can be read now, from its beginning on (or, backward, from its end): waits for the
    /// segment there and ends before the next one that is missing.
    pub(super) async fn held_stretch(
        &self,
        start: &Bytes,
        end: Option<&Bytes>,
        direction: Direction,
    ) -> Result<(Bytes, Option<Bytes>)> {
        if !self.lacks_segments.get() {
            return Ok((start.clone(), end.cloned()));
        }
        let layout = self.layout();
        let (first, last) = (layout.locate(start), layout.last_below(end));
        match direction {
            Direction::Forward => {
                self.wait_held(layout.segments[first].id).await?;
                let missing = layout.segments[first..=last].iter().find(|segment| self.lacks(segment.id));
                Ok((start.clone(), missing.map_or_else(|| end.cloned(), |segment| Some(segment.start.clone()))))
            }
            Direction::Backward => {
                self.wait_held(layout.segments[last].id).await?;
                let missing = layout.segments[first..=last].iter().rev().find(|segment| self.lacks(segment.id));
                let from = missing.and_then(|segment| segment.end.clone()).unwrap_or_else(|| start.clone());
                Ok((from, end.cloned()))
            }
        }
    }
}
