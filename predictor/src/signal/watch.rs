//! Several metrics of one partition or shard, and the decision that follows from them.
//!
//! The metrics near the highest, each as a part of the value that hurts, make one load, whose course is forecast by
//! trends and cycles learned from its own history ([`forecast`](super::forecast)). The decision weighs cost against
//! gain: a shadow is worth it when
//!
//! ```text
//! P(the load is over its limit when the shadow would be ready) * windows that would hurt
//!     >  windows that copying is worth * (1 + signals that had to be cleared unused lately)
//! ```
//!
//! It is dropped as soon as no probability of the next while speaks for it any more: what is not copied yet is saved.
//!
//! | state | meaning | leaves when |
//! |---|---|---|
//! | quiet | not worth it | worth it in `confirm_windows` windows in a row, or a metric is over its limit: `Raised` |
//! | raised | a shadow is under way or ready | every level is below `clear_ratio` and every probability below `clear_probability` for `clear_windows` windows: `Cleared` |
//! | cooling | cleared a moment ago | `cool_down_windows` have passed |

use super::SignalEvent;
use super::forecast::{Forecast, Horizon};
use crate::error::{Error, Result};

/// Settings of a [`Watch`]. Times are in windows, metrics in parts of the value that hurts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WatchConfig {
    /// Windows that a shadow takes until it is ready.
    pub lead_windows: f64,
    /// What copying costs, in windows that hurt: the exchange rate between the two.
    pub copy_cost: f64,
    /// Windows that an overload lasts if nothing is done.
    pub overload_windows: f64,
    /// Below this level nothing is raised, whatever the trend: forecasts from far away are guesses.
    pub arm_level: f64,
    /// Windows in a row in which it must be worth it.
    pub confirm_windows: u32,
    /// Level below which a signal may be cleared.
    pub clear_ratio: f64,
    /// Probability of being over the limit, within twice the lead time, below which it may be cleared.
    pub clear_probability: f64,
    /// Windows in a row that must be so.
    pub clear_windows: u32,
    /// Windows after a clearing in which nothing is raised, unless a metric is over its limit.
    pub cool_down_windows: u32,
}

impl WatchConfig {
    /// The usual settings where a copy takes `copy_windows`. The signal is wanted a little earlier than that: forecasts
    /// of a load that grows ever faster are late. Tuned on scenarios of seeds below 1200.
    #[must_use]
    pub fn for_copy(copy_windows: f64) -> WatchConfig {
        WatchConfig {
            lead_windows: 1.25 * copy_windows + 2.0,
            copy_cost: 26.0,
            overload_windows: 40.0,
            arm_level: 0.6,
            confirm_windows: 1,
            clear_ratio: 0.88,
            clear_probability: 0.15,
            clear_windows: 3,
            cool_down_windows: 30,
        }
    }

    fn check(&self) -> Result<()> {
        let fail = |name, what: String| Err(Error::Config { name, what });
        let amounts = [self.lead_windows, self.copy_cost, self.overload_windows, self.arm_level];
        if !amounts.iter().all(|value| value.is_finite() && *value >= 0.0) {
            return fail("lead_windows, copy_cost, overload_windows, arm_level", "finite and not negative".into());
        }
        if self.lead_windows > LEAD_MAX {
            return fail("lead_windows", format!("{}: at most {LEAD_MAX}", self.lead_windows));
        }
        if !(self.clear_probability > 0.0 && self.clear_probability < 1.0) {
            return fail("clear_probability", format!("{}: above 0, below 1", self.clear_probability));
        }
        if !(self.clear_ratio > 0.0 && self.clear_ratio < 1.0) {
            return fail("clear_ratio", format!("{}: above 0, below 1", self.clear_ratio));
        }
        if self.confirm_windows == 0 || self.clear_windows == 0 {
            return fail("confirm_windows, clear_windows", "at least 1".into());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Quiet { worth: u32 },
    Raised { calm: u32 },
    Cooling { left: u32 },
}

/// Longest lead time, in windows: forecasts from farther away are guesses, and setting up a watch takes time.
const LEAD_MAX: f64 = 100_000.0;
/// Parts of the lead time at which the probability is asked; the first one is what a shadow is raised by.
const HORIZONS: [f64; 5] = [1.0, 0.25, 0.5, 1.5, 2.0];
/// Share of one window in the smoothed level of each metric.
const LEVEL_ALPHA: f64 = 0.2;
/// Metrics are followed together as far as they are near the highest: a tenth below it a metric counts a seventh.
const NEARNESS: f64 = 20.0;
/// No metric is believed to be farther over its limit.
const METRIC_MAX: f64 = 100.0;

/// Watches `N` metrics. Cost: some thousand operations a window, no memory beside itself.
///
/// # Example
/// ```
/// use antumbra_predictor::signal::{SignalEvent, Watch, WatchConfig};
/// // Two metrics, each as a part of its limit; a copy takes five windows.
/// let mut watch = Watch::<2>::new(WatchConfig::for_copy(5.0))?;
/// let raised = (0..200).find_map(|window| watch.observe([f64::from(window) * 0.01, 0.1]));
/// assert!(matches!(raised, Some(SignalEvent::Raised { .. })) && watch.is_raised());
/// assert!(watch.highest() < 1.0, "before it hurts");
/// assert!(watch.expected() > watch.highest() && watch.probability() > 0.1 && watch.is_worth_it());
/// assert!(watch.crossing() <= watch.config().lead_windows);
/// watch.used(); // it was switched to
/// watch.set_config(WatchConfig::for_copy(8.0))?; // the next copy will take longer
/// # Ok::<(), antumbra_predictor::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Watch<const N: usize> {
    config: WatchConfig,
    levels: [f64; N],
    windows: u64,
    forecast: Forecast,
    horizons: [Horizon; HORIZONS.len()],
    state: State,
    /// Signals cleared unused, faded by time.
    misses: f64,
    /// Whether the load hurt, or the shadow was used, since the signal was raised.
    confirmed: bool,
}

/// What is left of a miss after each window: half after 700.
const MISS_KEPT: f64 = 0.999;

impl<const N: usize> Watch<N> {
    /// A quiet watch.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of its range.
    pub fn new(config: WatchConfig) -> Result<Watch<N>> {
        config.check()?;
        let forecast = Forecast::new();
        Ok(Watch {
            config,
            levels: [0.0; N],
            windows: 0,
            horizons: HORIZONS.map(|part| forecast.horizon((config.lead_windows * part) as u32)),
            forecast,
            state: State::Quiet { worth: 0 },
            misses: 0.0,
            confirmed: false,
        })
    }

    /// Takes in the metrics of the window just closed, each over its limit (1 = it hurts). A value that is no finite
    /// number counts as the present level.
    pub fn observe(&mut self, metrics: [f64; N]) -> Option<SignalEvent> {
        let config = self.config;
        self.windows += 1;
        let mut hurts = false;
        let mut values = metrics;
        for (level, value) in self.levels.iter_mut().zip(&mut values) {
            *value = if value.is_finite() { value.clamp(0.0, METRIC_MAX) } else { *level };
            *level += LEVEL_ALPHA.max(1.0 / self.windows as f64) * (*value - *level);
            hurts |= *value >= 1.0 && *level >= 0.97;
        }
        let highest = self.highest();
        // the metrics that may hurt first, together: their noise averages out
        let (mut sum, mut weights) = (0.0, 0.0);
        for (level, value) in self.levels.iter().zip(values) {
            let weight = (NEARNESS * (level - highest)).exp();
            sum += weight * value;
            weights += weight;
        }
        self.forecast.observe(if weights > 0.0 { sum / weights } else { 0.0 });
        let worth = self.is_worth_it();
        self.misses *= MISS_KEPT;
        self.confirmed |= hurts;
        match self.state {
            State::Quiet { worth: before } => {
                let count = if worth { before + 1 } else { 0 };
                self.state = State::Quiet { worth: count };
                if count < config.confirm_windows && !hurts {
                    return None;
                }
                self.state = State::Raised { calm: 0 };
                self.confirmed = hurts;
                Some(SignalEvent::Raised { crossing_in_windows: if hurts { 0.0 } else { self.crossing() } })
            }
            State::Raised { calm } => {
                let hopeful = hurts || highest >= config.clear_ratio || self.hope() >= config.clear_probability;
                let calm = if hopeful { 0 } else { calm + 1 };
                self.state = State::Raised { calm };
                if calm < config.clear_windows {
                    return None;
                }
                self.state = State::Cooling { left: config.cool_down_windows };
                self.misses += if self.confirmed { 0.0 } else { 1.0 };
                Some(SignalEvent::Cleared)
            }
            State::Cooling { left } if hurts || left <= 1 => {
                self.state = State::Quiet { worth: 0 };
                None
            }
            State::Cooling { left } => {
                self.state = State::Cooling { left: left - 1 };
                None
            }
        }
    }

    /// Probability that the load is over its limit when a shadow begun now would be ready.
    #[must_use]
    pub fn probability(&self) -> f64 {
        self.forecast.over(&self.horizons[0])
    }

    /// Whether a shadow begun now is expected to gain more than it costs.
    #[must_use]
    pub fn is_worth_it(&self) -> bool {
        let config = &self.config;
        let gain = self.probability() * config.overload_windows;
        self.highest() >= config.arm_level && gain > config.copy_cost * (1.0 + self.misses)
    }

    /// The highest probability within twice the lead time.
    fn hope(&self) -> f64 {
        self.horizons.iter().map(|horizon| self.forecast.over(horizon)).fold(0.0, f64::max)
    }

    /// The shadow was put to use: the signal was right, whatever the metrics do afterwards.
    pub fn used(&mut self) {
        self.confirmed = true;
        self.misses = 0.0;
    }

    /// Highest smoothed level of the metrics.
    #[must_use]
    pub fn highest(&self) -> f64 {
        self.levels.iter().copied().fold(0.0, f64::max)
    }

    /// Whether a crossing has been signalled and not cleared.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        matches!(self.state, State::Raised { .. })
    }

    /// The same for a copy of another length, from the next window on; what was learned of the load stays.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of its range.
    pub fn set_config(&mut self, config: WatchConfig) -> Result<()> {
        config.check()?;
        if config.lead_windows as u32 != self.config.lead_windows as u32 {
            self.horizons = HORIZONS.map(|part| self.forecast.horizon((config.lead_windows * part) as u32));
        }
        self.config = config;
        Ok(())
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &WatchConfig {
        &self.config
    }

    /// The load that is expected when a shadow begun now would be ready.
    #[must_use]
    pub fn expected(&self) -> f64 {
        self.forecast.ahead(self.config.lead_windows as u32)
    }

    /// Windows until the load is expected over its limit, at most the lead time.
    #[must_use]
    pub fn crossing(&self) -> f64 {
        let lead = self.config.lead_windows;
        (0..=lead as u32).find(|windows| self.forecast.ahead(*windows) >= 1.0).map_or(lead, f64::from)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn events(values: impl Iterator<Item = f64>) -> Vec<(usize, SignalEvent)> {
        let mut watch = Watch::<2>::new(WatchConfig::for_copy(20.0)).unwrap();
        values.enumerate().filter_map(|(at, value)| watch.observe([value, value]).map(|event| (at, event))).collect()
    }

    #[test]
    fn ramp_raises_ahead_of_the_copy() {
        let got = events((0..200).map(|at| 0.3 + 0.005 * f64::from(at)));
        let (window, SignalEvent::Raised { crossing_in_windows }) = got[0] else { panic!("{got:?}") };
        // it crosses at 140
        assert!((95..125).contains(&window), "{window}");
        assert!((5.0..=40.0).contains(&crossing_in_windows), "{crossing_in_windows}");
    }

    #[test]
    fn flat_load_below_the_limit_is_quiet_and_one_over_it_raises() {
        assert!(events((0..2000).map(|_| 0.9)).is_empty());
        let got = events((0..100).map(|at| if at < 50 { 0.5 } else { 1.2 }));
        assert!(matches!(got[0], (50..54, SignalEvent::Raised { .. })), "{got:?}");
    }

    #[test]
    fn load_that_slows_down_below_the_limit_is_quiet() {
        let curve = |at: i32| 0.3 + 0.55 * (0.5 - 0.5 * (std::f64::consts::PI * f64::from(at.min(200)) / 100.0).cos());
        assert!(events((0..400).map(curve)).is_empty());
    }

    #[test]
    fn load_that_swings_below_the_limit_is_known_after_its_first_cycle() {
        let wave = |at: i32| 0.6 + 0.32 * (f64::from(at) / 25.0).sin();
        let raised = |windows| {
            events((0..windows).map(wave)).iter().filter(|event| matches!(event.1, SignalEvent::Raised { .. })).count()
        };
        // a dozen swings; its cycle is known after the first
        assert!(raised(1900) <= 1, "{}", raised(1900));
    }

    #[test]
    fn values_that_are_no_numbers_change_nothing() {
        assert!(events((0..300).map(|at| if at % 7 == 0 { f64::NAN } else { 0.5 })).is_empty());
        assert!(events((0..300).map(|_| f64::NAN)).is_empty());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let broken = |change: fn(&mut WatchConfig)| {
            let mut config = WatchConfig::for_copy(20.0);
            change(&mut config);
            Watch::<1>::new(config).unwrap_err().to_string()
        };
        assert!(broken(|c| c.lead_windows = 1e9).starts_with("lead_windows: "));
        assert!(broken(|c| c.clear_probability = 1.0).starts_with("clear_probability: "));
        assert!(broken(|c| c.copy_cost = f64::NAN).contains("copy_cost"));
        assert!(broken(|c| c.clear_ratio = 0.0).starts_with("clear_ratio: "));
        assert!(broken(|c| c.confirm_windows = 0).contains("at least 1"));
    }
}
