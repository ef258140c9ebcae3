//! The host's own last windows: features and accesses of every segment, from which chunks are drawn.

use super::net::Chunk;
use crate::features::{FEATURES, Features, LANES, Lanes};
use crate::window::SegmentCounts;

/// Most bytes that the windows kept may take.
const BYTES_MAX: usize = 48 << 20;
/// Most windows that are kept.
const WINDOWS_MAX: usize = 1024;

/// One window.
#[derive(Clone, Debug, Default)]
struct Window {
    /// By segment, feature; the upper half of each f32 (8 bits of mantissa: 0.4 %).
    features: Vec<u16>,
    /// Accesses by segment.
    accesses: Vec<f32>,
    /// Windows of different structures of segments never share a chunk.
    structure: u64,
}

/// A ring of windows.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    windows: Vec<Window>,
    /// Place of the next window.
    next: usize,
    structure: u64,
    horizon: usize,
}

impl Replay {
    pub(super) fn new(horizon: usize) -> Replay {
        Replay { windows: Vec::new(), next: 0, structure: 0, horizon }
    }

    /// From here on segments are others.
    pub(super) fn new_structure(&mut self) {
        self.structure += 1;
    }

    /// Windows kept.
    pub(super) fn len(&self) -> usize {
        self.windows.len()
    }

    /// Keeps a window whose features are complete. Cost: `60 * segments` bytes, allocated while the ring grows.
    pub(super) fn push(&mut self, features: &Features, counts: &[SegmentCounts]) {
        let bytes = (2 * FEATURES + 4) * counts.len().max(1);
        let kept = (BYTES_MAX / bytes).clamp(2 * self.horizon, WINDOWS_MAX);
        if self.windows.len() < kept && self.next == self.windows.len() {
            self.windows.push(Window::default());
        }
        self.next %= self.windows.len();
        let window = &mut self.windows[self.next];
        self.next += 1;
        window.structure = self.structure;
        window.accesses.clear();
        window.accesses.extend(counts.iter().map(|counts| counts.accesses() as f32));
        window.features.clear();
        let mut tile: [Lanes; FEATURES] = [Lanes::ZERO; FEATURES];
        for first in (0..counts.len()).step_by(LANES) {
            features.tile(first, &mut tile);
            for lane in 0..LANES.min(counts.len() - first) {
                window.features.extend(tile.iter().map(|row| halved(row[lane])));
            }
        }
    }

    /// The window `age` windows before the newest.
    fn window(&self, age: usize) -> &Window {
        let len = self.windows.len();
        &self.windows[(self.next + 2 * len - 1 - age) % len]
    }

    /// Cuts a chunk whose last learned window is `age` windows before the newest whose horizon is known: at most
    /// `warm_up + learned` windows and `rows_max` segments. False when there is none of at least two learned windows.
    pub(super) fn cut(&self, spec: &ChunkSpec, age: usize, rng: &mut fastrand::Rng, chunk: &mut Chunk) -> bool {
        let last = age + self.horizon;
        if last + 1 >= self.len() {
            return false;
        }
        let structure = self.window(last).structure;
        if self.window(age).structure != structure || self.window(0).accesses.is_empty() && last == 0 {
            return false;
        }
        let reach = (last..self.len()).take(spec.warm_up + spec.learned);
        let windows = reach.take_while(|age| self.window(*age).structure == structure).count();
        let learned = windows.saturating_sub(spec.warm_up).max(windows.min(2));
        let segments = self.window(last).accesses.len();
        if learned < 2 || segments < 2 {
            return false;
        }
        chunk.windows = windows;
        chunk.warm_up = windows - learned;
        let first = last + windows - 1;
        self.fill_shares(chunk, first - chunk.warm_up, last, segments);
        let rows = pick(&chunk.shares, segments, spec.rows_max, rng);
        self.fill(chunk, first, &rows);
        true
    }

    /// Shares of all segments, from the window of age `oldest` to that of age `newest`.
    fn fill_shares(&self, chunk: &mut Chunk, oldest: usize, newest: usize, segments: usize) {
        chunk.shares.clear();
        let mut ahead = vec![0.0f64; segments];
        let add = |ahead: &mut [f64], age: usize, sign: f64| {
            let accesses = &self.window(age).accesses;
            ahead.iter_mut().zip(accesses).for_each(|(sum, count)| *sum += sign * f64::from(*count));
        };
        (1..=self.horizon).for_each(|after| add(&mut ahead, oldest - after, 1.0));
        for age in (newest..=oldest).rev() {
            let total: f64 = ahead.iter().sum();
            let scale = if total > 0.5 { 1.0 / total } else { 0.0 };
            chunk.shares.extend(ahead.iter().map(|sum| (sum.max(0.0) * scale) as f32));
            if age > newest {
                add(&mut ahead, age - 1, -1.0);
                add(&mut ahead, age - 1 - self.horizon, 1.0);
            }
        }
    }

    /// Features of the chosen rows, and their shares in place of all.
    fn fill(&self, chunk: &mut Chunk, first: usize, rows: &[u32]) {
        chunk.rows = rows.len();
        chunk.features.clear();
        for at in 0..chunk.windows {
            let features = &self.window(first - at).features;
            for row in rows {
                let row = &features[*row as usize * FEATURES..][..FEATURES];
                chunk.features.extend(row.iter().map(|half| f32::from_bits(u32::from(*half) << 16)));
            }
        }
        let segments = self.window(first).accesses.len();
        if rows.len() < segments {
            let all = std::mem::take(&mut chunk.shares);
            let of_window = |shares: &[f32]| rows.iter().map(|row| shares[*row as usize]).collect::<Vec<f32>>();
            chunk.shares = all.chunks_exact(segments).flat_map(of_window).collect();
        }
    }
}

/// Size of a chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ChunkSpec {
    pub warm_up: usize,
    pub learned: usize,
    pub rows_max: usize,
}

/// All segments, or `rows_max` of them: half the most accessed ones, half any others; in key order.
fn pick(shares: &[f32], segments: usize, rows_max: usize, rng: &mut fastrand::Rng) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..segments as u32).collect();
    if segments <= rows_max {
        return rows;
    }
    let mut sums = vec![0.0f32; segments];
    for shares in shares.chunks_exact(segments) {
        sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
    }
    rows.sort_unstable_by(|a, b| sums[*b as usize].total_cmp(&sums[*a as usize]));
    let (_, rest) = rows.split_at_mut(rows_max / 2);
    rng.shuffle(rest);
    rows.truncate(rows_max);
    rows.sort_unstable();
    rows
}

/// The upper half of a number, rounded.
fn halved(value: f32) -> u16 {
    ((value.to_bits().saturating_add(0x8000)) >> 16) as u16
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn filled(windows: usize, segments: usize) -> Replay {
        let mut replay = Replay::new(3);
        let mut features = Features::new(segments);
        for window in 0..windows {
            let mut counts = vec![SegmentCounts::default(); segments];
            counts[window % segments].reads = 10;
            features.begin(&counts);
            while !features.step(usize::MAX) {}
            replay.push(&features, &counts);
        }
        replay
    }

    const SPEC: ChunkSpec = ChunkSpec { warm_up: 4, learned: 6, rows_max: 8 };

    #[test]
    fn chunk_holds_the_shares_of_its_own_horizon() {
        let replay = filled(40, 8);
        let (mut chunk, mut rng) = (Chunk::default(), fastrand::Rng::with_seed(1));
        assert!(replay.cut(&SPEC, 0, &mut rng, &mut chunk));
        assert_eq!((chunk.rows, chunk.windows, chunk.warm_up), (8, 10, 4));
        // the newest window with a known horizon is 36: windows 37, 38, 39 read the segments 5, 6, 7
        let last = chunk.shares.chunks_exact(8).next_back().unwrap();
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!((0..8).all(|row| near(last[row], if row >= 5 { 1.0 / 3.0 } else { 0.0 })), "{last:?}");
        // its own window read segment 4: feature 0 (reads) says so
        let own = &chunk.features[(chunk.windows - 1) * 8 * FEATURES..];
        assert!(own[4 * FEATURES] > 0.5 && own[5 * FEATURES] == 0.0);
    }

    #[test]
    fn chunk_of_too_little_or_of_two_structures_is_refused() {
        let (mut chunk, mut rng) = (Chunk::default(), fastrand::Rng::with_seed(1));
        assert!(!filled(4, 8).cut(&SPEC, 0, &mut rng, &mut chunk));
        assert!(!filled(40, 8).cut(&SPEC, 36, &mut rng, &mut chunk));
        let mut replay = filled(40, 8);
        replay.new_structure();
        let mut features = Features::new(9);
        features.step(usize::MAX);
        replay.push(&features, &[SegmentCounts::default(); 9]);
        assert!(!replay.cut(&SPEC, 0, &mut rng, &mut chunk), "its horizon is of another structure");
        assert!(replay.cut(&SPEC, 1, &mut rng, &mut chunk));
    }

    #[test]
    fn chunk_of_many_segments_keeps_the_hot_ones() {
        let replay = filled(60, 40);
        let (mut chunk, mut rng) = (Chunk::default(), fastrand::Rng::with_seed(1));
        assert!(replay.cut(&ChunkSpec { rows_max: 24, ..SPEC }, 0, &mut rng, &mut chunk));
        assert_eq!(chunk.rows, 24);
        let sums: Vec<f32> = chunk.shares.chunks_exact(24).map(|shares| shares.iter().sum()).collect();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{sums:?}");
    }

    #[test]
    fn ring_keeps_within_its_bytes() {
        let segments = 20_000;
        let mut replay = Replay::new(3);
        let mut features = Features::new(segments);
        while !features.step(usize::MAX) {}
        for _ in 0..60 {
            replay.push(&features, &vec![SegmentCounts::default(); segments]);
        }
        assert_eq!(replay.len(), BYTES_MAX / (60 * segments));
    }

    #[test]
    fn halves_are_near() {
        for value in [0.0f32, 1.0, -0.73, 3.99, 1e-3] {
            let back = f32::from_bits(u32::from(halved(value)) << 16);
            assert!((back - value).abs() <= value.abs() * 0.004);
        }
    }
}
