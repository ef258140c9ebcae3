//! Confidence intervals over evaluation positions.
//!
//! Neighbouring positions share most of their horizon, so positions are drawn in blocks (moving-block bootstrap), and
//! scorer and oracle are drawn together (paired), so that what makes a stretch of the trace hard for both cancels out.

/// Resamples; the 2.5th and 97.5th percentile are then the 25th from either end.
const RESAMPLES: usize = 1000;

/// 95 % interval of `sum(values) / sum(bases)` in percent, from blocks of `block_len` positions.
#[must_use]
pub(crate) fn ratio_ci95(values: &[f64], bases: &[f64], block_len: usize, seed: u64) -> [f64; 2] {
    let len = values.len().min(bases.len());
    if len == 0 {
        return [0.0, 0.0];
    }
    let block_len = block_len.clamp(1, len);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (mut value, mut base, mut drawn) = (0.0, 0.0, 0);
            while drawn < len {
                let start = rng.usize(0..=len - block_len);
                let end = start + block_len.min(len - drawn);
                value += values[start..end].iter().sum::<f64>();
                base += bases[start..end].iter().sum::<f64>();
                drawn += end - start;
            }
            100.0 * value / base.max(f64::MIN_POSITIVE)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    [ratios[RESAMPLES / 40], ratios[RESAMPLES - 1 - RESAMPLES / 40]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_holds_the_mean_and_shrinks_with_more_positions() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut interval = |len: usize| {
            let bases = vec![0.9; len];
            let values: Vec<f64> = (0..len).map(|_| 0.6 + 0.2 * rng.f64()).collect();
            ratio_ci95(&values, &bases, 1, 3)
        };
        let (few, many) = (interval(50), interval(5000));
        assert!(few[0] < 77.8 && few[1] > 77.0);
        assert!(many[1] - many[0] < 0.3 * (few[1] - few[0]));
    }

    #[test]
    fn pairing_removes_what_both_share() {
        let bases: Vec<f64> = (0..200).map(|at| 0.2 + 0.003 * f64::from(at)).collect();
        let values: Vec<f64> = bases.iter().map(|base| 0.5 * base).collect();
        let [low, high] = ratio_ci95(&values, &bases, 16, 3);
        assert!((low - 50.0).abs() < 1e-9 && (high - 50.0).abs() < 1e-9);
        assert_eq!(ratio_ci95(&[], &[], 16, 3), [0.0, 0.0]);
    }
}
