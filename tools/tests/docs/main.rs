//! README and book: what they link to exists, what they name exists, what they show runs, what they measure is what a named
//! command has measured. (The command line's own part is in `tools/src/docs.rs`.)
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod examples;
mod figures;
mod names;
#[allow(dead_code)]
mod pages;
mod session;
