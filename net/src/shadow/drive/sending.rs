//! The source's driver: one move from the lock to its completion.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use antumbra_engine::PartitionHandle;
use antumbra_engine::partition::{MirrorItem, MirrorReceiver, RangeDigest, SegmentSummary};
use antumbra_engine::types::{AttemptId, Epoch, HostId, PartitionId, SegmentId};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;

use crate::coordinator::{self, Command, PartitionRecord, RecordState};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::routing::Addresses;
use crate::shadow::accounts::{MoveReport, OrderedSegment, StepTime};
use crate::shadow::frame::FrameContext;
use crate::shadow::message::{self, Message, Opening, Sealing};
use crate::shadow::plan;
use crate::shadow::recovery::READ_LEASE;
use crate::shadow::source::{Action, Event, Source, State};
use crate::transport::StreamKind;

use super::bulk::{self, Pace, SegmentCost};
use super::switching::{OURS, THEIRS};
use super::{MoveHandle, MoveOptions, Policy};

/// Bytes that the mirror may queue at the source before the attempt is given up.
const MIRROR_QUEUE_BYTES: u64 = 64 << 20;
/// Records in one mirror frame.
const MIRROR_BATCH: usize = 512;
/// Plans are sent this often, and the lag is looked at.
const PLAN_INTERVAL: Duration = Duration::from_millis(200);
/// Writes stand still for this long at most: then the attempt is aborted.
const FREEZE_MAX: Duration = Duration::from_secs(2);
/// A copy in which no segment arrives for this long has failed.
const STALL_MAX: Duration = Duration::from_secs(15);
/// Attempts of a move whose target is not reached.
const OPEN_TRIES: u32 = 3;
/// Requests to begin whose answers were lost, after which a move is given up.
const BEGIN_TRIES: u32 = 50;
/// Wait between two tries of what has to succeed.
pub(super) const RETRY: Duration = Duration::from_millis(20);

/// What reaches the driver's loop.
pub(super) enum Signal {
    Message(Message),
    Sent(SegmentId, SegmentCost),
    /// The target cannot be reached any more.
    Lost(String),
    /// The coordinator's record decided.
    Committed(PartitionRecord),
    NotCommitted(String),
    /// The target has completed the attempt by itself.
    Completed,
    /// This host's digests of the state at the hand-over.
    Digested(Result<Vec<RangeDigest>>),
}

/// Runs a move. On an error the source serves as before.
pub(super) async fn run(
    host: &Arc<Host>,
    partition: PartitionId,
    destination: HostId,
    options: MoveOptions,
    handle: &MoveHandle,
) -> Result<MoveReport> {
    // From here on the reconciler leaves the partition to this move.
    let _claim = host.claims.claim(partition).await;
    let mut tried = 1;
    loop {
        match attempt(host, partition, destination, options, handle).await {
            // The connection was one to an earlier life of the peer: that shows with its first use.
            Err(Failure { cause, lost_at_opening: true }) if tried < OPEN_TRIES => {
                tracing::info!(%cause, %partition, "the target was not reached; another attempt");
                tried += 1;
            }
            Err(failure) => return Err(failure.cause),
            Ok(report) => return Ok(report),
        }
    }
}

/// Why an attempt ended.
struct Failure {
    cause: Error,
    /// The link was lost before the target answered.
    lost_at_opening: bool,
}

impl From<Error> for Failure {
    fn from(cause: Error) -> Failure {
        Failure { cause, lost_at_opening: false }
    }
}

async fn attempt(
    host: &Arc<Host>,
    partition: PartitionId,
    destination: HostId,
    options: MoveOptions,
    handle: &MoveHandle,
) -> std::result::Result<MoveReport, Failure> {
    let record = begin_until_known(host, partition, destination).await?;
    let RecordState::Moving(moving) = &record.state else {
        return Err(Error::protocol("the coordinator began no move").into());
    };
    let context = FrameContext { attempt: AttemptId(moving.attempt), partition, epoch: Epoch(record.epoch) };
    host.failpoint.pass("source:begun");
    let mut driver = match Driver::open(host, context, &record, destination, options, handle).await {
        Ok(driver) => driver,
        Err(cause) => {
            abort_until_known(host, context, &cause.to_string()).await;
            let lost_at_opening = matches!(cause, Error::Link { .. });
            return Err(Failure { cause, lost_at_opening });
        }
    };
    let ended = driver.run().await;
    ended.map_err(|cause| Failure { cause, lost_at_opening: driver.lost && !driver.opened })
}

/// Locks the partition. When the answer is lost the record tells: an attempt of this host's partition that has this
/// destination and that nobody drives can only be the one asked for. Should a request that was given up arrive after
/// all, the reconciler aborts what it begins.
async fn begin_until_known(host: &Host, partition: PartitionId, destination: HostId) -> Result<PartitionRecord> {
    let command = Command::Begin { partition: partition.0, source: host.id.0, destination: destination.0 };
    let begun = |record: &PartitionRecord| {
        let ours = matches!(&record.state, RecordState::Moving(moving) if moving.destination == destination.0);
        ours && record.owner == host.id.0
    };
    let mut asked = 0;
    loop {
        let unknown = match coordinator::change(host.coordinator.as_ref(), command.clone()).await {
            Err(cause @ (Error::Unknown { .. } | Error::Link { .. })) => cause,
            known => return known,
        };
        match coordinator::read(host.coordinator.as_ref(), partition.0).await {
            Ok(record) if begun(&record) => return Ok(record),
            _ if asked == BEGIN_TRIES => return Err(unknown),
            _ => {}
        }
        asked += 1;
        tokio::time::sleep(RETRY).await;
    }
}

/// Closes the attempt at the coordinator, however long that takes, then serves again.
async fn abort_until_known(host: &Host, context: FrameContext, reason: &str) {
    let command =
        Command::Abort { partition: context.partition.0, attempt: context.attempt.0, reason: reason.to_string() };
    loop {
        match coordinator::change(host.coordinator.as_ref(), command.clone()).await {
            Ok(record) => {
                host.routing.update_record(&record);
                return serve_again(host, context, &record).await;
            }
            // Committed, which nothing here asked for: the reconciler goes by the record.
            Err(Error::Conflict { what }) => return tracing::error!(what, "the attempt is not this host's to abort"),
            Err(cause) => tracing::warn!(%cause, "the abort is not known yet; writes may be waiting"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Serves what the record of the closed attempt gives this host.
async fn serve_again(host: &Host, context: FrameContext, record: &PartitionRecord) {
    let (attempt, owner, epoch) = (context.attempt, HostId(record.owner), Epoch(record.epoch));
    let Ok(partition) = host.engine.partition(context.partition) else {
        return;
    };
    let here = owner == host.id;
    let served = partition.with(move |partition| async move {
        if here { partition.thaw(attempt, epoch).await } else { partition.hand_over(owner, epoch).await }
    });
    if let Err(cause) = served.await {
        tracing::error!(%cause, "the epoch of the closed attempt is not durable");
    }
}

pub(super) struct Driver<'a> {
    pub(super) host: &'a Arc<Host>,
    pub(super) context: FrameContext,
    pub(super) destination: HostId,
    addresses: Addresses,
    options: MoveOptions,
    handle: &'a MoveHandle,
    pub(super) partition: PartitionHandle,
    machine: Source,
    pub(super) control: SendStream,
    signals: mpsc::UnboundedReceiver<Signal>,
    pub(super) signal: mpsc::UnboundedSender<Signal>,
    pace: Pace,
    pub(super) report: MoveReport,
    pub(super) sealing: Option<Sealing>,
    pub(super) starts: Vec<Vec<u8>>,
    /// Digests of the two sides, as they come in.
    pub(super) digests: [Option<Vec<RangeDigest>>; 2],
    /// Start of the copy, of the freeze, of the present step.
    began: Instant,
    pub(super) frozen: Option<Instant>,
    pub(super) step: Instant,
    /// When the target last held one more segment.
    progressed: Instant,
    opened: bool,
    pub(super) lost: bool,
    failure: Option<String>,
}

impl<'a> Driver<'a> {
    async fn open(
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
        let attempt = context.attempt;
        let (receiver, summaries) = partition
            .with(move |partition| async move {
                let receiver = partition.attach_mirror(attempt, MIRROR_QUEUE_BYTES).await?;
                Ok((receiver, partition.segment_summaries()))
            })
            .await?;
        let (mut control, incoming) = host.control.open_bi(addresses.control, destination, StreamKind::Control).await?;
        let opening = Opening {
            keyspace: record.keyspace.clone(),
            slots: record.slots,
            segment_target_bytes: host.options.segment_target_bytes,
            block_bytes: host.options.block_bytes,
            from: receiver.from,
            segments: summaries.iter().map(|summary| (summary.id, summary.start.to_vec())).collect(),
        };
        message::send(&mut control, context, &Message::Open(opening)).await?;
        let mirror = host.control.open_uni(addresses.control, destination, StreamKind::Mirror).await?;
        let from = receiver.from;
        let (signal, signals) = mpsc::unbounded_channel();
        host.control.spawn(listen(incoming, context, signal.clone()));
        host.control.spawn(stream_mirror(mirror, context, receiver, signal.clone()));
        let machine = Source::new(summaries.iter().map(|summary| summary.id), from, options.limits);
        let now = Instant::now();
        handle.note(|progress| progress.segments = summaries.len());
        let mut report = MoveReport { attempt: attempt.0, segments: describe(&summaries), ..MoveReport::default() };
        report.shadow.throttle_mb_s = options.throttle_bytes_s.unwrap_or(0) as f64 / 1e6;
        report.switchover.epoch_before = context.epoch.0;
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
            control,
            signals,
            signal,
            pace: Pace::new(options.throttle_bytes_s),
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

    async fn run(&mut self) -> Result<MoveReport> {
        if self.options.policy == Policy::Auto {
            self.machine.handle(Event::Allowed);
        }
        let shared = Arc::clone(&self.handle.shared);
        let mut ticker = tokio::time::interval(PLAN_INTERVAL);
        loop {
            let actions = tokio::select! {
                signal = self.signals.recv() => self.handle_signal(signal).await,
                _ = ticker.tick() => self.tick().await,
                () = shared.allow.notified() => self.machine.handle(Event::Allowed),
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

    fn note_and_handle(&mut self, event: Event) -> Vec<Action> {
        if let Event::Failed(what) = &event {
            tracing::warn!(what, state = ?self.machine.state(), "move");
            self.failure.get_or_insert_with(|| what.clone());
        }
        self.machine.handle(event)
    }

    async fn handle_signal(&mut self, signal: Option<Signal>) -> Vec<Action> {
        let event = match signal {
            Some(Signal::Message(message)) => match message {
                Message::Opened => {
                    self.opened = true;
                    Event::Opened
                }
                Message::Request(wanted) => {
                    let present = self.partition.with(move |partition| async move {
                        let found = partition.segment_summaries().into_iter().find(|found| found.id == wanted.segment);
                        Ok(found.map(|found| found.token))
                    });
                    match present.await {
                        Ok(Some(present)) => Event::Requested { wanted, present },
                        Ok(None) => Event::Failed(format!("the target asks for segment {}", wanted.segment)),
                        Err(cause) => Event::Failed(cause.to_string()),
                    }
                }
                Message::Held(segment) => {
                    let actions = self.machine.handle(Event::Held(segment));
                    let missing = self.machine.missing();
                    self.progressed = Instant::now();
                    self.handle.note(|progress| progress.held = progress.segments - missing);
                    if missing == 0 {
                        self.end_copy();
                    }
                    return actions;
                }
                Message::MirrorAck(lsn) => {
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
            Some(Signal::Sent(segment, cost)) => {
                self.account(segment, cost);
                return Vec::new();
            }
            Some(Signal::Lost(what)) => return self.note_lost(what),
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

    /// Before the commit a lost target ends the attempt; later the coordinator's record brings it back.
    fn note_lost(&mut self, what: String) -> Vec<Action> {
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

    async fn tick(&mut self) -> Vec<Action> {
        if self.frozen.is_some_and(|since| since.elapsed() > FREEZE_MAX) && self.machine.state().may_abort() {
            return self.note_and_handle(Event::Failed("writes stood still for too long".into()));
        }
        if matches!(self.machine.state(), State::Opening | State::Copying) && self.progressed.elapsed() > STALL_MAX {
            return self.note_and_handle(Event::Failed("the copy makes no progress".into()));
        }
        if !matches!(self.machine.state(), State::Copying | State::Ready) {
            return Vec::new();
        }
        let read =
            self.partition.with(|partition| async move { Ok((partition.assigned(), partition.segment_summaries())) });
        let (assigned, summaries) = match read.await {
            Ok(read) => read,
            Err(cause) => return self.note_and_handle(Event::Failed(cause.to_string())),
        };
        if self.machine.state() == State::Copying {
            let plan = plan::plan(self.options.order, &summaries, |segment| self.machine.is_missing(segment));
            if let Err(cause) = message::send(&mut self.control, self.context, &Message::Plan(plan)).await {
                return self.note_and_handle(Event::Failed(cause.to_string()));
            }
        }
        self.machine.handle(Event::Assigned(assigned))
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
                message::send(&mut self.control, self.context, &Message::Stale(token)).await?;
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
                let now = Instant::now();
                (self.frozen, self.step) = (Some(now), now);
                let frozen = self
                    .partition
                    .with(move |partition| async move { partition.freeze(attempt, READ_LEASE).await })
                    .await?;
                self.end_step("freeze");
                let last = frozen.seal.final_lsn;
                self.sealing = Some(Sealing { seal: frozen.seal, clock: frozen.clock, wall_ms: frozen.wall_ms });
                Ok(Some(Event::Frozen(last)))
            }
            Action::SendSeal => {
                self.end_step("tail");
                let sealing = self.sealing.clone().ok_or_else(|| Error::protocol("no seal"))?;
                message::send(&mut self.control, self.context, &Message::Seal(sealing)).await?;
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
                let _ = message::send(&mut self.control, self.context, &Message::Failed(reason.clone())).await;
                abort_until_known(self.host, self.context, &reason).await;
                Ok(Some(Event::Aborted))
            }
        }
    }

    fn spawn_send(&self, segment: SegmentId) {
        let (host, partition, pace) = (Arc::clone(self.host), self.partition.clone(), self.pace.clone());
        let (context, destination, address) = (self.context, self.destination, self.addresses.bulk);
        let signal = self.signal.clone();
        let plane = host.bulk.clone();
        plane.spawn(async move {
            let send = async {
                let stream = host.bulk.open_uni(address, destination, StreamKind::Bulk).await?;
                bulk::send_segment(&partition, stream, context, segment, &pace).await
            };
            let _ = signal.send(match send.await {
                Ok(cost) => Signal::Sent(segment, cost),
                Err(cause) => Signal::Lost(format!("segment {segment}: {cause}")),
            });
        });
    }

    fn account(&mut self, _segment: SegmentId, cost: SegmentCost) {
        let shadow = &mut self.report.shadow;
        shadow.segments += 1;
        shadow.bytes_copied += cost.image_raw;
        shadow.bytes_on_wire += cost.image_wire + cost.delta_wire;
        shadow.deltas += u64::from(cost.delta_raw > 0);
        shadow.delta_bytes_raw += cost.delta_raw;
        shadow.delta_bytes_on_wire += cost.delta_wire;
        // The last byte was handed to the transport just now.
        shadow.seconds = self.began.elapsed().as_secs_f64();
        shadow.observed_mb_s = shadow.bytes_on_wire as f64 / 1e6 / self.pace.wanted().as_secs_f64().max(1e-6);
        let wire = shadow.bytes_on_wire;
        self.handle.note(|progress| progress.bytes_on_wire = wire);
    }

    fn end_copy(&mut self) {
        self.report.shadow.token_retries = self.machine.token_retries;
    }

    pub(super) fn end_step(&mut self, name: &str) {
        let us = self.step.elapsed().as_micros() as u64;
        self.report.switchover.steps.push(StepTime { name: name.to_string(), us });
        self.step = Instant::now();
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
        Action::SendStale(_) | Action::AwaitTarget | Action::Abort(_) => None,
    }
}

fn describe(summaries: &[SegmentSummary]) -> Vec<OrderedSegment> {
    summaries
        .iter()
        .map(|summary| OrderedSegment {
            segment: summary.id.0,
            start: String::from_utf8_lossy(summary.start.get(2..).unwrap_or_default()).into_owned(),
            bytes: summary.bytes,
            gru: summary.gru,
            ewma: summary.ewma,
        })
        .collect()
}

pub(super) fn mark(report: &mut MoveReport, name: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    report.marks_ms.push((name.to_string(), now));
}

/// Hands the target's messages to the driver. A message of another attempt is not ours.
async fn listen(mut incoming: RecvStream, context: FrameContext, signal: mpsc::UnboundedSender<Signal>) {
    loop {
        let next = match message::receive(&mut incoming).await {
            Ok((found, _)) if found.attempt != context.attempt => continue,
            Ok((_, message)) => Signal::Message(message),
            Err(cause) => Signal::Lost(cause.to_string()),
        };
        let lost = matches!(next, Signal::Lost(_));
        if signal.send(next).is_err() || lost {
            return;
        }
    }
}

/// Streams the mirror until its tap is closed.
async fn stream_mirror(
    mut stream: SendStream,
    context: FrameContext,
    receiver: MirrorReceiver,
    signal: mpsc::UnboundedSender<Signal>,
) {
    while let Some(item) = receiver.recv().await {
        let mut items: Vec<MirrorItem> = vec![item];
        let mut bytes = items[0].queued_bytes();
        while items.len() < MIRROR_BATCH
            && bytes < 1 << 20
            && let Some(item) = receiver.try_recv()
        {
            bytes += item.queued_bytes();
            items.push(item);
        }
        if let Err(cause) = message::send(&mut stream, context, &Message::Mirror(items)).await {
            let _ = signal.send(Signal::Lost(format!("mirror: {cause}")));
            return;
        }
    }
    let _ = stream.finish();
}
