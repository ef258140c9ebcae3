//! Three hosts, and the servers of other people that they need.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::common::settled::json;
use crate::common::{try_ask, write_private};
use crate::daemon::{Daemon, await_port, find};
use crate::yard::{self, YARD, ip};

pub const HOSTS: [u32; 3] = [1, 2, 3];
const ZONE: &str = "cluster.test";
const SECRET: &str = "8QdyqXCF1i0iYkb0Fxa7zOKKKgzNcgjGqq1vqEe5b6Y=";
/// Partitions that the load balancer has a server for.
pub const PARTITIONS: std::ops::RangeInclusive<u64> = 1..=6;
/// How long one question to a host may take.
const ASK_MAX: Duration = Duration::from_secs(3);

pub fn resp(host: u32) -> SocketAddr {
    (ip(host), 6379).into()
}

pub fn yard(port: u16) -> SocketAddr {
    (YARD, port).into()
}

/// Ports of the yard.
pub const ETCD: u16 = 2379;
const NAMES: u16 = 53;
pub const BALANCER: u16 = 7000;
const STATISTICS: u16 = 7001;

pub struct Cluster {
    nodes: Vec<Child>,
    etcd: Option<Daemon>,
    etcd_args: Vec<String>,
    programs: Programs,
    _outside: [Daemon; 2],
    dir: tempfile::TempDir,
}

struct Programs {
    etcd: PathBuf,
    named: PathBuf,
    haproxy: PathBuf,
    /// Its library shifts a host's clock.
    faketime: Option<PathBuf>,
}

fn programs() -> Option<Programs> {
    if !antumbra_net::coordinator::etcd::BUILT_IN {
        println!("SKIPPED: built without etcd; cargo xtask test builds with it");
        return None;
    }
    let (etcd, named, haproxy) = (find("etcd"), find("named"), find("haproxy"));
    let faketime = find("faketime").and_then(|program| {
        let lib = fs::read_dir(program.parent()?.parent()?.join("lib")).ok()?.flatten();
        lib.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file())
    });
    Some(Programs { etcd: etcd?, named: named?, haproxy: haproxy?, faketime })
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
        if std::thread::panicking() {
            HOSTS.iter().for_each(|host| self.print_log(*host));
        }
    }
}

impl Cluster {
    /// The servers and three hosts with `more` arguments; `None`, with a word, where something is missing.
    pub fn start(more: &[&str]) -> Option<Cluster> {
        let programs = programs()?;
        let dir = tempfile::tempdir().unwrap();
        let etcd_args = etcd_args(dir.path());
        let etcd = Some(Daemon::start(&programs.etcd, &etcd_args));
        let outside = [
            Daemon::start(&programs.named, &name_server(dir.path())),
            Daemon::start(&programs.haproxy, &balancer(dir.path())),
        ];
        [ETCD, NAMES, BALANCER].iter().for_each(|port| await_port(yard(*port)));
        let mut cluster = Cluster { nodes: Vec::new(), etcd, etcd_args, programs, _outside: outside, dir };
        for host in HOSTS {
            yard::add_host(host);
            let node = cluster.launch(host, more);
            cluster.nodes.push(node);
        }
        Some(cluster)
    }

    /// Ends all hosts and starts them again on what they have, with `more` arguments.
    pub fn restart(&mut self, more: &[&str]) {
        for node in &mut self.nodes {
            let id = node.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        }
        for node in &mut self.nodes {
            let ended = node.wait().unwrap();
            assert!(ended.success(), "a host that is told to end: {ended}");
        }
        self.nodes = HOSTS.iter().map(|host| self.launch(*host, more)).collect();
    }

    fn launch(&self, host: u32, more: &[&str]) -> Child {
        let place = |name: &str| self.dir.path().join(name).display().to_string();
        let mut command = yard::command(host, Path::new(env!("CARGO_BIN_EXE_antumbra")));
        command.args(["node", "--segment-kib", "64", "--window-ms", "250"]);
        let mut option = |name: &str, value: String| _ = command.args([name, &value]);
        option("--host", host.to_string());
        option("--dir", place(&format!("node-{host}")));
        option("--ca", place("ca"));
        option("--resp", resp(host).to_string());
        option("--control", format!("{}:7379", ip(host)));
        option("--bulk", format!("{}:7380", ip(host)));
        option("--etcd", format!("http://{}", yard(ETCD)));
        option("--dns-server", yard(NAMES).to_string());
        option("--dns-zone", ZONE.into());
        option("--dns-tsig-file", place("cluster.key"));
        option("--haproxy", yard(STATISTICS).to_string());
        option("--haproxy-backend", "shards".into());
        command.args(more).stdout(Stdio::piped()).stderr(fs::File::create(self.log(host)).unwrap());
        if let Some(library) = &self.programs.faketime {
            self.set_clock(host, 0);
            // The clock that only goes forward is left alone, as it is when an operator or NTP sets the time.
            command.env("LD_PRELOAD", library).env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
            command.env("FAKETIME_TIMESTAMP_FILE", self.clock(host)).env("FAKETIME_CACHE_DURATION", "1");
        }
        let mut node = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.starts_with("READY") {
            self.print_log(host);
            panic!("host {host} did not start: {line}");
        }
        node
    }

    fn log(&self, host: u32) -> PathBuf {
        self.dir.path().join(format!("log-{host}"))
    }

    /// What a host has said last.
    fn print_log(&self, host: u32) {
        let text = fs::read_to_string(self.log(host)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        println!("--- host {host}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }

    fn clock(&self, host: u32) -> PathBuf {
        self.dir.path().join(format!("clock-{host}"))
    }

    pub fn has_clocks(&self) -> bool {
        self.programs.faketime.is_some()
    }

    /// From a second later on, the host's wall clock is `seconds` off.
    pub fn set_clock(&self, host: u32, seconds: i32) {
        fs::write(self.clock(host), format!("{seconds:+}\n")).unwrap();
    }

    /// Stops a host where it is, or lets it go on.
    pub fn stand_still(&self, host: u32, still: bool) {
        let signal = if still { "-STOP" } else { "-CONT" };
        let id = self.nodes[host as usize - 1].id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub fn kill_etcd(&mut self) {
        self.etcd = None;
    }

    /// On the data that it had.
    pub fn start_etcd(&mut self) {
        self.etcd = Some(Daemon::start(&self.programs.etcd, &self.etcd_args));
        await_port(yard(ETCD));
    }

    /// All hosts are the processes that were started.
    pub fn assert_alive(&mut self, place: &str) {
        for (host, node) in HOSTS.iter().zip(&mut self.nodes) {
            let ended = node.try_wait().unwrap();
            assert!(ended.is_none(), "{place}: host {host} has ended: {ended:?}");
        }
    }
}

/// Creates partitions (id, first and last slot, owner) and waits until all hosts know them.
pub fn create(partitions: &[(u64, u16, u16, u32)]) {
    for (id, first, last, owner) in partitions {
        let words = format!("ANTUMBRA CREATE {id} {first} {last} {owner}");
        let said = try_ask(resp(1), &words, ASK_MAX).unwrap();
        assert!(said.contains("\"owner\""), "{words}: {said}");
    }
    let owners: Vec<(u64, u32)> = partitions.iter().map(|(id, .., owner)| (*id, *owner)).collect();
    await_owners(&owners);
}

/// Waits until all hosts know all slots, and each partition (id, owner) is served by its owner alone.
pub fn await_owners(partitions: &[(u64, u32)]) {
    for host in HOSTS {
        await_that(&format!("host {host} knows all slots"), || ask(host, "CLUSTER INFO").contains("cluster_state:ok"));
    }
    for (id, owner) in partitions {
        await_that(&format!("host {owner} serves partition {id}"), || owners_of(*id) == [*owner]);
    }
}

/// What a host says; nothing where it does not answer.
pub fn ask(host: u32, command: &str) -> String {
    try_ask(resp(host), command, ASK_MAX).unwrap_or_default()
}

/// The record of a partition, by whichever host answers.
pub fn record(partition: u64) -> serde_json::Value {
    HOSTS.iter().map(|host| record_at(*host, partition)).find(|record| !record.is_null()).unwrap_or_default()
}

/// The record of a partition, by this host.
pub fn record_at(host: u32, partition: u64) -> serde_json::Value {
    json(&ask(host, &format!("ANTUMBRA STATE {partition}")))
}

/// Hosts that serve a partition as its owner.
pub fn owners_of(partition: u64) -> Vec<u32> {
    let serves = |host: &u32| {
        let said = json(&ask(*host, "ANTUMBRA PARTITIONS"));
        let known = said["partitions"].as_array().into_iter().flatten();
        known.into_iter().any(|one| one["partition"] == partition && one["serving"] == "owner")
    };
    HOSTS.iter().copied().filter(serves).collect()
}

pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(40), "not within 40 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn etcd_args(dir: &Path) -> Vec<String> {
    let url = format!("http://{}", yard(ETCD));
    [
        ("--data-dir", dir.join("etcd").display().to_string()),
        ("--listen-client-urls", url.clone()),
        ("--advertise-client-urls", url),
        ("--log-level", "error".into()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_string(), value])
    .collect()
}

fn name_server(dir: &Path) -> Vec<String> {
    let write = |name: &str, text: String| fs::write(dir.join(name), text).unwrap();
    write("zone", format!("$ORIGIN {ZONE}.\n$TTL 5\n@ SOA ns root 1 3600 600 86400 5\n@ NS ns\nns A {YARD}\n"));
    let key = format!("key \"cluster\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n");
    write_private(&dir.join("cluster.key"), &key);
    let folder = dir.display();
    write(
        "named.conf",
        format!(
            "options {{ directory \"{folder}\"; listen-on port {NAMES} {{ {YARD}; }}; listen-on-v6 {{ none; }};\n\
             pid-file none; session-keyfile none; recursion no; dnssec-validation no; }};\n\
             controls {{ }};\n{key}\
             zone \"{ZONE}\" {{ type primary; file \"zone\"; update-policy {{ grant cluster zonesub ANY; }}; }};\n"
        ),
    );
    vec!["-g".into(), "-c".into(), format!("{folder}/named.conf")]
}

/// Clients that know nothing of slots are led to the owner of partition 1.
fn balancer(dir: &Path) -> Vec<String> {
    let mut text = format!(
        "global\n  stats socket ipv4@{} level admin\n\
         defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 30s\n  timeout server 30s\n\
         frontend clients\n  bind {}\n  default_backend shards\nbackend shards\n",
        yard(STATISTICS),
        yard(BALANCER)
    );
    for partition in PARTITIONS {
        let weight = u8::from(partition == 1);
        text += &format!("  server partition-{partition} 127.0.0.1:1 weight {weight}\n");
    }
    let path = dir.join("haproxy.cfg");
    fs::write(&path, text).unwrap();
    vec!["-db".into(), "-f".into(), path.display().to_string()]
}

/// As `dig` asks: the owner's address and the epoch of a partition.
pub fn name_of(partition: u64) -> (Option<IpAddr>, String) {
    let name = format!("partition-{partition}.{ZONE}.");
    let lookup = |kind: RecordType| -> Vec<RData> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(&name).unwrap(), kind));
        let socket = UdpSocket::bind((YARD, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.send_to(&message.to_vec().unwrap(), yard(NAMES)).unwrap();
        let mut bytes = [0; 4096];
        let Ok(len) = socket.recv(&mut bytes) else { return Vec::new() };
        let answer = Message::from_vec(&bytes[..len]).unwrap();
        answer.answers.into_iter().filter(|record| record.record_type() == kind).map(|record| record.data).collect()
    };
    let address = lookup(RecordType::A).into_iter().find_map(|data| data.ip_addr());
    (address, lookup(RecordType::TXT).first().map(ToString::to_string).unwrap_or_default().replace('"', ""))
}

/// The address of each partition's server, as the load balancer's statistics have it.
pub fn statistics() -> Vec<(u64, String)> {
    let mut stream = TcpStream::connect(yard(STATISTICS)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(b"show stat shards 4 -1\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<&str>>());
    let head = lines.next().unwrap_or_default();
    let column = |name: &str| head.iter().position(|known| *known == name);
    let (Some(name), Some(address)) = (column("svname"), column("addr")) else { return Vec::new() };
    let row = |row: Vec<&str>| {
        let partition = row.get(name)?.strip_prefix("partition-")?.parse().ok()?;
        Some((partition, row.get(address)?.to_string()))
    };
    lines.filter_map(row).collect()
}
