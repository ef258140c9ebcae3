//! Zipf-distributed ranks by rejection-inversion: no table, constant time a sample.
//!
//! Source: Hörmann, Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions", 1996.

/// Samples ranks `0..count` with probability proportional to `1 / (rank + 1)^exponent`.
#[derive(Clone, Debug)]
pub struct Zipf {
    count: f64,
    exponent: f64,
    area_first: f64,
    area_all: f64,
    shortcut: f64,
}

impl Zipf {
    /// A sampler over at least one rank; the exponent is positive and not 1.
    #[must_use]
    pub fn new(count: u64, exponent: f64) -> Zipf {
        let count = count.max(1) as f64;
        let mut zipf = Zipf { count, exponent, area_first: 0.0, area_all: 0.0, shortcut: 0.0 };
        zipf.area_first = zipf.area(1.5) - 1.0;
        zipf.area_all = zipf.area(count + 0.5);
        zipf.shortcut = 2.0 - zipf.place(zipf.area(2.5) - zipf.height(2.0));
        zipf
    }

    /// A rank from 0.
    pub fn sample(&self, random: &mut fastrand::Rng) -> u64 {
        loop {
            let under = self.area_all + random.f64() * (self.area_first - self.area_all);
            let place = self.place(under);
            let rank = place.round().clamp(1.0, self.count);
            if rank - place <= self.shortcut || under >= self.area(rank + 0.5) - self.height(rank) {
                return rank as u64 - 1;
            }
        }
    }

    /// The density, not normalised.
    fn height(&self, place: f64) -> f64 {
        place.powf(-self.exponent)
    }

    /// The integral of the density.
    fn area(&self, place: f64) -> f64 {
        place.powf(1.0 - self.exponent) / (1.0 - self.exponent)
    }

    /// The inverse of the integral.
    fn place(&self, area: f64) -> f64 {
        (area * (1.0 - self.exponent)).powf(1.0 / (1.0 - self.exponent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_frequencies_follow_the_law() {
        let (count, exponent, draws) = (1_000_u64, 0.99, 400_000_u64);
        let zipf = Zipf::new(count, exponent);
        let mut random = fastrand::Rng::with_seed(3);
        let mut seen = vec![0_u64; count as usize];
        for _ in 0..draws {
            seen[zipf.sample(&mut random) as usize] += 1;
        }
        let total: f64 = (1..=count).map(|rank| (rank as f64).powf(-exponent)).sum();
        for rank in [1_u64, 2, 3, 10, 100] {
            let expected = draws as f64 * (rank as f64).powf(-exponent) / total;
            let found = seen[rank as usize - 1] as f64;
            assert!((found - expected).abs() < 5.0 * expected.sqrt() + 1.0, "rank {rank}: {found}, {expected}");
        }
    }

    #[test]
    fn sample_one_rank_is_always_it() {
        let zipf = Zipf::new(1, 0.99);
        let mut random = fastrand::Rng::with_seed(3);
        assert!((0..100).all(|_| zipf.sample(&mut random) == 0));
    }
}
