//! The Redis protocol: what clients speak.
//!
//! One server per shard, on the shard's own executor; connections share nothing. A request for a partition of another
//! host is forwarded, unless the connection has shown that it follows `MOVED`.

mod admin;
mod cluster;
pub mod codec;
mod command;
mod connection;
mod dispatch;
pub(crate) mod execute;
pub(crate) mod forward;
pub(crate) mod operation;
mod pipeline;
pub mod reply;
mod scan;
mod server;
pub mod slot;

pub use server::{Counters, ServerConfig, serve};
