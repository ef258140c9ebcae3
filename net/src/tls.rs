//! The cluster's own certificate authority and mutual TLS.
//!
//! Each host has a certificate of the cluster's authority for the name `host-N.antumbra`; the name is the peer's
//! identity on both ends. TLS 1.3 only.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use antumbra_engine::types::HostId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::error::{Error, Result};
use crate::transport::WireVersions;

const CA_CERT: &str = "ca.der";
const CA_KEY: &str = "ca.key.der";

/// The server name of a host.
#[must_use]
pub fn server_name(host: HostId) -> String {
    format!("host-{host}.antumbra")
}

/// The authority that signs the certificates of a cluster's hosts.
///
/// # Example
/// ```
/// use antumbra_engine::types::HostId;
/// use antumbra_net::tls::{Authority, Identity, server_name};
/// # let dir = tempfile::tempdir()?;
/// let authority = Authority::open_or_create(&dir.path().join("ca"))?;
/// authority.issue(HostId(3), &dir.path().join("certs"))?; // carry this folder to host 3
/// let identity = Identity::load(&dir.path().join("certs"))?;
/// assert_eq!(identity.host()?, HostId(3));
/// assert_eq!(server_name(HostId(3)), "host-3.antumbra");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Authority {
    dir: PathBuf,
    key: KeyPair,
    cert: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the authority in `dir`, or creates it there.
    ///
    /// # Errors
    /// [`Error::Tls`] naming the file, also when others may read the key.
    pub fn open_or_create(dir: &Path) -> Result<Authority> {
        if !dir.join(CA_KEY).exists() {
            create_authority(dir)?;
        }
        let key = read_key(&dir.join(CA_KEY))?;
        let key = KeyPair::try_from(key.as_slice()).map_err(|cause| tls(&dir.join(CA_KEY), cause))?;
        let cert = CertificateDer::from(read(&dir.join(CA_CERT))?);
        Ok(Authority { dir: dir.to_path_buf(), key, cert })
    }

    /// Issues a certificate for `host` and writes it, its key and the authority's certificate into `out`.
    ///
    /// # Errors
    /// [`Error::Tls`].
    pub fn issue(&self, host: HostId, out: &Path) -> Result<()> {
        // The authority's certificate was made of the same parameters: name and key are all that a signature needs.
        let authority = authority_params(&self.dir)?;
        let issuer = Issuer::from_params(&authority, &self.key);
        let mut params = CertificateParams::new(vec![server_name(host)]).map_err(|cause| tls(out, cause))?;
        params.distinguished_name.push(DnType::CommonName, server_name(host));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(|cause| tls(out, cause))?;
        let cert = params.signed_by(&key, &issuer).map_err(|cause| tls(out, cause))?;
        std::fs::create_dir_all(out).map_err(|cause| tls(out, cause))?;
        write(&out.join(CA_CERT), &self.cert, 0o644)?;
        write(&out.join("host.der"), cert.der(), 0o644)?;
        write(&out.join("host.key.der"), &key.serialize_der(), 0o600)
    }
}

fn authority_params(dir: &Path) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).map_err(|cause| tls(dir, cause))?;
    params.distinguished_name.push(DnType::CommonName, "antumbra cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn create_authority(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|cause| tls(dir, cause))?;
    let params = authority_params(dir)?;
    let key = KeyPair::generate().map_err(|cause| tls(dir, cause))?;
    let cert = params.self_signed(&key).map_err(|cause| tls(dir, cause))?;
    write(&dir.join(CA_CERT), cert.der(), 0o644)?;
    write(&dir.join(CA_KEY), &key.serialize_der(), 0o600)
}

/// What one host needs to speak to the others.
///
/// # Example
/// ```
/// # use antumbra_engine::types::HostId;
/// use antumbra_net::tls::Identity;
/// # let dir = tempfile::tempdir()?;
/// # antumbra_net::tls::Authority::open_or_create(&dir.path().join("ca"))?.issue(HostId(1), dir.path())?;
/// let identity = Identity::load(dir.path())?;
/// assert_eq!(identity.host()?, HostId(1));
/// // A new certificate of the same authority has been put in place.
/// let fresh = identity.read_anew()?;
/// assert_eq!(fresh.cluster(), identity.cluster());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Identity {
    authority: CertificateDer<'static>,
    cert: CertificateDer<'static>,
    key: Arc<Vec<u8>>,
    dir: PathBuf,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads what [`Authority::issue`] wrote.
    ///
    /// # Errors
    /// [`Error::Tls`] naming the file, also when others may read the key.
    pub fn load(dir: &Path) -> Result<Identity> {
        Ok(Identity {
            authority: CertificateDer::from(read(&dir.join(CA_CERT))?),
            cert: CertificateDer::from(read(&dir.join("host.der"))?),
            key: Arc::new(read_key(&dir.join("host.key.der"))?),
            dir: dir.to_path_buf(),
        })
    }

    /// The host that the certificate names.
    ///
    /// # Errors
    /// [`Error::Tls`].
    pub fn host(&self) -> Result<HostId> {
        host_of(&self.cert).ok_or_else(|| tls(&self.dir.join("host.der"), "names no host"))
    }

    /// Where it was read.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same read anew, as long as it is for the same host and of the same authority.
    ///
    /// # Errors
    /// [`Error::Tls`] naming what is wrong.
    pub fn read_anew(&self) -> Result<Identity> {
        let fresh = Identity::load(&self.dir)?;
        let (ours, theirs) = (self.host()?, fresh.host()?);
        if ours != theirs {
            return Err(tls(&self.dir.join("host.der"), format!("it is for host {theirs}, this is host {ours}")));
        }
        if fresh.authority != self.authority {
            let what = "another authority's: the other hosts would not know this one. A cluster keeps its authority";
            return Err(tls(&self.dir.join(CA_CERT), what));
        }
        // Tells of a key that is another certificate's.
        fresh.server_config(&WireVersions::default()).map(|_| fresh)
    }

    /// A short name of the cluster: its authority's certificate, digested.
    #[must_use]
    pub fn cluster(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.authority);
        digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Key under which this host tells its peers that it has forgotten a connection. The same after a restart: so they
    /// notice the restart with their next packet, and not by a time-out.
    pub(crate) fn reset_key(&self) -> ring::hmac::Key {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.key);
        let root = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, digest.as_ref());
        let derived = ring::hmac::sign(&root, b"antumbra stateless reset");
        ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref())
    }

    pub(crate) fn server_config(&self, versions: &WireVersions) -> Result<QuicServerConfig> {
        let roots = Arc::new(self.roots()?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|cause| tls(&self.dir, cause))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|cause| tls(&self.dir, cause))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.cert.clone()], self.private_key())
            .map_err(|cause| tls(&self.dir, cause))?;
        config.alpn_protocols = versions.protocols();
        QuicServerConfig::try_from(config).map_err(|cause| tls(&self.dir, cause))
    }

    pub(crate) fn client_config(&self, versions: &WireVersions) -> Result<QuicClientConfig> {
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(|cause| tls(&self.dir, cause))?
                .with_root_certificates(self.roots()?)
                .with_client_auth_cert(vec![self.cert.clone()], self.private_key())
                .map_err(|cause| tls(&self.dir, cause))?;
        config.alpn_protocols = versions.protocols();
        QuicClientConfig::try_from(config).map_err(|cause| tls(&self.dir, cause))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).map_err(|cause| tls(&self.dir.join(CA_CERT), cause))?;
        Ok(roots)
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.as_ref().clone()))
    }
}

/// The host that a verified certificate names.
pub(crate) fn host_of(cert: &CertificateDer<'_>) -> Option<HostId> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    cert.valid_dns_names()
        .find_map(|name| name.strip_prefix("host-")?.strip_suffix(".antumbra")?.parse().ok().map(HostId))
}

fn tls(path: &Path, what: impl ToString) -> Error {
    Error::Tls { path: path.to_path_buf(), what: what.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|cause| tls(path, cause))
}

fn read_key(path: &Path) -> Result<Vec<u8>> {
    let mode = std::fs::metadata(path).map_err(|cause| tls(path, cause))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(tls(path, format!("others may read this key (mode {:o}): chmod 600", mode & 0o777)));
    }
    read(path)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    use std::io::Write;
    let open = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(path);
    open.and_then(|mut file| file.write_all(bytes)).map_err(|cause| tls(path, cause))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn issued_certificate_names_its_host() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
        authority.issue(HostId(42), &dir.path().join("h")).unwrap();
        let identity = Identity::load(&dir.path().join("h")).unwrap();
        assert_eq!(identity.host().unwrap(), HostId(42));
        identity.server_config(&WireVersions::default()).unwrap();
        identity.client_config(&WireVersions::default()).unwrap();
    }

    #[test]
    fn load_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open_or_create(dir.path()).unwrap().issue(HostId(1), dir.path()).unwrap();
        let key = dir.path().join("host.key.der");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Identity::load(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("chmod 600") && refused.contains("host.key.der"), "{refused}");
    }
}
