//! What is learned from: features and true shares of one trace, window by window.

use tch::{Device, Kind, Tensor};

use super::TrainConfig;
use crate::error::{Error, Result};
use crate::eval::{Task, Windowed, mean};
use crate::features::{FEATURES, Features, LANES, Lanes};
use crate::model::Model;
use crate::scorer::Gru;

/// The fitted part of one mapped trace.
pub(super) struct Stream {
    segments: usize,
    /// Windows, segments, features.
    pub(super) features: Tensor,
    /// Windows, segments: share of the horizon's accesses; all zero where there are none.
    pub(super) shares: Tensor,
}

impl Stream {
    pub(super) fn new(windowed: &Windowed, config: &TrainConfig, device: Device) -> Result<Stream> {
        let segments = windowed.segments();
        let fitted = boundary(windowed.windows(), config.train_to).saturating_sub(config.horizon);
        if fitted == 0 {
            let what =
                format!("{} windows leave none to learn from with a horizon of {}", windowed.windows(), config.horizon);
            return Err(Error::Config { name: "windows, train_to, horizon", what });
        }
        let mut state = Features::new(segments);
        let mut features = vec![0.0f32; fitted * segments * FEATURES];
        let mut shares = vec![0.0f32; fitted * segments];
        let mut ahead = windowed.accesses(0, config.horizon);
        for window in 0..fitted {
            state.begin(windowed.window(window));
            while !state.step(usize::MAX) {}
            let rows = window * segments * FEATURES..(window + 1) * segments * FEATURES;
            write_rows(&state, &mut features[rows.clone()]);
            for row in features[rows].chunks_exact_mut(FEATURES) {
                config.features_off.iter().for_each(|feature| row[*feature] = 0.0);
            }
            slide(&mut ahead, windowed, window, config.horizon);
            let total: u64 = ahead.iter().sum();
            let row = &mut shares[window * segments..(window + 1) * segments];
            row.iter_mut().zip(&ahead).for_each(|(share, count)| *share = *count as f32 / total.max(1) as f32);
        }
        let shape = [fitted as i64, segments as i64, FEATURES as i64];
        Ok(Stream {
            segments,
            features: Tensor::f_from_slice(&features)?.f_reshape(shape)?.f_to_device(device)?,
            shares: Tensor::f_from_slice(&shares)?.f_reshape([shape[0], shape[1]])?.f_to_device(device)?,
        })
    }

    fn windows(&self) -> i64 {
        self.features.size()[0]
    }
}

/// Moves the horizon of `window - 1` (its windows are `window..window + horizon`) on by one.
fn slide(ahead: &mut [u64], windowed: &Windowed, window: usize, horizon: usize) {
    ahead.iter_mut().zip(windowed.window(window)).for_each(|(sum, counts)| *sum -= counts.accesses());
    ahead.iter_mut().zip(windowed.window(window + horizon)).for_each(|(sum, counts)| *sum += counts.accesses());
}

fn write_rows(state: &Features, rows: &mut [f32]) {
    let mut tile: [Lanes; FEATURES] = [Lanes::ZERO; FEATURES];
    for (at, rows) in rows.chunks_mut(LANES * FEATURES).enumerate() {
        state.tile(at * LANES, &mut tile);
        for (lane, row) in rows.chunks_exact_mut(FEATURES).enumerate() {
            row.iter_mut().zip(&tile).for_each(|(value, lanes)| *value = lanes[lane]);
        }
    }
}

pub(super) fn boundary(windows: usize, part: f64) -> usize {
    ((windows as f64 * part).round() as usize).min(windows)
}

/// Streams of one shape, side by side.
pub(super) struct Batch {
    /// Windows, streams, segments, features.
    pub(super) features: Tensor,
    /// Windows, streams, segments.
    pub(super) shares: Tensor,
}

/// Batches of up to `size` streams in a new random order; only streams of one shape share a batch.
pub(super) fn group(streams: &[Stream], size: usize, rng: &mut fastrand::Rng) -> Vec<Batch> {
    let mut order: Vec<&Stream> = streams.iter().collect();
    rng.shuffle(&mut order);
    order.sort_by_key(|stream| (stream.segments, stream.windows()));
    let mut batches: Vec<Batch> = order
        .chunk_by(|a, b| a.segments == b.segments && a.windows() == b.windows())
        .flat_map(|same| same.chunks(size))
        .map(|streams| {
            let stack =
                |pick: fn(&Stream) -> &Tensor| Tensor::stack(&streams.iter().map(|s| pick(s)).collect::<Vec<_>>(), 1);
            Batch { features: stack(|stream| &stream.features), shares: stack(|stream| &stream.shares) }
        })
        .collect();
    rng.shuffle(&mut batches);
    batches
}

impl Batch {
    /// Windows, streams, segments.
    pub(super) fn shape(&self) -> (i64, i64, i64) {
        let size = self.shares.size();
        (size[0], size[1], size[2])
    }

    /// Which of `len` windows from `first` on have a horizon with any access, as 0 or 1: windows, streams.
    pub(super) fn is_known(shares: &Tensor) -> Result<Tensor> {
        Ok(shares.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)?.f_gt(0.5)?.f_to_kind(Kind::Float)?)
    }
}

/// The part of a trace that the epoch is chosen on, with the oracle's share.
pub(super) struct Validation<'a> {
    task: Task<'a>,
    oracle: f64,
}

impl<'a> Validation<'a> {
    pub(super) fn new(windowed: &'a Windowed, config: &TrainConfig) -> Result<Validation<'a>> {
        let first = boundary(windowed.windows(), config.train_to).saturating_sub(1);
        let end = boundary(windowed.windows(), config.validate_to).saturating_sub(config.horizon);
        if first >= end {
            let what = format!("{} windows leave none to validate with", windowed.windows());
            return Err(Error::Config { name: "windows, train_to, validate_to, horizon", what });
        }
        let task = Task { windowed, horizon: config.horizon, first, end, per_byte: false };
        let oracle = mean(&task.oracle_shares());
        Ok(Validation { task, oracle })
    }

    pub(super) fn pct_of_oracle(&self, model: &Model) -> f64 {
        let mut scorer = Gru::new(model, self.task.windowed.segments());
        100.0 * mean(&self.task.shares(&mut scorer)) / self.oracle.max(f64::MIN_POSITIVE)
    }
}
