//! The target's driver: the streams of one attempt, each served where it arrives.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use antumbra_engine::PartitionHandle;
use antumbra_engine::partition::{Applied, Base};
use antumbra_engine::types::{AttemptId, Epoch, HostId, PartitionId, SegmentId, ValidationToken};
use tokio::sync::{Notify, mpsc, watch};

use crate::coordinator;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::mutant::{Mutant, planted};
use crate::shadow::frame::FrameContext;
use crate::shadow::message::{self, Based, Message, Resumed, Sealing};
use crate::shadow::target::Target;
use crate::time;
use crate::transport::{Incoming, RecvStream, SendStream};

use super::bulk::Below;
use super::opening::{Leftover, create};
use super::{bulk, fetch_missing, lock};

/// For how long a shadow whose source is not heard waits for it; what the coordinator's record says ends the wait.
const RESUME_WAIT: Duration = Duration::from_secs(15);
/// A mirror or bulk stream may overtake the control stream that opens the attempt.
const INBOX_WAIT: Duration = Duration::from_secs(2);

/// How the streams of one attempt reach each other.
#[derive(Clone, Debug)]
pub(crate) struct TargetInbox {
    source: HostId,
    partition: PartitionHandle,
    machine: Arc<Mutex<Target>>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    /// Control streams that take the place of a lost one.
    links: mpsc::UnboundedSender<(SendStream, RecvStream)>,
    /// The coordinator has closed the attempt.
    closed: Arc<Notify>,
    /// What this host has from before.
    copy: Leftover,
}

/// What the task that writes to the source is given.
#[derive(Debug)]
enum Outgoing {
    Message(Message),
    /// From here on over this stream.
    Over(SendStream),
}

impl TargetInbox {
    /// The partition that it is filled of.
    pub fn partition(&self) -> PartitionId {
        self.partition.id()
    }

    fn send(&self, message: Message) {
        // The control stream may be gone: what is lost with it, its successor begins with.
        let _ = self.outgoing.send(Outgoing::Message(message));
    }

    /// A segment that an early switchover left at the source has come.
    pub fn note_held(&self, segment: SegmentId) {
        self.send(Message::Held(segment));
    }

    /// Ends the attempt here: the coordinator has closed it, and its source may never say so.
    pub fn close(&self) {
        self.closed.notify_one();
    }

    fn request(&self, host: &Host, attempt: AttemptId, tokens: impl IntoIterator<Item = ValidationToken>) {
        for token in tokens {
            match self.copy.base.filter(|_| self.copy.segments.contains(&token.segment)) {
                Some(base) => host.control.spawn(self.clone().request_on_base(attempt, token, base)),
                None => self.send(Message::Request(token)),
            }
        }
    }

    /// Asks for what has changed since the base, if that can be read.
    async fn request_on_base(self, attempt: AttemptId, token: ValidationToken, base: Base) {
        let segment = token.segment;
        let digest =
            self.partition.with(move |partition| async move { partition.digest_base(attempt, segment, base).await });
        self.send(match digest.await {
            Ok(Some(digest)) => Message::RequestOnBase(token, digest),
            Ok(None) | Err(_) => Message::Request(token),
        });
    }
}

/// Serves the control stream of an attempt: creates the shadow, and decides its end.
pub(crate) async fn serve_control(host: Arc<Host>, incoming: Incoming) {
    let (peer, mut recv) = (incoming.peer, incoming.recv);
    let Some(send) = incoming.send else {
        return;
    };
    let (context, opening) = match message::receive(&mut recv).await {
        Ok((context, Message::Open(opening))) => (context, opening),
        Ok((context, Message::Resume)) => return resume(&host, peer, context, send, recv).await,
        Ok((_, other)) => return tracing::warn!(%peer, ?other, "a control stream begins with Open"),
        Err(cause) => return tracing::warn!(%peer, %cause, "control stream"),
    };
    // From here on the reconciler leaves the partition to this attempt.
    let claim = host.claims.claim(context.partition).await;
    let (partition, copy) = match create(&host, peer, context, opening).await {
        Ok(created) => created,
        Err(cause) => return refuse(send, context, cause.to_string()).await,
    };
    host.failpoint.pass("target:opened");
    let (outgoing, messages) = mpsc::unbounded_channel();
    let (links, mut next_links) = mpsc::unbounded_channel();
    let (machine, closed) = (Arc::default(), Arc::default());
    let based = Based { segments: copy.segments.len() as u64, why_none: copy.why_none.clone() };
    let inbox = TargetInbox { source: peer, partition, machine, outgoing, links, closed, copy };
    host.open_inbox(context.attempt, inbox.clone());
    inbox.send(Message::Opened(based));
    host.control.spawn(write_messages(send, context, messages));
    let ended = tokio::select! {
        biased;
        ended = serve_links(&host, context, &inbox, recv, &mut next_links) => ended,
        () = inbox.closed.notified() => Err(Error::Aborted { what: "the coordinator has closed it".into() }),
    };
    if let Err(cause) = ended {
        tracing::info!(%cause, attempt = %context.attempt, "control stream ended");
    }
    // What becomes of a shadow whose source is gone the coordinator's record says, and the reconciler does.
    drop(claim);
    host.close_inbox(context.attempt);
}

/// Says no. The source reads the reason before the stream is dropped.
async fn refuse(mut send: SendStream, context: FrameContext, what: String) {
    let _ = message::send(&mut send, context, &Message::Failed(what)).await;
    let _ = send.finish();
    let _ = time::timeout(INBOX_WAIT, send.stopped()).await;
}

/// Hands a new control stream to the task of the attempt that it goes on with.
async fn resume(host: &Host, peer: HostId, context: FrameContext, send: SendStream, recv: RecvStream) {
    let inbox = host.inbox(context.attempt).filter(|inbox| inbox.source == peer);
    let handed = match &inbox {
        Some(inbox) => inbox.links.send((send, recv)).map_err(|unsent| unsent.0.0),
        None => Err(send),
    };
    if let Err(send) = handed {
        refuse(send, context, format!("attempt {} is not open here any more", context.attempt)).await;
    }
}

/// Writes to the source for as long as anybody has something to say. What a lost stream does not take is dropped.
async fn write_messages(send: SendStream, context: FrameContext, mut messages: mpsc::UnboundedReceiver<Outgoing>) {
    let mut stream = Some(send);
    while let Some(outgoing) = messages.recv().await {
        match (outgoing, &mut stream) {
            (Outgoing::Over(send), _) => stream = Some(send),
            (Outgoing::Message(message), Some(send)) => {
                if message::send(send, context, &message).await.is_err() {
                    stream = None;
                }
            }
            (Outgoing::Message(_), None) => {}
        }
    }
}

/// Serves one control stream after the other: as long as the shadow is filled, a source whose link is lost may come
/// back.
async fn serve_links(
    host: &Arc<Host>,
    context: FrameContext,
    inbox: &TargetInbox,
    mut recv: RecvStream,
    next_links: &mut mpsc::UnboundedReceiver<(SendStream, RecvStream)>,
) -> Result<()> {
    let mut sealing = None;
    loop {
        let next = tokio::select! {
            biased;
            next = next_links.recv() => next,
            ended = serve_messages(host, context, inbox, &mut recv, &mut sealing) => match ended {
                Err(cause @ Error::Link { .. }) if sealing.is_none() => {
                    tracing::info!(%cause, attempt = %context.attempt, "the source is not heard; it may come back");
                    match time::timeout(RESUME_WAIT, next_links.recv()).await {
                        Some(next) => next,
                        None => return Err(cause),
                    }
                }
                ended => return ended,
            },
        };
        let Some((send, next)) = next else { continue };
        recv = next;
        let _ = inbox.outgoing.send(Outgoing::Over(send));
        lock(&inbox.machine).handle_resumed();
        let attempt = context.attempt;
        let position = inbox.partition.with(move |partition| async move { partition.shadow_position(attempt) });
        let (last, held) = position.await?;
        inbox.send(Message::Resumed(Resumed { last, held }));
    }
}

async fn serve_messages(
    host: &Arc<Host>,
    context: FrameContext,
    inbox: &TargetInbox,
    recv: &mut RecvStream,
    sealing: &mut Option<Sealing>,
) -> Result<()> {
    let attempt = context.attempt;
    loop {
        let (found, message) = message::receive(recv).await?;
        if found != context {
            tracing::debug!(?found, "a frame of another attempt is ignored");
            continue;
        }
        match message {
            Message::Plan(plan) => {
                let requests = lock(&inbox.machine).handle_plan(plan);
                inbox.request(host, attempt, requests);
                // Each plan is also the question how requests fare here.
                let p99 = inbox.partition.with(|partition| async move { Ok(partition.foreground_p99()) });
                if let Some(p99) = p99.await? {
                    inbox.send(Message::Foreground(p99.as_micros() as u64));
                }
            }
            Message::Position(assigned, synchronous) => host.hear(context.partition, attempt, assigned, synchronous),
            Message::Stale(token) => {
                let request = lock(&inbox.machine).handle_stale(token);
                inbox.request(host, attempt, request);
            }
            Message::Seal(seal) => {
                let (expected, early) = (seal.seal.clone(), seal.early);
                let ready = inbox.partition.with(move |partition| async move {
                    #[cfg(feature = "sim")]
                    let expected = match planted(Mutant::StaleAttempt) {
                        true => antumbra_engine::chain::Seal { copies: partition.shadow_copies(), ..expected },
                        false => expected,
                    };
                    partition.make_ready(attempt, &expected, early).await
                });
                match ready.await {
                    Ok(()) => {
                        lock(&inbox.machine).handle_ready();
                        host.failpoint.pass("target:ready");
                        *sealing = Some(seal);
                        inbox.send(Message::SealOk);
                    }
                    Err(cause) => inbox.send(Message::Failed(cause.to_string())),
                }
            }
            Message::Promote(epoch) => {
                host.failpoint.pass("target:promote");
                promote(host, context, inbox, sealing.as_ref(), epoch).await?;
                host.failpoint.pass("target:promoted");
                inbox.send(Message::Promoted);
            }
            Message::Digest(starts) => {
                // In the background: the record of what was promoted does not wait for it.
                let inbox = inbox.clone();
                host.control.spawn(async move {
                    let digests = inbox
                        .partition
                        .with(move |partition| async move { partition.digest_final(attempt, starts).await });
                    inbox.send(match digests.await {
                        Ok(digests) => Message::Digests(digests),
                        Err(cause) => Message::Failed(cause.to_string()),
                    });
                });
            }
            Message::Complete => {
                let unpinned = inbox.partition.with(move |partition| async move {
                    partition.unpin_final(attempt);
                    Ok(())
                });
                return Ok(unpinned.await?);
            }
            Message::Failed(what) => return Err(Error::Aborted { what }),
            other => return Err(Error::protocol(format!("unexpected from the source: {other:?}"))),
        }
    }
}

/// The record says that this host owns the partition: it serves from here on.
async fn promote(
    host: &Arc<Host>,
    context: FrameContext,
    inbox: &TargetInbox,
    sealing: Option<&Sealing>,
    epoch: Epoch,
) -> Result<()> {
    let sealing = sealing.ok_or_else(|| Error::protocol("promotion before the seal"))?;
    let (attempt, last, clock, wall_ms) = (context.attempt, sealing.seal.final_lsn, sealing.clock, sealing.wall_ms);
    inbox
        .partition
        .with(move |partition| async move {
            // From its first write on: the source's copy stays for a roll-back.
            partition.keep_base(Some(last));
            partition.promote(attempt, epoch, last, clock, wall_ms).await
        })
        .await?;
    let order = {
        let mut machine = lock(&inbox.machine);
        machine.handle_promoted();
        machine.order()
    };
    if sealing.early {
        fetch_missing(host, context.partition, attempt, epoch, inbox.source, order);
    }
    // Clients are told as soon as the record is read; the source, whose writes wait for this, at once.
    let host = Arc::clone(host);
    let plane = host.control.clone();
    plane.spawn(async move {
        if let Ok(record) = coordinator::read(host.coordinator.as_ref(), context.partition.0).await {
            host.routing.update_record(&record);
        }
    });
    Ok(())
}

/// Serves the mirror: appends, waits for the device, acknowledges. The next stretch is taken in while the device works.
pub(crate) async fn serve_mirror(host: Arc<Host>, incoming: Incoming) {
    let (peer, mut recv) = (incoming.peer, incoming.recv);
    let result = async {
        let mut taking: Option<(TargetInbox, watch::Sender<Option<Applied>>)> = None;
        loop {
            let (context, message) = message::receive(&mut recv).await?;
            let Message::Mirror(items) = message else {
                return Err(Error::protocol("a mirror stream carries records alone"));
            };
            if taking.is_none() {
                let inbox = wait_inbox(&host, context.attempt, peer).await?;
                let (applied, durable) = watch::channel(None);
                host.control.spawn(acknowledge(inbox.clone(), durable));
                taking = Some((inbox, applied));
            }
            let Some((inbox, newest)) = &taking else { continue };
            let attempt = context.attempt;
            let applied =
                inbox.partition.with(move |partition| async move { partition.apply_mirror(attempt, items).await });
            match applied.await {
                Ok(applied) => drop(newest.send_replace(Some(applied))),
                Err(cause) => {
                    inbox.send(Message::Failed(format!("mirror: {cause}")));
                    return Err(cause.into());
                }
            }
        }
    };
    let ended: Result<()> = result.await;
    if let Err(cause) = ended {
        tracing::debug!(%cause, %peer, "mirror stream ended");
    }
}

/// Acknowledges what has been taken in, as soon as it is on the device; one wait for all that came meanwhile.
async fn acknowledge(inbox: TargetInbox, mut newest: watch::Receiver<Option<Applied>>) {
    while newest.changed().await.is_ok() {
        let Some(applied) = *newest.borrow_and_update() else { continue };
        let durable = inbox.partition.with(move |partition| async move { partition.mirror_durable(applied).await });
        match durable.await {
            Ok(()) => inbox.send(Message::MirrorAck(applied.last)),
            Err(cause) => return inbox.send(Message::Failed(format!("mirror: {cause}"))),
        }
    }
}

/// Serves one segment's stream.
pub(crate) async fn serve_bulk(host: Arc<Host>, incoming: Incoming) {
    let (peer, mut recv) = (incoming.peer, incoming.recv);
    let mut received = match bulk::receive_segment(&mut recv).await {
        Ok(received) => received,
        // A source that has handed over ends what it was sending; what is missing is fetched.
        Err(cause) => return tracing::info!(%cause, %peer, "a segment was not received"),
    };
    if planted(Mutant::StaleAttempt) {
        received.context.attempt = host.newest_attempt(received.context.partition).unwrap_or(received.context.attempt);
    }
    let attempt = received.context.attempt;
    let Ok(inbox) = wait_inbox(&host, attempt, peer).await else {
        return tracing::debug!(%attempt, "a segment of a closed attempt is ignored");
    };
    let segment = received.segment;
    match install(&inbox, attempt, segment, received).await {
        Ok(()) => {
            host.failpoint.pass("target:installed");
            inbox.send(Message::Held(segment));
            let requests = lock(&inbox.machine).handle_installed(segment);
            inbox.request(&host, attempt, requests);
        }
        // Sent again because the source did not hear that it had arrived.
        Err(cause) if is_held(&inbox, segment).await => tracing::debug!(%cause, %segment, "a second copy is ignored"),
        Err(cause) => inbox.send(Message::Failed(format!("segment {segment}: {cause}"))),
    }
}

async fn is_held(inbox: &TargetInbox, segment: SegmentId) -> bool {
    let held = inbox.partition.with(move |partition| async move { Ok(!partition.lacks(segment)) });
    held.await.unwrap_or(false)
}

async fn install(
    inbox: &TargetInbox,
    attempt: AttemptId,
    segment: SegmentId,
    received: bulk::ReceivedSegment,
) -> Result<()> {
    let (covered, delta) = (received.covered, received.delta);
    let installed = inbox.partition.with(move |partition| async move {
        match received.image {
            Below::Image(image) => partition.install_image(attempt, segment, Some(covered), image, delta).await,
            Below::Base(digest) => partition.install_on_base(attempt, segment, covered, digest, delta).await,
        }
    });
    Ok(installed.await?)
}

/// The inbox of an attempt of this peer. A stream may be here before the control stream has been served.
async fn wait_inbox(host: &Host, attempt: AttemptId, peer: HostId) -> Result<TargetInbox> {
    let wait = async {
        loop {
            if let Some(inbox) = host.inbox(attempt) {
                return inbox;
            }
            time::sleep(Duration::from_millis(2)).await;
        }
    };
    let inbox = time::timeout(INBOX_WAIT, wait).await;
    let inbox = inbox.ok_or_else(|| Error::Refused { what: format!("attempt {attempt} is not open here") })?;
    if inbox.source == peer {
        Ok(inbox)
    } else {
        Err(Error::Refused { what: format!("attempt {attempt} is not of host {peer}") })
    }
}
