//! The members of the etcd cluster: one is asked until it fails, then the next one.
//!
//! - `INV-ONE-ETCD`: a member of another etcd cluster than the first one that answered is never asked, so that a wrong
//!   address in the list does not give a partition two owners.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error as EtcdError, GetOptions, GetResponse, Identity,
    TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use tokio::time::Instant;

use crate::coordinator::health::Pulse;
use crate::error::Error;
use crate::secret::read_private;

use super::config::EtcdConfig;
use super::layout::{FORMAT, Layout};

/// A member that takes longer is taken for dead. Its answer, if it was a write, is unknown.
const REQUEST_MAX: Duration = Duration::from_secs(1);
/// The same for a login: etcd hashes passwords slowly and one at a time, and all hosts may come at once.
const LOGIN_MAX: Duration = Duration::from_secs(3);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(50);
/// Answers may be that long: tens of thousands of records.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a request has no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The member did not answer in time or refused; what was asked may have been done.
    Silent(String),
    /// The record differs from what the command assumes.
    Conflict(String),
    /// May have been done, and must not be asked again.
    Unknown(String),
    /// There is no such lease.
    NoLease,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Silent(what) | Failure::Unknown(what) => Error::Unknown { what },
            Failure::Conflict(what) => Error::Conflict { what },
            Failure::NoLease => Error::Unknown { what: "etcd has forgotten this host's lease".into() },
        }
    }
}

/// All of them.
pub(super) struct Members {
    config: EtcdConfig,
    layout: Layout,
    clients: RefCell<Vec<Option<Client>>>,
    /// Index of the one that is asked.
    asked: Cell<usize>,
    /// Id of the etcd cluster.
    cluster: Cell<Option<u64>>,
    pulse: Pulse,
}

impl Members {
    pub fn new(config: EtcdConfig, pulse: Pulse) -> Members {
        let clients = RefCell::new(vec![None; config.endpoints.len()]);
        let layout = Layout::new(&config.prefix);
        Members { config, layout, clients, asked: Cell::new(0), cluster: Cell::new(None), pulse }
    }

    /// Lets `request` ask one member, once.
    pub async fn ask<T>(&self, request: impl AsyncFnOnce(Client) -> Result<T, EtcdError>) -> Result<T, Failure> {
        let index = self.asked.get();
        let asked = async {
            let client = self.client(index).await?;
            let answer = async { request(client).await.map_err(|cause| explain(&cause)) };
            within(REQUEST_MAX, answer).await
        };
        let failure = match asked.await {
            Ok(answer) => return Ok(answer),
            Err(Failure::NoLease) => return Err(Failure::NoLease),
            Err(Failure::Silent(what) | Failure::Unknown(what) | Failure::Conflict(what)) => what,
        };
        let what = format!("etcd {}: {failure}", self.config.endpoints[index]);
        tracing::debug!(what);
        self.pulse.complain(&what);
        self.give_up(index);
        Err(Failure::Silent(what))
    }

    /// Repeats `work` until it is answered or `limit` is over.
    pub async fn persist<T>(
        &self,
        limit: Duration,
        mut work: impl AsyncFnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            match work().await {
                Err(Failure::Silent(_)) if Instant::now() + RETRY < deadline => {}
                Err(Failure::Silent(what)) => {
                    self.pulse.silent(&what);
                    return Err(Failure::Silent(what));
                }
                other => {
                    if !matches!(other, Err(Failure::Unknown(_))) {
                        self.pulse.answered();
                    }
                    return other;
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The member with this index is asked no more, until its turn comes again; its connection is made anew then.
    pub fn give_up(&self, index: usize) {
        self.clients.borrow_mut()[index] = None;
        if self.asked.get() == index {
            self.asked.set((index + 1) % self.config.endpoints.len());
        }
    }

    /// Index of the one that is asked.
    pub fn asked(&self) -> usize {
        self.asked.get()
    }

    async fn client(&self, index: usize) -> Result<Client, Failure> {
        if let Some(client) = &self.clients.borrow()[index] {
            return Ok(client.clone());
        }
        let limit = if self.config.user.is_some() { LOGIN_MAX } else { REQUEST_MAX };
        let client = within(limit, self.connect(index)).await?;
        self.clients.borrow_mut()[index] = Some(client.clone());
        Ok(client)
    }

    /// Certificates and the password are read anew each time, so that they can be exchanged while the host runs.
    async fn connect(&self, index: usize) -> Result<Client, Failure> {
        let options = self.options().map_err(|cause| Failure::Silent(cause.to_string()))?;
        let endpoint = &self.config.endpoints[index];
        let client = Client::connect([endpoint], Some(options)).await.map_err(|cause| explain(&cause))?;
        let key = self.layout.format();
        let found = read_mark(&client, &key).await?;
        let cluster = found.header().map(|header| header.cluster_id());
        match (self.cluster.get(), cluster) {
            (None, cluster) => self.cluster.set(cluster),
            (Some(ours), Some(theirs)) if ours == theirs => {}
            (Some(ours), theirs) => {
                let theirs = theirs.unwrap_or_default();
                let what =
                    format!("it belongs to etcd cluster {theirs:x}, not to {ours:x} as those before; correct --etcd");
                tracing::error!(endpoint, what);
                return Err(Failure::Silent(what));
            }
        }
        let format = match found.kvs().first() {
            Some(kv) => kv.value().to_vec(),
            None => write_mark(&client, &key, FORMAT).await?,
        };
        if format != FORMAT {
            let format = String::from_utf8_lossy(&format).into_owned();
            return Err(Failure::Silent(format!("{key} says format {format}; this release knows format 1 only")));
        }
        self.check_cluster(&client).await?;
        Ok(client)
    }

    /// Two clusters under one prefix would take each other's hosts and partitions for their own.
    async fn check_cluster(&self, client: &Client) -> Result<(), Failure> {
        let Some(ours) = &self.config.cluster else {
            return Ok(());
        };
        let key = self.layout.cluster();
        let theirs = match read_mark(client, &key).await?.kvs().first() {
            Some(kv) => kv.value().to_vec(),
            None => write_mark(client, &key, ours.as_bytes()).await?,
        };
        if theirs == ours.as_bytes() {
            return Ok(());
        }
        let theirs = String::from_utf8_lossy(&theirs);
        let what = format!(
            "the prefix belongs to another Antumbra cluster: {key} names authority {theirs}, this host's is {ours}. Give each \
             cluster its own --etcd-prefix; if the authority itself was replaced, delete that key"
        );
        tracing::error!(what);
        Err(Failure::Silent(what))
    }

    fn options(&self) -> crate::Result<ConnectOptions> {
        // A member that has lost the others says so instead of answering from what it knows.
        let mut options = ConnectOptions::new().with_require_leader(true).with_connect_timeout(REQUEST_MAX);
        if let Some((user, password)) = &self.config.user {
            options = options.with_user(user, password.reveal()).with_auto_token_refresh(true);
        }
        if let Some(ca) = &self.config.ca {
            let refuse = |cause: std::io::Error| Error::Refused { what: format!("{}: {cause}", ca.display()) };
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(std::fs::read(ca).map_err(refuse)?));
            if let (Some(cert), Some(key)) = (&self.config.cert, &self.config.key) {
                let refuse = |cause: std::io::Error| Error::Refused { what: format!("{}: {cause}", cert.display()) };
                let cert = std::fs::read(cert).map_err(refuse)?;
                tls = tls.identity(Identity::from_pem(cert, read_private(key)?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

/// What a prefix is marked as, as far as this member knows.
async fn read_mark(client: &Client, key: &str) -> Result<GetResponse, Failure> {
    let read = GetOptions::new().with_serializable();
    client.kv_client().get(key, Some(read)).await.map_err(|cause| explain(&cause))
}

/// Marks a prefix that is not marked yet; returns what it is marked as.
async fn write_mark(client: &Client, key: &str, mark: &[u8]) -> Result<Vec<u8>, Failure> {
    let txn = Txn::new()
        .when([Compare::mod_revision(key, CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key, mark, None)])
        .or_else([TxnOp::get(key, None)]);
    let answer = client.kv_client().txn(txn).await.map_err(|cause| explain(&cause))?;
    match answer.op_responses().first() {
        Some(TxnOpResponse::Get(found)) => Ok(found.kvs().first().map_or(Vec::new(), |kv| kv.value().to_vec())),
        _ => Ok(mark.to_vec()),
    }
}

/// The reads and writes of a client, which may get long answers.
pub(super) fn kv(client: &Client) -> etcd_client::KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The watches of a client.
pub(super) fn watches(client: &Client) -> etcd_client::WatchClient {
    client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX)
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Err(Failure::Silent(format!("no answer within {limit:?}")));
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

fn explain(cause: &EtcdError) -> Failure {
    match cause {
        EtcdError::LeaseKeepAliveError(_) => Failure::NoLease,
        EtcdError::GRpcStatus(status) if status.message().contains("requested lease not found") => Failure::NoLease,
        EtcdError::GRpcStatus(status) => {
            // The interesting part (refused, wrong certificate) is at the end of the chain.
            let mut what = status.message().to_string();
            let mut source = std::error::Error::source(status);
            while let Some(inner) = source {
                what = inner.to_string();
                source = inner.source();
            }
            Failure::Silent(what)
        }
        other => Failure::Silent(other.to_string()),
    }
}
