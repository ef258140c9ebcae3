//! The cluster that an operator runs: three hosts, each in a network namespace of its own, real etcd, named and HAProxy.
//! Clients are those that exist. `cargo xtask test --cluster` runs only this.
#![allow(clippy::unwrap_used)]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../../net/tests/outside/daemon.rs"]
#[allow(dead_code)]
mod daemon;
mod fails;
mod grows;
mod load;
mod routes;
mod yard;
