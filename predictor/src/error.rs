//! The one error type of the predictor.

use std::path::PathBuf;

/// Result of the predictor's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in the predictor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{op} {}: {cause}", path.display())]
    Io {
        /// The operation.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's or the decompressor's error.
        cause: std::io::Error,
    },
    /// A trace is not what the format promises.
    #[error("trace {}, line {line}: {what}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1 (the header).
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A model file is not what the format promises.
    #[error("model {}, tensor {tensor}: {what}", path.display())]
    Model {
        /// The file, or a name in angle brackets for weights that came from memory.
        path: PathBuf,
        /// The tensor, or "-" where the file as a whole is meant.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// A setting is outside of its range.
    #[error("{name}: {what}")]
    Config {
        /// The setting.
        name: &'static str,
        /// Its range and what was given.
        what: String,
    },
    /// No scorer, mapping or operation of that name.
    #[error("unknown {kind} '{given}': one of {known}")]
    UnknownName {
        /// What was looked for.
        kind: &'static str,
        /// The name given.
        given: String,
        /// The names there are.
        known: String,
    },
    /// libtorch failed.
    #[error("libtorch: {what}")]
    Torch {
        /// Its message.
        what: String,
    },
}
