//! What may be lost where a standby was promoted by force, and what may not.
//!
//! Two hosts may have served such a partition, so its histories are not linearizable. But each host that was lost returns
//! before the end of a run, so nothing that was acknowledged may have vanished without a word: the write that came last in
//! true time (all others to its key had ended before it began) is what the key holds, or a report names it. And what a
//! report says is kept beside another version is there.

use std::collections::BTreeMap;

use crate::resp::slot::SLOTS;
use crate::shadow::conflict::{Conflict, Side};

use super::client::{KEPT, key_of};
use super::history::{NOTHING, Operation, Value};
use super::world::World;

impl World {
    /// Every line of every report.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let reports = self.slots.iter().map(|slot| slot.reports.lock().map(|lines| lines.clone()));
        reports.flat_map(Result::unwrap_or_default).collect()
    }

    /// Whether somebody has tried to promote the key's partition by force.
    pub fn is_forced(&self, key: u64) -> bool {
        let routing = key_of(key);
        let width = SLOTS / self.shape.partitions as u16;
        let slot = u16::from_be_bytes([routing[0], routing[1]]);
        self.forced.contains(&(u64::from(slot / width) + 1))
    }

    pub fn check_reconciled(&self) -> Result<(), String> {
        let conflicts = self.conflicts();
        let mut by_key: BTreeMap<&str, Vec<&Conflict>> = BTreeMap::new();
        for conflict in &conflicts {
            if conflict.returned.lsn <= conflict.parted_at {
                return Err(format!("a conflict in what both hosts have: {conflict:?}"));
            }
            if self.profile.policy == "reject-and-keep-both" && conflict.returned.value_hex.is_some() {
                let is_kept = conflict.kept_at.is_some();
                if !is_kept {
                    return Err(format!("a version is not kept: {conflict:?}"));
                }
            }
            by_key.entry(conflict.key.as_str()).or_default().push(conflict);
        }
        for (key, operations) in &self.clients.histories {
            let last = operations.iter().filter(|operation| !operation.writes).max_by_key(|operation| operation.end);
            let found = last.map_or(NOTHING, |read| read.value);
            if let Some(index) = key.checked_sub(KEPT) {
                let conflict = &self.clients.kept[index as usize];
                if found != number_of(&conflict.returned) {
                    return Err(format!("value {found} is kept where {conflict:?} was to be"));
                }
            } else if self.is_forced(*key) {
                let name = format!("key{key}");
                let lines = by_key.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
                check_key(operations, found, lines).map_err(|what| format!("{name}: {what}"))?;
            }
        }
        Ok(())
    }
}

/// Checks one key that holds `found` in the end.
fn check_key(operations: &[Operation], found: Value, conflicts: &[&Conflict]) -> Result<(), String> {
    let writes: Vec<&Operation> = operations.iter().filter(|operation| operation.writes).collect();
    if found != NOTHING && !writes.iter().any(|write| write.value == found) {
        return Err(format!("value {found} was never written"));
    }
    // A write that nobody was told of may have taken place at any time since.
    if writes.iter().any(|write| write.value == found && write.end.is_none()) {
        return Ok(());
    }
    let comes_last = |write: &&&Operation| {
        let others = writes.iter().filter(|other| other.value != write.value);
        write.end.is_some() && others.into_iter().all(|other| other.end.is_some_and(|end| end < write.begin))
    };
    let Some(last) = writes.iter().find(comes_last) else {
        return Ok(());
    };
    let names = |side: &Side| number_of(side) == last.value;
    let is_told = conflicts.iter().any(|one| names(&one.returned) || one.here.as_ref().is_some_and(names));
    if found == last.value || is_told {
        return Ok(());
    }
    Err(format!("value {found} is there, {last:?} is lost without a word: {conflicts:?}"))
}

/// The number that a value begins with, little-endian.
fn number_of(side: &Side) -> Value {
    let Some(hex) = &side.value_hex else {
        return NOTHING;
    };
    let digits = hex.as_bytes().chunks(2).take(8).rev();
    digits.fold(0, |number, pair| {
        let byte = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or(0);
        number << 8 | Value::from(byte)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(value: Value, begin: u64, end: Option<u64>) -> Operation {
        Operation { writes: true, value, begin, end }
    }

    fn side(value: Value) -> Side {
        let value_hex = value.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Side { lsn: 9, hlc: 1, written_ms: 0, value_hex: Some(value_hex), expires_at_ms: 0 }
    }

    #[test]
    fn write_that_came_last_is_there_or_told_of() {
        let writes = [write(1, 1, Some(2)), write(300, 3, Some(4))];
        assert_eq!(check_key(&writes, 300, &[]), Ok(()));
        assert!(check_key(&writes, 1, &[]).is_err(), "lost without a word");
        assert!(check_key(&writes, NOTHING, &[]).is_err());
        assert!(check_key(&writes, 7, &[]).is_err(), "never written");
        let conflict = Conflict {
            partition: 1,
            attempt: 1,
            returned_from: 1,
            parted_at: 3,
            key: "key1".into(),
            key_hex: String::new(),
            policy: "lww".into(),
            decided: "kept".into(),
            here: Some(side(1)),
            returned: side(300),
            kept_at: None,
            merged_hex: None,
        };
        assert_eq!(check_key(&writes, 1, &[&conflict]), Ok(()));
        let with_unknown = [write(1, 1, Some(2)), write(2, 3, Some(4)), write(5, 3, None)];
        assert_eq!(check_key(&with_unknown, 5, &[]), Ok(()), "it may have come later");
        assert_eq!(check_key(&with_unknown, 1, &[]), Ok(()), "nothing is known to be the last");
    }
}
