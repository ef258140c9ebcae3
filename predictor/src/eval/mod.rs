//! Which scorer orders a copy best, on a recorded trace.
//!
//! The task: after every window of the last fifth of the trace, each scorer orders the segments; copying then runs at a
//! constant rate and takes exactly the horizon, while the horizon's requests arrive. The **share** is that of requests
//! that hit segments already copied, over all positions; a shadow that was filled by a better order serves more of
//! them. **pct_of_oracle** divides it by the share of the order by the horizon's true counts. Scorers see every window
//! from the first on and nothing of the future; learned weights must come from the first four fifths, or, with
//! [`EvalConfig::online`], from windows that have closed, as on a host.
//!
//! `ewma` and `ewma-readahead` get the best alpha *in hindsight* on the evaluated part: harder rivals than any that a
//! host could run. `classic` is a choice that a host without a learned model could make: among the rules, by what each has
//! hit lately. A position is left out when its horizon would pass the end of the trace.
//!
//! Under [`Mapping::Arrival`] each new key falls into the one segment that is being filled, so whoever sees that front
//! coming gains much; [`EvalConfig::known_keys_only`] shows what is left without that.

mod bootstrap;
mod curve;
mod heat;
mod mapping;
mod recorded;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::online::{OnlineConfig, OnlineGru, OnlineStats};
use crate::scorer::{self, Choice, Ewma, EwmaReadahead, HORIZON_WINDOWS, Mixture, Scorer, ScorerKind};
use crate::trace::Request;

pub(crate) use curve::{Copying, order_by_score};
pub use curve::{area, order_curve};
pub use heat::{Heat, heat};
pub use mapping::{Mapping, Windowed};
use recorded::{Recorded, Replay};

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
    /// How `gru` learns from the trace's own windows as they close; none = its weights stay as they are.
    pub online: Option<OnlineConfig>,
    /// Leaves out the first request of each key ([`Windowed::of_known_keys`]). The project's task counts it.
    pub known_keys_only: bool,
    /// Whether copying takes its time by the bytes of a segment (the size of each key when it was last seen) and the
    /// order is by score per byte. The project's task counts segments, which hold equal numbers of keys.
    pub per_byte: bool,
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
            online: Some(OnlineConfig::default()),
            known_keys_only: false,
            per_byte: false,
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
    /// The trailing choice among the rules without a learned model: the rival of `gap_vs_classic`.
    pub classic: ScorerReport,
    /// `auto` without the learned models: what mixing gains by itself.
    pub rules_mixed: ScorerReport,
    /// Part of the gap between hindsight `ewma` and the oracle that `gru` closes; negative when it is worse. None
    /// when one of them was not evaluated or there is no gap.
    pub gap_vs_ewma: Option<f64>,
    /// 95 % interval of it; both are drawn at the same positions.
    pub gap_vs_ewma_ci95: Option<[f64; 2]>,
    /// The same against `classic`.
    pub gap_vs_classic: Option<f64>,
    /// 95 % interval of it.
    pub gap_vs_classic_ci95: Option<[f64; 2]>,
    /// What the online learner did, where it ran.
    pub online: Option<OnlineStats>,
}

impl Report {
    /// Points of the oracle that `auto` has above the best rule of this trace, which is known in hindsight only; `None` where
    /// one of the two was not evaluated.
    #[must_use]
    pub fn auto_above_best_rule(&self) -> Option<f64> {
        let of = |kind: &ScorerKind| self.scorers.get(kind.as_str()).map(|scorer| scorer.pct_of_oracle);
        let best = ScorerKind::ALL.iter().filter(|kind| kind.is_rule()).filter_map(of).max_by(f64::total_cmp)?;
        Some(of(&ScorerKind::Auto)? - best)
    }
}

/// Evaluates scorers on one trace.
///
/// Cost: each scorer sees every window; some ten passes over the evaluated requests for each scorer; the scores of the
/// learned scorers at every window are kept meanwhile.
///
/// # Errors
/// [`Error::Config`] when trace and settings do not fit; [`Error::Model`] when the shipped weights are damaged.
pub fn evaluate(requests: &Requests, config: &EvalConfig) -> Result<Report> {
    let map = if config.known_keys_only { Windowed::of_known_keys } else { Windowed::new };
    let windowed = map(&requests.requests, config.mapping, config.segments, config.windows)?;
    let (first, end) = config.positions()?;
    let task = Task { windowed: &windowed, horizon: config.horizon, first, end, per_byte: config.per_byte };
    let oracle = task.oracle_shares();
    let report = |shares: &[f64], alpha| ScorerReport {
        share: mean(shares),
        pct_of_oracle: 100.0 * mean(shares) / mean(&oracle).max(f64::MIN_POSITIVE),
        ci95: bootstrap::ratio_ci95(shares, &oracle, 2 * config.horizon, config.seed),
        alpha,
    };
    let learned = Learned::new(&task, config)?;
    let mut shares = BTreeMap::new();
    let mut scorers = BTreeMap::from([("oracle".to_owned(), report(&oracle, None))]);
    for kind in &config.scorers {
        let (found, alpha) = task.of_kind(*kind, &learned, config)?;
        scorers.insert(kind.to_string(), report(&found, alpha));
        shares.insert(*kind, found);
    }
    let classic = task.shares(&mut Choice::new("classic", Choice::rules(config.segments), config.segments));
    let rules_mixed = task.shares(&mut Mixture::auto(Vec::new(), config.segments));
    let gap = |rival: Option<&Vec<f64>>| {
        let (rival, gru) = (rival?, shares.get(&ScorerKind::Gru)?);
        let gap = (mean(gru) - mean(rival)) / (mean(&oracle) - mean(rival));
        let gain: Vec<f64> = gru.iter().zip(rival).map(|(gru, rival)| gru - rival).collect();
        let room: Vec<f64> = oracle.iter().zip(rival).map(|(oracle, rival)| oracle - rival).collect();
        let ci95 = bootstrap::ratio_ci95(&gain, &room, 2 * config.horizon, config.seed).map(|percent| percent / 100.0);
        (mean(&oracle) - mean(rival) > 1e-9).then_some((gap, ci95))
    };
    let (vs_ewma, vs_classic) = (gap(shares.get(&ScorerKind::Ewma)), gap(Some(&classic)));
    Ok(Report {
        trace: requests.trace.clone(),
        mapping: config.mapping,
        segments: config.segments,
        positions: end - first,
        classic: report(&classic, None),
        rules_mixed: report(&rules_mixed, None),
        gap_vs_ewma: vs_ewma.map(|gap| gap.0),
        gap_vs_ewma_ci95: vs_ewma.map(|gap| gap.1),
        gap_vs_classic: vs_classic.map(|gap| gap.0),
        gap_vs_classic_ci95: vs_classic.map(|gap| gap.1),
        online: learned.online,
        scorers,
    })
}

/// Scores of the learned scorers at every window: they cost most and are needed twice, by themselves and under `auto`.
struct Learned {
    linear: Arc<Recorded>,
    gru: Arc<Recorded>,
    online: Option<OnlineStats>,
}

impl Learned {
    fn new(task: &Task<'_>, config: &EvalConfig) -> Result<Learned> {
        let until = |kind: ScorerKind| {
            let needed = |given: &ScorerKind| *given == kind || *given == ScorerKind::Auto;
            if config.scorers.iter().any(needed) { task.end } else { 0 }
        };
        let model = config.model.clone().map_or_else(Model::shipped, Ok)?;
        let plain = |kind: ScorerKind| -> Result<Arc<Recorded>> {
            let mut scorer = scorer::build(kind, Some(&model), config.segments)?;
            Ok(Arc::new(Recorded::of(task.windowed, until(kind), |counts, scores| {
                scorer.observe(counts);
                scores.extend_from_slice(scorer.scores());
            })))
        };
        let linear = plain(ScorerKind::Linear)?;
        let Some(online) = config.online else {
            return Ok(Learned { linear, gru: plain(ScorerKind::Gru)?, online: None });
        };
        let mut gru = OnlineGru::new(&model, config.segments, online)?;
        let recorded = Recorded::of(task.windowed, until(ScorerKind::Gru), |counts, scores| {
            // a window is scored before it is learned from
            scores.extend_from_slice(gru.observe(counts));
        });
        Ok(Learned { linear, gru: Arc::new(recorded), online: Some(gru.learner().stats()) })
    }
}

/// The positions of one trace.
pub(crate) struct Task<'a> {
    pub(crate) windowed: &'a Windowed,
    pub(crate) horizon: usize,
    /// First window after which scorers are asked.
    pub(crate) first: usize,
    /// One past the last.
    pub(crate) end: usize,
    /// Whether segments cost what they have of bytes, or all the same.
    pub(crate) per_byte: bool,
}

impl Task<'_> {
    /// Shares of a scorer of the report, and the alpha that was chosen in hindsight.
    fn of_kind(&self, kind: ScorerKind, learned: &Learned, config: &EvalConfig) -> Result<(Vec<f64>, Option<f32>)> {
        let segments = config.segments;
        Ok(match kind {
            ScorerKind::Ewma => self.best_alpha(|alpha| Box::new(Ewma::new(segments, alpha))),
            ScorerKind::EwmaReadahead => self.best_alpha(|alpha| Box::new(EwmaReadahead::new(segments, alpha))),
            ScorerKind::Random => (self.shares(&mut scorer::Random::new(segments, config.seed)), None),
            ScorerKind::Linear => (self.shares(&mut Replay::new("linear", &learned.linear)), None),
            ScorerKind::Gru => (self.shares(&mut Replay::new("gru", &learned.gru)), None),
            ScorerKind::Auto => {
                let (gru, linear) = (Replay::new("gru", &learned.gru), Replay::new("linear", &learned.linear));
                (self.shares(&mut Mixture::auto(vec![Box::new(gru), Box::new(linear)], segments)), None)
            }
            other => (self.shares(&mut *scorer::build(other, config.model.as_ref(), segments)?), None),
        })
    }

    /// The share at each position.
    pub(crate) fn shares(&self, scorer: &mut dyn Scorer) -> Vec<f64> {
        let mut copying = self.copying();
        let mut order = Vec::new();
        let mut per_cost = vec![0.0; self.windowed.segments()];
        let mut shares = Vec::with_capacity(self.end - self.first);
        for window in 0..self.end {
            scorer.observe(self.windowed.window(window));
            if window >= self.first {
                let costs = copying.costs().iter();
                let score = |(score, cost): (&f32, &u64)| score / *cost as f32;
                per_cost.iter_mut().zip(scorer.scores().iter().zip(costs).map(score)).for_each(|(to, from)| *to = from);
                order_by_score(&per_cost, &mut order);
                shares.push(copying.hit_share(&order, self.windowed.requests(window + 1, self.horizon)));
            }
        }
        shares
    }

    /// The share at each position of the order by true counts.
    pub(crate) fn oracle_shares(&self) -> Vec<f64> {
        let mut copying = self.copying();
        let mut order = Vec::new();
        (self.first..self.end)
            .map(|window| {
                let counts = self.windowed.accesses(window + 1, self.horizon);
                let per_cost = |(count, cost): (&u64, &u64)| (*count as f64 / *cost as f64) as f32;
                let truth: Vec<f32> = counts.iter().zip(copying.costs()).map(per_cost).collect();
                order_by_score(&truth, &mut order);
                copying.hit_share(&order, self.windowed.requests(window + 1, self.horizon))
            })
            .collect()
    }

    fn copying(&self) -> Copying {
        if self.per_byte {
            Copying::new(self.windowed.bytes().to_vec())
        } else {
            Copying::even(self.windowed.segments())
        }
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
        let [low, high] = report.gap_vs_ewma_ci95.unwrap();
        assert!(low <= report.gap_vs_ewma.unwrap() && report.gap_vs_ewma.unwrap() <= high);
        let names: Vec<&str> = report.scorers.keys().map(String::as_str).collect();
        assert!(ScorerKind::ALL.iter().all(|kind| names.contains(&kind.as_str())));
        assert_eq!(names.len(), ScorerKind::ALL.len() + 1);
        // the guards follow what is good here, and may be late
        assert!(report.classic.pct_of_oracle > pct("lfu") && report.rules_mixed.pct_of_oracle > pct("lfu"));
        assert!(pct("auto") > pct("ewma") - 1.0);
        let rules = ["random", "last-window", "lru", "lfu", "ewma", "ewma-adaptive", "ewma-readahead", "markov"];
        let best = rules.map(pct).into_iter().fold(0.0, f64::max);
        assert_eq!(report.auto_above_best_rule(), Some(pct("auto") - best));
    }

    #[test]
    fn evaluation_is_deterministic() {
        let requests = moving_hot_spot();
        assert_eq!(evaluate(&requests, &config()).unwrap(), evaluate(&requests, &config()).unwrap());
    }

    #[test]
    fn per_byte_prefers_small_segments_of_equal_heat() {
        // the upper half of the keys is 100 times as large, both halves are read the same
        let mut rng = fastrand::Rng::with_seed(5);
        let request = |index: u64| {
            let key = rng.u64(0..200);
            Request { ts_us: index, op: Op::Get, key, size: if key < 100 { 10 } else { 1000 } }
        };
        let requests = Requests { trace: "two sizes".into(), requests: (0..20_000).map(request).collect() };
        let share = |per_byte: bool| {
            let config = EvalConfig { per_byte, scorers: vec![ScorerKind::Lfu], ..config() };
            evaluate(&requests, &config).unwrap().scorers["lfu"].share
        };
        // half of the requests are served almost at once when the small ones come first
        assert!(share(true) > 0.7 && share(false) < 0.6, "{} {}", share(true), share(false));
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
