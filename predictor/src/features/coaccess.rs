//! Which segments follow which: first-order Markov chains over windows, kept sparse.
//!
//! A window's access shares are the source distribution, those of the window `lag` later (1: the next one) the target
//! distribution; the strongest [`SOURCES`] segments of the one vote for the strongest [`TARGETS`] of the other. Each
//! source remembers [`SUCCESSORS`] targets; a new target takes the weakest one's place once that one has decayed below
//! it. So memory is O(segments) and a window costs O(segments) for the selection plus a constant for each chain, where a
//! dense chain would be quadratic in both.

use super::lanes::{Column, LANES, Lanes};
use crate::simd::{self, for_each_level, multiply_add};

/// Strongest segments of a window that act as sources.
pub const SOURCES: usize = 24;
/// Strongest segments of a window that act as targets.
pub const TARGETS: usize = 24;
/// Targets remembered for each source.
pub const SUCCESSORS: usize = 16;

/// Rank of a segment that is no target.
const NO_RANK: u8 = TARGETS as u8;
/// Weight kept per window in which a source was active: a chain forgets after some 50 activations.
const KEEP: f32 = 0.98;
/// Share of one window in the smoothed source distribution; the horizon is several windows long, so is its cause.
const SOURCE_ALPHA: f32 = 0.5;

/// Targets of one source, and what they weigh; 0 = a free slot. Two columns, so that a target is found by comparing all
/// slots at once.
#[derive(Clone, Copy, Debug, Default)]
struct Successors {
    targets: [u32; SUCCESSORS],
    weights: [f32; SUCCESSORS],
}

impl Successors {
    fn wear(&mut self) {
        self.weights.iter_mut().for_each(|weight| *weight *= KEEP);
    }

    /// Slots in use.
    fn iter(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.targets.iter().copied().zip(self.weights).filter(|slot| slot.1 > 0.0)
    }

    /// Slot of the smallest weight, the first of equal ones. Weights are not negative, so that their bits are in their
    /// order; slot numbers below them decide between equal ones.
    #[inline(always)]
    fn weakest(&self) -> usize {
        let key = |at: usize| (u64::from(self.weights[at].to_bits()) << 32) | at as u64;
        (0..SUCCESSORS).fold(u64::MAX, |least, at| least.min(key(at))) as u32 as usize
    }

    /// Adds each target's weight to its slot, or takes (or wears down) the weakest slot where it has none. `ranks` gives
    /// the place of a segment among the targets, [`NO_RANK`] for all others: each slot is looked up once, instead of each
    /// target in every slot.
    #[inline(always)]
    fn learn<'a>(&mut self, targets: impl Iterator<Item = (usize, f32)> + 'a, from: f32, ranks: &[u8]) {
        let mut slot_of = [SUCCESSORS as u8; NO_RANK as usize + 1];
        for at in 0..SUCCESSORS {
            if self.weights[at] > 0.0 {
                slot_of[ranks[self.targets[at] as usize] as usize] = at as u8;
            }
        }
        // it stays the weakest while it is worn down only
        let mut weakest = self.weakest();
        for (rank, (target, to)) in targets.enumerate() {
            let (weight, slot) = (from * to, slot_of[rank] as usize);
            if slot < SUCCESSORS {
                self.weights[slot] += weight;
                weakest = if slot == weakest { self.weakest() } else { weakest };
            } else if self.weights[weakest] <= weight {
                slot_of[ranks[self.targets[weakest] as usize] as usize] = SUCCESSORS as u8;
                slot_of[rank] = weakest as u8;
                (self.targets[weakest], self.weights[weakest]) = (target as u32, weight);
                weakest = self.weakest();
            } else {
                self.weights[weakest] -= 0.5 * weight;
            }
        }
    }

    /// Adds `weight` to `target`'s slot, or takes (or wears down) the weakest one.
    fn add(&mut self, target: u32, weight: f32) {
        let known = (0..SUCCESSORS).find(|at| self.targets[*at] == target && self.weights[*at] > 0.0);
        let slot = known.unwrap_or_else(|| self.weakest());
        if known.is_some() {
            self.weights[slot] += weight;
        } else if self.weights[slot] <= weight {
            (self.targets[slot], self.weights[slot]) = (target, weight);
        } else {
            self.weights[slot] -= 0.5 * weight;
        }
    }

    /// Adds up the slots that name `target` more than once.
    fn unite(&mut self, target: u32) {
        let mut first = None;
        for at in 0..SUCCESSORS {
            if self.weights[at] <= 0.0 || self.targets[at] != target {
                continue;
            }
            match first {
                None => first = Some(at),
                Some(kept) => {
                    self.weights[kept] += self.weights[at];
                    self.weights[at] = 0.0;
                }
            }
        }
    }
}

/// The `N` strongest of a stream of (index, share), unsorted but for the weakest, which is known.
#[derive(Clone, Debug)]
struct Strongest<const N: usize> {
    indices: [u32; N],
    shares: [f32; N],
    len: usize,
    weakest: usize,
}

impl<const N: usize> Strongest<N> {
    fn new() -> Self {
        Strongest { indices: [0; N], shares: [0.0; N], len: 0, weakest: 0 }
    }

    fn clear(&mut self) {
        self.len = 0;
        self.weakest = 0;
    }

    /// What a share must exceed to be kept.
    #[inline(always)]
    fn threshold(&self) -> f32 {
        if self.len == N { self.shares[self.weakest] } else { 0.0 }
    }

    #[inline(always)]
    fn offer(&mut self, index: usize, share: f32) {
        if share <= self.threshold() {
            return;
        }
        let place = if self.len < N { self.len } else { self.weakest };
        (self.indices[place], self.shares[place]) = (index as u32, share);
        self.len = (self.len + 1).min(N);
        if self.len == N {
            // shares are positive, so that their bits are in their order
            let key = |at: usize| (u64::from(self.shares[at].to_bits()) << 32) | at as u64;
            self.weakest = (0..N).fold(u64::MAX, |least, at| least.min(key(at))) as u32 as usize;
        }
    }

    /// Offers neighbouring segments from `first` on.
    #[inline(always)]
    fn offer_all(&mut self, first: usize, shares: &Lanes) {
        let threshold = self.threshold();
        let mut above = 0u32;
        for (lane, share) in shares.iter().enumerate() {
            above |= u32::from(*share > threshold) << lane;
        }
        while above != 0 {
            let lane = above.trailing_zeros() as usize;
            self.offer(first + lane, shares[lane]);
            above &= above - 1;
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.indices[..self.len].iter().zip(&self.shares).map(|(index, share)| (*index as usize, *share))
    }
}

/// One chain.
#[derive(Clone, Debug)]
struct Chain {
    lag: usize,
    successors: Vec<Successors>,
    expected: Column,
}

/// The sparse chains of one partition, each from every window to the one its lag later.
#[derive(Clone, Debug)]
pub struct CoAccess {
    chains: Vec<Chain>,
    smoothed: Column,
    /// Sources of the last windows, as many as the longest lag; those of the window that closes next go to `oldest`.
    sources: Vec<Strongest<SOURCES>>,
    oldest: usize,
    next_sources: Strongest<SOURCES>,
    targets: Strongest<TARGETS>,
    /// Place of each segment among the targets while a chain learns; [`NO_RANK`] otherwise.
    ranks: Vec<u8>,
}

impl CoAccess {
    /// Empty chains over `segments` segments, one for each lag (at least 1).
    ///
    /// # Panics
    /// When there is no lag.
    #[must_use]
    pub fn new(segments: usize, lags: &[usize]) -> CoAccess {
        let chain = |lag: &usize| Chain {
            lag: (*lag).max(1),
            successors: vec![Successors::default(); segments],
            expected: Column::new(segments, 0.0),
        };
        let chains: Vec<Chain> = lags.iter().map(chain).collect();
        let longest = chains.iter().map(|chain| chain.lag).max().expect("at least one lag");
        CoAccess {
            chains,
            smoothed: Column::new(segments, 0.0),
            sources: vec![Strongest::new(); longest],
            oldest: 0,
            next_sources: Strongest::new(),
            targets: Strongest::new(),
            ranks: vec![NO_RANK; segments],
        }
    }

    /// Takes in a tile of the window just closed, the segments' shares of the window's accesses (0..=1; 0 past the last
    /// segment). Every tile is offered once a window, then [`CoAccess::finish`] is called.
    #[inline(always)]
    pub(crate) fn offer<const FUSED: bool>(&mut self, tile: usize, shares: &Lanes) {
        let mut smoothed = self.smoothed.tiles[tile];
        for lane in 0..LANES {
            smoothed[lane] = multiply_add::<FUSED>(SOURCE_ALPHA, shares[lane] - smoothed[lane], smoothed[lane]);
        }
        self.smoothed.tiles[tile] = smoothed;
        self.targets.offer_all(tile * LANES, shares);
        self.next_sources.offer_all(tile * LANES, &smoothed);
    }

    /// Chains.
    #[must_use]
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Ends a window: every chain learns it.
    pub fn finish(&mut self) {
        (0..self.chains.len()).for_each(|chain| self.finish_chain(chain));
    }

    /// A part of [`CoAccess::finish`], chain by chain in their order: learns the step from the window `lag` before to
    /// this one, then forms the expectation for the one `lag` later.
    ///
    /// Cost: constant (`SOURCES * TARGETS * SUCCESSORS`), plus clearing O(segments) floats. No allocation.
    pub fn finish_chain(&mut self, chain: usize) {
        finish_at(simd::level(), self, chain);
        if chain + 1 == self.chains.len() {
            std::mem::swap(&mut self.sources[self.oldest], &mut self.next_sources);
            self.oldest = (self.oldest + 1) % self.sources.len();
            self.next_sources.clear();
            self.targets.clear();
        }
    }

    /// Expected share of the accesses of the window a chain's lag ahead, by segment index; sums to at most 1.
    pub fn expected(&self, chain: usize) -> impl Iterator<Item = f32> + '_ {
        self.chains[chain].expected.iter()
    }

    pub(super) fn column(&self, chain: usize) -> &Column {
        &self.chains[chain].expected
    }

    /// Divides segment `index` in two. Cost: O(segments * SUCCESSORS).
    pub fn split(&mut self, index: usize, left_share: f32) {
        for chain in &mut self.chains {
            chain.split(index, left_share);
        }
        self.smoothed.split(index, left_share);
        self.ranks.push(NO_RANK);
        self.forget_window();
    }

    /// Unites segment `index` with its right neighbour. Cost: O(segments * SUCCESSORS).
    pub fn merge(&mut self, index: usize) {
        for chain in &mut self.chains {
            chain.merge(index);
        }
        self.smoothed.merge(index);
        self.ranks.pop();
        self.forget_window();
    }

    /// After a change of structure the indices held for the current window are void.
    fn forget_window(&mut self) {
        self.sources.iter_mut().for_each(Strongest::clear);
        self.next_sources.clear();
        self.targets.clear();
    }
}

for_each_level! {
    fn finish_at(level, all: &mut CoAccess, chain: usize) = finish_on
}

#[inline(always)]
fn finish_on<const FUSED: bool>(all: &mut CoAccess, chain: usize) {
    let chain = &mut all.chains[chain];
    // those of `lag` windows ago: the slot of the oldest is that of as many windows ago as there are slots
    let before = &all.sources[(all.oldest + all.sources.len() - chain.lag) % all.sources.len()];
    for (rank, (target, _)) in all.targets.iter().enumerate() {
        all.ranks[target] = rank as u8;
    }
    for (source, from) in before.iter() {
        let slots = &mut chain.successors[source];
        slots.wear();
        slots.learn(all.targets.iter(), from, &all.ranks);
    }
    for (target, _) in all.targets.iter() {
        all.ranks[target] = NO_RANK;
    }
    chain.expect::<FUSED>(&all.next_sources);
}

impl Chain {
    #[inline(always)]
    fn expect<const FUSED: bool>(&mut self, sources: &Strongest<SOURCES>) {
        self.expected.tiles.fill(Lanes::ZERO);
        let covered: f32 = sources.iter().map(|source| source.1).sum();
        if covered <= 0.0 {
            return;
        }
        for (source, share) in sources.iter() {
            let slots = &self.successors[source];
            let total: f32 = slots.weights.iter().sum();
            if total <= 0.0 {
                continue;
            }
            let scale = share / (covered * total);
            for (target, weight) in slots.iter() {
                let expected = &mut self.expected.tiles[target as usize / LANES][target as usize % LANES];
                *expected = multiply_add::<FUSED>(scale, weight, *expected);
            }
        }
    }

    fn split(&mut self, index: usize, left_share: f32) {
        let slots = self.successors[index];
        self.successors.insert(index + 1, slots);
        self.expected.split(index, left_share);
        for target in self.successors.iter_mut().flat_map(|slots| &mut slots.targets) {
            // a remembered target goes to the half that is read more: the other half is learned anew
            let moves = *target as usize > index || (*target as usize == index && left_share < 0.5);
            *target += u32::from(moves);
        }
    }

    fn merge(&mut self, index: usize) {
        let right = self.successors.remove(index + 1);
        self.expected.merge(index);
        for (target, weight) in right.iter() {
            self.successors[index].add(target, weight);
        }
        for slots in &mut self.successors {
            for target in &mut slots.targets {
                *target -= u32::from(*target as usize > index);
            }
            slots.unite(index as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(chain: &mut CoAccess, active: &[usize]) {
        let segments = chain.smoothed.len();
        let share = |index| if active.contains(&index) { 1.0 / active.len() as f32 } else { 0.0 };
        for tile in 0..segments.div_ceil(LANES) {
            chain.offer::<false>(tile, &Lanes(std::array::from_fn(|lane| share(tile * LANES + lane))));
        }
        chain.finish();
    }

    #[test]
    fn chain_learns_a_cycle() {
        let mut chain = CoAccess::new(64, &[1]);
        for round in 0..30 {
            window(&mut chain, &[[3, 40], [17, 50], [60, 9]][round % 3]);
        }
        // round 29 was [60, 9]: [3, 40] comes next
        let expected: Vec<f32> = chain.expected(0).collect();
        // sources are smoothed over windows, so the rest of the cycle is expected as well, only less
        let others = [17, 50, 60, 9].map(|index| expected[index]);
        assert!(others.iter().all(|other| expected[3].min(expected[40]) > 1.3 * other), "{expected:?}");
        assert!(expected[20] == 0.0);
        assert!(expected.iter().sum::<f32>() < 1.001);
    }

    #[test]
    fn chain_of_a_lag_looks_so_far_ahead() {
        let mut chain = CoAccess::new(64, &[3]);
        for round in 0..60 {
            window(&mut chain, &[[3, 17, 60, 30, 44][round % 5]]);
        }
        // round 59 was 44; three later comes 60
        let expected: Vec<f32> = chain.expected(0).collect();
        assert!((0..64).all(|index| index == 60 || expected[60] > expected[index]), "{expected:?}");
    }

    #[test]
    fn chain_forgets_an_old_successor() {
        let mut chain = CoAccess::new(8, &[1]);
        for _ in 0..20 {
            window(&mut chain, &[0]);
            window(&mut chain, &[1]);
        }
        for _ in 0..200 {
            window(&mut chain, &[0]);
            window(&mut chain, &[5]);
        }
        window(&mut chain, &[0]);
        let expected: Vec<f32> = chain.expected(0).collect();
        assert!(expected[5] > 5.0 * expected[1]);
    }

    #[test]
    fn strongest_keeps_the_largest() {
        let mut strongest = Strongest::<4>::new();
        for index in 0..100 {
            strongest.offer(index, ((index * 37) % 100) as f32);
        }
        let mut shares: Vec<f32> = strongest.iter().map(|entry| entry.1).collect();
        shares.sort_by(f32::total_cmp);
        assert_eq!(shares, [96.0, 97.0, 98.0, 99.0]);
    }

    #[test]
    fn split_and_merge_keep_targets_in_range_and_shares_whole() {
        let mut chain = CoAccess::new(6, &[1, 3]);
        for round in 0..40 {
            window(&mut chain, &[round % 6, (round * 5 + 1) % 6]);
        }
        let sum = |chain: &CoAccess| chain.smoothed.iter().sum::<f32>();
        let before = sum(&chain);
        chain.split(2, 0.3);
        chain.split(6, 1.0);
        chain.merge(0);
        chain.merge(5);
        assert_eq!(chain.expected(0).count(), 6);
        assert!((sum(&chain) - before).abs() < 1e-5);
        let successors =
            |chain: &CoAccess| chain.chains.iter().flat_map(|chain| chain.successors.clone()).collect::<Vec<_>>();
        assert!(successors(&chain).iter().flat_map(Successors::iter).all(|(target, _)| target < 6));
        for round in 0..10 {
            window(&mut chain, &[round % 6]);
        }
        assert!(chain.expected(0).all(|share| share.is_finite() && share >= 0.0));
    }
}
