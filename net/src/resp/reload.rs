//! What is read anew while the host runs: users, certificates towards clients, certificates towards the other hosts.

use serde::Serialize;

use crate::error::Result;
use crate::host::Host;

use super::acl::Users;
use super::server::Service;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// The file of users.
    pub users: Option<String>,
    /// The certificate towards clients; connections from now on get it.
    pub resp_cert: Option<String>,
    /// The folder of the certificates towards other hosts; connections from now on use them.
    pub host_certs: Option<String>,
}

impl Service {
    /// Reads all of it anew. Where something is wrong, nothing is changed.
    ///
    /// # Errors
    /// Naming the file and what is wrong with it.
    pub fn reload(&self, host: &Host) -> Result<Reloaded> {
        let users = match self.users.load().path() {
            Some(path) => Some(Users::load(path)?),
            None => None,
        };
        let tls = self.config.tls.as_ref().map(|tls| tls.files.load()).transpose()?;
        let host_certs = host.reload_identity()?;
        let reloaded = Reloaded {
            users: users.as_ref().and_then(|users| Some(users.path()?.display().to_string())),
            resp_cert: self.config.tls.as_ref().map(|tls| tls.files.cert.display().to_string()),
            host_certs: host_certs.map(|dir| dir.display().to_string()),
        };
        if let Some(users) = users {
            self.users.store(users.into());
        }
        if let Some(tls) = tls {
            self.tls.store(Some(tls));
        }
        Ok(reloaded)
    }
}
