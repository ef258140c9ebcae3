//! The predictor's pass, and the same step by libtorch (feature `torch`): interleaved in one run, on the same inputs.
//!
//! `features+step` is all that the GRU does for a window: features, cell, softmax, scale; `auto` is what a shard runs, with
//! all rules and the guard. `longest slice` is one such pass in slices as a shard takes them, and reports the longest of
//! them, the taking over of the counts included: the time between two chances to serve a request.

use std::time::{Duration, Instant};

use antumbra_predictor::SegmentCounts;
use antumbra_predictor::features::{FEATURES, Features, LANES, Lanes};
use antumbra_predictor::gru::Cell;
use antumbra_predictor::model::Model;
use antumbra_predictor::scorer::{Gru, Scorer, ScorerKind, build};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SEGMENTS: [usize; 3] = [256, 1_024, 16_384];
/// Segments that a slice works on, as in the engine.
const SLICE: usize = 256;

/// Windows of a scan over a hot set, some of which the bench goes round.
fn windows(segments: usize) -> Vec<Vec<SegmentCounts>> {
    let mut random = fastrand::Rng::with_seed(1);
    let window = |at: usize| {
        let mut counts = vec![SegmentCounts::default(); segments];
        for request in 0..2 * segments {
            let scanned = (at * 3 + request / 100) % segments;
            let index = if random.bool() { scanned } else { random.usize(0..segments) };
            counts[index].add(&SegmentCounts { reads: 1, writes: 0, bytes: 4_096, sequential: 0 });
        }
        counts
    };
    (0..16).map(window).collect()
}

/// Features of every segment, tile by tile.
fn tiles(windows: &[Vec<SegmentCounts>], segments: usize) -> Vec<[Lanes; FEATURES]> {
    let mut features = Features::new(segments);
    for counts in windows {
        features.begin(counts);
        while !features.step(usize::MAX) {}
    }
    let tile = |first: usize| {
        let mut tile = [Lanes::ZERO; FEATURES];
        features.tile(first, &mut tile);
        tile
    };
    (0..segments).step_by(LANES).map(tile).collect()
}

fn passes(c: &mut Criterion) {
    let Ok(model) = Model::shipped() else {
        return;
    };
    for segments in SEGMENTS {
        let windows = windows(segments);
        let mut group = c.benchmark_group(format!("predictor, {segments} segments"));
        group.throughput(Throughput::Elements(segments as u64)).measurement_time(Duration::from_secs(3));
        let mut at = 0;
        let mut next = || {
            at = (at + 1) % windows.len();
            &windows[at]
        };
        let mut gru = Gru::new(&model, segments);
        group.bench_function("features+step", |b| b.iter(|| gru.observe(next())));
        let mut features = Features::new(segments);
        group.bench_function("features", |b| {
            b.iter(|| {
                features.begin(next());
                while !features.step(usize::MAX) {}
            });
        });
        let tiles = tiles(&windows, segments);
        let (mut cell, mut state) = (Cell::new(&model), vec![Lanes::ZERO; model.hidden() * tiles.len()]);
        group.bench_function("step", |b| {
            b.iter(|| {
                for (tile, state) in tiles.iter().zip(state.chunks_exact_mut(model.hidden())) {
                    std::hint::black_box(cell.step(tile, state));
                }
            });
        });
        group.bench_function("longest slice", |b| b.iter_custom(|rounds| longest_slices(&mut gru, &windows, rounds)));
        torch::step(&mut group, &model, &tiles, segments);
        if let Ok(mut auto) = build(ScorerKind::Auto, Some(&model), segments) {
            group.bench_function(BenchmarkId::new("auto", "all scorers and the guard"), |b| {
                b.iter(|| auto.observe(next()));
            });
            group.bench_function("longest slice of auto", |b| {
                b.iter_custom(|rounds| longest_slices(auto.as_mut(), &windows, rounds));
            });
        }
        group.finish();
    }
}

/// Sum over passes of the longest slice of each.
fn longest_slices(scorer: &mut dyn Scorer, windows: &[Vec<SegmentCounts>], rounds: u64) -> Duration {
    let mut sum = Duration::ZERO;
    for round in 0..rounds {
        let begin = Instant::now();
        scorer.begin(&windows[round as usize % windows.len()]);
        let (mut longest, mut complete) = (begin.elapsed(), false);
        while !complete {
            let begin = Instant::now();
            complete = scorer.step(SLICE);
            longest = longest.max(begin.elapsed());
        }
        sum += longest;
    }
    sum
}

#[cfg(feature = "torch")]
mod torch {
    use super::{FEATURES, LANES, Lanes, Model};
    use antumbra_predictor::train::Net;
    use criterion::{BenchmarkGroup, measurement::WallTime};
    use tch::nn::VarStore;
    use tch::{Device, Tensor};

    /// One step by libtorch on one thread, features given.
    pub fn step(group: &mut BenchmarkGroup<'_, WallTime>, model: &Model, tiles: &[[Lanes; FEATURES]], segments: usize) {
        tch::set_num_threads(1);
        let vars = VarStore::new(Device::Cpu);
        let Ok(net) = Net::new(model, &vars) else {
            return;
        };
        let row = |segment: usize| tiles[segment / LANES].iter().map(move |lanes| lanes[segment % LANES]);
        let rows: Vec<f32> = (0..segments).flat_map(row).collect();
        let input = Tensor::from_slice(&rows).view([1, segments as i64, FEATURES as i64]);
        let Ok(mut state) = net.zero_state(segments as i64) else {
            return;
        };
        group.bench_function("step by libtorch", |b| {
            b.iter(|| {
                if let Ok((logits, next)) = tch::no_grad(|| net.forward(&input, &state)) {
                    state = next;
                    drop(std::hint::black_box(logits));
                }
            });
        });
    }
}

#[cfg(not(feature = "torch"))]
mod torch {
    use super::{FEATURES, Lanes, Model};
    use criterion::{BenchmarkGroup, measurement::WallTime};

    /// Says that there is nothing to compare with.
    pub fn step(_: &mut BenchmarkGroup<'_, WallTime>, _: &Model, _: &[[Lanes; FEATURES]], _: usize) {
        eprintln!("SKIPPED: step by libtorch: build with `--features torch`");
    }
}

criterion_group!(predictor, passes);
criterion_main!(predictor);
