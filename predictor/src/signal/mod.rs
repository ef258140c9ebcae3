//! The signal that starts a shadow: one metric's level and slope, and when they will cross its threshold.
//!
//! Holt's double exponential smoothing gives level and slope; the residuals' smoothed size tells how much of the slope
//! is noise. States:
//!
//! | state | meaning | leaves when |
//! |---|---|---|
//! | quiet | no crossing in sight | the crossing is within the lead time in `confirm_windows` windows in a row, or the level is over the threshold: `Raised` |
//! | raised | a crossing is expected or has come | value and forecast stay below `clear_ratio * threshold` for `clear_windows` windows: `Cleared` |
//! | cooling | cleared a moment ago | `cool_down_windows` have passed |
//!
//! [`Signal`] follows one metric and knows no cost; [`Watch`] follows several, weighs the cost of a move against its gain,
//! and is what a host runs. [`contest`] tries it against a reactive trigger and one that knows the future.

pub mod contest;
mod forecast;
pub mod scenario;
mod watch;

pub use watch::{Watch, WatchConfig};

use crate::error::{Error, Result};

/// Settings of a [`Signal`]. Times are in windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignalConfig {
    /// The value that hurts, in the metric's unit; positive.
    pub threshold: f64,
    /// How long before the crossing the signal is wanted: the time that a shadow takes.
    pub lead_windows: f64,
    /// Share of one window in the level, in (0, 1].
    pub level_alpha: f64,
    /// Share of one window in the slope, in (0, 1].
    pub slope_alpha: f64,
    /// Windows in a row that must expect the crossing.
    pub confirm_windows: u32,
    /// The signal clears below this share of the threshold, in (0, 1).
    pub clear_ratio: f64,
    /// Windows in a row that must be that low.
    pub clear_windows: u32,
    /// Windows after a clearing in which nothing is raised.
    pub cool_down_windows: u32,
}

impl SignalConfig {
    /// The usual settings for a threshold and a lead time.
    #[must_use]
    pub fn new(threshold: f64, lead_windows: f64) -> SignalConfig {
        SignalConfig {
            threshold,
            lead_windows,
            level_alpha: 0.4,
            slope_alpha: 0.15,
            confirm_windows: 3,
            clear_ratio: 0.85,
            clear_windows: 5,
            cool_down_windows: 10,
        }
    }

    fn check(&self) -> Result<()> {
        let fail = |name, what: String| Err(Error::Config { name, what });
        let share = |value: f64| value > 0.0 && value <= 1.0;
        if !(self.threshold.is_finite() && self.threshold > 0.0) {
            return fail("threshold", format!("{}: a positive number", self.threshold));
        }
        if !(self.lead_windows.is_finite() && self.lead_windows >= 0.0) {
            return fail("lead_windows", format!("{}: not negative", self.lead_windows));
        }
        if !share(self.level_alpha) {
            return fail("level_alpha", format!("{}: above 0, at most 1", self.level_alpha));
        }
        if !share(self.slope_alpha) {
            return fail("slope_alpha", format!("{}: above 0, at most 1", self.slope_alpha));
        }
        if !(share(self.clear_ratio) && self.clear_ratio < 1.0) {
            return fail("clear_ratio", format!("{}: above 0, below 1", self.clear_ratio));
        }
        if self.confirm_windows == 0 || self.clear_windows == 0 {
            return fail("confirm_windows, clear_windows", "at least 1".into());
        }
        Ok(())
    }
}

/// What changed with the last window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SignalEvent {
    /// The threshold will be crossed in about so many windows; 0 when it has been.
    Raised {
        /// Expected windows until the crossing, at most the lead time.
        crossing_in_windows: f64,
    },
    /// The trend has faded: a shadow that was started for it is not needed.
    Cleared,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Quiet { expecting: u32 },
    Raised { low: u32 },
    Cooling { left: u32 },
}

/// Forecast of one metric. Cost: a few dozen operations a window, no memory beside itself.
///
/// # Example
/// ```
/// use antumbra_predictor::signal::{Signal, SignalConfig, SignalEvent};
/// // 1,000 requests a second hurt, a shadow takes five windows.
/// let mut signal = Signal::new(SignalConfig::new(1_000.0, 5.0))?;
/// let raised = (0..40).find_map(|window| signal.observe(f64::from(window) * 30.0)).expect("it grows");
/// assert!(matches!(raised, SignalEvent::Raised { crossing_in_windows } if crossing_in_windows > 0.0));
/// assert!(signal.is_raised() && signal.trend().1 > 0.0);
/// # Ok::<(), antumbra_predictor::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Signal {
    config: SignalConfig,
    state: State,
    level: f64,
    slope: f64,
    /// Smoothed absolute residual of the one-window forecast.
    noise: f64,
    windows: u64,
}

impl Signal {
    /// A quiet signal.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that is out of range.
    pub fn new(config: SignalConfig) -> Result<Signal> {
        config.check()?;
        let state = State::Quiet { expecting: 0 };
        Ok(Signal { config, state, level: 0.0, slope: 0.0, noise: 0.0, windows: 0 })
    }

    /// Takes in the metric of the window just closed. A value that is no finite number counts as the present level.
    pub fn observe(&mut self, value: f64) -> Option<SignalEvent> {
        if !value.is_finite() && self.windows == 0 {
            return None;
        }
        let value = if value.is_finite() { value } else { self.level };
        self.smooth(value);
        let crossing = self.crossing_in_windows(value);
        let config = self.config;
        match self.state {
            State::Quiet { expecting } => {
                let near = crossing.filter(|windows| *windows <= config.lead_windows);
                let expecting = if near.is_some() { expecting + 1 } else { 0 };
                self.state = State::Quiet { expecting };
                let crossing_in_windows = near?;
                if expecting < config.confirm_windows && crossing_in_windows > 0.0 {
                    return None;
                }
                self.state = State::Raised { low: 0 };
                Some(SignalEvent::Raised { crossing_in_windows })
            }
            State::Raised { low } => {
                let clear_below = config.clear_ratio * config.threshold;
                let comes_back = crossing.is_some_and(|windows| windows <= config.lead_windows);
                let is_low = value < clear_below && self.level < clear_below && !comes_back;
                let low = if is_low { low + 1 } else { 0 };
                if low < config.clear_windows {
                    self.state = State::Raised { low };
                    return None;
                }
                self.state = State::Cooling { left: config.cool_down_windows };
                Some(SignalEvent::Cleared)
            }
            State::Cooling { left } => {
                self.state = match left {
                    0 | 1 => State::Quiet { expecting: 0 },
                    _ => State::Cooling { left: left - 1 },
                };
                None
            }
        }
    }

    /// Level (the metric's unit) and slope (unit a window) of the trend.
    #[must_use]
    pub fn trend(&self) -> (f64, f64) {
        (self.level, self.slope)
    }

    /// Whether a crossing has been signalled and not cleared.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        matches!(self.state, State::Raised { .. })
    }

    fn smooth(&mut self, value: f64) {
        let config = self.config;
        self.windows += 1;
        if self.windows == 1 {
            self.level = value;
            return;
        }
        let residual = value - (self.level + self.slope);
        // the first residuals would leave a large "noise" behind that hides a trend: full weight to early windows
        let weight = (1.0 / (self.windows - 1) as f64).max(config.slope_alpha);
        self.noise += weight * (residual.abs() - self.noise);
        self.level += self.slope + config.level_alpha * residual;
        self.slope += config.level_alpha * config.slope_alpha * residual;
    }

    /// Windows until level and slope reach the threshold; none while they do not, or the slope may be mere noise.
    fn crossing_in_windows(&self, value: f64) -> Option<f64> {
        let config = &self.config;
        if value >= config.threshold {
            return Some(0.0);
        }
        let slope_noise = self.noise * (config.level_alpha * config.slope_alpha).sqrt();
        if self.slope <= slope_noise * 0.5 || self.slope <= f64::EPSILON * config.threshold {
            return None;
        }
        Some(((config.threshold - self.level) / self.slope).max(0.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn events(config: SignalConfig, values: impl Iterator<Item = f64>) -> Vec<(usize, SignalEvent)> {
        let mut signal = Signal::new(config).unwrap();
        values.enumerate().filter_map(|(window, value)| signal.observe(value).map(|event| (window, event))).collect()
    }

    fn noisy(seed: u64, size: f64) -> impl FnMut() -> f64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        // sum of uniforms: near enough to normal, standard deviation `size`
        move || ((0..12).map(|_| rng.f64()).sum::<f64>() - 6.0) * size
    }

    #[test]
    fn ramp_raises_before_the_crossing_within_the_lead_time() {
        for noise in [0.0, 1.0, 3.0] {
            for seed in 0..20 {
                let mut noise = noisy(seed, noise);
                let values = (0..120).map(|window| 20.0 + f64::from(window) + noise());
                let got = events(SignalConfig::new(100.0, 20.0), values);
                let (window, SignalEvent::Raised { crossing_in_windows }) = got[0] else { panic!("{got:?}") };
                assert!((45..80).contains(&window), "raised at {window}");
                assert!(crossing_in_windows <= 20.0);
                assert_eq!(got.len(), 1, "{got:?}");
            }
        }
    }

    #[test]
    fn flat_never_raises() {
        assert!(events(SignalConfig::new(100.0, 50.0), (0..5000).map(|_| 80.0)).is_empty());
        assert!(events(SignalConfig::new(100.0, 50.0), (0..500).map(|_| 0.0)).is_empty());
    }

    #[test]
    fn step_over_the_threshold_raises_at_once() {
        let values = (0..60).map(|window| if window < 40 { 30.0 } else { 140.0 });
        let got = events(SignalConfig::new(100.0, 5.0), values);
        assert_eq!(got, [(40, SignalEvent::Raised { crossing_in_windows: 0.0 })]);
    }

    #[test]
    fn fading_load_clears_once_then_cools_down() {
        let values = (0..200).map(|window| match window {
            0..60 => 20.0 + 1.5 * f64::from(window),
            60..100 => 110.0 - 2.0 * f64::from(window - 60),
            _ => 30.0,
        });
        let got = events(SignalConfig::new(100.0, 15.0), values);
        assert!(matches!(got[0].1, SignalEvent::Raised { .. }), "{got:?}");
        assert!(matches!(got[1], (70..110, SignalEvent::Cleared)), "{got:?}");
        assert_eq!(got.len(), 2);
    }

    #[test]
    fn cool_down_delays_the_next_signal() {
        let mut config = SignalConfig::new(100.0, 0.0);
        config.cool_down_windows = 30;
        let values = (0..120).map(|window| if window % 20 < 3 { 150.0 } else { 10.0 });
        let raised: Vec<usize> = events(config, values)
            .into_iter()
            .filter_map(|(window, event)| matches!(event, SignalEvent::Raised { .. }).then_some(window))
            .collect();
        assert!(raised.len() >= 2 && raised.windows(2).all(|pair| pair[1] - pair[0] >= 40), "{raised:?}");
    }

    #[test]
    fn noise_does_not_flap() {
        let (mut quiet, mut changes) = (0, 0);
        for seed in 0..50 {
            let mut noise = noisy(seed, 5.0);
            quiet += events(SignalConfig::new(100.0, 10.0), (0..1000).map(|_| 60.0 + noise())).len();
            // right at the threshold: it may raise, but not change its mind over and over
            let mut noise = noisy(seed + 1000, 5.0);
            changes = changes.max(events(SignalConfig::new(100.0, 10.0), (0..1000).map(|_| 98.0 + noise())).len());
        }
        assert!(quiet <= 1, "{quiet} events in 50,000 windows far below the threshold");
        assert!(changes <= 3, "{changes} changes in one run");
    }

    #[test]
    fn values_that_are_no_numbers_change_nothing() {
        let values = (0..300).map(|window| if window % 7 == 0 { f64::NAN } else { 50.0 });
        assert!(events(SignalConfig::new(100.0, 10.0), values).is_empty());
        let mut signal = Signal::new(SignalConfig::new(1.0, 1.0)).unwrap();
        signal.observe(f64::INFINITY);
        assert!(signal.trend().0.is_finite() && signal.trend().1.is_finite());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let broken = |change: fn(&mut SignalConfig)| {
            let mut config = SignalConfig::new(1.0, 1.0);
            change(&mut config);
            Signal::new(config).unwrap_err().to_string()
        };
        assert!(broken(|c| c.threshold = f64::NAN).starts_with("threshold: "));
        assert!(broken(|c| c.lead_windows = -1.0).starts_with("lead_windows: "));
        assert!(broken(|c| c.level_alpha = 0.0).starts_with("level_alpha: "));
        assert!(broken(|c| c.slope_alpha = 1.5).starts_with("slope_alpha: "));
        assert!(broken(|c| c.clear_ratio = 1.0).starts_with("clear_ratio: "));
        assert!(broken(|c| c.confirm_windows = 0).contains("at least 1"));
    }
}
