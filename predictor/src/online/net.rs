//! Forward and backward pass of the GRU in plain Rust: what the background learner trains with, without libtorch.
//!
//! Rows are segments. A chunk is a run of windows: hidden states are warmed up over the first ones, gradients flow
//! through the rest (truncated back-propagation through time). All weights lie in one vector, each matrix with its
//! output dimension innermost, so that every inner loop is `y += a * x` over neighbouring numbers.
//!
//! The loss is the one of `train` (listwise, count and order terms, over the shares of the horizon's accesses); its
//! gradients are checked against finite differences, and against libtorch's where that is built in.

use crate::error::Result;
use crate::features::{FEATURES, LANES, Lanes};
use crate::gru::math::{exp, ln, sigmoid, tanh};
use crate::model::{Model, Weights};
use crate::simd::{self, for_each_level, multiply_add};

/// Where each weight lies in the one vector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    hidden: usize,
}

impl Layout {
    fn gates(self) -> usize {
        3 * self.hidden
    }
    /// `FEATURES` rows of the three gates.
    fn input(self) -> usize {
        0
    }
    /// `hidden` rows of the three gates.
    fn recurrent(self) -> usize {
        FEATURES * self.gates()
    }
    fn bias_input(self) -> usize {
        self.recurrent() + self.hidden * self.gates()
    }
    fn bias_recurrent(self) -> usize {
        self.bias_input() + self.gates()
    }
    /// `hidden`, then `FEATURES`.
    fn head(self) -> usize {
        self.bias_recurrent() + self.gates()
    }
    fn head_bias(self) -> usize {
        self.head() + self.hidden + FEATURES
    }
    pub(super) fn len(self) -> usize {
        self.head_bias() + 1
    }
}

/// One chunk to learn from: features and shares of some segments over some windows.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunk {
    pub rows: usize,
    pub windows: usize,
    /// Windows at the start that only warm the hidden state up.
    pub warm_up: usize,
    /// By window, row, feature.
    pub features: Vec<f32>,
    /// By window after the warm-up, row: share of the horizon's accesses. All zero where there are none.
    pub shares: Vec<f32>,
}

/// What the three terms of the loss count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    /// Squared distance of the roots of expected and true shares.
    pub count: f32,
    /// Pairs of segments in the wrong order, weighted by the difference of their shares.
    pub order: f32,
}

/// Activations of one window, kept for the way back; each by row, then unit.
#[derive(Clone, Debug, Default)]
struct Tape {
    before: Vec<f32>,
    reset: Vec<f32>,
    update: Vec<f32>,
    candidate: Vec<f32>,
    recurrent: Vec<f32>,
}

/// Weights, their gradient, and room for one chunk's activations.
#[derive(Clone, Debug)]
pub(super) struct Net {
    layout: Layout,
    horizon: usize,
    pub weights: Vec<f32>,
    pub gradient: Vec<f32>,
    /// `hidden` columns of the recurrent weights, for the way back: by gate, then unit.
    recurrent_back: Vec<f32>,
    tapes: Vec<Tape>,
    state: Vec<f32>,
    logits: Vec<f32>,
    slopes: Vec<f32>,
    carried: Vec<f32>,
    scratch: Vec<f32>,
    linear: Vec<f32>,
}

/// Offsets at which segments are paired in the order term, each window anew.
const PAIRINGS: usize = 16;

impl Net {
    pub(super) fn new(model: &Model) -> Net {
        let layout = Layout { hidden: model.hidden() };
        let mut net = Net {
            layout,
            horizon: model.horizon(),
            weights: vec![0.0; layout.len()],
            gradient: vec![0.0; layout.len()],
            recurrent_back: vec![0.0; layout.gates() * layout.hidden],
            tapes: Vec::new(),
            state: Vec::new(),
            logits: Vec::new(),
            slopes: Vec::new(),
            carried: Vec::new(),
            scratch: vec![0.0; 4 * layout.gates()],
            linear: Vec::new(),
        };
        net.set(model);
        net
    }

    /// Takes over the weights of `model`, of the same hidden size.
    pub(super) fn set(&mut self, model: &Model) {
        let (layout, weights) = (self.layout, model.weights());
        let gates = layout.gates();
        for gate in 0..gates {
            for column in 0..FEATURES {
                self.weights[layout.input() + column * gates + gate] = weights.weight_ih[gate * FEATURES + column];
            }
            for column in 0..layout.hidden {
                self.weights[layout.recurrent() + column * gates + gate] =
                    weights.weight_hh[gate * layout.hidden + column];
            }
        }
        self.weights[layout.bias_input()..][..gates].copy_from_slice(&weights.bias_ih);
        self.weights[layout.bias_recurrent()..][..gates].copy_from_slice(&weights.bias_hh);
        self.weights[layout.head()..][..layout.hidden + FEATURES].copy_from_slice(&weights.head_weight);
        self.weights[layout.head_bias()] = weights.head_bias;
        self.linear.clone_from(&weights.linear);
        self.horizon = model.horizon();
        self.refresh();
    }

    /// `weights` (in this net's layout) as a model.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when a number is not finite or absurdly large: training has diverged.
    pub(super) fn model_of(&self, weights: &[f32]) -> Result<Model> {
        let layout = self.layout;
        let gates = layout.gates();
        let transposed = |from: usize, columns: usize| -> Vec<f32> {
            (0..gates * columns).map(|at| weights[from + at % columns * gates + at / columns]).collect()
        };
        let slice = |from: usize, len: usize| weights[from..from + len].to_vec();
        Model::new(
            layout.hidden,
            self.horizon,
            Weights {
                weight_ih: transposed(layout.input(), FEATURES),
                weight_hh: transposed(layout.recurrent(), layout.hidden),
                bias_ih: slice(layout.bias_input(), gates),
                bias_hh: slice(layout.bias_recurrent(), gates),
                head_weight: slice(layout.head(), layout.hidden + FEATURES),
                head_bias: weights[layout.head_bias()],
                linear: self.linear.clone(),
            },
        )
    }

    /// To be called after `weights` have changed.
    pub(super) fn refresh(&mut self) {
        let (gates, hidden) = (self.layout.gates(), self.layout.hidden);
        let recurrent = &self.weights[self.layout.recurrent()..];
        for (gate, row) in self.recurrent_back.chunks_exact_mut(hidden).enumerate() {
            row.iter_mut().enumerate().for_each(|(unit, weight)| *weight = recurrent[unit * gates + gate]);
        }
    }

    /// Loss of `chunk`, mean over its windows with accesses; `gradient` is replaced by its gradient.
    ///
    /// Cost: about `rows * windows * 9 * hidden * (hidden + FEATURES)` multiplications; allocates when a chunk is larger
    /// than all before.
    pub(super) fn learn(&mut self, chunk: &Chunk, loss: LossWeights, rng: &mut fastrand::Rng) -> f32 {
        // what AVX-512 would add is lost in the background; AVX2 keeps the core's frequency
        learn_at(simd::level().narrow(), self, chunk, loss, rng)
    }

    #[inline(always)]
    fn learn_on<const FUSED: bool>(&mut self, chunk: &Chunk, loss: LossWeights, rng: &mut fastrand::Rng) -> f32 {
        let hidden = self.layout.hidden;
        self.gradient.fill(0.0);
        self.state.clear();
        self.state.resize(chunk.rows * hidden, 0.0);
        let learned = chunk.windows - chunk.warm_up;
        if self.tapes.len() < learned {
            self.tapes.resize_with(learned, Tape::default);
        }
        self.logits.clear();
        self.logits.resize(learned * chunk.rows, 0.0);
        self.slopes.clear();
        self.slopes.resize(learned * chunk.rows, 0.0);
        for window in 0..chunk.windows {
            self.forward::<FUSED>(chunk, window);
        }
        let known = chunk.shares.chunks_exact(chunk.rows).filter(|shares| shares.iter().any(|share| *share > 0.0));
        let scale = 1.0 / known.count().max(1) as f32;
        let mut sum = 0.0;
        for at in 0..learned {
            let rows = at * chunk.rows..(at + 1) * chunk.rows;
            let shares = &chunk.shares[rows.clone()];
            if shares.iter().any(|share| *share > 0.0) {
                let slopes = &mut self.slopes[rows.clone()];
                sum += loss_of::<FUSED>(&self.logits[rows], shares, slopes, scale, loss, rng);
            }
        }
        self.carried.clear();
        self.carried.resize(chunk.rows * hidden, 0.0);
        for window in (chunk.warm_up..chunk.windows).rev() {
            self.backward::<FUSED>(chunk, window);
        }
        sum * scale
    }

    /// One window of all rows: the state moves on; after the warm-up logits and tape are kept.
    #[inline(always)]
    fn forward<const FUSED: bool>(&mut self, chunk: &Chunk, window: usize) {
        let Layout { hidden } = self.layout;
        let gates = self.layout.gates();
        // windows of the warm-up share the first tape, which is written over by the first learned one
        let at = window.saturating_sub(chunk.warm_up);
        let is_learned = window >= chunk.warm_up;
        let (from_input, rest) = self.scratch.split_at_mut(gates);
        let from_state = &mut rest[..gates];
        let layout = self.layout;
        let input = &self.weights[layout.input()..layout.recurrent()];
        let recurrent = &self.weights[layout.recurrent()..layout.bias_input()];
        let bias_input = &self.weights[layout.bias_input()..][..gates];
        let bias_recurrent = &self.weights[layout.bias_recurrent()..][..gates];
        let (head_state, head_rest) = self.weights[layout.head()..].split_at(hidden);
        let tape = &mut self.tapes[at];
        tape.before.clone_from(&self.state);
        for column in [&mut tape.reset, &mut tape.update, &mut tape.candidate, &mut tape.recurrent] {
            column.resize(chunk.rows * hidden, 0.0);
        }
        for row in 0..chunk.rows {
            let x = &chunk.features[(window * chunk.rows + row) * FEATURES..][..FEATURES];
            let state = &mut self.state[row * hidden..(row + 1) * hidden];
            from_input.copy_from_slice(bias_input);
            from_state.copy_from_slice(bias_recurrent);
            multiply::<FUSED>(from_input, input, x);
            multiply::<FUSED>(from_state, recurrent, state);
            for first in (0..hidden).step_by(LANES) {
                let len = LANES.min(hidden - first);
                let gate = |sums: &[f32], gate: usize| lanes(&sums[gate * hidden + first..], len);
                let (mut reset, update_in) = (gate(from_input, 0), gate(from_input, 1));
                let (mut update, mut candidate) = (gate(from_state, 1), gate(from_input, 2));
                let (reset_state, recurrent) = (gate(from_state, 0), gate(from_state, 2));
                let mut old = lanes(&state[first..], len);
                for lane in 0..LANES {
                    reset[lane] = sigmoid::<FUSED>(reset[lane] + reset_state[lane]);
                    update[lane] = sigmoid::<FUSED>(update[lane] + update_in[lane]);
                    candidate[lane] = tanh::<FUSED>(candidate[lane] + reset[lane] * recurrent[lane]);
                    old[lane] = candidate[lane] + update[lane] * (old[lane] - candidate[lane]);
                }
                let place = row * hidden + first..row * hidden + first + len;
                tape.reset[place.clone()].copy_from_slice(&reset[..len]);
                tape.update[place.clone()].copy_from_slice(&update[..len]);
                tape.candidate[place.clone()].copy_from_slice(&candidate[..len]);
                tape.recurrent[place].copy_from_slice(&recurrent[..len]);
                state[first..first + len].copy_from_slice(&old[..len]);
            }
            if is_learned {
                let (head_input, bias) = head_rest.split_at(FEATURES);
                self.logits[at * chunk.rows + row] = bias[0] + dot(head_state, state) + dot(head_input, x);
            }
        }
    }

    /// One window of all rows on the way back: `carried` is the loss's slope by the state after the window, then by the
    /// one before it. The state itself is the tape's of the next window, or the last one.
    #[inline(always)]
    fn backward<const FUSED: bool>(&mut self, chunk: &Chunk, window: usize) {
        let (layout, hidden) = (self.layout, self.layout.hidden);
        let gates = layout.gates();
        let at = window - chunk.warm_up;
        let (to_input, rest) = self.scratch.split_at_mut(gates);
        let to_state = &mut rest[..gates];
        let after = self.tapes.get(at + 1).filter(|_| window + 1 < chunk.windows);
        let after = after.map_or(&self.state, |tape| &tape.before);
        let tape = &self.tapes[at];
        let (cells, head) = self.gradient.split_at_mut(layout.head());
        for row in 0..chunk.rows {
            let x = &chunk.features[(window * chunk.rows + row) * FEATURES..][..FEATURES];
            let place = row * hidden..(row + 1) * hidden;
            let carried = &mut self.carried[place.clone()];
            let slope = self.slopes[at * chunk.rows + row];
            add_scaled::<FUSED>(carried, &self.weights[layout.head()..][..hidden], slope);
            add_scaled::<FUSED>(&mut head[..hidden], &after[place.clone()], slope);
            add_scaled::<FUSED>(&mut head[hidden..hidden + FEATURES], x, slope);
            head[hidden + FEATURES] += slope;
            let before = &tape.before[place.clone()];
            for unit in 0..hidden {
                let kept = row * hidden + unit;
                let (reset, update, candidate) = (tape.reset[kept], tape.update[kept], tape.candidate[kept]);
                let by_candidate = carried[unit] * (1.0 - update) * (1.0 - candidate * candidate);
                let by_update = carried[unit] * (before[unit] - candidate) * update * (1.0 - update);
                let by_reset = by_candidate * tape.recurrent[kept] * reset * (1.0 - reset);
                to_input[unit] = by_reset;
                to_state[unit] = by_reset;
                to_input[hidden + unit] = by_update;
                to_state[hidden + unit] = by_update;
                to_input[2 * hidden + unit] = by_candidate;
                to_state[2 * hidden + unit] = by_candidate * reset;
                carried[unit] *= update;
            }
            outer::<FUSED>(&mut cells[layout.input()..layout.recurrent()], x, to_input);
            outer::<FUSED>(&mut cells[layout.recurrent()..layout.bias_input()], before, to_state);
            add_scaled::<FUSED>(&mut cells[layout.bias_input()..layout.bias_recurrent()], to_input, 1.0);
            add_scaled::<FUSED>(&mut cells[layout.bias_recurrent()..], to_state, 1.0);
            multiply::<FUSED>(carried, &self.recurrent_back, to_state);
        }
    }
}

for_each_level! {
    fn learn_at(level, net: &mut Net, chunk: &Chunk, loss: LossWeights, rng: &mut fastrand::Rng) -> f32 = learn_on
}

#[inline(always)]
fn learn_on<const FUSED: bool>(net: &mut Net, chunk: &Chunk, loss: LossWeights, rng: &mut fastrand::Rng) -> f32 {
    net.learn_on::<FUSED>(chunk, loss, rng)
}

/// `y += sum of a[i] * (row i of matrix)`; rows are as long as `y`. The usual lengths (16 hidden units, their 48 gates)
/// stay in registers.
#[inline(always)]
fn multiply<const FUSED: bool>(y: &mut [f32], matrix: &[f32], a: &[f32]) {
    match y.len() {
        48 => multiply_sized::<48, FUSED>(y, matrix, a),
        16 => multiply_sized::<16, FUSED>(y, matrix, a),
        len => {
            for (a, row) in a.iter().zip(matrix.chunks_exact(len)) {
                add_scaled::<FUSED>(y, row, *a);
            }
        }
    }
}

#[inline(always)]
fn multiply_sized<const N: usize, const FUSED: bool>(y: &mut [f32], matrix: &[f32], a: &[f32]) {
    let mut sums = [0.0f32; N];
    sums.copy_from_slice(y);
    for (a, row) in a.iter().zip(matrix.as_chunks::<N>().0) {
        if *a != 0.0 {
            for (sum, weight) in sums.iter_mut().zip(row) {
                *sum = multiply_add::<FUSED>(*a, *weight, *sum);
            }
        }
    }
    y.copy_from_slice(&sums);
}

/// `row i of matrix += a[i] * x`.
#[inline(always)]
fn outer<const FUSED: bool>(matrix: &mut [f32], a: &[f32], x: &[f32]) {
    if x.len() == 48 {
        let mut sized = [0.0f32; 48];
        sized.copy_from_slice(x);
        for (a, row) in a.iter().zip(matrix.as_chunks_mut::<48>().0) {
            if *a != 0.0 {
                for (sum, x) in row.iter_mut().zip(&sized) {
                    *sum = multiply_add::<FUSED>(*a, *x, *sum);
                }
            }
        }
        return;
    }
    for (a, row) in a.iter().zip(matrix.chunks_exact_mut(x.len())) {
        add_scaled::<FUSED>(row, x, *a);
    }
}

#[inline(always)]
fn add_scaled<const FUSED: bool>(y: &mut [f32], x: &[f32], a: f32) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = multiply_add::<FUSED>(a, *x, *y));
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Loss of one window and, times `scale`, its slopes by the logits.
#[inline(always)]
fn loss_of<const FUSED: bool>(
    logits: &[f32],
    shares: &[f32],
    slopes: &mut [f32],
    scale: f32,
    weights: LossWeights,
    rng: &mut fastrand::Rng,
) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = ln::<FUSED>(logits.iter().map(|logit| exp::<FUSED>(logit - largest)).sum()) + largest;
    let total: f32 = shares.iter().sum();
    let (mut loss, mut pull) = (0.0, 0.0);
    for ((logit, share), slope) in logits.iter().zip(shares).zip(slopes.iter_mut()) {
        let log_expected = logit - log_sum;
        let expected = exp::<FUSED>(log_expected);
        loss += share * (ln::<FUSED>(share.max(1e-9)) - log_expected);
        // by the root distance: d/dl of (sqrt p - sqrt s)^2 before the softmax's own coupling
        let root = (expected * share).sqrt();
        loss += weights.count * (expected + share - 2.0 * root);
        let coupled = weights.count * (expected - root);
        pull += coupled;
        *slope = total * expected - share + coupled;
    }
    for (logit, slope) in logits.iter().zip(slopes.iter_mut()) {
        *slope -= exp::<FUSED>(logit - log_sum) * pull;
    }
    if weights.order > 0.0 && logits.len() > 1 {
        // ordered pairs count from the side of the larger share; a circular offset holds each pair once
        let part = 0.5 * weights.order / PAIRINGS as f32;
        for _ in 0..PAIRINGS {
            loss += order_at::<FUSED>(rng.usize(1..logits.len()), logits, shares, slopes, part);
        }
    }
    slopes.iter_mut().for_each(|slope| *slope *= scale);
    loss
}

/// The order term of all pairs at one offset: each segment with the one `offset` to its right, round the end.
#[inline(always)]
fn order_at<const FUSED: bool>(offset: usize, logits: &[f32], shares: &[f32], slopes: &mut [f32], part: f32) -> f32 {
    let turn = logits.len() - offset;
    order_between::<FUSED>(0, offset, turn, logits, shares, slopes, part)
        + order_between::<FUSED>(turn, 0, offset, logits, shares, slopes, part)
}

/// The order term of the pairs (`first + i`, `second + i`), `len` of them, in blocks without a branch.
#[inline(always)]
fn order_between<const FUSED: bool>(
    first: usize,
    second: usize,
    len: usize,
    logits: &[f32],
    shares: &[f32],
    slopes: &mut [f32],
    part: f32,
) -> f32 {
    let mut losses = Lanes::ZERO;
    for at in (0..len).step_by(LANES) {
        let block = LANES.min(len - at);
        let (a, b) = (lanes(&logits[first + at..], block), lanes(&logits[second + at..], block));
        let (share_a, share_b) = (lanes(&shares[first + at..], block), lanes(&shares[second + at..], block));
        let mut slope = Lanes::ZERO;
        for lane in 0..LANES {
            // past the end both shares are 0, and so is the cost
            let stake = share_a[lane] - share_b[lane];
            let sign = if stake >= 0.0 { 1.0 } else { -1.0 };
            let behind = (b[lane] - a[lane]) * sign;
            let cost = stake.abs() * part;
            losses[lane] += cost * (ln::<FUSED>(1.0 + exp::<FUSED>(-behind.abs())) + behind.max(0.0));
            slope[lane] = cost * sigmoid::<FUSED>(behind) * sign;
        }
        slopes[first + at..].iter_mut().zip(&slope[..block]).for_each(|(to, slope)| *to -= slope);
        slopes[second + at..].iter_mut().zip(&slope[..block]).for_each(|(to, slope)| *to += slope);
    }
    losses.iter().sum()
}

/// The first `len` values, and zeros.
#[inline(always)]
fn lanes(values: &[f32], len: usize) -> Lanes {
    let mut lanes = Lanes::ZERO;
    if len == LANES {
        lanes.copy_from_slice(&values[..LANES]);
    } else {
        lanes[..len].copy_from_slice(&values[..len]);
    }
    lanes
}
