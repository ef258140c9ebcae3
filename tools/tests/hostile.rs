//! Malformed, oversized and hostile bytes on every port of a node: at most one error, then the connection is closed, and
//! nobody else notices. The fuzzers' corpus is among them.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::types::HostId;
use antumbra_net::coordinator::{self, remote::Remote};
use antumbra_net::tls::{Authority, Identity};
use antumbra_net::transport::{Handler, Plane, PlaneConfig, SchedulingClass, StreamKind, WireVersions};

use common::{Node, ask, free_tcp, free_udp, start_each, wait_for, write_private};

/// What a stranger may wait for its end.
const ENDS_MAX: Duration = Duration::from_secs(20);
/// Of the node, behind everything.
const MEMORY_MAX: u64 = 700 << 20;
/// A host of the cluster that is up to no good.
const FRIEND: HostId = HostId(9);

struct Ports {
    nodes: Vec<Node>,
    http: SocketAddr,
    tls: SocketAddr,
    control: SocketAddr,
    bulk: SocketAddr,
    dir: tempfile::TempDir,
    bystander: TcpStream,
}

impl Ports {
    fn start() -> Ports {
        let dir = tempfile::tempdir().unwrap();
        let (http, tls) = (free_tcp(), free_tcp());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string()]).unwrap();
        write_private(&dir.path().join("resp.pem"), &key.cert.pem());
        write_private(&dir.path().join("resp.key"), &key.signing_key.serialize_pem());
        let nodes = start_each(dir.path(), 1, |_| {
            let options = [
                ("--http", http.to_string()),
                ("--resp-tls", tls.to_string()),
                ("--resp-cert", path("resp.pem")),
                ("--resp-key", path("resp.key")),
            ];
            options.into_iter().flat_map(|(name, value)| [name.to_string(), value]).collect()
        });
        ask(nodes[0].resp, "ANTUMBRA CREATE 1 0 16383 1");
        wait_for(nodes[0].resp, "ANTUMBRA PARTITIONS", "\"partition\":1");
        let at = |name: &str| nodes[0].option(name).parse().unwrap();
        let (control, bulk) = (at("--control"), at("--bulk"));
        let bystander = TcpStream::connect(nodes[0].resp).unwrap();
        bystander.set_read_timeout(Some(ENDS_MAX)).unwrap();
        Ports { nodes, http, tls, control, bulk, dir, bystander }
    }

    /// A client that was there before is served as before.
    fn check_bystander(&mut self, behind: &str) {
        self.bystander.write_all(b"SET k v\r\nGET k\r\n").unwrap();
        let mut reply = [0; 12];
        self.bystander.read_exact(&mut reply).unwrap_or_else(|cause| panic!("behind {behind}: {cause}"));
        assert_eq!(&reply, b"+OK\r\n$1\r\nv\r\n", "behind {behind}");
    }

    fn identity(&self, authority: &str, host: HostId) -> Identity {
        let out = self.dir.path().join(format!("{authority}-{host}"));
        Authority::open_or_create(&self.dir.path().join(authority)).unwrap().issue(host, &out).unwrap();
        Identity::load(&out).unwrap()
    }
}

/// The fuzzers' inputs, and what is made up here, by name.
fn inputs() -> Vec<(String, Vec<u8>)> {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../net/fuzz/corpus");
    let mut all = Vec::new();
    for target in ["resp-request", "resp-reply", "shadow-frame"] {
        let before = all.len();
        for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
            let path = entry.unwrap().path();
            all.push((format!("{target}/{}", path.file_name().unwrap().display()), std::fs::read(&path).unwrap()));
        }
        assert!(all.len() > before + 5, "{target} has a corpus");
    }
    let mut random = fastrand::Rng::with_seed(11);
    for number in 0..50 {
        let len = random.usize(1..2000);
        all.push((format!("random {number}"), std::iter::repeat_with(|| random.u8(..)).take(len).collect()));
    }
    let made: [(&str, Vec<u8>); 9] = [
        ("zeros", vec![0; 1 << 20]),
        ("one long line", vec![b'a'; 1 << 20]),
        ("a TLS greeting that ends early", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("HTTP of no version", b"GET / HTTP/9.9\r\n\r\n".to_vec()),
        ("a path upwards", b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec()),
        (
            "an absurd length",
            b"POST /api/move HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        ),
        (
            "a large body",
            [&b"POST /api/move HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n"[..], &[b'x'; 1 << 20]].concat(),
        ),
        ("broken chunks", b"POST /api/move HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec()),
        ("endless headers", [&b"GET / HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(100_000)].concat()),
    ];
    all.extend(made.map(|(name, bytes)| (name.to_string(), bytes)));
    all
}

/// What a port says to these bytes, with nothing behind them, until it closes the connection.
fn tell(address: SocketAddr, name: &str, bytes: &[u8]) -> Vec<u8> {
    exchange(address, name, bytes, true)
}

fn exchange(address: SocketAddr, name: &str, bytes: &[u8], is_all: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ENDS_MAX)).unwrap();
    stream.set_write_timeout(Some(ENDS_MAX)).unwrap();
    // It may be closed before all of it is sent.
    let _ = stream.write_all(bytes);
    if is_all {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut reply = Vec::new();
    match stream.read_to_end(&mut reply) {
        Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => panic!("{address}, {name}: not closed"),
        _ => reply,
    }
}

fn is_healthy(http: SocketAddr) -> bool {
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    // A client that ends its side is taken for gone, so this one does not.
    exchange(http, "health", request, false).starts_with(b"HTTP/1.1 200")
}

#[test]
fn hostile_bytes_on_every_port_harm_nobody_else() {
    let mut ports = Ports::start();
    let (resp, http, tls) = (ports.nodes[0].resp, ports.http, ports.tls);
    for (name, bytes) in inputs() {
        let reply = String::from_utf8_lossy(&tell(resp, &name, &bytes)).into_owned();
        // Words that are no command are answered one by one; what is no protocol is the end.
        let errors: Vec<usize> = reply.match_indices("-ERR Protocol error").map(|(at, _)| at).collect();
        let is_last = errors.first().is_none_or(|at| reply[*at..].trim_end().lines().count() == 1);
        assert!(errors.len() <= 1 && is_last, "{name}: {reply}");
        let reply = tell(tls, &name, &bytes);
        assert!(reply.len() < 100, "{name}: more than an alert: {}", String::from_utf8_lossy(&reply));
        let reply = tell(http, &name, &bytes);
        let is_refusal = reply.is_empty() || reply.starts_with(b"HTTP/1.1 4") || reply.starts_with(b"HTTP/1.0 4");
        assert!(is_refusal, "{name}: {}", String::from_utf8_lossy(&reply[..reply.len().min(200)]));
        ports.check_bystander(&name);
        assert!(is_healthy(http), "behind {name}");
    }

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (_, bytes) in inputs() {
        // As it is, and as the first packet of a handshake would begin.
        let packet = &bytes[..bytes.len().min(1200)];
        let initial = [&[0xc3, 0, 0, 0, 1, 8][..], packet, &[0; 1200]].concat();
        for address in [ports.control, ports.bulk] {
            socket.send_to(packet, address).unwrap();
            socket.send_to(&initial[..1200], address).unwrap();
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(hostile_hosts(&mut ports));
    ports.check_bystander("everything");
    assert!(is_healthy(http) && !ports.nodes[0].has_died());
    let memory = ask(resp, "INFO memory");
    let used: u64 = memory.lines().find_map(|line| line.strip_prefix("used_memory_rss:")?.trim().parse().ok()).unwrap();
    println!("{} inputs on five ports; the node uses {} MiB", inputs().len(), used >> 20);
    assert!(used < MEMORY_MAX, "{used}");
}

/// A host of another cluster gets in nowhere; one of this cluster that sends what it should not loses its stream.
async fn hostile_hosts(ports: &mut Ports) {
    let strangers = plane(ports.identity("other-ca", FRIEND));
    for address in [ports.control, ports.bulk] {
        let refused = strangers.handle().open_bi(address, HostId(1), StreamKind::Coordinator).await;
        assert!(refused.is_err(), "a host of another authority");
    }
    let friend = plane(ports.identity("ca", FRIEND));
    let records = Remote::new(friend.handle(), ports.control, HostId(1));
    let kinds = [
        StreamKind::Control,
        StreamKind::Mirror,
        StreamKind::Bulk,
        StreamKind::Coordinator,
        StreamKind::Forward,
        StreamKind::Fetch,
        StreamKind::Return,
        StreamKind::Steer,
    ];
    let mut all = inputs();
    // More than any request or frame may have.
    all.push(("32 MiB".into(), vec![0x41; 32 << 20]));
    for (name, bytes) in &all {
        let bytes = Arc::new(bytes.clone());
        let mut streams = tokio::task::JoinSet::new();
        for (kind, address) in kinds.into_iter().flat_map(|kind| [(kind, ports.control), (kind, ports.bulk)]) {
            let (handle, bytes) = (friend.handle(), Arc::clone(&bytes));
            let stream = async move {
                let (mut send, mut recv) = handle.open_bi(address, HostId(1), kind).await.unwrap();
                // It may be reset before all of it is sent.
                let _ = send.write_all(&bytes).await;
                let _ = send.finish();
                let _ = recv.read_to_end(1 << 20).await;
            };
            let ended = tokio::time::timeout(ENDS_MAX, stream);
            streams.spawn(async move { (kind, ended.await.is_ok()) });
        }
        while let Some(ended) = streams.join_next().await {
            let (kind, is_over) = ended.unwrap();
            assert!(is_over, "{kind:?}, {name}: no end after {ENDS_MAX:?}");
        }
        let state = coordinator::list(&records).await.unwrap_or_else(|cause| panic!("behind {name}: {cause}"));
        assert_eq!(state.records.len(), 1, "behind {name}");
        ports.check_bystander(name);
    }
}

fn plane(identity: Identity) -> Plane {
    let handler: Handler = Arc::new(|_| Box::pin(async {}));
    let (listen, versions) = (free_udp(), WireVersions::default());
    let config = PlaneConfig {
        name: "hostile",
        listen,
        identity,
        class: SchedulingClass::Normal,
        versions,
        window_bytes: 256 << 10,
    };
    Plane::start(config, handler).unwrap()
}
