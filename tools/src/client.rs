//! A pipelined RESP client: many requests share a connection, replies come in their order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use antumbra_net::resp::codec::{self, ClientReply};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::CliError;

type Waiting = Arc<Mutex<VecDeque<oneshot::Sender<ClientReply>>>>;

/// One connection. Clones share it.
#[derive(Clone)]
pub struct Client {
    requests: mpsc::UnboundedSender<(Vec<u8>, oneshot::Sender<ClientReply>)>,
    outstanding: Arc<AtomicUsize>,
}

/// A request that is waited for, until it is dropped.
struct Outstanding<'a>(&'a AtomicUsize);

impl<'a> Outstanding<'a> {
    fn begin(count: &'a AtomicUsize) -> Outstanding<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Outstanding(count)
    }
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Result<Client, CliError> {
        let stream = TcpStream::connect(address).await.map_err(|cause| format!("{address}: {cause}"))?;
        stream.set_nodelay(true)?;
        let (mut from, mut to) = stream.into_split();
        let (requests, mut queue) = mpsc::unbounded_channel::<(Vec<u8>, oneshot::Sender<ClientReply>)>();
        let waiting: Waiting = Arc::default();
        let written = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some((mut bytes, answer)) = queue.recv().await {
                written.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
                // What waits already goes with it.
                while let Ok((more, answer)) = queue.try_recv() {
                    bytes.extend_from_slice(&more);
                    written.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
                }
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(64 << 10);
            loop {
                match codec::parse_reply(&mut buffer) {
                    Ok(Some(reply)) => {
                        let answer = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                        if let Some(answer) = answer {
                            let _ = answer.send(reply);
                        }
                        continue;
                    }
                    Ok(None) => {}
                    Err(_) => break,
                }
                match from.read_buf(&mut buffer).await {
                    Ok(len) if len > 0 => {}
                    _ => break,
                }
            }
            // Whoever still waits learns that the connection is gone.
            waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Ok(Client { requests, outstanding: Arc::default() })
    }

    /// Sends a command and waits for its reply.
    pub async fn call(&self, args: &[&[u8]]) -> Result<ClientReply, CliError> {
        let _outstanding = Outstanding::begin(&self.outstanding);
        let (answer, answered) = oneshot::channel();
        self.requests.send((codec::encode_command(args), answer)).map_err(|_| "connection lost")?;
        answered.await.map_err(|_| "connection lost".into())
    }

    /// Requests that are waited for.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Sends a command given as words; an error reply is an error.
    pub async fn command(&self, words: &str) -> Result<ClientReply, CliError> {
        let args: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        match self.call(&args).await? {
            ClientReply::Error(what) => Err(format!("{words}: {what}").into()),
            reply => Ok(reply),
        }
    }

    /// As [`Client::command`], for replies that are JSON.
    pub async fn json(&self, words: &str) -> Result<serde_json::Value, CliError> {
        match self.command(words).await? {
            ClientReply::Bulk(Some(bytes)) => Ok(serde_json::from_slice(&bytes)?),
            other => Err(format!("{words}: unexpected reply {other:?}").into()),
        }
    }
}
