//! HAProxy by its runtime API: the server `partition-ID` of a backend follows the partition's owner.
//!
//! ```text
//!  set server B/partition-7 state drain     no new session goes to the old owner
//!  set server B/partition-7 addr IP port P
//!  show servers state B                     does it say so?
//!  set server B/partition-7 state ready
//!  shutdown sessions server B/partition-7   only where wanted
//! ```
//!
//! Sessions to the old owner live on, and it forwards them. `drain` is this module's: a server that was left so, by a node
//! that died half-way, is made ready. `maint` is the operator's and stays.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::Sink;
use super::backlog::Entry;

/// Answers are not longer: tens of thousands of servers.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// Bits of `srv_admin_state`: in maintenance, by whomever; told to drain.
const MAINT: u32 = 0x67;
const DRAIN: u32 = 0x08;

/// Where HAProxy listens for commands of level `admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatsSocket {
    /// A socket file.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// One backend of one HAProxy.
#[derive(Clone, Debug)]
pub struct HaproxyConfig {
    /// Where it takes commands.
    pub socket: StatsSocket,
    /// The backend. It has a server `partition-ID` for each partition.
    pub backend: String,
    /// End the sessions to the old owner, so that their clients connect anew.
    pub cut_sessions: bool,
    /// Lead to the hosts' addresses for TLS, where they have one: HAProxy passes it on.
    pub tls: bool,
}

#[derive(Debug)]
pub(super) struct Haproxy {
    config: HaproxyConfig,
}

/// A line of `show servers state`.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    address: String,
    port: u16,
    admin: u32,
}

impl Haproxy {
    pub fn new(config: HaproxyConfig) -> Haproxy {
        Haproxy { config }
    }

    /// Runs one command; HAProxy closes the connection behind its answer.
    async fn tell(&self, command: &str) -> Result<String, String> {
        let explain = |cause: std::io::Error| format!("{cause}");
        match &self.config.socket {
            StatsSocket::Unix(path) => exchange(UnixStream::connect(path).await.map_err(explain)?, command).await,
            StatsSocket::Tcp(address) => exchange(TcpStream::connect(address).await.map_err(explain)?, command).await,
        }
        .map_err(explain)
    }

    /// Runs a command that says nothing when it has worked.
    async fn set(&self, command: &str) -> Result<(), String> {
        let answer = self.tell(command).await?;
        if answer.trim().is_empty() { Ok(()) } else { Err(format!("{command}: {}", answer.trim())) }
    }

    async fn server(&self, name: &str) -> Result<Server, String> {
        let backend = &self.config.backend;
        let answer = self.tell(&format!("show servers state {backend}")).await?;
        find(&answer, backend, name)
            .map_err(|what| format!("backend {backend}: {what}"))?
            .ok_or_else(|| format!("backend {backend} has no server {name}; give it one in HAProxy's configuration"))
    }
}

impl Sink for Haproxy {
    fn name(&self) -> String {
        let place = match &self.config.socket {
            StatsSocket::Unix(path) => path.display().to_string(),
            StatsSocket::Tcp(address) => address.to_string(),
        };
        format!("haproxy {place} {}", self.config.backend)
    }

    fn tls(&self) -> bool {
        self.config.tls
    }

    fn takes(&self, entry: &Entry) -> bool {
        matches!(entry, Entry::Partition { .. })
    }

    async fn publish(&mut self, entry: &Entry) -> Result<String, String> {
        let Entry::Partition { partition, address, .. } = entry else {
            return Err("HAProxy is told of partitions alone".into());
        };
        let name = format!("partition-{partition}");
        let whole = format!("{}/{name}", self.config.backend);
        let (ip, port) = (address.ip().to_string(), address.port());
        let says = |server: &Server| server.address == ip && server.port == port;
        let found = self.server(&name).await?;
        let moves = !says(&found);
        let rests = found.admin & MAINT != 0;
        if moves {
            if !rests {
                self.set(&format!("set server {whole} state drain")).await?;
            }
            // Its answer is words in any case; what counts is the state behind it.
            let answer = self.tell(&format!("set server {whole} addr {ip} port {port}")).await?;
            if !says(&self.server(&name).await?) {
                return Err(answer.trim().to_string());
            }
        }
        if rests {
            return Ok(format!("{address}, in maintenance"));
        }
        if moves || found.admin & DRAIN != 0 {
            self.set(&format!("set server {whole} state ready")).await?;
            let after = self.server(&name).await?;
            if after.admin != 0 || !says(&after) {
                return Err(format!("{whole} is not ready: {after:?}"));
            }
        }
        if moves && self.config.cut_sessions {
            self.set(&format!("shutdown sessions server {whole}")).await?;
        }
        Ok(address.to_string())
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, command: &str) -> std::io::Result<String> {
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Finds a server in the answer to `show servers state`, whose columns are named in its second line.
fn find(answer: &str, backend: &str, name: &str) -> Result<Option<Server>, String> {
    let wrong = || format!("show servers state: {}", answer.lines().next().unwrap_or("no answer"));
    let mut lines = answer.lines();
    if lines.next().map(str::trim) != Some("1") {
        return Err(wrong());
    }
    let header = lines.next().and_then(|line| line.strip_prefix("# ")).ok_or_else(wrong)?;
    let column = |wanted: &str| header.split(' ').position(|name| name == wanted).ok_or_else(wrong);
    let columns = ["be_name", "srv_name", "srv_addr", "srv_port", "srv_admin_state"].map(column);
    let [be_name, srv_name, srv_addr, srv_port, srv_admin] = columns;
    let (be_name, srv_name, srv_addr, srv_port, srv_admin) = (be_name?, srv_name?, srv_addr?, srv_port?, srv_admin?);
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let word = |column: usize| words.get(column).copied().unwrap_or_default();
        if word(be_name) == backend && word(srv_name) == name {
            let (port, admin) = (word(srv_port).parse(), word(srv_admin).parse());
            let (Ok(port), Ok(admin)) = (port, admin) else { return Err(wrong()) };
            return Ok(Some(Server { address: word(srv_addr).into(), port, admin }));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn find_reads_the_columns_by_their_names() {
        let answer = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_port\n\
            3 shards 1 partition-1 10.0.0.1 2 0 6379\n3 shards 2 partition-12 ::1 2 8 6380\n\n";
        let found = find(answer, "shards", "partition-12").unwrap().unwrap();
        assert_eq!(found, Server { address: "::1".into(), port: 6380, admin: DRAIN });
        assert_eq!(find(answer, "shards", "partition-2").unwrap(), None);
        assert_eq!(find(answer, "other", "partition-1").unwrap(), None);
        for broken in ["", "Can't find backend.\n", "1\n# be_id\n", "2\n# be_name\n"] {
            assert!(find(broken, "shards", "partition-1").is_err(), "{broken:?}");
        }
        assert!(find(&answer.replace("6379", "port"), "shards", "partition-1").is_err());
    }
}
