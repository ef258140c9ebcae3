//! Connections as `CLIENT` sees them: those of all shards of a host.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use super::command::{COMMANDS, echo};
use super::keyed::parse_integer;
use super::reply::Reply;

/// What a connection is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub name: String,
    pub library: String,
    pub library_version: String,
    pub user: String,
}

/// A connection, for others to look at and to end.
#[derive(Debug)]
pub(crate) struct Client {
    pub id: u64,
    pub address: SocketAddr,
    pub local: SocketAddr,
    began: Instant,
    names: Mutex<Names>,
    /// Milliseconds after `began` of the last request.
    active_ms: AtomicU64,
    last_command: AtomicUsize,
    pub version: AtomicU8,
    /// Commands in the transaction; -1 without one.
    pub queued: AtomicI64,
    pub watched: AtomicUsize,
    /// Bytes that were read and not served yet.
    pub input_bytes: AtomicUsize,
    killed: AtomicBool,
    waker: AtomicWaker,
}

impl Client {
    pub fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request.
    pub fn touch(&self, command: usize) {
        self.active_ms.store(self.began.elapsed().as_millis() as u64, Relaxed);
        self.last_command.store(command, Relaxed);
    }

    /// Ends the connection soon.
    pub fn kill(&self) {
        self.killed.store(true, Relaxed);
        self.waker.wake();
    }

    pub fn is_killed(&self) -> bool {
        self.killed.load(Relaxed)
    }

    /// Is ready when somebody has ended the connection.
    pub async fn killed(&self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            if self.is_killed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// A line of `CLIENT LIST`.
    pub fn describe(&self) -> String {
        let names = self.names().clone();
        let age = self.began.elapsed();
        let idle = (age.as_millis() as u64).saturating_sub(self.active_ms.load(Relaxed)) / 1000;
        let queued = self.queued.load(Relaxed);
        let command = COMMANDS.get(self.last_command.load(Relaxed)).map_or("NULL", |spec| spec.name);
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={idle} flags={} db=0 sub=0 psub=0 ssub=0 multi={queued} \
             watch={} qbuf={} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd={command} \
             user={} redir=-1 resp={} lib-name={} lib-ver={}",
            self.id,
            self.address,
            self.local,
            names.name,
            age.as_secs(),
            if queued >= 0 { "x" } else { "N" },
            self.watched.load(Relaxed),
            self.input_bytes.load(Relaxed),
            names.user,
            self.version.load(Relaxed),
            names.library,
            names.library_version,
        )
    }
}

/// All connections of a host.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    next_id: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// Beside the table, so that a shard need not lock to see whether there is room.
    count: AtomicUsize,
}

impl Clients {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Client>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection; `None` when there are `max` already.
    pub fn enter(&self, address: SocketAddr, local: SocketAddr, user: String, max: usize) -> Option<Arc<Client>> {
        if self.count.fetch_add(1, Relaxed) >= max {
            self.count.fetch_sub(1, Relaxed);
            return None;
        }
        let client = Arc::new(Client {
            id: self.next_id.fetch_add(1, Relaxed) + 1,
            address,
            local,
            began: Instant::now(),
            names: Mutex::new(Names { user, ..Names::default() }),
            active_ms: AtomicU64::new(0),
            last_command: AtomicUsize::new(usize::MAX),
            version: AtomicU8::new(2),
            queued: AtomicI64::new(-1),
            watched: AtomicUsize::new(0),
            input_bytes: AtomicUsize::new(0),
            killed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        self.open().insert(client.id, Arc::clone(&client));
        Some(client)
    }

    pub fn leave(&self, client: &Client) {
        if self.open().remove(&client.id).is_some() {
            self.count.fetch_sub(1, Relaxed);
        }
    }

    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Connections since the start.
    pub fn accepted(&self) -> u64 {
        self.next_id.load(Relaxed)
    }

    fn all(&self) -> Vec<Arc<Client>> {
        self.open().values().cloned().collect()
    }

    /// `CLIENT LIST [TYPE type] [ID id ...]`.
    pub fn list(&self, options: &[Bytes]) -> Result<Reply, Reply> {
        let mut ids = None;
        match options {
            [] => {}
            [word, kind] if word.eq_ignore_ascii_case(b"type") => {
                if !is_normal(kind)? {
                    ids = Some(Vec::new());
                }
            }
            [word, rest @ ..] if word.eq_ignore_ascii_case(b"id") && !rest.is_empty() => {
                let number = |id: &Bytes| parse_integer(id).filter(|id| *id > 0).map(|id| id as u64);
                let parsed: Option<Vec<u64>> = rest.iter().map(number).collect();
                ids = Some(parsed.ok_or_else(|| Reply::error("ERR Invalid client ID"))?);
            }
            _ => return Err(Reply::error("ERR syntax error")),
        }
        let mut text = String::new();
        for client in self.all() {
            if ids.as_ref().is_none_or(|ids| ids.contains(&client.id)) {
                text.push_str(&client.describe());
                text.push('\n');
            }
        }
        Ok(Reply::Verbatim(text))
    }

    /// `CLIENT KILL address` or `CLIENT KILL filter value ...`; also whether `me` is to go.
    pub fn kill(&self, options: &[Bytes], me: &Client) -> Result<(Reply, bool), Reply> {
        let filters = Filters::parse(options)?;
        let mut killed = 0;
        let mut kills_me = false;
        for client in self.all() {
            let is_me = client.id == me.id;
            if filters.match_all(&client) && !(is_me && filters.skips_me) {
                killed += 1;
                kills_me |= is_me;
                if !is_me {
                    client.kill();
                }
            }
        }
        match (filters.is_old_form, killed) {
            (true, 0) => Err(Reply::error("ERR No such client")),
            (true, _) => Ok((Reply::OK, kills_me)),
            (false, killed) => Ok((Reply::Integer(killed), kills_me)),
        }
    }
}

/// Whether a type of clients is the only one that there is here.
fn is_normal(kind: &Bytes) -> Result<bool, Reply> {
    match kind.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(true),
        b"master" | b"replica" | b"slave" | b"pubsub" => Ok(false),
        other => Err(Reply::Error(format!("ERR Unknown client type '{}'", echo(other)))),
    }
}

#[derive(Debug, Default)]
struct Filters {
    id: Option<u64>,
    address: Option<String>,
    local: Option<String>,
    user: Option<String>,
    is_no_type: bool,
    age_s: Option<u64>,
    skips_me: bool,
    is_old_form: bool,
}

impl Filters {
    fn parse(options: &[Bytes]) -> Result<Filters, Reply> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        if let [address] = options {
            return Ok(Filters { address: Some(text(address)), is_old_form: true, ..Filters::default() });
        }
        let mut filters = Filters { skips_me: true, ..Filters::default() };
        let pairs = options.chunks_exact(2);
        if !pairs.remainder().is_empty() || options.is_empty() {
            return Err(Reply::error("ERR syntax error"));
        }
        let number = |bytes: &Bytes| parse_integer(bytes).and_then(|number| u64::try_from(number).ok());
        for pair in pairs {
            match pair[0].to_ascii_lowercase().as_slice() {
                b"id" => {
                    let id = number(&pair[1]).filter(|id| *id > 0);
                    filters.id = Some(id.ok_or_else(|| Reply::error("ERR client-id should be greater than 0"))?);
                }
                b"addr" => filters.address = Some(text(&pair[1])),
                b"laddr" => filters.local = Some(text(&pair[1])),
                b"user" => filters.user = Some(text(&pair[1])),
                b"type" => filters.is_no_type |= !is_normal(&pair[1])?,
                b"maxage" => {
                    let age =
                        number(&pair[1]).ok_or_else(|| Reply::error("ERR maxage is not an integer or out of range"));
                    filters.age_s = Some(age?);
                }
                b"skipme" => {
                    filters.skips_me = match pair[1].to_ascii_lowercase().as_slice() {
                        b"yes" => true,
                        b"no" => false,
                        _ => return Err(Reply::error("ERR syntax error")),
                    }
                }
                _ => return Err(Reply::error("ERR syntax error")),
            }
        }
        Ok(filters)
    }

    fn match_all(&self, client: &Client) -> bool {
        let is = |wanted: &Option<String>, has: String| wanted.as_ref().is_none_or(|wanted| *wanted == has);
        !self.is_no_type
            && self.id.is_none_or(|id| id == client.id)
            && is(&self.address, client.address.to_string())
            && is(&self.local, client.local.to_string())
            && self.user.as_ref().is_none_or(|user| *user == client.names().user)
            && self.age_s.is_none_or(|age_s| client.began.elapsed().as_secs() >= age_s)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn args(words: &[&'static str]) -> Vec<Bytes> {
        words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect()
    }

    #[test]
    fn kill_by_filters_spares_the_caller() {
        let clients = Clients::default();
        let enter = |port: u16| {
            let (address, local) = (SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from(([127, 0, 0, 1], 1)));
            clients.enter(address, local, "default".into(), 3)
        };
        let (me, other) = (enter(10).unwrap(), enter(11).unwrap());
        assert!(enter(12).is_some() && enter(13).is_none(), "three fit");
        let kill = |words: &[&'static str]| clients.kill(&args(words), &me);
        assert_eq!(kill(&["USER", "default"]), Ok((Reply::Integer(2), false)));
        assert!(other.is_killed() && !me.is_killed());
        assert_eq!(kill(&["ID", "1", "SKIPME", "no"]), Ok((Reply::Integer(1), true)));
        assert_eq!(kill(&["127.0.0.1:11"]), Ok((Reply::OK, false)));
        assert_eq!(kill(&["127.0.0.1:99"]), Err(Reply::error("ERR No such client")));
        assert!(kill(&["ID"]).is_err() && kill(&["ID", "x"]).is_err() && kill(&["NO", "x"]).is_err());
        clients.leave(&other);
        clients.leave(&other);
        assert_eq!(clients.len(), 2);
        let Ok(Reply::Verbatim(text)) = clients.list(&args(&["ID", "1", "9"])) else { panic!("a text") };
        assert!(text.starts_with("id=1 addr=127.0.0.1:10 ") && text.lines().count() == 1, "{text}");
    }
}
