//! Between hosts of Antumbra: QUIC transport, shadow protocol and switchover, coordinator, routing, and the RESP server
//! that clients speak to.

#![deny(missing_docs)]

pub mod controller;
pub mod coordinator;
pub mod error;
pub mod events;
pub mod failpoint;
pub mod host;
pub mod http;
mod mutant;
mod process;
pub mod resp;
pub mod routing;
pub mod secret;
pub mod shadow;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sink;
pub mod status;
pub mod throttle;
mod time;
pub mod tls;
pub mod transport;

pub use error::{Error, Result};
