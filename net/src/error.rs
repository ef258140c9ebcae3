//! The error type between hosts.

use std::path::PathBuf;

use antumbra_engine::types::HostId;

/// What can go wrong between hosts.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer cannot be reached, or the connection was lost.
    #[error("link to {peer}: {what}")]
    Link {
        /// The peer, as an address or a host.
        peer: String,
        /// What happened.
        what: String,
    },
    /// The peer sent bytes that are no valid message.
    #[error("protocol: {what}")]
    Protocol {
        /// What is wrong with them.
        what: String,
    },
    /// The peer refused; it changed nothing.
    #[error("refused: {what}")]
    Refused {
        /// Its reason.
        what: String,
    },
    /// The peer's certificate names another host.
    #[error("the peer is host {found}, expected host {expected}")]
    WrongHost {
        /// The host in the certificate.
        found: HostId,
        /// The host that was dialled.
        expected: HostId,
    },
    /// A certificate, key or folder of the cluster's authority cannot be used.
    #[error("{}: {what}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// The coordinator's record is not what the caller assumed.
    #[error("coordinator: {what}")]
    Conflict {
        /// The difference.
        what: String,
    },
    /// Whether a host or the coordinator did what it was asked is not known: read it again.
    #[error("no answer, so that it is not known whether it took place: {what}")]
    Unknown {
        /// What was asked.
        what: String,
    },
    /// The move was aborted; the source serves as before.
    #[error("move aborted: {what}")]
    Aborted {
        /// Why.
        what: String,
    },
    /// The report of a reconciliation cannot be written; nothing is settled that is not in it.
    #[error("report {}: {what}; make room or mend the folder, it is tried again", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        what: String,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] antumbra_engine::Error),
}

impl Error {
    /// An [`Error::Protocol`].
    pub fn protocol(what: impl Into<String>) -> Error {
        Error::Protocol { what: what.into() }
    }

    /// An [`Error::Link`].
    pub fn link(peer: impl ToString, what: impl ToString) -> Error {
        Error::Link { peer: peer.to_string(), what: what.to_string() }
    }
}

/// Result between hosts.
pub type Result<T> = std::result::Result<T, Error>;
