#![allow(clippy::unwrap_used)]

use futures_lite::future::block_on;
use proptest::prelude::*;

use super::*;
use crate::record::Record;
use crate::table::builder::BuiltTable;
use crate::table::builder::tests::{arbitrary_records, build};
use crate::table::{NoCache, Purpose, ShardBlockCache, TableIter};

fn open(table: &BuiltTable) -> TableReader<&[u8]> {
    block_on(TableReader::open(&table.bytes[..], 0, table.meta.len, Path::new("t"))).unwrap()
}

/// The first block of a table, for tests of the cache.
pub(in crate::table) fn first_block(table: &BuiltTable) -> VerifiedBlock {
    let block = block_on(open(table).block(0, &NoCache)).unwrap();
    Rc::into_inner(block).unwrap()
}

proptest! {
    #[test]
    fn get_every_version_is_found_at_its_lsn(
        records in arbitrary_records(200), block_bytes in 64..800usize, read_bytes in 0..4_000usize
    ) {
        let table = build(&records, block_bytes);
        let reader = open(&table);
        for record in &records {
            let found = block_on(reader.get(record.key.as_ref().into(), record.lsn, &NoCache, read_bytes)).unwrap();
            prop_assert_eq!(found.as_ref().map(BlockRecord::view), Some(record.view()));
        }
        prop_assert!(block_on(reader.get(b"absent"[..].into(), Lsn(99), &NoCache, read_bytes)).unwrap().is_none());
    }

    #[test]
    fn lookup_with_every_block_cached_answers_as_get_does(
        records in arbitrary_records(300), probes in prop::collection::vec((prop::collection::vec(0..4u8, 1..6), 0..60u64), 60)
    ) {
        let table = build(&records, 2_000);
        let reader = open(&table);
        let cache = ShardBlockCache::new(64 << 20);
        for block in 0..reader.blocks() {
            block_on(reader.block(block, &cache)).unwrap();
        }
        for (key, lsn) in probes {
            let expected = records.iter().find(|record| record.key == key && record.lsn <= Lsn(lsn));
            for filter_first in [false, true] {
                let found = match reader.lookup(key.as_slice().into(), Lsn(lsn), &cache, filter_first) {
                    Lookup::Absent => None,
                    Lookup::Found(record) => Some(record),
                    Lookup::OnDevice => panic!("every block is cached"),
                };
                prop_assert_eq!(found.as_ref().map(BlockRecord::view), expected.map(|record| record.view()));
            }
        }
    }

    #[test]
    fn iterate_range_returns_records_in_it(
        records in arbitrary_records(300), start in prop::collection::vec(0..4u8, 0..4),
        end in prop::option::of(prop::collection::vec(0..4u8, 1..4)), block_bytes in 64..1_000usize,
        cached in prop::collection::vec(any::<prop::sample::Index>(), 0..10), maintain: bool, first_bytes in 0..3_000usize,
    ) {
        let table = build(&records, block_bytes);
        let reader = Rc::new(open(&table));
        let cache = Rc::new(ShardBlockCache::new(64 << 20));
        for block in cached {
            block_on(reader.block(block.index(reader.blocks()), &*cache)).unwrap();
        }
        let purpose = if maintain { Purpose::Maintain { read_bytes: 1_000 } } else { Purpose::Serve { first_bytes } };
        let mut iter = TableIter::new(reader, start.clone().into(), end.clone().map(Into::into), cache, purpose);
        let mut seen = Vec::new();
        while iter.advance_now().unwrap_or_else(|| block_on(iter.advance()).unwrap()) {
            seen.push(iter.current().to_record());
        }
        prop_assert!(!block_on(iter.advance()).unwrap(), "the end is the end");
        let in_range = |record: &Record| record.key >= start && end.as_ref().is_none_or(|end| record.key < end);
        let expected: Vec<Record> = records.into_iter().filter(in_range).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn resident_table_answers_as_the_file_does(records in arbitrary_records(200), block_bytes in 64..2_000usize) {
        let table = build(&records, block_bytes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &table.bytes).unwrap();
        let reader = block_on(TableReader::open(&table.bytes[..], 0, table.meta.len, file.path())).unwrap();
        let loaded = match reader.place().load() {
            Ok(loaded) => loaded,
            Err(cause) => {
                println!("SKIPPED: {cause}");
                return Ok(());
            }
        };
        let cache = ShardBlockCache::new(1 << 20);
        block_on(reader.block(0, &cache)).unwrap();
        reader.set_resident(loaded);
        prop_assert_eq!(cache.used(), 0, "what was cached gave way");
        for record in &records {
            let Lookup::Found(found) = reader.lookup(record.key.as_ref().into(), record.lsn, &cache, false) else {
                panic!("every block is in memory");
            };
            prop_assert_eq!(found.view(), record.view());
        }
        reader.clear_resident();
        prop_assert!(reader.cached(0, &cache).is_none());
        block_on(reader.block(0, &cache)).unwrap();
        prop_assert!(reader.cached(0, &cache).is_some());
    }

    #[test]
    fn resident_table_any_bit_flip_in_a_block_is_refused(
        records in arbitrary_records(40), at in any::<prop::sample::Index>(), bit in 0..8u8
    ) {
        let table = build(&records, 128);
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = block_on(TableReader::open(&table.bytes[..], 0, table.meta.len, file.path())).unwrap();
        let mut bytes = table.bytes.clone();
        let place = reader.place();
        let (start, len, _) = place.blocks[at.index(place.blocks.len())];
        bytes[start + at.index(len)] ^= 1 << bit;
        std::fs::write(file.path(), &bytes).unwrap();
        prop_assert!(place.load().is_err());
    }

    #[test]
    fn verify_image_any_bit_flip_is_refused(records in arbitrary_records(40), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let table = build(&records, 128);
        prop_assert_eq!(block_on(verify_image(&table.bytes)).unwrap(), table.meta);
        let mut bytes = table.bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(block_on(verify_image(&bytes)).is_err());
    }

    #[test]
    fn verify_image_truncated_is_refused(records in arbitrary_records(40), keep in any::<prop::sample::Index>()) {
        let table = build(&records, 128);
        prop_assert!(block_on(verify_image(&table.bytes[..keep.index(table.bytes.len())])).is_err());
    }

    #[test]
    fn verify_image_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(block_on(verify_image(&bytes)).is_err());
    }
}
