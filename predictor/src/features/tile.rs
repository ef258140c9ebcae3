//! The numbers of [`LANES`] neighbouring segments, formed on the fly.

use super::lanes::{Column, LANES, Lanes};
use super::{FAR, FAST, FEATURES, Features, MID, NEXT};
use crate::gru::math::ln;
use crate::simd::{for_each_level, multiply_add};

for_each_level! {
    pub(super) fn tile_at(level, features: &Features, first: usize, out: &mut [Lanes; FEATURES]) = tile_on
}

#[inline(always)]
fn tile_on<const FUSED: bool>(features: &Features, first: usize, out: &mut [Lanes; FEATURES]) {
    features.tile_on::<FUSED>(first, out);
}

impl Features {
    #[inline(always)]
    fn tile_on<const FUSED: bool>(&self, first: usize, out: &mut [Lanes; FEATURES]) {
        let segments = self.len() as f32;
        let expected_accesses = self.accesses_per_window();
        // relative units: 1 = an average segment of this partition at its present load
        let relative = segments / expected_accesses.max(1e-6);
        let mut scale = [0.0; 4];
        for (average, scale) in scale.iter_mut().enumerate() {
            *scale = self.corrected(average, relative);
        }
        let relative_bytes = segments / self.corrected(MID, self.whole.bytes).max(1e-6);
        let at = first / LANES;
        let load = |column: &Column| column.tiles[at];
        out[0] = load(&self.reads);
        out[1] = load(&self.writes_now);
        out[2] = load(&self.bytes);
        log::<FUSED>(&mut out[0], relative);
        log::<FUSED>(&mut out[1], relative);
        log::<FUSED>(&mut out[2], relative_bytes);
        for (average, scale) in scale.iter().enumerate() {
            out[3 + average] = load(&self.averages[average]);
            log::<FUSED>(&mut out[3 + average], *scale);
        }
        out[7] = load(&self.age);
        logarithm::<FUSED>(&mut out[7], std::f32::consts::LOG2_E / 10.0);
        let (left, right) = (load(&self.left.neighbours), load(&self.right.neighbours));
        out[8] = left;
        log::<FUSED>(&mut out[8], scale[MID]);
        out[9] = right;
        log::<FUSED>(&mut out[9], scale[MID]);
        let far = 1.0 / ln::<FUSED>(1.0 + segments);
        for (row, column) in [(10, &self.left.distance), (11, &self.right.distance)] {
            out[row] = load(column);
            // where there is no active segment the distance is infinite
            out[row].iter_mut().for_each(|distance| *distance = distance.min(1e9));
            logarithm::<FUSED>(&mut out[row], far);
            out[row].iter_mut().for_each(|distance| *distance = distance.min(1.0));
        }
        for lane in 0..LANES {
            let (left, right) = (left[lane], right[lane]);
            out[12][lane] = self.whole.direction * (left - right) / (left + right).max(1e-9);
        }
        out[13] = load(&self.left.front);
        log::<FUSED>(&mut out[13], scale[FAST]);
        out[14] = load(&self.right.front);
        log::<FUSED>(&mut out[14], scale[FAST]);
        out[15] = load(self.coaccess.column(NEXT));
        log::<FUSED>(&mut out[15], segments);
        let share = self.corrected(MID, 1.0) / expected_accesses.max(1e-6);
        let average = load(&self.averages[MID]);
        for lane in 0..LANES {
            out[16][lane] = (average[lane] * share).sqrt();
        }
        out[17] = Lanes::of(self.whole.from_fast);
        out[18] = Lanes::of(self.whole.from_longest);
        out[19] = Lanes::of(self.whole.active);
        self.scan_rows::<FUSED>(at, &scale, out);
        self.rhythm_rows::<FUSED>(at, &scale, out);
        let valid = self.len().saturating_sub(first).min(LANES);
        for row in out.iter_mut() {
            row[valid..].fill(0.0);
        }
    }

    /// Features 20 to 24: what a scan or co-access will reach.
    #[inline(always)]
    fn scan_rows<const FUSED: bool>(&self, at: usize, scale: &[f32; 4], out: &mut [Lanes; FEATURES]) {
        out[20] = self.left.lent.tiles[at];
        out[21] = self.right.lent.tiles[at];
        let fast = &self.averages[FAST].tiles;
        // the left neighbour of the first segment and the right one of the last do not exist
        out[22] = Lanes::ZERO;
        out[22][1..].copy_from_slice(&fast[at][..LANES - 1]);
        out[22][0] = if at > 0 { fast[at - 1][LANES - 1] } else { 0.0 };
        out[23] = Lanes::ZERO;
        out[23][..LANES - 1].copy_from_slice(&fast[at][1..]);
        out[23][LANES - 1] = fast.get(at + 1).map_or(0.0, |next| next[0]);
        out[20..24].iter_mut().for_each(|row| log::<FUSED>(row, scale[FAST]));
        out[24] = self.coaccess.column(FAR).tiles[at];
        log::<FUSED>(&mut out[24], self.len() as f32);
    }

    /// Features 25 to 27: how regularly a segment is accessed, and written.
    #[inline(always)]
    fn rhythm_rows<const FUSED: bool>(&self, at: usize, scale: &[f32; 4], out: &mut [Lanes; FEATURES]) {
        let (age, gap) = (self.age.tiles[at], self.gap.tiles[at]);
        for lane in 0..LANES {
            out[25][lane] = age[lane] / gap[lane].max(1.0);
        }
        logarithm::<FUSED>(&mut out[25], 0.5);
        out[26] = gap;
        logarithm::<FUSED>(&mut out[26], std::f32::consts::LOG2_E / 10.0);
        out[27] = self.writes.tiles[at];
        log::<FUSED>(&mut out[27], scale[MID]);
    }
}

/// Each lane to `ln(1 + 16 v) / 4` of `scale` times it.
#[inline(always)]
fn log<const FUSED: bool>(lanes: &mut Lanes, scale: f32) {
    let scale = 16.0 * scale;
    for lane in lanes {
        *lane = 0.25 * ln::<FUSED>(multiply_add::<FUSED>(*lane, scale, 1.0));
    }
}

/// Each lane to `ln(1 + v)` times `factor`.
#[inline(always)]
fn logarithm<const FUSED: bool>(lanes: &mut Lanes, factor: f32) {
    for lane in lanes {
        *lane = factor * ln::<FUSED>(1.0 + *lane);
    }
}
