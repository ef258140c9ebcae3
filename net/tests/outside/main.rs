//! What lies outside of a host: its coordinator of whatever kind, real servers of other people, and what happens when they
//! are gone. Servers come from `cargo xtask setup`; each test starts its own.
#![allow(clippy::unwrap_used, dead_code)]

mod balancer;
mod coordinators;
mod daemon;
#[cfg(feature = "etcd")]
mod etcd;
mod names;
mod relay;
