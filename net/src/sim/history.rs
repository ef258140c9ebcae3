//! Whether what the clients of one register saw is linearizable.
//!
//! Every write has a value of its own, so each read names its write, and the question has an answer in `n log n` (Gibbons
//! and Korach, "Testing shared memories", SIAM J. Comput. 26(4), 1997): take each write with its reads as a cluster, whose
//! *zone* stretches between the earliest end and the latest beginning in it. If that end comes first (a *forward* zone), the
//! register must hold the value throughout the zone; else (a *backward* zone) at some moment within it. A history is
//! linearizable if and only if no read ends before its write begins, no two forward zones overlap, and no backward zone lies
//! within a forward one.
//!
//! A write whose outcome is not known ends at no time; one that nobody has read never happened.

use std::collections::BTreeMap;

/// Number of a value; [`NOTHING`] is what a register holds before any write.
pub type Value = u64;
/// The value of a register that was never written.
pub const NOTHING: Value = 0;

/// An operation on one register. Its times are those of one clock that all clients share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub writes: bool,
    pub value: Value,
    pub begin: u64,
    /// `None`: the client was never told. Reads of that kind are of no use and are left out.
    pub end: Option<u64>,
}

/// One write and its reads.
#[derive(Clone, Debug)]
struct Cluster {
    value: Value,
    write: Option<Operation>,
    first_end: u64,
    last_begin: u64,
    /// The read that stretches it furthest, for people.
    last: Operation,
}

impl Cluster {
    fn new(operation: Operation) -> Cluster {
        let first_end = operation.end.unwrap_or(u64::MAX);
        Cluster { value: operation.value, write: None, first_end, last_begin: operation.begin, last: operation }
    }

    fn add(&mut self, operation: Operation) {
        self.first_end = self.first_end.min(operation.end.unwrap_or(u64::MAX));
        if operation.begin >= self.last_begin {
            (self.last_begin, self.last) = (operation.begin, operation);
        }
        if operation.writes {
            self.write = Some(operation);
        }
    }

    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }
}

/// Checks the operations on one register.
///
/// # Errors
/// The first violation, in words.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    let mut clusters: BTreeMap<Value, Cluster> = BTreeMap::new();
    // The register holds nothing from before the beginning on.
    let initial = Operation { writes: true, value: NOTHING, begin: 0, end: Some(0) };
    for operation in std::iter::once(&initial).chain(operations) {
        if !operation.writes && operation.end.is_none() {
            continue;
        }
        let cluster = clusters.entry(operation.value).or_insert_with(|| Cluster::new(*operation));
        if operation.writes && cluster.write.is_some() {
            return Err(format!("value {} is written twice", operation.value));
        }
        cluster.add(*operation);
    }
    for operation in operations.iter().filter(|operation| !operation.writes) {
        let Some(end) = operation.end else { continue };
        let write = clusters.get(&operation.value).and_then(|cluster| cluster.write);
        let write = write.ok_or_else(|| format!("{} was never written", told(operation)))?;
        if end < write.begin {
            return Err(format!("{} ends before {} begins", told(operation), told(&write)));
        }
    }
    // A write that nobody was told of and nobody has read may never have happened.
    let clusters = clusters.into_values().filter(|cluster| cluster.first_end < u64::MAX);
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) = clusters.partition(Cluster::is_forward);
    forward.sort_by_key(|cluster| cluster.first_end);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_begin {
            return Err(conflict(&pair[0], &pair[1]));
        }
    }
    for cluster in &backward {
        // Forward zones do not overlap: the last that begins before this one is the only one that may hold it.
        let index = forward.partition_point(|other| other.first_end < cluster.last_begin);
        if let Some(around) = index.checked_sub(1).map(|index| &forward[index])
            && cluster.first_end < around.last_begin
        {
            return Err(conflict(around, cluster));
        }
    }
    Ok(())
}

fn told(operation: &Operation) -> String {
    let Operation { writes, value, begin, end } = operation;
    let what = if *writes { "write" } else { "read" };
    let end = end.map_or_else(|| "never".into(), |end| end.to_string());
    let value = if *value == NOTHING { "nothing".into() } else { format!("value {value}") };
    format!("the {what} of {value} [{begin}, {end}]")
}

fn conflict(around: &Cluster, other: &Cluster) -> String {
    let writes = |cluster: &Cluster| cluster.write.as_ref().map_or_else(String::new, told);
    format!(
        "not linearizable: {} was seen at {} and later again ({}), but in between the register held value {}: {}, {}",
        writes(around),
        around.first_end,
        told(&around.last),
        other.value,
        writes(other),
        told(&other.last),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

    use super::*;

    fn write(value: Value, begin: u64, end: u64) -> Operation {
        Operation { writes: true, value, begin, end: Some(end) }
    }

    fn read(value: Value, begin: u64, end: u64) -> Operation {
        Operation { writes: false, value, begin, end: Some(end) }
    }

    #[test]
    fn check_stale_read_is_found() {
        assert_eq!(check(&[write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8)]), Ok(()));
        assert!(check(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]).is_err(), "an old value after a newer write");
        assert!(check(&[write(1, 1, 2), read(NOTHING, 3, 4)]).is_err(), "a lost write");
        assert!(check(&[read(1, 1, 2), write(1, 3, 4)]).is_err(), "read before it was written");
        assert!(check(&[write(1, 1, 2), read(7, 3, 4)]).is_err(), "never written");
    }

    #[test]
    fn check_unknown_write_may_happen_late_or_never() {
        let unknown = Operation { writes: true, value: 1, begin: 1, end: None };
        assert_eq!(check(&[unknown, write(2, 2, 3), read(2, 4, 5)]), Ok(()), "never");
        assert_eq!(check(&[unknown, write(2, 2, 3), read(2, 4, 5), read(1, 6, 7)]), Ok(()), "late");
        assert!(check(&[unknown, read(1, 2, 3), write(2, 4, 5), read(1, 6, 7)]).is_err(), "twice");
    }

    /// Up to four clients; each step begins or ends an operation of one of them. Reads return any value written, so that
    /// about half of the histories are linearizable.
    fn arbitrary_history() -> impl Strategy<Value = Vec<(usize, bool, u64)>> {
        prop::collection::vec((0..4usize, any::<bool>(), 0..4u64), 0..14)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        /// The same verdict as an exhaustive search.
        #[test]
        fn check_agrees_with_search(steps in arbitrary_history()) {
            let mut search = LinearizabilityTester::new(Register(NOTHING));
            let mut open: [Option<usize>; 4] = [None; 4];
            let mut operations: Vec<Operation> = Vec::new();
            let mut written = 0;
            for (time, (client, writes, pick)) in steps.into_iter().enumerate() {
                let time = time as u64 + 1;
                if let Some(index) = open[client].take() {
                    let operation: &mut Operation = &mut operations[index];
                    operation.end = Some(time);
                    let answer = if operation.writes {
                        RegisterRet::WriteOk
                    } else {
                        operation.value = if written == 0 { NOTHING } else { pick % (written + 1) };
                        RegisterRet::ReadOk(operation.value)
                    };
                    search.on_return(client, answer).unwrap_or_else(|what| panic!("{what}"));
                    continue;
                }
                written += u64::from(writes);
                let value = if writes { written } else { NOTHING };
                let asked = if writes { RegisterOp::Write(value) } else { RegisterOp::Read };
                search.on_invoke(client, asked).unwrap_or_else(|what| panic!("{what}"));
                open[client] = Some(operations.len());
                operations.push(Operation { writes, value, begin: time, end: None });
            }
            let verdict = check(&operations);
            prop_assert_eq!(verdict.is_ok(), search.is_consistent(), "{:?} of {:?}", verdict, operations);
        }
    }
}
