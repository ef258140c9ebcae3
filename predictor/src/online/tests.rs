#![allow(clippy::unwrap_used)]

use super::*;
use crate::features::FEATURES;

/// Without a warm-up: gradients do not flow through it, finite differences would.
fn chunk(rows: usize, seed: u64) -> Chunk {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (windows, warm_up) = (5, 0);
    let features = (0..windows * rows * FEATURES).map(|_| rng.f32() * 2.0 - 0.5).collect();
    let mut shares: Vec<f32> = (0..(windows - warm_up) * rows).map(|_| (rng.f32() - 0.3).max(0.0)).collect();
    for (at, shares) in shares.chunks_exact_mut(rows).enumerate() {
        // the third window has no access in its horizon
        let sum: f32 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share *= if at == 2 { 0.0 } else { 1.0 / sum });
    }
    Chunk { rows, windows, warm_up, features, shares }
}

#[test]
fn gradient_agrees_with_finite_differences() {
    let model = Model::random(5, 8, 3);
    let chunk = chunk(6, 4);
    for loss in [LossWeights { count: 0.0, order: 0.0 }, LossWeights { count: 1.0, order: 1.0 }] {
        let mut net = Net::new(&model);
        let mut at = |weights: Option<&[f32]>| {
            if let Some(weights) = weights {
                net.weights.copy_from_slice(weights);
                net.refresh();
            }
            let value = net.learn(&chunk, loss, &mut fastrand::Rng::with_seed(1));
            (value, net.weights.clone(), net.gradient.clone())
        };
        let (_, weights, gradient) = at(None);
        for index in (0..weights.len()).step_by(7) {
            let step = 2e-2;
            let mut moved = weights.clone();
            moved[index] += step;
            let above = f64::from(at(Some(&moved)).0);
            moved[index] -= 2.0 * step;
            let below = f64::from(at(Some(&moved)).0);
            let wanted = (above - below) / f64::from(2.0 * step);
            let got = f64::from(gradient[index]);
            assert!((got - wanted).abs() < 2e-3 + 0.02 * wanted.abs(), "weight {index}: {got} {wanted}");
        }
    }
}

#[test]
fn net_gives_back_the_model_it_was_given() {
    let model = Model::random(7, 8, 9);
    let net = Net::new(&model);
    assert_eq!(net.model_of(&net.weights).unwrap(), model);
}

/// Counts of a scan over all segments, some a window, in a random order of blocks that repeats.
fn scan(window: usize, segments: usize) -> Vec<SegmentCounts> {
    let mut counts = vec![SegmentCounts::default(); segments];
    let order = [3, 0, 2, 5, 1, 4];
    let block = segments / order.len();
    let at = order[window / block % order.len()] * block + window % block;
    counts[at] = SegmentCounts { reads: 50, bytes: 50_000, ..Default::default() };
    counts[window * 7 % segments].reads += 3;
    counts
}

#[test]
fn learner_beats_its_base_on_its_own_load_and_swaps() {
    let segments = 48;
    let base = Model::random(8, 8, 5);
    let mut learner = Learner::new(&base, segments, OnlineConfig::default()).unwrap();
    let mut online = OnlineGru::new(&base, segments, OnlineConfig::default()).unwrap();
    for window in 0..500 {
        let counts = scan(window, segments);
        learner.observe(&counts);
        online.observe(&counts);
    }
    let [base_share, deployed_share, _] = [0, 1, 2].map(|track| learner.judge.means()[track]);
    assert!(learner.stats().swaps >= 1, "{:?}", learner.stats());
    assert!(deployed_share > base_share + 0.1, "{deployed_share} {base_share}");
    assert_eq!(online.learner().deployed(), learner.deployed(), "INV-O4");
    assert_eq!(online.scores(), learner.tracks[DEPLOYED].scores());
}

#[test]
fn learner_that_diverges_keeps_the_deployed_weights() {
    let base = Model::random(8, 8, 5);
    let wild = OnlineConfig { learning_rate: 1e4, average: 1.0, pull: 0.0, ..OnlineConfig::default() };
    let mut learner = Learner::new(&base, 48, wild).unwrap();
    for window in 0..120 {
        learner.observe(&scan(window, 48));
    }
    assert!(learner.stats().resets >= 1, "{:?}", learner.stats());
    assert!(learner.deployed().weights().head_weight.iter().all(|weight| weight.is_finite()));
}

#[test]
fn learner_survives_changes_of_structure() {
    let base = Model::random(8, 8, 5);
    let mut learner = Learner::new(&base, 48, OnlineConfig::default()).unwrap();
    for window in 0..240 {
        let segments = learner.tracks[BASE].features().len();
        let mut counts = scan(window, 48);
        counts.resize(segments, SegmentCounts::default());
        learner.observe(&counts);
        match window % 80 {
            30 => learner.split(window % 40, 0.3),
            70 => learner.merge(window % 40),
            _ => {}
        }
    }
    assert!(learner.stats().chunks > 100);
}

#[test]
fn learner_is_saved_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("online.safetensors");
    let base = Model::random(8, 8, 5);
    let mut learner = Learner::new(&base, 48, OnlineConfig::default()).unwrap();
    (0..300).for_each(|window| drop(learner.observe(&scan(window, 48))));
    assert_ne!(learner.deployed(), &base);
    learner.save(&path).unwrap();
    let restored = Learner::restore(&path, &base, 48, OnlineConfig::default()).unwrap();
    assert_eq!(restored.deployed(), learner.deployed());
    assert!(Learner::restore(&path, &Model::random(9, 8, 5), 48, OnlineConfig::default()).is_err());
}

#[test]
fn settings_out_of_range_are_named() {
    let base = Model::random(8, 8, 5);
    let text = |config| Learner::new(&base, 8, config).err().unwrap().to_string();
    let good = OnlineConfig::default();
    assert!(text(OnlineConfig { learned: 1, ..good }).contains("learned"));
    assert!(text(OnlineConfig { learning_rate: f32::NAN, ..good }).contains("learning_rate"));
    assert!(text(OnlineConfig { average: 0.0, ..good }).contains("average"));
    assert!(text(OnlineConfig { pull: -1.0, ..good }).contains("pull"));
}

/// Every segment once a round, in another order each round: what was read lately is what will not be read soon, and the
/// shipped weights, which have learned the opposite elsewhere, are worse than chance.
#[test]
fn shipped_weights_are_replaced_where_they_are_plainly_bad() {
    let (segments, base) = (24, Model::shipped().unwrap());
    let mut learner = Learner::new(&base, segments, OnlineConfig::default()).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut left: Vec<usize> = Vec::new();
    for _ in 0..400 {
        if left.is_empty() {
            left = (0..segments).collect();
            rng.shuffle(&mut left);
        }
        let mut counts = vec![SegmentCounts::default(); segments];
        let at = left.pop().unwrap();
        counts[at] = SegmentCounts { reads: 40, bytes: 20_000, ..Default::default() };
        learner.observe(&counts);
    }
    let [base_share, deployed_share, _] = [0, 1, 2].map(|track| learner.judge.means()[track]);
    assert!(learner.stats().swaps >= 1, "{:?}", learner.stats());
    assert!(base_share < 0.45, "{base_share}");
    assert!(deployed_share > base_share + 0.2, "{deployed_share} {base_share}");
}
