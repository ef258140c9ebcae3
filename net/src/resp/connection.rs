//! One connection: what it has read and not served yet, and what its client has chosen.
//!
//! Its memory: the read buffer, up to one command ([`super::codec::COMMAND_BYTES_MAX`]) and what was read with it; the
//! replies, up to [`REPLY_BYTES`]; the values in replies that are not written yet; a transaction's commands. What exceeds
//! [`super::limits::FREE_BYTES`] of it is taken from the shard's budget; a client for whom there is no room is told so, and
//! its connection closed if it was sending.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use antumbra_engine::runtime;
use bytes::{Bytes, BytesMut};
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

use crate::error::Result;

use super::acl::User;
use super::client::Client;
use super::codec::{BadRequest, Decoder};
use super::limits::{Charge, FREE_BYTES};
use super::operation::Outcome;
use super::reply::Reply;
use super::server::Server;
use super::tls::Stream;
use super::transaction::Transaction;

/// Bytes read at a time, from a client that sends little and from one that sends much.
const READ_BYTES_MIN: usize = 1 << 10;
const READ_BYTES_MAX: usize = 256 << 10;
/// Replies are sent when this many bytes are waiting.
const REPLY_BYTES: usize = 64 << 10;
/// Commands of a pipeline that are taken up at a time.
const PIPELINE_MAX: usize = 1024;
/// After an error the rest of what the client sends is thrown away for so long, so that it gets to read the error.
const LINGER_MAX: Duration = Duration::from_millis(200);
const LINGER_BYTES_MAX: usize = 16 << 20;

/// Which replies a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    None,
    /// Not that of this command.
    AllButThis,
    /// Not that of the next command.
    AllButNext,
}

pub(super) struct Connection<'a> {
    pub server: &'a Server,
    stream: Stream,
    pub client: Arc<Client>,
    /// Of the protocol.
    pub version: u8,
    /// The client has shown that it follows MOVED; others are forwarded.
    pub follows_moved: bool,
    /// `None` before the client has said who it is.
    pub user: Option<Arc<User>>,
    pub transaction: Transaction,
    pub wanted: Wanted,
    /// The connection ends with the reply that comes next.
    pub ends: bool,
    /// The slot of the last write.
    pub written_slot: Option<u16>,
    decoder: Decoder,
    input: BytesMut,
    input_charge: Charge,
    read_bytes: usize,
    replies: Vec<u8>,
}

impl<'a> Connection<'a> {
    pub fn new(server: &'a Server, stream: Stream, client: Arc<Client>, user: Option<Arc<User>>) -> Connection<'a> {
        Connection {
            server,
            stream,
            client,
            version: 2,
            follows_moved: false,
            user,
            transaction: Transaction::new(&server.budget),
            wanted: Wanted::All,
            ends: false,
            written_slot: None,
            decoder: Decoder::default(),
            input: BytesMut::new(),
            input_charge: Charge::nothing(&server.budget),
            read_bytes: READ_BYTES_MIN,
            replies: Vec::new(),
        }
    }

    /// Serves the client until it leaves.
    pub async fn run(&mut self) -> std::io::Result<()> {
        loop {
            let commands_max = self.commands_max();
            let (commands, bad) = self.take_commands();
            let is_full = commands.len() == commands_max;
            self.serve_batch(commands).await?;
            if let Some(bad) = bad {
                return self.refuse(&format!("ERR {}", bad.0)).await;
            }
            if self.ends || self.client.is_killed() {
                return self.flush().await;
            }
            if is_full {
                continue;
            }
            self.flush().await?;
            if self.settle_input().is_err() {
                self.server.counters.errors.add();
                let max = self.server.service.config.limits.client_bytes_max;
                return self
                    .refuse(&format!("ERR clients' buffers of this shard hold {max} bytes: try again later"))
                    .await;
            }
            if self.read().await? == 0 {
                return Ok(());
            }
        }
    }

    /// Reads some bytes; none at the end, or when somebody ended the connection.
    async fn read(&mut self) -> std::io::Result<usize> {
        let before = self.input.len();
        self.input.resize(before + self.read_bytes, 0);
        let read = self.stream.read(&mut self.input[before..]);
        let killed = async {
            self.client.killed().await;
            Ok(0)
        };
        let read = future::or(read, killed).await;
        let len = *read.as_ref().unwrap_or(&0);
        self.input.truncate(before + len);
        // Who fills what is offered gets more next time.
        if len == self.read_bytes {
            self.read_bytes = (self.read_bytes * 4).min(READ_BYTES_MAX);
        } else if len < self.read_bytes / 4 {
            self.read_bytes = (self.read_bytes / 4).max(READ_BYTES_MIN);
        }
        read
    }

    /// Commands that are taken up at a time: one, as long as the next may be AUTH, which changes what is allowed.
    fn commands_max(&self) -> usize {
        if self.user.is_some() { PIPELINE_MAX } else { 1 }
    }

    fn take_commands(&mut self) -> (Vec<Vec<Bytes>>, Option<BadRequest>) {
        self.decoder.is_unknown = self.user.is_none();
        let mut commands = Vec::new();
        while commands.len() < self.commands_max() {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(args)) if args.is_empty() => {}
                Ok(Some(args)) => commands.push(args),
                Ok(None) => break,
                Err(bad) => return (commands, Some(bad)),
            }
        }
        (commands, None)
    }

    /// Accounts for what was read and is not served, and for what the next read may bring.
    fn settle_input(&mut self) -> std::result::Result<(), super::limits::Full> {
        if self.input.is_empty() {
            // Commands share their memory with the buffer: without this the largest would stay.
            self.input = BytesMut::new();
        }
        self.client.input_bytes.store(self.input.len(), Relaxed);
        let bytes = self.input.capacity().max(self.input.len() + self.read_bytes);
        self.input_charge.resize(bytes.saturating_sub(FREE_BYTES))?;
        self.server.counters.client_bytes.set(self.server.budget.used() as u64);
        Ok(())
    }

    /// Takes a reply up for sending. Lists are sent in pieces, and long strings from where they lie.
    pub async fn reply(&mut self, reply: &Reply) -> std::io::Result<()> {
        if reply.is_error() {
            self.server.counters.errors.add();
        }
        match self.wanted {
            Wanted::All => {}
            Wanted::None => return Ok(()),
            Wanted::AllButThis => {
                self.wanted = Wanted::All;
                return Ok(());
            }
            Wanted::AllButNext => {
                // This is the reply to what asked for it.
                self.wanted = Wanted::AllButThis;
                return Ok(());
            }
        }
        let mut rest = vec![reply];
        while let Some(reply) = rest.pop() {
            reply.write_head(&mut self.replies, self.version);
            match reply {
                Reply::Bulk(bytes) => {
                    if bytes.len() >= REPLY_BYTES {
                        self.flush().await?;
                        self.stream.write_all(bytes).await?;
                    } else {
                        self.replies.extend_from_slice(bytes);
                    }
                    self.replies.extend_from_slice(b"\r\n");
                }
                Reply::Array(items) | Reply::Set(items) => rest.extend(items.iter().rev()),
                Reply::Map(pairs) => rest.extend(pairs.iter().rev().flat_map(|(key, value)| [value, key])),
                _ => {}
            }
            if self.replies.len() >= REPLY_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Sends the replies that wait.
    pub async fn flush(&mut self) -> std::io::Result<()> {
        if !self.replies.is_empty() {
            self.stream.write_all(&self.replies).await?;
            self.stream.flush().await?;
            self.replies.clear();
            // One long reply is not kept for.
            self.replies.shrink_to(READ_BYTES_MIN);
        }
        Ok(())
    }

    /// Tells the client why it is cut off.
    async fn refuse(&mut self, what: &str) -> std::io::Result<()> {
        self.wanted = Wanted::All;
        self.reply(&Reply::error(what)).await?;
        self.flush().await?;
        self.stream.close().await?;
        let mut thrown = 0;
        let mut waste = vec![0; REPLY_BYTES];
        let stream = &mut self.stream;
        let throw = async {
            while thrown < LINGER_BYTES_MAX {
                match stream.read(&mut waste).await {
                    Ok(len) if len > 0 => thrown += len,
                    _ => return,
                }
            }
        };
        future::or(throw, runtime::sleep(LINGER_MAX)).await;
        Ok(())
    }

    /// The reply to an operation that did not come to its end.
    pub fn failure(&self, slot: u16, result: Result<Outcome>) -> Reply {
        self.server.failure(slot, result, self.is_tls())
    }

    /// Whether the client speaks TLS, and is told the hosts' addresses for that.
    pub fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// Ends the connection.
    pub async fn close(&mut self) {
        let _ = self.stream.close().await;
    }
}
