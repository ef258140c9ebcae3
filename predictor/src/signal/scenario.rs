//! Loads over time, made from a seed: what a trigger is tried on.
//!
//! A load is a part of what the host can serve: 1 is where latency begins to hurt. Metrics follow from it, each with its
//! own noise. Growing loads come to stay above 1 (or come back there day by day), fading ones turn round below it, calm
//! ones have no trend; a step gives nobody a chance to see it coming, but still has to be served.

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// Rises in a straight line over the limit, then stays.
    Ramp,
    /// Rises ever faster over the limit, then falls slowly: a crowd.
    FlashCrowd,
    /// Rises and falls day by day, over the limit at noon.
    Diurnal,
    /// Jumps over the limit from one window to the next.
    Step,
    /// Rises, slows down and falls again below the limit.
    Fading,
    /// Swings below the limit.
    Oscillating,
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 6] =
        [Shape::Ramp, Shape::FlashCrowd, Shape::Diurnal, Shape::Step, Shape::Fading, Shape::Oscillating];

    /// The name in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Shape::Ramp => "ramp",
            Shape::FlashCrowd => "flash crowd",
            Shape::Diurnal => "diurnal",
            Shape::Step => "step",
            Shape::Fading => "fading",
            Shape::Oscillating => "oscillating",
        }
    }

    /// Whether it grows over the limit in a way that can be seen coming.
    #[must_use]
    pub fn is_growing(self) -> bool {
        matches!(self, Shape::Ramp | Shape::FlashCrowd | Shape::Diurnal)
    }

    /// Whether it never reaches the limit.
    #[must_use]
    pub fn is_harmless(self) -> bool {
        matches!(self, Shape::Fading | Shape::Oscillating)
    }
}

/// Metrics of one window, each as a part of the value that hurts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// Operations a second.
    pub operations: f64,
    /// Bytes a second.
    pub bytes: f64,
    /// Core utilisation.
    pub utilisation: f64,
    /// Time that requests wait in the queue; grows without bound towards full load.
    pub queue_wait: f64,
}

impl Metrics {
    /// As an array, in the order of [`Metrics::NAMES`].
    #[must_use]
    pub fn values(&self) -> [f64; 4] {
        [self.operations, self.bytes, self.utilisation, self.queue_wait]
    }

    /// Names of the metrics.
    pub const NAMES: [&'static str; 4] = ["operations", "bytes", "utilisation", "queue_wait"];
}

/// One load.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it does.
    pub shape: Shape,
    /// The true load by window.
    pub load: Vec<f64>,
    /// What a host measures of it by window.
    pub metrics: Vec<Metrics>,
}

/// Windows of a scenario: ten minutes of seconds.
pub const WINDOWS: usize = 600;
/// Utilisation at which latency begins to hurt.
const UTILISATION_LIMIT: f64 = 0.8;

impl Scenario {
    /// The scenario of a seed: its shape goes round with the seed, everything else is drawn.
    #[must_use]
    pub fn new(seed: u64) -> Scenario {
        let shape = Shape::ALL[(seed % Shape::ALL.len() as u64) as usize];
        Scenario::of_shape(shape, seed)
    }

    /// A scenario of one shape.
    #[must_use]
    pub fn of_shape(shape: Shape, seed: u64) -> Scenario {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut load = curve(shape, &mut rng);
        // load of its own: a slow random walk that returns, at most a few percent
        let (mut wander, wander_size) = (0.0, between(&mut rng, 0.0, 0.01));
        for value in &mut load {
            wander = 0.95 * wander + wander_size * normal(&mut rng) * 0.3;
            *value = (*value * (1.0 + wander)).max(0.01);
        }
        let noise = between(&mut rng, 0.01, 0.05);
        let metrics = load.iter().map(|load| measured(*load, noise, &mut rng)).collect();
        Scenario { shape, load, metrics }
    }

    /// A load from measured totals, e.g. operations by window of a recorded trace; `limit` is what hurts.
    #[must_use]
    pub fn replayed(totals: &[f64], limit: f64) -> Scenario {
        let load: Vec<f64> = totals.iter().map(|total| total / limit).collect();
        let mut rng = fastrand::Rng::with_seed(0);
        let metrics = load.iter().map(|load| measured(*load, 0.0, &mut rng)).collect();
        let crosses = load.iter().any(|load| *load >= 1.0);
        Scenario { shape: if crosses { Shape::Ramp } else { Shape::Fading }, load, metrics }
    }

    /// The first window whose load hurts.
    #[must_use]
    pub fn crossing(&self) -> Option<usize> {
        self.load.iter().position(|load| *load >= 1.0)
    }
}

fn curve(shape: Shape, rng: &mut fastrand::Rng) -> Vec<f64> {
    let base = between(rng, 0.2, 0.5);
    let start = between(rng, 60.0, 200.0);
    let windows = (0..WINDOWS).map(|window| window as f64);
    match shape {
        Shape::Ramp => {
            let (top, rise) = (between(rng, 1.15, 1.6), between(rng, 60.0, 300.0));
            windows.map(|at| base + (top - base) * ((at - start) / rise).clamp(0.0, 1.0)).collect()
        }
        Shape::FlashCrowd => {
            let (top, doubling) = (between(rng, 1.3, 2.0), between(rng, 15.0, 45.0));
            let (fall, extra) = (between(rng, 150.0, 400.0), 0.02);
            let peak = start + doubling * ((top - base) / (extra * base)).log2();
            let rising = |at: f64| extra * base * ((at - start) / doubling).exp2();
            let value = |at: f64| if at < peak { rising(at) } else { (top - base) * (-(at - peak) / fall).exp() };
            windows.map(|at| base + if at < start { 0.0 } else { value(at) }).collect()
        }
        Shape::Diurnal => {
            let (top, day) = (between(rng, 1.1, 1.4), between(rng, 200.0, 400.0));
            let wave = |at: f64| 0.5 - 0.5 * (std::f64::consts::TAU * at / day).cos();
            windows.map(|at| base + (top - base) * wave(at)).collect()
        }
        Shape::Step => {
            let top = between(rng, 1.1, 1.6);
            windows.map(|at| if at < start { base } else { top }).collect()
        }
        Shape::Fading => {
            let (top, rise) = (between(rng, base + 0.15, 0.92), between(rng, 60.0, 300.0));
            let (hold, fall) = (between(rng, 0.0, 60.0), between(rng, 60.0, 300.0));
            // half of them slow down towards the top, half turn at it
            let is_round = rng.bool();
            let rising = |part: f64| if is_round { 0.5 - 0.5 * (std::f64::consts::PI * part).cos() } else { part };
            let bump = |at: f64| {
                let up = ((at - start) / rise).clamp(0.0, 1.0);
                let down = ((at - start - rise - hold) / fall).clamp(0.0, 1.0);
                rising(up) * rising(1.0 - down)
            };
            windows.map(|at| base + (top - base) * bump(at)).collect()
        }
        Shape::Oscillating => {
            let (top, period) = (between(rng, base + 0.1, 0.9), between(rng, 30.0, 150.0));
            let wave = |at: f64| 0.5 - 0.5 * (std::f64::consts::TAU * at / period).cos();
            windows.map(|at| base + (top - base) * wave(at)).collect()
        }
    }
}

/// Metrics of a load with relative noise.
fn measured(load: f64, noise: f64, rng: &mut fastrand::Rng) -> Metrics {
    let mut noisy = |value: f64| (value * (1.0 + noise * normal(rng))).max(0.0);
    // a queue of random arrivals: the wait at the limit is taken as 1
    let wait = |utilisation: f64| utilisation / (1.0 - utilisation.min(0.99));
    Metrics {
        operations: noisy(load),
        bytes: noisy(load),
        utilisation: noisy(load).min(1.0 / UTILISATION_LIMIT),
        queue_wait: noisy(wait(load * UTILISATION_LIMIT) / wait(UTILISATION_LIMIT)),
    }
}

fn between(rng: &mut fastrand::Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * rng.f64()
}

/// Sum of twelve uniforms: near enough to normal.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shapes_do_what_their_names_say() {
        for seed in 0..300 {
            let scenario = Scenario::new(seed);
            assert_eq!((scenario.load.len(), scenario.metrics.len()), (WINDOWS, WINDOWS));
            let crossing = scenario.crossing();
            let text = scenario.shape.as_str();
            assert_eq!(crossing.is_none(), scenario.shape.is_harmless(), "{text}, seed {seed}: {crossing:?}");
            if scenario.shape.is_growing() {
                // it takes a while to grow, or nobody could see it coming
                assert!(crossing.unwrap() > 40, "{text}, seed {seed}: {crossing:?}");
            }
            let values = scenario.metrics.iter().flat_map(|metrics| metrics.values());
            assert!(values.into_iter().all(|value| value.is_finite() && value >= 0.0));
        }
    }

    #[test]
    fn scenarios_replay_from_their_seed() {
        assert_eq!(Scenario::new(7).metrics, Scenario::new(7).metrics);
        assert_ne!(Scenario::new(7).load, Scenario::new(13).load);
        let replayed = Scenario::replayed(&[10.0, 60.0, 120.0], 100.0);
        assert_eq!((replayed.crossing(), replayed.shape), (Some(2), Shape::Ramp));
    }
}
