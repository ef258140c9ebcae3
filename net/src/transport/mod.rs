//! QUIC between hosts: two planes per node, each with a thread, a runtime and an endpoint of its own.
//!
//! The **control** plane carries control streams, mirrors, coordinator calls and forwarded requests; it sits in the
//! write path and runs in the normal scheduling class. The **bulk** plane carries segment images and runs in the idle
//! class, so that the kernel pushes it aside when a shard wants the core. Stream priority does not do that: what queues
//! has been sent already; small windows and connections of their own do. What keeps a core busy for milliseconds
//! (compression, checks) runs [aside], so that a plane always answers its packets: the kernel's buffer holds
//! less than a window.

mod accept;
mod call;
mod class;
mod plane;
mod stream;
#[cfg(test)]
mod tests;
mod version;

pub use call::{Call, call, read_exact_limited, serve_call};
pub(crate) use class::enter_idle_class;
pub(crate) use plane::aside;
#[cfg(feature = "sim")]
pub(crate) use plane::{CONNECT_TIMEOUT, IDLE_TIMEOUT, IDLE_TIMEOUT_BULK};
pub use plane::{Handler, Incoming, Plane, PlaneConfig, PlaneHandle, SchedulingClass, StreamKind};
pub use stream::{RecvStream, SendStream, StreamEnded};
pub use version::WireVersions;
