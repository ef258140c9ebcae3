//! How etcd is reached.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::secret::Secret;

/// Where etcd is and how a host says who it is.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Members, `http://` or `https://`. They are asked in this order, each until it fails.
    pub endpoints: Vec<String>,
    /// Every key begins with this path; one cluster, one prefix.
    pub prefix: String,
    /// Who may be under this prefix: the Antumbra cluster's authority, as [`Identity::cluster`](crate::tls::Identity::cluster)
    /// names it. `None` asks nobody.
    pub cluster: Option<String>,
    /// Authority that signed the members' certificates (PEM); needed for `https`.
    pub ca: Option<PathBuf>,
    /// This host's certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM), which nobody else may read.
    pub key: Option<PathBuf>,
    /// User and password, where etcd wants them.
    pub user: Option<(String, Secret)>,
    /// A host that is gone is forgotten after this time. Whole seconds; etcd takes at least one and a half elections.
    pub lease: Duration,
}

impl EtcdConfig {
    /// The members at `endpoints`, in the clear, under `/antumbra`.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> EtcdConfig {
        let (cluster, ca, cert, key, user) = Default::default();
        let (prefix, lease) = ("/antumbra".into(), Duration::from_secs(10));
        EtcdConfig { endpoints, prefix, cluster, ca, cert, key, user, lease }
    }

    /// Finds what cannot work before anything is asked.
    ///
    /// # Errors
    /// [`Error::Refused`] with what to change.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Refused { what });
        let is_tls = |endpoint: &String| endpoint.starts_with("https://");
        if self.endpoints.is_empty() {
            return refuse("etcd: no endpoint given, such as http://127.0.0.1:2379".into());
        }
        if let Some(odd) = self.endpoints.iter().find(|one| !one.starts_with("http://") && !is_tls(one)) {
            return refuse(format!("etcd endpoint {odd}: it has to begin with http:// or https://"));
        }
        let tls = self.endpoints.iter().filter(|endpoint| is_tls(endpoint)).count();
        if tls != 0 && tls != self.endpoints.len() {
            return refuse("etcd endpoints: either all with https:// or none".into());
        }
        if (tls != 0) != self.ca.is_some() {
            return refuse("etcd: https:// and the authority's certificate (--etcd-ca) go together".into());
        }
        if self.cert.is_some() != self.key.is_some() || self.cert.is_some() && self.ca.is_none() {
            return refuse("etcd: a certificate (--etcd-cert), its key (--etcd-key) and --etcd-ca go together".into());
        }
        if !self.prefix.starts_with('/') || self.prefix.len() < 2 || self.prefix.ends_with('/') {
            return refuse(format!(
                "etcd prefix {}: a path such as /antumbra, without a slash at its end",
                self.prefix
            ));
        }
        if self.lease < Duration::from_secs(2) {
            return refuse("etcd lease: at least 2 s".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn check_names_what_does_not_go_together() {
        let base = || EtcdConfig::new(vec!["http://127.0.0.1:2379".into()]);
        assert!(base().check().is_ok());
        let refused = |change: &dyn Fn(&mut EtcdConfig)| {
            let mut config = base();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(&|config| config.endpoints.clear()).contains("no endpoint"));
        assert!(refused(&|config| config.endpoints.push("127.0.0.1:1".into())).contains("http://"));
        assert!(refused(&|config| config.endpoints.push("https://a:1".into())).contains("all"));
        assert!(refused(&|config| config.ca = Some("ca".into())).contains("go together"));
        assert!(refused(&|config| config.endpoints = vec!["https://a:1".into()]).contains("--etcd-ca"));
        assert!(refused(&|config| config.cert = Some("cert".into())).contains("--etcd-key"));
        assert!(refused(&|config| config.prefix = "antumbra/".into()).contains("prefix"));
        assert!(refused(&|config| config.lease = Duration::from_secs(1)).contains("lease"));
    }

    #[test]
    fn debug_shows_no_password() {
        let mut config = EtcdConfig::new(vec!["http://127.0.0.1:2379".into()]);
        config.user = Some(("node".into(), Secret::new("hunter2")));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
