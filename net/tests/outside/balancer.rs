//! HAProxy, the real one: a client that knows nothing of partitions is led to the owner.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use antumbra_net::routing::RoutingTable;
use antumbra_net::sink::haproxy::{HaproxyConfig, StatsSocket};
use antumbra_net::sink::{SinkConfig, Sinks};

use super::daemon::{Daemon, await_port, find, free_port, until};
use super::names::{state_of, tell};

struct Balancer {
    daemon: Option<Daemon>,
    front: SocketAddr,
    admin: SocketAddr,
    socket: PathBuf,
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Balancer {
    fn start() -> Option<Balancer> {
        let program = find("haproxy")?;
        let dir = tempfile::tempdir().unwrap();
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (front, admin, socket) = (local(), local(), dir.path().join("admin.sock"));
        let text = format!(
            "global\n  stats socket {} mode 600 level admin\n  stats socket ipv4@{admin} level operator\n\
             defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 30s\n  timeout server 30s\n\
             frontend clients\n  bind {front}\n  default_backend shards\n\
             backend shards\n  server partition-7 127.0.0.9:9\n",
            socket.display()
        );
        std::fs::write(dir.path().join("haproxy.cfg"), text).unwrap();
        let mut balancer = Balancer { daemon: None, front, admin, socket, program, dir };
        balancer.run();
        Some(balancer)
    }

    fn run(&mut self) {
        let config = self.dir.path().join("haproxy.cfg").display().to_string();
        self.daemon = Some(Daemon::start(&self.program, &["-db".into(), "-f".into(), config]));
        await_port(self.front);
        until("the stats socket", || UnixStream::connect(&self.socket).is_ok());
    }

    fn config(&self) -> HaproxyConfig {
        let socket = StatsSocket::Unix(self.socket.clone());
        HaproxyConfig { socket, backend: "shards".into(), cut_sessions: false, tls: false }
    }

    /// What an operator sees.
    fn tell(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Who answers a client that connects now.
    fn who(&self) -> Option<u8> {
        let mut stream = TcpStream::connect(self.front).ok()?;
        hello(&mut stream)
    }
}

fn hello(stream: &mut TcpStream) -> Option<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(b"?").ok()?;
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    Some(byte[0])
}

/// A server of clients that answers each byte with its host's number.
fn host(ip: &str, port: u16, number: u8) {
    let listener = TcpListener::bind((ip, port)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&[number]).is_ok() {}
            });
        }
    });
}

fn start(config: HaproxyConfig) -> (RoutingTable, Sinks) {
    let routing = RoutingTable::default();
    let config = SinkConfig { haproxy: vec![config], ..SinkConfig::default() };
    (routing.clone(), Sinks::start(routing, config).unwrap())
}

fn is_told(sinks: &Sinks) -> bool {
    state_of(sinks, "partition 7").is_some_and(|state| state.confirmed.is_some())
}

#[test]
fn haproxy_leads_to_the_owner_and_old_sessions_live_on() {
    let Some(mut balancer) = Balancer::start() else { return };
    let port = free_port();
    for number in 1..=2 {
        host(&format!("127.0.0.{number}"), port, number);
    }
    let (routing, sinks) = start(balancer.config());
    tell(&routing, 7, 1, 1, port);
    until("the first owner", || is_told(&sinks) && balancer.who() == Some(1));

    let mut session = TcpStream::connect(balancer.front).unwrap();
    assert_eq!(hello(&mut session), Some(1));
    let began = Instant::now();
    tell(&routing, 7, 2, 2, port);
    until("the new owner", || is_told(&sinks) && balancer.who() == Some(2));
    println!("haproxy leads to the new owner after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(balancer.tell("show servers state shards").contains("127.0.0.2"));
    assert_eq!(hello(&mut session), Some(1), "the old owner forwards it");

    // HAProxy starts anew, with what its file says.
    balancer.daemon = None;
    tell(&routing, 7, 3, 1, port);
    until("the failure shows", || state_of(&sinks, "partition 7").unwrap().last_error.is_some());
    balancer.run();
    until("the owner again", || is_told(&sinks) && balancer.who() == Some(1));

    // Where it is wanted, sessions end.
    let mut session = TcpStream::connect(balancer.front).unwrap();
    assert_eq!(hello(&mut session), Some(1));
    drop(sinks);
    let (routing, sinks) = start(HaproxyConfig { cut_sessions: true, ..balancer.config() });
    tell(&routing, 7, 4, 2, port);
    until("the new owner", || is_told(&sinks) && balancer.who() == Some(2));
    assert_eq!(hello(&mut session), None);
}

#[test]
fn haproxy_refusals_show_and_the_operators_maintenance_stays() {
    let Some(balancer) = Balancer::start() else { return };
    let error = |sinks: &Sinks| state_of(sinks, "partition 7").and_then(|state| state.last_error).unwrap_or_default();
    let port = free_port();
    host("127.0.0.1", port, 1);
    for (config, reason) in [
        (HaproxyConfig { backend: "others".into(), ..balancer.config() }, "others"),
        (HaproxyConfig { socket: StatsSocket::Tcp(balancer.admin), ..balancer.config() }, "Permission denied"),
        (HaproxyConfig { socket: StatsSocket::Unix("/nowhere".into()), ..balancer.config() }, "No such file"),
    ] {
        let (routing, sinks) = start(config);
        tell(&routing, 7, 1, 1, port);
        until("it is refused", || !error(&sinks).is_empty());
        println!("haproxy: {}", error(&sinks));
        assert!(error(&sinks).contains(reason), "{}", error(&sinks));
        assert!(!is_told(&sinks));
    }
    let (routing, sinks) = start(balancer.config());
    tell(&routing, 8, 1, 1, port);
    let none = || state_of(&sinks, "partition 8").and_then(|state| state.last_error).unwrap_or_default();
    until("a server is missing", || none().contains("has no server partition-8"));

    balancer.tell("set server shards/partition-7 state maint");
    tell(&routing, 7, 1, 1, port);
    until("it is told", || is_told(&sinks));
    assert!(state_of(&sinks, "partition 7").unwrap().confirmed.unwrap().contains("maintenance"));
    assert_eq!(balancer.who(), None);
    assert!(balancer.tell("set server shards/partition-7 state ready").trim().is_empty());
    assert_eq!(balancer.who(), Some(1));

    // What a publisher left behind that died half-way is set right by the next one.
    balancer.tell("set server shards/partition-7 state drain");
    let (routing, sinks) = start(balancer.config());
    tell(&routing, 7, 2, 1, port);
    until("it is ready", || is_told(&sinks) && balancer.who() == Some(1));
}
