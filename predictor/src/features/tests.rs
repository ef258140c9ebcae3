#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn counts_of(active: &[(usize, u32)], segments: usize) -> Vec<SegmentCounts> {
    let mut counts = vec![SegmentCounts::default(); segments];
    for (index, reads) in active {
        counts[*index] = SegmentCounts { reads: *reads, writes: 1, bytes: u64::from(*reads) * 512, sequential: 0 };
    }
    counts
}

fn observe(features: &mut Features, counts: &[SegmentCounts]) {
    features.begin(counts);
    assert!(features.step(usize::MAX));
}

fn row(features: &Features, segment: usize) -> [f32; FEATURES] {
    let mut tile = [Lanes::ZERO; FEATURES];
    features.tile(segment / LANES * LANES, &mut tile);
    tile.map(|lanes| lanes[segment % LANES])
}

#[test]
fn slices_of_any_size_give_the_same_features() {
    let mut whole = Features::new(37);
    let mut sliced = Features::new(37);
    for window in 0..50usize {
        let counts = counts_of(&[(window % 37, 100), (window * 7 % 37, 3)], 37);
        observe(&mut whole, &counts);
        sliced.begin(&counts);
        let mut steps = 0;
        while !sliced.step(1 + window % 5) {
            steps += 1;
        }
        // three tiles twice, and two chains between
        assert!(steps >= 3 + 2 + 3 - 1);
    }
    for segment in 0..37 {
        assert_eq!(row(&whole, segment), row(&sliced, segment));
    }
}

#[test]
fn load_alone_does_not_change_the_features() {
    let mut light = Features::new(16);
    let mut heavy = Features::new(16);
    for window in 0..40usize {
        let shape = [(window % 16, 20u32), (5, 40)];
        let counts = |factor: u32| {
            let mut counts = vec![SegmentCounts::default(); 16];
            for (index, reads) in shape {
                counts[index] =
                    SegmentCounts { reads: reads * factor, bytes: u64::from(reads * factor), ..counts[index] };
            }
            counts
        };
        observe(&mut light, &counts(1));
        observe(&mut heavy, &counts(1000));
    }
    for segment in 0..16 {
        for (a, b) in row(&light, segment).iter().zip(row(&heavy, segment)) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
    }
}

#[test]
fn scan_to_the_right_pulls_its_right_side() {
    let mut features = Features::new(64);
    for window in 0..40 {
        observe(&mut features, &counts_of(&[(window, 50)], 64));
    }
    // the front stands at 39
    let (ahead, behind, far) = (row(&features, 40), row(&features, 20), row(&features, 60));
    assert!(ahead[12] > 0.1, "{ahead:?}");
    assert!(ahead[13] > 2.0 * ahead[14]);
    assert!(ahead[13] > far[13]);
    assert!(ahead[8] > ahead[9]);
    assert!(ahead[10] < far[10] && ahead[11] == 1.0);
    assert!(behind[7] < 0.5 && ahead[7] > 0.999);
}

#[test]
fn averages_are_unbiased_from_the_first_window() {
    let mut features = Features::new(4);
    observe(&mut features, &counts_of(&[(0, 100), (1, 100), (2, 100), (3, 100)], 4));
    let got = row(&features, 2);
    let average_segment = 0.25 * 17.0f32.ln();
    for average in 3..7 {
        assert!((got[average] - average_segment).abs() < 1e-4, "{got:?}");
    }
}

#[test]
fn empty_partition_and_idle_windows_are_fine() {
    let mut features = Features::new(0);
    observe(&mut features, &[]);
    let mut features = Features::new(3);
    for _ in 0..10 {
        observe(&mut features, &counts_of(&[], 3));
    }
    assert!(row(&features, 1).iter().all(|value| value.is_finite()));
}

proptest! {
    #[test]
    fn features_stay_finite_and_small(
        windows in prop::collection::vec(prop::collection::vec((any::<u32>(), any::<u32>(), any::<u64>()), 12), 1..20),
        structure in prop::collection::vec((any::<bool>(), 0..11usize, 0.0f32..=1.0), 0..6),
    ) {
        let mut features = Features::new(12);
        let mut changes = structure.into_iter();
        for window in windows {
            let mut counts: Vec<SegmentCounts> = window
                .into_iter()
                .map(|(reads, writes, bytes)| SegmentCounts { reads, writes, bytes, sequential: 0 })
                .collect();
            counts.resize(features.len(), SegmentCounts::default());
            observe(&mut features, &counts);
            match changes.next() {
                Some((true, index, share)) if index < features.len() => features.split(index, share),
                Some((false, index, _)) if index + 1 < features.len() => features.merge(index),
                _ => {}
            }
            for segment in 0..features.len() {
                let row = row(&features, segment);
                prop_assert!(row.iter().all(|value| value.is_finite() && value.abs() < 12.0), "{:?}", row);
            }
        }
    }
}
