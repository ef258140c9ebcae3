//! From a trace to requests: which key, read or write, and when.

use antumbra_predictor::trace::{Op, Request};

/// One request of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Rank of the database key in key order.
    pub rank: u32,
    /// Whether it writes.
    pub write: bool,
}

/// The trace's keys, spread over database keys in the same order.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its keys and values.
    pub space: Space,
    /// Neighbouring keys that a write sets in one command.
    pub batch: u32,
    steps: Vec<Step>,
    keys: u32,
}

impl Workload {
    /// Maps a trace to at least `keys_min` database keys: each distinct trace key, in key order, covers equally many
    /// neighbouring ones, and a request takes one of them. `writes_percent` overrides the trace's operations.
    pub fn new(space: Space, trace: &[Request], keys_min: u32, writes_percent: Option<u8>, seed: u64) -> Workload {
        let mut distinct: Vec<u64> = trace.iter().map(|request| request.key).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let spread = keys_min.div_ceil(distinct.len().max(1) as u32).max(1);
        let mut random = fastrand::Rng::with_seed(seed);
        let steps = trace
            .iter()
            .map(|request| {
                let place = distinct.partition_point(|key| *key < request.key) as u32;
                let write = match writes_percent {
                    Some(percent) => random.u8(0..100) < percent,
                    None => request.op == Op::Put,
                };
                Step { rank: place * spread + random.u32(0..spread), write }
            })
            .collect();
        Workload { space, batch: 1, steps, keys: distinct.len() as u32 * spread }
    }

    /// A made load: the ranks that `next` gives, `count` of them, `writes_percent` of them writes.
    pub fn made(
        space: Space,
        keys: u32,
        count: usize,
        writes_percent: u8,
        seed: u64,
        mut next: impl FnMut(&mut fastrand::Rng) -> u32,
    ) -> Workload {
        let mut random = fastrand::Rng::with_seed(seed);
        let steps =
            (0..count).map(|_| Step { rank: next(&mut random), write: random.u8(0..100) < writes_percent }).collect();
        Workload { space, batch: 1, steps, keys }
    }

    /// Number of database keys.
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// The `index`-th request; the trace is repeated at its end.
    pub fn step(&self, index: u64) -> Step {
        self.steps[(index % self.steps.len() as u64) as usize]
    }
}

/// Rate over time: constant, then a linear ramp, then constant.
#[derive(Clone, Copy, Debug)]
pub struct Ramp {
    /// Requests per second at first.
    pub from: f64,
    /// Requests per second at last.
    pub to: f64,
    /// When the ramp begins and how long it takes, in seconds.
    pub begin: f64,
    pub length: f64,
}

impl Ramp {
    /// Requests due by `t` seconds.
    pub fn due(&self, t: f64) -> f64 {
        let before = t.min(self.begin) * self.from;
        let inside = (t - self.begin).clamp(0.0, self.length);
        let ramp = inside * self.from + (self.to - self.from) * inside * inside / (2.0 * self.length);
        let after = (t - self.begin - self.length).max(0.0) * self.to;
        before + ramp + after
    }

    /// When the `index`-th request is due, in seconds, to a microsecond.
    pub fn time_of(&self, index: u64) -> f64 {
        let wanted = index as f64;
        let (mut low, mut high) = (0.0, (wanted + 1.0) / self.from.min(self.to));
        while high - low > 1e-6 {
            let middle = f64::midpoint(low, high);
            if self.due(middle) < wanted { low = middle } else { high = middle }
        }
        high
    }
}

/// The keys and values of one partition: one hash slot, keys ascending with their rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Hash tag.
    pub tag: &'static str,
    /// Least length of the text in a value, in bytes.
    pub value_bytes: usize,
    /// Lengths differ by less than this.
    pub spread_bytes: usize,
}

impl Space {
    /// The key of a rank.
    pub fn key(&self, rank: u32) -> Vec<u8> {
        format!("{{{}}}:{rank:016x}", self.tag).into_bytes()
    }

    /// The value of a key at a version: both are in it, behind them text that compresses about as text does.
    pub fn value(&self, rank: u32, version: u32) -> Vec<u8> {
        let mut value = format!("{rank}:{version}:").into_bytes();
        let mut random = fastrand::Rng::with_seed(u64::from(rank) << 32 | u64::from(version));
        let len = value.len() + self.value_bytes + (rank as usize * 37) % self.spread_bytes.max(1);
        while value.len() < len {
            value.push(b"etaoinshrdlu etaoin"[random.usize(0..19)]);
        }
        value
    }

    /// The version in a value; `None` when the value is not what was written for this key.
    pub fn version(&self, rank: u32, value: &[u8]) -> Option<u32> {
        let mut parts = value.split(|byte| *byte == b':');
        let (found, version) = (parts.next()?, std::str::from_utf8(parts.next()?).ok()?.parse().ok()?);
        (found == rank.to_string().as_bytes() && value == self.value(rank, version)).then_some(version)
    }
}

/// The rank of a key.
pub fn rank_of(key: &str) -> Option<u32> {
    u32::from_str_radix(key.rsplit_once(':')?.1, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SPACE: Space = Space { tag: "t", value_bytes: 100, spread_bytes: 200 };

    #[test]
    fn keys_keep_the_trace_order_and_reach_the_minimum() {
        let request = |key| Request { ts_us: 0, op: Op::Get, key, size: 1 };
        let workload = Workload::new(SPACE, &[request(50), request(7), request(900)], 10, Some(100), 1);
        assert_eq!(workload.keys(), 12);
        let ranks: Vec<u32> = (0..3).map(|index| workload.step(index).rank / 4).collect();
        assert_eq!(ranks, [1, 0, 2]);
        assert!(workload.step(0).write);
        assert!(SPACE.key(9) < SPACE.key(10) && rank_of(&String::from_utf8(SPACE.key(300)).unwrap()) == Some(300));
    }

    #[test]
    fn time_of_inverts_due() {
        let ramp = Ramp { from: 100.0, to: 400.0, begin: 2.0, length: 4.0 };
        for index in [0, 150, 200, 700, 1_200, 3_000] {
            assert!((ramp.due(ramp.time_of(index)) - index as f64).abs() < 0.01, "{index}");
        }
    }

    #[test]
    fn version_checks_the_whole_value() {
        let value = SPACE.value(7, 3);
        assert_eq!(SPACE.version(7, &value), Some(3));
        assert_eq!(SPACE.version(8, &value), None);
        assert_eq!(SPACE.version(7, &value[..value.len() - 1]), None);
    }
}
