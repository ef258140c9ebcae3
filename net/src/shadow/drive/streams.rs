//! The source's two streams of one attempt: what the target says, and the mirror.

use antumbra_engine::partition::{MirrorItem, MirrorReceiver};
use tokio::sync::mpsc;

use crate::shadow::frame::FrameContext;
use crate::shadow::message::{self, Message};
use crate::transport::{RecvStream, SendStream};

use super::sending::Signal;

/// Records in one mirror frame.
const MIRROR_BATCH: usize = 512;

/// Hands the target's messages to the driver. A message of another attempt is not ours.
pub(super) async fn listen(mut incoming: RecvStream, context: FrameContext, signal: mpsc::UnboundedSender<Signal>) {
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
pub(super) async fn stream_mirror(
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
