//! etcd clusters, and certificates for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use antumbra_net::coordinator::etcd::EtcdConfig;
use etcd_client::Client;

use crate::daemon::{Daemon, await_port, find, free_port};
use crate::relay::Relay;

/// An etcd cluster; gone when dropped.
pub struct Cluster {
    pub members: Vec<Member>,
    program: PathBuf,
    dir: tempfile::TempDir,
}

pub struct Member {
    pub daemon: Option<Daemon>,
    pub client: SocketAddr,
    args: Vec<String>,
}

impl Cluster {
    /// `None`, with a word, where there is no etcd.
    pub fn start(size: usize, tls: Option<&Path>) -> Option<Cluster> {
        let program = find("etcd")?;
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (free_port(), free_port())).collect();
        let peer = |index: usize| format!("http://127.0.0.1:{}", ports[index].1);
        let all: Vec<String> = (0..size).map(|index| format!("m{index}={}", peer(index))).collect();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut members = Vec::new();
        for (index, (client, _)) in ports.iter().enumerate() {
            let (url, peer) = (format!("{scheme}://127.0.0.1:{client}"), peer(index));
            let data = dir.path().join(format!("m{index}"));
            let mut args: Vec<String> = [
                ("--name", format!("m{index}")),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", url.clone()),
                ("--advertise-client-urls", url),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", all.join(",")),
                ("--log-level", "error".into()),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_string(), value])
            .collect();
            if let Some(certs) = tls {
                for (flag, file) in [("cert-file", "etcd.pem"), ("key-file", "etcd.key"), ("trusted-ca-file", "ca.pem")]
                {
                    args.push(format!("--{flag}={}", certs.join(file).display()));
                }
                args.push("--client-cert-auth".into());
            }
            let client = SocketAddr::from(([127, 0, 0, 1], *client));
            members.push(Member { daemon: Some(Daemon::start(&program, &args)), client, args });
        }
        for member in &members {
            await_port(member.client);
        }
        Some(Cluster { members, program, dir })
    }

    pub fn config(&self) -> EtcdConfig {
        let mut config =
            EtcdConfig::new(self.members.iter().map(|member| format!("http://{}", member.client)).collect());
        config.lease = Duration::from_secs(2);
        config
    }

    /// The first member through a relay, as its only one.
    pub fn relayed(&self) -> (Relay, EtcdConfig) {
        let relay = Relay::start(self.members[0].client);
        let mut config = self.config();
        config.endpoints = vec![relay.url()];
        (relay, config)
    }

    pub fn kill(&mut self, index: usize) {
        self.members[index].daemon = None;
    }

    pub fn restart(&mut self, index: usize) {
        self.members[index].daemon = Some(Daemon::start(&self.program, &self.members[index].args));
        await_port(self.members[index].client);
    }

    /// Index of the leader, as whoever lives says.
    pub async fn leader(&self) -> usize {
        for _ in 0..200 {
            for (index, member) in self.members.iter().enumerate() {
                let Ok(client) = Client::connect([member.client.to_string()], None).await else { continue };
                let status = client.maintenance_client().status().await;
                if status.is_ok_and(|status| status.leader() == status.header().unwrap().member_id()) {
                    return index;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd has no leader");
    }

    pub async fn client(&self) -> Client {
        Client::connect([self.members[0].client.to_string()], None).await.unwrap()
    }
}

/// A certificate for the loopback, by an authority that is made when it is not there.
pub fn write_certs(dir: &Path, name: &str, authority: &str) {
    let (ca_cert, ca_key) = (dir.join(format!("{authority}.pem")), dir.join(format!("{authority}.key")));
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, authority);
    if !ca_key.exists() {
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&ca_cert, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&ca_key, key.serialize_pem()).unwrap();
    }
    let ca_key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(&ca_key).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_params(&params, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    std::fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    let file = dir.join(format!("{name}.key"));
    std::fs::write(&file, key.serialize_pem()).unwrap();
    set_mode(&file, 0o600);
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
