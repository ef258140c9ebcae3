//! The source's decisions as a machine: events in, actions out; no I/O, no clock.
//!
//! | state | reads | writes | left by |
//! |---|---|---|---|
//! | `Opening` | source | source | the target's `Opened` |
//! | `Copying` | source | source | every segment held (or enough of them, if early) and all that was written until then, the mirror's lag within budget |
//! | `Reconnecting` | source | source | the target's `Resumed` |
//! | `Ready` | source | source, acknowledged when both have it | the policy lets it switch |
//! | `Freezing` | source | parked | the engine stands still at LSN F |
//! | `Tail` | source | parked | the target has acknowledged F |
//! | `Verifying` | source | parked | the target's `SealOk` |
//! | `Committing` | source, until the read lease has run out | parked | the coordinator's record has been *read* as committed |
//! | `HandingOver` | both | parked | the source serves no more |
//! | `Promoting` | target | forwarded | the target's `Promoted`, or its loss |
//! | `Draining` | target | target | the target has fetched what an early switchover left here |
//! | `Digesting` | target | target | both digests are there |
//! | `AwaitingTarget` | target, once it serves | forwarded | the target has completed the attempt by itself |
//! | `Complete` | target | target | - |
//! | `Aborting` | source | as before, or parked | the coordinator's record has been read as aborted |
//! | `Aborted` | source | source | - |
//!
//! Any failure before `Committing` leads to `Aborting`, but a lost link while no write waits for the target: the target
//! keeps what it holds, and the attempt goes on over a new one. In `Committing` only the coordinator's record decides. After it
//! there is no way back: what fails is tried again. A target that is lost after the commit serves by the coordinator's
//! record when it is back (see [`super::recovery`]); the source keeps its copy until the record says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use antumbra_engine::types::{Lsn, SegmentId, ValidationToken};

/// Where the move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the table above documents them")]
pub enum State {
    Opening,
    Copying,
    Reconnecting,
    Ready,
    Freezing,
    Tail,
    Verifying,
    Committing,
    HandingOver,
    Promoting,
    Draining,
    Digesting,
    AwaitingTarget,
    Complete,
    Aborting,
    Aborted,
}

impl State {
    /// Whether the table of transitions has this one.
    #[must_use]
    pub fn may_become(self, next: State) -> bool {
        use State::{
            Aborted, Aborting, AwaitingTarget, Committing, Complete, Copying, Digesting, Draining, Freezing,
            HandingOver, Opening, Promoting, Ready, Reconnecting, Tail, Verifying,
        };
        matches!(
            (self, next),
            (Opening, Copying)
                | (Copying, Ready | Reconnecting)
                | (Reconnecting, Copying)
                | (Ready, Freezing)
                | (Freezing, Tail)
                | (Tail, Verifying)
                | (Verifying, Committing)
                | (Committing, HandingOver | Aborting)
                | (HandingOver, Promoting)
                | (Promoting, Draining | Digesting | AwaitingTarget)
                | (Draining, Digesting | AwaitingTarget)
                | (Digesting | AwaitingTarget, Complete)
                | (Aborting, Aborted)
                | (Opening | Copying | Reconnecting | Ready | Freezing | Tail | Verifying, Aborting)
        )
    }

    /// Whether the move can still be given up.
    #[must_use]
    pub fn may_abort(self) -> bool {
        self.may_become(State::Aborting) && self != State::Committing
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The target created the shadow.
    Opened,
    /// The target asks for a segment; `present` is its present version.
    Requested {
        /// What the target asked for.
        wanted: ValidationToken,
        /// What the source has.
        present: ValidationToken,
    },
    /// The target installed a segment.
    Held(SegmentId),
    /// The target has made durable everything up to here.
    Acked(Lsn),
    /// The last LSN that the source has assigned; told at regular intervals.
    Assigned(Lsn),
    /// What the target holds is enough for an early switchover.
    EnoughHeld,
    /// The policy (or a person) lets the switchover begin.
    Allowed,
    /// Writes stand still.
    Frozen(Lsn),
    /// The target's state equals the source's and is durable.
    SealOk,
    /// The coordinator's record says: committed.
    Committed,
    /// The coordinator's record says: not committed, and never will be.
    NotCommitted(String),
    /// The source serves no more.
    HandedOver,
    /// The target serves.
    Promoted,
    /// The digests have been compared.
    Digested,
    /// The target cannot be reached any more.
    TargetLost,
    /// The target has the shadow still, over a new link.
    Resumed {
        /// The segments that it holds.
        held: Vec<SegmentId>,
    },
    /// The coordinator's record says: the target has completed the attempt.
    Completed,
    /// The coordinator's record says: aborted. The source serves again.
    Aborted,
    /// Something failed.
    Failed(String),
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Capture, send and cover this segment.
    SendSegment(SegmentId),
    /// Tell the target the segment's present version.
    SendStale(ValidationToken),
    /// Ask for the shadow over a new link; the mirror goes on behind what the target has.
    Reconnect,
    /// Acknowledge only what the target has, from now on.
    SetSynchronous,
    /// Park writes.
    Freeze,
    /// Send the seal.
    SendSeal,
    /// Commit at the coordinator, until its record is known.
    Commit,
    /// Stop serving.
    HandOver,
    /// Tell the target to serve.
    Promote,
    /// Compare digests of both sides.
    Digest,
    /// Read the record until the target has completed the attempt.
    AwaitTarget,
    /// Close the attempt.
    Complete,
    /// Abort at the coordinator, until its record is known, then serve again.
    Abort(String),
}

/// Limits of one move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Stale requests after which a segment is sent in whatever version it has.
    pub retries_max: u32,
    /// Records that the target may lack when the mirror becomes synchronous.
    pub lag_max: u64,
    /// Looks (see [`Event::Assigned`]) that a copy whose mirror stays further behind than that waits for.
    pub patience_looks: u32,
    /// After them it is enough that the target has what was assigned this many looks ago: on a slow link or a busy machine
    /// the lag never falls below [`Limits::lag_max`], and writers that wait for the target end it.
    pub late_looks: usize,
    /// A standby that no write waits for: the mirror turns synchronous only when the switchover is allowed.
    pub asynchronous: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { retries_max: 2, lag_max: 256, patience_looks: 25, late_looks: 5, asynchronous: false }
    }
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    state: State,
    limits: Limits,
    /// Segments not held yet, with how often their request was stale.
    missing: BTreeMap<SegmentId, u32>,
    sending: BTreeSet<SegmentId>,
    acked: Lsn,
    assigned: Lsn,
    /// What was assigned at the last looks, the oldest first.
    looks: VecDeque<Lsn>,
    /// Looks since the target holds enough.
    waited_looks: u32,
    last: Option<Lsn>,
    /// What was assigned when the target came to hold enough, once it does: until it has that, it stands behind by what gathers while
    /// nobody is in a hurry, and writers would wait for that.
    due: Option<Lsn>,
    enough: bool,
    allowed: bool,
    /// Requests answered with a newer token.
    pub token_retries: u64,
}

impl Source {
    /// A move of these segments.
    #[must_use]
    pub fn new(segments: impl IntoIterator<Item = SegmentId>, from: Lsn, limits: Limits) -> Source {
        Source {
            state: State::Opening,
            limits,
            missing: segments.into_iter().map(|segment| (segment, 0)).collect(),
            sending: BTreeSet::new(),
            acked: from,
            assigned: from,
            looks: VecDeque::new(),
            waited_looks: 0,
            last: None,
            due: None,
            enough: false,
            allowed: false,
            token_retries: 0,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Segments that nobody has asked for yet, or whose copy is under way.
    #[must_use]
    pub fn is_missing(&self, segment: SegmentId) -> bool {
        self.missing.contains_key(&segment) && !self.sending.contains(&segment)
    }

    /// Whether the target holds the segment.
    #[must_use]
    pub fn is_held(&self, segment: SegmentId) -> bool {
        !self.missing.contains_key(&segment)
    }

    /// The last LSN that the target has made durable.
    #[must_use]
    pub fn acked(&self) -> Lsn {
        self.acked
    }

    /// Records that the target has not made durable yet, as far as known.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.assigned.0.saturating_sub(self.acked.0)
    }

    /// Number of segments that the target holds not yet.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Takes an event; one that the present state does not expect changes nothing.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Opened if self.state == State::Opening => self.become_state(State::Copying),
            Event::Requested { wanted, present } => return self.answer_request(wanted, present),
            Event::Held(segment) if self.expects_held(segment) => {
                self.missing.remove(&segment);
                self.sending.remove(&segment);
                if self.state == State::Draining && self.missing.is_empty() {
                    self.become_state(State::Digesting);
                    return vec![Action::Digest];
                }
            }
            Event::EnoughHeld => self.enough = true,
            Event::Acked(lsn) => self.acked = self.acked.max(lsn),
            Event::Assigned(lsn) => {
                self.assigned = self.assigned.max(lsn);
                self.looks.push_back(self.assigned);
                if self.looks.len() > self.limits.late_looks {
                    self.looks.pop_front();
                }
                self.waited_looks += u32::from(self.holds_enough());
            }
            Event::Allowed => self.allowed = true,
            Event::Frozen(last) if self.state == State::Freezing => {
                self.last = Some(last);
                self.become_state(State::Tail);
            }
            Event::SealOk if self.state == State::Verifying => {
                self.become_state(State::Committing);
                return vec![Action::Commit];
            }
            Event::Committed if self.state == State::Committing => {
                self.become_state(State::HandingOver);
                return vec![Action::HandOver];
            }
            Event::NotCommitted(what) if self.state == State::Committing => {
                self.become_state(State::Aborting);
                return vec![Action::Abort(what)];
            }
            Event::HandedOver if self.state == State::HandingOver => {
                self.become_state(State::Promoting);
                return vec![Action::Promote];
            }
            Event::Promoted if self.state == State::Promoting && !self.missing.is_empty() => {
                self.become_state(State::Draining);
            }
            Event::Promoted if self.state == State::Promoting => {
                self.become_state(State::Digesting);
                return vec![Action::Digest];
            }
            Event::Digested if self.state == State::Digesting => {
                self.become_state(State::Complete);
                return vec![Action::Complete];
            }
            Event::TargetLost if self.state == State::Copying => {
                self.become_state(State::Reconnecting);
                return vec![Action::Reconnect];
            }
            Event::Resumed { held } if self.state == State::Reconnecting => {
                // What else was sent is on its way still, or will be sent again.
                for segment in held.into_iter().filter(|segment| self.sending.remove(segment)) {
                    self.missing.remove(&segment);
                }
                self.become_state(State::Copying);
            }
            Event::TargetLost if matches!(self.state, State::Promoting | State::Draining) => {
                self.become_state(State::AwaitingTarget);
                return vec![Action::AwaitTarget];
            }
            Event::Completed if self.state == State::AwaitingTarget => self.become_state(State::Complete),
            Event::Aborted if self.state == State::Aborting => self.become_state(State::Aborted),
            Event::Failed(what) if self.state.may_abort() => {
                self.become_state(State::Aborting);
                return vec![Action::Abort(what)];
            }
            // After the commit a failure is the driver's to try again; everything else here came late, or is not true.
            Event::Opened
            | Event::Held(_)
            | Event::Frozen(_)
            | Event::SealOk
            | Event::Committed
            | Event::NotCommitted(_)
            | Event::HandedOver
            | Event::Promoted
            | Event::Digested
            | Event::TargetLost
            | Event::Resumed { .. }
            | Event::Completed
            | Event::Aborted
            | Event::Failed(_) => {}
        }
        self.advance()
    }

    /// Only what was sent can have arrived; what an early switchover left here the target fetches.
    fn expects_held(&self, segment: SegmentId) -> bool {
        let fetches = matches!(self.state, State::HandingOver | State::Promoting | State::Draining);
        self.sending.contains(&segment) || fetches
    }

    fn answer_request(&mut self, wanted: ValidationToken, present: ValidationToken) -> Vec<Action> {
        let expected = matches!(self.state, State::Copying | State::Ready);
        let Some(retries) = self.missing.get_mut(&wanted.segment).filter(|_| expected) else {
            return Vec::new();
        };
        if self.sending.contains(&wanted.segment) {
            return Vec::new();
        }
        if wanted != present && *retries < self.limits.retries_max {
            *retries += 1;
            self.token_retries += 1;
            return vec![Action::SendStale(present)];
        }
        // Written all the time: its delta completes it.
        self.sending.insert(wanted.segment);
        vec![Action::SendSegment(wanted.segment)]
    }

    /// Whether the target holds what it is to hold at the switchover: from then on its lag is what is waited for.
    #[must_use]
    pub fn holds_enough(&self) -> bool {
        self.missing.is_empty() || self.enough
    }

    /// What follows from the counters.
    fn advance(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.holds_enough() {
            self.due.get_or_insert(self.assigned);
        }
        let caught_up = self.due.is_some_and(|due| self.acked >= due);
        let patient = self.waited_looks >= self.limits.patience_looks;
        let near = self.lag() <= self.limits.lag_max
            || patient && self.looks.front().is_some_and(|assigned| self.acked >= *assigned);
        let wanted = self.allowed || !self.limits.asynchronous;
        if self.state == State::Copying && caught_up && near && wanted {
            self.become_state(State::Ready);
            actions.push(Action::SetSynchronous);
        }
        if self.state == State::Ready && self.allowed {
            self.become_state(State::Freezing);
            actions.push(Action::Freeze);
        }
        if self.state == State::Tail && self.last.is_some_and(|last| self.acked >= last) {
            self.become_state(State::Verifying);
            actions.push(Action::SendSeal);
        }
        actions
    }

    fn become_state(&mut self, next: State) {
        assert!(self.state.may_become(next), "INV-SWITCH: {:?} does not become {next:?}", self.state);
        self.state = next;
    }
}

#[cfg(test)]
mod tests;
