//! The controller that lets the foreground go first: how fast a copy may go, by what requests notice of it. Sans-IO.
//!
//! It is told a *ratio*, what requests see now over what they may see (the set-point; 1 = just that), and how much of the
//! rate was used. It works on the logarithm of the rate, because a tenth of a slow rate matters as much as a tenth of a
//! fast one, and in increments, so that no sum winds up while a limit holds. A rate that nobody uses does not rise.
//!
//! - `INV-FLOOR`: the rate stays at or above the floor, whatever requests see: a move ends.
//! - `INV-CAP`: the rate stays at or below the cap, whatever requests see.

use std::time::Duration;

/// Gains, of the logarithm of the rate per unit of error: proportional, integral (per second), derivative (seconds).
/// Found on the plants of the tests below; a quarter of what makes the slowest of them swing.
const PROPORTIONAL: f64 = 0.4;
const INTEGRAL: f64 = 1.5;
const DERIVATIVE: f64 = 0.01;
/// Errors, as logarithms of the ratio, are taken for no larger. Slower is decided faster than faster.
const ERROR_MAX: f64 = 0.7;
const ERROR_MIN: f64 = -2.0;
/// A rate rises to this many times what was used.
const USED_FACTOR: f64 = 2.0;

/// What kept the rate where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Requests would notice more.
    Foreground,
    /// The operator's cap.
    Cap,
    /// Neither: what is sent, or the receiver, is not faster.
    Supply,
}

/// The controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Pid {
    rate: f64,
    floor: f64,
    cap: f64,
    /// The last two errors, the newest first.
    errors: [f64; 2],
}

impl Pid {
    /// A controller that begins at `floor` bytes per second and never exceeds `cap`.
    #[must_use]
    pub fn new(floor: u64, cap: Option<u64>) -> Pid {
        let cap = cap.map_or(f64::INFINITY, |cap| cap.max(1) as f64);
        let floor = (floor.max(1) as f64).min(cap);
        Pid { rate: floor, floor, cap, errors: [0.0; 2] }
    }

    /// Bytes per second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate as u64
    }

    /// Takes what the last `elapsed` showed: `ratio` of what requests saw to the set-point, and the bytes per second that
    /// were used. Returns what holds the rate from now on.
    pub fn observe(&mut self, ratio: f64, used: f64, elapsed: Duration) -> Limit {
        let seconds = elapsed.as_secs_f64().clamp(0.01, 1.0);
        let error = (-ratio.max(1e-6).ln()).clamp(ERROR_MIN, ERROR_MAX);
        let [last, before] = self.errors;
        let change = PROPORTIONAL * (error - last)
            + INTEGRAL * error * seconds
            + DERIVATIVE * (error - 2.0 * last + before) / seconds;
        self.errors = [error, last];
        let wanted = self.rate * change.exp();
        // Where more would not be used, more is not allowed either: when it is wanted at last, requests come first.
        let useful = (used * USED_FACTOR).max(self.floor);
        let (rate, limit) = if wanted > self.cap.min(useful) && useful < self.cap {
            (useful.min(wanted.max(self.rate)), Limit::Supply)
        } else if wanted >= self.cap {
            (self.cap, Limit::Cap)
        } else {
            (wanted, Limit::Foreground)
        };
        self.rate = rate.clamp(self.floor, self.cap);
        limit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(200);
    const MB: f64 = 1e6;

    /// Requests on a machine that can move `capacity` bytes per second beside them: what they see grows as in a queue, is
    /// smoothed over some ticks, and measured with an error.
    struct Plant {
        capacity: f64,
        smoothing: f64,
        noise: f64,
        ratio: f64,
    }

    impl Plant {
        fn new(capacity: f64, smoothing: f64, noise: f64) -> Plant {
            Plant { capacity, smoothing, noise, ratio: 1.0 / 1.1 }
        }

        /// One tick at `rate`; returns what is measured.
        fn run(&mut self, rate: f64, random: &mut fastrand::Rng) -> f64 {
            let load = (rate / self.capacity).min(0.99);
            let settled = 1.0 / 1.1 / (1.0 - load);
            self.ratio += (settled - self.ratio) * (1.0 - self.smoothing);
            self.ratio * (1.0 + self.noise * (random.f64() - 0.5))
        }
    }

    /// Runs for `seconds`; returns the ratio at the end of each tick, without the noise.
    fn run(pid: &mut Pid, plant: &mut Plant, seconds: u32, random: &mut fastrand::Rng) -> Vec<f64> {
        let ticks = 0..seconds * 5;
        ticks
            .map(|_| {
                let used = pid.rate;
                let measured = plant.run(used, random);
                pid.observe(measured, used, TICK);
                plant.ratio
            })
            .collect()
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    proptest! {
        #[test]
        fn observe_converges_to_the_set_point(
            capacity in 20.0..2_000.0_f64, smoothing in 0.0..0.7_f64, noise in 0.0..0.3_f64, seed: u64
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut pid, mut plant) = (Pid::new(2_000_000, None), Plant::new(capacity * MB, smoothing, noise));
            run(&mut pid, &mut plant, 60, &mut random);
            let ratios = run(&mut pid, &mut plant, 20, &mut random);
            prop_assert!((mean(&ratios) - 1.0).abs() < 0.05, "mean {} at {} MB/s", mean(&ratios), pid.rate / MB);
            prop_assert!(ratios.iter().all(|ratio| *ratio < 1.3), "swings: {ratios:?}");
        }

        #[test]
        fn observe_whatever_it_sees_stays_between_floor_and_cap(
            seen in prop::collection::vec((0.0..100.0_f64, 0.0..1e9_f64, 0..5_000u64), 1..200),
            floor in 1..10_000_000u64, cap in prop::option::of(1..100_000_000u64)
        ) {
            let mut pid = Pid::new(floor, cap);
            for (ratio, used, ms) in seen {
                pid.observe(ratio, used, Duration::from_millis(ms));
                let least = floor.min(cap.unwrap_or(u64::MAX));
                prop_assert!(pid.rate() >= least && cap.is_none_or(|cap| pid.rate() <= cap), "{}", pid.rate());
            }
        }
    }

    #[test]
    fn observe_after_a_long_time_at_a_limit_gives_way_at_once() {
        let mut random = fastrand::Rng::with_seed(1);
        for (cap, supply) in [(Some(50_000_000), f64::INFINITY), (None, 50.0 * MB)] {
            // For ten minutes a limit holds and requests notice nothing; then the machine gets busy.
            let mut pid = Pid::new(2_000_000, cap);
            for _ in 0..3_000 {
                pid.observe(0.5, pid.rate.min(supply), TICK);
            }
            assert!(pid.rate <= 101.0 * MB, "a rate that nobody uses stays near what is used: {}", pid.rate);
            let mut plant = Plant::new(20.0 * MB, 0.0, 0.0);
            let ratios = run(&mut pid, &mut plant, 4, &mut random);
            assert!(ratios[15..].iter().all(|ratio| *ratio < 1.3), "four seconds later: {ratios:?}");
        }
    }

    #[test]
    fn observe_hopeless_foreground_leaves_the_floor_and_comes_back() {
        let mut pid = Pid::new(2_000_000, None);
        for _ in 0..500 {
            pid.observe(50.0, pid.rate, TICK);
        }
        assert_eq!(pid.rate(), 2_000_000);
        for _ in 0..50 {
            pid.observe(0.5, pid.rate, TICK);
        }
        assert!(pid.rate() > 50_000_000, "ten quiet seconds later: {}", pid.rate());
    }

    #[test]
    fn observe_names_what_holds_the_rate() {
        let mut pid = Pid::new(1_000_000, Some(10_000_000));
        let limits: Vec<Limit> = (0..40).map(|_| pid.observe(0.5, pid.rate, TICK)).collect();
        assert_eq!((limits[0], limits[39]), (Limit::Foreground, Limit::Cap));
        assert_eq!(pid.observe(0.5, 1_000_000.0, TICK), Limit::Supply);
        assert_eq!(pid.observe(5.0, pid.rate, TICK), Limit::Foreground);
    }
}
