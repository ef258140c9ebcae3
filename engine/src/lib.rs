//! One host of Antumbra: a thread-per-core io_uring storage engine that can be embedded without the rest.

pub mod error;
pub mod limits;
pub mod record;
pub mod types;

pub use error::{Error, Result};
