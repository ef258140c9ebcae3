//! How well each of several scorers has ordered this partition lately.
//!
//! Every [`STRIDE`] windows the rank of each segment under each candidate is kept (two bytes). When a window closes, each
//! order that still has this window in its horizon is asked which of the window's accesses would have hit a segment
//! already copied, copying at a constant rate in that order since it was formed. The mean over these orders is a sample
//! of the very figure that the evaluation calls share, and it is there at once: no horizon has to pass first.
//!
//! Two trailing means follow: a slow one for what a candidate is worth, a fast one to notice that the load has changed.
//!
//! Ranks come from a histogram of the scores' leading bits instead of a sort, so that the work is linear, can be done in
//! slices and allocates nothing; segments whose scores differ by less than 1/32 share the middle of their ranks.

use crate::features::LANES;
use crate::simd::{self, for_each_level};

/// Windows between two orders that are judged; neighbouring ones would say nearly the same.
const STRIDE: usize = 2;
/// Windows that an order is judged over.
const HORIZON: usize = super::HORIZON_WINDOWS;
/// Orders under judgement at one time.
pub(crate) const OPEN: usize = HORIZON / STRIDE;
/// Share of one window in the slow trailing means; the first ones count more.
const SLOW_ALPHA: f64 = 1.0 / 96.0;
/// The same of the fast ones.
const FAST_ALPHA: f64 = 1.0 / 8.0;
/// Bits of a score that are dropped to find its bucket: 8 of exponent and 5 of mantissa stay (the sign is always 0).
const DROPPED_BITS: u32 = 18;
const BUCKETS: usize = 1 << (31 - DROPPED_BITS);

/// Orders of all candidates at one window.
#[derive(Clone, Debug)]
struct Order {
    /// Rank as a part of 65,536, by candidate, then segment.
    ranks: Vec<u16>,
    /// Windows of its horizon that have closed; `HORIZON` and more: not in use.
    age: usize,
}

/// Trailing figures of merit of some candidates.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    segments: usize,
    orders: [Order; OPEN],
    buckets: Vec<u32>,
    /// Share of the window under judgement that each candidate's orders hit, summed over them, and how many they are.
    window: Vec<f64>,
    window_orders: u32,
    slow: Vec<f64>,
    fast: Vec<f64>,
    judged: u64,
    windows: usize,
}

impl Judge {
    pub(crate) fn new(candidates: usize, segments: usize) -> Judge {
        let order = || Order { ranks: vec![0; candidates * segments], age: HORIZON };
        Judge {
            segments,
            orders: std::array::from_fn(|_| order()),
            buckets: vec![0; BUCKETS],
            window: vec![0.0; candidates],
            window_orders: 0,
            slow: vec![0.0; candidates],
            fast: vec![0.0; candidates],
            judged: 0,
            windows: 0,
        }
    }

    /// The structure has changed: orders under judgement are dropped, the trailing means stay.
    pub(crate) fn resize(&mut self, segments: usize) {
        let candidates = self.slow.len();
        self.segments = segments;
        for order in &mut self.orders {
            order.ranks.clear();
            order.ranks.resize(candidates * segments, 0);
            order.age = HORIZON;
        }
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self, segments: usize) {
        self.resize(segments);
        self.forget();
        self.windows = 0;
    }

    /// Slow trailing mean share (0..1) of each candidate; all zero before the first verdict.
    pub(crate) fn means(&self) -> &[f64] {
        &self.slow
    }

    /// Fast trailing mean share (0..1) of each candidate: a handful of windows.
    pub(crate) fn recent(&self) -> &[f64] {
        &self.fast
    }

    /// Windows that were judged by.
    pub(crate) fn judged(&self) -> u64 {
        self.judged
    }

    /// Whether the orders of this window are to be kept, by [`Judge::keep`].
    pub(crate) fn wants_order(&self) -> bool {
        self.windows.is_multiple_of(STRIDE)
    }

    /// Counts the accesses of the window just closed, `total` together, against one of the [`OPEN`] orders. Every order
    /// has its turn once a window, then [`Judge::next_window`] is called.
    ///
    /// Cost: O(candidates * segments), no allocation.
    pub(crate) fn close_window_of(&mut self, slot: usize, counts: &[f32], total: f64) {
        let order = &mut self.orders[slot];
        if order.age >= HORIZON {
            return;
        }
        // what has a rank up to the middle of this window is there
        let there = ((order.age as f64 + 0.5) / HORIZON as f64 * 65_536.0) as u16;
        order.age += 1;
        if total <= 0.0 {
            return;
        }
        for (ranks, share) in order.ranks.chunks_exact(self.segments.max(1)).zip(&mut self.window) {
            *share += f64::from(hits_at(simd::level(), ranks, counts, there)) / total;
        }
        self.window_orders += 1;
    }

    /// Counts a whole window at once.
    pub(crate) fn close_window(&mut self, counts: &[f32]) {
        let total = counts.iter().map(|count| f64::from(*count)).sum();
        (0..OPEN).for_each(|slot| self.close_window_of(slot, counts, total));
        self.next_window();
    }

    /// Candidates are others from here on: nothing that was judged counts.
    pub(crate) fn forget(&mut self) {
        self.orders.iter_mut().for_each(|order| order.age = HORIZON);
        self.slow.fill(0.0);
        self.fast.fill(0.0);
        self.window.fill(0.0);
        self.window_orders = 0;
        self.judged = 0;
    }

    /// All orders have seen the window.
    pub(crate) fn next_window(&mut self) {
        self.windows += 1;
        // with fewer orders their ages do not cover the horizon evenly
        if self.window_orders as usize == OPEN {
            self.judged += 1;
            let first = 1.0 / self.judged as f64;
            for (at, sum) in self.window.iter().enumerate() {
                let share = sum / OPEN as f64;
                self.slow[at] += SLOW_ALPHA.max(first) * (share - self.slow[at]);
                self.fast[at] += FAST_ALPHA.max(first) * (share - self.fast[at]);
            }
        }
        self.window.fill(0.0);
        self.window_orders = 0;
    }

    /// Starts the judgement of this window's orders; the oldest slot is taken. [`Judge::keep`] fills it.
    pub(crate) fn open(&mut self) -> usize {
        let oldest = |best: usize, at: usize| if self.orders[at].age > self.orders[best].age { at } else { best };
        let slot = (0..OPEN).fold(0, oldest);
        self.orders[slot].age = 0;
        slot
    }

    /// Keeps the order by `scores` of one candidate in a slot that [`Judge::open`] gave.
    ///
    /// Cost: O(segments) plus clearing the buckets.
    pub(crate) fn keep(&mut self, slot: usize, candidate: usize, scores: &[f32]) {
        self.buckets.fill(0);
        for score in scores {
            self.buckets[bucket(*score)] += 1;
        }
        // from the highest score down: the middle rank of each bucket
        let per_segment = 65_535.0 / scores.len().max(1) as f32;
        let mut before = 0u32;
        for count in self.buckets.iter_mut().rev().filter(|count| **count > 0) {
            let middle = before as f32 + 0.5 * (*count as f32 + 1.0);
            before += *count;
            *count = (middle * per_segment) as u32;
        }
        let ranks = &mut self.orders[slot].ranks[candidate * self.segments..][..scores.len()];
        for (rank, score) in ranks.iter_mut().zip(scores) {
            *rank = self.buckets[bucket(*score)].min(65_535) as u16;
        }
    }
}

for_each_level! {
    /// Sum of the counts of segments whose rank is at most `there`.
    fn hits_at(level, ranks: &[u16], counts: &[f32], there: u16) -> f32 = hits_on
}

#[inline(always)]
fn hits_on<const FUSED: bool>(ranks: &[u16], counts: &[f32], there: u16) -> f32 {
    let hit = |rank: u16, count: f32| if rank <= there { count } else { 0.0 };
    // sums side by side: one sum would wait for itself at every segment
    let mut sums = [0.0f32; LANES];
    let ((ranks, ranks_left), (counts, counts_left)) = (ranks.as_chunks::<LANES>(), counts.as_chunks::<LANES>());
    for (ranks, counts) in ranks.iter().zip(counts) {
        for lane in 0..LANES {
            sums[lane] += hit(ranks[lane], counts[lane]);
        }
    }
    let left: f32 = ranks_left.iter().zip(counts_left).map(|(rank, count)| hit(*rank, *count)).sum();
    sums.iter().sum::<f32>() + left
}

/// Bucket of a score, rising with it. Scores are finite and not negative (INV-P4).
#[inline]
fn bucket(score: f32) -> usize {
    (score.max(0.0).to_bits() >> DROPPED_BITS) as usize & (BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_rises_with_the_score() {
        let scores = [0.0, 1e-30, 0.1, 0.2, 1.0, 1.1, 900.0, f32::MAX];
        assert!(scores.windows(2).all(|pair| bucket(pair[0]) < bucket(pair[1])));
        assert!(bucket(-1.0) == 0 && bucket(f32::MAX) < BUCKETS);
    }

    #[test]
    fn means_tell_a_good_order_from_a_bad_one() {
        let mut judge = Judge::new(3, 64);
        let hot: Vec<f32> = (0..64).map(|index| if index < 8 { 10.0 } else { 0.0 }).collect();
        let cold: Vec<f32> = hot.iter().map(|score| 10.0 - score).collect();
        let flat = vec![1.0; 64];
        for _ in 0..60 {
            judge.close_window(&hot);
            if judge.wants_order() {
                let slot = judge.open();
                for (candidate, scores) in [&hot, &cold, &flat].into_iter().enumerate() {
                    judge.keep(slot, candidate, scores);
                }
            }
        }
        let [good, bad, even] = [0, 1, 2].map(|candidate| judge.means()[candidate]);
        assert!(good > 0.85 && bad < 0.2 && (0.35..0.65).contains(&even), "{good} {bad} {even}");
        assert!(judge.judged() > 20);
    }

    #[test]
    fn idle_windows_judge_nobody() {
        let mut judge = Judge::new(2, 4);
        for _ in 0..40 {
            judge.close_window(&[0.0; 4]);
            let slot = judge.open();
            judge.keep(slot, 0, &[1.0, 0.0, 0.0, 0.0]);
        }
        assert_eq!((judge.judged(), judge.means()), (0, &[0.0, 0.0][..]));
        judge.reset(0);
        judge.close_window(&[]);
    }
}
