//! Training and scoring with CUDA, where there is a GPU:
//! `LIBTORCH=... cargo test --release -p antumbra-hw-tests --features torch --test gpu -- --nocapture`
#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use antumbra_predictor::Model;
use antumbra_predictor::eval::Mapping;
use antumbra_predictor::features::{FEATURES, LANES, Lanes};
use antumbra_predictor::gru::Cell;
use antumbra_predictor::trace::{Op, Request, TraceWriter};
use antumbra_predictor::train::{Net, TrainConfig, TrainTrace, Trained, cuda_is_available, train};
use tch::nn::VarStore;
use tch::{Device, Tensor};

fn has_gpu() -> bool {
    if !cuda_is_available() {
        println!("NOT HERE: GPU: libtorch sees none");
    }
    cuda_is_available()
}

/// A scan that goes round and round: nothing that was read lately is read next.
fn scan() -> Vec<Request> {
    (0..60_000u64).map(|at| Request { ts_us: at * 100, op: Op::Get, key: at / 4 % 2048, size: 100 }).collect()
}

#[test]
fn gpu_trains_as_well_as_the_processor() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan.csv.zst");
    let mut writer = TraceWriter::create(&path).unwrap();
    scan().iter().for_each(|request| writer.write(request).unwrap());
    writer.finish().unwrap();
    let trained = |cuda: bool| -> Trained {
        let config = TrainConfig {
            hidden: 16,
            windows: 512,
            segments: vec![128],
            epochs: 6,
            learning_rate: 0.01,
            cuda,
            ..TrainConfig::new(vec![TrainTrace { path: path.clone(), mapping: Mapping::Range }])
        };
        let began = Instant::now();
        let trained = train(&config, &mut |_| {}).unwrap();
        let seconds = began.elapsed().as_secs_f64();
        println!("cuda {cuda}: {seconds:.2} s, {:.2} % of the oracle in validation", trained.validation[0]);
        assert_eq!(trained.on_cuda, cuda);
        trained
    };
    let (gpu, processor) = (trained(true), trained(false));
    assert!(gpu.validation[0] > 85.0, "{:?}", gpu.validation);
    assert!((gpu.validation[0] - processor.validation[0]).abs() < 3.0);
    let saved = folder.path().join("gpu.safetensors");
    gpu.model.save(&saved).unwrap();
    assert_eq!(Model::load(&saved).unwrap(), gpu.model);
}

#[test]
fn gpu_scores_as_the_core_does() {
    if !has_gpu() {
        return;
    }
    let model = Model::shipped().unwrap();
    let vars = VarStore::new(Device::Cuda(0));
    let net = Net::new(&model, &vars).unwrap();
    let mut cell = Cell::new(&model);
    let mut state = vec![Lanes::ZERO; model.hidden()];
    let mut torch_state = net.zero_state(LANES as i64).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let mut largest = 0.0f32;
    for _ in 0..60 {
        let x: [Lanes; FEATURES] = std::array::from_fn(|_| Lanes(std::array::from_fn(|_| rng.f32() * 2.0)));
        let logits = cell.step(&x, &mut state);
        let rows: Vec<f32> = (0..LANES).flat_map(|lane| x.iter().map(move |row| row[lane])).collect();
        let input = Tensor::from_slice(&rows).view([1, LANES as i64, FEATURES as i64]).to_device(Device::Cuda(0));
        let (torch_logits, next) = tch::no_grad(|| net.forward(&input, &torch_state)).unwrap();
        torch_state = next;
        for (lane, logit) in logits.iter().enumerate() {
            largest = largest.max((logit - torch_logits.double_value(&[0, lane as i64]) as f32).abs());
        }
    }
    println!("largest difference of a logit: {largest:.2e}");
    // cuDNN may multiply in TF32, which has ten bits.
    assert!(largest < 5e-3, "{largest}");
}
