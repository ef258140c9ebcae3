//! A store that keeps nothing: what it costs is the harness.

use std::path::Path;
use std::sync::Arc;

use crate::client::{ClientRecord, Plan};
use crate::data::{Key, Seen, mix};
use crate::error::Result;
use crate::spec::{Class, Spec};
use crate::store::{Candidate, Session, Store, drive_threads};

/// The empty store.
pub const NULL: Candidate = Candidate { name: "null", open };

struct Null {
    value_bytes: usize,
}

fn open(_dir: &Path, spec: &Spec) -> Result<Box<dyn Store>> {
    Ok(Box::new(Null { value_bytes: spec.value_bytes }))
}

impl Store for Null {
    fn configuration(&self) -> Vec<(String, String)> {
        vec![("what".into(), "does nothing; shows the harness's own cost".into())]
    }

    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        drive_threads(plan, || Ok(NullSession { value_bytes: self.value_bytes }))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct NullSession {
    value_bytes: usize,
}

impl Session for NullSession {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        // The number is computed back from the key, so that the caller's check has something to check.
        Ok(Some(Seen::expected(unmix(std::hint::black_box(key).place), self.value_bytes)))
    }

    async fn put(&mut self, key: &Key, value: &[u8], _class: Class) -> Result<()> {
        std::hint::black_box((key, value));
        Ok(())
    }

    async fn scan(&mut self, start: &Key, rows: usize) -> Result<usize> {
        std::hint::black_box(start);
        Ok(rows)
    }
}

/// The number whose [`mix`] this is.
fn unmix(mixed: u64) -> u64 {
    let unshift = |value: u64, by: u32| value ^ (value >> by) ^ (value >> (2 * by));
    // The inverses of the two odd factors modulo 2^64.
    let second = unshift(mixed, 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let first = unshift(second, 27).wrapping_mul(0x96de_1b17_3f11_9089);
    let number = unshift(first, 30).wrapping_sub(0x9e37_79b9_7f4a_7c15);
    debug_assert_eq!(mix(number), mixed, "the mixing has an inverse");
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmix_inverts_mix() {
        for number in (0..1_000).chain([u64::MAX, 1 << 40]) {
            assert_eq!(unmix(mix(number)), number);
        }
    }
}
