//! Tests that need a real kernel, real file systems and a real device; see `tests/` and `README.md`.
//!
//! One that cannot run says why: `SKIPPED: reason` where every machine of a developer or of CI should be able to
//! ([`Kind::Expected`]; with HW_STRICT=1 that is a failure), `NOT HERE: reason` where it depends on the kind of machine
//! ([`Kind::OfTheMachine`]; never a failure). The test `table` prints what the machine has.

pub mod capability;

pub use capability::{CAPABILITIES, Capability, Kind, by_name, here};
