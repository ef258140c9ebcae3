//! The GRU in libtorch: forward pass, loss, one pass over a batch.

use tch::nn::{self, Adam, Optimizer, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};

use super::streams::Batch;
use crate::error::Result;
use crate::features::FEATURES;
use crate::model::{Model, Weights};

/// Permutations that pair segments in the order term: each is compared with so many others a window.
const PAIRINGS: usize = 24;
/// Largest norm of a gradient.
const GRADIENT_MAX: f64 = 1.0;
/// Row of the feature table that alone is a good score: the moving average of share 1/7.
const AVERAGE: usize = 4;

/// The kind of network in cuDNN's numbers.
const CUDNN_GRU: i64 = 3;

/// Whether libtorch sees a GPU.
#[must_use]
pub fn cuda_is_available() -> bool {
    tch::Cuda::is_available()
}

/// Weights to start from: scores follow the moving average, the hidden units hardly speak yet.
/// Features that are `off` weigh nothing, and since their inputs are 0, never will.
pub(super) fn initial(hidden: usize, horizon: usize, seed: u64, off: &[usize]) -> Result<Model> {
    let mut weights = Model::random(hidden, horizon, seed).weights().clone();
    let (units, inputs) = weights.head_weight.split_at_mut(hidden);
    units.iter_mut().for_each(|weight| *weight *= 0.3);
    inputs.fill(0.0);
    inputs[AVERAGE] = 4.0;
    weights.linear.fill(0.0);
    weights.linear[AVERAGE] = 4.0;
    for feature in off {
        weights.weight_ih.iter_mut().skip(*feature).step_by(FEATURES).for_each(|weight| *weight = 0.0);
        weights.head_weight[hidden + feature] = 0.0;
        weights.linear[*feature] = 0.0;
    }
    Model::new(hidden, horizon, weights)
}

/// The model as libtorch holds it.
pub struct Net {
    /// weight_ih, weight_hh, bias_ih, bias_hh: the order in which libtorch's GRU takes them.
    cell: [Tensor; 4],
    head_weight: Tensor,
    head_bias: Tensor,
    linear: Tensor,
    hidden: i64,
}

impl Net {
    /// The weights of `model`, as trainable variables of `vars`.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch).
    pub fn new(model: &Model, vars: &VarStore) -> Result<Net> {
        let (hidden, features, weights) = (model.hidden() as i64, FEATURES as i64, model.weights());
        let root = vars.root();
        let variable = |name: &str, shape: &[i64], values: &[f32]| -> Result<Tensor> {
            let mut tensor = root.f_var(name, shape, nn::Init::Const(0.0))?;
            let values = Tensor::f_from_slice(values)?.f_reshape(shape)?.f_to_device(vars.device())?;
            tch::no_grad(|| tensor.f_copy_(&values))?;
            Ok(tensor)
        };
        let cell = [
            variable("weight_ih", &[3 * hidden, features], &weights.weight_ih)?,
            variable("weight_hh", &[3 * hidden, hidden], &weights.weight_hh)?,
            variable("bias_ih", &[3 * hidden], &weights.bias_ih)?,
            variable("bias_hh", &[3 * hidden], &weights.bias_hh)?,
        ];
        if vars.device().is_cuda() && tch::Cuda::cudnn_is_available() {
            // cuDNN wants them in one piece of memory; otherwise it copies them there at every call, and says so. The
            // variables become parts of that piece.
            let _piece = tch::no_grad(|| {
                Tensor::f_internal_cudnn_rnn_flatten_weight(&cell, 4, features, CUDNN_GRU, hidden, 0, 1, true, false)
            })?;
        }
        Ok(Net {
            cell,
            head_weight: variable("head_weight", &[1, hidden + features], &weights.head_weight)?,
            head_bias: variable("head_bias", &[1], &[weights.head_bias])?,
            linear: variable("linear", &[1, features], &weights.linear)?,
            hidden,
        })
    }

    /// Hidden state of `rows` segments that saw nothing: 1, rows, hidden.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch).
    pub fn zero_state(&self, rows: i64) -> Result<Tensor> {
        Ok(Tensor::f_zeros([1, rows, self.hidden], (Kind::Float, self.head_bias.device()))?)
    }

    /// Logits (windows, rows) and the new hidden state, from features (windows, rows, features) and a hidden state.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) when shapes do not fit.
    pub fn forward(&self, features: &Tensor, state: &Tensor) -> Result<(Tensor, Tensor)> {
        let (outputs, state) = features.f_gru(state, &self.cell, true, 1, 0.0, true, false, false)?;
        let both = Tensor::f_cat(&[&outputs, features], -1)?;
        let logits = both.f_linear(&self.head_weight, Some(&self.head_bias))?.f_squeeze_dim(-1)?;
        Ok((logits, state))
    }

    /// Logits (windows, rows) of the linear model.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) when shapes do not fit.
    pub fn linear(&self, features: &Tensor) -> Result<Tensor> {
        Ok(features.f_linear(&self.linear, None::<&Tensor>)?.f_squeeze_dim(-1)?)
    }

    /// The weights as a model.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch); [`Error::Model`](crate::Error::Model) when training has diverged.
    pub fn model(&self, horizon: usize) -> Result<Model> {
        let numbers = |tensor: &Tensor| -> Result<Vec<f32>> {
            let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_reshape([-1])?;
            Ok(Vec::<f32>::try_from(&flat)?)
        };
        let weights = Weights {
            weight_ih: numbers(&self.cell[0])?,
            weight_hh: numbers(&self.cell[1])?,
            bias_ih: numbers(&self.cell[2])?,
            bias_hh: numbers(&self.cell[3])?,
            head_weight: numbers(&self.head_weight)?,
            head_bias: numbers(&self.head_bias)?.first().copied().unwrap_or_default(),
            linear: numbers(&self.linear)?,
        };
        Model::new(self.hidden as usize, horizon, weights)
    }
}

/// What the terms count beside the listwise one.
#[derive(Clone, Copy, Debug)]
pub(super) struct LossWeights {
    pub(super) count: f64,
    pub(super) order: f64,
}

/// A net and its optimizer.
pub(super) struct Trainer {
    net: Net,
    optimizer: Optimizer,
    weights: LossWeights,
    device: Device,
}

impl Trainer {
    pub(super) fn new(start: &Model, device: Device, weight_decay: f64, weights: LossWeights) -> Result<Trainer> {
        let vars = VarStore::new(device);
        let net = Net::new(start, &vars)?;
        // the optimizer keeps the variables alive
        let optimizer = Adam::default().wd(weight_decay).build(&vars, 1e-3)?;
        Ok(Trainer { net, optimizer, weights, device })
    }

    pub(super) fn set_learning_rate(&mut self, learning_rate: f64) {
        self.optimizer.set_lr(learning_rate);
    }

    pub(super) fn model(&self, horizon: usize) -> Result<Model> {
        self.net.model(horizon)
    }

    /// Learns one batch from its first window to its last; one loss a chunk.
    pub(super) fn epoch_of(&mut self, batch: &Batch, chunk: usize, rng: &mut fastrand::Rng) -> Result<Vec<f64>> {
        let (windows, streams, segments) = batch.shape();
        let mut state = self.net.zero_state(streams * segments)?;
        let mut losses = Vec::new();
        let mut first = 0;
        // chunk borders fall elsewhere in each epoch
        let mut len = rng.i64(1..=chunk as i64);
        while first < windows {
            len = len.min(windows - first);
            let features = batch.features.f_narrow(0, first, len)?.f_reshape([len, streams * segments, -1])?;
            let shares = batch.shares.f_narrow(0, first, len)?;
            let (logits, next) = self.net.forward(&features, &state)?;
            let logits = logits.f_reshape([len, streams, segments])?;
            let loss = self.loss(&logits, &shares, rng)?;
            // the two models share no weight, so one backward pass serves both
            let linear = self.net.linear(&features)?.f_reshape([len, streams, segments])?;
            let both = loss.f_add(&self.loss(&linear, &shares, rng)?)?;
            self.optimizer.zero_grad();
            both.f_backward()?;
            self.optimizer.clip_grad_norm(GRADIENT_MAX);
            self.optimizer.step();
            losses.push(loss.f_double_value(&[])?);
            state = next.f_detach()?;
            first += len;
            len = chunk as i64;
        }
        Ok(losses)
    }

    fn loss(&self, logits: &Tensor, shares: &Tensor, rng: &mut fastrand::Rng) -> Result<Tensor> {
        let known = Batch::is_known(shares)?;
        let last = [-1i64];
        let last = last.as_slice();
        let log_expected = logits.f_log_softmax(-1, Kind::Float)?;
        let log_shares = shares.f_clamp_min(1e-9)?.f_log()?;
        let listwise = (log_shares.f_sub(&log_expected)?).f_mul(shares)?.f_sum_dim_intlist(last, false, Kind::Float)?;
        let roots = log_expected.f_mul_scalar(0.5)?.f_exp()?.f_sub(&shares.f_sqrt()?)?;
        let count = roots.f_square()?.f_sum_dim_intlist(last, false, Kind::Float)?;
        let mut loss = listwise.f_add(&count.f_mul_scalar(self.weights.count)?)?;
        if self.weights.order > 0.0 {
            let order = self.order_loss(logits, shares, rng)?;
            loss = loss.f_add(&order.f_mul_scalar(self.weights.order)?)?;
        }
        let sum = loss.f_mul(&known)?.f_sum(Kind::Float)?;
        Ok(sum.f_div(&known.f_sum(Kind::Float)?.f_clamp_min(1.0)?)?)
    }

    /// For pairs of segments: what the wrong order costs, times how wrong it is (logistic). By window and stream.
    fn order_loss(&self, logits: &Tensor, shares: &Tensor, rng: &mut fastrand::Rng) -> Result<Tensor> {
        let size = logits.size();
        let (windows, streams, segments) = (size[0], size[1], size[2]);
        let mut partners = Vec::with_capacity(PAIRINGS * segments as usize);
        let mut permutation: Vec<i64> = (0..segments).collect();
        for _ in 0..PAIRINGS {
            rng.shuffle(&mut permutation);
            partners.extend_from_slice(&permutation);
        }
        let partners = Tensor::f_from_slice(&partners)?.f_to_device(self.device)?;
        let ahead = |values: &Tensor| -> Result<Tensor> {
            let others = values.f_index_select(-1, &partners)?;
            let others = others.f_reshape([windows, streams, PAIRINGS as i64, segments])?;
            Ok(values.f_unsqueeze(2)?.f_sub(&others)?)
        };
        // a pair counts once, from the side of the segment with the larger share
        let stakes = ahead(shares)?.f_clamp_min(0.0)?;
        let wrong = ahead(logits)?.f_neg()?.f_softplus()?;
        let dims = [-1i64, -2];
        let sum = stakes.f_mul(&wrong)?.f_sum_dim_intlist(dims.as_slice(), false, Kind::Float)?;
        Ok(sum.f_mul_scalar(1.0 / PAIRINGS as f64)?)
    }
}
