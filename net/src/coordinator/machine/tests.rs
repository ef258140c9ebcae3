#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn machine() -> Machine {
    let mut machine = Machine::default();
    for host in 1..=2 {
        let info = HostInfo { host, control: String::new(), bulk: String::new(), resp: String::new(), resp_tls: None };
        machine.apply(Command::Register(info)).unwrap();
    }
    let create = Command::Create { partition: 1, keyspace: "default".into(), slots: (0, 99), owner: 1 };
    machine.apply(create).unwrap();
    machine
}

fn record(answer: Result<Answer, String>) -> PartitionRecord {
    match answer.unwrap() {
        Answer::Record(record) => record,
        Answer::State(_) => unreachable!(),
    }
}

#[test]
fn commit_moves_ownership_once_and_raises_epoch() {
    let mut machine = machine();
    record(machine.apply(Command::Begin { partition: 1, source: 1, destination: 2 }));
    let commit = Command::Commit { partition: 1, attempt: 1, epoch: 1, lsn: 9 };
    let committed = record(machine.apply(commit.clone()));
    assert_eq!((committed.owner, committed.epoch), (2, 2));
    assert_eq!(record(machine.apply(commit)), committed, "asked twice, done once");
    assert!(machine.apply(Command::Abort { partition: 1, attempt: 1, reason: String::new() }).is_err());
    assert_eq!(record(machine.apply(Command::Complete { partition: 1, attempt: 1 })).state, RecordState::Stable);
}

#[test]
fn abort_closes_the_attempt_and_raises_epoch() {
    let mut machine = machine();
    record(machine.apply(Command::Begin { partition: 1, source: 1, destination: 2 }));
    let aborted = record(machine.apply(Command::Abort { partition: 1, attempt: 1, reason: "test".into() }));
    assert_eq!((aborted.owner, aborted.epoch), (1, 2));
    assert!(machine.apply(Command::Commit { partition: 1, attempt: 1, epoch: 1, lsn: 9 }).is_err());
}

#[test]
fn former_copy_stands_until_it_is_released_or_the_partition_moves_on() {
    let mut machine = machine();
    let move_to = |machine: &mut Machine, attempt, source, destination, lsn| {
        record(machine.apply(Command::Begin { partition: 1, source, destination }));
        let release = machine.apply(Command::Release { partition: 1, attempt: attempt - 1 });
        let kept = record(release).former;
        record(machine.apply(Command::Commit { partition: 1, attempt, epoch: attempt, lsn }));
        record(machine.apply(Command::Complete { partition: 1, attempt }));
        kept
    };
    assert_eq!(move_to(&mut machine, 1, 1, 2, 9), None);
    let former = |host, attempt, lsn| Some(Former { host, attempt, lsn });
    assert_eq!(move_to(&mut machine, 2, 2, 1, 20), former(1, 1, 9), "not released while a roll-back may use it");
    let release = |attempt| Command::Release { partition: 1, attempt };
    assert_eq!(record(machine.apply(release(1))).former, former(2, 2, 20), "of an earlier move");
    let released = record(machine.apply(release(2)));
    assert_eq!(released.former, None);
    assert_eq!(record(machine.apply(release(2))), released, "asked twice, done once");
}

#[test]
fn forced_promotion_closes_the_attempt_and_stands_until_reconciled() {
    let mut machine = machine();
    record(machine.apply(Command::Begin { partition: 1, source: 1, destination: 2 }));
    let force = |attempt| Command::ForcePromote { partition: 1, attempt, lsn: 7, policy: "lww".into() };
    assert!(machine.apply(force(2)).is_err(), "no such attempt");
    let forced = record(machine.apply(force(1)));
    assert_eq!((forced.owner, forced.epoch, &forced.state), (2, 2, &RecordState::Stable));
    assert_eq!(record(machine.apply(force(1))), forced, "asked twice, done once");
    assert!(machine.apply(Command::Commit { partition: 1, attempt: 1, epoch: 1, lsn: 9 }).is_err());
    let aborted = machine.apply(Command::Abort { partition: 1, attempt: 1, reason: String::new() });
    assert_eq!(record(aborted), forced, "the old owner reads that it is one no more");
    assert!(machine.apply(Command::Begin { partition: 1, source: 2, destination: 1 }).is_err(), "not moved on");
    let begin = |until| Command::BeginReconcile { partition: 1, attempt: 1, until };
    let until = |record: PartitionRecord| record.diverged.and_then(|diverged| diverged.until);
    assert_eq!(until(record(machine.apply(begin(20)))), Some(20));
    assert_eq!(until(record(machine.apply(begin(30)))), Some(20), "the first stands");
    let end = |attempt| Command::EndReconcile { partition: 1, attempt, outcome: "reconciled".into() };
    assert!(record(machine.apply(end(9))).diverged.is_some());
    assert!(record(machine.apply(end(1))).diverged.is_none());
    record(machine.apply(Command::Begin { partition: 1, source: 2, destination: 1 }));
}

#[test]
fn record_of_an_earlier_release_has_not_diverged() {
    let stored = r#"{"partition":1,"keyspace":"k","slots":[0,9],"owner":1,"epoch":1,"state":"Stable","revision":1,"history":[]}"#;
    let read = serde_json::from_str::<PartitionRecord>(stored).unwrap();
    assert_eq!((read.diverged, read.former), (None, None));
}

fn split(partition: u64, epoch: u64, at: u16, child: impl Into<Option<u64>>) -> Command {
    Command::Split { partition, epoch, at, child: child.into() }
}

fn merge(partition: u64, epoch: u64, other: u64, other_epoch: u64) -> Command {
    Command::Merge { partition, epoch, other, other_epoch }
}

fn slots(machine: &Machine) -> Vec<(u16, u16)> {
    let mut slots: Vec<(u16, u16)> = machine.state.records.values().map(|record| record.slots).collect();
    slots.sort_unstable();
    slots
}

#[test]
fn split_gives_each_slot_to_one_of_both() {
    let mut machine = machine();
    for refused in [split(1, 1, 0, 2), split(1, 1, 100, 2), split(1, 2, 50, 2), split(1, 1, 50, 1)] {
        assert!(machine.apply(refused.clone()).is_err(), "{refused:?}");
    }
    let child = record(machine.apply(split(1, 1, 50, 2)));
    let parent = machine.state.records[&1].clone();
    assert_eq!((parent.slots, child.slots), ((0, 49), (50, 99)));
    assert_eq!((parent.epoch, child.epoch, child.owner, &child.state), (2, 2, 1, &RecordState::Stable));
    for again in [split(1, 1, 50, 2), split(1, 1, 50, None)] {
        assert_eq!(record(machine.apply(again)), child, "asked twice, done once");
    }
    assert!(machine.apply(split(1, 2, 20, 2)).is_err(), "that id is taken");
    record(machine.apply(Command::Begin { partition: 2, source: 1, destination: 2 }));
    assert!(machine.apply(split(2, 2, 70, 3)).is_err(), "it is being moved");
    assert_eq!(record(machine.apply(split(1, 2, 20, None))).partition, 3, "the next free id");
    assert_eq!(slots(&machine), [(0, 19), (20, 49), (50, 99)]);
}

#[test]
fn merge_gives_both_slots_to_the_lower_one_and_its_id_to_nobody() {
    let mut machine = machine();
    record(machine.apply(split(1, 1, 50, 2)));
    record(machine.apply(split(2, 2, 70, 3)));
    for refused in [merge(1, 2, 3, 3), merge(2, 3, 1, 2), merge(1, 1, 2, 3), merge(1, 2, 2, 2), merge(1, 2, 4, 1)] {
        assert!(machine.apply(refused.clone()).is_err(), "{refused:?}");
    }
    record(machine.apply(Command::Begin { partition: 3, source: 1, destination: 2 }));
    assert!(machine.apply(merge(2, 3, 3, 3)).is_err(), "it is being moved");
    record(machine.apply(Command::Commit { partition: 3, attempt: 1, epoch: 3, lsn: 9 }));
    record(machine.apply(Command::Complete { partition: 3, attempt: 1 }));
    let elsewhere = machine.apply(merge(2, 3, 3, 4)).unwrap_err();
    assert!(elsewhere.contains("move one of them first"), "{elsewhere}");
    let merged = record(machine.apply(merge(1, 2, 2, 3)));
    assert_eq!((merged.slots, merged.epoch, merged.owner), ((0, 69), 4, 1));
    assert_eq!(record(machine.apply(merge(1, 2, 2, 3))), merged, "asked twice, done once");
    assert_eq!(slots(&machine), [(0, 69), (70, 99)]);
    assert!(machine.apply(split(1, 4, 20, 2)).is_err(), "its id is not given again");
    assert_eq!(record(machine.apply(split(1, 4, 20, None))).partition, 4);
    assert_eq!((machine.state.merged_into(2), machine.state.merged_into(3)), (Some(1), None));
}

proptest! {
    /// Whatever is split and merged: each slot has one partition, epochs only rise.
    #[test]
    fn slots_are_covered_once(commands in prop::collection::vec((any::<bool>(), 0..8usize, 0..100u16), 1..60)) {
        let mut machine = machine();
        for (splits, which, at) in commands {
            let known: Vec<PartitionRecord> = machine.state.records.values().cloned().collect();
            let one = &known[which % known.len()];
            let command = match known.iter().find(|other| other.slots.0 == one.slots.1 + 1) {
                Some(other) if !splits => merge(one.partition, one.epoch, other.partition, other.epoch),
                _ => split(one.partition, one.epoch, at, None),
            };
            let before = machine.clone();
            match machine.apply(command) {
                Ok(_) => {
                    let raised = machine.state.records[&one.partition].epoch;
                    prop_assert!(raised > one.epoch || machine == before);
                }
                Err(_) => prop_assert_eq!(&machine, &before, "a refusal changes nothing"),
            }
            let slots = slots(&machine);
            prop_assert_eq!((slots[0].0, slots[slots.len() - 1].1), (0, 99));
            prop_assert!(slots.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{:?}", slots);
            prop_assert!(machine.state.merged.keys().all(|id| !machine.state.records.contains_key(id)));
        }
    }
}

#[test]
fn leadership_goes_to_who_saw_the_last_beat() {
    let mut machine = machine();
    assert!(machine.apply(Command::Lead { host: 1, beat: 0 }).is_ok());
    assert!(machine.apply(Command::Lead { host: 2, beat: 0 }).is_err(), "host 1 was first");
    assert!(machine.apply(Command::Lead { host: 1, beat: 1 }).is_ok());
    assert!(machine.apply(Command::Lead { host: 2, beat: 2 }).is_ok(), "host 1 was silent");
    assert!(machine.apply(Command::Lead { host: 1, beat: 2 }).is_err(), "it wakes up and is none any more");
    assert_eq!(machine.state.leader, Some(Leader { host: 2, beat: 3 }));
}

#[test]
fn create_overlapping_slots_is_refused() {
    let create = Command::Create { partition: 2, keyspace: "default".into(), slots: (99, 200), owner: 1 };
    assert!(machine().apply(create).is_err());
}

fn arbitrary_command() -> impl Strategy<Value = Command> {
    let (attempt, epoch) = (0..6u64, 0..6u64);
    prop_oneof![
        (1..3u32, 1..3u32).prop_map(|(source, destination)| Command::Begin { partition: 1, source, destination }),
        (attempt.clone(), epoch).prop_map(|(attempt, epoch)| Command::Commit {
            partition: 1,
            attempt,
            epoch,
            lsn: epoch
        }),
        attempt.clone().prop_map(|attempt| Command::Release { partition: 1, attempt }),
        attempt.clone().prop_map(|attempt| Command::Abort { partition: 1, attempt, reason: String::new() }),
        attempt.clone().prop_map(|attempt| Command::Complete { partition: 1, attempt }),
        (attempt.clone(), 0..6u64).prop_map(|(attempt, lsn)| Command::ForcePromote {
            partition: 1,
            attempt,
            lsn,
            policy: String::new()
        }),
        (attempt.clone(), 0..6u64).prop_map(|(attempt, until)| Command::BeginReconcile {
            partition: 1,
            attempt,
            until
        }),
        attempt.prop_map(|attempt| Command::EndReconcile { partition: 1, attempt, outcome: String::new() }),
    ]
}

proptest! {
    #[test]
    fn owner_changes_only_with_the_epoch(commands in prop::collection::vec(arbitrary_command(), 1..60)) {
        let mut machine = machine();
        let mut before = machine.state.records[&1].clone();
        for command in commands {
            let refused = machine.apply(command).is_err();
            let after = machine.state.records[&1].clone();
            prop_assert!(after.epoch >= before.epoch && after.epoch <= before.epoch + 1);
            prop_assert!(after.owner == before.owner || after.epoch == before.epoch + 1);
            prop_assert!(!refused || after == before);
            let open = after.state != RecordState::Stable;
            prop_assert!(!open || after.diverged.is_none(), "a partition that has diverged is not moved");
            let former = after.former.as_ref().map(|former| former.host);
            prop_assert!(former != Some(after.owner), "the owner has more than a copy");
            before = after;
        }
    }
}
