//! What a caller asks of one partition at once: changes, and what must hold for them to take place.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::limits;
use crate::merge_operator::NamedOperator;
use crate::record::RecordView;
use crate::types::KeyRange;

use super::write::{Write, Written};

/// Bytes that a record takes in the log beside its key and value.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 64;

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// A put or a delete.
    Write(Write),
    /// Every key of the range is removed.
    DeleteRange(KeyRange),
    /// The key takes what the operator makes of its value and the operand.
    Merge { key: Bytes, operand: Bytes, operator: NamedOperator },
}

/// What a merge left.
#[derive(Clone, Debug, Default)]
pub(crate) struct Merged {
    pub value: Bytes,
    pub expires_at_ms: u64,
}

/// The results of a batch's merges, by the index of their operation.
pub(crate) type Resolved = BTreeMap<usize, Merged>;

/// What must hold for a key at the moment of a write. A key whose deadline has passed is absent.
#[doc = example!(r#"let commit = people.put_if("ada", "1816", Condition::Value("1815".into())).await?;
assert!(!commit.is_written(), "there is no such value");"#)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent,
    /// The key has a value, whichever.
    Present,
    /// The key's value is the one that this write left. What was written since by anybody is a conflict, also if it is
    /// the same value.
    Version(Written),
    /// The key has this value.
    Value(Bytes),
}

/// A value with what a conditional write needs to know of it.
#[doc = example!(r#"let written = people.put("ada", "1815").await?;
assert_eq!(people.get_versioned("ada").await?.expect("there").version, written);"#)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The write that left it.
    pub version: Written,
    /// Deadline in milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
}

impl From<RecordView<'_>> for Versioned {
    fn from(record: RecordView<'_>) -> Versioned {
        let version = Written { lsn: record.lsn, hlc: record.hlc };
        Versioned { value: Bytes::copy_from_slice(record.value), version, expires_at_ms: record.expires_at_ms }
    }
}

impl Condition {
    /// Whether it holds for a key that has `found`.
    pub(crate) fn holds(&self, found: Option<&Versioned>) -> bool {
        match self {
            Condition::Absent => found.is_none(),
            Condition::Present => found.is_some(),
            Condition::Version(version) => found.is_some_and(|found| found.version == *version),
            Condition::Value(value) => found.is_some_and(|found| found.value == *value),
        }
    }
}

/// What became of a conditional write.
#[doc = example!(r#"match people.put_if("ada", "1815", Condition::Present).await? {
    Commit::Written(_) => unreachable!("there was none"),
    Commit::Conflict(conflict) => assert!(conflict.found.is_none()),
}"#)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// It took place; this is its last record.
    Written(Written),
    /// It did not: a condition failed.
    Conflict(Conflict),
}

/// The condition that failed.
#[doc = example!(r#"people.put("ada", "1815").await?;
if let Commit::Conflict(conflict) = people.put_if("ada", "1816", Condition::Absent).await? {
    assert_eq!(conflict.found.expect("there").value, "1815");
}"#)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key whose condition did not hold.
    pub key: Bytes,
    /// What the key has, durable if the write was to be.
    pub found: Option<Versioned>,
}

impl Commit {
    /// The write's place in the history; `None` after a conflict.
    #[doc = example!(r#"assert!(people.put_if("ada", "1815", Condition::Absent).await?.written().is_some());"#)]
    #[must_use]
    pub fn written(&self) -> Option<Written> {
        match self {
            Commit::Written(written) => Some(*written),
            Commit::Conflict(_) => None,
        }
    }

    /// Whether the write took place.
    #[doc = example!(r#"assert!(!people.put_if("ada", "1815", Condition::Present).await?.is_written());"#)]
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.written().is_some()
    }
}

/// Changes of one partition that take place together or not at all: in the log, for readers, at a mirror, and after a
/// crash. Later changes of a key win over earlier ones.
#[doc = example!(r#"let mut batch = people.batch();
batch.put("ada", "1815").put("bob", "1816").delete("eve");
assert_eq!(batch.len(), 3);
people.commit(batch).await?;"#)]
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(crate) operations: Vec<Operation>,
    pub(crate) conditions: Vec<(Bytes, Condition)>,
    pub(crate) bytes: usize,
    operator: Option<NamedOperator>,
}

impl Batch {
    /// An empty batch.
    #[doc = example!(r#"assert!(Batch::new().is_empty());"#)]
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// An empty batch whose merges use `operator`.
    #[doc = example!(r#"let mut batch = Batch::with_operator(engine.merge_operator("add")?);
batch.merge("ada", 1_i64.to_le_bytes().to_vec())?;"#)]
    #[must_use]
    pub fn with_operator(operator: NamedOperator) -> Batch {
        Batch { operator: Some(operator), ..Batch::default() }
    }

    /// Sets a key.
    #[doc = example!(r#"let mut batch = people.batch();
batch.put("ada", "1815");
people.commit(batch).await?;"#)]
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Batch {
        self.push(Write::put(key, value))
    }

    /// Sets a key until `expires_at_ms` (milliseconds since the Unix epoch; 0 means for good).
    #[doc = example!(r#"let mut batch = people.batch();
batch.put_until("session", "state", 1_900_000_000_000); // milliseconds since 1970
people.commit(batch).await?;"#)]
    pub fn put_until(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>, expires_at_ms: u64) -> &mut Batch {
        self.push(Write { expires_at_ms, ..Write::put(key, value) })
    }

    /// Removes a key.
    #[doc = example!(r#"let mut batch = people.batch();
batch.delete("ada");
people.commit(batch).await?;"#)]
    pub fn delete(&mut self, key: impl Into<Bytes>) -> &mut Batch {
        self.push(Write::delete(key))
    }

    /// Adds a write.
    #[doc = example!(r#"let mut batch = people.batch();
batch.push(Write::put("ada", "1815"));
people.commit(batch).await?;"#)]
    pub fn push(&mut self, write: Write) -> &mut Batch {
        self.bytes += RECORD_OVERHEAD_BYTES + write.key.len() + write.value.as_ref().map_or(0, Bytes::len);
        self.operations.push(Operation::Write(write));
        self
    }

    /// Removes every key of `range`, at a cost that does not depend on how many there are.
    #[doc = example!(r#"use antumbra_engine::types::KeyRange;
let mut batch = people.batch();
batch.delete_range(KeyRange::from_bounds("a".."b"));
people.commit(batch).await?;"#)]
    pub fn delete_range(&mut self, range: KeyRange) -> &mut Batch {
        self.bytes += RECORD_OVERHEAD_BYTES + range.start.len() + range.end.as_ref().map_or(0, Vec::len);
        self.operations.push(Operation::DeleteRange(range));
        self
    }

    /// Changes a key by the batch's merge operator. The key keeps its deadline.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the batch has no operator.
    #[doc = example!(r#"let hits = engine.create_keyspace("hits", KeyspaceOptions::new().merge_operator("add")).await?;
let mut batch = hits.batch();
batch.merge("page", 1_i64.to_le_bytes().to_vec())?;
hits.commit(batch).await?;"#)]
    pub fn merge(&mut self, key: impl Into<Bytes>, operand: impl Into<Bytes>) -> Result<&mut Batch> {
        let Some(operator) = self.operator.clone() else {
            return Err(Error::Invalid {
                what: "merge without a merge operator: name one in the keyspace's options".into(),
            });
        };
        Ok(self.merge_with(operator, key, operand))
    }

    /// Changes a key by `operator`.
    #[doc = example!(r#"let add = engine.merge_operator("add")?;
let mut batch = people.batch();
batch.merge_with(add, "visits", 1_i64.to_le_bytes().to_vec());
people.commit(batch).await?;"#)]
    pub fn merge_with(
        &mut self,
        operator: NamedOperator,
        key: impl Into<Bytes>,
        operand: impl Into<Bytes>,
    ) -> &mut Batch {
        let (key, operand) = (key.into(), operand.into());
        self.bytes += RECORD_OVERHEAD_BYTES + key.len() + operand.len();
        self.operations.push(Operation::Merge { key, operand, operator });
        self
    }

    /// Lets the batch take place only if `condition` holds for `key` as it was before the batch.
    #[doc = example!(r#"let mut batch = people.batch();
batch.require("ada", Condition::Absent).put("bob", "her friend");
assert!(people.commit(batch).await?.is_written());"#)]
    pub fn require(&mut self, key: impl Into<Bytes>, condition: Condition) -> &mut Batch {
        self.conditions.push((key.into(), condition));
        self
    }

    /// Number of changes.
    #[doc = example!(r#"assert_eq!(people.batch().len(), 0);"#)]
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it holds no change.
    #[doc = example!(r#"assert!(people.batch().is_empty());"#)]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Whether it must read before it can be written.
    pub(crate) fn reads(&self) -> bool {
        let merges = self.operations.iter().any(|operation| matches!(operation, Operation::Merge { .. }));
        merges || !self.conditions.is_empty()
    }

    /// The keys that must not change between the reads and the write.
    pub(crate) fn keys_read(&self) -> impl Iterator<Item = &[u8]> {
        let merged = self.operations.iter().filter_map(|operation| match operation {
            Operation::Merge { key, .. } => Some(key.as_ref()),
            Operation::Write(_) | Operation::DeleteRange(_) => None,
        });
        merged.chain(self.conditions.iter().map(|(key, _)| key.as_ref()))
    }

    /// What the changes before `index` left of `key`: `None` if they do not touch it.
    pub(crate) fn changed_before(&self, index: usize, key: &[u8], resolved: &Resolved) -> Option<Option<Merged>> {
        self.operations[..index].iter().enumerate().rev().find_map(|(at, operation)| match operation {
            Operation::Write(write) if write.key == key => {
                let expires_at_ms = write.expires_at_ms;
                Some(write.value.clone().map(|value| Merged { value, expires_at_ms }))
            }
            Operation::Merge { key: merged, .. } if merged == key => Some(resolved.get(&at).cloned()),
            Operation::DeleteRange(range) if range.contains(key) => Some(None),
            _ => None,
        })
    }

    /// Every key named; those of ranges are in [`Batch::ranges`].
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let changed = self.operations.iter().filter_map(|operation| match operation {
            Operation::Write(write) => Some(write.key.as_ref()),
            Operation::Merge { key, .. } => Some(key.as_ref()),
            Operation::DeleteRange(_) => None,
        });
        changed.chain(self.conditions.iter().map(|(key, _)| key.as_ref()))
    }

    /// The ranges that it deletes.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = &KeyRange> {
        self.operations.iter().filter_map(|operation| match operation {
            Operation::DeleteRange(range) => Some(range),
            Operation::Write(_) | Operation::Merge { .. } => None,
        })
    }

    /// Checks lengths; `check_key` says also whether a key belongs to the partition.
    pub(crate) fn check(&self, mut check_key: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        limits::check_batch(self.bytes)?;
        for operation in &self.operations {
            match operation {
                Operation::Write(write) => {
                    check_key(&write.key)?;
                    limits::check_value(write.value.as_deref().unwrap_or_default())?;
                }
                Operation::DeleteRange(range) => limits::check_range(range)?,
                Operation::Merge { key, operand, .. } => {
                    check_key(key)?;
                    limits::check_value(operand)?;
                }
            }
        }
        self.conditions.iter().try_for_each(|(key, _)| check_key(key))
    }
}
