//! A store that keeps nothing: what it costs is the harness.

use std::path::Path;
use std::sync::Arc;

use crate::client::{ClientRecord, Plan};
use crate::data::{Key, Placing, Seen};
use crate::error::Result;
use crate::spec::{Class, Spec};
use crate::store::{Candidate, Session, Store, drive_threads};

/// The empty store.
pub const NULL: Candidate = Candidate { name: "null", open };

struct Null {
    placing: Placing,
    value_bytes: usize,
}

fn open(_dir: &Path, spec: &Spec) -> Result<Box<dyn Store>> {
    Ok(Box::new(Null { placing: spec.placing(), value_bytes: spec.value_bytes }))
}

impl Store for Null {
    fn configuration(&self) -> Vec<(String, String)> {
        vec![("what".into(), "does nothing; shows the harness's own cost".into())]
    }

    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        drive_threads(plan, || Ok(NullSession { placing: self.placing, value_bytes: self.value_bytes }))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct NullSession {
    placing: Placing,
    value_bytes: usize,
}

impl Session for NullSession {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        // The number is computed back from the key, so that the caller's check has something to check.
        Ok(Some(Seen::expected(self.placing.number(std::hint::black_box(key).place), self.value_bytes)))
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
