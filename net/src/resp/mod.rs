//! The Redis protocol: what clients speak.
//!
//! One server per shard, on the shard's own executor; connections share nothing. A request for a partition of another
//! host is forwarded, unless the connection has shown that it follows `MOVED`.

mod acl;
mod admin;
mod client;
mod cluster;
pub mod codec;
mod command;
mod connection;
mod describe;
mod dispatch;
pub(crate) mod execute;
pub(crate) mod forward;
#[cfg(any(test, feature = "sim"))]
pub mod fuzz;
mod glob;
mod info;
pub(crate) mod keyed;
pub mod latency;
pub mod limits;
pub(crate) mod operation;
mod pipeline;
mod reload;
pub mod reply;
mod scan;
mod server;
pub mod slot;
pub(crate) mod step;
mod tls;
mod transaction;

pub use acl::Users;
pub use limits::Limits;
pub use reload::Reloaded;
pub use server::{Figures, LogLevel, ServerConfig, Service, TlsConfig, serve};
pub use tls::TlsFiles;
