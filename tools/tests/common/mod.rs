//! Two nodes as processes, for tests.
#![allow(dead_code, clippy::unwrap_used)]

pub mod deaths;
pub mod registers;
pub mod settled;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Writes a file that nobody else can read.
pub fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A node process; killed when dropped.
pub struct Node {
    child: Child,
    program: PathBuf,
    args: Vec<String>,
    pub resp: SocketAddr,
    control: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// Ends the process as by kill -9.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the process where it is, or lets it go on.
    pub fn stand_still(&self, still: bool) {
        let signal = if still { "-STOP" } else { "-CONT" };
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill {signal}");
        // Each of its threads stops when the kernel comes to it.
        let threads = format!("/proc/{}/task", self.child.id());
        let stands = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T "))
        };
        while still && !std::fs::read_dir(&threads).unwrap().all(|task| stands(task.unwrap())) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts another node under `dir` whose coordinator this first one serves.
    pub fn join(&self, dir: &std::path::Path, host: u32, more: &[&str]) -> Node {
        let more = more.iter().map(|arg| arg.to_string()).collect();
        start_node(Path::new(PROGRAM), dir, host, free_udp(), Some(self.coordinator()), more)
    }

    /// The coordinator that this first one serves, as others are told of it.
    pub fn coordinator(&self) -> String {
        format!("1@{}", self.control)
    }

    /// Changes an option that it was started with, for the next start.
    pub fn set_option(&mut self, name: &str, value: &str) {
        let place = self.args.iter().position(|arg| arg == name).unwrap();
        self.args[place + 1] = value.into();
    }

    /// The value of an option that it was started with.
    pub fn option(&self, name: &str) -> &str {
        let place = self.args.iter().position(|arg| arg == name).unwrap();
        &self.args[place + 1]
    }

    /// Whether the process has ended by itself.
    pub fn has_died(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process and starts it again at the same place.
    pub fn restart(&mut self, failpoint: Option<&str>) {
        self.kill();
        self.child = launch(&self.program, &self.args, failpoint);
    }

    /// Ends the process as an operator does, and starts this program at the same place.
    pub fn exchange(&mut self, program: &Path) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "told to stop: {ended}");
        self.program = program.into();
        self.child = launch(&self.program, &self.args, None);
    }
}

/// The program that is tested.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_antumbra");

fn launch(program: &Path, args: &[String], failpoint: Option<&str>) -> Child {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::piped());
    if let Some(failpoint) = failpoint {
        command.args(["--failpoint", failpoint]);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("READY"), "{args:?}: {line}");
    child
}

pub fn free_tcp() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Starts two nodes under `dir`, the first with the coordinator.
pub fn start(dir: &std::path::Path) -> Vec<Node> {
    start_many(dir, 2)
}

/// Starts some nodes under `dir`, the first with the coordinator.
pub fn start_many(dir: &std::path::Path, nodes: u32) -> Vec<Node> {
    start_with(dir, nodes, &[])
}

/// As [`start_many`], with more arguments for each node.
pub fn start_with(dir: &std::path::Path, nodes: u32, more: &[&str]) -> Vec<Node> {
    start_each(dir, nodes, |_| more.iter().map(|arg| arg.to_string()).collect())
}

/// As [`start_with`], each node with its own.
pub fn start_each(dir: &std::path::Path, nodes: u32, more: impl Fn(u32) -> Vec<String>) -> Vec<Node> {
    start_program(Path::new(PROGRAM), dir, nodes, more)
}

/// As [`start_each`], of a program that may be another one than the one that is tested.
pub fn start_program(
    program: &Path,
    dir: &std::path::Path,
    nodes: u32,
    more: impl Fn(u32) -> Vec<String>,
) -> Vec<Node> {
    let first = start_node(program, dir, 1, free_udp(), None, more(1));
    let join = |host| start_node(program, dir, host, free_udp(), Some(first.coordinator()), more(host));
    let mut others: Vec<Node> = (2..=nodes).map(join).collect();
    others.insert(0, first);
    others
}

fn start_node(
    program: &Path,
    dir: &std::path::Path,
    host: u32,
    control: SocketAddr,
    coordinator: Option<String>,
    more: Vec<String>,
) -> Node {
    let resp = free_tcp();
    let text = |path: std::path::PathBuf| path.display().to_string();
    let mut args: Vec<String> = ["node", "--segment-kib", "64", "--window-ms", "250"].map(String::from).to_vec();
    let mut option = |name: &str, value: String| args.extend([name.to_string(), value]);
    option("--host", host.to_string());
    option("--dir", text(dir.join(format!("node-{host}"))));
    option("--ca", text(dir.join("ca")));
    option("--resp", resp.to_string());
    option("--control", control.to_string());
    option("--bulk", free_udp().to_string());
    if let Some(coordinator) = coordinator {
        option("--coordinator", coordinator);
    }
    args.extend(more);
    Node { child: launch(program, &args, None), program: program.into(), args, resp, control }
}

/// Sends one inline command and returns what comes back within a moment.
pub fn ask(address: SocketAddr, command: &str) -> String {
    try_ask(address, command, Duration::from_secs(10)).unwrap()
}

/// As [`ask`], of a node that may be out of reach; each step may take as long as `limit`.
pub fn try_ask(address: SocketAddr, command: &str, limit: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    // Without the answer to QUIT: whoever looks for an OK means the command's.
    reply.truncate(reply.strip_suffix("+OK\r\n").map_or(reply.len(), str::len));
    Ok(reply)
}

/// Asks until the answer holds `wanted`.
pub fn wait_for(address: SocketAddr, command: &str, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let reply = ask(address, command);
        if reply.contains(wanted) {
            return reply;
        }
        assert!(Instant::now() < deadline, "{command}: {reply}, no {wanted}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// All slots in two partitions of the first node.
pub fn create_partitions(nodes: &[Node]) {
    ask(nodes[0].resp, "ANTUMBRA CREATE 1 0 8191 1");
    ask(nodes[0].resp, "ANTUMBRA CREATE 2 8192 16383 1");
    for node in nodes {
        wait_for(node.resp, "CLUSTER INFO", "cluster_state:ok");
    }
    wait_for(nodes[0].resp, "ANTUMBRA PARTITIONS", "\"partition\":2");
}

/// Moves a partition from one node to the other and waits for the end.
pub fn move_partition(from: &Node, partition: u32, to: u32) -> String {
    assert!(ask(from.resp, &format!("ANTUMBRA MOVE {partition} {to} SETPOINT off")).contains("OK"));
    let report = wait_for(from.resp, &format!("ANTUMBRA REPORT {partition}"), "\"equal\"");
    assert!(report.contains("\"equal\":true"), "{report}");
    report
}

/// Puts 4,000 values of 1,000 bytes into partition 1 of a node, and has them in some 60 segments.
pub fn fill_segments(node: &Node) {
    let client = redis::Client::open(format!("redis://{}", node.resp)).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    for hundred in 0..40 {
        let mut pipe = redis::pipe();
        for number in 0..100 {
            let value: String = std::iter::repeat_with(|| random.alphanumeric()).take(1000).collect();
            pipe.set(format!("{hundred}-{number}"), value).ignore();
        }
        pipe.query::<()>(&mut connection).unwrap();
    }
    assert!(ask(node.resp, "ANTUMBRA COMPACT 1").contains("OK"));
}
