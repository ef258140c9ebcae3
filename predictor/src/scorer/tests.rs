#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn all(segments: usize) -> Vec<Box<dyn Scorer + Send>> {
    let model = Model::random(16, HORIZON_WINDOWS, 7);
    ScorerKind::ALL.into_iter().map(|kind| build(kind, Some(&model), segments).unwrap()).collect()
}

fn reads(values: &[u32]) -> Vec<SegmentCounts> {
    let counts = |reads: &u32| SegmentCounts { reads: *reads, bytes: u64::from(*reads) * 100, ..Default::default() };
    values.iter().map(counts).collect()
}

/// Most calls of a whole pass with the smallest budget: a choice holds more than a dozen scorers.
fn calls_max(segments: usize) -> usize {
    150 * (segments + 8)
}

fn order(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

#[test]
fn kind_names_round_trip() {
    for kind in ScorerKind::ALL {
        assert_eq!(kind.to_string().parse::<ScorerKind>().unwrap(), kind);
        assert_eq!(build(kind, None, 3).unwrap().name(), kind.as_str());
    }
    assert_eq!("ewma_readahead".parse::<ScorerKind>().unwrap(), ScorerKind::EwmaReadahead);
    assert!("lstm".parse::<ScorerKind>().unwrap_err().to_string().contains("unknown scorer 'lstm': one of random, "));
}

#[test]
fn rules_rank_as_their_names_say() {
    let windows = [[9, 0, 1, 0], [9, 0, 0, 3], [0, 2, 0, 0]];
    let ranked = |kind| {
        let mut scorer = build(kind, None, 4).unwrap();
        windows.iter().for_each(|window| scorer.observe(&reads(window)));
        order(scorer.scores())
    };
    assert_eq!(ranked(ScorerKind::LastWindow)[0], 1);
    assert_eq!(ranked(ScorerKind::Lru), [1, 0, 3, 2]);
    assert_eq!(ranked(ScorerKind::Lfu), [0, 3, 1, 2]);
    assert_eq!(ranked(ScorerKind::Ewma), [0, 3, 1, 2]);
}

#[test]
fn expected_accesses_are_to_scale() {
    // constant load: every counting scorer expects 8 windows of it
    for kind in [ScorerKind::LastWindow, ScorerKind::Lfu, ScorerKind::Ewma] {
        let mut scorer = build(kind, None, 2).unwrap();
        (0..200).for_each(|_| scorer.observe(&reads(&[10, 30])));
        let scores = scorer.scores();
        assert!((scores[0] - 80.0).abs() < 0.1 && (scores[1] - 240.0).abs() < 0.1, "{kind}: {scores:?}");
    }
    let mut gru = build(ScorerKind::Gru, None, 2).unwrap();
    (0..200).for_each(|_| gru.observe(&reads(&[10, 30])));
    assert!((gru.scores().iter().sum::<f32>() - 320.0).abs() < 0.1);
}

#[test]
fn readahead_prefers_what_a_scan_reads_next() {
    let mut scorer = EwmaReadahead::new(32, 0.5);
    for window in 0..10 {
        let mut counts = [0; 32];
        counts[window] = 100;
        scorer.observe(&reads(&counts));
    }
    let scores = scorer.scores();
    assert!(scores[10] > scores[11] && scores[11] > scores[15] && scores[10] > scores[4]);
}

#[test]
fn markov_expects_the_next_step_of_a_cycle() {
    let mut scorer = Markov::new(16);
    for window in 0..60 {
        let mut counts = [0; 16];
        counts[[2, 9, 14, 5][window % 4]] = 50;
        scorer.observe(&reads(&counts));
    }
    // window 59 was segment 5: segment 2 is next
    assert_eq!(order(scorer.scores())[0], 2);
}

#[test]
fn random_is_seeded() {
    let scores = |seed| {
        let mut scorer = Random::new(8, seed);
        scorer.observe(&reads(&[0; 8]));
        scorer.scores().to_vec()
    };
    assert_eq!(scores(1), scores(1));
    assert_ne!(scores(1), scores(2));
}

#[test]
fn scores_during_a_pass_are_those_of_the_last_one() {
    for mut scorer in all(40) {
        scorer.observe(&reads(&[3; 40]));
        let before = scorer.scores().to_vec();
        scorer.begin(&reads(&[900; 40]));
        while !scorer.step(7) {
            assert_eq!(scorer.scores(), before, "{}", scorer.name());
        }
        assert_ne!(scorer.scores(), before, "{}", scorer.name());
    }
}

#[test]
fn reset_forgets_everything() {
    for (mut used, mut fresh) in all(10).into_iter().zip(all(12)).skip(1) {
        (0..20).for_each(|window| used.observe(&reads(&[window; 10])));
        used.reset(12);
        let counts = reads(&[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]);
        used.observe(&counts);
        fresh.observe(&counts);
        assert_eq!(used.scores(), fresh.scores(), "{}", used.name());
    }
}

#[test]
fn no_segment_at_all_is_fine() {
    for mut scorer in all(0) {
        scorer.observe(&[]);
        assert!(scorer.scores().is_empty());
    }
}

#[derive(Clone, Debug)]
enum Action {
    Window(Vec<u32>, usize),
    Split(usize, f32),
    Merge(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let count = prop_oneof![4 => Just(0u32), 4 => 0..100u32, 1 => any::<u32>()];
    prop_oneof![
        6 => (prop::collection::vec(count, 30), 0..20usize).prop_map(|(counts, budget)| Action::Window(counts, budget)),
        1 => (0..30usize, 0.0f32..=1.0).prop_map(|(index, share)| Action::Split(index, share)),
        1 => (0..30usize).prop_map(Action::Merge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// One scorer takes whole passes, its twin slices: they agree, stay finite and follow the structure.
    #[test]
    fn slices_and_structure_changes_keep_scores_sound(actions in prop::collection::vec(action(), 1..40)) {
        let mut segments = 11;
        let mut whole = all(segments);
        let mut sliced = all(segments);
        for action in actions {
            for (whole, sliced) in whole.iter_mut().zip(&mut sliced) {
                match &action {
                    Action::Window(counts, budget) => {
                        let counts: Vec<u32> = counts.iter().copied().cycle().take(segments).collect();
                        whole.observe(&reads(&counts));
                        sliced.begin(&reads(&counts));
                        let mut calls = 0;
                        while *budget > 0 && !sliced.step(*budget) {
                            calls += 1;
                            prop_assert!(calls <= calls_max(segments), "{} never ends", sliced.name());
                        }
                    }
                    Action::Split(index, share) if *index < segments => {
                        whole.split(*index, *share);
                        sliced.split(*index, *share);
                    }
                    Action::Merge(index) if index + 1 < segments => {
                        whole.merge(*index);
                        sliced.merge(*index);
                    }
                    _ => {}
                }
                let (a, b) = (whole.scores(), sliced.scores());
                prop_assert_eq!(a.len(), b.len());
                prop_assert!(a.iter().all(|score| score.is_finite() && *score >= 0.0), "{}: {:?}", whole.name(), a);
                let complete = match &action {
                    Action::Window(_, budget) => *budget > 0,
                    Action::Split(index, _) => *index < segments,
                    Action::Merge(index) => index + 1 < segments,
                };
                // slices add the softmax's sum in another order
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (1.0 + a.abs());
                prop_assert!(!complete || a.iter().zip(b).all(near), "{}: {:?} {:?}", whole.name(), a, b);
            }
            match action {
                Action::Split(index, _) if index < segments => segments += 1,
                Action::Merge(index) if index + 1 < segments => segments -= 1,
                _ => {}
            }
        }
    }
}

#[test]
fn choice_follows_the_better_candidate_and_back() {
    let mut choice =
        Choice::new("auto", vec![Box::new(Lfu::new(64)) as Box<dyn Scorer + Send>, Box::new(LastWindow::new(64))], 64);
    // a hot spot that stays for a while, then moves on: what was read since the start misleads
    for window in 0..400 {
        let mut counts = [0; 64];
        counts[window / 25 % 64] = 100;
        choice.observe(&reads(&counts));
    }
    assert_eq!(choice.followed().name(), "last-window");
    // sixteen segments take turns at random: the last window knows two of them
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..600 {
        let mut counts = [0; 64];
        (0..2).for_each(|_| counts[32 + rng.usize(0..16)] += 100);
        choice.observe(&reads(&counts));
    }
    assert_eq!(choice.followed().name(), "lfu");
    assert!((1..=20).contains(&choice.switches()), "{}", choice.switches());
}

#[test]
fn mixture_weighs_the_better_candidate_more_and_keeps_the_scale() {
    let candidates: Vec<Box<dyn Scorer + Send>> = vec![Box::new(Lfu::new(64)), Box::new(LastWindow::new(64))];
    let mut mixture = Mixture::new("auto", candidates, 64);
    assert!(mixture.standings().all(|(_, weight)| weight == 0.0));
    let weight = |mixture: &Mixture, name| mixture.standings().find(|of| of.0 == name).unwrap().1;
    for window in 0..400 {
        let mut counts = [0; 64];
        counts[window / 25 % 64] = 100;
        mixture.observe(&reads(&counts));
    }
    assert!(weight(&mixture, "last-window") > 0.9, "{:?}", mixture.standings().collect::<Vec<_>>());
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..600 {
        let mut counts = [0; 64];
        (0..2).for_each(|_| counts[32 + rng.usize(0..16)] += 100);
        mixture.observe(&reads(&counts));
    }
    assert!(weight(&mixture, "lfu") > 0.9, "{:?}", mixture.standings().collect::<Vec<_>>());
    assert!((mixture.standings().map(|of| of.1).sum::<f64>() - 1.0).abs() < 1e-9);
    // eight windows of 200 accesses; lfu remembers those of 100 as well
    assert!((1_200.0..1_700.0).contains(&mixture.scores().iter().sum::<f32>()));
}
