//! Which records of a partition are assigned, durable and visible. Sans-IO.
//!
//! - `INV-ORDER`: LSNs are assigned without a gap and become durable and visible in order.
//! - `INV-ACK`: a durable write is acknowledged only when its record is visible, and a record becomes visible only
//!   when it is durable here and, under a synchronous mirror, at the target too.
//! - A `Buffered` write may *expose* its record early; records before it are exposed with it, since readers see one
//!   prefix of the history.

use std::collections::VecDeque;
use std::task::Waker;

use crate::types::{Lsn, WalSeq};

/// The counters of one partition.
#[derive(Debug)]
pub(crate) struct Progress {
    assigned: Lsn,
    durable: Lsn,
    exposed: Lsn,
    visible: Lsn,
    /// Last LSN that the target of a synchronous mirror has made durable; `None` without one.
    mirrored: Option<Lsn>,
    /// Batches not yet durable, with the last LSN each of them holds.
    pending: VecDeque<(WalSeq, Lsn)>,
    waiters: VecDeque<(Lsn, Waker)>,
}

impl Progress {
    /// A partition whose history ends, durable and visible, at `last`.
    pub fn new(last: Lsn) -> Progress {
        Progress {
            assigned: last,
            durable: last,
            exposed: last,
            visible: last,
            mirrored: None,
            pending: VecDeque::new(),
            waiters: VecDeque::new(),
        }
    }

    /// The last LSN assigned.
    pub fn assigned(&self) -> Lsn {
        self.assigned
    }

    /// The last LSN that is on the device.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The last LSN that readers see.
    pub fn visible(&self) -> Lsn {
        self.visible
    }

    /// Assigns the next LSN.
    pub fn assign(&mut self) -> Lsn {
        self.assigned = self.assigned.next();
        self.assigned
    }

    /// Notes that the record just assigned lies in batch `seq`.
    pub fn submitted(&mut self, seq: WalSeq) {
        match self.pending.back_mut() {
            Some((last_seq, last_lsn)) if *last_seq == seq => *last_lsn = self.assigned,
            _ => self.pending.push_back((seq, self.assigned)),
        }
    }

    /// Notes that every batch up to `seq` is on the device. Wakes whom it concerns.
    pub fn handle_durable(&mut self, seq: WalSeq) {
        while let Some(&(batch, lsn)) = self.pending.front() {
            if batch > seq {
                break;
            }
            self.pending.pop_front();
            self.durable = lsn;
        }
        self.advance();
    }

    /// Shows everything up to `lsn` to readers without waiting for the device (a buffered write).
    pub fn expose(&mut self, lsn: Lsn) {
        self.exposed = self.exposed.max(lsn);
        self.advance();
    }

    /// Starts or stops waiting for the mirror: `Some(lsn)` is the last LSN that the target holds.
    pub fn set_mirrored(&mut self, mirrored: Option<Lsn>) {
        self.mirrored = mirrored;
        self.advance();
    }

    /// Whether a synchronous mirror is waited for.
    pub fn is_synchronous(&self) -> bool {
        self.mirrored.is_some()
    }

    /// Registers a task to be woken once `lsn` is visible (or anything fails).
    pub fn wait(&mut self, lsn: Lsn, waker: Waker) {
        let position = self.waiters.iter().rposition(|(other, _)| *other <= lsn).map_or(0, |index| index + 1);
        self.waiters.insert(position, (lsn, waker));
    }

    /// Wakes every waiting task: the WAL failed, or the partition is leaving.
    pub fn wake_all(&mut self) {
        for (_, waker) in self.waiters.drain(..) {
            waker.wake();
        }
    }

    /// Jumps to `last` as the end of a history that was written elsewhere (promotion of a shadow).
    pub fn adopt(&mut self, last: Lsn) {
        assert!(self.pending.is_empty(), "INV-ORDER: a shadow is promoted when all its records are durable");
        *self = Progress { waiters: std::mem::take(&mut self.waiters), ..Progress::new(last) };
        self.wake_all();
    }

    fn advance(&mut self) {
        let confirmed = self.mirrored.map_or(self.durable, |mirrored| mirrored.min(self.durable));
        let visible = confirmed.max(self.exposed);
        assert!(visible <= self.assigned, "INV-ORDER: nothing is visible that was not assigned");
        // A mirror that turns synchronous may lag behind what readers saw already; what was seen stays seen.
        self.visible = self.visible.max(visible);
        while let Some((lsn, _)) = self.waiters.front() {
            if *lsn > self.visible {
                break;
            }
            if let Some((_, waker)) = self.waiters.pop_front() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(progress: &mut Progress, seq: u64) -> Lsn {
        let lsn = progress.assign();
        progress.submitted(WalSeq(seq));
        lsn
    }

    #[test]
    fn handle_durable_batch_makes_its_records_visible() {
        let mut progress = Progress::new(Lsn(10));
        for seq in [1, 1, 2] {
            write(&mut progress, seq);
        }
        assert_eq!(progress.visible(), Lsn(10));
        progress.handle_durable(WalSeq(1));
        assert_eq!(progress.visible(), Lsn(12));
        progress.handle_durable(WalSeq(2));
        assert_eq!(progress.visible(), Lsn(13));
    }

    #[test]
    fn synchronous_mirror_lagging_holds_acks_back() {
        let mut progress = Progress::new(Lsn(0));
        write(&mut progress, 1);
        progress.handle_durable(WalSeq(1));
        progress.set_mirrored(Some(Lsn(1)));
        write(&mut progress, 2);
        progress.handle_durable(WalSeq(2));
        assert_eq!(progress.visible(), Lsn(1), "the target has not acknowledged LSN 2");
        progress.set_mirrored(Some(Lsn(2)));
        assert_eq!(progress.visible(), Lsn(2));
    }

    #[test]
    fn synchronous_mirror_dropped_acks_alone() {
        let mut progress = Progress::new(Lsn(0));
        progress.set_mirrored(Some(Lsn(0)));
        write(&mut progress, 1);
        progress.handle_durable(WalSeq(1));
        assert_eq!(progress.visible(), Lsn(0));
        progress.set_mirrored(None);
        assert_eq!(progress.visible(), Lsn(1));
    }

    #[test]
    fn synchronous_mirror_behind_never_takes_visible_back() {
        let mut progress = Progress::new(Lsn(0));
        write(&mut progress, 1);
        progress.handle_durable(WalSeq(1));
        progress.set_mirrored(Some(Lsn(0)));
        assert_eq!(progress.visible(), Lsn(1));
    }

    #[test]
    fn expose_buffered_write_is_seen_before_it_is_durable() {
        let mut progress = Progress::new(Lsn(0));
        write(&mut progress, 1);
        let buffered = write(&mut progress, 1);
        progress.expose(buffered);
        assert_eq!((progress.visible(), progress.durable()), (Lsn(2), Lsn(0)));
    }
}
