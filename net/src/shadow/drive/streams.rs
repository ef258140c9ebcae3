//! The source's streams of one attempt: what the target says, and the mirror; and those that take their place when the
//! link is lost.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use antumbra_engine::partition::{MirrorItem, MirrorReceiver};
use antumbra_engine::types::{HostId, Lsn};
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::shadow::frame::FrameContext;
use crate::shadow::message::{self, Message, Resumed};
use crate::time;
use crate::transport::{RecvStream, SendStream, StreamKind};

use super::sending::Signal;

/// Records in one mirror frame.
const MIRROR_BATCH: usize = 512;
const MIRROR_BATCH_BYTES: u64 = 1 << 20;
/// Bytes of the mirror that are kept until the target has acknowledged them; beyond, the mirror queues where it is counted.
const UNACKED_MAX: u64 = 16 << 20;
/// Between two pieces of the mirror while nobody waits for the target to have them: each costs both hosts some ten wake-ups of
/// threads and the target a write of its log, as much for one record as for a hundred.
const UNHURRIED_PAUSE: Duration = Duration::from_millis(10);
/// For how long a lost link is sought; the target waits longer (see `receiving`).
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// What the target may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Streams of an attempt that goes on.
pub(super) struct NewStreams {
    control: SendStream,
    incoming: RecvStream,
    mirror: SendStream,
    /// What the target has.
    pub resumed: Resumed,
}

/// The streams to the target.
pub(super) struct Link {
    context: FrameContext,
    address: SocketAddr,
    destination: HostId,
    signal: mpsc::UnboundedSender<Signal>,
    /// `None` while the link is lost.
    control: Option<SendStream>,
    /// Tells the news of an earlier link from that of this one.
    number: u32,
    acked: watch::Sender<Lsn>,
    mirrors: mpsc::UnboundedSender<(SendStream, u32, Lsn)>,
    /// Whether the mirror's records travel at once.
    hurry: watch::Sender<bool>,
    counts: Arc<MirrorCounts>,
}

/// What has travelled over the mirror.
#[derive(Debug, Default)]
pub(super) struct MirrorCounts {
    records: AtomicU64,
    elided: AtomicU64,
}

impl Link {
    /// Opens the attempt with `opening`; from here on the receiver's records travel.
    pub async fn open(
        host: &Host,
        context: FrameContext,
        (address, destination): (SocketAddr, HostId),
        opening: &Message,
        receiver: MirrorReceiver,
        signal: mpsc::UnboundedSender<Signal>,
    ) -> Result<Link> {
        let (mut control, incoming) = host.control.open_bi(address, destination, StreamKind::Control).await?;
        message::send(&mut control, context, opening).await?;
        let mirror = host.control.open_uni(address, destination, StreamKind::Mirror).await?;
        let (acked, acks) = watch::channel(receiver.from);
        let (mirrors, next) = mpsc::unbounded_channel();
        host.control.spawn(listen(incoming, context, 0, signal.clone()));
        let (hurry, hurries) = watch::channel(false);
        let counts = Arc::<MirrorCounts>::default();
        let sender = MirrorSender {
            context,
            receiver,
            acks,
            hurries,
            counts: Arc::clone(&counts),
            unacked: VecDeque::new(),
            unacked_bytes: 0,
        };
        host.control.spawn(sender.run(mirror, next, signal.clone()));
        let control = Some(control);
        Ok(Link { context, address, destination, signal, control, number: 0, acked, mirrors, hurry, counts })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`Error::Link`], also while the link is lost.
    pub async fn send(&mut self, message: &Message) -> Result<()> {
        match &mut self.control {
            Some(control) => message::send(control, self.context, message).await,
            None => Err(Error::link(self.destination, "the link is lost")),
        }
    }

    /// Nothing more is sent.
    pub fn finish(&mut self) {
        if let Some(mut control) = self.control.take() {
            let _ = control.finish();
        }
    }

    /// The target has everything up to here on its device.
    pub fn note_acked(&self, lsn: Lsn) {
        self.acked.send_if_modified(|acked| std::mem::replace(acked, lsn.max(*acked)) < lsn);
    }

    /// From now on the mirror's records travel at once.
    pub fn hurry(&self) {
        self.hurry.send_if_modified(|hurry| !std::mem::replace(hurry, true));
    }

    /// Records that have been put on the mirror, and those elided from it.
    pub fn mirrored(&self) -> (u64, u64) {
        (self.counts.records.load(Ordering::Relaxed), self.counts.elided.load(Ordering::Relaxed))
    }

    /// Whether this is news of the present link.
    pub fn is_present(&self, number: u32) -> bool {
        self.number == number
    }

    /// Asks the target for its shadow over new streams, which come as a signal.
    pub fn seek(&mut self, host: &Arc<Host>) {
        self.control = None;
        self.number += 1;
        let (host, context, signal) = (Arc::clone(host), self.context, self.signal.clone());
        let (address, destination) = (self.address, self.destination);
        let plane = host.control.clone();
        plane.spawn(async move {
            let began = time::now();
            loop {
                let cause = match reopen(&host, context, (address, destination), &signal).await {
                    Ok(streams) => return drop(signal.send(Signal::Reconnected(streams))),
                    Err(cause) => cause,
                };
                let refused = !matches!(cause, Error::Link { .. });
                if refused || time::since(began) > RECONNECT_MAX || signal.is_closed() {
                    return drop(signal.send(Signal::NotReconnected(cause.to_string())));
                }
                time::sleep(RECONNECT_PAUSE).await;
            }
        });
    }

    /// Takes the streams that were sought.
    pub fn take(&mut self, host: &Host, streams: NewStreams) -> Resumed {
        let NewStreams { control, incoming, mirror, resumed } = streams;
        self.control = Some(control);
        host.control.spawn(listen(incoming, self.context, self.number, self.signal.clone()));
        // Its task ends with the attempt; then nobody needs the stream.
        let _ = self.mirrors.send((mirror, self.number, resumed.last));
        resumed
    }
}

async fn reopen(
    host: &Host,
    context: FrameContext,
    (address, destination): (SocketAddr, HostId),
    signal: &mpsc::UnboundedSender<Signal>,
) -> Result<NewStreams> {
    let (mut control, mut incoming) = host.control.open_bi(address, destination, StreamKind::Control).await?;
    message::send(&mut control, context, &Message::Resume).await?;
    let answer = async {
        loop {
            match message::receive(&mut incoming).await? {
                (found, _) if found.attempt != context.attempt => {}
                (_, Message::Resumed(resumed)) => return Ok(resumed),
                (_, Message::Failed(what)) => return Err(Error::Refused { what }),
                // Installed, or made durable, just now.
                (_, message) => drop(signal.send(Signal::Message(message))),
            }
        }
    };
    let resumed = time::timeout(ANSWER_MAX, answer).await;
    let resumed = resumed.ok_or_else(|| Error::link(destination, "no answer to the request to go on"))??;
    let mirror = host.control.open_uni(address, destination, StreamKind::Mirror).await?;
    Ok(NewStreams { control, incoming, mirror, resumed })
}

/// Hands the target's messages to the driver. A message of another attempt is not ours.
async fn listen(mut incoming: RecvStream, context: FrameContext, link: u32, signal: mpsc::UnboundedSender<Signal>) {
    loop {
        let next = match message::receive(&mut incoming).await {
            Ok((found, _)) if found.attempt != context.attempt => continue,
            Ok((_, message)) => Signal::Message(message),
            Err(cause) => Signal::Lost { link, what: cause.to_string() },
        };
        let lost = matches!(next, Signal::Lost { .. });
        if signal.send(next).is_err() || lost {
            return;
        }
    }
}

/// A piece of the mirror that the target has not acknowledged.
struct Unacked {
    last: Lsn,
    bytes: u64,
    message: Message,
}

/// Streams the mirror until its tap is closed, over one stream after the other.
struct MirrorSender {
    context: FrameContext,
    receiver: MirrorReceiver,
    acks: watch::Receiver<Lsn>,
    hurries: watch::Receiver<bool>,
    counts: Arc<MirrorCounts>,
    /// Ascending.
    unacked: VecDeque<Unacked>,
    unacked_bytes: u64,
}

impl MirrorSender {
    async fn run(
        mut self,
        mut stream: SendStream,
        mut next: mpsc::UnboundedReceiver<(SendStream, u32, Lsn)>,
        signal: mpsc::UnboundedSender<Signal>,
    ) {
        let mut link = 0;
        let mut sent = 0;
        loop {
            let taken = tokio::select! {
                biased;
                taken = next.recv() => taken,
                ended = self.stream(&mut stream, &mut sent) => match ended {
                    Ok(()) => return drop(stream.finish()),
                    Err(cause) => {
                        let _ = signal.send(Signal::Lost { link, what: format!("mirror: {cause}") });
                        next.recv().await
                    }
                },
            };
            let Some((new, number, last)) = taken else { return };
            (stream, link, sent) = (new, number, 0);
            self.forget(last);
        }
    }

    /// Sends the pieces from the one at `sent` on, and what comes behind them.
    async fn stream(&mut self, stream: &mut SendStream, sent: &mut usize) -> Result<()> {
        let mut more_waits = true;
        loop {
            while let Some(piece) = self.unacked.get(*sent) {
                message::send(stream, self.context, &piece.message).await?;
                *sent += 1;
            }
            let acked = *self.acks.borrow_and_update();
            *sent -= self.forget(acked);
            if self.unacked_bytes > UNACKED_MAX {
                // The driver is gone, and with it the attempt.
                if self.acks.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            if !more_waits {
                self.pause().await;
            }
            // Whoever ends this future loses nothing: an item that was taken is in a piece before anything is waited for.
            let Some(item) = self.receiver.recv().await else { return Ok(()) };
            more_waits = self.gather(item);
        }
    }

    /// Lets records gather, unless they are in a hurry.
    async fn pause(&mut self) {
        if *self.hurries.borrow_and_update() {
            return;
        }
        tokio::select! {
            // A driver that is gone has closed the tap, or will.
            _ = self.hurries.changed() => {}
            () = time::sleep(UNHURRIED_PAUSE) => {}
        }
    }

    /// A piece of this item and what waits behind it; whether more does.
    fn gather(&mut self, item: MirrorItem) -> bool {
        let mut bytes = item.queued_bytes();
        let mut last = item.lsn();
        let mut items = vec![item];
        while items.len() < MIRROR_BATCH
            && bytes < MIRROR_BATCH_BYTES
            && let Some(item) = self.receiver.try_recv()
        {
            bytes += item.queued_bytes();
            last = item.lsn();
            items.push(item);
        }
        let elided = items.iter().filter(|item| matches!(item, MirrorItem::Elided { .. })).count();
        self.counts.elided.fetch_add(elided as u64, Ordering::Relaxed);
        self.counts.records.fetch_add((items.len() - elided) as u64, Ordering::Relaxed);
        let full = items.len() == MIRROR_BATCH || bytes >= MIRROR_BATCH_BYTES;
        self.unacked_bytes += bytes;
        self.unacked.push_back(Unacked { last, bytes, message: Message::Mirror(items) });
        full
    }

    /// Forgets what the target has; returns how many pieces.
    fn forget(&mut self, up_to: Lsn) -> usize {
        let before = self.unacked.len();
        while let Some(piece) = self.unacked.pop_front_if(|piece| piece.last <= up_to) {
            self.unacked_bytes -= piece.bytes;
        }
        before - self.unacked.len()
    }
}
