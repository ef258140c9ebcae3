//! What becomes of a partition on a host that has no move of it under way: after a restart, after a lost link, after an
//! answer that never came. Decided from what the host holds and from the coordinator's record alone; no I/O, no clock.
//!
//! | the host holds | record | verdict |
//! |---|---|---|
//! | owner | owned here, stable | serve |
//! | owner | owned here, moving | abort that attempt, then look again: whoever drove it is gone |
//! | owner | owned here, committed | serve, and complete the attempt: its source is gone |
//! | owner, segments missing | owned here, committed | serve, and fetch the rest from the attempt's source |
//! | owner | owned elsewhere | release |
//! | shadow | moving, this attempt | wait |
//! | shadow | owned here | promote: only an attempt whose readiness was durable can have been committed, or it was promoted by force |
//! | shadow | anything else | discard |
//! | released | owned elsewhere, stable, this copy kept for a roll-back | wait |
//! | released | owned elsewhere, stable | drop |
//! | released | owned elsewhere, diverged from here | hand out what was written here alone |
//! | released | owned elsewhere, not stable | wait |
//!
//! - `INV-READS`: a frozen source whose outcome is not known serves reads for [`READ_LEASE`] at most, counted from the
//!   freeze and checked by each read; a target that is promoted by this table, and not by its source, waits
//!   [`PROMOTE_WAIT`] after it has *read* the commit, which came after the freeze. So no read begins at the old owner
//!   once the new one accepts writes, whatever the link does. Only the rates of the two clocks have to agree, within a
//!   quarter.

use std::time::Duration;

use antumbra_engine::types::{AttemptId, Epoch, HostId, Lsn};

use crate::coordinator::{Diverged, PartitionRecord, RecordState};

/// For how long a frozen source serves reads without knowing the outcome.
pub const READ_LEASE: Duration = Duration::from_secs(1);
/// How long a target waits that has read the commit but has not been told by its source.
pub const PROMOTE_WAIT: Duration = Duration::from_millis(1_250);

/// What a host holds of a partition, as far as it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// It owned the partition when it last knew.
    Owner,
    /// The same, after an early switchover: some segments are still at the source.
    Partly,
    /// A shadow of this attempt.
    Shadow(AttemptId),
    /// A copy that another host took over.
    Released,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Serve in this epoch.
    Serve(Epoch),
    /// Serve in this epoch, and complete the attempt at the coordinator.
    ServeAndComplete(Epoch, AttemptId),
    /// Abort the attempt at the coordinator, then look again.
    Abort(AttemptId),
    /// Serve in this epoch, and fetch what is missing from this host, for this attempt.
    Fill(Epoch, AttemptId, HostId),
    /// Answer that this host owns it in this epoch.
    Release(HostId, Epoch),
    /// Serve in this epoch from the shadow of the attempt, after [`PROMOTE_WAIT`].
    Promote(AttemptId, Epoch),
    /// Drop the shadow of the attempt.
    Discard(AttemptId),
    /// Hand out to this host what was written here alone, for the attempt that was promoted by force.
    Return(HostId, AttemptId),
    /// Drop the released copy.
    Drop,
    /// Look again later.
    Wait,
}

/// The table above.
#[must_use]
pub fn verdict(host: HostId, held: Held, record: &PartitionRecord) -> Verdict {
    let (owner, epoch) = (HostId(record.owner), Epoch(record.epoch));
    let owned_here = owner == host;
    match (held, &record.state) {
        (Held::Owner | Held::Partly, _) if !owned_here => Verdict::Release(owner, epoch),
        (Held::Owner | Held::Partly, RecordState::Stable) => Verdict::Serve(epoch),
        (Held::Owner | Held::Partly, RecordState::Moving(moving)) => Verdict::Abort(AttemptId(moving.attempt)),
        (Held::Partly, RecordState::Committed(moving)) => {
            Verdict::Fill(epoch, AttemptId(moving.attempt), HostId(moving.source))
        }
        (Held::Owner, RecordState::Committed(moving)) => Verdict::ServeAndComplete(epoch, AttemptId(moving.attempt)),
        (Held::Shadow(attempt), RecordState::Moving(moving)) if moving.attempt == attempt.0 => Verdict::Wait,
        (Held::Shadow(attempt), _) if owned_here => Verdict::Promote(attempt, epoch),
        (Held::Shadow(attempt), _) => Verdict::Discard(attempt),
        (Held::Released, RecordState::Stable) if !owned_here => match diverged_at(host, record) {
            Some(diverged) => Verdict::Return(owner, AttemptId(diverged.attempt)),
            None if is_former(host, record) => Verdict::Wait,
            None => Verdict::Drop,
        },
        (Held::Released, _) => Verdict::Wait,
    }
}

/// Whether the record keeps this host's copy for a roll-back.
#[must_use]
pub fn is_former(host: HostId, record: &PartitionRecord) -> bool {
    record.former.as_ref().is_some_and(|former| former.host == host.0)
}

/// The base of a roll-back that the owner has to keep, by its last LSN.
#[must_use]
pub fn base_kept_by(host: HostId, record: &PartitionRecord) -> Option<Lsn> {
    record.former.as_ref().filter(|_| record.owner == host.0).map(|former| Lsn(former.lsn))
}

/// Where this host's history parted from the owner's, if it did.
#[must_use]
pub fn diverged_at(host: HostId, record: &PartitionRecord) -> Option<&Diverged> {
    record.diverged.as_ref().filter(|diverged| diverged.host == host.0 && record.owner != host.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{Former, Moving};

    const ME: HostId = HostId(1);
    const OTHER: HostId = HostId(2);

    fn record(owner: HostId, state: RecordState) -> PartitionRecord {
        let (keyspace, history) = ("default".into(), Vec::new());
        let owner = owner.0;
        PartitionRecord {
            partition: 1,
            keyspace,
            slots: (0, 1),
            owner,
            epoch: 7,
            state,
            revision: 1,
            history,
            diverged: None,
            former: None,
        }
    }

    fn moving(attempt: u64) -> RecordState {
        RecordState::Moving(Moving { attempt, source: OTHER.0, destination: ME.0 })
    }

    fn committed(attempt: u64) -> RecordState {
        RecordState::Committed(Moving { attempt, source: OTHER.0, destination: ME.0 })
    }

    #[test]
    fn owner_serves_only_what_the_record_gives_it() {
        let of = |record| verdict(ME, Held::Owner, &record);
        assert_eq!(of(record(ME, RecordState::Stable)), Verdict::Serve(Epoch(7)));
        assert_eq!(of(record(ME, moving(3))), Verdict::Abort(AttemptId(3)));
        assert_eq!(of(record(ME, committed(3))), Verdict::ServeAndComplete(Epoch(7), AttemptId(3)));
        for state in [RecordState::Stable, moving(3), committed(3)] {
            assert_eq!(of(record(OTHER, state)), Verdict::Release(OTHER, Epoch(7)));
        }
    }

    #[test]
    fn owner_that_lacks_segments_completes_nothing() {
        let of = |record| verdict(ME, Held::Partly, &record);
        assert_eq!(of(record(ME, committed(3))), Verdict::Fill(Epoch(7), AttemptId(3), OTHER));
        assert_eq!(of(record(OTHER, committed(3))), Verdict::Release(OTHER, Epoch(7)));
    }

    #[test]
    fn shadow_waits_for_its_own_attempt_alone() {
        let of = |record| verdict(ME, Held::Shadow(AttemptId(3)), &record);
        assert_eq!(of(record(OTHER, moving(3))), Verdict::Wait);
        assert_eq!(of(record(OTHER, moving(4))), Verdict::Discard(AttemptId(3)), "a later attempt");
        assert_eq!(of(record(OTHER, RecordState::Stable)), Verdict::Discard(AttemptId(3)), "aborted");
        assert_eq!(of(record(ME, committed(3))), Verdict::Promote(AttemptId(3), Epoch(7)));
        assert_eq!(of(record(ME, RecordState::Stable)), Verdict::Promote(AttemptId(3), Epoch(7)));
    }

    #[test]
    fn diverged_copy_is_handed_out_before_it_goes() {
        let diverged = |host: HostId| Diverged { host: host.0, attempt: 3, lsn: 9, policy: "lww".into(), until: None };
        let of = |held, owner, host| {
            let record = PartitionRecord { diverged: Some(diverged(host)), ..record(owner, RecordState::Stable) };
            verdict(ME, held, &record)
        };
        assert_eq!(of(Held::Owner, OTHER, ME), Verdict::Release(OTHER, Epoch(7)));
        assert_eq!(of(Held::Released, OTHER, ME), Verdict::Return(OTHER, AttemptId(3)));
        assert_eq!(of(Held::Released, OTHER, HostId(3)), Verdict::Drop, "another host's copy");
        assert_eq!(of(Held::Shadow(AttemptId(3)), ME, OTHER), Verdict::Promote(AttemptId(3), Epoch(7)));
        assert_eq!(of(Held::Owner, ME, OTHER), Verdict::Serve(Epoch(7)));
    }

    #[test]
    fn released_copy_goes_when_the_new_owner_is_settled() {
        let of = |record| verdict(ME, Held::Released, &record);
        assert_eq!(of(record(OTHER, committed(3))), Verdict::Wait);
        assert_eq!(of(record(OTHER, RecordState::Stable)), Verdict::Drop);
        let kept = |host: HostId| PartitionRecord {
            former: Some(Former { host: host.0, attempt: 3, lsn: 5 }),
            ..record(OTHER, RecordState::Stable)
        };
        assert_eq!(of(kept(ME)), Verdict::Wait, "a roll-back may want it");
        assert_eq!(of(kept(HostId(3))), Verdict::Drop, "it has moved on since");
        assert_eq!((base_kept_by(OTHER, &kept(ME)), base_kept_by(ME, &kept(ME))), (Some(Lsn(5)), None));
    }
}
