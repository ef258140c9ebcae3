//! Merge operators: how an operand changes a value.
//!
//! A merge is resolved by the owner when it is written: the shard reads the key, applies the operator and logs a plain
//! put, all without another write to that key in between. So recovery, mirrors, images and digests never run an
//! operator, and a reader never folds operands. The price is one read a merge, which costs no I/O while the memtable or
//! the cache holds the key, or the filters know that no table does. The other design, operands as records, was rejected:
//! every version rule (snapshots, deltas, retention) would have to keep operand chains whole, on both hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Combines what a key holds with an operand.
///
/// Must be deterministic and must not block: it runs on the shard's core.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// /// Keeps the longest.
/// fn longest(_key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> Result<Vec<u8>, String> {
///     Ok(existing.filter(|held| held.len() >= operand.len()).unwrap_or(operand).to_vec())
/// }
/// let engine = antumbra_engine::Engine::builder(dir.path()).merge_operator("longest", longest).open()?;
/// assert_eq!(engine.merge_operator("longest")?.name(), "longest");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait MergeOperator: Send + Sync + 'static {
    /// The new value. `existing` is `None` when the key holds no live value.
    ///
    /// # Errors
    /// What is wrong with the operand or the value, in words; the write then fails with [`Error::Merge`].
    fn merge(&self, key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> std::result::Result<Vec<u8>, String>;
}

impl<F> MergeOperator for F
where
    F: Fn(&[u8], Option<&[u8]>, &[u8]) -> std::result::Result<Vec<u8>, String> + Send + Sync + 'static,
{
    fn merge(&self, key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> std::result::Result<Vec<u8>, String> {
        self(key, existing, operand)
    }
}

/// An operator under its name. Cheap to clone.
#[doc = example!(r#"assert_eq!(engine.merge_operator("add")?.name(), "add");"#)]
#[derive(Clone)]
pub struct NamedOperator {
    name: Arc<str>,
    operator: Arc<dyn MergeOperator>,
}

impl fmt::Debug for NamedOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamedOperator({})", self.name)
    }
}

impl NamedOperator {
    /// The name.
    #[doc = example!(r#"assert_eq!(engine.merge_operator("max")?.name(), "max");"#)]
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Applies the operator.
    ///
    /// # Errors
    /// [`Error::Merge`].
    pub(crate) fn apply(&self, key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> Result<Vec<u8>> {
        let merged = self.operator.merge(key, existing, operand);
        merged.map_err(|what| Error::Merge { operator: self.name.to_string(), what })
    }
}

/// The operators that an engine knows. [`MergeOperators::default`] has the built-in ones:
///
/// | name | operand and value | result |
/// |---|---|---|
/// | `add` | 8 bytes, signed, little-endian | the sum; a missing value counts as 0; overflow is an error |
/// | `max` | 8 bytes, signed, little-endian | the larger |
/// | `append` | any bytes | the value followed by the operand |
///
/// # Example
/// ```
/// let mut operators = antumbra_engine::MergeOperators::default();
/// operators.register("last", |_: &[u8], _: Option<&[u8]>, operand: &[u8]| Ok(operand.to_vec()));
/// assert!(operators.find("last").is_ok() && operators.find("add").is_ok() && operators.find("nobody's").is_err());
/// ```
#[derive(Clone, Debug)]
pub struct MergeOperators {
    by_name: BTreeMap<String, NamedOperator>,
}

impl Default for MergeOperators {
    fn default() -> MergeOperators {
        let mut operators = MergeOperators { by_name: BTreeMap::new() };
        operators.register("add", add);
        operators.register("max", max);
        operators.register("append", append);
        operators
    }
}

impl MergeOperators {
    /// Makes an operator known under `name`; one of the same name is replaced. The name is stored with the keyspaces that
    /// use it: what it does must not change between openings.
    pub fn register(&mut self, name: impl Into<String>, operator: impl MergeOperator) {
        let name = name.into();
        let named = NamedOperator { name: name.as_str().into(), operator: Arc::new(operator) };
        self.by_name.insert(name, named);
    }

    /// The operator of this name.
    ///
    /// # Errors
    /// [`Error::UnknownMergeOperator`].
    pub fn find(&self, name: &str) -> Result<NamedOperator> {
        let found = self.by_name.get(name).cloned();
        found.ok_or_else(|| Error::UnknownMergeOperator { name: name.to_string() })
    }
}

fn number(bytes: &[u8]) -> std::result::Result<i64, String> {
    let bytes = bytes.try_into().map_err(|_| format!("{} bytes are no number: 8 are needed", bytes.len()))?;
    Ok(i64::from_le_bytes(bytes))
}

fn add(_key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let (base, delta) = (existing.map_or(Ok(0), number)?, number(operand)?);
    let sum = base.checked_add(delta).ok_or_else(|| format!("{base} + {delta} does not fit 64 bits"))?;
    Ok(sum.to_le_bytes().to_vec())
}

fn max(_key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let operand = number(operand)?;
    let larger = existing.map_or(Ok(operand), number)?.max(operand);
    Ok(larger.to_le_bytes().to_vec())
}

fn append(_key: &[u8], existing: Option<&[u8]>, operand: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let existing = existing.unwrap_or_default();
    let mut joined = Vec::with_capacity(existing.len() + operand.len());
    joined.extend_from_slice(existing);
    joined.extend_from_slice(operand);
    Ok(joined)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn apply(name: &str, existing: Option<&[u8]>, operand: &[u8]) -> Result<Vec<u8>> {
        MergeOperators::default().find(name).unwrap().apply(b"k", existing, operand)
    }

    #[test]
    fn add_missing_counts_as_zero_and_overflow_is_refused() {
        assert_eq!(apply("add", None, &5_i64.to_le_bytes()).unwrap(), 5_i64.to_le_bytes());
        assert_eq!(apply("add", Some(&7_i64.to_le_bytes()), &(-9_i64).to_le_bytes()).unwrap(), (-2_i64).to_le_bytes());
        let overflow = apply("add", Some(&i64::MAX.to_le_bytes()), &1_i64.to_le_bytes());
        assert!(matches!(overflow, Err(Error::Merge { operator, .. }) if operator == "add"));
        assert!(matches!(apply("add", Some(b"text"), &1_i64.to_le_bytes()), Err(Error::Merge { .. })));
    }

    #[test]
    fn max_negative_numbers_compare_by_value() {
        let merged = apply("max", Some(&(-3_i64).to_le_bytes()), &2_i64.to_le_bytes()).unwrap();
        assert_eq!(merged, 2_i64.to_le_bytes());
        assert_eq!(apply("max", None, &(-8_i64).to_le_bytes()).unwrap(), (-8_i64).to_le_bytes());
    }

    #[test]
    fn register_own_operator_is_found_and_unknown_is_named() {
        let mut operators = MergeOperators::default();
        operators.register("first", |_: &[u8], existing: Option<&[u8]>, operand: &[u8]| {
            Ok(existing.unwrap_or(operand).to_vec())
        });
        assert_eq!(operators.find("first").unwrap().apply(b"k", Some(b"a"), b"b").unwrap(), b"a");
        let unknown = operators.find("second");
        assert!(matches!(unknown, Err(Error::UnknownMergeOperator { name }) if name == "second"));
    }
}
