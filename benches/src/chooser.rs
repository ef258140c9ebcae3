//! Which key comes next. Drawn before the clock starts, so that drawing is no part of what is measured.

use crate::data::{Placing, part_of};
use crate::spec::Distribution;
use crate::zipf::Zipf;

/// YCSB's exponent.
const EXPONENT: f64 = 0.99;
/// Draws kept, of all clients of a phase together; they are repeated when they run out.
const DRAWS: usize = 1 << 22;
/// Draws kept of one client at least.
const DRAWS_MIN: usize = 1 << 16;

/// Which keys a client may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The part of the key space, of how many; `None` for all of it.
    pub part: Option<(usize, usize)>,
    /// Where the keys lie in it.
    pub placing: Placing,
    /// This client's number among those of the same scope.
    pub stripe: usize,
    /// Their number.
    pub stripes: usize,
}

impl Scope {
    /// Whether the key of this number lies in the scope.
    #[must_use]
    pub fn holds(&self, number: u64) -> bool {
        self.part.is_none_or(|(part, parts)| part_of(self.placing.place(number), parts) == part)
    }
}

/// Walks the numbers of a scope that are this client's to write first: every `stripes`-th.
#[derive(Clone, Debug)]
pub struct Stripe {
    scope: Scope,
    next: u64,
    turn: usize,
}

impl Stripe {
    /// Begins at a number.
    #[must_use]
    pub fn new(scope: Scope, first: u64) -> Stripe {
        Stripe { scope, next: first, turn: 0 }
    }
}

impl Iterator for Stripe {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        loop {
            let number = self.next;
            self.next += 1;
            if self.scope.holds(number) {
                let turn = self.turn;
                self.turn = (turn + 1) % self.scope.stripes;
                if turn == self.scope.stripe {
                    return Some(number);
                }
            }
        }
    }
}

/// Chooses the numbers of keys to read and to insert.
#[derive(Clone, Debug)]
pub struct Chooser {
    /// Numbers of keys, or ranks by recency.
    draws: Vec<u32>,
    at: usize,
    /// Only for [`Distribution::Latest`].
    recent: Option<Recent>,
    inserts: Stripe,
}

/// What a client knows to be there, oldest first.
#[derive(Clone, Debug)]
struct Recent {
    loaded: Vec<u32>,
    inserted: Vec<u64>,
}

impl Chooser {
    /// A chooser over `keys` loaded keys for one of `clients` clients; its inserts begin at `insert_from`.
    #[must_use]
    pub fn new(
        distribution: Distribution,
        keys: u64,
        scope: Scope,
        clients: usize,
        insert_from: u64,
        seed: u64,
    ) -> Chooser {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = (DRAWS / clients.max(1)).max(DRAWS_MIN);
        let inserts = Stripe::new(scope, insert_from);
        if distribution == Distribution::Latest {
            let loaded: Vec<u32> =
                (0..keys).filter(|number| scope.holds(*number)).map(|number| number as u32).collect();
            let zipf = Zipf::new(loaded.len() as u64, EXPONENT);
            let draws = (0..count).map(|_| zipf.sample(&mut random) as u32).collect();
            let recent = Some(Recent { loaded, inserted: Vec::new() });
            return Chooser { draws, at: 0, recent, inserts };
        }
        let zipf = Zipf::new(keys, EXPONENT);
        let mut draw = || match distribution {
            Distribution::Uniform => random.u64(0..keys),
            Distribution::Zipf | Distribution::Latest => zipf.sample(&mut random),
        };
        let mut draws = Vec::with_capacity(count);
        // A scope of one part sees what the whole distribution has there: others' draws are skipped.
        while draws.len() < count {
            let number = draw();
            if scope.holds(number) {
                draws.push(number as u32);
            }
        }
        Chooser { draws, at: 0, recent: None, inserts }
    }

    /// The number of a key that is there.
    pub fn existing(&mut self) -> u64 {
        let draw = self.draws[self.at];
        self.at = if self.at + 1 == self.draws.len() { 0 } else { self.at + 1 };
        let Some(recent) = &self.recent else {
            return u64::from(draw);
        };
        let back = draw as usize;
        match back.checked_sub(recent.inserted.len()) {
            None => recent.inserted[recent.inserted.len() - 1 - back],
            Some(older) => u64::from(recent.loaded[recent.loaded.len() - 1 - older]),
        }
    }

    /// The number of a key to insert.
    pub fn fresh(&mut self) -> u64 {
        self.inserts.next().unwrap_or(u64::MAX)
    }

    /// An insert has been acknowledged.
    pub fn inserted(&mut self, number: u64) {
        if let Some(recent) = &mut self.recent {
            recent.inserted.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ALL: Scope = Scope { part: None, placing: Placing::Mixed, stripe: 0, stripes: 1 };

    #[test]
    fn stripes_of_all_scopes_cover_every_number_once() {
        for (part, placing) in [(None, Placing::Mixed), (Some(2), Placing::Mixed), (Some(2), Placing::Ordered(1_000))] {
            let mut seen = Vec::new();
            for share in 0..part.unwrap_or(1) {
                for stripe in 0..3 {
                    let scope = Scope { part: part.map(|parts| (share, parts)), placing, stripe, stripes: 3 };
                    seen.extend(Stripe::new(scope, 0).take_while(|number| *number < 1_000));
                }
            }
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..1_000), "{part:?}");
        }
    }

    #[test]
    fn existing_latest_prefers_own_inserts_and_stays_within_what_is_there() {
        let mut chooser = Chooser::new(Distribution::Latest, 1_000, ALL, 1, 1_000, 1);
        let mut there: BTreeSet<u64> = (0..1_000).collect();
        let mut own = 0;
        for _ in 0..2_000 {
            let number = chooser.fresh();
            assert!(there.insert(number));
            chooser.inserted(number);
            let read = chooser.existing();
            assert!(there.contains(&read));
            own += u64::from(read >= 1_000);
        }
        assert!(own > 1_000, "{own} of 2000");
    }

    #[test]
    fn existing_in_a_part_stays_in_it() {
        let scope = Scope { part: Some((1, 2)), ..ALL };
        for distribution in [Distribution::Zipf, Distribution::Uniform, Distribution::Latest] {
            let mut chooser = Chooser::new(distribution, 500, scope, 1, 500, 1);
            assert!((0..1_000).all(|_| scope.holds(chooser.existing())));
            assert!(scope.holds(chooser.fresh()));
        }
    }
}
