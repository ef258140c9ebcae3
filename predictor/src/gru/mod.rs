//! The GRU cell that runs on the shard's core: one tile of [`LANES`] segments at a time, f32, no allocation.
//!
//! ```text
//! r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
//! z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
//! n  = tanh   (W_in x + b_in + r * (W_hn h + b_hn))        libtorch's convention: b_hn inside the product with r
//! h' = (1 - z) * n + z * h
//! logit = w_h . h' + w_x . x + b                           the head also sees the features themselves
//! ```
//!
//! Lanes are segments: each weight is read once and multiplied into [`LANES`] segments, whose values lie side by side,
//! so that LLVM turns the inner loops into vector instructions without a shuffle. The weights of the three gates are
//! interleaved for the same reason. [`LANES`] is one AVX-512 register, or two of AVX2: six independent chains of fused
//! multiply-adds hide each other's latency. The same source is compiled for each level of vector units
//! ([`crate::simd`]), and the best one that the processor has is chosen when it runs.
//!
//! It agrees with libtorch to 1e-5 (`tests/it/torch_agreement.rs`, feature `torch`).

pub mod math;

use crate::features::{FEATURES, LANES, Lanes};
use crate::model::Model;
use crate::simd::{self, BASELINE_FUSES, Level};
use math::{sigmoid, tanh};

/// The cell, with its weights in the order in which they are used.
#[derive(Clone, Debug)]
pub struct Cell {
    hidden: usize,
    /// For each unit and feature: weights of r, z, n.
    input: Vec<[f32; 3]>,
    /// For each unit and unit: weights of r, z, n.
    recurrent: Vec<[f32; 3]>,
    /// For each unit: biases of r and z (both parts added), input bias of n, recurrent bias of n.
    bias: Vec<[f32; 4]>,
    head_hidden: Vec<f32>,
    head_input: [f32; FEATURES],
    head_bias: f32,
    /// The tile's new hidden state while the old one is still read.
    next: Vec<Lanes>,
}

impl Cell {
    /// A cell with the weights of `model`.
    #[must_use]
    pub fn new(model: &Model) -> Cell {
        let hidden = model.hidden();
        let weights = model.weights();
        let gate = |values: &[f32], columns: usize, unit: usize, column: usize| -> [f32; 3] {
            [0, 1, 2].map(|gate| values[(gate * hidden + unit) * columns + column])
        };
        let mut input = Vec::with_capacity(hidden * FEATURES);
        let mut recurrent = Vec::with_capacity(hidden * hidden);
        let mut bias = Vec::with_capacity(hidden);
        for unit in 0..hidden {
            input.extend((0..FEATURES).map(|column| gate(&weights.weight_ih, FEATURES, unit, column)));
            recurrent.extend((0..hidden).map(|column| gate(&weights.weight_hh, hidden, unit, column)));
            let [ir, iz, inn] = gate(&weights.bias_ih, 1, unit, 0);
            let [hr, hz, hn] = gate(&weights.bias_hh, 1, unit, 0);
            bias.push([ir + hr, iz + hz, inn, hn]);
        }
        let (head_hidden, head_rest) = weights.head_weight.split_at(hidden);
        let mut head_input = [0.0; FEATURES];
        head_input.copy_from_slice(head_rest);
        Cell {
            hidden,
            input,
            recurrent,
            bias,
            head_hidden: head_hidden.to_vec(),
            head_input,
            head_bias: weights.head_bias,
            next: vec![[0.0; LANES]; hidden],
        }
    }

    /// Hidden units.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Advances `LANES` segments by one window: `state` (one row a hidden unit) is replaced, the logits are returned.
    ///
    /// # Panics
    /// When `state` has not one row a hidden unit.
    pub fn step(&mut self, x: &[Lanes; FEATURES], state: &mut [Lanes]) -> Lanes {
        assert_eq!(state.len(), self.hidden, "state of another hidden size");
        self.step_at(simd::level(), x, state)
    }

    /// The step on given vector units, which the processor must have.
    #[inline]
    fn step_at(&mut self, level: Level, x: &[Lanes; FEATURES], state: &mut [Lanes]) -> Lanes {
        debug_assert!(level <= simd::level());
        match level {
            Level::Baseline => self.step_on::<BASELINE_FUSES>(x, state),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                // SAFETY: callers pass a level that the processor was found to have.
                #[allow(unsafe_code)]
                unsafe {
                    self.step_avx2(x, state)
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                // SAFETY: callers pass a level that the processor was found to have.
                #[allow(unsafe_code)]
                unsafe {
                    self.step_avx512(x, state)
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn step_avx2(&mut self, x: &[Lanes; FEATURES], state: &mut [Lanes]) -> Lanes {
        self.step_on::<true>(x, state)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    fn step_avx512(&mut self, x: &[Lanes; FEATURES], state: &mut [Lanes]) -> Lanes {
        self.step_on::<true>(x, state)
    }

    /// The step; inlined into one function a set of vector instructions.
    #[inline(always)]
    fn step_on<const FUSED: bool>(&mut self, x: &[Lanes; FEATURES], state: &mut [Lanes]) -> Lanes {
        let mut logit = [self.head_bias; LANES];
        for (unit, next) in self.next.iter_mut().enumerate() {
            let [bias_r, bias_z, bias_in, bias_hn] = self.bias[unit];
            let (mut r, mut z) = ([bias_r; LANES], [bias_z; LANES]);
            let (mut input_n, mut recurrent_n) = ([bias_in; LANES], [bias_hn; LANES]);
            let weights = &self.input[unit * FEATURES..(unit + 1) * FEATURES];
            accumulate::<FUSED>(&mut r, &mut z, &mut input_n, weights, x);
            let weights = &self.recurrent[unit * self.hidden..(unit + 1) * self.hidden];
            accumulate::<FUSED>(&mut r, &mut z, &mut recurrent_n, weights, state);
            let head = self.head_hidden[unit];
            let old = &state[unit];
            for lane in 0..LANES {
                let n = tanh(input_n[lane] + sigmoid(r[lane]) * recurrent_n[lane]);
                let keep = sigmoid(z[lane]);
                next[lane] = n + keep * (old[lane] - n);
                logit[lane] += head * next[lane];
            }
        }
        state.copy_from_slice(&self.next);
        for (head, row) in self.head_input.iter().zip(x) {
            for lane in 0..LANES {
                logit[lane] += head * row[lane];
            }
        }
        logit
    }
}

/// Adds each row times its three weights to the three sums.
#[inline(always)]
fn accumulate<const FUSED: bool>(r: &mut Lanes, z: &mut Lanes, n: &mut Lanes, weights: &[[f32; 3]], rows: &[Lanes]) {
    for (weight, row) in weights.iter().zip(rows) {
        for lane in 0..LANES {
            r[lane] = multiply_add::<FUSED>(weight[0], row[lane], r[lane]);
            z[lane] = multiply_add::<FUSED>(weight[1], row[lane], z[lane]);
            n[lane] = multiply_add::<FUSED>(weight[2], row[lane], n[lane]);
        }
    }
}

/// `a * b + c`; fused only where that is one instruction, elsewhere it would be a library call.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The formulas of the module doc in f64, written as plainly as possible.
    fn reference(model: &Model, x: &[f32], state: &mut [f32]) -> f64 {
        let weights = model.weights();
        let hidden = model.hidden();
        let dot = |matrix: &[f32], row: usize, vector: &[f32]| -> f64 {
            let columns = vector.len();
            let row = &matrix[row * columns..(row + 1) * columns];
            row.iter().zip(vector).map(|(w, v)| f64::from(*w) * f64::from(*v)).sum()
        };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let old = state.to_vec();
        for unit in 0..hidden {
            let input = |gate: usize| {
                let row = gate * hidden + unit;
                dot(&weights.weight_ih, row, x) + f64::from(weights.bias_ih[row])
            };
            let recurrent = |gate: usize| {
                let row = gate * hidden + unit;
                dot(&weights.weight_hh, row, &old) + f64::from(weights.bias_hh[row])
            };
            let r = sigmoid(input(0) + recurrent(0));
            let z = sigmoid(input(1) + recurrent(1));
            let n = (input(2) + r * recurrent(2)).tanh();
            state[unit] = ((1.0 - z) * n + z * f64::from(old[unit])) as f32;
        }
        let both: Vec<f32> = state.iter().chain(x).copied().collect();
        dot(&weights.head_weight, 0, &both) + f64::from(weights.head_bias)
    }

    #[test]
    fn cells_of_all_vector_units_agree() {
        let levels = simd::levels();
        println!("vector units: {levels:?}");
        for (seed, hidden) in [(5, 16), (6, 3), (7, 24)] {
            let model = Model::random(hidden, 8, seed);
            let mut cell = Cell::new(&model);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut states = vec![vec![[0.0; LANES]; hidden]; levels.len()];
            for _ in 0..50 {
                let x: [Lanes; FEATURES] = std::array::from_fn(|_| std::array::from_fn(|_| rng.f32() * 4.0 - 1.0));
                let mut logits = levels.iter().zip(&mut states).map(|(level, state)| cell.step_at(*level, &x, state));
                let first = logits.next().unwrap();
                assert!(logits.all(|other| first.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-5)));
            }
        }
    }

    #[test]
    fn cell_agrees_with_the_formulas() {
        for (seed, hidden) in [(1, 1), (2, 7), (3, 16), (4, 24)] {
            let model = Model::random(hidden, 8, seed);
            let mut cell = Cell::new(&model);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut state = vec![[0.0; LANES]; hidden];
            let mut wanted = vec![vec![0.0f32; hidden]; LANES];
            for _ in 0..50 {
                let x: [Lanes; FEATURES] = std::array::from_fn(|_| std::array::from_fn(|_| rng.f32() * 4.0 - 1.0));
                let logits = cell.step(&x, &mut state);
                for lane in 0..LANES {
                    let row: Vec<f32> = x.iter().map(|lanes| lanes[lane]).collect();
                    let logit = reference(&model, &row, &mut wanted[lane]);
                    assert!((f64::from(logits[lane]) - logit).abs() < 1e-5, "{} {logit}", logits[lane]);
                    for unit in 0..hidden {
                        assert!((state[unit][lane] - wanted[lane][unit]).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
