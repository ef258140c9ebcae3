//! While the copy runs: what is looked at regularly, and what a segment's way to the target costs.

use std::time::Duration;

use antumbra_engine::partition::SegmentSummary;
use antumbra_engine::types::SegmentId;

use crate::mutant::{Mutant, planted};
use crate::shadow::message::Message;
use crate::shadow::plan;
use crate::shadow::recovery::READ_LEASE;
use crate::shadow::source::{Action, Event, State};
use crate::time;

use super::Policy;
use super::bulk::{OnBase, Outbound, Route, SegmentCost};
use super::foreground::End;
use super::sending::{Driver, Signal};

/// Writes stand still for this long at most: then the attempt is aborted.
const FREEZE_MAX: Duration = Duration::from_secs(2);
/// A copy in which nothing is sent and no segment is installed for this long has failed.
const STALL_MAX: Duration = Duration::from_secs(15);

impl Driver<'_> {
    /// Lets the copy's rate follow what requests saw since the last look.
    fn govern(&mut self, source_p99: Option<Duration>) {
        if let Some(p99) = source_p99 {
            self.foreground.note(End::Source, p99);
        }
        let (sent_before, looked) = self.looked;
        let (sent, now) = (self.pace.sent_bytes(), time::now());
        self.looked = (sent, now);
        if sent > sent_before {
            self.progressed = now;
        }
        let elapsed = now.saturating_duration_since(looked);
        if let Some(rate) = self.foreground.decide(sent - sent_before, elapsed) {
            self.pace.set_rate(Some(rate));
        }
        self.report.shadow.foreground = self.foreground.accounts();
        let accounts = self.report.shadow.foreground.clone();
        self.handle.note(|progress| progress.foreground = accounts);
    }

    /// A look at the limits, at what changed, and at what requests saw; the target is told the plan.
    pub(super) async fn tick(&mut self) -> Vec<Action> {
        if planted(Mutant::FreezeLeftByTimer) && self.frozen.is_some_and(|since| time::since(since) > READ_LEASE) {
            let epoch = self.context.epoch;
            let _ = self.partition.with(move |partition| async move { partition.resume(epoch).await }).await;
        }
        if self.frozen.is_some_and(|since| time::since(since) > FREEZE_MAX) && self.machine.state().may_abort() {
            return self.note_and_handle(Event::Failed("writes stood still for too long".into()));
        }
        // A standby that has everything waits to be switched to.
        let waits = self.options.policy == (Policy::Standby { synchronous: false }) && self.machine.missing() == 0;
        let copies = matches!(self.machine.state(), State::Opening | State::Copying) && !waits;
        if copies && time::since(self.progressed) > STALL_MAX {
            let what = match (self.machine.missing(), self.machine.lag()) {
                (0, lag) => format!("the mirror does not keep up with the writes: {lag} records behind"),
                (missing, _) => format!("the copy makes no progress: {missing} segments are missing"),
            };
            return self.note_and_handle(Event::Failed(what));
        }
        if !matches!(self.machine.state(), State::Copying | State::Ready) {
            return Vec::new();
        }
        let read = self.partition.with(|partition| async move {
            Ok((partition.assigned(), partition.segment_summaries(), partition.foreground_p99()))
        });
        let (assigned, summaries, source_p99) = match read.await {
            Ok(read) => read,
            Err(cause) => return self.note_and_handle(Event::Failed(cause.to_string())),
        };
        if self.machine.missing() > 0 {
            self.govern(source_p99);
            let plan = plan::plan(self.options.order, &summaries, |segment| self.machine.is_missing(segment));
            if let Err(cause) = self.link.send(&Message::Plan(plan)).await {
                return self.note_lost(cause.to_string());
            }
        }
        let position = Message::Position(assigned, self.machine.state() == State::Ready);
        if let Err(cause) = self.link.send(&position).await {
            return self.note_lost(cause.to_string());
        }
        let mut actions = self.machine.handle(Event::Assigned(assigned));
        if let Some(early) = self.options.early
            && self.held_share(&summaries) >= early
        {
            actions.extend(self.machine.handle(Event::EnoughHeld));
        }
        actions
    }

    /// What has been assigned, if the next segment that the target holds may be the last: it is due before the switchover.
    pub(super) async fn look_before_last(&mut self) -> Vec<Action> {
        if self.machine.state() != State::Copying || self.machine.missing() != 1 {
            return Vec::new();
        }
        match self.partition.with(|partition| async move { Ok(partition.assigned()) }).await {
            Ok(assigned) => self.machine.handle(Event::Assigned(assigned)),
            Err(cause) => self.note_and_handle(Event::Failed(cause.to_string())),
        }
    }

    /// Share of the accesses expected now that would hit what the target holds, 0..1.
    fn held_share(&self, summaries: &[SegmentSummary]) -> f64 {
        let expected = |segment: &SegmentSummary| f64::from(plan::expected(self.options.order, segment));
        let all: f64 = summaries.iter().map(expected).sum();
        let held: f64 = summaries.iter().filter(|segment| self.machine.is_held(segment.id)).map(expected).sum();
        if all > 0.0 { held / all } else { 0.0 }
    }

    /// Sends a segment; what becomes of it comes as a signal.
    pub(super) fn spawn_send(&self, segment: SegmentId) {
        let bytes = self.report.segments.iter().find(|known| known.segment == segment.0).map_or(0, |known| known.bytes);
        let on_base = |(base, digest): (_, &u128)| OnBase { base, digest: *digest, bytes };
        let offered = self.base.zip(self.offered.get(&segment)).map(on_base);
        let (partition, context, pace) = (self.partition.clone(), self.context, self.pace.clone());
        let (plane, signal) = (self.host.bulk.clone(), self.signal.clone());
        let route = Route { plane: plane.clone(), address: self.addresses.bulk, host: self.destination };
        plane.spawn(async move {
            let send =
                async { Outbound::capture(partition, context, segment, offered).await?.send(&route, &pace).await };
            let _ = signal.send(match send.await {
                Ok(cost) => Signal::Sent(cost),
                Err(cause) => Signal::NotSent(format!("segment {segment}: {cause}")),
            });
        });
    }

    pub(super) fn account(&mut self, cost: SegmentCost) {
        let shadow = &mut self.report.shadow;
        shadow.segments += 1;
        shadow.segments_on_base += u64::from(cost.base > 0);
        shadow.bytes_on_base += cost.base;
        shadow.bytes_copied += cost.image_raw;
        shadow.bytes_on_wire += cost.image_wire + cost.delta_wire;
        shadow.deltas += u64::from(cost.delta_raw > 0);
        shadow.delta_bytes_raw += cost.delta_raw;
        shadow.delta_bytes_on_wire += cost.delta_wire;
        // The last byte has arrived just now.
        shadow.seconds = time::since(self.began).as_secs_f64();
        shadow.observed_mb_s = shadow.bytes_on_wire as f64 / 1e6 / self.pace.wanted().as_secs_f64().max(1e-6);
        let wire = shadow.bytes_on_wire;
        self.handle.note(|progress| progress.bytes_on_wire = wire);
    }
}
