//! Tests that need a real kernel and disk; see `tests/`. One that cannot run prints `SKIPPED: reason`; with HW_STRICT=1
//! that is a failure.
