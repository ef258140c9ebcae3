//! TLS towards clients: certificates that lie in files, and a connection with or without it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};
use futures_rustls::TlsAcceptor;
use futures_rustls::server::TlsStream;
use glommio::net::TcpStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, Result};
use crate::secret::read_private;

/// A client that takes longer to show who it is is let go.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Where the certificates lie, all PEM. They are read at the start and whenever an operator says so; connections that are
/// there keep what they began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// This host's certificate, with those between it and its authority.
    pub cert: PathBuf,
    /// Its key, which nobody else may read.
    pub key: PathBuf,
    /// The authority of clients' certificates; `None` asks clients for none.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads them.
    ///
    /// # Errors
    /// [`Error::Tls`] naming the file, [`Error::Refused`] when others may read the key.
    pub fn load(&self) -> Result<Arc<ServerConfig>> {
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(read_private(&self.key)?.as_bytes());
        let key = key.map_err(|cause| tls(&self.key, cause))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|cause| tls(&self.cert, cause))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|cause| tls(path, cause))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|cause| tls(path, cause))?)
            }
        };
        // It says so when the key is another certificate's.
        Ok(Arc::new(builder.with_single_cert(chain, key).map_err(|cause| tls(&self.cert, cause))?))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read.map_err(|cause| tls(path, cause))? {
        none if none.is_empty() => Err(tls(path, "holds no certificate in PEM")),
        all => Ok(all),
    }
}

fn tls(path: &Path, what: impl ToString) -> Error {
    Error::Tls { path: path.to_path_buf(), what: what.to_string() }
}

/// A client's connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Shakes hands with a client that speaks TLS.
    pub async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<Stream> {
        TlsAcceptor::from(config).accept(stream).await.map(|stream| Stream::Tls(Box::new(stream)))
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Stream::Tls(stream) => match Pin::new(stream).poll_read(context, into) {
                // Many clients hang up without a word.
                Poll::Ready(Err(cause)) if cause.kind() == std::io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
                read => read,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    /// Nothing more is sent; what the client sends can still be read.
    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_close(context),
            Stream::Tls(stream) => Pin::new(stream).poll_close(context),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn load_says_which_file_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let made = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["localhost".to_string()]).unwrap();
            write(&path(&format!("{name}.pem")), &params.self_signed(&key).unwrap().pem(), 0o644);
            write(&path(&format!("{name}.key")), &key.serialize_pem(), 0o600);
        };
        made("one");
        made("other");
        let files = TlsFiles { cert: path("one.pem"), key: path("one.key"), client_ca: Some(path("other.pem")) };
        files.load().unwrap();
        let refused = |change: &dyn Fn(&mut TlsFiles)| {
            let mut files = files.clone();
            change(&mut files);
            files.load().unwrap_err().to_string()
        };
        assert!(refused(&|files| files.cert = path("none.pem")).contains("none.pem"));
        assert!(refused(&|files| files.cert = path("one.key")).contains("no certificate"));
        assert!(refused(&|files| files.key = path("other.key")).contains("one.pem"), "the key is another's");
        write(&path("empty.key"), "", 0o600);
        assert!(refused(&|files| files.key = path("empty.key")).contains("empty.key"));
        write(&path("open.key"), "", 0o640);
        assert!(refused(&|files| files.key = path("open.key")).contains("chmod 600"));
        write(&path("no.pem"), "", 0o600);
        assert!(refused(&|files| files.client_ca = Some(path("no.pem"))).contains("no.pem"));
    }
}
