#![allow(clippy::unwrap_used)]

use super::*;
use crate::trace::{Op, Request};

/// A scan that goes round and round: nothing that was read lately is read next.
fn scan() -> Windowed {
    let requests: Vec<Request> =
        (0..16_000u64).map(|at| Request { ts_us: at, op: Op::Get, key: at / 4 % 512, size: 100 }).collect();
    Windowed::new(&requests, Mapping::Range, 32, 200).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig { hidden: 8, horizon: 4, epochs: 8, learning_rate: 0.02, cuda: false, ..TrainConfig::new(Vec::new()) }
}

#[test]
fn training_learns_a_scan_and_is_deterministic() {
    let mapped = vec![vec![scan()]];
    let mut seen = Vec::new();
    let first = train_on(&config(), &mapped, &mut |at| seen.push(at)).unwrap();
    assert_eq!(seen, first.curve);
    assert!(first.curve.last().unwrap().loss < 0.7 * first.curve[0].loss, "{:?}", first.curve);
    // what was read last is the worst guess here
    assert!(first.validation[0] > 85.0, "{:?}", first.validation);
    let again = train_on(&config(), &mapped, &mut |_| {}).unwrap();
    assert_eq!(again.model, first.model);
    // following on from a model starts where that one stood
    let on = TrainConfig { start: Some(first.model.clone()), epochs: 1, learning_rate: 1e-6, ..config() };
    let on = train_on(&on, &mapped, &mut |_| {}).unwrap();
    assert!((on.validation[0] - first.validation[0]).abs() < 1.0);
}

#[test]
fn features_that_are_off_weigh_nothing_and_a_checkpoint_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let off = TrainConfig { features_off: vec![3, 20], checkpoint: Some(path.clone()), epochs: 3, ..config() };
    let trained = train_on(&off, &[vec![scan()]], &mut |_| {}).unwrap();
    assert_eq!(Model::load(&path).unwrap(), trained.model);
    let weights = trained.model.weights();
    assert!(weights.weight_ih.chunks_exact(FEATURES).all(|row| row[3] == 0.0 && row[20] == 0.0));
    assert!(weights.linear[3] == 0.0 && weights.head_weight[8 + 20] == 0.0 && weights.linear[4] != 0.0);
}

/// The scan trace of the project: a small model learns it for real, is saved, loaded, and beats the best average.
#[test]
fn small_model_trained_on_cp_w92_beats_ewma() {
    use crate::eval::{EvalConfig, Requests, evaluate};
    use crate::scorer::ScorerKind;

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces/cp_w92.csv.zst");
    if !path.exists() {
        println!("SKIPPED: no trace cp_w92 beside the repository (shared/traces)");
        return;
    }
    let trace = TrainTrace { path: path.clone(), mapping: Mapping::Range };
    let config = TrainConfig {
        hidden: 8,
        segments: vec![64],
        epochs: 6,
        mirror: false,
        cuda: false,
        learning_rate: 0.01,
        ..TrainConfig::new(vec![trace])
    };
    let trained = train(&config, &mut |_| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("small.safetensors");
    trained.model.save(&saved).unwrap();
    let model = Model::load(&saved).unwrap();
    assert_eq!(model, trained.model);
    let requests = Requests { trace: "cp_w92".into(), requests: trace::read_all(&path).unwrap() };
    let scorers = vec![ScorerKind::Ewma, ScorerKind::Gru];
    // without online learning: it is the training that is tried
    let config =
        EvalConfig { segments: 64, scorers, model: Some(model), online: None, ..EvalConfig::new(Mapping::Range) };
    let report = evaluate(&requests, &config).unwrap();
    println!("gap closed against ewma: {:?}", report.gap_vs_ewma);
    assert!(report.gap_vs_ewma.unwrap() > 0.0, "{report:?}");
}

#[test]
fn settings_out_of_range_are_named() {
    let text = |config: TrainConfig| train_on(&config, &[vec![scan()]], &mut |_| {}).unwrap_err().to_string();
    assert!(text(TrainConfig { hidden: 0, ..config() }).contains("hidden"));
    assert!(text(TrainConfig { horizon: 0, ..config() }).contains("horizon"));
    assert!(text(TrainConfig { horizon: 150, ..config() }).contains("windows"));
    assert!(text(TrainConfig { epochs: 0, ..config() }).contains("epochs"));
    assert!(text(TrainConfig { train_to: 0.9, ..config() }).contains("train_to"));
    assert!(text(TrainConfig { learning_rate: f64::NAN, ..config() }).contains("learning_rate"));
    assert!(text(TrainConfig { features_off: vec![FEATURES], ..config() }).contains("features_off"));
    assert!(text(TrainConfig { start: Some(Model::random(9, 4, 1)), ..config() }).contains("hidden sizes"));
    assert!(train_on(&config(), &[], &mut |_| {}).is_err());
    let missing = TrainTrace { path: "no/such".into(), mapping: Mapping::Range };
    let error = train(&TrainConfig { traces: vec![missing], ..config() }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no/such"));
}
