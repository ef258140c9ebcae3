//! What a node is told of servers of other people: etcd, name servers, load balancers.

use std::net::SocketAddr;
use std::path::PathBuf;

use antumbra_net::coordinator::etcd::EtcdConfig;
use antumbra_net::secret::Secret;
use antumbra_net::sink::SinkConfig;
use antumbra_net::sink::dns::DnsConfig;
use antumbra_net::sink::haproxy::{HaproxyConfig, StatsSocket};
use clap::Args;

use crate::CliError;

#[derive(Args)]
pub struct EtcdOptions {
    /// Members of the etcd cluster that keeps the records, such as http://10.0.0.1:2379,http://10.0.0.2:2379.
    #[arg(long, value_delimiter = ',', conflicts_with = "coordinator")]
    etcd: Vec<String>,
    /// Path that all keys in etcd begin with; one for each cluster.
    #[arg(long, default_value = "/antumbra")]
    etcd_prefix: String,
    /// Certificate of the authority that signed etcd's (PEM).
    #[arg(long)]
    etcd_ca: Option<PathBuf>,
    /// This host's certificate for etcd (PEM).
    #[arg(long, requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    /// Its key (PEM, mode 600).
    #[arg(long, requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// User at etcd.
    #[arg(long)]
    etcd_user: Option<String>,
    /// File with its password (mode 600); without it, the environment's ANTUMBRA_ETCD_PASSWORD.
    #[arg(long, requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
}

impl EtcdOptions {
    /// `None` if etcd is not used.
    pub fn config(&self) -> Result<Option<EtcdConfig>, CliError> {
        if self.etcd.is_empty() {
            return Ok(None);
        }
        let mut config = EtcdConfig::new(self.etcd.clone());
        config.prefix.clone_from(&self.etcd_prefix);
        config.ca.clone_from(&self.etcd_ca);
        config.cert.clone_from(&self.etcd_cert);
        config.key.clone_from(&self.etcd_key);
        if let Some(user) = &self.etcd_user {
            let password = match &self.etcd_password_file {
                Some(path) => Secret::load(path)?,
                None => Secret::new(std::env::var("ANTUMBRA_ETCD_PASSWORD").map_err(|_| {
                    "--etcd-user wants its password: --etcd-password-file FILE, or ANTUMBRA_ETCD_PASSWORD in the environment"
                })?),
            };
            config.user = Some((user.clone(), password));
        }
        config.check()?;
        Ok(Some(config))
    }
}

#[derive(Args)]
pub struct SinkOptions {
    /// Primary name server that is told where partitions are, by signed updates.
    #[arg(long, requires_all = ["dns_zone", "dns_tsig_file"])]
    dns_server: Option<SocketAddr>,
    /// The zone that is updated.
    #[arg(long, requires = "dns_server")]
    dns_zone: Option<String>,
    /// The key that signs the updates, as tsig-keygen writes it (mode 600).
    #[arg(long, requires = "dns_server")]
    dns_tsig_file: Option<PathBuf>,
    /// Seconds for which others may keep an answer.
    #[arg(long, default_value_t = 5)]
    dns_ttl: u32,
    /// Tell name servers the hosts' addresses for TLS, where they have one (--resp-tls).
    #[arg(long, requires = "dns_server")]
    dns_tls: bool,
    /// Stats socket of an HAProxy, of level admin: a path or an address.
    #[arg(long, requires = "haproxy_backend")]
    haproxy: Vec<String>,
    /// Its backend, with a server partition-ID for each partition.
    #[arg(long, requires = "haproxy")]
    haproxy_backend: Option<String>,
    /// End sessions to the old owner when a partition has moved, instead of having it forward them.
    #[arg(long, requires = "haproxy")]
    haproxy_cut_sessions: bool,
    /// Lead HAProxy to the hosts' addresses for TLS, where they have one: it passes on what clients and hosts encrypt.
    #[arg(long, requires = "haproxy")]
    haproxy_tls: bool,
}

impl SinkOptions {
    pub fn config(&self) -> SinkConfig {
        let mut config = SinkConfig::default();
        if let (Some(server), Some(zone), Some(tsig_file)) = (self.dns_server, &self.dns_zone, &self.dns_tsig_file) {
            let (zone, tsig_file) = (zone.clone(), tsig_file.clone());
            config.dns.push(DnsConfig { server, zone, tsig_file, ttl_s: self.dns_ttl, tls: self.dns_tls });
        }
        for socket in &self.haproxy {
            let socket = match socket.parse() {
                Ok(address) => StatsSocket::Tcp(address),
                Err(_) => StatsSocket::Unix(socket.into()),
            };
            let backend = self.haproxy_backend.clone().unwrap_or_default();
            let (cut_sessions, tls) = (self.haproxy_cut_sessions, self.haproxy_tls);
            config.haproxy.push(HaproxyConfig { socket, backend, cut_sessions, tls });
        }
        config
    }
}
