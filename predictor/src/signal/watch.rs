//! Several metrics of one partition or shard, and the decision that follows from them.
//!
//! Each metric, as a part of the value that hurts, is followed by a level, a slope and a bend, smoothed together
//! (Holt's method with one term more: a load that slows down will not cross). From the smoothed residuals follows how
//! sure the forecast is. The decision weighs cost against gain: a shadow is worth it when
//!
//! ```text
//! P(a metric is over its limit when the shadow would be ready) * windows that would hurt * cost of such a window
//!     >  cost of copying
//! ```
//!
//! The probability is corrected by experience: each signal that had to be cleared unused lowers it, by Laplace's rule
//! over what happened lately, so that a load that swings below its limit is not believed over and over.
//!
//! | state | meaning | leaves when |
//! |---|---|---|
//! | quiet | not worth it | worth it in `confirm_windows` windows in a row, or a metric is over its limit: `Raised` |
//! | raised | a shadow is under way or ready | every level is below `clear_ratio` and falls, or the forecast stays below the limit, for `clear_windows` windows: `Cleared` |
//! | cooling | cleared a moment ago | `cool_down_windows` have passed |

use super::SignalEvent;
use crate::error::{Error, Result};

/// Settings of a [`Watch`]. Times are in windows, metrics in parts of the value that hurts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WatchConfig {
    /// Windows that a shadow takes until it is ready.
    pub lead_windows: f64,
    /// Memory of the smoothing, 0..1: the weight that the past keeps from one window to the next.
    pub memory: f64,
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
    /// Windows in a row that must be so.
    pub clear_windows: u32,
    /// Windows after a clearing in which nothing is raised, unless a metric is over its limit.
    pub cool_down_windows: u32,
}

impl WatchConfig {
    /// The usual settings where a copy takes `copy_windows`. The signal is wanted earlier than that: to confirm it takes
    /// some windows, and the forecast of a load that grows ever faster is late.
    #[must_use]
    pub fn for_copy(copy_windows: f64) -> WatchConfig {
        WatchConfig {
            lead_windows: 1.7 * copy_windows + 2.0,
            memory: 0.9,
            copy_cost: 20.0,
            overload_windows: 40.0,
            arm_level: 0.6,
            confirm_windows: 2,
            clear_ratio: 0.8,
            clear_windows: 20,
            cool_down_windows: 20,
        }
    }

    fn check(&self) -> Result<()> {
        let fail = |name, what: String| Err(Error::Config { name, what });
        let amounts = [self.lead_windows, self.copy_cost, self.overload_windows, self.arm_level];
        if !amounts.iter().all(|value| value.is_finite() && *value >= 0.0) {
            return fail("lead_windows, copy_cost, overload_windows, arm_level", "finite and not negative".into());
        }
        if !(self.memory > 0.0 && self.memory < 1.0) {
            return fail("memory", format!("{}: above 0, below 1", self.memory));
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

/// Level, slope and bend of one metric.
#[derive(Clone, Copy, Debug, Default)]
struct Trend {
    level: f64,
    slope: f64,
    /// Change of the slope in a window.
    bend: f64,
    /// Smoothed square of the one-window forecast's error.
    variance: f64,
    windows: u64,
}

/// Of the slopes and bends found only this part is believed to last, a window: trends die out.
const DAMPING: f64 = 0.985;

impl Trend {
    fn observe(&mut self, value: f64, memory: f64) {
        self.windows += 1;
        if self.windows == 1 {
            self.level = value;
            return;
        }
        // the memory grows to its full length over the first windows
        let memory = memory.min(1.0 - 1.0 / (1.0 + self.windows as f64));
        let forecast = self.level + self.slope + 0.5 * self.bend;
        let error = value - forecast;
        // gains of the critically damped filter of third order
        let fresh = 1.0 - memory;
        self.level = forecast + (1.0 - memory.powi(3)) * error;
        self.slope += self.bend + 1.5 * fresh * fresh * (1.0 + memory) * error;
        self.bend += fresh.powi(3) * error;
        let weight = (1.0 / self.windows as f64).max(0.05);
        self.variance += weight * (error * error - self.variance);
    }

    /// Level expected in `windows` windows. A bend against the slope ends the trend where it turns; one with it is not
    /// believed: growth that gets ever faster is rare, and noise in the bend weighs quadratically.
    fn ahead(&self, windows: f64) -> f64 {
        let turned = self.slope > 0.0 && self.bend < 0.0;
        let reach = if turned { windows.min(-self.slope / self.bend) } else { windows };
        let bend = if turned { self.bend } else { 0.0 };
        // a damped slope: sum of DAMPING^1..reach
        let travelled = DAMPING * (1.0 - DAMPING.powf(reach)) / (1.0 - DAMPING);
        self.level + self.slope * travelled + 0.5 * bend * reach * reach
    }

    /// Probability that the metric is over its limit in `windows` windows.
    fn over(&self, windows: f64, memory: f64) -> f64 {
        // the slope's error grows with the distance; its size follows from the gains
        let fresh = 1.0 - memory;
        let deviation = self.variance.sqrt() * (0.6 + windows * 1.2 * fresh * fresh.sqrt()) + 0.01;
        let excess = (self.ahead(windows) - 1.0) / deviation;
        // logistic curve near the normal distribution's
        1.0 / (1.0 + (-1.702 * excess).exp())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Quiet { worth: u32 },
    Raised { calm: u32 },
    Cooling { left: u32 },
}

/// Watches `N` metrics. Cost: some hundred operations a window and metric, no memory beside itself.
#[derive(Clone, Debug)]
pub struct Watch<const N: usize> {
    config: WatchConfig,
    trends: [Trend; N],
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
        Ok(Watch {
            config,
            trends: [Trend::default(); N],
            state: State::Quiet { worth: 0 },
            misses: 0.0,
            confirmed: false,
        })
    }

    /// Takes in the metrics of the window just closed, each over its limit (1 = it hurts). A value that is no finite
    /// number counts as the present level.
    pub fn observe(&mut self, metrics: [f64; N]) -> Option<SignalEvent> {
        let config = self.config;
        let mut hurts = false;
        for (trend, value) in self.trends.iter_mut().zip(metrics) {
            if value.is_finite() || trend.windows > 0 {
                let value = if value.is_finite() { value } else { trend.level };
                trend.observe(value, config.memory);
                hurts |= value >= 1.0 && trend.level >= 0.97;
            }
        }
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
                let calm = if hurts || worth || self.highest() >= config.clear_ratio { 0 } else { calm + 1 };
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

    /// Probability that some metric is over its limit when a shadow begun now would be ready.
    #[must_use]
    pub fn probability(&self) -> f64 {
        let over = |trend: &Trend| trend.over(self.config.lead_windows, self.config.memory);
        // metrics follow one load: the median of them, so that neither one noisy metric nor one deaf one decides
        let mut all = self.trends.each_ref().map(over);
        all.sort_by(f64::total_cmp);
        if N == 0 { 0.0 } else { all[N / 2] / (1.0 + self.misses) }
    }

    /// The shadow was put to use: the signal was right, whatever the metrics do afterwards.
    pub fn used(&mut self) {
        self.confirmed = true;
        self.misses = 0.0;
    }

    /// Highest smoothed level of the metrics.
    #[must_use]
    pub fn highest(&self) -> f64 {
        self.trends.iter().map(|trend| trend.level).fold(0.0, f64::max)
    }

    /// Whether a crossing has been signalled and not cleared.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        matches!(self.state, State::Raised { .. })
    }

    fn is_worth_it(&self) -> bool {
        let config = &self.config;
        let armed = self.highest() >= config.arm_level;
        armed && self.probability() * config.overload_windows > config.copy_cost
    }

    /// Windows until the first metric is expected over its limit, at most the lead time.
    fn crossing(&self) -> f64 {
        let lead = self.config.lead_windows;
        let crosses = |windows: &f64| self.trends.iter().any(|trend| trend.ahead(*windows) >= 1.0);
        (0..=lead as u32).map(f64::from).find(crosses).unwrap_or(lead)
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
    fn load_that_turns_clears_and_teaches_distrust() {
        let wave = |at: i32| 0.6 + 0.32 * (f64::from(at) / 25.0).sin();
        let raised = |windows| {
            events((0..windows).map(wave)).iter().filter(|event| matches!(event.1, SignalEvent::Raised { .. })).count()
        };
        // a dozen swings; without experience each would raise
        assert!(raised(1900) <= 4, "{}", raised(1900));
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
        assert!(broken(|c| c.memory = 1.0).starts_with("memory: "));
        assert!(broken(|c| c.copy_cost = f64::NAN).contains("copy_cost"));
        assert!(broken(|c| c.clear_ratio = 0.0).starts_with("clear_ratio: "));
        assert!(broken(|c| c.confirm_windows = 0).contains("at least 1"));
    }
}
