//! What a client cannot do: harm others, or take what is not its own.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Node, ask, create_partitions, start_with, write_private};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends bytes and returns everything up to the end of the connection.
fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // The other end may be closed before all is sent.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

fn ping(stream: &mut TcpStream) {
    stream.write_all(b"PING\r\n").unwrap();
    let mut reply = [0; 7];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
}

fn one(dir: &std::path::Path, more: &[&str]) -> Vec<Node> {
    let nodes = start_with(dir, 1, more);
    ask(nodes[0].resp, "ANTUMBRA CREATE 1 0 16383 1");
    common::wait_for(nodes[0].resp, "ANTUMBRA PARTITIONS", "\"partition\":1");
    nodes
}

#[test]
fn hostile_bytes_get_one_error_and_harm_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = one(dir.path(), &[]);
    let mut bystander = connect(nodes[0].resp);
    let hostile: Vec<Vec<u8>> = vec![
        b"*9999999\r\n".to_vec(),
        b"*2\r\n$99999999999\r\n".to_vec(),
        b"*1\r\n$-1\r\n".to_vec(),
        b"*1\r\n:1\r\n".to_vec(),
        b"*x\r\n".to_vec(),
        b"*1\r\n$3\r\nabcdef\r\n".to_vec(),
        b"*11111111111111111111111111111111111111111111111".to_vec(),
        b"get \"a\r\n".to_vec(),
        vec![b'a'; 1 << 20],
        vec![b'*'; 1 << 20],
        b"*1\r\n$4\r\nPING\r\n*1\r\n$\r\n".to_vec(),
    ];
    for bytes in hostile {
        let reply = send(nodes[0].resp, &bytes);
        let errors = reply.matches("-ERR Protocol error").count();
        assert!(
            errors == 1 && reply.ends_with("\r\n"),
            "{:?}: {reply}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
        );
        ping(&mut bystander);
    }
    // Bytes that lead nowhere yet are waited for, and given up with their connection.
    let mut silent = connect(nodes[0].resp);
    silent.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\n").unwrap();
    drop(silent);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut bytes: Vec<u8> = (0..random.usize(1..300)).map(|_| random.u8(..)).collect();
        if random.bool() {
            bytes.splice(0..0, *b"*3\r\n$3\r\nSET\r\n");
        }
        bytes.extend_from_slice(b"\r\nQUIT\r\n");
        let mut stream = connect(nodes[0].resp);
        let _ = stream.write_all(&bytes);
    }
    ping(&mut bystander);
    assert_eq!(ask(nodes[0].resp, "GET k"), "$-1\r\n");
}

#[test]
fn corpus_of_requests_replays_over_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = one(dir.path(), &[]);
    let mut bystander = connect(nodes[0].resp);
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../net/fuzz/corpus/resp-request");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let mut stream = connect(nodes[0].resp);
        let _ = stream.write_all(&bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        ping(&mut bystander);
        inputs += 1;
    }
    assert!(inputs > 5);
}

#[test]
fn connections_beyond_the_limit_are_refused_and_idle_ones_closed() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = one(dir.path(), &["--connections-max", "3", "--idle-s", "2"]);
    let mut open: Vec<TcpStream> = (0..3).map(|_| connect(nodes[0].resp)).collect();
    open.iter_mut().for_each(ping);
    let refused = send(nodes[0].resp, b"");
    assert_eq!(refused, "-ERR max number of clients reached\r\n");
    let began = Instant::now();
    let mut rest = Vec::new();
    open[0].read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty() && began.elapsed() < Duration::from_secs(15), "closed for being silent");
    std::thread::sleep(Duration::from_millis(500));
    ping(&mut connect(nodes[0].resp));
}

#[test]
fn clients_buffers_beyond_the_budget_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = one(dir.path(), &["--client-memory-mib", "4"]);
    let mut bystander = connect(nodes[0].resp);
    let set = |key: &str, len: usize| {
        let mut bytes = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${len}\r\n", key.len()).into_bytes();
        bytes.resize(bytes.len() + len, b'v');
        bytes.extend_from_slice(b"\r\nQUIT\r\n");
        bytes
    };
    let refused = send(nodes[0].resp, &set("large", 8 << 20));
    assert!(refused.starts_with("-ERR clients' buffers of this shard hold 4194304 bytes"), "{refused}");
    for key in ["{k}1", "{k}2", "{k}3", "{k}4", "{k}5"] {
        assert_eq!(send(nodes[0].resp, &set(key, 1 << 20)), "+OK\r\n+OK\r\n", "what others gave back is there");
        ping(&mut bystander);
    }
    assert!(send(nodes[0].resp, b"MGET {k}1 {k}2 {k}3 {k}4 {k}5\r\nQUIT\r\n").starts_with("-ERR no room for a reply"));
    assert!(send(nodes[0].resp, b"GET {k}1\r\nQUIT\r\n").starts_with("$1048576\r\nvvv"));
    // A client that takes no replies holds up nobody but itself.
    let mut greedy = connect(nodes[0].resp);
    greedy.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let _ = greedy.write_all(&b"GET {k}1\r\n".repeat(1000));
    ping(&mut bystander);
    let info = ask(nodes[0].resp, "INFO clients");
    let bytes: u64 = field(&info, "client_buffer_bytes");
    assert!(bytes <= 4 << 20, "{bytes}");
}

fn field(info: &str, name: &str) -> u64 {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {info}")).parse().unwrap()
}

#[test]
fn users_have_the_rights_that_the_file_gives() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    write_private(&users, "user app on >secret ~app:* +@read +@write\nuser boss on >word ~* +@all\n");
    let nodes = start_with(dir.path(), 1, &["--users", users.to_str().unwrap()]);
    let ask = |commands: &str| ask(nodes[0].resp, commands);
    assert!(ask("GET app:1").starts_with("-NOAUTH Authentication required.\r\n"));
    assert!(ask("AUTH app wrong").starts_with("-WRONGPASS invalid username-password pair or user is disabled.\r\n"));
    assert!(ask("HELLO 3").starts_with("-NOAUTH HELLO must be called"));
    let create = "AUTH boss word\r\nANTUMBRA CREATE 1 0 16383 1";
    assert!(ask(create).contains("\"owner\""), "{}", ask(create));
    common::wait_for(nodes[0].resp, "AUTH boss word\r\nANTUMBRA PARTITIONS", "\"partition\":1");
    assert!(ask("AUTH app secret\r\nSET app:1 v\r\nGET app:1").contains("+OK\r\n+OK\r\n$1\r\nv\r\n"));
    assert!(ask("AUTH app secret\r\nGET other").contains("-NOPERM No permissions to access a key"));
    assert!(
        ask("AUTH app secret\r\nCONFIG GET save").contains("-NOPERM User app has no permissions to run the 'config'")
    );
    assert!(ask("HELLO 2 AUTH app secret SETNAME me\r\nACL WHOAMI").contains("$3\r\napp\r\n"));
    for command in ["ACL LIST", "ACL LOAD", "CLIENT LIST", "CLIENT KILL SKIPME no", "KEYS *", "FLUSHDB"] {
        assert!(ask(&format!("AUTH app secret\r\n{command}")).contains("-NOPERM User app"), "{command}");
    }
    assert!(ask("AUTH boss word\r\nSET other v").contains("+OK\r\n+OK"));
    let scan = ask("AUTH app secret\r\nSCAN 0 COUNT 100");
    assert!(scan.contains("app:1") && !scan.contains("other"), "{scan}");
    assert!(ask("AUTH boss word\r\nACL WHOAMI\r\nACL LIST").contains("$4\r\nboss\r\n"));
    // Before a password, no more than a password is read.
    assert!(send(nodes[0].resp, b"*100\r\n").starts_with("-ERR Protocol error: unauthenticated multibulk length"));
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(ask("AUTH boss word\r\nACL LOAD").contains("chmod 600"));
    let url = format!("redis://app:secret@{}", nodes[0].resp);
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    assert_eq!(redis::cmd("GET").arg("app:1").query::<String>(&mut connection).unwrap(), "v");
}

/// 10,000 idle and 1,000 active connections: no failed request, memory within what is stated.
#[test]
fn many_connections_are_served_within_bounded_memory() {
    const IDLE: usize = 10_000;
    const ACTIVE: usize = 1_000;
    const SECONDS: u64 = 5;
    /// Of the process, an idle connection: task, stream, its poll in the ring, the list of clients.
    const IDLE_BYTES_MAX: u64 = 16 << 10;
    if !may_open((IDLE + ACTIVE) as u64 + 1_000) {
        println!("SKIPPED: the limit of open files is too low and cannot be raised");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Its nodes have the limit of this process.
    let nodes = start_with(dir.path(), 1, &["--shards", "2"]);
    create_all(&nodes);
    let address = nodes[0].resp;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let memory = || field(&ask(address, "INFO memory"), "used_memory_rss");
    let before = memory();
    let (idle, after, requests, longest) = runtime.block_on(async {
        let mut idle = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(b"PING\r\n").await.unwrap();
            let mut reply = [0; 7];
            stream.read_exact(&mut reply).await.unwrap();
            idle.push(stream);
        }
        let after = memory();
        let until = Instant::now() + Duration::from_secs(SECONDS);
        let tasks = tokio::task::LocalSet::new();
        let (requests, longest) = tasks
            .run_until(async {
                let active = (0..ACTIVE).map(|number| tokio::task::spawn_local(work(address, number, until)));
                let (mut requests, mut longest) = (0, Duration::ZERO);
                for task in active.collect::<Vec<_>>() {
                    let (count, slowest) = task.await.unwrap();
                    requests += count;
                    longest = longest.max(slowest);
                }
                (requests, longest)
            })
            .await;
        (idle, after, requests, longest)
    });
    let per_connection = after.saturating_sub(before) / IDLE as u64;
    println!(
        "{IDLE} idle connections: {per_connection} bytes each; {ACTIVE} active: {requests} requests in {SECONDS} s, none \
         failed, longest {longest:?}; memory {} MiB before, {} MiB with the idle ones, {} MiB after",
        before >> 20,
        after >> 20,
        memory() >> 20
    );
    assert!(requests > ACTIVE as u64 * 2);
    assert!(per_connection < IDLE_BYTES_MAX, "{per_connection}");
    let info = ask(address, "INFO clients");
    assert!(field(&info, "connected_clients") >= IDLE as u64);
    assert!(field(&info, "client_buffer_bytes") < 1 << 20, "{info}");
    // The idle ones are alive all the same.
    runtime.block_on(async {
        for mut stream in idle.into_iter().step_by(997) {
            stream.write_all(b"PING\r\n").await.unwrap();
            let mut reply = [0; 7];
            stream.read_exact(&mut reply).await.unwrap();
        }
    });
}

fn create_all(nodes: &[Node]) {
    create_partitions(nodes);
}

/// Writes and reads a key in turn; every reply has to be right.
async fn work(address: SocketAddr, number: usize, until: Instant) -> (u64, Duration) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut requests, mut longest) = (0, Duration::ZERO);
    while Instant::now() < until {
        let began = Instant::now();
        let value = format!("{number}-{requests}");
        stream.write_all(format!("SET key:{number} {value}\r\nGET key:{number}\r\n").as_bytes()).await.unwrap();
        let expected = format!("+OK\r\n${}\r\n{value}\r\n", value.len());
        let mut reply = vec![0; expected.len()];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&reply), expected);
        requests += 2;
        longest = longest.max(began.elapsed());
    }
    (requests, longest)
}

/// Raises this process' limit of open files, if it may.
fn may_open(files: u64) -> bool {
    let set = Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), &format!("--nofile={files}:{}", files.max(20_000))])
        .output();
    set.is_ok_and(|set| set.status.success())
}
