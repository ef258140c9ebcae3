//! Adam (Kingma and Ba, 2015), with the gradient's norm clipped.

/// Largest norm of a gradient.
const NORM_MAX: f32 = 1.0;
const FIRST: f32 = 0.9;
const SECOND: f32 = 0.999;

/// Moments of each weight.
#[derive(Clone, Debug)]
pub(super) struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
}

impl Adam {
    pub(super) fn new(weights: usize) -> Adam {
        Adam { first: vec![0.0; weights], second: vec![0.0; weights], steps: 0 }
    }

    /// Moves `weights` against `gradient`; a gradient that is not finite moves nothing.
    pub(super) fn step(&mut self, weights: &mut [f32], gradient: &[f32], rate: f32) {
        let norm = gradient.iter().map(|slope| slope * slope).sum::<f32>().sqrt();
        if !norm.is_finite() {
            return;
        }
        let clip = if norm > NORM_MAX { NORM_MAX / norm } else { 1.0 };
        self.steps = self.steps.saturating_add(1);
        let first_whole = 1.0 - FIRST.powi(self.steps);
        let second_whole = 1.0 - SECOND.powi(self.steps);
        for (at, weight) in weights.iter_mut().enumerate() {
            let slope = gradient[at] * clip;
            self.first[at] += (1.0 - FIRST) * (slope - self.first[at]);
            self.second[at] += (1.0 - SECOND) * (slope * slope - self.second[at]);
            let root = (self.second[at] / second_whole).sqrt() + 1e-8;
            *weight -= rate * self.first[at] / first_whole / root;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adam_finds_the_bottom_of_a_bowl() {
        let mut adam = Adam::new(2);
        let mut weights = [5.0f32, -3.0];
        for _ in 0..3000 {
            let gradient = [2.0 * (weights[0] - 1.0), 0.2 * (weights[1] - 2.0)];
            adam.step(&mut weights, &gradient, 0.01);
        }
        assert!((weights[0] - 1.0).abs() < 0.02 && (weights[1] - 2.0).abs() < 0.02, "{weights:?}");
        adam.step(&mut weights, &[f32::NAN, 1.0], 0.01);
        assert!(weights.iter().all(|weight| weight.is_finite()));
    }
}
