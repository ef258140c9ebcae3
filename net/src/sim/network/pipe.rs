//! One direction of a stream.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use antumbra_engine::sim::is_dark;

use crate::transport::{SchedulingClass, StreamEnded, StreamKind};

use super::{ConnectionId, Event, Inner, Network, PipeId};

/// Bytes that travel in one piece.
const CHUNK_BYTES: usize = 4 << 10;

/// What travels.
#[derive(Debug)]
pub(super) enum Chunk {
    /// The stream begins; `back` is the way back.
    Open {
        kind: StreamKind,
        back: Option<PipeId>,
    },
    Bytes(Vec<u8>),
    End,
    /// The rest is lost for good: its sender was reset.
    Lost,
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub connection: ConnectionId,
    /// Which end sends.
    pub sender: usize,
    window: usize,
    /// Pieces under way with the time at which they are there; the first has an event.
    pub on_way: VecDeque<(Duration, Chunk)>,
    arrived: VecDeque<u8>,
    /// Bytes sent and not read.
    unread: usize,
    pub ended: bool,
    pub lost: bool,
    /// The receiver wants no more, and the sender knows.
    pub stopped: bool,
    finished: bool,
    /// Its answer will be lost.
    pub doomed: bool,
    pub writer_held: bool,
    pub reader_held: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    pub fn new(connection: ConnectionId, sender: usize, window: usize) -> Pipe {
        Pipe {
            connection,
            sender,
            window,
            on_way: VecDeque::new(),
            arrived: VecDeque::new(),
            unread: 0,
            ended: false,
            lost: false,
            stopped: false,
            finished: false,
            doomed: false,
            writer_held: false,
            reader_held: false,
            reader: None,
            writer: None,
        }
    }

    pub fn take_in(&mut self, bytes: &[u8]) {
        self.arrived.extend(bytes);
        self.wake();
    }

    pub fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    /// Whether somebody has an end of it in hand, or something is on its way.
    pub fn is_held(&self) -> bool {
        self.writer_held || self.reader_held
    }
}

/// The sending end of a simulated stream.
#[derive(Debug)]
pub struct PipeWriter {
    network: Network,
    id: PipeId,
}

/// The receiving end of a simulated stream.
#[derive(Debug)]
pub struct PipeReader {
    network: Network,
    id: PipeId,
}

fn over(what: impl Into<String>) -> StreamEnded {
    StreamEnded(what.into())
}

impl PipeWriter {
    pub(super) fn new(network: &Network, id: PipeId) -> PipeWriter {
        PipeWriter { network: network.clone(), id }
    }

    pub(crate) async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), StreamEnded> {
        while !bytes.is_empty() {
            if is_dark() {
                return pending().await;
            }
            let sent = poll_fn(|context| self.poll_write(bytes, context)).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    fn poll_write(&self, bytes: &[u8], context: &Context<'_>) -> Poll<Result<usize, StreamEnded>> {
        let mut inner = self.network.lock();
        let Some(pipe) = inner.pipes.get_mut(&self.id) else {
            return Poll::Ready(Err(over("closed")));
        };
        let (connection, sender) = (pipe.connection, pipe.sender);
        if pipe.stopped {
            return Poll::Ready(Err(over("stopped by the peer")));
        }
        let room = pipe.window.saturating_sub(pipe.unread).min(CHUNK_BYTES).min(bytes.len());
        if let Some(why) = inner.closed(connection, sender) {
            return Poll::Ready(Err(over(why)));
        }
        let Some(pipe) = inner.pipes.get_mut(&self.id) else {
            return Poll::Ready(Err(over("closed")));
        };
        if room == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        pipe.unread += room;
        let chunk = if pipe.doomed { Chunk::Lost } else { Chunk::Bytes(bytes[..room].to_vec()) };
        inner.send(self.id, chunk);
        Poll::Ready(Ok(room))
    }

    pub(crate) fn finish(&mut self) -> Result<(), StreamEnded> {
        if is_dark() {
            return Ok(());
        }
        let mut inner = self.network.lock();
        match inner.pipes.get_mut(&self.id) {
            Some(pipe) if pipe.finished => Err(over("finished before")),
            Some(pipe) => {
                pipe.finished = true;
                inner.send(self.id, Chunk::End);
                Ok(())
            }
            None => Err(over("closed")),
        }
    }

    pub(crate) async fn delivered(&mut self) -> Result<(), StreamEnded> {
        poll_fn(|context| {
            let mut inner = self.network.lock();
            let Some(pipe) = inner.pipes.get_mut(&self.id) else {
                return Poll::Ready(Err(over("closed")));
            };
            if pipe.ended && pipe.unread == 0 {
                return Poll::Ready(Ok(()));
            }
            if pipe.stopped {
                return Poll::Ready(Err(over("stopped by the peer")));
            }
            let (connection, sender) = (pipe.connection, pipe.sender);
            pipe.writer = Some(context.waker().clone());
            match inner.closed(connection, sender) {
                Some(why) => Poll::Ready(Err(over(why))),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let _ = self.finish();
        let mut inner = self.network.lock();
        let released = inner.pipes.get_mut(&self.id).is_some_and(|pipe| {
            pipe.writer_held = false;
            !pipe.is_held() && pipe.on_way.is_empty()
        });
        if released {
            inner.pipes.remove(&self.id);
        }
    }
}

impl PipeReader {
    pub(super) fn new(network: &Network, id: PipeId) -> PipeReader {
        PipeReader { network: network.clone(), id }
    }

    pub(crate) async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), StreamEnded> {
        let mut filled = 0;
        while filled < bytes.len() {
            let read = self.read(bytes.len() - filled).await?;
            if read.is_empty() {
                return Err(over("the stream ended early"));
            }
            bytes[filled..filled + read.len()].copy_from_slice(&read);
            filled += read.len();
        }
        Ok(())
    }

    pub(crate) async fn read_to_end(&mut self, max: usize) -> Result<Vec<u8>, StreamEnded> {
        let mut bytes = Vec::new();
        loop {
            let read = self.read(CHUNK_BYTES).await?;
            if read.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&read);
            if bytes.len() > max {
                return Err(over("stream too long"));
            }
        }
    }

    /// Up to `len` bytes; none at the end of the stream.
    fn read(&self, len: usize) -> impl Future<Output = Result<Vec<u8>, StreamEnded>> + Send + '_ {
        poll_fn(move |context| {
            let mut inner = self.network.lock();
            let Some(pipe) = inner.pipes.get_mut(&self.id) else {
                return Poll::Ready(Err(over("closed")));
            };
            let len = len.min(pipe.arrived.len());
            if len > 0 {
                let bytes = pipe.arrived.drain(..len).collect();
                pipe.unread -= len;
                pipe.writer.take().into_iter().for_each(Waker::wake);
                return Poll::Ready(Ok(bytes));
            }
            if pipe.lost {
                return Poll::Ready(Err(over("reset by the peer")));
            }
            if pipe.ended {
                return Poll::Ready(Ok(Vec::new()));
            }
            pipe.reader = Some(context.waker().clone());
            let (connection, receiver) = (pipe.connection, 1 - pipe.sender);
            match inner.closed(connection, receiver) {
                Some(why) => Poll::Ready(Err(over(why))),
                None => Poll::Pending,
            }
        })
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let dark = is_dark();
        let mut inner = self.network.lock();
        let Some(pipe) = inner.pipes.get_mut(&self.id) else {
            return;
        };
        pipe.reader_held = false;
        if pipe.ended || dark {
            if !pipe.is_held() {
                inner.pipes.remove(&self.id);
            }
            return;
        }
        let (id, now) = (self.id, inner.now);
        let due = now + inner.delay(SchedulingClass::Normal);
        inner.schedule(due, Event::Stop(id));
    }
}

impl Inner {
    /// Takes both ends of a stream that this host opens in hand.
    pub(super) fn hold(&mut self, there: PipeId, back: Option<PipeId>) {
        if let Some(pipe) = self.pipes.get_mut(&there) {
            pipe.writer_held = true;
        }
        if let Some(pipe) = back.and_then(|back| self.pipes.get_mut(&back)) {
            pipe.reader_held = true;
        }
    }
}
