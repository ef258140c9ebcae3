//! How good a copy order is.

/// The points of the curve "share of bytes copied -> share of reads served", copying in `order`: one point before the
/// first segment, (0, 0), and one after each. Segments that `order` does not name are added at the end in index order,
/// repeated or unknown indices are skipped, so the curve always ends at (1, 1).
///
/// `bytes` and `reads` are by segment index; where all bytes are 0 each segment counts the same, where all reads are 0
/// each is read the same.
#[must_use]
pub fn order_curve(order: &[usize], bytes: &[u64], reads: &[u64]) -> Vec<(f64, f64)> {
    let segments = bytes.len().min(reads.len());
    let weight = |values: &[u64]| -> Vec<f64> {
        let total: f64 = values[..segments].iter().map(|value| *value as f64).sum();
        let share = |value: &u64| if total > 0.0 { *value as f64 / total } else { 1.0 / segments as f64 };
        values[..segments].iter().map(share).collect()
    };
    let (bytes, reads) = (weight(bytes), weight(reads));
    let mut seen = vec![false; segments];
    let mut curve = Vec::with_capacity(segments + 1);
    let (mut x, mut y) = (0.0, 0.0);
    curve.push((x, y));
    for index in order.iter().copied().chain(0..segments) {
        if index >= segments || std::mem::replace(&mut seen[index], true) {
            continue;
        }
        x += bytes[index];
        y += reads[index];
        curve.push((x, y));
    }
    if let Some(last) = curve.last_mut().filter(|_| segments > 0) {
        // sums of shares end a few ulps off
        *last = (1.0, 1.0);
    }
    curve
}

/// Area under a curve of [`order_curve`], 0..=1, by trapezoids: the share of reads that hit while copying runs at a
/// constant rate. A random order has about one half.
#[must_use]
pub fn area(curve: &[(f64, f64)]) -> f64 {
    let trapezoid = |pair: &[(f64, f64)]| (pair[1].0 - pair[0].0) * 0.5 * (pair[1].1 + pair[0].1);
    curve.windows(2).map(trapezoid).sum::<f64>().clamp(0.0, 1.0)
}

/// Segment indices by falling score, equal scores by index.
pub(crate) fn order_by_score(scores: &[f32], order: &mut Vec<usize>) {
    order.clear();
    order.extend(0..scores.len());
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
}

/// Copies in a given order, at a constant rate, in the time of some requests: what it costs to copy each segment.
#[derive(Clone, Debug)]
pub(crate) struct Copying {
    /// Cost of each segment, e.g. its bytes; at least 1.
    costs: Vec<u64>,
    total: u128,
    /// For each segment the first request that finds it copied.
    there_at: Vec<u32>,
}

impl Copying {
    /// Every segment costs the same.
    pub(crate) fn even(segments: usize) -> Copying {
        Copying::new(vec![1; segments])
    }

    pub(crate) fn new(mut costs: Vec<u64>) -> Copying {
        costs.iter_mut().for_each(|cost| *cost = (*cost).max(1));
        let total = costs.iter().map(|cost| u128::from(*cost)).sum();
        Copying { there_at: vec![0; costs.len()], costs, total }
    }

    /// What it costs to copy each segment.
    pub(crate) fn costs(&self) -> &[u64] {
        &self.costs
    }

    /// Share of `requests` (segments in time order) that hit segments already copied, when the segments are copied one
    /// after the other in `order`. A segment is there when its last byte is.
    pub(crate) fn hit_share(&mut self, order: &[usize], requests: &[u32]) -> f64 {
        let len = requests.len() as u128;
        let mut done = 0u128;
        for index in order {
            done += u128::from(self.costs[*index]);
            self.there_at[*index] = (done * len).div_ceil(self.total.max(1)) as u32;
        }
        let hit = |(at, segment): (usize, &u32)| self.there_at[*segment as usize] as usize <= at;
        requests.iter().enumerate().filter(|request| hit(*request)).count() as f64 / requests.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn curve_of_a_good_order_rises_first() {
        let good = order_curve(&[2, 0, 1], &[10, 10, 20], &[10, 0, 90]);
        assert_eq!(good[1], (0.5, 0.9));
        let bad = order_curve(&[1, 0, 2], &[10, 10, 20], &[10, 0, 90]);
        assert!(area(&good) > 0.7 && area(&bad) < 0.4);
        assert_eq!(good.last(), Some(&(1.0, 1.0)));
    }

    #[test]
    fn curve_of_odd_input_is_whole() {
        let curve = order_curve(&[7, 1, 1], &[0, 0, 0], &[0, 0, 0]);
        assert_eq!(curve.len(), 4);
        assert!((area(&curve) - 0.5).abs() < 1e-9);
        assert_eq!(area(&order_curve(&[], &[], &[])), 0.0);
    }

    #[test]
    fn hit_share_counts_what_was_copied_in_time() {
        // two segments, four requests: the first in order is there from request 2 on, the other never
        let mut copying = Copying::even(2);
        assert_eq!(copying.hit_share(&[0, 1], &[0, 0, 0, 0]), 0.5);
        assert_eq!(copying.hit_share(&[1, 0], &[0, 0, 0, 0]), 0.0);
        assert_eq!(copying.hit_share(&[1, 0], &[0, 0, 1, 1]), 0.5);
    }

    #[test]
    fn hit_share_of_uneven_segments_waits_for_the_last_byte() {
        // the first segment is three quarters of the bytes: it is there from request 3 on, or, as the second, never
        let mut copying = Copying::new(vec![3, 1]);
        assert_eq!(copying.hit_share(&[0, 1], &[0, 0, 0, 0]), 0.25);
        assert_eq!(copying.hit_share(&[1, 0], &[1, 1, 1, 1]), 0.75);
        assert_eq!(copying.hit_share(&[], &[]), 0.0);
    }

    proptest! {
        #[test]
        fn no_order_beats_reads_per_byte(
            segments in prop::collection::vec((1..1000u64, 0..1000u64), 1..30),
            seed in any::<u64>(),
        ) {
            let bytes: Vec<u64> = segments.iter().map(|segment| segment.0).collect();
            let reads: Vec<u64> = segments.iter().map(|segment| segment.1).collect();
            let mut best: Vec<usize> = (0..bytes.len()).collect();
            best.sort_by(|a, b| (reads[*b] * bytes[*a]).cmp(&(reads[*a] * bytes[*b])));
            let mut other = best.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut other);
            let (best, other) = (area(&order_curve(&best, &bytes, &reads)), area(&order_curve(&other, &bytes, &reads)));
            prop_assert!((0.0..=1.0).contains(&other));
            prop_assert!(best >= other - 1e-9);
        }
    }
}
