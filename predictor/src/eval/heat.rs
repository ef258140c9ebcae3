//! What a scorer expected beside what came: shares by window and segment, for a heat map.

use super::{EvalConfig, Requests, Task, Windowed, recorded::Recorded};
use crate::error::Result;
use crate::model::Model;
use crate::online::OnlineGru;
use crate::scorer::{self, ScorerKind};

/// Expected and observed shares of the horizon's accesses, windows of the evaluated part by segments.
#[derive(Clone, Debug, PartialEq)]
pub struct Heat {
    /// Segments.
    pub segments: usize,
    /// Positions (windows after which the scorer was asked).
    pub positions: usize,
    /// By position, then segment; each position adds up to 1, or to 0 where there is no access.
    pub observed: Vec<f32>,
    /// The same of the scores.
    pub expected: Vec<f32>,
}

/// Lets one scorer see the trace and keeps what it expected.
///
/// # Errors
/// As [`super::evaluate`].
pub fn heat(requests: &Requests, config: &EvalConfig, kind: ScorerKind) -> Result<Heat> {
    let map = if config.known_keys_only { Windowed::of_known_keys } else { Windowed::new };
    let windowed = map(&requests.requests, config.mapping, config.segments, config.windows)?;
    let (first, end) = config.positions()?;
    let task = Task { windowed: &windowed, horizon: config.horizon, first, end, per_byte: false };
    let model = config.model.clone().map_or_else(Model::shipped, Ok)?;
    let recorded = match (kind, config.online) {
        (ScorerKind::Gru, Some(online)) => {
            let mut gru = OnlineGru::new(&model, config.segments, online)?;
            Recorded::of(task.windowed, end, |counts, scores| scores.extend_from_slice(gru.observe(counts)))
        }
        _ => {
            let mut scorer = scorer::build(kind, Some(&model), config.segments)?;
            Recorded::of(task.windowed, end, |counts, scores| {
                scorer.observe(counts);
                scores.extend_from_slice(scorer.scores());
            })
        }
    };
    let mut heat = Heat { segments: config.segments, positions: end - first, observed: vec![], expected: vec![] };
    for window in first..end {
        let counts = windowed.accesses(window + 1, config.horizon);
        shares(counts.iter().map(|count| *count as f32), &mut heat.observed);
        shares(recorded.window(window).iter().copied(), &mut heat.expected);
    }
    Ok(heat)
}

fn shares(values: impl Iterator<Item = f32> + Clone, into: &mut Vec<f32>) {
    let total: f32 = values.clone().sum();
    let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
    into.extend(values.map(|value| value * scale));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::eval::Mapping;
    use crate::trace::{Op, Request};

    #[test]
    fn heat_of_a_still_hot_spot_is_where_it_is() {
        let mut rng = fastrand::Rng::with_seed(5);
        let key = |rng: &mut fastrand::Rng| if rng.f32() < 0.9 { 100 + rng.u64(0..10) } else { rng.u64(0..200) };
        let requests = (0..20_000).map(|at| Request { ts_us: at, op: Op::Get, key: key(&mut rng), size: 1 }).collect();
        let requests = Requests { trace: "hot".into(), requests };
        let config = EvalConfig { segments: 20, windows: 100, online: None, ..EvalConfig::new(Mapping::Range) };
        let heat = heat(&requests, &config, ScorerKind::Ewma).unwrap();
        assert_eq!(heat.observed.len(), heat.positions * 20);
        for (observed, expected) in heat.observed.chunks_exact(20).zip(heat.expected.chunks_exact(20)) {
            assert!(observed[10] > 0.8 && expected[10] > 0.8, "{observed:?} {expected:?}");
            assert!((observed.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
    }
}
