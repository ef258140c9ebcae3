//! The target's decisions as a machine: which segments it asks for, and what state it is in.
//!
//! | state | serves | left by |
//! |---|---|---|
//! | `Filling` | nobody | the seal equals, durably |
//! | `Ready` | nobody | the coordinator's record says who owns the partition |
//! | `Promoted` | reads and writes | - |
//!
//! What becomes of a shadow whose control stream is gone is [`super::recovery`]'s to say.

use std::collections::BTreeSet;

use antumbra_engine::types::{SegmentId, ValidationToken};

use super::plan::PlanEntry;

/// Where the shadow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the table above documents them")]
pub enum State {
    Filling,
    Ready,
    Promoted,
}

/// Requests that may be outstanding: enough to keep the stream full, few enough that the newest plan counts.
const OUTSTANDING_MAX: usize = 8;
/// Bytes that may be outstanding.
const OUTSTANDING_BYTES_MAX: u64 = 64 << 20;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    state: State,
    /// Segments of the newest plan with their bytes, best first.
    plan: Vec<(ValidationToken, u64)>,
    outstanding: Vec<(SegmentId, u64)>,
    held: BTreeSet<SegmentId>,
}

impl Default for Target {
    fn default() -> Target {
        Target { state: State::Filling, plan: Vec::new(), outstanding: Vec::new(), held: BTreeSet::new() }
    }
}

impl Target {
    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The segments of the newest plan, best first.
    #[must_use]
    pub fn order(&self) -> Vec<SegmentId> {
        self.plan.iter().map(|(token, _)| token.segment).collect()
    }

    /// A new plan replaces the old one. Returns what to ask for now.
    pub fn handle_plan(&mut self, plan: Vec<PlanEntry>) -> Vec<ValidationToken> {
        self.plan = plan.iter().map(|entry| (entry.token, entry.bytes)).collect();
        self.next_requests()
    }

    /// A segment has changed since the plan: it is asked for in its new version at once, since it was its turn.
    pub fn handle_stale(&mut self, token: ValidationToken) -> Option<ValidationToken> {
        let waited = self.outstanding.iter().any(|(segment, _)| *segment == token.segment);
        (waited && self.state == State::Filling).then_some(token)
    }

    /// A segment is installed. Returns what to ask for now.
    pub fn handle_installed(&mut self, segment: SegmentId) -> Vec<ValidationToken> {
        self.held.insert(segment);
        self.outstanding.retain(|(other, _)| *other != segment);
        self.next_requests()
    }

    /// The source is back over a new link, and may not have heard what it was asked for: its next plan has what it has not
    /// sent, and nothing is asked for until then.
    pub fn handle_resumed(&mut self) {
        self.outstanding.clear();
        self.plan.clear();
    }

    /// The seal equals and readiness is durable.
    pub fn handle_ready(&mut self) {
        self.become_state(State::Filling, State::Ready);
    }

    /// The coordinator recorded this host as the owner.
    pub fn handle_promoted(&mut self) {
        self.become_state(State::Ready, State::Promoted);
    }

    fn become_state(&mut self, from: State, to: State) {
        assert_eq!(self.state, from, "INV-SWITCH: {:?} does not become {to:?}", self.state);
        self.state = to;
    }

    fn next_requests(&mut self) -> Vec<ValidationToken> {
        let mut requests = Vec::new();
        if self.state != State::Filling {
            return requests;
        }
        for &(token, size) in &self.plan {
            let bytes: u64 = self.outstanding.iter().map(|(_, bytes)| bytes).sum();
            if self.outstanding.len() == OUTSTANDING_MAX || (bytes > 0 && bytes + size > OUTSTANDING_BYTES_MAX) {
                break;
            }
            let segment = token.segment;
            let known = self.held.contains(&segment) || self.outstanding.iter().any(|(other, _)| *other == segment);
            if !known {
                self.outstanding.push((segment, size));
                requests.push(token);
            }
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use antumbra_engine::types::Lsn;
    use proptest::prelude::*;

    use super::*;

    fn entry(segment: u64) -> PlanEntry {
        let token = ValidationToken { segment: SegmentId(segment), version: Lsn(0), checksum: 0 };
        PlanEntry { token, score: 0.0, bytes: 1 << 20 }
    }

    proptest! {
        #[test]
        fn every_segment_is_asked_for_once_whatever_the_plans(
            segments in 1..40u64, shuffles in prop::collection::vec(any::<u64>(), 1..60)
        ) {
            let mut target = Target::default();
            let (mut asked, mut open) = (BTreeSet::new(), Vec::new());
            for turn in 0..400 {
                let mut plan: Vec<PlanEntry> =
                    (0..segments).filter(|id| !asked.contains(id)).map(entry).collect();
                fastrand::Rng::with_seed(shuffles[turn % shuffles.len()]).shuffle(&mut plan);
                let mut requests = target.handle_plan(plan);
                if let Some(done) = open.pop() {
                    requests.extend(target.handle_installed(done));
                }
                for token in requests {
                    prop_assert!(asked.insert(token.segment.0), "asked twice");
                    open.push(token.segment);
                }
                prop_assert!(open.len() <= OUTSTANDING_MAX);
            }
            prop_assert_eq!(asked.len() as u64, segments);
        }
    }
}
