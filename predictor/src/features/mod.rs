//! What the model sees of one segment after one window: [`FEATURES`] numbers, about -1..3 each, free of units.
//!
//! Activity is relative: accesses times segments, over the smoothed accesses of the whole partition, so that 1 is an
//! average segment whatever the load, the window's length or the number of segments. `log(v)` below is
//! `ln(1 + 16 v) / 4`.
//!
//! | index | feature | from |
//! |---|---|---|
//! | 0, 1, 2 | log of reads, of writes, of bytes in the window | the segment |
//! | 3, 4, 5, 6 | log of the moving averages of accesses, of shares 1/2, 1/7, 1/25 and 1/125 a window | the segment |
//! | 7 | age: `ln(1 + windows since the last access)` over its maximum; 1 = never or 1023 and more | the segment |
//! | 8, 9 | log of the activity of the left (right) neighbours, 0.7 a segment of distance | neighbours |
//! | 10, 11 | `ln(distance)` to the nearest active segment left (right) over its maximum; 1 = none | neighbours |
//! | 12 | partition's direction times (right-moving minus left-moving pull on this segment), -1..1 | fronts |
//! | 13, 14 | log of the activity of right-moving (left-moving) fronts to the left (right), 0.9 a segment | fronts |
//! | 15 | log of the expected activity by co-access | [`CoAccess`] |
//! | 16 | root of the segment's share of the partition's smoothed accesses, 0..1 | partition |
//! | 17, 18 | distance (total variation, smoothed) of windows from the fast, from the slowest average, 0..1 | partition |
//! | 19 | share of segments accessed, smoothed, 0..1 | partition |
//! | 20, 21 | log of the strongest fast average to the left (right), 0.6 a segment: what a scan will reach | fronts |
//! | 22, 23 | log of the fast average of the next segment to the left (right) | neighbours |
//! | 24 | log of the expected activity by co-access in the middle of the horizon | [`CoAccess`] |
//! | 25 | `ln(1 + age over the mean gap)` / 2: how overdue an access is | the segment |
//! | 26 | `ln(1 + mean gap between windows with an access)` over its maximum; 1 = not known | the segment |
//! | 27 | log of the moving average of writes, of share 1/7 | the segment |
//!
//! Cost: O(segments) a window, in slices; no allocation but when the structure changes. A pass visits each segment
//! twice: first [`LANES`] at a time for all that is its own, then one by one in both directions at once for what
//! neighbours hand on.
//!
//! Features are never stored: [`Features::tile`] forms those of [`LANES`] neighbouring segments on the fly, in the
//! layout that the GRU multiplies with.

mod coaccess;
mod lanes;
mod runs;
mod tile;

use std::ops::Range;

use crate::simd::{self, for_each_level, multiply_add};
use crate::window::{SegmentCounts, checked_share};
pub use coaccess::CoAccess;
use lanes::Column;
pub use lanes::{LANES, Lanes};
use runs::{Run, Side, runs_at};
use tile::tile_at;

/// Version of the table above; weights are valid for one version only.
pub const FEATURE_VERSION: u32 = 2;
/// Features of a segment.
pub const FEATURES: usize = 28;
/// Shares of one window in the moving averages, fast to slow.
const ALPHAS: [f32; 4] = [0.5, 0.15, 0.04, 0.008];
const FAST: usize = 0;
const MID: usize = 1;
const LONGEST: usize = 3;
/// Share of one window in the figures of the whole partition.
const PARTITION_ALPHA: f32 = 0.1;
/// Windows ahead that the second chain of co-access looks: the middle of the usual horizon.
const FAR_LAG: usize = 4;
/// What learning a window costs a chain of co-access, in visits of a segment.
const CHAIN_COST: usize = 256;
/// Share of one access in a segment's vote on the direction.
const VOTE_ALPHA: f32 = 0.3;
/// Share of one gap in the mean gap between windows with an access.
const GAP_ALPHA: f32 = 0.2;
/// Age at which it stops to count, in windows.
const AGE_MAX: f32 = 1023.0;

/// State of one pass: totals of the window that is being taken in, sums by lane so that slices do not change them.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    accesses: f32,
    bytes: f32,
    cursor: usize,
    phase: Phase,
    votes: Lanes,
    from_fast: Lanes,
    from_longest: Lanes,
    active: Lanes,
    /// What goes from segment to segment, left to right and right to left.
    rightward: Run,
    leftward: Run,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    /// Every segment takes in its counts.
    Update,
    /// The chain of co-access of this number learns the window.
    Chain(usize),
    /// Neighbours hand on, in both directions at once.
    Runs,
    #[default]
    Done,
}

/// Figures of the partition as a whole, smoothed.
#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    /// Sums of the moving averages, one for each of `ALPHAS`.
    sums: [f32; 4],
    /// What is missing to the full weight of each moving average; corrects their bias at the start.
    missing: [f32; 4],
    bytes: f32,
    direction: f32,
    from_fast: f32,
    from_longest: f32,
    active: f32,
}

/// Feature state of one partition.
#[derive(Clone, Debug)]
pub struct Features {
    /// Counts of the window taken in last.
    reads: Column,
    writes_now: Column,
    bytes: Column,
    averages: [Column; 4],
    age: Column,
    vote: Column,
    left: Side,
    right: Side,
    /// Mean windows between windows with an access; `AGE_MAX` = not known.
    gap: Column,
    writes: Column,
    coaccess: CoAccess,
    whole: Whole,
    pass: Pass,
}

/// Chains of co-access: to the next window, and to the one in the middle of the horizon.
const NEXT: usize = 0;
const FAR: usize = 1;

impl Features {
    /// State of `segments` segments that were never accessed.
    #[must_use]
    pub fn new(segments: usize) -> Features {
        let zeros = || Column::new(segments, 0.0);
        Features {
            reads: zeros(),
            writes_now: zeros(),
            bytes: zeros(),
            averages: [zeros(), zeros(), zeros(), zeros()],
            age: Column::new(segments, AGE_MAX),
            vote: zeros(),
            left: Side::new(segments),
            right: Side::new(segments),
            gap: Column::new(segments, AGE_MAX),
            writes: zeros(),
            coaccess: CoAccess::new(segments, &[1, FAR_LAG]),
            whole: Whole { missing: [1.0; 4], ..Whole::default() },
            pass: Pass::default(),
        }
    }

    /// Segments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.reads.len()
    }

    /// Whether there is no segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Smoothed accesses of the whole partition in one window.
    #[must_use]
    pub fn accesses_per_window(&self) -> f32 {
        self.corrected(MID, self.whole.sums[MID])
    }

    /// Takes over the counts of the window just closed. A pass that was not finished is finished first.
    ///
    /// # Panics
    /// When there are not as many counts as segments.
    pub fn begin(&mut self, counts: &[SegmentCounts]) {
        assert_eq!(counts.len(), self.len(), "counts of another structure");
        while !self.step(usize::MAX) {}
        begin_at(simd::level(), self, counts);
    }

    /// Works on at most `budget` segments, rounded up to whole tiles (each is visited twice a pass); true when the pass
    /// is complete.
    pub fn step(&mut self, budget: usize) -> bool {
        let mut budget = budget;
        let tiles = self.len().div_ceil(LANES);
        while budget > 0 && self.pass.phase != Phase::Done {
            let first = self.pass.cursor;
            let end = tiles.min(first + budget.min(self.len()).div_ceil(LANES));
            match self.pass.phase {
                Phase::Update => {
                    update_at(simd::level(), self, first..end);
                    self.move_on(end, tiles, Phase::Chain(0));
                }
                Phase::Chain(at) => {
                    // a fixed cost, about that of some hundred segments: a call of its own when there is little budget
                    self.coaccess.finish_chain(at);
                    budget = budget.saturating_sub(CHAIN_COST);
                    self.pass.phase = Phase::Chain(at + 1);
                    if at + 1 == self.coaccess.chains() {
                        self.close_window();
                        self.pass.phase = Phase::Runs;
                    }
                    continue;
                }
                Phase::Runs => {
                    runs_at(simd::level(), self, first..end);
                    self.move_on(end, tiles, Phase::Done);
                }
                Phase::Done => {}
            }
            budget = budget.saturating_sub((end - first) * LANES);
        }
        self.pass.phase == Phase::Done
    }

    /// The tiles before `cursor` were visited; after the last one comes `next`.
    fn move_on(&mut self, cursor: usize, tiles: usize, next: Phase) {
        self.pass.cursor = cursor;
        if cursor == tiles {
            self.pass.cursor = 0;
            self.pass.phase = next;
        }
    }

    /// Figures of the whole partition, once every count was seen.
    fn close_window(&mut self) {
        let whole = &mut self.whole;
        for ((sum, missing), alpha) in whole.sums.iter_mut().zip(&mut whole.missing).zip(ALPHAS) {
            *sum += alpha * (self.pass.accesses - *sum);
            *missing *= 1.0 - alpha;
        }
        whole.bytes += ALPHAS[MID] * (self.pass.bytes - whole.bytes);
        if self.pass.accesses <= 0.0 {
            // an idle window says nothing about where accesses go
            return;
        }
        let smooth = |value: &mut f32, new: f32| *value += PARTITION_ALPHA * (new - *value);
        let sum = |lanes: &Lanes| lanes.iter().sum::<f32>();
        smooth(&mut whole.direction, sum(&self.pass.votes));
        smooth(&mut whole.from_fast, 0.5 * sum(&self.pass.from_fast));
        smooth(&mut whole.from_longest, 0.5 * sum(&self.pass.from_longest));
        smooth(&mut whole.active, sum(&self.pass.active) / self.reads.len().max(1) as f32);
    }

    fn corrected(&self, average: usize, value: f32) -> f32 {
        value / (1.0 - self.whole.missing[average]).max(ALPHAS[average])
    }

    /// Features of the segments from `first` on, one row a feature; lanes past the last segment are zero.
    ///
    /// Call it between a completed pass and the next [`Features::begin`].
    pub fn tile(&self, first: usize, out: &mut [Lanes; FEATURES]) {
        tile_at(simd::level(), self, first, out);
    }

    /// Divides segment `index`: activity by `left_share`, the rest of its state goes to both halves.
    ///
    /// Cost: O(segments); a pass under way is completed first.
    pub fn split(&mut self, index: usize, left_share: f32) {
        while !self.step(usize::MAX) {}
        let share = checked_share(left_share);
        for column in self.divided_columns() {
            column.split(index, share);
        }
        for column in self.copied_columns() {
            column.insert(index + 1, column.get(index));
        }
        self.coaccess.split(index, share);
    }

    /// Unites segment `index` with its right neighbour: activities are added, the younger age stays.
    ///
    /// Cost: O(segments); a pass under way is completed first.
    pub fn merge(&mut self, index: usize) {
        while !self.step(usize::MAX) {}
        for column in self.divided_columns() {
            column.merge(index);
        }
        for column in [&mut self.age, &mut self.gap] {
            column.set(index, column.get(index).min(column.get(index + 1)));
        }
        for column in self.copied_columns() {
            column.remove(index + 1);
        }
        self.coaccess.merge(index);
    }

    fn divided_columns(&mut self) -> impl Iterator<Item = &mut Column> {
        let others = [&mut self.writes, &mut self.reads, &mut self.writes_now, &mut self.bytes];
        self.averages.iter_mut().chain(others)
    }

    fn copied_columns(&mut self) -> impl Iterator<Item = &mut Column> {
        [&mut self.age, &mut self.vote, &mut self.gap]
            .into_iter()
            .chain(self.left.columns())
            .chain(self.right.columns())
    }
}

for_each_level! {
    fn begin_at(level, features: &mut Features, counts: &[SegmentCounts]) = begin_on
}

#[inline(always)]
fn begin_on<const FUSED: bool>(features: &mut Features, counts: &[SegmentCounts]) {
    let (mut accesses, mut size) = (Lanes::ZERO, Lanes::ZERO);
    let tiles = features.reads.tiles.iter_mut().zip(&mut features.writes_now.tiles).zip(&mut features.bytes.tiles);
    for (((reads, writes), bytes), counts) in tiles.zip(counts.chunks(LANES)) {
        for (lane, counts) in counts.iter().enumerate() {
            reads[lane] = counts.reads as f32;
            writes[lane] = counts.writes as f32;
            bytes[lane] = counts.bytes as f32;
        }
        for lane in 0..LANES {
            accesses[lane] += reads[lane] + writes[lane];
            size[lane] += bytes[lane];
        }
    }
    let (accesses, bytes) = (accesses.iter().sum(), size.iter().sum());
    features.pass = Pass { accesses, bytes, phase: Phase::Update, ..Pass::default() };
}

for_each_level! {
    fn update_at(level, features: &mut Features, range: Range<usize>) = update_on
}

/// Averages, ages, votes on the direction: all that a segment needs no neighbour for. Lanes past the last segment have
/// no accesses, so they add nothing to a sum.
#[inline(always)]
fn update_on<const FUSED: bool>(features: &mut Features, range: Range<usize>) {
    let fma = multiply_add::<FUSED>;
    let Features { pass, whole, averages, age, vote, gap, writes, .. } = features;
    let per_access = if pass.accesses > 0.0 { 1.0 / pass.accesses } else { 0.0 };
    let per_fast = 1.0 / whole.sums[FAST].max(1e-9);
    let per_longest = 1.0 / whole.sums[LONGEST].max(1e-9);
    for tile in range {
        let (reads, written) = (&features.reads.tiles[tile], &features.writes_now.tiles[tile]);
        let (left, right) = (&features.left.neighbours.tiles[tile], &features.right.neighbours.tiles[tile]);
        // an array's `map` would stay a call of its own
        let mut columns = [Lanes::ZERO; 4];
        for (lanes, average) in columns.iter_mut().zip(averages.iter()) {
            *lanes = average.tiles[tile];
        }
        let (mut ages, mut votes) = (age.tiles[tile], vote.tiles[tile]);
        let (mut gaps, mut writings) = (gap.tiles[tile], writes.tiles[tile]);
        let mut shares = Lanes::ZERO;
        for lane in 0..LANES {
            let count = reads[lane] + written[lane];
            let share = count * per_access;
            shares[lane] = share;
            pass.from_fast[lane] += fma(columns[FAST][lane], -per_fast, share).abs();
            pass.from_longest[lane] += fma(columns[LONGEST][lane], -per_longest, share).abs();
            // an access votes "right-moving" where the left neighbours were the busier ones before it
            let both = left[lane] + right[lane];
            let voted = if both > 0.0 { (left[lane] - right[lane]) / both } else { 0.0 };
            let is_active = count > 0.0;
            pass.votes[lane] = fma(share, voted, pass.votes[lane]);
            pass.active[lane] += if is_active { 1.0 } else { 0.0 };
            votes[lane] = if is_active { fma(VOTE_ALPHA, voted - votes[lane], votes[lane]) } else { votes[lane] };
            let since = ages[lane] + 1.0;
            let known = gaps[lane] < AGE_MAX;
            let next_gap = if known { fma(GAP_ALPHA, since - gaps[lane], gaps[lane]) } else { since };
            gaps[lane] = if is_active && since < AGE_MAX { next_gap } else { gaps[lane] };
            ages[lane] = if is_active { 0.0 } else { since.min(AGE_MAX) };
            for (column, alpha) in columns.iter_mut().zip(ALPHAS) {
                column[lane] = fma(alpha, count - column[lane], column[lane]);
            }
            writings[lane] = fma(ALPHAS[MID], written[lane] - writings[lane], writings[lane]);
        }
        for (average, lanes) in averages.iter_mut().zip(&columns) {
            average.tiles[tile] = *lanes;
        }
        (age.tiles[tile], vote.tiles[tile]) = (ages, votes);
        (gap.tiles[tile], writes.tiles[tile]) = (gaps, writings);
        features.coaccess.offer::<FUSED>(tile, &shares);
    }
}

#[cfg(test)]
mod tests;
