//! The shipped model is better than the rules where its features tell more than counts do, and no worse than random
//! anywhere. Made-up loads: the figures on recorded traces are in the crate's README.

use antumbra_predictor::eval::{EvalConfig, Mapping, Report, Requests, evaluate};
use antumbra_predictor::trace::{Op, Request};

fn report(key: impl FnMut(u64) -> u64) -> Report {
    let request = |(at, key): (usize, u64)| Request { ts_us: at as u64, op: Op::Get, key, size: 4096 };
    let requests =
        Requests { trace: "made-up".into(), requests: (0..80_000u64).map(key).enumerate().map(request).collect() };
    let config = EvalConfig { segments: 64, windows: 400, ..EvalConfig::new(Mapping::Range) };
    evaluate(&requests, &config).expect("a report")
}

fn pct(report: &Report, name: &str) -> f64 {
    report.scorers[name].pct_of_oracle
}

#[test]
fn shipped_model_sees_a_scan_coming() {
    let mut rng = fastrand::Rng::with_seed(1);
    // a scan over everything in 80 windows, under a third of random requests
    let report = report(|at| if at % 3 == 0 { rng.u64(0..4096) } else { at * 4096 / 16_000 % 4096 });
    assert!(pct(&report, "gru") > pct(&report, "ewma") + 5.0, "{report:?}");
    assert!(pct(&report, "gru") > 85.0, "{report:?}");
}

#[test]
fn shipped_model_keeps_up_with_a_still_hot_spot() {
    let mut rng = fastrand::Rng::with_seed(2);
    let report = report(|_| if rng.f32() < 0.8 { 1000 + rng.u64(0..200) } else { rng.u64(0..4096) });
    assert!(pct(&report, "gru") > pct(&report, "ewma") - 1.5, "{report:?}");
}
