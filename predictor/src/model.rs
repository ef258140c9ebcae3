//! Weights of the GRU on disk: one safetensors file.
//!
//! | tensor (f32, little endian) | shape |
//! |---|---|
//! | `gru.weight_ih` | 3 hidden, features (gates r, z, n) |
//! | `gru.weight_hh` | 3 hidden, hidden |
//! | `gru.bias_ih`, `gru.bias_hh` | 3 hidden |
//! | `head.weight` | hidden + features |
//! | `head.bias` | 1 |
//! | `linear.weight` | features (the scorer `linear`, without a hidden state) |
//!
//! The metadata has one key, `antumbra`, whose value is JSON: `{"format":2,"features":2,"hidden":16,"horizon":8}`. One
//! key because safetensors keeps metadata in a hash map: with one, equal weights are equal files.
//!
//! A file is believed only after every tensor's type, shape and values were checked: a NaN in a weight would poison
//! every score from then on.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::features::{FEATURE_VERSION, FEATURES};

/// Version of the file format.
pub const MODEL_FORMAT: u32 = 2;
/// Largest hidden size that is accepted.
pub const HIDDEN_MAX: usize = 128;
/// Largest horizon that is accepted, in windows.
pub const HORIZON_MAX: usize = 1024;
/// Largest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Largest magnitude of a weight: trained ones stay below 10, and the cell stays finite far beyond this.
pub const WEIGHT_MAX: f32 = 1e4;

const METADATA_KEY: &str = "antumbra";
const SHIPPED: &[u8] = include_bytes!("../models/general.safetensors");
const SHIPPED_NAME: &str = "<shipped>";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    format: u32,
    features: u32,
    hidden: usize,
    horizon: usize,
}

/// The numbers of a model, row-major, gates in the order r, z, n.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// `3 * hidden` rows of `FEATURES`.
    pub weight_ih: Vec<f32>,
    /// `3 * hidden` rows of `hidden`.
    pub weight_hh: Vec<f32>,
    /// `3 * hidden`.
    pub bias_ih: Vec<f32>,
    /// `3 * hidden`.
    pub bias_hh: Vec<f32>,
    /// `hidden`, then `FEATURES`.
    pub head_weight: Vec<f32>,
    /// The head's bias.
    pub head_bias: f32,
    /// `FEATURES`: the model of the scorer `linear`.
    pub linear: Vec<f32>,
}

/// A checked model: shapes fit, every weight is finite.
///
/// # Example
/// ```
/// use antumbra_predictor::Model;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("model.safetensors");
/// let model = Model::shipped()?;
/// model.save(&path)?;
/// let read = Model::load(&path)?;
/// assert_eq!((read.hidden(), read.horizon()), (model.hidden(), model.horizon()));
/// assert_eq!(Model::from_bytes(&model.to_bytes()?, &path)?.weights(), model.weights());
/// let start = Model::random(8, 8, 1); // as training begins
/// assert_eq!(Model::new(8, 8, start.weights().clone())?, start);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    hidden: usize,
    horizon: usize,
    weights: Weights,
}

impl Model {
    /// A model from its numbers.
    ///
    /// # Errors
    /// [`Error::Model`] naming the first tensor whose shape or values are wrong.
    pub fn new(hidden: usize, horizon: usize, weights: Weights) -> Result<Model> {
        Model::checked(hidden, horizon, weights, Path::new("<memory>"))
    }

    /// Reads a model file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] naming the file and the tensor.
    pub fn load(path: &Path) -> Result<Model> {
        let io_error = |cause| Error::Io { op: "read", path: path.to_owned(), cause };
        let len = fs::metadata(path).map_err(io_error)?.len();
        if len > FILE_BYTES_MAX {
            return Err(file_error(path, format!("{len} bytes: a model has at most {FILE_BYTES_MAX}")));
        }
        Model::from_bytes(&fs::read(path).map_err(io_error)?, path)
    }

    /// Reads a model from memory; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Model> {
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(file_error(path, format!("{} bytes: a model has at most {FILE_BYTES_MAX}", bytes.len())));
        }
        let damaged = |error| file_error(path, format!("not a safetensors file, or damaged: {error}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let text = header.metadata().as_ref().and_then(|map| map.get(METADATA_KEY));
        let text =
            text.ok_or_else(|| file_error(path, format!("no metadata '{METADATA_KEY}': not a model of ours")))?;
        let metadata: Metadata =
            serde_json::from_str(text).map_err(|error| file_error(path, format!("metadata: {error}")))?;
        if metadata.format != MODEL_FORMAT {
            return Err(file_error(path, format!("format {}, this build reads {MODEL_FORMAT}", metadata.format)));
        }
        if metadata.features != FEATURE_VERSION {
            let given = metadata.features;
            return Err(file_error(path, format!("features {given}, this build has {FEATURE_VERSION}: train it anew")));
        }
        let hidden = metadata.hidden;
        check_sizes(hidden, metadata.horizon, path)?;
        let read = |name: &'static str, shape: &[usize]| tensor(&tensors, path, name, shape);
        let weights = Weights {
            weight_ih: read("gru.weight_ih", &[3 * hidden, FEATURES])?,
            weight_hh: read("gru.weight_hh", &[3 * hidden, hidden])?,
            bias_ih: read("gru.bias_ih", &[3 * hidden])?,
            bias_hh: read("gru.bias_hh", &[3 * hidden])?,
            head_weight: read("head.weight", &[hidden + FEATURES])?,
            head_bias: read("head.bias", &[1])?[0],
            linear: read("linear.weight", &[FEATURES])?,
        };
        Model::checked(hidden, metadata.horizon, weights, path)
    }

    /// The general model that ships with the crate.
    ///
    /// # Errors
    /// [`Error::Model`] when the build embedded a damaged file.
    pub fn shipped() -> Result<Model> {
        Model::from_bytes(SHIPPED, Path::new(SHIPPED_NAME))
    }

    /// A model of random weights, as libtorch starts one: uniform within one over the root of the hidden size.
    ///
    /// # Panics
    /// When `hidden` or `horizon` is 0 or beyond its maximum.
    #[must_use]
    pub fn random(hidden: usize, horizon: usize, seed: u64) -> Model {
        assert!((1..=HIDDEN_MAX).contains(&hidden) && (1..=HORIZON_MAX).contains(&horizon));
        let mut rng = fastrand::Rng::with_seed(seed);
        let bound = 1.0 / (hidden as f32).sqrt();
        let mut draw = |len: usize| -> Vec<f32> { (0..len).map(|_| (rng.f32() * 2.0 - 1.0) * bound).collect() };
        let weights = Weights {
            weight_ih: draw(3 * hidden * FEATURES),
            weight_hh: draw(3 * hidden * hidden),
            bias_ih: draw(3 * hidden),
            bias_hh: draw(3 * hidden),
            head_weight: draw(hidden + FEATURES),
            head_bias: 0.0,
            linear: draw(FEATURES),
        };
        Model { hidden, horizon, weights }
    }

    /// Hidden units.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Windows ahead that the model was trained to expect.
    #[must_use]
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// The numbers.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The model as a safetensors file; equal models give equal bytes.
    ///
    /// # Errors
    /// [`Error::Model`] when the encoder refuses.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let path = Path::new("<memory>");
        let refused = |error: &dyn std::fmt::Display| file_error(path, format!("cannot be encoded: {error}"));
        let little_endian = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let raw: Vec<(&str, Vec<usize>, Vec<u8>)> =
            self.tensors().into_iter().map(|(name, shape, values)| (name, shape, little_endian(values))).collect();
        let mut views = Vec::with_capacity(raw.len());
        for (name, shape, bytes) in &raw {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|error| refused(&error))?;
            views.push((*name, view));
        }
        let metadata =
            Metadata { format: MODEL_FORMAT, features: FEATURE_VERSION, hidden: self.hidden, horizon: self.horizon };
        let text = serde_json::to_string(&metadata).map_err(|error| refused(&error))?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), text)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| refused(&error))
    }

    /// Writes the model beside `path`, then renames it into place: readers see the old file or the new one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Model`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        let draft = path.with_extension("draft");
        let io_error = |cause| Error::Io { op: "write", path: path.to_owned(), cause };
        fs::write(&draft, bytes).and_then(|()| fs::rename(&draft, path)).map_err(io_error)
    }

    fn tensors(&self) -> [(&'static str, Vec<usize>, &[f32]); 7] {
        let (hidden, weights) = (self.hidden, &self.weights);
        [
            ("gru.weight_ih", vec![3 * hidden, FEATURES], &weights.weight_ih),
            ("gru.weight_hh", vec![3 * hidden, hidden], &weights.weight_hh),
            ("gru.bias_ih", vec![3 * hidden], &weights.bias_ih),
            ("gru.bias_hh", vec![3 * hidden], &weights.bias_hh),
            ("head.weight", vec![hidden + FEATURES], &weights.head_weight),
            ("head.bias", vec![1], std::slice::from_ref(&weights.head_bias)),
            ("linear.weight", vec![FEATURES], &weights.linear),
        ]
    }

    fn checked(hidden: usize, horizon: usize, weights: Weights, path: &Path) -> Result<Model> {
        check_sizes(hidden, horizon, path)?;
        let model = Model { hidden, horizon, weights };
        for (name, shape, values) in model.tensors() {
            let wrong = |what| Error::Model { path: path.to_owned(), tensor: name.to_owned(), what };
            let wanted: usize = shape.iter().product();
            if values.len() != wanted {
                return Err(wrong(format!("{} numbers, not {wanted}", values.len())));
            }
            // NaN lies in no range
            if let Some(at) = values.iter().position(|value| !(-WEIGHT_MAX..=WEIGHT_MAX).contains(value)) {
                return Err(wrong(format!("number {at} is {}: not finite, or beyond {WEIGHT_MAX}", values[at])));
            }
        }
        Ok(model)
    }
}

fn file_error(path: &Path, what: String) -> Error {
    Error::Model { path: path.to_owned(), tensor: "-".to_owned(), what }
}

fn check_sizes(hidden: usize, horizon: usize, path: &Path) -> Result<()> {
    if !(1..=HIDDEN_MAX).contains(&hidden) {
        return Err(file_error(path, format!("hidden size {hidden}: 1 to {HIDDEN_MAX}")));
    }
    if !(1..=HORIZON_MAX).contains(&horizon) {
        return Err(file_error(path, format!("horizon of {horizon} windows: 1 to {HORIZON_MAX}")));
    }
    Ok(())
}

fn tensor(tensors: &SafeTensors<'_>, path: &Path, name: &'static str, shape: &[usize]) -> Result<Vec<f32>> {
    let wrong = |what| Error::Model { path: path.to_owned(), tensor: name.to_owned(), what };
    let view = tensors.tensor(name).map_err(|_| wrong("is missing".to_owned()))?;
    if view.dtype() != Dtype::F32 {
        return Err(wrong(format!("type {:?}, not F32", view.dtype())));
    }
    if view.shape() != shape {
        return Err(wrong(format!("shape {:?}, not {shape:?}", view.shape())));
    }
    Ok(view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(bytes: &[u8]) -> String {
        Model::from_bytes(bytes, Path::new("m.safetensors")).unwrap_err().to_string()
    }

    #[test]
    fn file_roundtrip_is_exact_and_deterministic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let model = Model::random(16, 8, 42);
        model.save(&path).unwrap();
        assert_eq!(Model::load(&path).unwrap(), model);
        assert_eq!(model.to_bytes().unwrap(), Model::random(16, 8, 42).to_bytes().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn shipped_model_loads() {
        let model = Model::shipped().unwrap();
        assert!((8..=32).contains(&model.hidden()));
        assert_eq!(model.horizon(), 8);
    }

    #[test]
    fn load_wrong_files_are_refused_by_name() {
        let (good, large) = (Model::random(8, 8, 1), Model::random(100, 1000, 1));
        let edited_of = |model: &Model, from: &str, to: &str| {
            // same length, so that the header's own length stays right
            assert_eq!(from.len(), to.len());
            let mut bytes = model.to_bytes().unwrap();
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            message(&bytes)
        };
        let edited = |from: &str, to: &str| edited_of(&good, from, to);
        let too_large = edited_of(&large, r#"\"hidden\":100"#, r#"\"hidden\":999"#);
        assert!(too_large.contains("m.safetensors, tensor -: hidden size 999: 1 to 128"), "{too_large}");
        assert!(edited_of(&large, r#"\"hidden\":100"#, r#"\"hidden\":1e9"#).contains("metadata: "));
        assert!(edited_of(&large, r#"\"horizon\":1000"#, r#"\"horizon\":9999"#).contains("horizon of 9999 windows"));
        assert!(edited(r#""dtype":"F32""#, r#""dtype":"I32""#).contains("type I32, not F32"));
        let mut endless = good.to_bytes().unwrap();
        endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(message(&endless).contains("m.safetensors, tensor -: not a safetensors file, or damaged"));
        assert!(edited(r#"\"format\":2"#, r#"\"format\":9"#).contains("m.safetensors, tensor -: format 9"));
        assert!(edited(r#"\"features\":2"#, r#"\"features\":7"#).contains("train it anew"));
        assert!(edited(r#"\"hidden\":8"#, r#"\"hidden\":9"#).contains("tensor gru.weight_ih: shape [24, 28], not [27"));
        assert!(edited(r#"\"hidden\":8"#, r#"\"hidden\":0"#).contains("hidden size 0"));
        assert!(edited("gru.bias_ih", "gru.bias_xx").contains("tensor gru.bias_ih: is missing"));
        assert!(edited("antumbra", "penumbra").contains("not a model of ours"));
        let mut weights = good.weights().clone();
        weights.weight_hh[5] = f32::NAN;
        let text = Model::new(8, 8, weights).unwrap_err().to_string();
        assert!(text.contains("tensor gru.weight_hh: number 5 is NaN"), "{text}");
        let mut bytes = good.to_bytes().unwrap();
        let len = bytes.len();
        bytes[len - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
        assert!(message(&bytes).contains("is inf"));
        assert!(message(&vec![0; FILE_BYTES_MAX as usize + 1]).contains("at most"));
        assert!(Model::load(Path::new("no/such")).unwrap_err().to_string().contains("no/such"));
    }

    #[test]
    fn load_truncated_at_any_byte_is_refused() {
        let bytes = Model::random(2, 8, 3).to_bytes().unwrap();
        for len in 0..bytes.len() {
            assert!(Model::from_bytes(&bytes[..len], Path::new("m")).is_err());
        }
    }

    proptest! {
        #[test]
        fn load_random_or_flipped_bytes_never_panic(
            random in prop::collection::vec(any::<u8>(), 0..200),
            flips in prop::collection::vec((0..3000usize, 0..8u8), 1..4),
        ) {
            let _ = Model::from_bytes(&random, Path::new("m"));
            let mut bytes = Model::random(2, 8, 3).to_bytes().unwrap();
            for (at, bit) in flips {
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
            }
            if let Ok(model) = Model::from_bytes(&bytes, Path::new("m")) {
                prop_assert!(model.tensors().iter().all(|(_, _, values)| values.iter().all(|v| v.is_finite())));
            }
        }
    }
}
