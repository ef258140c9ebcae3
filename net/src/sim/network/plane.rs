//! A plane of a simulated host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::HostId;

use crate::error::{Error, Result};
use crate::time;
use crate::transport::{CONNECT_TIMEOUT, Handler, RecvStream, SchedulingClass, SendStream, StreamKind};

use super::pipe::Chunk;
use super::{Connection, ConnectionId, End, Event, KEEP_ALIVE_MS, Listener, Network, PipeReader, PipeWriter, Place};

/// A peer that does not answer is asked again after this time.
const KNOCK: Duration = Duration::from_millis(100);

/// Opens streams from one host. Clones share it.
#[derive(Clone, Debug)]
pub struct SimulatedPlane {
    network: Network,
    place: Place,
    life: u64,
    class: SchedulingClass,
    local: SocketAddr,
    /// One connection is made at a time.
    connecting: Arc<tokio::sync::Mutex<()>>,
}

impl Network {
    /// The address of a host's plane.
    pub(in crate::sim) fn address(place: Place, class: SchedulingClass) -> SocketAddr {
        let port = if class == SchedulingClass::Normal { 1 } else { 2 };
        SocketAddr::from(([10, 0, 0, place as u8 + 1], port))
    }

    /// A plane of a host that is up.
    pub(in crate::sim) fn listen(&self, place: Place, class: SchedulingClass, handler: Handler) -> SimulatedPlane {
        let local = Network::address(place, class);
        let mut inner = self.lock();
        inner.listeners.insert(local, Listener { place, handler });
        let life = inner.lives[place];
        drop(inner);
        SimulatedPlane { network: self.clone(), place, life, class, local, connecting: Arc::default() }
    }
}

impl SimulatedPlane {
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) async fn open_bi(
        &self,
        peer: SocketAddr,
        _host: HostId,
        kind: StreamKind,
    ) -> Result<(SendStream, RecvStream)> {
        let connection = self.connect(peer).await?;
        let mut inner = self.network.lock();
        let (there, back) = (inner.open_pipe(connection, 0), inner.open_pipe(connection, 1));
        if inner.loses_answer(kind)
            && let Some(pipe) = inner.pipes.get_mut(&back)
        {
            pipe.doomed = true;
        }
        inner.hold(there, Some(back));
        inner.send(there, Chunk::Open { kind, back: Some(back) });
        drop(inner);
        let send = SendStream::Simulated(PipeWriter::new(&self.network, there));
        Ok((send, RecvStream::Simulated(PipeReader::new(&self.network, back))))
    }

    pub(crate) async fn open_uni(&self, peer: SocketAddr, _host: HostId, kind: StreamKind) -> Result<SendStream> {
        let connection = self.connect(peer).await?;
        let mut inner = self.network.lock();
        let there = inner.open_pipe(connection, 0);
        inner.hold(there, None);
        inner.send(there, Chunk::Open { kind, back: None });
        drop(inner);
        Ok(SendStream::Simulated(PipeWriter::new(&self.network, there)))
    }

    /// The connection to a peer; a new one when there is none or the last was lost. One to an earlier life of the peer is
    /// used until that shows.
    async fn connect(&self, peer: SocketAddr) -> Result<ConnectionId> {
        let _connecting = self.connecting.lock().await;
        if let Some(found) = self.find(peer) {
            return Ok(found);
        }
        let began = time::now();
        loop {
            let round_trip = {
                let mut inner = self.network.lock();
                inner.delay(self.class) + inner.delay(self.class)
            };
            time::sleep(round_trip).await;
            if let Some(made) = self.shake_hands(peer) {
                return Ok(made);
            }
            if time::since(began) > CONNECT_TIMEOUT {
                return Err(Error::link(peer, "no answer within 3 s"));
            }
            time::sleep(KNOCK).await;
        }
    }

    fn find(&self, peer: SocketAddr) -> Option<ConnectionId> {
        let inner = self.network.lock();
        let mine = |connection: &Connection| {
            let end = &connection.ends[0];
            connection.to == peer
                && connection.class == self.class
                && (end.place, end.life) == (self.place, self.life)
                && end.closed.is_none()
        };
        inner.connections.iter().find(|(_, connection)| mine(connection)).map(|(id, _)| *id)
    }

    fn shake_hands(&self, peer: SocketAddr) -> Option<ConnectionId> {
        let mut inner = self.network.lock();
        let place = inner.listeners.get(&peer)?.place;
        if !inner.carries(self.place, place) || !inner.carries(place, self.place) {
            return None;
        }
        let now = inner.now;
        let end = |place, life| End { place, life, heard: now, closed: None };
        let ends = [end(self.place, self.life), end(place, inner.lives[place])];
        let id = inner.fresh_id();
        inner.connections.insert(id, Connection { class: self.class, to: peer, ends });
        for index in 0..2 {
            let due = now + Duration::from_millis(inner.random.u64(KEEP_ALIVE_MS));
            inner.schedule(due, Event::KeepAlive(id, index));
        }
        Some(id)
    }
}
