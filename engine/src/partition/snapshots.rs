//! Which old versions somebody still needs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::types::Lsn;

#[derive(Debug)]
struct Pinned {
    id: u64,
    lsn: Lsn,
    wall_ms: u64,
}

/// The pinned snapshots of one partition.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    pinned: RefCell<Vec<Pinned>>,
    next_id: Cell<u64>,
}

impl Snapshots {
    /// Keeps every version that a reader at `lsn` sees, and what had not expired at `wall_ms`, until the pin is
    /// dropped.
    pub fn pin(self: &Rc<Snapshots>, lsn: Lsn, wall_ms: u64) -> SnapshotPin {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.pinned.borrow_mut().push(Pinned { id, lsn, wall_ms });
        SnapshotPin { snapshots: Rc::clone(self), id, moment: Moment { lsn, wall_ms } }
    }

    /// The pinned LSNs, ascending, without repetition.
    pub fn lsns(&self) -> Vec<Lsn> {
        let mut lsns: Vec<Lsn> = self.pinned.borrow().iter().map(|pinned| pinned.lsn).collect();
        lsns.sort_unstable();
        lsns.dedup();
        lsns
    }

    /// The oldest pinned LSN, or `visible` if that is older: nobody reads below it.
    pub fn horizon(&self, visible: Lsn) -> Lsn {
        self.pinned.borrow().iter().map(|pinned| pinned.lsn).min().map_or(visible, |oldest| oldest.min(visible))
    }

    /// The time by which records count as expired: now, or the oldest pin's time if that is earlier.
    pub fn expiry_horizon_ms(&self, now_ms: u64) -> u64 {
        self.pinned.borrow().iter().map(|pinned| pinned.wall_ms).min().map_or(now_ms, |oldest| oldest.min(now_ms))
    }
}

/// A moment in a partition's history. Readable while a pin of it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The last LSN that a reader sees.
    pub lsn: Lsn,
    /// The time by which deadlines are judged, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
}

/// Keeps a snapshot readable while it lives.
#[derive(Debug)]
pub struct SnapshotPin {
    snapshots: Rc<Snapshots>,
    id: u64,
    moment: Moment,
}

impl SnapshotPin {
    /// The LSN that a reader of this snapshot sees up to.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.moment.lsn
    }

    /// The pinned moment.
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.moment
    }
}

impl Drop for SnapshotPin {
    fn drop(&mut self) {
        self.snapshots.pinned.borrow_mut().retain(|pinned| pinned.id != self.id);
    }
}
