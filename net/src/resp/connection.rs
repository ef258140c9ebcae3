//! One connection: what it has read and not served yet, and what its client has chosen.
//!
//! Memory of a connection: its read buffer (at most one command and [`READ_BYTES`]) and the replies of one batch.

use bytes::{Bytes, BytesMut};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::TcpStream;

use super::codec;
use super::reply::Reply;
use super::server::Server;

/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

pub(super) struct Connection<'a> {
    pub server: &'a Server,
    pub stream: TcpStream,
    /// Of the protocol.
    pub version: u8,
    /// The client has shown that it follows MOVED; others are forwarded.
    pub follows_moved: bool,
    pub name: Bytes,
}

impl<'a> Connection<'a> {
    pub fn new(server: &'a Server, stream: TcpStream) -> Connection<'a> {
        Connection { server, stream, version: 2, follows_moved: false, name: Bytes::new() }
    }

    /// Serves the client until it leaves.
    pub async fn run(&mut self) -> std::io::Result<()> {
        self.stream.set_nodelay(true).map_err(std::io::Error::from)?;
        let mut buffer = BytesMut::new();
        let mut chunk = vec![0; READ_BYTES];
        let mut replies = Vec::new();
        loop {
            let len = self.stream.read(&mut chunk).await?;
            if len == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&chunk[..len]);
            let (commands, bad) = take_commands(&mut buffer);
            let quit = self.serve_batch(commands, &mut replies).await?;
            if let Some(bad) = bad {
                Reply::Error(format!("ERR {}", bad.0)).write(&mut replies, self.version);
                self.stream.write_all(&replies).await?;
                return Ok(());
            }
            if !replies.is_empty() {
                self.stream.write_all(&replies).await?;
                replies.clear();
            }
            if quit {
                return Ok(());
            }
        }
    }
}

fn take_commands(buffer: &mut BytesMut) -> (Vec<Vec<Bytes>>, Option<codec::BadRequest>) {
    let mut commands = Vec::new();
    loop {
        match codec::parse(buffer) {
            Ok(Some(args)) if args.is_empty() => {}
            Ok(Some(args)) => commands.push(args),
            Ok(None) => return (commands, None),
            Err(bad) => return (commands, Some(bad)),
        }
    }
}
