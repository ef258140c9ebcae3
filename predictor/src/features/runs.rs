//! What neighbours hand on: a second visit of each segment, in both directions at once.

use std::ops::Range;

use super::lanes::{Column, LANES, Lanes};
use super::{FAST, Features, MID};
use crate::simd::{for_each_level, multiply_add};

/// What passes of a neighbour's activity over one segment of distance.
const NEIGHBOUR_PASS: f32 = 0.7;
/// What passes of a front's pull over one segment of distance.
const FRONT_PASS: f32 = 0.9;
/// What passes of a segment's fast average over one segment of distance, to what a scan will reach.
const LENT_PASS: f32 = 0.6;

/// What is handed on from segment to segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
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

impl Run {
    /// Past a segment.
    #[inline(always)]
    fn hand_on<const FUSED: bool>(&mut self, from: &Handed, lane: usize) {
        let fma = multiply_add::<FUSED>;
        self.lent = from.fast[lane].max(LENT_PASS * self.lent);
        self.neighbours = fma(NEIGHBOUR_PASS, self.neighbours, from.neighbours[lane]);
        self.distance = if from.count[lane] > 0.0 { 1.0 } else { self.distance + 1.0 };
        self.front = fma(FRONT_PASS, self.front, from.pull[lane]);
    }
}

/// What the segments of a tile hand on.
struct Handed {
    count: Lanes,
    fast: Lanes,
    neighbours: Lanes,
    pull: Lanes,
}

impl Handed {
    /// Of the front that moves this way: `direction` is 1 to the right, -1 to the left.
    #[inline(always)]
    fn of(features: &Features, tile: usize, direction: f32) -> Handed {
        let (reads, writes) = (&features.reads.tiles[tile], &features.writes_now.tiles[tile]);
        let (vote, mid) = (&features.vote.tiles[tile], &features.averages[MID].tiles[tile]);
        let fast = features.averages[FAST].tiles[tile];
        let mut handed = Handed { count: Lanes::ZERO, fast, neighbours: Lanes::ZERO, pull: Lanes::ZERO };
        for lane in 0..LANES {
            handed.count[lane] = reads[lane] + writes[lane];
            handed.neighbours[lane] = (1.0 - NEIGHBOUR_PASS) * mid[lane];
            let pull = direction * vote[lane];
            handed.pull[lane] = (1.0 - FRONT_PASS) * (if pull > 0.0 { pull } else { 0.0 }) * fast[lane];
        }
        handed
    }
}

/// What has reached each segment from one side.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) neighbours: Column,
    pub(super) distance: Column,
    pub(super) front: Column,
    pub(super) lent: Column,
}

impl Side {
    pub(super) fn new(segments: usize) -> Side {
        let zeros = || Column::new(segments, 0.0);
        Side { neighbours: zeros(), distance: Column::new(segments, f32::INFINITY), front: zeros(), lent: zeros() }
    }

    pub(super) fn columns(&mut self) -> [&mut Column; 4] {
        [&mut self.neighbours, &mut self.distance, &mut self.front, &mut self.lent]
    }

    /// Lets `run` pass a tile by its lanes in this order. Lanes past the last segment are not among them.
    #[inline(always)]
    fn pass<const FUSED: bool>(
        &mut self,
        tile: usize,
        order: impl Iterator<Item = usize>,
        run: &mut Run,
        from: &Handed,
    ) {
        let (mut neighbours, mut distance) = (self.neighbours.tiles[tile], self.distance.tiles[tile]);
        let (mut front, mut lent) = (self.front.tiles[tile], self.lent.tiles[tile]);
        for lane in order {
            neighbours[lane] = run.neighbours;
            distance[lane] = run.distance;
            front[lane] = run.front;
            lent[lane] = run.lent;
            run.hand_on::<FUSED>(from, lane);
        }
        self.neighbours.tiles[tile] = neighbours;
        self.distance.tiles[tile] = distance;
        self.front.tiles[tile] = front;
        self.lent.tiles[tile] = lent;
    }
}

for_each_level! {
    pub(super) fn runs_at(level, features: &mut Features, range: Range<usize>) = runs_on
}

/// What reaches the segments of a tile from their left and, as many tiles from the right end, from their right: two
/// chains of dependent sums side by side.
#[inline(always)]
fn runs_on<const FUSED: bool>(features: &mut Features, range: Range<usize>) {
    let (segments, tiles) = (features.len(), features.reads.tiles.len());
    let (mut rightward, mut leftward) = (features.pass.rightward, features.pass.leftward);
    for tile in range {
        let from = Handed::of(features, tile, 1.0);
        features.left.pass::<FUSED>(tile, 0..LANES, &mut rightward, &from);
        let tile = tiles - 1 - tile;
        let from = Handed::of(features, tile, -1.0);
        let lanes = 0..LANES.min(segments - tile * LANES);
        features.right.pass::<FUSED>(tile, lanes.rev(), &mut leftward, &from);
    }
    (features.pass.rightward, features.pass.leftward) = (rightward, leftward);
}
