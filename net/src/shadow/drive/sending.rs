//! The source's driver: one attempt from its opening to its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antumbra_engine::PartitionHandle;
use antumbra_engine::partition::{Base, RangeDigest, SegmentSummary};
use antumbra_engine::types::{HostId, Lsn, SegmentId, ValidationToken};
use tokio::sync::mpsc;

use crate::coordinator::PartitionRecord;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::mutant::{Mutant, planted};
use crate::resp::slot;
use crate::routing::Addresses;
use crate::shadow::accounts::{MoveReport, OrderedSegment, StepTime};
use crate::shadow::frame::FrameContext;
use crate::shadow::message::{Based, Message, Opening, Resumed, Sealing};
use crate::shadow::recovery::READ_LEASE;
use crate::shadow::source::{Action, Event, Limits, Source, State};
use crate::time::{self, Ticker};

use super::attempt::abort_until_known;
use super::bulk::{Pace, SegmentCost};
use super::foreground::{End, Foreground};
use super::streams::{Link, NewStreams};
use super::switching::{OURS, THEIRS};
use super::{MoveHandle, MoveOptions, Policy};

/// Bytes that the mirror may queue at the source before the attempt is given up.
const MIRROR_QUEUE_BYTES: u64 = 64 << 20;
/// Plans are sent this often, and the lag is looked at.
const PLAN_INTERVAL: Duration = Duration::from_millis(200);
/// Wait between two tries of what has to succeed.
pub(super) const RETRY: Duration = Duration::from_millis(20);

/// What reaches the driver's loop.
pub(super) enum Signal {
    Message(Message),
    Sent(SegmentCost),
    /// A segment was not sent.
    NotSent(String),
    /// The target cannot be reached any more over this link.
    Lost {
        /// Its number within the attempt.
        link: u32,
        what: String,
    },
    /// The target has its shadow still.
    Reconnected(NewStreams),
    NotReconnected(String),
    /// The coordinator's record decided.
    Committed(PartitionRecord),
    NotCommitted(String),
    /// The target has completed the attempt by itself.
    Completed,
    /// This host's digests of the state at the hand-over.
    Digested(Result<Vec<RangeDigest>>),
}

pub(super) struct Driver<'a> {
    pub(super) host: &'a Arc<Host>,
    pub(super) context: FrameContext,
    pub(super) destination: HostId,
    pub(super) addresses: Addresses,
    pub(super) options: MoveOptions,
    pub(super) handle: &'a MoveHandle,
    pub(super) partition: PartitionHandle,
    pub(super) machine: Source,
    /// What the target's host has from before, and the digests of its segments that the target has told of.
    pub(super) base: Option<Base>,
    pub(super) offered: HashMap<SegmentId, u128>,
    pub(super) link: Link,
    signals: mpsc::UnboundedReceiver<Signal>,
    pub(super) signal: mpsc::UnboundedSender<Signal>,
    pub(super) pace: Pace,
    pub(super) foreground: Foreground,
    /// Bytes that had been sent at the last look.
    pub(super) looked: (u64, Instant),
    pub(super) report: MoveReport,
    pub(super) sealing: Option<Sealing>,
    pub(super) starts: Vec<Vec<u8>>,
    /// Digests of the two sides, as they come in.
    pub(super) digests: [Option<Vec<RangeDigest>>; 2],
    /// Start of the copy, of the freeze, of the present step.
    pub(super) began: Instant,
    pub(super) frozen: Option<Instant>,
    pub(super) step: Instant,
    /// When the target last held one more segment, or more of one was sent.
    pub(super) progressed: Instant,
    pub(super) opened: bool,
    pub(super) lost: bool,
    failure: Option<String>,
}

impl<'a> Driver<'a> {
    pub(super) async fn open(
        host: &'a Arc<Host>,
        context: FrameContext,
        record: &PartitionRecord,
        destination: HostId,
        options: MoveOptions,
        handle: &'a MoveHandle,
    ) -> Result<Driver<'a>> {
        let addresses = host.routing.load().addresses(destination).cloned();
        let addresses = addresses.ok_or_else(|| Error::Refused { what: format!("host {destination} is not known") })?;
        let partition = host.engine.partition(context.partition)?;
        if partition.stats().await?.range != slot::range_of(record.slots) {
            return Err(Error::Refused {
                what: format!("partition {} is just being split or merged", context.partition),
            });
        }
        let attempt = context.attempt;
        let (receiver, summaries) = partition
            .with(move |partition| async move {
                let receiver = partition.attach_mirror(attempt, MIRROR_QUEUE_BYTES).await?;
                Ok((receiver, partition.segment_summaries()))
            })
            .await?;
        let base = offer_base(record, destination);
        let opening = Opening {
            keyspace: record.keyspace.clone(),
            slots: record.slots,
            segment_target_bytes: host.options.segment_target_bytes,
            block_bytes: host.options.block_bytes,
            from: receiver.from,
            base,
            segments: summaries.iter().map(|summary| (summary.id, summary.start.to_vec())).collect(),
        };
        let from = receiver.from;
        let (signal, signals) = mpsc::unbounded_channel();
        let to = (addresses.control, destination);
        let link = Link::open(host, context, to, &Message::Open(opening), receiver, signal.clone()).await?;
        let asynchronous = options.policy == Policy::Standby { synchronous: false };
        let limits = Limits { asynchronous, ..options.limits };
        let machine = Source::new(summaries.iter().map(|summary| summary.id), from, limits);
        let foreground = Foreground::new(options.set_point, options.throttle_bytes_s);
        let pace = Pace::new(foreground.rate().or(options.throttle_bytes_s));
        host.set_pace(attempt, Some(pace.clone()));
        let now = time::now();
        handle.note(|progress| progress.segments = summaries.len());
        let mut report = MoveReport { attempt: attempt.0, segments: describe(&summaries), ..MoveReport::default() };
        report.shadow.throttle_mb_s = options.throttle_bytes_s.unwrap_or(0) as f64 / 1e6;
        report.switchover.epoch_before = context.epoch.0;
        if base.is_none() {
            report.shadow.base = "none: no copy that an earlier move has left there is known".into();
        }
        mark(&mut report, "copy");
        Ok(Driver {
            host,
            context,
            destination,
            addresses,
            options,
            handle,
            partition,
            machine,
            base,
            offered: HashMap::new(),
            link,
            signals,
            signal,
            pace,
            foreground,
            looked: (0, now),
            report,
            sealing: None,
            starts: summaries.iter().map(|summary| summary.start.to_vec()).collect(),
            digests: [None, None],
            began: now,
            frozen: None,
            step: now,
            progressed: now,
            opened: false,
            lost: false,
            failure: None,
        })
    }

    pub(super) async fn run(&mut self) -> Result<MoveReport> {
        if self.options.policy == Policy::Auto {
            self.machine.handle(Event::Allowed);
        }
        let shared = Arc::clone(&self.handle.shared);
        let mut ticker = Ticker::new(PLAN_INTERVAL);
        loop {
            // The seldom first: a full queue keeps no limit from being looked at.
            let actions = tokio::select! {
                biased;
                () = ticker.tick() => self.tick().await,
                () = shared.allow.notified() => self.machine.handle(Event::Allowed),
                () = shared.end.notified() => self.note_and_handle(Event::Failed("it has been given up".into())),
                signal = self.signals.recv() => self.handle_signal(signal).await,
            };
            let mut pending = std::collections::VecDeque::from(actions);
            while let Some(action) = pending.pop_front() {
                let event = match self.carry_out(action).await {
                    Ok(event) => event,
                    Err(cause) => Some(Event::Failed(cause.to_string())),
                };
                if let Some(event) = event {
                    pending.extend(self.note_and_handle(event));
                }
            }
            if self.machine.holds_enough() {
                self.link.hurry();
            }
            self.handle.note_state(self.machine.state());
            match self.machine.state() {
                State::Complete => return Ok(std::mem::take(&mut self.report)),
                State::Aborted => {
                    return Err(Error::Aborted { what: self.failure.take().unwrap_or_else(|| "aborted".into()) });
                }
                _ => {}
            }
        }
    }

    pub(super) fn note_and_handle(&mut self, event: Event) -> Vec<Action> {
        if let Event::Failed(what) = &event {
            tracing::warn!(what, state = ?self.machine.state(), "move");
            self.failure.get_or_insert_with(|| what.clone());
        }
        self.machine.handle(event)
    }

    async fn handle_signal(&mut self, signal: Option<Signal>) -> Vec<Action> {
        let event = match signal {
            Some(Signal::Message(message)) => match message {
                Message::Opened(based) => {
                    self.opened = true;
                    self.note_based(based);
                    Event::Opened
                }
                Message::Request(wanted) => {
                    self.offered.remove(&wanted.segment);
                    self.note_requested(wanted).await
                }
                Message::RequestOnBase(wanted, digest) => {
                    self.offered.insert(wanted.segment, digest);
                    self.note_requested(wanted).await
                }
                Message::Held(segment) => {
                    let mut actions = self.look_before_last().await;
                    actions.extend(self.machine.handle(Event::Held(segment)));
                    let missing = self.machine.missing();
                    self.progressed = time::now();
                    self.handle.note(|progress| progress.held = progress.segments - missing);
                    self.handle.note_held(segment);
                    return actions;
                }
                Message::MirrorAck(lsn) => {
                    self.link.note_acked(lsn);
                    let attempt = self.context.attempt;
                    let told = self.partition.with(move |partition| async move {
                        partition.handle_mirror_ack(attempt, lsn);
                        Ok(())
                    });
                    match told.await {
                        Ok(()) => Event::Acked(lsn),
                        Err(cause) => Event::Failed(cause.to_string()),
                    }
                }
                Message::Foreground(us) => {
                    self.foreground.note(End::Target, Duration::from_micros(us));
                    return Vec::new();
                }
                Message::SealOk => {
                    self.end_step("verify");
                    Event::SealOk
                }
                Message::Promoted => {
                    self.note_promoted();
                    Event::Promoted
                }
                Message::Digests(digests) => return self.note_digests(THEIRS, digests),
                Message::Failed(what) if self.machine.state() == State::Digesting => {
                    tracing::error!(what, "the target could not be verified after the hand-over");
                    Event::Digested
                }
                Message::Failed(what) => Event::Failed(format!("target: {what}")),
                other => Event::Failed(format!("unexpected from the target: {other:?}")),
            },
            Some(Signal::Sent(cost)) => {
                self.account(cost);
                return Vec::new();
            }
            // Nothing is covered once writes stand still: after an early switchover the target fetches it.
            Some(Signal::NotSent(_)) if self.frozen.is_some() => return Vec::new(),
            Some(Signal::NotSent(what)) => Event::Failed(what),
            Some(Signal::Lost { link, .. }) if !self.link.is_present(link) => return Vec::new(),
            Some(Signal::Lost { what, .. }) => return self.note_lost(what),
            Some(Signal::Reconnected(streams)) => {
                let Resumed { last, held } = self.link.take(self.host, streams);
                tracing::info!(%last, held = held.len(), "the link is back, and the shadow with it");
                self.report.shadow.resumed += 1;
                self.progressed = time::now();
                Event::Resumed { held }
            }
            Some(Signal::NotReconnected(what)) => Event::Failed(what),
            Some(Signal::Committed(record)) => {
                self.note_committed(&record);
                Event::Committed
            }
            Some(Signal::NotCommitted(what)) => Event::NotCommitted(what),
            Some(Signal::Completed) => Event::Completed,
            Some(Signal::Digested(Ok(digests))) => return self.note_digests(OURS, digests),
            Some(Signal::Digested(Err(cause))) => {
                tracing::error!(%cause, "the source could not be verified after the hand-over");
                Event::Digested
            }
            None => Event::Failed("the driver's queue is closed".into()),
        };
        self.note_and_handle(event)
    }

    async fn note_requested(&self, wanted: ValidationToken) -> Event {
        let present =
            self.partition.with(move |partition| async move { Ok(partition.segment_token(wanted.segment)) }).await;
        match present {
            Ok(Some(present)) => Event::Requested { wanted, present },
            Ok(None) => Event::Failed(format!("the target asks for segment {}", wanted.segment)),
            Err(cause) => Event::Failed(cause.to_string()),
        }
    }

    fn note_based(&mut self, based: Based) {
        if let Some(base) = self.base {
            self.report.shadow.base = match based.why_none.as_str() {
                "" => format!("host {} has {} segments as of LSN {}", self.destination, based.segments, base.lsn),
                why => format!("none, a full move: {why}"),
            };
            tracing::info!(base = self.report.shadow.base, partition = %self.context.partition, "roll-back");
        }
    }

    /// While the copy runs the target is sought; from then on to the commit its loss ends the attempt; later the
    /// coordinator's record brings it back.
    pub(super) fn note_lost(&mut self, what: String) -> Vec<Action> {
        if self.machine.state() == State::Copying {
            tracing::warn!(what, "the link of a copy is lost; sought again");
            return self.machine.handle(Event::TargetLost);
        }
        self.lost = true;
        let mut actions = self.note_and_handle(Event::Failed(what));
        actions.extend(match self.machine.state() {
            State::Digesting => self.machine.handle(Event::Digested),
            _ => self.machine.handle(Event::TargetLost),
        });
        actions
    }

    fn note_digests(&mut self, side: usize, digests: Vec<RangeDigest>) -> Vec<Action> {
        self.digests[side] = Some(digests);
        if !self.compare_digests() {
            return Vec::new();
        }
        self.machine.handle(Event::Digested)
    }

    /// Carries out one action; what it brought about is the next event.
    async fn carry_out(&mut self, action: Action) -> Result<Option<Event>> {
        let attempt = self.context.attempt;
        if let Some(place) = failpoint_of(&action) {
            self.host.failpoint.pass(place);
        }
        match action {
            Action::SendSegment(segment) => {
                self.report.sent.push(segment.0);
                self.spawn_send(segment);
                Ok(None)
            }
            Action::SendStale(token) => {
                // A target that does not hear of it asks again when it has been found.
                let sent = self.link.send(&Message::Stale(token)).await;
                Ok(sent.is_err().then_some(Event::TargetLost))
            }
            Action::Reconnect => {
                self.link.seek(self.host);
                Ok(None)
            }
            Action::SetSynchronous => {
                mark(&mut self.report, "ready");
                let acked = self.machine.acked();
                self.partition.with(move |partition| async move { partition.set_synchronous(attempt, acked) }).await?;
                Ok(None)
            }
            Action::Freeze => {
                mark(&mut self.report, "frozen");
                let now = time::now();
                (self.frozen, self.step) = (Some(now), now);
                let lease = if planted(Mutant::EndlessLease) { Duration::MAX / 4 } else { READ_LEASE };
                let frozen =
                    self.partition.with(move |partition| async move { partition.freeze(attempt, lease).await }).await?;
                self.end_step("freeze");
                let last = frozen.seal.final_lsn;
                self.sealing = Some(Sealing {
                    seal: frozen.seal,
                    clock: frozen.clock,
                    wall_ms: frozen.wall_ms,
                    early: self.machine.missing() > 0,
                });
                Ok(Some(Event::Frozen(last)))
            }
            Action::SendSeal => {
                self.end_step("tail");
                self.report.shadow.token_retries = self.machine.token_retries;
                (self.report.shadow.mirrored_records, self.report.shadow.elided_records) = self.link.mirrored();
                self.report.switchover.missing = self.machine.missing() as u64;
                let sealing = self.sealing.clone().ok_or_else(|| Error::protocol("no seal"))?;
                self.link.send(&Message::Seal(sealing)).await?;
                Ok(None)
            }
            Action::Commit => {
                self.spawn_commit();
                Ok(None)
            }
            Action::HandOver => {
                self.hand_over().await;
                Ok(Some(Event::HandedOver))
            }
            Action::Promote => Ok(self.send_promotion().await.then_some(Event::TargetLost)),
            Action::AwaitTarget => {
                self.spawn_await_target();
                Ok(None)
            }
            Action::Digest => {
                self.spawn_digest().await?;
                Ok(None)
            }
            Action::Complete => {
                self.end_step("verify after");
                self.complete().await;
                Ok(None)
            }
            Action::Abort(reason) => {
                let _ = self.link.send(&Message::Failed(reason.clone())).await;
                abort_until_known(self.host, self.context, &reason).await;
                Ok(Some(Event::Aborted))
            }
        }
    }

    pub(super) fn end_step(&mut self, name: &str) {
        let us = time::since(self.step).as_micros() as u64;
        self.report.switchover.steps.push(StepTime { name: name.to_string(), us });
        self.step = time::now();
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        self.host.set_pace(self.context.attempt, None);
    }
}

/// Where a test may have the source die before it carries the action out.
fn failpoint_of(action: &Action) -> Option<&'static str> {
    match action {
        Action::SendSegment(_) => Some("source:send-segment"),
        Action::SetSynchronous => Some("source:set-synchronous"),
        Action::Freeze => Some("source:freeze"),
        Action::SendSeal => Some("source:send-seal"),
        Action::Commit => Some("source:commit"),
        Action::HandOver => Some("source:committed"),
        Action::Promote => Some("source:handed-over"),
        Action::Digest => Some("source:digest"),
        Action::Complete => Some("source:complete"),
        Action::SendStale(_) | Action::Reconnect | Action::AwaitTarget | Action::Abort(_) => None,
    }
}

/// The copy that an earlier move has left at the destination, if the record names one.
fn offer_base(record: &PartitionRecord, destination: HostId) -> Option<Base> {
    let former = record.former.as_ref().filter(|former| former.host == destination.0)?;
    Some(Base { lsn: Lsn(former.lsn), wall_ms: time::wall_ms() })
}

fn describe(summaries: &[SegmentSummary]) -> Vec<OrderedSegment> {
    summaries
        .iter()
        .map(|summary| OrderedSegment {
            segment: summary.id.0,
            start: String::from_utf8_lossy(summary.start.get(2..).unwrap_or_default()).into_owned(),
            bytes: summary.bytes,
            auto: summary.auto,
            gru: summary.gru,
            ewma: summary.ewma,
        })
        .collect()
}

pub(super) fn mark(report: &mut MoveReport, name: &str) {
    report.marks_ms.push((name.to_string(), time::wall_ms()));
}
