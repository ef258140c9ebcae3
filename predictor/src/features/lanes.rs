//! Values of neighbouring segments side by side, aligned to cache lines: a vector load that crosses one costs twice.

use std::ops::{Deref, DerefMut};

/// Segments in a tile.
pub const LANES: usize = 16;

/// One value for each of `LANES` neighbouring segments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub struct Lanes(pub [f32; LANES]);

impl Lanes {
    /// All zero.
    pub const ZERO: Lanes = Lanes::of(0.0);

    /// The same value in all lanes.
    #[must_use]
    pub const fn of(value: f32) -> Lanes {
        Lanes([value; LANES])
    }
}

impl Deref for Lanes {
    type Target = [f32; LANES];

    #[inline(always)]
    fn deref(&self) -> &[f32; LANES] {
        &self.0
    }
}

impl DerefMut for Lanes {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.0
    }
}

impl<'a> IntoIterator for &'a Lanes {
    type Item = &'a f32;
    type IntoIter = std::slice::Iter<'a, f32>;

    #[inline(always)]
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a mut Lanes {
    type Item = &'a mut f32;
    type IntoIter = std::slice::IterMut<'a, f32>;

    #[inline(always)]
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter_mut()
    }
}

/// A value for each segment, by tiles. Lanes past the last segment are for whoever writes whole tiles; a lane that a
/// segment leaves or comes to is reset.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) tiles: Vec<Lanes>,
    len: usize,
    fill: f32,
}

impl Column {
    /// `len` segments with the value `fill`.
    pub(super) fn new(len: usize, fill: f32) -> Column {
        Column { tiles: vec![Lanes::of(fill); len.div_ceil(LANES)], len, fill }
    }

    /// Segments.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: usize) -> f32 {
        assert!(index < self.len, "segment {index} of {}", self.len);
        self.tiles[index / LANES][index % LANES]
    }

    pub(super) fn set(&mut self, index: usize, value: f32) {
        assert!(index < self.len, "segment {index} of {}", self.len);
        self.tiles[index / LANES][index % LANES] = value;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = f32> + '_ {
        self.tiles.iter().flatten().copied().take(self.len)
    }

    pub(super) fn insert(&mut self, index: usize, value: f32) {
        let all: Vec<f32> = self.iter().collect();
        self.len += 1;
        self.tiles.resize(self.len.div_ceil(LANES), Lanes::of(self.fill));
        for (at, after) in all[index..].iter().enumerate() {
            self.set(index + 1 + at, *after);
        }
        self.set(index, value);
    }

    pub(super) fn remove(&mut self, index: usize) -> f32 {
        let removed = self.get(index);
        let after: Vec<f32> = self.iter().skip(index + 1).collect();
        for (at, value) in after.into_iter().enumerate() {
            self.set(index + at, value);
        }
        self.set(self.len - 1, self.fill);
        self.len -= 1;
        self.tiles.truncate(self.len.div_ceil(LANES));
        removed
    }

    /// Divides the value of segment `index` in two.
    pub(super) fn split(&mut self, index: usize, left_share: f32) {
        let whole = self.get(index);
        self.set(index, whole * left_share);
        self.insert(index + 1, whole - whole * left_share);
    }

    /// Adds the value of the right neighbour to that of segment `index`.
    pub(super) fn merge(&mut self, index: usize) {
        let taken = self.remove(index + 1);
        self.set(index, self.get(index) + taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_behaves_like_a_vector() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut column, mut wanted) = (Column::new(15, 7.0), vec![7.0; 15]);
        for round in 0..500 {
            let index = rng.usize(0..=wanted.len());
            if wanted.len() < 40 && (wanted.is_empty() || rng.bool()) {
                wanted.insert(index, round as f32);
                column.insert(index, round as f32);
            } else if index < wanted.len() {
                assert_eq!(wanted.remove(index), column.remove(index));
            }
            assert!(column.iter().eq(wanted.iter().copied()));
            assert_eq!((column.len(), column.tiles.len()), (wanted.len(), wanted.len().div_ceil(LANES)));
            assert!(column.tiles.iter().flatten().skip(wanted.len()).all(|value| *value == 7.0));
        }
    }
}
