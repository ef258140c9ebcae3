//! Where a noisy load will be some windows from now, and how sure that is: a bank of Kalman filters, each with one idea
//! of how loads go, mixed by how well each has foreseen the last windows (Bayes' rule with forgetting).
//!
//! | idea | state | forecast |
//! |---|---|---|
//! | trend that lasts, fades or feeds itself | level, slope | straight (Holt's method), flattening or ever steeper |
//! | cycle of a given period | mean, two phases | comes back after a period |
//!
//! All are one linear model, `state' = F state + drift`, `load = H state`. An idea pays for what it leaves open: a cycle
//! whose amplitude is not known yet forecasts widely, so it counts little until the load has turned as it said. The
//! noise of the measurement is taken from second differences, which no trend moves.
//!
//! Loads are parts of the limit: 1 is where it hurts. The constants were tuned on the scenarios of seeds below 1200.

/// Periods of the cycles, in windows; between two of them the phase drifts.
const PERIODS: [f64; 13] = [24.0, 30.0, 37.5, 47.0, 59.0, 73.0, 92.0, 114.0, 143.0, 179.0, 224.0, 279.0, 349.0];
/// Trends: what the slope is multiplied by each window, and its drift as a part of [`SLOPE_DRIFT`].
const TRENDS: [(f64, f64); 7] =
    [(0.93, 1.0), (0.97, 1.0), (1.0, 0.15), (1.0, 0.5), (1.0, 2.0), (1.02, 0.3), (1.035, 0.3)];
const FILTERS: usize = PERIODS.len() + TRENDS.len();

/// Deviations that a window adds to a level, to a slope, and to the phases of a cycle (half as much to its mean).
const LEVEL_DRIFT: f64 = 1.4e-3;
const SLOPE_DRIFT: f64 = 1.9e-4;
const CYCLE_DRIFT: f64 = 1.3e-3;
/// Deviations of what is not known at the start: slope and phases. Of the level nothing is known.
const SLOPE_PRIOR: f64 = 4e-3;
const CYCLE_PRIOR: f64 = 0.1;
/// What a window counts of the one after it when ideas are compared.
const REMEMBERED: f64 = 0.985;
/// Share of one window in the measured noise, and the deviation below which no measurement is believed.
const NOISE_ALPHA: f64 = 0.035;
const NOISE_FLOOR: f64 = 3e-3;
/// A window that fits no idea decides no more than one that is so many deviations off.
const SURPRISE_MAX: f64 = 5.0;
/// Ideas of less weight are not asked.
const WEIGHT_MIN: f64 = 1e-4;

type Vector = [f64; 3];
type Matrix = [Vector; 3];

fn dot(a: &Vector, b: &Vector) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn times(matrix: &Matrix, vector: &Vector) -> Vector {
    [dot(&matrix[0], vector), dot(&matrix[1], vector), dot(&matrix[2], vector)]
}

/// One idea of how loads go.
#[derive(Clone, Copy, Debug)]
struct Filter {
    transition: Matrix,
    /// Variance that a window adds to each part of the state.
    drift: Vector,
    /// How the load follows from the state.
    load: Vector,
    state: Vector,
    covariance: Matrix,
    /// Logarithm of how likely the last windows were under it.
    log_weight: f64,
}

impl Filter {
    fn new(transition: Matrix, drift: Vector, load: Vector, prior: f64, cycle_prior: f64) -> Filter {
        let square = |deviation: f64| deviation * deviation;
        Filter {
            transition,
            drift: drift.map(square),
            load,
            state: [0.5, 0.0, 0.0],
            covariance: [[1.0, 0.0, 0.0], [0.0, square(prior), 0.0], [0.0, 0.0, square(cycle_prior)]],
            log_weight: 0.0,
        }
    }

    fn trend((lasting, restless): (f64, f64)) -> Filter {
        let transition = [[1.0, 1.0, 0.0], [0.0, lasting, 0.0], [0.0; 3]];
        Filter::new(transition, [LEVEL_DRIFT, restless * SLOPE_DRIFT, 0.0], [1.0, 0.0, 0.0], SLOPE_PRIOR, 0.0)
    }

    fn cycle(period: f64) -> Filter {
        let (sin, cos) = (std::f64::consts::TAU / period).sin_cos();
        let transition = [[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]];
        let drift = [0.5 * CYCLE_DRIFT, CYCLE_DRIFT, CYCLE_DRIFT];
        Filter::new(transition, drift, [1.0, 1.0, 0.0], CYCLE_PRIOR, CYCLE_PRIOR)
    }

    /// Moves on by a window and takes in its load.
    fn learn(&mut self, value: f64, noise: f64) {
        let step = &self.transition;
        self.state = times(step, &self.state);
        let moved = self.covariance.map(|column| times(step, &column));
        let drift = |row: usize, column: usize| if row == column { self.drift[row] } else { 0.0 };
        // the covariance is symmetric, so that its rows are its columns
        let row_of = |row: usize| [moved[0][row], moved[1][row], moved[2][row]];
        self.covariance = std::array::from_fn(|row| {
            std::array::from_fn(|column| dot(&row_of(row), &step[column]) + drift(row, column))
        });
        let spread = times(&self.covariance, &self.load);
        let variance = dot(&spread, &self.load) + noise;
        let error = value - dot(&self.state, &self.load);
        let surprise = (error * error / variance).min(SURPRISE_MAX * SURPRISE_MAX);
        self.log_weight = REMEMBERED * self.log_weight - 0.5 * (surprise + variance.ln());
        for ((state, reach), covariance) in self.state.iter_mut().zip(&spread).zip(&mut self.covariance) {
            let gain = reach / variance;
            *state += gain * error;
            covariance.iter_mut().zip(&spread).for_each(|(entry, spread)| *entry -= gain * spread);
        }
    }

    /// How the load follows from the state after `windows` more, and the variance that is added until then.
    fn view(&self, windows: u32) -> (Vector, f64) {
        let (mut row, mut drift) = (self.load, 0.0);
        for _ in 0..windows {
            drift += row.iter().zip(&self.drift).map(|(part, drift)| part * part * drift).sum::<f64>();
            row = std::array::from_fn(|column| dot(&row, &self.transition.map(|from| from[column])));
        }
        (row, drift)
    }
}

/// A distance that forecasts are wanted for, with what each filter needs for it.
#[derive(Clone, Debug)]
pub(super) struct Horizon([(Vector, f64); FILTERS]);

/// Forecast of one load. Cost: some thousand operations a window, no memory beside itself.
#[derive(Clone, Debug)]
pub(super) struct Forecast {
    filters: [Filter; FILTERS],
    /// The last two loads, newest first.
    before: [f64; 2],
    /// Variance of the measurement.
    noise: f64,
    windows: u64,
}

impl Forecast {
    /// Knows nothing.
    pub(super) fn new() -> Forecast {
        let filter = |at: usize| match TRENDS.get(at) {
            Some(trend) => Filter::trend(*trend),
            None => Filter::cycle(PERIODS[at - TRENDS.len()]),
        };
        Forecast { filters: std::array::from_fn(filter), before: [0.0; 2], noise: 1e-3, windows: 0 }
    }

    /// The distance of so many windows.
    pub(super) fn horizon(&self, windows: u32) -> Horizon {
        Horizon(self.filters.each_ref().map(|filter| filter.view(windows)))
    }

    /// Takes in a window's load, a finite number.
    pub(super) fn observe(&mut self, value: f64) {
        self.windows += 1;
        if self.windows > 2 {
            let bend = value - 2.0 * self.before[0] + self.before[1];
            let weight = NOISE_ALPHA.max(1.0 / (4.0 + self.windows as f64));
            // a jump is no noise: one window counts nine times the noise at most
            self.noise += weight * ((bend * bend / 6.0).min(9.0 * self.noise) - self.noise);
        }
        self.before = [value, self.before[0]];
        let noise = self.noise + NOISE_FLOOR * NOISE_FLOOR;
        self.filters.iter_mut().for_each(|filter| filter.learn(value, noise));
    }

    /// Probability that the load is over its limit at that distance.
    pub(super) fn over(&self, horizon: &Horizon) -> f64 {
        self.mixed(|at, filter| {
            let (row, drift) = &horizon.0[at];
            let variance = dot(&times(&filter.covariance, row), row) + drift;
            let excess = (dot(row, &filter.state) - 1.0) / (variance.max(0.0).sqrt() + NOISE_FLOOR);
            // logistic curve near the normal distribution's
            1.0 / (1.0 + (-1.702 * excess).exp())
        })
    }

    /// The load expected in `windows` windows.
    pub(super) fn ahead(&self, windows: u32) -> f64 {
        self.mixed(|_, filter| dot(&filter.view(windows).0, &filter.state))
    }

    /// The mean of what the filters say.
    fn mixed(&self, say: impl Fn(usize, &Filter) -> f64) -> f64 {
        let best = self.filters.iter().map(|filter| filter.log_weight).fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (at, filter) in self.filters.iter().enumerate() {
            let weight = (filter.log_weight - best).exp();
            if weight > WEIGHT_MIN {
                sum += weight * say(at, filter);
                weights += weight;
            }
        }
        sum / weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(loads: impl Iterator<Item = f64>) -> Forecast {
        let mut forecast = Forecast::new();
        loads.for_each(|load| forecast.observe(load));
        forecast
    }

    #[test]
    fn line_goes_on() {
        let forecast = after((0..80).map(|at| 0.2 + 0.005 * f64::from(at)));
        // it stands at 0.595
        assert!((forecast.ahead(40) - 0.795).abs() < 0.02, "{}", forecast.ahead(40));
        assert!(forecast.over(&forecast.horizon(40)) < 0.01 && forecast.over(&forecast.horizon(120)) > 0.9);
    }

    #[test]
    fn cycle_comes_back() {
        for period in [31.0, 80.0, 210.0] {
            let load = |at: f64| 0.6 + 0.3 * (std::f64::consts::TAU * at / period).sin();
            // three periods, and up to where it rises fastest
            let now = (3.0 * period) as i32;
            let forecast = after((0..=now).map(|at| load(f64::from(at))));
            // farther away a period between two of the known ones is off in its phase
            for (ahead, tolerance) in [(10, 0.08), (20, 0.08), (40, 0.15)] {
                let wanted = load(f64::from(now + ahead));
                let got = forecast.ahead(ahead as u32);
                assert!(
                    (got - wanted).abs() < tolerance,
                    "period {period}, {ahead} windows ahead: {got}, not {wanted}"
                );
            }
            assert!(forecast.over(&forecast.horizon(20)) < 0.1, "period {period}");
        }
    }

    #[test]
    fn many_windows_and_wild_loads_stay_finite() {
        let mut rng = fastrand::Rng::with_seed(1);
        let forecast = after((0..100_000).map(|at| if at % 1000 < 3 { 100.0 } else { 0.5 + 0.1 * rng.f64() }));
        assert!(forecast.ahead(50).is_finite() && (0.0..=1.0).contains(&forecast.over(&forecast.horizon(50))));
        let still = after((0..100_000).map(|_| 0.9));
        assert!((still.ahead(50) - 0.9).abs() < 1e-3 && still.over(&still.horizon(50)) < 0.05);
    }
}
