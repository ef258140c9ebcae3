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
//! Cost: O(segments) a window, in slices; no allocation but when the structure changes.
//!
//! Features are never stored: [`Features::tile`] forms those of [`LANES`] neighbouring segments on the fly, in the
//! layout that the GRU multiplies with.

mod coaccess;

use crate::gru::math::ln;
use crate::simd::{self, Level};
use crate::window::{SegmentCounts, checked_share};
pub use coaccess::CoAccess;

/// Version of the table above; weights are valid for one version only.
pub const FEATURE_VERSION: u32 = 2;
/// Features of a segment.
pub const FEATURES: usize = 28;
/// Segments in a tile.
pub const LANES: usize = 16;

/// One tile: for each feature (or hidden unit) the values of `LANES` neighbouring segments.
pub type Lanes = [f32; LANES];

/// Shares of one window in the moving averages, fast to slow.
const ALPHAS: [f32; 4] = [0.5, 0.15, 0.04, 0.008];
const FAST: usize = 0;
const MID: usize = 1;
const LONGEST: usize = 3;
/// What passes of a neighbour's activity over one segment of distance.
const NEIGHBOUR_PASS: f32 = 0.7;
/// What passes of a front's pull over one segment of distance.
const FRONT_PASS: f32 = 0.9;
/// Share of one window in the figures of the whole partition.
const PARTITION_ALPHA: f32 = 0.1;
/// What passes of a segment's fast average over one segment of distance, to what a scan will reach.
const LENT_PASS: f32 = 0.6;
/// Windows ahead that the second chain of co-access looks: the middle of the usual horizon.
const FAR_LAG: usize = 4;
/// What learning a window costs a chain of co-access, in visits of a segment.
const CHAIN_COST: usize = 256;
/// Share of one gap in the mean gap between windows with an access.
const GAP_ALPHA: f32 = 0.2;
/// Age at which it stops to count, in windows.
const AGE_MAX: f32 = 1023.0;

/// State of one pass: totals of the window that is being taken in.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    accesses: f32,
    bytes: f32,
    cursor: usize,
    phase: Phase,
    votes: f32,
    from_fast: f32,
    from_longest: f32,
    active: f32,
    run: Run,
}

/// What is handed on from segment to segment, left to right and then right to left.
#[derive(Clone, Copy, Debug)]
struct Run {
    neighbours: f32,
    distance: f32,
    front: f32,
    lent: f32,
}

impl Default for Run {
    fn default() -> Run {
        Run { neighbours: 0.0, distance: f32::INFINITY, front: 0.0, lent: 0.0 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    Forward,
    /// The first, then the second chain of co-access learns the window.
    Chains(usize),
    Backward,
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
    counts: Vec<SegmentCounts>,
    averages: [Vec<f32>; 4],
    age: Vec<f32>,
    vote: Vec<f32>,
    left: Vec<f32>,
    right: Vec<f32>,
    left_distance: Vec<f32>,
    right_distance: Vec<f32>,
    left_front: Vec<f32>,
    right_front: Vec<f32>,
    left_lent: Vec<f32>,
    right_lent: Vec<f32>,
    /// Mean windows between windows with an access; `AGE_MAX` = not known.
    gap: Vec<f32>,
    writes: Vec<f32>,
    coaccess: CoAccess,
    far_coaccess: CoAccess,
    whole: Whole,
    pass: Pass,
}

impl Features {
    /// State of `segments` segments that were never accessed.
    #[must_use]
    pub fn new(segments: usize) -> Features {
        let zeros = || vec![0.0; segments];
        Features {
            counts: vec![SegmentCounts::default(); segments],
            averages: [zeros(), zeros(), zeros(), zeros()],
            age: vec![AGE_MAX; segments],
            vote: zeros(),
            left: zeros(),
            right: zeros(),
            left_distance: vec![f32::INFINITY; segments],
            right_distance: vec![f32::INFINITY; segments],
            left_front: zeros(),
            right_front: zeros(),
            left_lent: zeros(),
            right_lent: zeros(),
            gap: vec![AGE_MAX; segments],
            writes: zeros(),
            coaccess: CoAccess::new(segments),
            far_coaccess: CoAccess::with_lag(segments, FAR_LAG),
            whole: Whole { missing: [1.0; 4], ..Whole::default() },
            pass: Pass::default(),
        }
    }

    /// Segments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there is no segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
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
        self.counts.copy_from_slice(counts);
        let (accesses, bytes) =
            counts.iter().fold((0u64, 0u64), |sum, c| (sum.0 + c.accesses(), sum.1.saturating_add(c.bytes)));
        self.pass = Pass { accesses: accesses as f32, bytes: bytes as f32, phase: Phase::Forward, ..Pass::default() };
    }

    /// Works on at most `budget` segments (each is visited twice a pass); true when the pass is complete.
    pub fn step(&mut self, budget: usize) -> bool {
        let mut budget = budget;
        while budget > 0 && self.pass.phase != Phase::Done {
            let len = (self.len() - self.pass.cursor).min(budget);
            let range = self.pass.cursor..self.pass.cursor + len;
            match self.pass.phase {
                Phase::Forward => {
                    self.forward(range);
                    budget -= len;
                    self.move_on(len, Phase::Chains(0));
                }
                Phase::Chains(at) => {
                    // a fixed cost, about that of some hundred segments: a call of its own when there is little budget
                    let chain = if at == 0 { &mut self.coaccess } else { &mut self.far_coaccess };
                    chain.finish();
                    budget = budget.saturating_sub(CHAIN_COST);
                    self.pass.phase = if at == 0 { Phase::Chains(1) } else { Phase::Backward };
                    if at > 0 {
                        self.close_window();
                    }
                }
                Phase::Backward => {
                    let segments = self.len();
                    self.backward(segments - range.end..segments - range.start);
                    budget -= len;
                    self.move_on(len, Phase::Done);
                }
                Phase::Done => {}
            }
        }
        self.pass.phase == Phase::Done
    }

    /// So many segments were visited; after the last one comes `next`.
    fn move_on(&mut self, visited: usize, next: Phase) {
        self.pass.cursor += visited;
        if self.pass.cursor == self.len() {
            self.pass.cursor = 0;
            self.pass.run = Run::default();
            self.pass.phase = next;
        }
    }

    /// Left to right: averages, ages, votes on the direction, and what reaches a segment from its left.
    fn forward(&mut self, range: std::ops::Range<usize>) {
        let accesses = self.pass.accesses;
        let per_access = if accesses > 0.0 { 1.0 / accesses } else { 0.0 };
        let per_fast = 1.0 / self.whole.sums[FAST].max(1e-9);
        let per_longest = 1.0 / self.whole.sums[LONGEST].max(1e-9);
        let Run { mut neighbours, mut distance, mut front, mut lent } = self.pass.run;
        for index in range {
            let count = self.counts[index].accesses() as f32;
            let share = count * per_access;
            self.pass.from_fast += (share - self.averages[FAST][index] * per_fast).abs();
            self.pass.from_longest += (share - self.averages[LONGEST][index] * per_longest).abs();
            // an access votes "right-moving" where the left neighbours were the busier ones before it
            let (left, right) = (self.left[index], self.right[index]);
            let vote = if left + right > 0.0 { (left - right) / (left + right) } else { 0.0 };
            if count > 0.0 {
                self.pass.votes += share * vote;
                self.pass.active += 1.0;
                self.vote[index] += 0.3 * (vote - self.vote[index]);
                let (gap, since) = (self.gap[index], self.age[index] + 1.0);
                if since < AGE_MAX {
                    self.gap[index] = if gap < AGE_MAX { gap + GAP_ALPHA * (since - gap) } else { since };
                }
                self.age[index] = 0.0;
            } else {
                self.age[index] = (self.age[index] + 1.0).min(AGE_MAX);
            }
            for (average, alpha) in self.averages.iter_mut().zip(ALPHAS) {
                average[index] += alpha * (count - average[index]);
            }
            let writes = self.counts[index].writes as f32;
            self.writes[index] += ALPHAS[MID] * (writes - self.writes[index]);
            self.coaccess.offer(index, share);
            self.far_coaccess.offer(index, share);
            self.left_lent[index] = lent;
            lent = self.averages[FAST][index].max(LENT_PASS * lent);
            self.left[index] = neighbours;
            self.left_distance[index] = distance;
            self.left_front[index] = front;
            neighbours = NEIGHBOUR_PASS * neighbours + (1.0 - NEIGHBOUR_PASS) * self.averages[MID][index];
            distance = if count > 0.0 { 1.0 } else { distance + 1.0 };
            let pull = self.vote[index].max(0.0) * self.averages[FAST][index];
            front = FRONT_PASS * front + (1.0 - FRONT_PASS) * pull;
        }
        self.pass.run = Run { neighbours, distance, front, lent };
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
        smooth(&mut whole.direction, self.pass.votes);
        smooth(&mut whole.from_fast, 0.5 * self.pass.from_fast);
        smooth(&mut whole.from_longest, 0.5 * self.pass.from_longest);
        smooth(&mut whole.active, self.pass.active / self.counts.len().max(1) as f32);
    }

    /// Right to left: what reaches a segment from its right.
    fn backward(&mut self, range: std::ops::Range<usize>) {
        let Run { mut neighbours, mut distance, mut front, mut lent } = self.pass.run;
        for index in range.rev() {
            self.right_lent[index] = lent;
            lent = self.averages[FAST][index].max(LENT_PASS * lent);
            self.right[index] = neighbours;
            self.right_distance[index] = distance;
            self.right_front[index] = front;
            neighbours = NEIGHBOUR_PASS * neighbours + (1.0 - NEIGHBOUR_PASS) * self.averages[MID][index];
            distance = if self.counts[index].accesses() > 0 { 1.0 } else { distance + 1.0 };
            let pull = (-self.vote[index]).max(0.0) * self.averages[FAST][index];
            front = FRONT_PASS * front + (1.0 - FRONT_PASS) * pull;
        }
        self.pass.run = Run { neighbours, distance, front, lent };
    }

    fn corrected(&self, average: usize, value: f32) -> f32 {
        value / (1.0 - self.whole.missing[average]).max(ALPHAS[average])
    }

    /// Features of the segments from `first` on, one row a feature; lanes past the last segment are zero.
    ///
    /// Call it between a completed pass and the next [`Features::begin`].
    pub fn tile(&self, first: usize, out: &mut [Lanes; FEATURES]) {
        match simd::level() {
            Level::Baseline => self.tile_on(first, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                // SAFETY: the processor has just been found to have the features.
                #[allow(unsafe_code)]
                unsafe {
                    self.tile_avx2(first, out);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                // SAFETY: the processor has just been found to have the features.
                #[allow(unsafe_code)]
                unsafe {
                    self.tile_avx512(first, out);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn tile_avx2(&self, first: usize, out: &mut [Lanes; FEATURES]) {
        self.tile_on(first, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    fn tile_avx512(&self, first: usize, out: &mut [Lanes; FEATURES]) {
        self.tile_on(first, out);
    }

    #[inline(always)]
    fn tile_on(&self, first: usize, out: &mut [Lanes; FEATURES]) {
        let segments = self.len() as f32;
        let expected_accesses = self.accesses_per_window();
        // relative units: 1 = an average segment of this partition at its present load
        let relative = segments / expected_accesses.max(1e-6);
        let mut scale = [0.0; 4];
        for (average, scale) in scale.iter_mut().enumerate() {
            *scale = self.corrected(average, relative);
        }
        let relative_bytes = segments / self.corrected(MID, self.whole.bytes).max(1e-6);
        let end = (first + LANES).min(self.len());
        let mut counts = [SegmentCounts::default(); LANES];
        counts[..end - first].copy_from_slice(&self.counts[first..end]);
        let load = |column: &[f32]| load(column, first, end);
        // loops instead of `map`, which stays a call of its own without the wide units
        for lane in 0..LANES {
            out[0][lane] = counts[lane].reads as f32;
            out[1][lane] = counts[lane].writes as f32;
            out[2][lane] = counts[lane].bytes as f32;
        }
        log(&mut out[0], relative);
        log(&mut out[1], relative);
        log(&mut out[2], relative_bytes);
        for (average, scale) in scale.iter().enumerate() {
            out[3 + average] = load(&self.averages[average]);
            log(&mut out[3 + average], *scale);
        }
        out[7] = load(&self.age);
        logarithm(&mut out[7], std::f32::consts::LOG2_E / 10.0);
        let (left, right) = (load(&self.left), load(&self.right));
        out[8] = left;
        log(&mut out[8], scale[MID]);
        out[9] = right;
        log(&mut out[9], scale[MID]);
        let far = 1.0 / ln(1.0 + segments);
        for (row, column) in [(10, &self.left_distance), (11, &self.right_distance)] {
            out[row] = load(column);
            // where there is no active segment the distance is infinite
            out[row].iter_mut().for_each(|distance| *distance = distance.min(1e9));
            logarithm(&mut out[row], far);
            out[row].iter_mut().for_each(|distance| *distance = distance.min(1.0));
        }
        for lane in 0..LANES {
            let (left, right) = (left[lane], right[lane]);
            out[12][lane] = self.whole.direction * (left - right) / (left + right).max(1e-9);
        }
        out[13] = load(&self.left_front);
        log(&mut out[13], scale[FAST]);
        out[14] = load(&self.right_front);
        log(&mut out[14], scale[FAST]);
        out[15] = load(self.coaccess.expected());
        log(&mut out[15], segments);
        let share = self.corrected(MID, 1.0) / expected_accesses.max(1e-6);
        let average = load(&self.averages[MID]);
        for lane in 0..LANES {
            out[16][lane] = (average[lane] * share).sqrt();
        }
        out[17] = [self.whole.from_fast; LANES];
        out[18] = [self.whole.from_longest; LANES];
        out[19] = [self.whole.active; LANES];
        self.scan_rows(first, end, &scale, out);
        self.rhythm_rows(first, end, &scale, out);
        let valid = self.len().saturating_sub(first).min(LANES);
        for row in out.iter_mut() {
            row[valid..].fill(0.0);
        }
    }

    /// Features 20 to 24: what a scan or co-access will reach.
    #[inline(always)]
    fn scan_rows(&self, first: usize, end: usize, scale: &[f32; 4], out: &mut [Lanes; FEATURES]) {
        out[20] = load(&self.left_lent, first, end);
        out[21] = load(&self.right_lent, first, end);
        let fast = &self.averages[FAST];
        // the left neighbour of the first segment and the right one of the last do not exist
        let (left, right) = (&fast[first.saturating_sub(1)..end], &fast[(first + 1).min(fast.len())..]);
        let skipped = usize::from(first == 0);
        out[22] = [0.0; LANES];
        out[23] = [0.0; LANES];
        out[22][skipped..].iter_mut().zip(left).take(end - first).for_each(|(to, from)| *to = *from);
        out[23].iter_mut().zip(right).for_each(|(to, from)| *to = *from);
        out[20..24].iter_mut().for_each(|row| log(row, scale[FAST]));
        out[24] = load(self.far_coaccess.expected(), first, end);
        log(&mut out[24], self.len() as f32);
    }

    /// Features 25 to 27: how regularly a segment is accessed, and written.
    #[inline(always)]
    fn rhythm_rows(&self, first: usize, end: usize, scale: &[f32; 4], out: &mut [Lanes; FEATURES]) {
        let (age, gap) = (load(&self.age, first, end), load(&self.gap, first, end));
        for lane in 0..LANES {
            out[25][lane] = age[lane] / gap[lane].max(1.0);
        }
        logarithm(&mut out[25], 0.5);
        out[26] = gap;
        logarithm(&mut out[26], std::f32::consts::LOG2_E / 10.0);
        out[27] = load(&self.writes, first, end);
        log(&mut out[27], scale[MID]);
    }

    /// Divides segment `index`: activity by `left_share`, the rest of its state goes to both halves.
    ///
    /// Cost: O(segments); a pass under way is completed first.
    pub fn split(&mut self, index: usize, left_share: f32) {
        while !self.step(usize::MAX) {}
        let share = checked_share(left_share);
        let counts = self.counts[index];
        self.counts.insert(index + 1, counts);
        for column in self.averages.iter_mut().chain([&mut self.writes]) {
            let whole = column[index];
            column[index] = whole * share;
            column.insert(index + 1, whole - whole * share);
        }
        for column in self.copied_columns() {
            let value = column[index];
            column.insert(index + 1, value);
        }
        self.coaccess.split(index, share);
        self.far_coaccess.split(index, share);
    }

    /// Unites segment `index` with its right neighbour: activities are added, the younger age stays.
    ///
    /// Cost: O(segments); a pass under way is completed first.
    pub fn merge(&mut self, index: usize) {
        while !self.step(usize::MAX) {}
        let counts = self.counts.remove(index + 1);
        self.counts[index].add(&counts);
        for column in self.averages.iter_mut().chain([&mut self.writes]) {
            let taken = column.remove(index + 1);
            column[index] += taken;
        }
        self.age[index] = self.age[index].min(self.age[index + 1]);
        self.gap[index] = self.gap[index].min(self.gap[index + 1]);
        for column in self.copied_columns() {
            column.remove(index + 1);
        }
        self.coaccess.merge(index);
        self.far_coaccess.merge(index);
    }

    fn copied_columns(&mut self) -> [&mut Vec<f32>; 11] {
        [
            &mut self.age,
            &mut self.vote,
            &mut self.left,
            &mut self.right,
            &mut self.left_distance,
            &mut self.right_distance,
            &mut self.left_front,
            &mut self.right_front,
            &mut self.left_lent,
            &mut self.right_lent,
            &mut self.gap,
        ]
    }
}

/// The values from `first` to `end`, zero after them.
#[inline(always)]
fn load(column: &[f32], first: usize, end: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    match column.get(first..first + LANES) {
        Some(whole) => lanes.copy_from_slice(whole),
        None => lanes[..end - first].copy_from_slice(&column[first..end]),
    }
    lanes
}

/// Each lane to `ln(1 + 16 v) / 4` of `scale` times it.
#[inline(always)]
fn log(lanes: &mut Lanes, scale: f32) {
    let scale = 16.0 * scale;
    for lane in lanes {
        *lane = 0.25 * ln(1.0 + *lane * scale);
    }
}

/// Each lane to `ln(1 + v)` times `factor`.
#[inline(always)]
fn logarithm(lanes: &mut Lanes, factor: f32) {
    for lane in lanes {
        *lane = factor * ln(1.0 + *lane);
    }
}

#[cfg(test)]
mod tests;
