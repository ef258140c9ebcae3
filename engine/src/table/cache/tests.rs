#![allow(clippy::unwrap_used)]

use super::*;
use crate::record::{Record, RecordKind};
use crate::table::builder::tests::build;
use crate::types::{Hlc, Lsn};

/// A block of one record; each weighs the same.
fn block() -> VerifiedBlock {
    let record = Record {
        key: "k".into(),
        lsn: Lsn(1),
        hlc: Hlc(1),
        kind: RecordKind::Put,
        expires_at_ms: 0,
        value: vec![7; 200].into(),
    };
    crate::table::reader::tests::first_block(&build(&[record], 4096))
}

/// What it weighs in a cache.
fn block_weight() -> usize {
    weight(&block().into_frame(&Rc::new(FramePool::for_capacity(0))))
}

fn read(cache: &ShardBlockCache, slots: &Rc<BlockSlots>, index: usize) -> bool {
    let hit = cache.lookup(slots, index).is_some();
    if !hit {
        cache.insert(slots, index, block());
    }
    hit
}

#[test]
fn insert_beyond_capacity_stays_within_it() {
    let cache = ShardBlockCache::new(block_weight() * 20);
    let slots = BlockSlots::new(500);
    for index in 0..500 {
        read(&cache, &slots, index);
        assert!(cache.used() <= block_weight() * 20);
    }
    let held = (0..500).filter(|index| cache.lookup(&slots, *index).is_some()).count();
    assert_eq!(held * block_weight(), cache.used());
}

#[test]
fn frames_of_dropped_blocks_go_back_when_memory_is_charged() {
    let capacity = 32 << 20;
    let cache = ShardBlockCache::new(capacity);
    let slots = BlockSlots::new(60_000);
    for index in 0..60_000 {
        read(&cache, &slots, index);
    }
    assert!(cache.bytes() > capacity - capacity / 8 && cache.bytes() <= capacity);
    let charges: Vec<Charge> = (0..24).map(|_| cache.charge(1 << 20)).collect();
    assert!(cache.bytes() <= capacity, "{} bytes", cache.bytes());
    assert!((0..60_000).any(|index| cache.lookup(&slots, index).is_some()), "what fits stays");
    drop(charges);
}

#[test]
fn scan_over_hot_blocks_leaves_them_cached() {
    let cache = ShardBlockCache::new(block_weight() * 100);
    let slots = BlockSlots::new(5_000);
    for _ in 0..4 {
        for index in 0..50 {
            read(&cache, &slots, index);
        }
    }
    for index in 50..5_000 {
        read(&cache, &slots, index);
    }
    let hits = (0..50).filter(|index| cache.lookup(&slots, *index).is_some()).count();
    assert_eq!(hits, 50, "a scan pushed hot blocks out");
}

#[test]
fn drop_of_a_table_gives_its_bytes_back() {
    let cache = ShardBlockCache::new(block_weight() * 100);
    let (kept, gone) = (BlockSlots::new(40), BlockSlots::new(40));
    for index in 0..40 {
        read(&cache, &kept, index);
        read(&cache, &gone, index);
    }
    drop(gone);
    assert_eq!(cache.used(), block_weight() * 40);
    let next = BlockSlots::new(200);
    for index in 0..200 {
        read(&cache, &next, index);
    }
    assert!(cache.used() <= block_weight() * 100);
}

#[test]
fn charge_pushes_blocks_out_and_gives_room_back() {
    let cache = ShardBlockCache::new(block_weight() * 20);
    let slots = BlockSlots::new(40);
    for index in 0..20 {
        read(&cache, &slots, index);
    }
    let charge = cache.charge(block_weight() * 15);
    assert_eq!(cache.used(), block_weight() * 20);
    let too_much = cache.charge(block_weight() * 30);
    assert!((0..40).all(|index| cache.lookup(&slots, index).is_none()), "no block is left");
    drop((charge, too_much));
    assert_eq!(cache.used(), 0);
    read(&cache, &slots, 30);
    assert!(cache.lookup(&slots, 30).is_some());
}

#[test]
fn block_that_comes_back_soon_outlives_newcomers() {
    let cache = ShardBlockCache::new(block_weight() * 20);
    let slots = BlockSlots::new(1_000);
    // Fill the main queue: read twice each.
    for index in 0..18 {
        read(&cache, &slots, index);
        read(&cache, &slots, index);
    }
    for index in 100..110 {
        read(&cache, &slots, index);
    }
    assert!(cache.lookup(&slots, 100).is_none(), "it was dropped from the small queue");
    read(&cache, &slots, 100);
    for index in 200..210 {
        read(&cache, &slots, index);
    }
    assert!(cache.lookup(&slots, 100).is_some(), "it came back into the main queue");
}
