//! Which records of a partition are assigned, durable and visible. Sans-IO.
//!
//! - `INV-ORDER`: LSNs are assigned without a gap and become durable and visible in order.
//! - `INV-ACK`: a durable write is acknowledged only when its record is *confirmed*: durable here and, under a synchronous
//!   mirror, at the target too. What is confirmed is visible. That a record is visible does not confirm it: a buffered
//!   write behind it may have exposed it.
//! - `INV-ATOMIC`: the visible LSN never stands inside an atomic batch. One batch of the log holds all of it, but a
//!   mirror acknowledges any LSN.
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
    confirmed: Lsn,
    visible: Lsn,
    /// Last LSN that the target of a synchronous mirror has made durable; `None` without one.
    mirrored: Option<Lsn>,
    /// Batches not yet durable, with the last LSN each of them holds.
    pending: VecDeque<(WalSeq, Lsn)>,
    /// First and last LSN of each atomic batch that readers do not see yet.
    groups: VecDeque<(Lsn, Lsn)>,
    waiters: VecDeque<(Lsn, Waker)>,
}

impl Progress {
    /// A partition whose history ends, durable and visible, at `last`.
    pub fn new(last: Lsn) -> Progress {
        Progress {
            assigned: last,
            durable: last,
            exposed: last,
            confirmed: last,
            visible: last,
            mirrored: None,
            pending: VecDeque::new(),
            groups: VecDeque::new(),
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

    /// The last LSN that may be acknowledged as durable.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
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

    /// The last batch that holds a record and is not known to be on the device; `None` if there is none.
    pub fn last_submitted(&self) -> Option<WalSeq> {
        self.pending.back().map(|(seq, _)| *seq)
    }

    /// Notes that the record just assigned goes to no log: whoever waits for it waits for what was logged before it.
    pub fn unlogged(&mut self) {
        match self.pending.back_mut() {
            Some((_, last_lsn)) => *last_lsn = self.assigned,
            None => {
                self.durable = self.assigned;
                self.advance();
            }
        }
    }

    /// Notes that the records from `first` on, up to the one just assigned, become visible together. Called before any of
    /// them can be durable.
    pub fn group(&mut self, first: Lsn) {
        if first < self.assigned {
            self.groups.push_back((first, self.assigned));
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

    /// Registers a task to be woken once `lsn` is confirmed (or anything fails).
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

    /// `lsn`, or the end of the history before the atomic batch that it lies in.
    fn before_open_group(&mut self, lsn: Lsn) -> Lsn {
        while self.groups.front().is_some_and(|(_, last)| *last <= lsn) {
            self.groups.pop_front();
        }
        match self.groups.front() {
            Some((first, _)) if *first <= lsn => Lsn(first.0 - 1),
            _ => lsn,
        }
    }

    fn advance(&mut self) {
        let confirmed = self.mirrored.map_or(self.durable, |mirrored| mirrored.min(self.durable));
        // A mirror that turns synchronous may lag behind what was acknowledged or seen already; that stays.
        self.confirmed = self.confirmed.max(confirmed);
        let visible = self.before_open_group(confirmed.max(self.exposed));
        assert!(visible <= self.assigned, "INV-ORDER: nothing is visible that was not assigned");
        self.visible = self.visible.max(visible);
        while let Some((lsn, _)) = self.waiters.front() {
            if *lsn > self.confirmed {
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
    fn expose_behind_a_durable_write_does_not_confirm_it() {
        let mut progress = Progress::new(Lsn(0));
        let durable = write(&mut progress, 1);
        let buffered = write(&mut progress, 1);
        progress.expose(buffered);
        assert!(progress.visible() >= durable && progress.confirmed() < durable);
        progress.handle_durable(WalSeq(1));
        assert_eq!(progress.confirmed(), buffered);
    }

    #[test]
    fn unlogged_record_is_confirmed_with_what_was_logged_before_it() {
        let mut progress = Progress::new(Lsn(0));
        progress.assign();
        progress.unlogged();
        assert_eq!(progress.confirmed(), Lsn(1), "nothing to wait for");
        write(&mut progress, 1);
        progress.assign();
        progress.unlogged();
        assert_eq!(progress.confirmed(), Lsn(1));
        progress.handle_durable(WalSeq(1));
        assert_eq!(progress.confirmed(), Lsn(3));
    }

    #[test]
    fn group_acknowledged_in_the_middle_stays_hidden_until_all_of_it_is() {
        let mut progress = Progress::new(Lsn(0));
        progress.set_mirrored(Some(Lsn(0)));
        write(&mut progress, 1);
        let first = write(&mut progress, 1);
        write(&mut progress, 1);
        write(&mut progress, 1);
        progress.group(first);
        write(&mut progress, 1);
        progress.handle_durable(WalSeq(1));
        let visible = [1, 2, 3, 4, 5].map(|acked| {
            progress.set_mirrored(Some(Lsn(acked)));
            progress.visible().0
        });
        assert_eq!(visible, [1, 1, 1, 4, 5]);
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
