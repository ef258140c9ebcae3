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
//! so that LLVM turns the inner loops into vector instructions without a shuffle. [`LANES`] is one AVX-512 register, or
//! two of AVX2. The three gates of [`PAIR`] units are summed up together: that many independent chains of fused
//! multiply-adds hide each other's latency, and each value of a segment is loaded once for all. The gates' curves come
//! after all sums, unit by unit, with two divisions each ([`math::blend`]). The same source is compiled for each level
//! of vector units ([`crate::simd`]), and the best one that the processor has is chosen when it runs.
//!
//! It agrees with libtorch to 1e-5 (`tests/it/torch_agreement.rs`, feature `torch`).

pub mod math;

use crate::features::{FEATURES, LANES, Lanes};
use crate::model::Model;
use crate::simd::{self, for_each_level, multiply_add};
use math::{blend, sigmoid};

/// Units whose gates are summed up together.
const PAIR: usize = 2;
/// Weights of r, z, n of the units of a pair: what one value of a segment is multiplied by.
type Column = [[f32; 3]; PAIR];

/// The cell, with its weights in the order in which they are used; the last pair may have a unit of zeros.
#[derive(Clone, Debug)]
pub struct Cell {
    hidden: usize,
    /// For each pair and feature.
    input: Vec<Column>,
    /// For each pair and unit.
    recurrent: Vec<Column>,
    /// For each unit: biases of r and z (both parts added), input bias of n, recurrent bias of n.
    bias: Vec<[f32; 4]>,
    head_hidden: Vec<f32>,
    head_input: [f32; FEATURES],
    head_bias: f32,
    /// For each unit the tile's sums before the curves: r, z, input part of n, recurrent part of n.
    sums: Vec<[Lanes; 4]>,
}

impl Cell {
    /// A cell with the weights of `model`.
    #[must_use]
    pub fn new(model: &Model) -> Cell {
        let hidden = model.hidden();
        let weights = model.weights();
        let gate = |values: &[f32], columns: usize, unit: usize, column: usize| -> [f32; 3] {
            let value = |gate: usize| values[(gate * hidden + unit) * columns + column];
            if unit < hidden { [0, 1, 2].map(value) } else { [0.0; 3] }
        };
        let pairs = hidden.div_ceil(PAIR);
        let of_pairs = |values: &[f32], columns: usize| -> Vec<Column> {
            let column =
                |at: usize| std::array::from_fn(|unit| gate(values, columns, at / columns * PAIR + unit, at % columns));
            (0..pairs * columns).map(column).collect()
        };
        let bias = |unit: usize| {
            let [ir, iz, inn] = gate(&weights.bias_ih, 1, unit, 0);
            let [hr, hz, hn] = gate(&weights.bias_hh, 1, unit, 0);
            [ir + hr, iz + hz, inn, hn]
        };
        let (head_hidden, head_rest) = weights.head_weight.split_at(hidden);
        let mut head_input = [0.0; FEATURES];
        head_input.copy_from_slice(head_rest);
        Cell {
            hidden,
            input: of_pairs(&weights.weight_ih, FEATURES),
            recurrent: of_pairs(&weights.weight_hh, hidden),
            bias: (0..pairs * PAIR).map(bias).collect(),
            head_hidden: head_hidden.to_vec(),
            head_input,
            head_bias: weights.head_bias,
            sums: vec![[Lanes::ZERO; 4]; pairs * PAIR],
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
        step_at(simd::level(), self, x, state)
    }
}

for_each_level! {
    /// The step on given vector units, which the processor must have.
    fn step_at(level, cell: &mut Cell, x: &[Lanes; FEATURES], state: &mut [Lanes]) -> Lanes = step_on
}

#[inline(always)]
fn step_on<const FUSED: bool>(cell: &mut Cell, x: &[Lanes; FEATURES], state: &mut [Lanes]) -> Lanes {
    let inputs = cell.input.chunks_exact(FEATURES);
    let recurrents = cell.recurrent.chunks_exact(cell.hidden);
    let pairs = cell.sums.chunks_exact_mut(PAIR).zip(cell.bias.chunks_exact(PAIR));
    for ((input, recurrent), (sums, bias)) in inputs.zip(recurrents).zip(pairs) {
        let start = |part: usize| -> [Lanes; PAIR] { [Lanes::of(bias[0][part]), Lanes::of(bias[1][part])] };
        let (mut r, mut z, mut input_n, mut recurrent_n) = (start(0), start(1), start(2), start(3));
        accumulate::<FUSED>(&mut r, &mut z, &mut input_n, input, x);
        accumulate::<FUSED>(&mut r, &mut z, &mut recurrent_n, recurrent, state);
        for (unit, sums) in sums.iter_mut().enumerate() {
            *sums = [r[unit], z[unit], input_n[unit], recurrent_n[unit]];
        }
    }
    let mut logit = Lanes::of(cell.head_bias);
    for (head, row) in cell.head_input.iter().zip(x) {
        for lane in 0..LANES {
            logit[lane] = multiply_add::<FUSED>(*head, row[lane], logit[lane]);
        }
    }
    for ((state, head), [r, z, input_n, recurrent_n]) in state.iter_mut().zip(&cell.head_hidden).zip(&cell.sums) {
        for lane in 0..LANES {
            let reset = sigmoid::<FUSED>(r[lane]);
            let n = multiply_add::<FUSED>(reset, recurrent_n[lane], input_n[lane]);
            state[lane] = blend::<FUSED>(n, z[lane], state[lane]);
            logit[lane] = multiply_add::<FUSED>(*head, state[lane], logit[lane]);
        }
    }
    logit
}

/// Adds each row times its weights to the sums of a pair of units.
#[inline(always)]
fn accumulate<const FUSED: bool>(
    r: &mut [Lanes; PAIR],
    z: &mut [Lanes; PAIR],
    n: &mut [Lanes; PAIR],
    columns: &[Column],
    rows: &[Lanes],
) {
    for (column, row) in columns.iter().zip(rows) {
        for unit in 0..PAIR {
            for lane in 0..LANES {
                r[unit][lane] = multiply_add::<FUSED>(column[unit][0], row[lane], r[unit][lane]);
                z[unit][lane] = multiply_add::<FUSED>(column[unit][1], row[lane], z[unit][lane]);
                n[unit][lane] = multiply_add::<FUSED>(column[unit][2], row[lane], n[unit][lane]);
            }
        }
    }
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
            let mut states = vec![vec![Lanes::ZERO; hidden]; levels.len()];
            for _ in 0..50 {
                let x: [Lanes; FEATURES] =
                    std::array::from_fn(|_| Lanes(std::array::from_fn(|_| rng.f32() * 4.0 - 1.0)));
                let mut logits =
                    levels.iter().zip(&mut states).map(|(level, state)| step_at(*level, &mut cell, &x, state));
                let first = logits.next().unwrap();
                assert!(logits.all(|other| first.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-5)));
            }
        }
    }

    #[test]
    fn cell_agrees_with_the_formulas() {
        for (seed, hidden) in [(1, 1), (2, 7), (3, 16), (4, 24)] {
            let model = Model::random(hidden, 8, seed);
            let mut cell = Cell::new(&model);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut state = vec![Lanes::ZERO; hidden];
            let mut wanted = vec![vec![0.0f32; hidden]; LANES];
            for _ in 0..50 {
                let x: [Lanes; FEATURES] =
                    std::array::from_fn(|_| Lanes(std::array::from_fn(|_| rng.f32() * 4.0 - 1.0)));
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
