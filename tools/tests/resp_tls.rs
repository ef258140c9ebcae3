//! TLS towards clients that exist, and certificates that change while nodes run.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use redis::{Client, ClientTlsConfig, Commands, Connection, RedisResult, TlsCertificates, TlsMode};

use common::{Node, ask, create_partitions, free_tcp, move_partition, start_each, write_private};

/// An authority of servers' or clients' certificates.
struct Authority {
    cert: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Authority { cert, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Certificate and key for the loopback.
    fn issue(&self) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn trusted(&self, client: Option<(String, String)>) -> TlsCertificates {
        let client =
            client.map(|(cert, key)| ClientTlsConfig { client_cert: cert.into_bytes(), client_key: key.into_bytes() });
        TlsCertificates { client_tls: client, root_cert: Some(self.cert.pem().into_bytes()) }
    }
}

struct Nodes {
    nodes: Vec<Node>,
    tls: Vec<SocketAddr>,
    dir: tempfile::TempDir,
}

impl Nodes {
    /// Two nodes with certificates of `authority`; clients have to show one of `clients`, if that is given.
    fn start(authority: &Authority, clients: Option<&Authority>) -> Nodes {
        // Another test may have been first; it installs the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let tls = vec![free_tcp(), free_tcp()];
        let nodes = Nodes { nodes: Vec::new(), tls, dir };
        nodes.install(authority);
        let path = |name: &str| nodes.path(name).display().to_string();
        let started = start_each(nodes.dir.path(), 2, |host| {
            let mut args = vec!["--resp-tls".to_string(), nodes.tls[host as usize - 1].to_string()];
            args.extend(["--resp-cert".into(), path("resp.pem"), "--resp-key".into(), path("resp.key")]);
            if let Some(clients) = clients {
                write_private(&nodes.path("clients.pem"), &clients.cert.pem());
                args.extend(["--resp-client-ca".into(), path("clients.pem")]);
            }
            args
        });
        create_partitions(&started);
        Nodes { nodes: started, ..nodes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a certificate where the nodes read it.
    fn install(&self, authority: &Authority) {
        let (cert, key) = authority.issue();
        write_private(&self.path("resp.pem"), &cert);
        write_private(&self.path("resp.key"), &key);
    }

    fn connect(&self, certificates: TlsCertificates) -> RedisResult<Connection> {
        Client::build_with_tls(format!("rediss://{}", self.tls[0]), certificates)?.get_connection()
    }
}

#[test]
fn cluster_client_and_redis_cli_speak_tls_through_a_move() {
    let authority = Authority::new("servers");
    let nodes = Nodes::start(&authority, None);
    let urls: Vec<String> = nodes.tls.iter().map(|address| format!("rediss://{address}")).collect();
    let client = redis::cluster::ClusterClient::builder(urls).tls(TlsMode::Secure).certs(authority.trusted(None));
    let mut connection = client.build().unwrap().get_connection().unwrap();
    let keys: Vec<String> = (0..200).map(|number| format!("key-{number}")).collect();
    // One longer than any buffer on the way.
    let value = |key: &str| if key == "key-7" { "long ".repeat(200_000) } else { format!("value of {key}") };
    for key in &keys {
        let () = connection.set(key, value(key)).unwrap();
    }
    move_partition(&nodes.nodes[0], 1, 2);
    for key in &keys {
        assert!(connection.get::<_, String>(key).unwrap() == value(key), "{key} behind the move");
    }
    let infos = nodes.nodes.iter().map(|node| ask(node.resp, "INFO clients")).collect::<String>();
    assert!(infos.contains("connected_clients:"), "{infos}");

    // A host tells those who speak TLS where to go with that, and the others where to go without.
    let mut plain = Client::open(format!("redis://{}", nodes.nodes[0].resp)).unwrap().get_connection().unwrap();
    let mut secure = nodes.connect(authority.trusted(None)).unwrap();
    let told = |connection: &mut Connection| redis::cmd("CLUSTER").arg("NODES").query::<String>(connection).unwrap();
    assert!(nodes.tls.iter().all(|address| told(&mut secure).contains(&address.to_string())));
    assert!(nodes.nodes.iter().all(|node| told(&mut plain).contains(&node.resp.to_string())));

    write_private(&nodes.path("ca.pem"), &authority.cert.pem());
    let port = nodes.tls[0].port().to_string();
    let ca = nodes.path("ca.pem").display().to_string();
    let cli = |words: &[&str]| {
        let output = Command::new("redis-cli").args(["--tls", "--cacert", &ca, "-c", "-p", &port]).args(words).output();
        String::from_utf8_lossy(&output.unwrap().stdout).trim().to_string()
    };
    if Command::new("redis-cli").arg("--version").output().is_err() {
        return println!("SKIPPED: redis-cli is not installed");
    }
    for key in ["bar", "foo"] {
        assert_eq!((cli(&["set", key, "over TLS"]), cli(&["get", key])), ("OK".into(), "over TLS".into()), "{key}");
    }
}

#[test]
fn strangers_and_those_without_tls_are_refused() {
    let (servers, clients, others) = (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
    let nodes = Nodes::start(&servers, Some(&clients));
    let ping = |certificates: TlsCertificates| {
        nodes.connect(certificates).and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection))
    };
    assert_eq!(ping(servers.trusted(Some(clients.issue()))).unwrap(), "PONG");
    assert!(ping(servers.trusted(None)).is_err(), "without a certificate");
    assert!(ping(servers.trusted(Some(others.issue()))).is_err(), "with one of somebody else");
    assert!(ping(others.trusted(Some(clients.issue()))).is_err(), "the client does not know the server");
    // What is no TLS gets no answer in the clear, and harms nobody.
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(nodes.tls[0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("PONG"));
    assert_eq!(ping(servers.trusted(Some(clients.issue()))).unwrap(), "PONG");
}

#[test]
fn certificates_are_exchanged_while_nodes_run() {
    let (first, second, third) = (Authority::new("first"), Authority::new("second"), Authority::new("third"));
    let mut nodes = Nodes::start(&first, None);
    let reload = |node: &Node| ask(node.resp, "ANTUMBRA RELOAD");
    let accepts = |nodes: &Nodes, authority: &Authority| nodes.connect(authority.trusted(None)).is_ok();
    let mut kept = nodes.connect(first.trusted(None)).unwrap();

    nodes.install(&second);
    assert!(accepts(&nodes, &first) && !accepts(&nodes, &second), "nothing happens unasked");
    let said = reload(&nodes.nodes[0]);
    assert!(said.contains("resp.pem") && said.contains("certs"), "{said}");
    assert!(!accepts(&nodes, &first) && accepts(&nodes, &second), "connections from now on");
    assert_eq!(redis::cmd("PING").query::<String>(&mut kept).unwrap(), "PONG", "those that were there go on");

    // What cannot be used changes nothing.
    write_private(&nodes.path("resp.key"), &third.issue().1);
    let said = reload(&nodes.nodes[0]);
    assert!(said.starts_with("-ERR") && said.contains("resp.pem"), "{said}");
    assert!(accepts(&nodes, &second));

    // The same by a signal.
    nodes.install(&third);
    let pid = nodes.nodes[0].pid().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let began = Instant::now();
    while !accepts(&nodes, &third) {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", ask(nodes.nodes[0].resp, "ANTUMBRA EVENTS"));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(ask(nodes.nodes[0].resp, "ANTUMBRA EVENTS").contains("read anew"));

    // Certificates between the nodes: a new one of the same authority, on a connection that is made anew.
    let ca = nodes.path("ca");
    let issue = |host: &str, out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_antumbra"));
        command.args(["ctl", "ca", "issue"]).arg(&ca).arg(host).arg(out);
        assert!(command.status().unwrap().success());
    };
    let certs = nodes.path("node-1/certs");
    let before = std::fs::read(certs.join("host.der")).unwrap();
    issue("1", &certs);
    assert_ne!(std::fs::read(certs.join("host.der")).unwrap(), before);
    assert!(reload(&nodes.nodes[0]).contains("certs"));
    nodes.nodes[1].restart(None);
    common::wait_for(nodes.nodes[1].resp, "CLUSTER INFO", "cluster_state:ok");
    move_partition(&nodes.nodes[0], 1, 2);

    // One for another host is refused, and says so.
    issue("2", &certs);
    let said = reload(&nodes.nodes[0]);
    assert!(said.contains("it is for host 2, this is host 1"), "{said}");
}

#[test]
fn level_of_the_log_changes_while_a_node_runs() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = common::start_many(dir.path(), 1);
    let ask = |words: &str| ask(nodes[0].resp, words);
    assert!(ask("ANTUMBRA LOGLEVEL").contains("\"level\":\"warn\""));
    assert!(ask("ANTUMBRA LOGLEVEL antumbra_net::shadow=debug,info").contains("antumbra_net::shadow=debug"));
    assert!(ask("ANTUMBRA LOGLEVEL").contains("info"));
    let refused = ask("ANTUMBRA LOGLEVEL antumbra=loud");
    assert!(refused.starts_with("-ERR") && refused.contains("loud"), "{refused}");
    assert!(ask("ANTUMBRA EVENTS").contains("the log's level is"));
}
