//! Between hosts of Antumbra: QUIC transport, shadow protocol and switchover, coordinator, routing, and the RESP server
//! that clients speak to.

pub mod coordinator;
pub mod error;
pub mod failpoint;
pub mod host;
pub mod resp;
pub mod routing;
pub mod shadow;
pub mod throttle;
pub mod tls;
pub mod transport;

pub use error::{Error, Result};
