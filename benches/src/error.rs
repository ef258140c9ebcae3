//! The error type of the harness.

/// What can go wrong while measuring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed.
    #[error("{store}: {what}")]
    Store {
        /// Which.
        store: &'static str,
        /// Its message.
        what: String,
    },
    /// The store returned something that was not written.
    #[error("wrong answer: {what}")]
    Wrong {
        /// What was asked and what came back.
        what: String,
    },
    /// The request makes no sense, or compares what cannot be compared.
    #[error("{what}")]
    Refused {
        /// Why, and what to do.
        what: String,
    },
    /// A part of the harness failed.
    #[error("client: {what}")]
    Client {
        /// What.
        what: String,
    },
    /// A file or a process of the harness.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// The operating system's error.
        cause: std::io::Error,
    },
}

impl Error {
    /// An [`Error::Store`].
    pub fn store(store: &'static str, cause: impl std::fmt::Display) -> Error {
        Error::Store { store, what: cause.to_string() }
    }

    /// An [`Error::Client`].
    pub fn client(what: impl Into<String>) -> Error {
        Error::Client { what: what.into() }
    }

    /// An [`Error::Refused`].
    pub fn refused(what: impl Into<String>) -> Error {
        Error::Refused { what: what.into() }
    }

    /// An [`Error::Io`].
    pub fn io(what: impl Into<String>, cause: std::io::Error) -> Error {
        Error::Io { what: what.into(), cause }
    }
}

/// Result of the harness.
pub type Result<T> = std::result::Result<T, Error>;
