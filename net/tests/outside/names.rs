//! DNS against real named and real knotd.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use antumbra_net::coordinator::{ClusterState, HostInfo, PartitionRecord, RecordState};
use antumbra_net::routing::RoutingTable;
use antumbra_net::sink::dns::DnsConfig;
use antumbra_net::sink::{SinkConfig, SinkState, Sinks};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::daemon::{Daemon, await_port, find, free_port, until};

const ZONE: &str = "cluster.test";
const SECRET: &str = "8QdyqXCF1i0iYkb0Fxa7zOKKKgzNcgjGqq1vqEe5b6Y=";

/// One zone on one server.
struct Server {
    daemon: Option<Daemon>,
    address: SocketAddr,
    program: PathBuf,
    args: Vec<String>,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(program: &str) -> Option<Server> {
        let program = find(program)?;
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "zone",
            format!("$ORIGIN {ZONE}.\n$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 5\n@ NS ns\nns A 127.0.0.1\n"),
        );
        let (folder, port) = (dir.path().display(), address.port());
        let args = if program.ends_with("named") {
            write(
                "named.conf",
                format!(
                    "options {{ directory \"{folder}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n\
                     pid-file none; session-keyfile none; recursion no; dnssec-validation no; }};\n\
                     controls {{ }};\n\
                     key \"cluster\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
                     key \"reader\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
                     zone \"{ZONE}\" {{ type primary; file \"zone\"; update-policy {{ grant cluster zonesub ANY; }}; }};\n"
                ),
            );
            vec!["-g".into(), "-c".into(), format!("{folder}/named.conf")]
        } else {
            std::fs::create_dir(dir.path().join("db")).unwrap();
            write(
                "knot.conf",
                format!(
                    "server:\n  rundir: {folder}\n  listen: 127.0.0.1@{port}\ndatabase:\n  storage: {folder}/db\n\
                     log:\n  - target: stderr\n    any: warning\n\
                     key:\n  - id: cluster\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
                     \x20 - id: reader\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
                     acl:\n  - id: cluster\n    key: cluster\n    action: update\n\
                     zone:\n  - domain: {ZONE}\n    storage: {folder}\n    file: zone\n    acl: cluster\n"
                ),
            );
            vec!["-c".into(), format!("{folder}/knot.conf")]
        };
        let mut server = Server { daemon: None, address, program, args, dir };
        server.run();
        Some(server)
    }

    fn run(&mut self) {
        self.daemon = Some(Daemon::start(&self.program, &self.args));
        await_port(self.address);
        until("the zone is served", || self.ask("ns", RecordType::A).len() == 1);
    }

    fn config(&self, key: &str, secret: &str) -> DnsConfig {
        let tsig_file = self.dir.path().join(format!("{key}.key"));
        write_private(&tsig_file, &format!("key \"{key}\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n"));
        DnsConfig { server: self.address, zone: ZONE.into(), tsig_file, ttl_s: 5, tls: false }
    }

    /// As `dig` asks.
    fn ask(&self, name: &str, of: RecordType) -> Vec<RData> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(format!("{name}.{ZONE}.")).unwrap(), of));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send_to(&message.to_vec().unwrap(), self.address).unwrap();
        let mut bytes = [0; 4096];
        let Ok(len) = socket.recv(&mut bytes) else { return Vec::new() };
        let answer = Message::from_vec(&bytes[..len]).unwrap();
        answer.answers.into_iter().filter(|record| record.record_type() == of).map(|record| record.data).collect()
    }

    fn address_of(&self, name: &str) -> Option<IpAddr> {
        self.ask(name, RecordType::A)
            .into_iter()
            .chain(self.ask(name, RecordType::AAAA))
            .find_map(|data| data.ip_addr())
    }

    fn text_of(&self, name: &str) -> String {
        self.ask(name, RecordType::TXT).first().map(ToString::to_string).unwrap_or_default().replace('"', "")
    }
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Routes as a coordinator tells them: one partition, three hosts, the last with an address of the other kind.
pub fn tell(routing: &RoutingTable, partition: u64, epoch: u64, owner: u32, port: u16) {
    let mut state = ClusterState::default();
    for (host, ip) in [(1, "127.0.0.1"), (2, "127.0.0.2"), (3, "[::1]")] {
        let at = |port: u16| format!("{ip}:{port}");
        state.hosts.insert(host, HostInfo { host, control: at(1), bulk: at(2), resp: at(port), resp_tls: None });
    }
    let record = PartitionRecord {
        partition,
        keyspace: "default".into(),
        slots: (0, 16383),
        owner,
        epoch,
        state: RecordState::Stable,
        revision: epoch,
        history: Vec::new(),
        diverged: None,
        former: None,
    };
    state.records.insert(partition, record);
    routing.update(&state);
}

pub fn state_of(sinks: &Sinks, target: &str) -> Option<SinkState> {
    sinks.states().into_iter().find(|state| state.target == target)
}

fn await_confirmed(sinks: &Sinks, targets: &[&str]) {
    let began = Instant::now();
    while !targets.iter().all(|target| is_confirmed(sinks, target)) {
        assert!(began.elapsed() < Duration::from_secs(30), "not confirmed: {:#?}", sinks.states());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_confirmed(sinks: &Sinks, target: &str) -> bool {
    state_of(sinks, target).is_some_and(|state| state.confirmed.as_ref() == Some(&state.wanted))
}

fn follows_the_owner(program: &str) {
    let Some(mut server) = Server::start(program) else { return };
    let routing = RoutingTable::default();
    let config = SinkConfig { dns: vec![server.config("cluster", SECRET)], ..SinkConfig::default() };
    let sinks = Sinks::start(routing.clone(), config.clone()).unwrap();
    tell(&routing, 7, 1, 1, 6379);
    await_confirmed(&sinks, &["partition 7", "hosts"]);
    assert_eq!(server.address_of("partition-7"), Some("127.0.0.1".parse().unwrap()));
    assert_eq!(server.text_of("partition-7"), "epoch=1");
    assert_eq!(server.ask("_redis._tcp", RecordType::SRV).len(), 3);

    // A move: the new owner is there within a second, even one with an address of the other kind.
    for (epoch, owner, ip) in [(2, 2, "127.0.0.2"), (3, 3, "::1"), (4, 1, "127.0.0.1")] {
        let began = Instant::now();
        tell(&routing, 7, epoch, owner, 6379);
        until("the new owner", || server.address_of("partition-7") == Some(ip.parse().unwrap()));
        println!("{program}: epoch {epoch} after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(
            server.ask("partition-7", RecordType::A).len() + server.ask("partition-7", RecordType::AAAA).len(),
            1
        );
        assert_eq!(server.text_of("partition-7"), format!("epoch={epoch}"));
        let services = server.ask("_redis._tcp.partition-7", RecordType::SRV);
        assert_eq!(services.len(), 1);
        assert!(services[0].to_string().contains(&format!("host-{owner}.{ZONE}")), "{}", services[0]);
    }

    // A publisher that slept through it says nothing old.
    let late = RoutingTable::default();
    tell(&late, 7, 3, 3, 6379);
    let sleeper = Sinks::start(late, config).unwrap();
    let newer = || state_of(&sleeper, "partition 7").and_then(|state| state.confirmed).unwrap_or_default();
    until("it sees the newer epoch", || newer().contains("epoch 4"));
    assert_eq!(server.text_of("partition-7"), "epoch=4");

    // The server is down when the partition moves.
    server.daemon = None;
    tell(&routing, 7, 5, 2, 6379);
    until("the failure shows", || state_of(&sinks, "partition 7").is_some_and(|state| state.last_error.is_some()));
    assert_eq!(state_of(&sinks, "partition 7").unwrap().confirmed, None);
    server.run();
    await_confirmed(&sinks, &["partition 7"]);
    assert_eq!(server.text_of("partition-7"), "epoch=5");
    assert_eq!(server.address_of("partition-7"), Some("127.0.0.2".parse().unwrap()));
}

fn refusals_say_why(program: &str) {
    let Some(server) = Server::start(program) else { return };
    let wrong_secret = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (key, secret, reasons) in [
        ("stranger", SECRET, ["NOTAUTH"; 2]),
        ("cluster", wrong_secret, ["NOTAUTH"; 2]),
        // Knot, too, says NOTAUTH where named says REFUSED.
        ("reader", SECRET, ["REFUSED", "NOTAUTH"]),
    ] {
        let routing = RoutingTable::default();
        let config = SinkConfig { dns: vec![server.config(key, secret)], ..SinkConfig::default() };
        let sinks = Sinks::start(routing.clone(), config).unwrap();
        tell(&routing, 7, 1, 1, 6379);
        let error = || state_of(&sinks, "partition 7").and_then(|state| state.last_error).unwrap_or_default();
        until("it is refused", || !error().is_empty());
        let said = error();
        println!("{program}, {key}: {said}");
        assert!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
        assert!(!said.contains(secret));
        assert_eq!(server.text_of("partition-7"), "");
    }
}

#[test]
fn named_follows_the_owner() {
    follows_the_owner("named");
}

#[test]
fn knot_follows_the_owner() {
    follows_the_owner("knotd");
}

#[test]
fn named_refusals_say_why() {
    refusals_say_why("named");
}

#[test]
fn knot_refusals_say_why() {
    refusals_say_why("knotd");
}

/// Ten publishers at once: each epoch is said once and never goes back.
#[test]
fn publishers_that_race_never_go_back() {
    let Some(server) = Server::start("named") else { return };
    let tables: Vec<RoutingTable> = (0..10).map(|_| RoutingTable::default()).collect();
    let config = SinkConfig { dns: vec![server.config("cluster", SECRET)], ..SinkConfig::default() };
    let all: Vec<Sinks> = tables.iter().map(|table| Sinks::start(table.clone(), config.clone()).unwrap()).collect();
    let mut newest = 0;
    for epoch in 1..=20 {
        for (index, table) in tables.iter().enumerate() {
            // Some hear of it later than others, and some not of each.
            if !(index as u64 + epoch).is_multiple_of(3) || epoch == 20 {
                tell(table, 7, epoch, 1 + epoch as u32 % 2, 6379);
            }
        }
        let said = server.text_of("partition-7").replace("epoch=", "").parse().unwrap_or(0);
        assert!(said >= newest, "from epoch {newest} back to {said}");
        newest = said;
    }
    all.iter().for_each(|sinks| await_confirmed(sinks, &["partition 7"]));
    assert_eq!(server.text_of("partition-7"), "epoch=20");
    assert_eq!(server.address_of("partition-7"), Some("127.0.0.1".parse().unwrap()));
}
