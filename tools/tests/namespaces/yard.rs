//! Network namespaces: the test runs itself again in namespaces of its own, in which it is the first process. Whatever
//! becomes of it, the kernel ends all that it has started and takes its networks away.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Set where the namespaces are there.
const INSIDE: &str = "ANTUMBRA_TEST_INSIDE";
/// Network, mounts and processes, as root.
const UNSHARE: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Where everything lives that is no host: etcd, the name server, the load balancer, the clients.
pub const YARD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

pub fn ip(host: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host as u8)
}

pub fn namespace(host: u32) -> String {
    format!("host-{host}")
}

/// Whether the test that calls this goes on: it does within namespaces, which this makes. Outside, the test is over when
/// this returns. The tests of one process take turns.
pub fn enter(test: &str) -> bool {
    static ALONE: Mutex<()> = Mutex::new(());
    if std::env::var_os(INSIDE).is_some() {
        // The harness has not ended its own line.
        println!();
        build();
        return true;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(unshare) = allowed() else { return false };
    // Killed with the thread that waits for it, and everything within with it.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(unshare)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || BufReader::new(errors).lines().map_while(Result::ok).collect::<Vec<_>>());
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // What the inner harness says of itself is counted once, outside.
        if !line.is_empty() && !["running ", "test "].iter().any(|own| line.starts_with(own)) {
            println!("{line}");
        }
    }
    let ended = child.wait().unwrap();
    errors.join().unwrap().iter().for_each(|line| println!("{line}"));
    assert!(ended.success(), "{test}, in its namespaces: {ended}");
    false
}

/// How unshare is called here; says that the test is skipped where nothing helps.
fn allowed() -> Option<Vec<&'static str>> {
    let as_user: Vec<&str> = ["--user", "--map-root-user"].iter().chain(&UNSHARE).copied().collect();
    let mut said = String::new();
    for options in [UNSHARE.to_vec(), as_user] {
        let try_out = "mount -t tmpfs none /run && ip link add try type bridge && ip netns add try";
        let tried = Command::new("unshare").args(&options).args(["sh", "-c", try_out]).output();
        match tried {
            Ok(output) if output.status.success() => return Some(options),
            Ok(output) => said = String::from_utf8_lossy(&output.stderr).trim().to_string(),
            Err(cause) => said = format!("unshare: {cause}"),
        }
    }
    println!("SKIPPED: no network namespaces here: {said}");
    None
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The bridge and its address.
fn build() {
    // Named namespaces are files there, seen by nobody else.
    run("mount -t tmpfs none /run");
    run("ip link set lo up");
    run("ip link add yard type bridge");
    run(&format!("ip addr add {YARD}/24 dev yard"));
    run("ip link set yard up");
}

/// A host's namespace, tied to the bridge.
pub fn add_host(host: u32) {
    let space = namespace(host);
    run(&format!("ip netns add {space}"));
    run(&format!("ip link add to-{host} type veth peer name eth0 netns {space}"));
    run(&format!("ip link set to-{host} master yard up"));
    run(&format!("ip -n {space} link set lo up"));
    run(&format!("ip -n {space} addr add {}/24 dev eth0", ip(host)));
    run(&format!("ip -n {space} link set eth0 up"));
}

/// Takes a host off the bridge, or puts it back: it sees no carrier on its side, and nobody reaches it.
pub fn link(host: u32, up: bool) {
    run(&format!("ip link set to-{host} {}", if up { "up" } else { "down" }));
}

/// Keeps two hosts apart, in silence, while both reach everybody else: each sends to a station that is not there.
pub fn part(one: u32, other: u32, apart: bool) {
    for (from, to) in [(one, other), (other, one)] {
        let (space, to) = (namespace(from), ip(to));
        if apart {
            run(&format!("ip -n {space} neigh replace {to} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"));
        } else {
            run(&format!("ip -n {space} neigh del {to} dev eth0"));
        }
    }
}

/// A command in the namespace of a host; the process is the command's.
pub fn command(host: u32, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace(host)]).arg(program);
    command
}
