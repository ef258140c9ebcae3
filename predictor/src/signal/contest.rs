//! Triggers against each other on [`Scenario`]s: who raises in time, how often for nothing, and what it costs.
//!
//! A move takes [`Contest::copy_windows`] from the signal to the switchover; from then on the host serves half of its
//! load. Copying itself costs a little of the host's capacity. A window whose load is over the limit is a violation. A
//! shadow that is ready before it is needed waits, kept current; it is dropped when the signal clears, and what was
//! copied by then is wasted. The move is made when the load is over the limit, or has come within a hair of it.

use serde::Serialize;

use super::SignalEvent;
use super::scenario::{Scenario, Shape};
use super::watch::{Watch, WatchConfig};
use crate::error::Result;

/// Rules of a contest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contest {
    /// Windows that copying takes.
    pub copy_windows: usize,
    /// Load that copying adds, as a part of the limit.
    pub copy_load: f64,
    /// Load at which a ready shadow is taken over.
    pub move_level: f64,
    /// Bytes of one copy.
    pub copy_bytes: u64,
}

impl Default for Contest {
    fn default() -> Contest {
        Contest { copy_windows: 20, copy_load: 0.03, move_level: 0.97, copy_bytes: 4 << 30 }
    }
}

/// Who decides when a shadow is started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trigger {
    /// The project's: a [`Watch`] over all metrics.
    Predictive(WatchConfig),
    /// Starts when the smoothed utilisation has been over a level for three windows: what most systems do.
    Reactive {
        /// That level, as a part of the limit.
        level: f64,
    },
    /// Knows the future: starts just in time, and only where it is needed.
    Oracle,
}

/// What a trigger did in one scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Windows over the limit.
    pub violations: u64,
    /// Shadows started.
    pub shadows: u64,
    /// Shadows dropped unused.
    pub wasted: u64,
    /// Windows spent copying.
    pub copying: u64,
    /// Windows spent copying what was not used.
    pub copied_in_vain: u64,
    /// Windows from the first signal to the first crossing; negative when it came after. None without one of them.
    pub lead_windows: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shadow {
    None,
    Copying { left: usize },
    Ready,
}

impl Contest {
    /// Lets one trigger see one scenario, window by window.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) of the watch's settings.
    pub fn run(&self, scenario: &Scenario, trigger: Trigger) -> Result<Outcome> {
        let mut signal = Source::new(self, trigger)?;
        let crossing = scenario.crossing();
        let mut outcome = Outcome::default();
        let (mut shadow, mut share, mut first) = (Shadow::None, 1.0, None);
        // windows of copying that the present shadow has cost
        let mut spent = 0;
        for (window, metrics) in scenario.metrics.iter().enumerate() {
            let is_copying = matches!(shadow, Shadow::Copying { .. });
            spent += u64::from(is_copying);
            outcome.copying += u64::from(is_copying);
            let load = share * scenario.load[window] + if is_copying { self.copy_load } else { 0.0 };
            outcome.violations += u64::from(load >= 1.0);
            let seen = metrics.values().map(|value| value * share);
            let wanted = signal.observe(window, seen, crossing, share < 1.0);
            shadow = match (shadow, wanted) {
                (Shadow::None, Some(true)) if share == 1.0 => {
                    outcome.shadows += 1;
                    first = first.or(Some(window));
                    spent = 0;
                    Shadow::Copying { left: self.copy_windows }
                }
                (Shadow::Copying { .. } | Shadow::Ready, Some(false)) => {
                    outcome.wasted += 1;
                    outcome.copied_in_vain += spent;
                    Shadow::None
                }
                (Shadow::Copying { left }, _) if left <= 1 => Shadow::Ready,
                (Shadow::Copying { left }, _) => Shadow::Copying { left: left - 1 },
                (other, _) => other,
            };
            // by what is measured, as the host would
            if shadow == Shadow::Ready && seen[0].max(seen[2]) >= self.move_level {
                (shadow, share) = (Shadow::None, 0.5);
                signal.used();
            }
        }
        // what was started and never needed
        if shadow != Shadow::None && scenario.shape.is_harmless() {
            outcome.wasted += 1;
            outcome.copied_in_vain += spent;
        }
        outcome.lead_windows = crossing.zip(first).map(|(crossing, first)| crossing as i64 - first as i64);
        Ok(outcome)
    }
}

/// The trigger with what it remembers.
enum Source {
    Predictive(Box<Watch<4>>),
    Reactive { level: f64, smoothed: f64, over: u32, under: u32, raised: bool },
    Oracle { lead: usize, raised: bool },
}

impl Source {
    fn new(contest: &Contest, trigger: Trigger) -> Result<Source> {
        Ok(match trigger {
            Trigger::Predictive(config) => Source::Predictive(Box::new(Watch::new(config)?)),
            Trigger::Reactive { level } => Source::Reactive { level, smoothed: 0.0, over: 0, under: 0, raised: false },
            Trigger::Oracle => Source::Oracle { lead: contest.copy_windows + 6, raised: false },
        })
    }

    fn used(&mut self) {
        if let Source::Predictive(watch) = self {
            watch.used();
        }
    }

    /// Whether a shadow is wanted from now on, or no longer; none = no change.
    fn observe(&mut self, window: usize, seen: [f64; 4], crossing: Option<usize>, moved: bool) -> Option<bool> {
        match self {
            Source::Predictive(watch) => match watch.observe(seen) {
                Some(SignalEvent::Raised { .. }) => Some(true),
                Some(SignalEvent::Cleared) => Some(false),
                None => None,
            },
            Source::Reactive { level, smoothed, over, under, raised } => {
                let utilisation = seen[2];
                *smoothed = if window == 0 { utilisation } else { *smoothed + 0.3 * (utilisation - *smoothed) };
                *over = if *smoothed >= *level { *over + 1 } else { 0 };
                *under = if *smoothed < 0.8 * *level { *under + 1 } else { 0 };
                if !*raised && *over >= 3 {
                    *raised = true;
                    return Some(true);
                }
                if *raised && *under >= 20 && !moved {
                    *raised = false;
                    return Some(false);
                }
                None
            }
            Source::Oracle { lead, raised } => {
                let soon = crossing.is_some_and(|crossing| window + *lead >= crossing);
                (soon && !std::mem::replace(raised, true)).then_some(true)
            }
        }
    }
}

/// Figures of one trigger over many scenarios.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Windows over the limit, all scenarios together.
    pub violations: u64,
    /// The same without steps, which nobody can see coming.
    pub violations_foreseeable: u64,
    /// Shadows started.
    pub shadows: u64,
    /// Bytes of shadows that were dropped unused.
    pub wasted_bytes: u64,
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Part of the growing loads (0..1) that was signalled before the first window that hurts.
    pub signalled: f64,
    /// Part of the growing loads whose shadow was ready by then.
    pub ready: f64,
    /// Median windows from the signal to the crossing, growing loads that were signalled in time.
    pub lead_windows: f64,
    /// Part of the fading loads (0..1) that raised a shadow.
    pub false_alarms: f64,
    /// Part of the oscillating loads that raised a shadow.
    pub false_alarms_oscillating: f64,
    /// Shadows on loads that come to hurt, of all shadows.
    pub precision: f64,
    /// Loads that come to hurt and were signalled before, of all that do, steps counted.
    pub recall: f64,
}

/// Runs one trigger over all scenarios.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) of the watch's settings.
pub fn summarise(contest: &Contest, scenarios: &[Scenario], trigger: Trigger) -> Result<Summary> {
    let outcomes = scenarios.iter().map(|scenario| contest.run(scenario, trigger)).collect::<Result<Vec<_>>>()?;
    let both = || scenarios.iter().zip(&outcomes);
    let sum = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).sum::<u64>();
    let early = |outcome: &Outcome| outcome.lead_windows.is_some_and(|lead| lead > 0);
    let mut leads: Vec<i64> = both()
        .filter(|(scenario, outcome)| scenario.shape.is_growing() && early(outcome))
        .filter_map(|(_, outcome)| outcome.lead_windows)
        .collect();
    leads.sort_unstable();
    let part = |of: &dyn Fn(&Scenario) -> bool, which: &dyn Fn(&Outcome) -> bool| {
        let chosen = both().filter(|(scenario, _)| of(scenario)).count();
        let found = both().filter(|(scenario, outcome)| of(scenario) && which(outcome)).count();
        if chosen == 0 { 0.0 } else { found as f64 / chosen as f64 }
    };
    let growing = |scenario: &Scenario| scenario.shape.is_growing();
    let hurting = |scenario: &Scenario| !scenario.shape.is_harmless();
    let shadows_on_hurting: u64 =
        both().filter(|(scenario, _)| hurting(scenario)).map(|(_, outcome)| outcome.shadows - outcome.wasted).sum();
    let shadows = sum(|outcome| outcome.shadows);
    let bytes = |windows: u64| windows * contest.copy_bytes / contest.copy_windows.max(1) as u64;
    Ok(Summary {
        violations: sum(|outcome| outcome.violations),
        violations_foreseeable: both()
            .filter(|(scenario, _)| scenario.shape != Shape::Step)
            .map(|(_, outcome)| outcome.violations)
            .sum(),
        shadows,
        wasted_bytes: bytes(sum(|outcome| outcome.copied_in_vain)),
        copied_bytes: bytes(sum(|outcome| outcome.copying)),
        signalled: part(&growing, &early),
        ready: part(&growing, &|outcome| outcome.lead_windows.is_some_and(|lead| lead >= contest.copy_windows as i64)),
        lead_windows: leads.get(leads.len() / 2).map_or(0.0, |lead| *lead as f64),
        false_alarms: part(&|scenario| scenario.shape == Shape::Fading, &|outcome| outcome.shadows > 0),
        false_alarms_oscillating: part(&|scenario| scenario.shape == Shape::Oscillating, &|outcome| {
            outcome.shadows > 0
        }),
        precision: if shadows == 0 { 1.0 } else { shadows_on_hurting as f64 / shadows as f64 },
        recall: part(&hurting, &early),
    })
}

/// The table of the project: the predictive trigger beside its rivals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// Scenarios.
    pub scenarios: usize,
    /// First seed.
    pub first_seed: u64,
    /// The project's trigger.
    pub predictive: Summary,
    /// The reactive trigger at the limit itself.
    pub reactive: Summary,
    /// The best of the reactive trigger's levels down to the first that copies more bytes than the predictive one.
    pub reactive_equal_cost: Summary,
    /// That level, as a part of the limit.
    pub reactive_equal_cost_level: f64,
    /// The trigger that knows the future.
    pub oracle: Summary,
    /// Part of the violations of the reactive trigger at equal cost that one avoids which foresees all but steps, and
    /// copies as much as the predictive one: the oracle, but late on steps by the copy's time.
    pub bound_equal_cost: f64,
    /// Part of the violations of the reactive trigger (0..1) that the predictive one avoids.
    pub fewer_violations: f64,
    /// The same without steps.
    pub fewer_foreseeable: f64,
    /// The same at equal cost.
    pub fewer_violations_equal_cost: f64,
    /// The same at equal cost, without steps.
    pub fewer_foreseeable_equal_cost: f64,
}

/// Tries all triggers on `count` scenarios from `first_seed` on.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) of the watch's settings.
pub fn table(contest: &Contest, config: WatchConfig, first_seed: u64, count: usize) -> Result<Table> {
    let scenarios: Vec<Scenario> = (first_seed..first_seed + count as u64).map(Scenario::new).collect();
    let of = |trigger| summarise(contest, &scenarios, trigger);
    let predictive = of(Trigger::Predictive(config))?;
    let reactive = of(Trigger::Reactive { level: 1.0 })?;
    // levels down to the first that copies more than the predictive trigger, which the rival is granted
    let (mut equal, mut equal_level, mut level) = (reactive.clone(), 1.0, 1.0);
    loop {
        level -= 0.01;
        let tried = of(Trigger::Reactive { level })?;
        let is_dearer = tried.copied_bytes > predictive.copied_bytes;
        if tried.violations < equal.violations {
            (equal, equal_level) = (tried, level);
        }
        if is_dearer || level < 0.3 {
            break;
        }
    }
    let fewer = |ours: u64, theirs: u64| 1.0 - ours as f64 / theirs.max(1) as f64;
    // a step is seen when it hurts, and hurts until the copy is made
    let steps = scenarios.iter().filter(|scenario| scenario.shape == Shape::Step).count();
    let oracle = of(Trigger::Oracle)?;
    let bound = oracle.violations_foreseeable + (steps * (contest.copy_windows + 1)) as u64;
    Ok(Table {
        bound_equal_cost: fewer(bound, equal.violations),
        scenarios: count,
        first_seed,
        fewer_violations: fewer(predictive.violations, reactive.violations),
        fewer_foreseeable: fewer(predictive.violations_foreseeable, reactive.violations_foreseeable),
        fewer_violations_equal_cost: fewer(predictive.violations, equal.violations),
        fewer_foreseeable_equal_cost: fewer(predictive.violations_foreseeable, equal.violations_foreseeable),
        predictive,
        reactive,
        reactive_equal_cost: equal,
        reactive_equal_cost_level: equal_level,
        oracle,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn oracle_is_never_worse_than_the_others() {
        let contest = Contest::default();
        let table = table(&contest, WatchConfig::for_copy(20.0), 0, 60).unwrap();
        assert!(table.oracle.violations <= table.predictive.violations);
        assert!(table.oracle.violations <= table.reactive.violations);
        assert_eq!((table.oracle.wasted_bytes, table.oracle.false_alarms), (0, 0.0));
        assert_eq!(table.oracle.recall, 1.0);
    }

    #[test]
    fn predictive_trigger_reaches_its_goals_on_seeds_it_was_not_tuned_on() {
        let contest = Contest::default();
        let table = table(&contest, WatchConfig::for_copy(20.0), 200_000, 300).unwrap();
        let ours = &table.predictive;
        assert!(ours.signalled >= 0.9 && ours.false_alarms <= 0.1, "{ours:?}");
        assert!(table.fewer_violations >= 0.72 && table.fewer_foreseeable_equal_cost >= 0.85, "{table:?}");
        // steps, which hurt until the copy is made, keep all but the oracle below the goal of 72 %
        assert!(table.fewer_violations_equal_cost >= 0.6 && table.bound_equal_cost < 0.75, "{table:?}");
        assert!(ours.false_alarms_oscillating <= 0.15 && ours.precision >= 0.9, "{ours:?}");
    }

    #[test]
    fn reactive_trigger_is_late_on_every_growing_load() {
        let scenarios: Vec<Scenario> = (0..30).map(|seed| Scenario::of_shape(Shape::Ramp, seed)).collect();
        let summary = summarise(&Contest::default(), &scenarios, Trigger::Reactive { level: 1.05 }).unwrap();
        assert!(summary.signalled < 0.2 && summary.violations > 30 * 20, "{summary:?}");
    }
}
