//! `antumbra dump` and `antumbra load`: all live records as lines of JSON, to keep, to look at, to take elsewhere.
//! The format is described in `engine/docs/formats.md`, section "Dump".

mod format;
mod load;
mod write;

pub use load::{LoadOptions, run as run_load};
pub use write::{DumpOptions, run as run_dump};
