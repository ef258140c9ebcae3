//! A queue whose dead entries go a piece at a time.

use std::collections::VecDeque;

/// Entries of a piece: what one insertion in so many has to look through twice.
const PIECE: usize = 256;

/// First in, first out. Entries may die in the middle; [`Fifo::push_back`] forgets as many as may have died since: it
/// looks through two pieces for each that it fills, one after another and from the front again.
#[derive(Debug)]
pub(super) struct Fifo<T> {
    pieces: VecDeque<VecDeque<T>>,
    len: usize,
    /// The piece that is looked through next.
    next: usize,
}

impl<T> Default for Fifo<T> {
    fn default() -> Fifo<T> {
        Fifo { pieces: VecDeque::new(), len: 0, next: 0 }
    }
}

impl<T> Fifo<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let piece = self.pieces.front_mut()?;
        let popped = piece.pop_front();
        self.len -= usize::from(popped.is_some());
        if piece.is_empty() {
            self.pieces.pop_front();
            self.next = self.next.saturating_sub(1);
        }
        popped
    }

    pub(super) fn push_back(&mut self, entry: T, is_alive: impl Fn(&T) -> bool) {
        if self.pieces.back().is_none_or(|piece| piece.len() == PIECE) {
            self.forget_dead(&is_alive);
            self.forget_dead(&is_alive);
            self.pieces.push_back(VecDeque::with_capacity(PIECE));
        }
        if let Some(piece) = self.pieces.back_mut() {
            piece.push_back(entry);
            self.len += 1;
        }
    }

    /// Looks through one piece. What is left of it is joined to its neighbour where both fit into one.
    fn forget_dead(&mut self, is_alive: &impl Fn(&T) -> bool) {
        if self.next >= self.pieces.len() {
            self.next = 0;
        }
        let at = self.next;
        let Some(piece) = self.pieces.get_mut(at) else {
            return;
        };
        let before = piece.len();
        piece.retain(is_alive);
        self.len -= before - piece.len();
        let left = piece.len();
        if left == 0 {
            self.pieces.remove(at);
        } else if at > 0 && self.pieces[at - 1].len() + left <= PIECE {
            let tail = self.pieces.remove(at);
            self.pieces[at - 1].extend(tail.into_iter().flatten());
        } else {
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queue_with_dead_entries_stays_within_a_few_times_those_alive() {
        let mut fifo = Fifo::default();
        for entry in 0..100_000_u64 {
            fifo.push_back(entry, |other| other + 1_000 >= entry);
        }
        assert!(fifo.len() < 4 * 1_000, "{}", fifo.len());
        assert!(fifo.pieces.iter().all(|piece| piece.capacity() < 2 * PIECE));
    }

    proptest! {
        #[test]
        fn those_alive_leave_in_the_order_in_which_they_came(
            steps in prop::collection::vec((0_u8..4, any::<prop::sample::Index>()), 0..4_000)
        ) {
            let (mut fifo, mut model, mut dead) = (Fifo::default(), VecDeque::new(), HashSet::new());
            for (entry, (kind, index)) in steps.into_iter().enumerate() {
                match kind {
                    0 => {
                        let alive = std::iter::from_fn(|| fifo.pop_front()).find(|entry| !dead.contains(entry));
                        prop_assert_eq!(alive, model.pop_front());
                    }
                    1 if !model.is_empty() => {
                        dead.extend(model.remove(index.index(model.len())));
                    }
                    _ => {
                        fifo.push_back(entry, |entry| !dead.contains(entry));
                        model.push_back(entry);
                    }
                }
                prop_assert!(fifo.len() >= model.len());
                prop_assert_eq!(fifo.len(), fifo.pieces.iter().map(VecDeque::len).sum::<usize>());
                prop_assert!(fifo.pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
            }
            let rest: Vec<usize> = std::iter::from_fn(|| fifo.pop_front()).filter(|entry| !dead.contains(entry)).collect();
            prop_assert_eq!(rest, Vec::from(model));
        }
    }
}
