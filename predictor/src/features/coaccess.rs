//! Which segments follow which: a first-order Markov chain over windows, kept sparse.
//!
//! A window's access shares are the source distribution, those of the window `lag` later (1: the next one) the target
//! distribution; the strongest
//! [`SOURCES`] segments of the one vote for the strongest [`TARGETS`] of the other. Each source remembers
//! [`SUCCESSORS`] targets; a new target takes the weakest one's place once that one has decayed below it. So memory is
//! O(segments) and a window costs O(segments) for the selection plus a constant for the update, where the dense chain
//! would be quadratic in both.

/// Strongest segments of a window that act as sources.
pub const SOURCES: usize = 24;
/// Strongest segments of a window that act as targets.
pub const TARGETS: usize = 24;
/// Targets remembered for each source.
pub const SUCCESSORS: usize = 16;

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

    /// Adds `weight` to `target`'s slot, or takes (or wears down) the weakest slot where it has none.
    #[inline]
    fn learn(&mut self, target: u32, weight: f32) {
        let mut place = SUCCESSORS;
        for at in 0..SUCCESSORS {
            // a select instead of an early end: all slots are compared at once
            place = if self.targets[at] == target && self.weights[at] > 0.0 { at } else { place };
        }
        if place < SUCCESSORS {
            self.weights[place] += weight;
            return;
        }
        let least = self.weights.iter().copied().fold(f32::INFINITY, f32::min);
        let weakest = self.weights.iter().position(|weight| *weight == least).unwrap_or_default();
        if least <= weight {
            self.targets[weakest] = target;
            self.weights[weakest] = weight;
        } else {
            self.weights[weakest] -= 0.5 * weight;
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

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    index: usize,
    share: f32,
}

/// The `N` strongest of a stream of (index, share), unsorted but for the weakest, which is known.
#[derive(Clone, Debug)]
struct Strongest<const N: usize> {
    entries: [Entry; N],
    len: usize,
    weakest: usize,
}

impl<const N: usize> Strongest<N> {
    fn new() -> Self {
        Strongest { entries: [Entry::default(); N], len: 0, weakest: 0 }
    }

    fn clear(&mut self) {
        self.len = 0;
        self.weakest = 0;
    }

    #[inline]
    fn offer(&mut self, index: usize, share: f32) {
        if share <= 0.0 || (self.len == N && share <= self.entries[self.weakest].share) {
            return;
        }
        let place = if self.len < N { self.len } else { self.weakest };
        self.entries[place] = Entry { index, share };
        self.len = (self.len + 1).min(N);
        if self.len == N {
            self.weakest =
                (0..N).fold(0, |least, at| if self.entries[at].share < self.entries[least].share { at } else { least });
        }
    }

    fn as_slice(&self) -> &[Entry] {
        &self.entries[..self.len]
    }
}

/// The sparse chain of one partition.
#[derive(Clone, Debug)]
pub struct CoAccess {
    successors: Vec<Successors>,
    smoothed: Vec<f32>,
    expected: Vec<f32>,
    /// Sources of the last windows, the one closed `lag` windows ago at `oldest`, one slot for each window of the lag.
    sources: Vec<Strongest<SOURCES>>,
    oldest: usize,
    next_sources: Strongest<SOURCES>,
    targets: Strongest<TARGETS>,
}

impl CoAccess {
    /// An empty chain over `segments` segments, from each window to the next.
    #[must_use]
    pub fn new(segments: usize) -> CoAccess {
        CoAccess::with_lag(segments, 1)
    }

    /// An empty chain from each window to the one `lag` (at least 1) later.
    #[must_use]
    pub fn with_lag(segments: usize, lag: usize) -> CoAccess {
        CoAccess {
            successors: vec![Successors::default(); segments],
            smoothed: vec![0.0; segments],
            expected: vec![0.0; segments],
            sources: vec![Strongest::new(); lag.max(1)],
            oldest: 0,
            next_sources: Strongest::new(),
            targets: Strongest::new(),
        }
    }

    /// Takes in segment `index` of the window just closed, with its share of the window's accesses (0..=1). Every
    /// segment is offered once a window, then [`CoAccess::finish`] is called.
    #[inline]
    pub fn offer(&mut self, index: usize, share: f32) {
        let smoothed = &mut self.smoothed[index];
        *smoothed += SOURCE_ALPHA * (share - *smoothed);
        let source = *smoothed;
        self.targets.offer(index, share);
        self.next_sources.offer(index, source);
    }

    /// Ends a window: learns the step from the window `lag` before to this one, then forms the expectation for the one
    /// `lag` later.
    ///
    /// Cost: constant (`SOURCES * TARGETS * SUCCESSORS`), plus clearing O(segments) floats. No allocation.
    pub fn finish(&mut self) {
        for source in self.sources[self.oldest].as_slice() {
            let slots = &mut self.successors[source.index];
            slots.wear();
            for target in self.targets.as_slice() {
                slots.learn(target.index as u32, source.share * target.share);
            }
        }
        let newest = self.oldest;
        self.oldest = (self.oldest + 1) % self.sources.len();
        std::mem::swap(&mut self.sources[newest], &mut self.next_sources);
        self.next_sources.clear();
        self.targets.clear();
        self.expect(newest);
    }

    fn expect(&mut self, newest: usize) {
        self.expected.fill(0.0);
        let sources = self.sources[newest].as_slice();
        let covered: f32 = sources.iter().map(|source| source.share).sum();
        if covered <= 0.0 {
            return;
        }
        for source in sources {
            let slots = &self.successors[source.index];
            let total: f32 = slots.weights.iter().sum();
            if total <= 0.0 {
                continue;
            }
            let scale = source.share / (covered * total);
            for (target, weight) in slots.iter() {
                self.expected[target as usize] += scale * weight;
            }
        }
    }

    /// Expected share of the accesses of the window `lag` ahead, by segment index; sums to at most 1.
    #[must_use]
    pub fn expected(&self) -> &[f32] {
        &self.expected
    }

    /// Divides segment `index` in two. Cost: O(segments * SUCCESSORS).
    pub fn split(&mut self, index: usize, left_share: f32) {
        let slots = self.successors[index];
        self.successors.insert(index + 1, slots);
        for column in [&mut self.smoothed, &mut self.expected] {
            let whole = column[index];
            column[index] = whole * left_share;
            column.insert(index + 1, whole - whole * left_share);
        }
        for target in self.successors.iter_mut().flat_map(|slots| &mut slots.targets) {
            // a remembered target goes to the half that is read more: the other half is learned anew
            let moves = *target as usize > index || (*target as usize == index && left_share < 0.5);
            *target += u32::from(moves);
        }
        self.forget_window();
    }

    /// Unites segment `index` with its right neighbour. Cost: O(segments * SUCCESSORS).
    pub fn merge(&mut self, index: usize) {
        let right = self.successors.remove(index + 1);
        for column in [&mut self.smoothed, &mut self.expected] {
            let taken = column.remove(index + 1);
            column[index] += taken;
        }
        for (target, weight) in right.iter() {
            self.successors[index].learn(target, weight);
        }
        for slots in &mut self.successors {
            for target in &mut slots.targets {
                *target -= u32::from(*target as usize > index);
            }
            slots.unite(index as u32);
        }
        self.forget_window();
    }

    /// After a change of structure the indices held for the current window are void.
    fn forget_window(&mut self) {
        self.sources.iter_mut().for_each(Strongest::clear);
        self.next_sources.clear();
        self.targets.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(chain: &mut CoAccess, active: &[usize]) {
        for index in 0..chain.expected.len() {
            let share = if active.contains(&index) { 1.0 / active.len() as f32 } else { 0.0 };
            chain.offer(index, share);
        }
        chain.finish();
    }

    #[test]
    fn chain_learns_a_cycle() {
        let mut chain = CoAccess::new(64);
        for round in 0..30 {
            window(&mut chain, &[[3, 40], [17, 50], [60, 9]][round % 3]);
        }
        // round 29 was [60, 9]: [3, 40] comes next
        let expected = chain.expected();
        // sources are smoothed over windows, so the rest of the cycle is expected as well, only less
        let others = [17, 50, 60, 9].map(|index| expected[index]);
        assert!(others.iter().all(|other| expected[3].min(expected[40]) > 1.3 * other), "{expected:?}");
        assert!(expected[20] == 0.0);
        assert!(expected.iter().sum::<f32>() < 1.001);
    }

    #[test]
    fn chain_of_a_lag_looks_so_far_ahead() {
        let mut chain = CoAccess::with_lag(64, 3);
        for round in 0..60 {
            window(&mut chain, &[[3, 17, 60, 30, 44][round % 5]]);
        }
        // round 59 was 44; three later comes 60
        let expected = chain.expected();
        assert!((0..64).all(|index| index == 60 || expected[60] > expected[index]), "{expected:?}");
    }

    #[test]
    fn chain_forgets_an_old_successor() {
        let mut chain = CoAccess::new(8);
        for _ in 0..20 {
            window(&mut chain, &[0]);
            window(&mut chain, &[1]);
        }
        for _ in 0..200 {
            window(&mut chain, &[0]);
            window(&mut chain, &[5]);
        }
        window(&mut chain, &[0]);
        assert!(chain.expected()[5] > 5.0 * chain.expected()[1]);
    }

    #[test]
    fn strongest_keeps_the_largest() {
        let mut strongest = Strongest::<4>::new();
        for index in 0..100 {
            strongest.offer(index, ((index * 37) % 100) as f32);
        }
        let mut shares: Vec<f32> = strongest.as_slice().iter().map(|entry| entry.share).collect();
        shares.sort_by(f32::total_cmp);
        assert_eq!(shares, [96.0, 97.0, 98.0, 99.0]);
    }

    #[test]
    fn split_and_merge_keep_targets_in_range_and_shares_whole() {
        let mut chain = CoAccess::new(6);
        for round in 0..40 {
            window(&mut chain, &[round % 6, (round * 5 + 1) % 6]);
        }
        let sum = |chain: &CoAccess| chain.smoothed.iter().sum::<f32>();
        let before = sum(&chain);
        chain.split(2, 0.3);
        chain.split(6, 1.0);
        chain.merge(0);
        chain.merge(5);
        assert_eq!(chain.expected().len(), 6);
        assert!((sum(&chain) - before).abs() < 1e-5);
        assert!(chain.successors.iter().flat_map(Successors::iter).all(|(target, _)| target < 6));
        for round in 0..10 {
            window(&mut chain, &[round % 6]);
        }
        assert!(chain.expected().iter().all(|share| share.is_finite() && *share >= 0.0));
    }
}
