use proptest::prelude::*;

use super::*;

fn token(segment: u64, version: u64) -> ValidationToken {
    ValidationToken { segment: SegmentId(segment), version: Lsn(version), checksum: version as u32 }
}

fn source(segments: u64) -> Source {
    Source::new(
        (1..=segments).map(SegmentId),
        Lsn(10),
        Limits { retries_max: 2, lag_max: 5, patience_looks: 4, late_looks: 2, asynchronous: false },
    )
}

fn request(wanted: ValidationToken, present: ValidationToken) -> Event {
    Event::Requested { wanted, present }
}

#[test]
fn happy_path_takes_every_step_once() {
    let mut source = source(1);
    assert_eq!(source.handle(Event::Opened), []);
    assert_eq!(source.handle(request(token(1, 1), token(1, 1))), [Action::SendSegment(SegmentId(1))]);
    assert_eq!(source.handle(Event::Assigned(Lsn(20))), []);
    assert_eq!(source.handle(Event::Held(SegmentId(1))), [], "the lag is too large");
    assert_eq!(source.handle(Event::Acked(Lsn(19))), [], "not all that was assigned when it came to hold enough");
    assert_eq!(source.handle(Event::Assigned(Lsn(25))), []);
    assert_eq!(source.handle(Event::Acked(Lsn(20))), [Action::SetSynchronous]);
    assert_eq!(source.handle(Event::Allowed), [Action::Freeze]);
    assert_eq!(source.handle(Event::Frozen(Lsn(25))), []);
    assert_eq!(source.handle(Event::Acked(Lsn(25))), [Action::SendSeal]);
    assert_eq!(source.handle(Event::SealOk), [Action::Commit]);
    assert_eq!(source.handle(Event::Failed("link lost".into())), [], "only the record decides now");
    assert_eq!(source.handle(Event::Committed), [Action::HandOver]);
    assert_eq!(source.handle(Event::HandedOver), [Action::Promote]);
    assert_eq!(source.handle(Event::Promoted), [Action::Digest]);
    assert_eq!(source.handle(Event::Digested), [Action::Complete]);
    assert_eq!(source.state(), State::Complete);
}

#[test]
fn stale_request_is_retried_then_sent_anyway() {
    let mut source = source(1);
    source.handle(Event::Opened);
    assert_eq!(source.handle(request(token(1, 1), token(1, 2))), [Action::SendStale(token(1, 2))]);
    assert_eq!(source.handle(request(token(1, 2), token(1, 3))), [Action::SendStale(token(1, 3))]);
    assert_eq!(source.handle(request(token(1, 3), token(1, 4))), [Action::SendSegment(SegmentId(1))]);
    assert_eq!(source.handle(request(token(1, 3), token(1, 4))), [], "asked twice, sent once");
    assert_eq!(source.token_retries, 2);
}

#[test]
fn mirror_that_stays_late_is_enough_after_a_while() {
    let mut source = source(1);
    source.handle(Event::Opened);
    source.handle(Event::Assigned(Lsn(100)));
    source.handle(request(token(1, 1), token(1, 1)));
    source.handle(Event::Held(SegmentId(1)));
    let mut look = |acked, assigned| {
        let mut actions = source.handle(Event::Acked(Lsn(acked)));
        actions.extend(source.handle(Event::Assigned(Lsn(assigned))));
        actions
    };
    // Each acknowledgement has what was assigned a look before.
    for (acked, assigned) in [(20, 200), (100, 300), (200, 400)] {
        assert_eq!(look(acked, assigned), []);
    }
    assert_eq!(look(250, 500), [], "later than that");
    assert_eq!(look(450, 600), [Action::SetSynchronous]);
}

#[test]
fn early_switchover_drains_before_it_digests() {
    let mut source = source(2);
    source.handle(Event::Opened);
    source.handle(request(token(1, 1), token(1, 1)));
    source.handle(Event::Held(SegmentId(1)));
    source.handle(Event::Allowed);
    assert_eq!(source.state(), State::Copying);
    assert_eq!(source.handle(Event::EnoughHeld), [Action::SetSynchronous, Action::Freeze]);
    for event in [Event::Frozen(Lsn(10)), Event::SealOk, Event::Committed, Event::HandedOver] {
        source.handle(event);
    }
    assert_eq!((source.handle(Event::Promoted), source.state()), (vec![], State::Draining));
    assert_eq!(source.handle(Event::Failed("late".into())), [], "there is no way back");
    let mut lost = source.clone();
    assert_eq!(lost.handle(Event::TargetLost), [Action::AwaitTarget]);
    assert_eq!(source.handle(Event::Held(SegmentId(2))), [Action::Digest]);
    assert_eq!(source.handle(Event::Digested), [Action::Complete]);
}

#[test]
fn asynchronous_standby_turns_synchronous_when_it_may_switch() {
    let limits = Limits { asynchronous: true, ..Limits::default() };
    let mut source = Source::new([SegmentId(1)], Lsn(10), limits);
    source.handle(Event::Opened);
    source.handle(request(token(1, 1), token(1, 1)));
    source.handle(Event::Held(SegmentId(1)));
    assert_eq!((source.handle(Event::Assigned(Lsn(11))), source.state()), (vec![], State::Copying));
    assert_eq!(source.handle(Event::Allowed), [Action::SetSynchronous, Action::Freeze]);
}

#[test]
fn lost_link_of_a_copy_costs_no_segment_that_is_held() {
    let mut source = source(3);
    source.handle(Event::Opened);
    source.handle(Event::Allowed);
    for segment in 1..=2 {
        source.handle(request(token(segment, 1), token(segment, 1)));
    }
    assert_eq!(source.handle(Event::TargetLost), [Action::Reconnect]);
    assert_eq!(source.handle(Event::TargetLost), [], "once");
    assert_eq!(source.handle(request(token(3, 1), token(3, 1))), [], "nobody is there");
    assert_eq!(source.handle(Event::Acked(Lsn(10))), [], "nothing is frozen without a link");
    // Segment 1 has come, 2 is on its way, 3 was never sent.
    let held = [1, 3].map(SegmentId).to_vec();
    assert_eq!((source.handle(Event::Resumed { held }), source.state()), (vec![], State::Copying));
    assert_eq!([1, 2, 3].map(|segment| source.is_held(SegmentId(segment))), [true, false, false]);
    assert_eq!(source.handle(request(token(3, 1), token(3, 1))), [Action::SendSegment(SegmentId(3))]);
    source.handle(Event::Held(SegmentId(2)));
    assert_eq!(source.handle(Event::Held(SegmentId(3))), [Action::SetSynchronous, Action::Freeze]);
    assert_eq!(source.handle(Event::TargetLost), [], "a write may wait for the target");
}

#[test]
fn held_that_was_not_sent_changes_nothing() {
    let mut source = source(2);
    source.handle(Event::Opened);
    source.handle(Event::Allowed);
    source.handle(request(token(1, 1), token(1, 1)));
    assert_eq!(source.handle(Event::Held(SegmentId(2))), []);
    assert!(!source.is_held(SegmentId(2)));
    source.handle(Event::Held(SegmentId(1)));
    assert_eq!((source.missing(), source.state()), (1, State::Copying));
    source.handle(request(token(2, 1), token(2, 1)));
    assert_eq!(source.handle(Event::Held(SegmentId(2))), [Action::SetSynchronous, Action::Freeze]);
}

fn arbitrary_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Opened),
        (1..4u64, 0..3u64, 0..3u64).prop_map(|(id, a, b)| request(token(id, a), token(id, b))),
        (1..4u64).prop_map(|id| Event::Held(SegmentId(id))),
        (10..40u64).prop_map(|lsn| Event::Acked(Lsn(lsn))),
        (10..40u64).prop_map(|lsn| Event::Assigned(Lsn(lsn))),
        Just(Event::EnoughHeld),
        Just(Event::Allowed),
        (10..40u64).prop_map(|lsn| Event::Frozen(Lsn(lsn))),
        Just(Event::SealOk),
        Just(Event::Committed),
        Just(Event::NotCommitted("conflict".into())),
        Just(Event::HandedOver),
        Just(Event::Promoted),
        Just(Event::Digested),
        Just(Event::TargetLost),
        prop::collection::vec(1..4u64, 0..3)
            .prop_map(|held| Event::Resumed { held: held.into_iter().map(SegmentId).collect() }),
        Just(Event::Completed),
        Just(Event::Aborted),
        Just(Event::Failed("x".into())),
    ]
}

proptest! {
    #[test]
    fn events_in_any_order_break_no_rule(events in prop::collection::vec(arbitrary_event(), 0..80)) {
        let mut source = source(3);
        let (mut commits, mut hand_overs, mut aborts) = (0, 0, 0);
        for event in events {
            let committed = event == Event::Committed && source.state() == State::Committing;
            for action in source.handle(event) {
                match action {
                    Action::Commit => commits += 1,
                    Action::HandOver => {
                        prop_assert!(committed, "handed over without a committed record");
                        hand_overs += 1;
                    }
                    Action::Abort(_) => {
                        prop_assert_eq!(hand_overs, 0, "aborted after the hand-over");
                        aborts += 1;
                    }
                    _ => {}
                }
            }
        }
        prop_assert!(commits <= 1 && hand_overs <= 1 && aborts <= 1);
    }
}
