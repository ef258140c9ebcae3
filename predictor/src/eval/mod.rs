//! Which scorer orders a copy best, on a recorded trace.
//!
//! The task: after every window of the last fifth of the trace, each scorer orders the segments; copying then runs at a
//! constant rate and takes exactly the horizon, while the horizon's requests arrive. The **share** is that of requests
//! that hit segments already copied, over all positions; a shadow that was filled by a better order serves more of
//! them. **pct_of_oracle** divides it by the share of the order by the horizon's true counts. Scorers see every window
//! from the first on and nothing of the future; learned weights must come from the first four fifths.
//!
//! `ewma` and `ewma-readahead` get the best alpha *in hindsight* on the evaluated part: harder rivals than any that a
//! host could run. A position is left out when its horizon would pass the end of the trace.
//!
//! Under [`Mapping::Arrival`] each new key falls into the one segment that is being filled, so whoever sees that front
//! coming gains much; [`EvalConfig::known_keys_only`] shows what is left without that.

mod bootstrap;
mod curve;
mod mapping;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::scorer::{self, Ewma, EwmaReadahead, HORIZON_WINDOWS, Scorer, ScorerKind};
use crate::trace::Request;

pub use curve::{area, order_curve};
pub(crate) use curve::{hit_share, order_by_score};
pub use mapping::{Mapping, Windowed};

/// Averages tried for "best alpha in hindsight".
pub const ALPHAS: [f32; 10] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0];

/// A trace in memory.
#[derive(Clone, Debug)]
pub struct Requests {
    /// Its name in reports.
    pub trace: String,
    /// In time order.
    pub requests: Vec<Request>,
}

/// Settings of an evaluation; the default is the project's task.
#[derive(Clone, Debug)]
pub struct EvalConfig {
    /// How keys lie in the key order.
    pub mapping: Mapping,
    /// Segments of the partition.
    pub segments: usize,
    /// Windows of the whole trace, of equal numbers of requests.
    pub windows: usize,
    /// Windows that the copy takes.
    pub horizon: usize,
    /// Part of the trace, from the start, that is not evaluated (0..1).
    pub evaluate_from: f64,
    /// Part of the trace, from the start, at which evaluation ends (0..=1).
    pub evaluate_to: f64,
    /// Scorers to evaluate, besides the oracle.
    pub scorers: Vec<ScorerKind>,
    /// Weights for `gru`; none = the shipped ones.
    pub model: Option<Model>,
    /// Leaves out the first request of each key ([`Windowed::of_known_keys`]). The project's task counts it.
    pub known_keys_only: bool,
    /// Seed of the random order and of the confidence intervals.
    pub seed: u64,
}

impl EvalConfig {
    /// The task of the project: 256 segments, 1024 windows, horizon 8, the last fifth, all scorers.
    #[must_use]
    pub fn new(mapping: Mapping) -> EvalConfig {
        EvalConfig {
            mapping,
            segments: 256,
            windows: 1024,
            horizon: HORIZON_WINDOWS,
            evaluate_from: 0.8,
            evaluate_to: 1.0,
            scorers: ScorerKind::ALL.to_vec(),
            model: None,
            known_keys_only: false,
            seed: 1,
        }
    }

    /// First and one past the last window after which scorers are asked.
    fn positions(&self) -> Result<(usize, usize)> {
        let boundary = |part: f64| (self.windows as f64 * part).round() as usize;
        let first = boundary(self.evaluate_from).saturating_sub(1);
        let end = boundary(self.evaluate_to).min(self.windows).saturating_sub(self.horizon);
        if self.horizon == 0 || !(0.0..=1.0).contains(&self.evaluate_from) || first >= end {
            let what = format!(
                "no position between {} and {} with a horizon of {} windows",
                self.evaluate_from, self.evaluate_to, self.horizon
            );
            return Err(Error::Config { name: "evaluate_from, evaluate_to, horizon", what });
        }
        Ok((first, end))
    }
}

/// Result of one scorer on one trace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScorerReport {
    /// Share of the horizon's requests that hit segments already copied, 0..1, mean over the positions.
    pub share: f64,
    /// That share in percent of the oracle's.
    pub pct_of_oracle: f64,
    /// 95 % interval of `pct_of_oracle` over the positions, paired with the oracle.
    pub ci95: [f64; 2],
    /// The alpha that was best in hindsight, where one was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
}

/// Result of all scorers on one trace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the trace.
    pub trace: String,
    /// How keys lay in the key order.
    pub mapping: Mapping,
    /// Segments of the partition.
    pub segments: usize,
    /// Positions evaluated.
    pub positions: usize,
    /// By name; `oracle` among them.
    pub scorers: BTreeMap<String, ScorerReport>,
    /// Part of the gap between hindsight `ewma` and the oracle that `gru` closes; negative when it is worse. None
    /// when one of them was not evaluated or there is no gap.
    pub gap_vs_ewma: Option<f64>,
    /// The same against the best classical scorer of this trace, chosen in hindsight.
    pub gap_vs_classic: Option<f64>,
}

/// Evaluates scorers on one trace.
///
/// Cost: each scorer sees every window; some ten passes over the evaluated requests for each scorer.
///
/// # Errors
/// [`Error::Config`] when trace and settings do not fit; [`Error::Model`] when the shipped weights are damaged.
pub fn evaluate(requests: &Requests, config: &EvalConfig) -> Result<Report> {
    let map = if config.known_keys_only { Windowed::of_known_keys } else { Windowed::new };
    let windowed = map(&requests.requests, config.mapping, config.segments, config.windows)?;
    let (first, end) = config.positions()?;
    let task = Task { windowed: &windowed, horizon: config.horizon, first, end };
    let oracle = task.oracle_shares();
    let report = |shares: &[f64], alpha| {
        let block = 2 * config.horizon;
        ScorerReport {
            share: mean(shares),
            pct_of_oracle: 100.0 * mean(shares) / mean(&oracle).max(f64::MIN_POSITIVE),
            ci95: bootstrap::ratio_ci95(shares, &oracle, block, config.seed),
            alpha,
        }
    };
    let mut scorers = BTreeMap::from([("oracle".to_owned(), report(&oracle, None))]);
    for kind in &config.scorers {
        let segments = config.segments;
        let (shares, alpha) = match kind {
            ScorerKind::Ewma => task.best_alpha(|alpha| Box::new(Ewma::new(segments, alpha))),
            ScorerKind::EwmaReadahead => task.best_alpha(|alpha| Box::new(EwmaReadahead::new(segments, alpha))),
            ScorerKind::Random => (task.shares(&mut scorer::Random::new(segments, config.seed)), None),
            other => (task.shares(&mut *scorer::build(*other, config.model.as_ref(), segments)?), None),
        };
        scorers.insert(kind.to_string(), report(&shares, alpha));
    }
    let share_of = |kind: ScorerKind| scorers.get(kind.as_str()).map(|report| report.share);
    let classic = ScorerKind::ALL.into_iter().filter(|kind| kind.is_classic()).filter_map(share_of).reduce(f64::max);
    let oracle = mean(&oracle);
    let gap = |rival: Option<f64>| {
        let (rival, gru) = (rival?, share_of(ScorerKind::Gru)?);
        (oracle - rival > 1e-9).then(|| (gru - rival) / (oracle - rival))
    };
    Ok(Report {
        trace: requests.trace.clone(),
        mapping: config.mapping,
        segments: config.segments,
        positions: end - first,
        gap_vs_ewma: gap(share_of(ScorerKind::Ewma)),
        gap_vs_classic: gap(classic),
        scorers,
    })
}

/// The positions of one trace.
pub(crate) struct Task<'a> {
    pub(crate) windowed: &'a Windowed,
    pub(crate) horizon: usize,
    /// First window after which scorers are asked.
    pub(crate) first: usize,
    /// One past the last.
    pub(crate) end: usize,
}

impl Task<'_> {
    /// The share at each position.
    pub(crate) fn shares(&self, scorer: &mut dyn Scorer) -> Vec<f64> {
        let (mut order, mut ranks) = (Vec::new(), Vec::new());
        let mut shares = Vec::with_capacity(self.end - self.first);
        for window in 0..self.end {
            scorer.observe(self.windowed.window(window));
            if window >= self.first {
                order_by_score(scorer.scores(), &mut order);
                shares.push(self.share(window, &order, &mut ranks));
            }
        }
        shares
    }

    /// The share of `order` in the horizon after `window`.
    pub(crate) fn share(&self, window: usize, order: &[usize], ranks: &mut Vec<u64>) -> f64 {
        hit_share(order, self.windowed.requests(window + 1, self.horizon), ranks)
    }

    /// The share at each position of the order by true counts.
    pub(crate) fn oracle_shares(&self) -> Vec<f64> {
        let (mut order, mut ranks) = (Vec::new(), Vec::new());
        (self.first..self.end)
            .map(|window| {
                let truth: Vec<f32> =
                    self.windowed.accesses(window + 1, self.horizon).into_iter().map(|count| count as f32).collect();
                order_by_score(&truth, &mut order);
                self.share(window, &order, &mut ranks)
            })
            .collect()
    }

    fn best_alpha(&self, build: impl Fn(f32) -> Box<dyn Scorer>) -> (Vec<f64>, Option<f32>) {
        let tried = ALPHAS.map(|alpha| (self.shares(&mut *build(alpha)), Some(alpha)));
        let better = |best: (Vec<f64>, Option<f32>), next: (Vec<f64>, Option<f32>)| {
            if mean(&next.0) > mean(&best.0) { next } else { best }
        };
        tried.into_iter().reduce(better).unwrap_or_default()
    }
}

/// Mean, 0 of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::trace::Op;

    /// A hot spot that moves on every 2,000 requests, over 200 keys.
    fn moving_hot_spot() -> Requests {
        let mut rng = fastrand::Rng::with_seed(5);
        let requests = (0..40_000u64)
            .map(|index| {
                let hot = (index / 2000 * 13) % 200;
                let key = if rng.f32() < 0.8 { (hot + rng.u64(0..10)) % 200 } else { rng.u64(0..200) };
                Request { ts_us: index, op: Op::Get, key, size: 100 }
            })
            .collect();
        Requests { trace: "moving".into(), requests }
    }

    fn config() -> EvalConfig {
        EvalConfig { segments: 50, windows: 200, ..EvalConfig::new(Mapping::Range) }
    }

    #[test]
    fn report_ranks_scorers_sensibly_and_has_the_promised_shape() {
        let report = evaluate(&moving_hot_spot(), &config()).unwrap();
        let pct = |name: &str| report.scorers[name].pct_of_oracle;
        assert_eq!(pct("oracle"), 100.0);
        assert!((45.0..62.0).contains(&pct("random")), "{}", pct("random"));
        assert!(pct("ewma") > pct("lfu") + 5.0);
        assert!(pct("ewma") > pct("random") + 15.0);
        for (name, scorer) in &report.scorers {
            assert!(scorer.ci95[0] <= scorer.pct_of_oracle && scorer.pct_of_oracle <= scorer.ci95[1], "{name}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["trace"], "moving");
        assert_eq!(json["mapping"], "range");
        assert_eq!(json["segments"], 50);
        assert!(json["scorers"]["gru"]["share"].is_number());
        assert_eq!(json["scorers"]["lru"]["ci95"].as_array().unwrap().len(), 2);
        assert!(json["gap_vs_ewma"].is_number() && json["gap_vs_classic"].is_number());
        assert!(report.gap_vs_classic.unwrap() <= report.gap_vs_ewma.unwrap() + 1e-12);
    }

    #[test]
    fn evaluation_is_deterministic() {
        let requests = moving_hot_spot();
        assert_eq!(evaluate(&requests, &config()).unwrap(), evaluate(&requests, &config()).unwrap());
    }

    #[test]
    fn positions_use_only_the_last_fifth() {
        let (first, end) = EvalConfig::new(Mapping::Range).positions().unwrap();
        // the first order is formed when window 818 closes, its horizon is 819..=826; the last horizon ends at 1023
        assert_eq!((first, end), (818, 1016));
        let bad = EvalConfig { horizon: 300, ..EvalConfig::new(Mapping::Range) };
        assert!(bad.positions().is_err());
    }
}
