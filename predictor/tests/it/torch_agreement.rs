//! Our cell and libtorch's compute the same, to 1e-5.

use antumbra_predictor::features::{FEATURES, Features, LANES, Lanes};
use antumbra_predictor::gru::Cell;
use antumbra_predictor::train::Net;
use antumbra_predictor::{Model, SegmentCounts};
use tch::nn::VarStore;
use tch::{Device, Tensor};

const TOLERANCE: f32 = 1e-5;

/// Runs one tile through both, window by window, and gives the largest difference of logits and hidden states.
fn largest_difference(model: &Model, windows: &[[Lanes; FEATURES]]) -> f32 {
    let vars = VarStore::new(Device::Cpu);
    let net = Net::new(model, &vars).expect("a net");
    let mut cell = Cell::new(model);
    let hidden = model.hidden();
    let mut state = vec![Lanes::ZERO; hidden];
    let mut torch_state = net.zero_state(LANES as i64).expect("a state");
    let mut largest = 0.0f32;
    for x in windows {
        let logits = cell.step(x, &mut state);
        let rows: Vec<f32> = (0..LANES).flat_map(|lane| x.iter().map(move |row| row[lane])).collect();
        let input = Tensor::from_slice(&rows).view([1, LANES as i64, FEATURES as i64]);
        let (torch_logits, next) = tch::no_grad(|| net.forward(&input, &torch_state)).expect("a step");
        torch_state = next;
        for (lane, logit) in logits.iter().enumerate() {
            largest = largest.max((logit - torch_logits.double_value(&[0, lane as i64]) as f32).abs());
            for (unit, row) in state.iter().enumerate() {
                let torch = torch_state.double_value(&[0, lane as i64, unit as i64]) as f32;
                largest = largest.max((row[lane] - torch).abs());
            }
        }
    }
    largest
}

#[test]
fn cell_random_weights_and_inputs_agree_with_libtorch() {
    for (seed, hidden) in [(1, 1), (2, 8), (3, 16), (4, 17), (5, 24), (6, 64)] {
        let model = Model::random(hidden, 8, seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let windows: Vec<[Lanes; FEATURES]> =
            (0..40).map(|_| std::array::from_fn(|_| Lanes(std::array::from_fn(|_| rng.f32() * 4.0 - 1.0)))).collect();
        let largest = largest_difference(&model, &windows);
        assert!(largest < TOLERANCE, "hidden size {hidden}: {largest}");
    }
}

#[test]
fn cell_shipped_weights_and_real_features_agree_with_libtorch() {
    let model = Model::shipped().expect("the shipped model");
    let mut rng = fastrand::Rng::with_seed(9);
    let mut features = Features::new(64);
    let mut windows = Vec::new();
    for window in 0..60usize {
        let mut counts = vec![SegmentCounts::default(); 64];
        for request in 0..50 {
            let index = if rng.bool() { (window + request / 10) % 64 } else { rng.usize(0..64) };
            counts[index].add(&SegmentCounts { reads: 1, writes: 0, bytes: 4096, sequential: 0 });
        }
        features.begin(&counts);
        while !features.step(usize::MAX) {}
        let mut tile = [Lanes::ZERO; FEATURES];
        features.tile(16, &mut tile);
        windows.push(tile);
    }
    let largest = largest_difference(&model, &windows);
    assert!(largest < TOLERANCE, "{largest}");
}
